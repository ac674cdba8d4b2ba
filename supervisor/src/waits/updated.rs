//! Calls to whose caller the kernel writes what is left of the time-out when they are interrupted: `ppoll`, `pselect6`,
//! `select`. Made again they are right, but for the time that the task stood still: that is taken off here, in the
//! same place.

use super::RESTART_NO_HANDLER;
use crate::sys::process;
use crate::sys::ptrace::Registers;
use nix::errno::Errno;

/// Takes time that has passed, in nanoseconds, off the time-out of such a call.
///
/// # Errors
/// If the memory of the task can't be read or written, as the task itself could.
pub fn shorten(tid: i32, registers: &Registers, passed: u64) -> Result<(), Errno> {
    // Units of the second word: nanoseconds of a timespec, microseconds of a timeval.
    let (address, unit) = match registers.orig_rax.cast_signed() {
        libc::SYS_ppoll => (registers.rdx, 1),
        libc::SYS_pselect6 => (registers.r8, 1),
        libc::SYS_select => (registers.r8, 1000),
        _ => return Ok(()),
    };
    if address == 0 || registers.rax.cast_signed() != RESTART_NO_HANDLER {
        return Ok(());
    }
    let mut bytes = [0; 16];
    if process::read_memory(tid, address, &mut bytes)? != bytes.len() {
        return Err(Errno::EFAULT);
    }
    let [seconds, parts] =
        [&bytes[..8], &bytes[8..]].map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    let left = seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(parts.saturating_mul(unit))
        .saturating_sub(passed);
    let words = [left / 1_000_000_000, left % 1_000_000_000 / unit];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    process::write_memory(tid, address, &bytes)
}
