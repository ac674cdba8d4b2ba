//! What a thread is put back to: its own registers, extended state, mask, and what is left of its wait.

use crate::error::Result;
use crate::sys::process;
use crate::sys::ptrace::Registers;
use crate::tracee::{Stopped, restartable};
use crate::waits::{self, Moments, RESTART_BLOCK, Seen};
use vckpt_image_format::record::lightweight_process::Wait;

/// A thread's own state, taken down when it stood still.
#[derive(Debug)]
pub(super) struct OwnState {
    pub(super) registers: Registers,
    pub(super) xstate: Vec<u8>,
    /// Bit n-1 for signal n.
    pub(super) signal_mask: u64,
    /// Raw `siginfo_t`, the oldest first: the thread's, and its process's.
    pub(super) pending: Vec<[u8; 128]>,
    pub(super) shared_pending: Vec<[u8; 128]>,
    /// Address (0: none), size, signature of the rseq area.
    pub(super) rseq: (u64, u32, u32),
    pub(super) wait: Option<Wait>,
    /// From when on time that passes is taken off the wait, by `CLOCK_MONOTONIC` in nanoseconds.
    pub(super) counted_from: i64,
    /// Whether the thread would see that its call was interrupted if it were let go now, without handlers.
    pub(super) loses_its_call: bool,
}

impl OwnState {
    /// Takes down the state of a thread of process `pid`. Nothing is changed that the thread could tell.
    ///
    /// # Errors
    /// If the thread is gone or can't be read.
    pub(super) fn take_down(stopped: &Stopped, pid: i32, moments: Moments, seen: Seen<'_>) -> Result<Self> {
        let tid = stopped.tid();
        let mut registers = stopped.registers()?;
        let again = interrupted_again(tid, &mut registers);
        let in_call = registers.orig_rax.cast_signed() >= 0;
        let observed = if in_call { waits::observe((pid, tid), &registers, moments, seen) } else { None };
        let rseq = crate::sys::ptrace::rseq(tid).unwrap_or_default();
        let aborted = restartable::abort(tid, rseq.0, &mut registers);
        if again || aborted.is_some() {
            stopped.set_registers(&registers)?;
        }
        if let Some(pointer) = aborted {
            // The kernel clears it by itself if this fails: the task is not in the sequence any more.
            let _ = process::write_memory(tid, pointer, &[0; 8]);
        }
        let (wait, counted_from) =
            observed.map_or((None, moments.stood_still), |(wait, from)| (Some(wait), from));
        Ok(Self {
            xstate: stopped.xstate()?,
            signal_mask: stopped.signal_mask()?,
            pending: stopped.pending_signals(false)?,
            shared_pending: stopped.pending_signals(true)?,
            rseq,
            loses_its_call: in_call && registers.rax.cast_signed() == RESTART_BLOCK && wait.is_none(),
            wait,
            counted_from,
            registers,
        })
    }

    /// How long the thread has stood still, in nanoseconds.
    pub(super) fn passed(&self) -> u64 {
        u64::try_from(waits::now() - self.counted_from).unwrap_or(0)
    }

    /// The wait with what is left of it now. Time that passes during a dump counts: the program could not tell it from
    /// time in which it got no processor.
    pub(super) fn wait_that_is_left(&self) -> Option<Wait> {
        let wait = self.wait?;
        let remaining =
            if wait.is_unchanged() { wait.remaining } else { wait.remaining.saturating_sub(self.passed()) };
        Some(Wait { remaining, ..wait })
    }
}

/// A task that is stopped again before it has made `restart_syscall`, which the kernel has already put into its
/// registers: takes them back to what they were at the first stop, which to the kernel is the same.
fn interrupted_again(tid: i32, registers: &mut Registers) -> bool {
    const SYSTEM_CALL: [u8; 2] = [0x0f, 0x05];
    let restart = libc::SYS_restart_syscall.cast_unsigned();
    let mut bytes = [0; 2];
    if registers.rax != restart
        || process::read_memory(tid, registers.rip, &mut bytes) != Ok(2)
        || bytes != SYSTEM_CALL
    {
        return false;
    }
    registers.rip = registers.rip.wrapping_add(2);
    registers.rax = RESTART_BLOCK.cast_unsigned();
    registers.orig_rax = restart;
    true
}
