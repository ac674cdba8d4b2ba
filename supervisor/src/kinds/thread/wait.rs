//! Calls with a relative time-out that the kernel restarts by a restart block.

use crate::error::Result;
use crate::stub::puppet::Puppet;
use crate::sys::ptrace::Registers;
use crate::waits::RESTART_BLOCK;
use std::time::{Duration, Instant};
use vckpt_image_format::record::lightweight_process::LightweightProcess;

const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a thread that waited for at most some time do so again, for the time that was left: it makes the call and is
/// interrupted in it, so that the kernel keeps the deadline. Gives what the call returned if its time was up before.
///
/// # Errors
/// If the thread is gone.
pub fn restart(
    puppet: &mut Puppet,
    thread: &LightweightProcess,
    home: &Registers,
    call: Option<u64>,
) -> Result<Option<u64>> {
    let (Some(wait), Some(call)) = (&thread.wait, call) else { return Ok(None) };
    if !wait.restart_block {
        return Ok(None);
    }
    let scratch = puppet.scratch();
    let time = [wait.remaining / 1_000_000_000, wait.remaining % 1_000_000_000];
    let bytes: Vec<u8> = time.iter().flat_map(|word| word.to_le_bytes()).collect();
    puppet.write(scratch, &bytes)?;
    let mut registers = *home;
    registers.rip = call;
    registers.rax = u64::from(wait.number);
    registers.orig_rax = u64::MAX;
    match i64::from(wait.number) {
        // The arguments are those of the program, and in its memory.
        libc::SYS_poll | libc::SYS_futex | libc::SYS_nanosleep | libc::SYS_clock_nanosleep
            if wait.is_unchanged() => {}
        libc::SYS_nanosleep => registers.rdi = scratch,
        libc::SYS_clock_nanosleep => registers.rdx = scratch,
        libc::SYS_poll => registers.rdx = wait.remaining.div_ceil(1_000_000),
        libc::SYS_futex => registers.r10 = scratch,
        _ => return Ok(None),
    }
    let deadline = Instant::now() + PATIENCE;
    puppet.step(|stopped| {
        stopped.set_registers(&registers)?;
        let stopped = stopped.resume_to_call()?.expect_call(deadline)?;
        stopped.to_interruption(deadline)
    })?;
    let result = puppet.stopped()?.registers()?.rax;
    Ok((result.cast_signed() != RESTART_BLOCK).then_some(result))
}
