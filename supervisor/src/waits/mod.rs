//! Calls that wait for at most some time, and how they go on with the time that is left.
//!
//! Stopping a task ends its call. Most calls the kernel makes again by itself; a time-out then falls into one of three
//! classes:
//!
//! - The deadline is absolute, or the kernel writes what is left to where the call reads it (`ppoll`, `pselect6`,
//!   `select`): made again, the call is right, see [`updated`].
//! - The kernel keeps the deadline in a *restart block* (`nanosleep`, `poll`, relative `futex`;
//!   `-ERESTART_RESTARTBLOCK`): the same task goes on rightly by itself. Nobody can read a restart block, so when it was
//!   first seen, a [`note`] with the call and its deadline is left below the red zone of the task's stack, where the next dump finds
//!   it. A restored task makes the call with what is left and is interrupted in it, and so has a restart block again.
//! - The kernel would end the call with `EINTR` (`epoll_wait`, `rt_sigtimedwait`, `recv` with `SO_RCVTIMEO`, …): it is
//!   made again with a shorter time-out, see [`resume`].
//!
//! How long a task has been waiting is seen before it is stopped: the scheduler tells when it went to sleep
//! ([`before`]). Where a kernel does not tell, the call waits its whole time anew.

pub mod before;
pub mod call;
pub mod note;
pub mod resume;
pub mod updated;

use crate::sys::ptrace::Registers;
use before::{Before, Clocks};
use nix::time::{ClockId, clock_gettime};
use vckpt_image_format::record::lightweight_process::Wait;

/// `-ERESTART_RESTARTBLOCK`.
pub const RESTART_BLOCK: i64 = -516;
/// `-ERESTARTNOHAND`: made again unless a handler runs; then the program sees `EINTR`.
pub const RESTART_NO_HANDLER: i64 = -514;

/// `CLOCK_MONOTONIC`, in nanoseconds.
#[must_use]
pub fn now() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// Whether a task has these registers because its call was ended by a stop: the kernel would tell the program `EINTR`.
#[must_use]
pub fn is_interrupted(registers: &Registers) -> bool {
    let in_call = registers.orig_rax.cast_signed() >= 0;
    // A close has happened although it was interrupted: it is never made again.
    let close = registers.orig_rax == libc::SYS_close.cast_unsigned();
    in_call && !close && registers.rax.cast_signed() == -i64::from(libc::EINTR)
}

/// When a task came to a stop, by `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// When it was asked to. Until it stood still it may have ended a wait and begun the next.
    pub asked: i64,
    /// When it was seen to stand still.
    pub stood_still: i64,
}

impl Moments {
    /// A task that was asked to stop at `asked` and stands still now.
    #[must_use]
    pub fn until_now(asked: Option<i64>) -> Self {
        let stood_still = now();
        Self { asked: asked.unwrap_or(stood_still), stood_still }
    }
}

/// What was seen of a task before and at its stop, and the clocks by which that is understood.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'clocks> {
    /// Whether its call would have ended with `EINTR` because of the stop, and was marked to be made again.
    pub interrupted: bool,
    /// What was seen before, if anything.
    pub before: Option<Before>,
    /// The clocks.
    pub clocks: &'clocks Clocks,
}

impl Seen<'_> {
    fn waiting_since(&self, tid: i32, number: u64, moments: Moments) -> Option<i64> {
        self.before.and_then(|before| before.waiting_since(tid, number, moments, self.clocks))
    }
}

/// The wait in which a task (process and thread ID) was stopped, if it has a limit of time that would be lost, and the
/// moment at which that much was left of it.
#[must_use]
pub fn observe(
    (pid, tid): (i32, i32),
    registers: &Registers,
    moments: Moments,
    seen: Seen<'_>,
) -> Option<(Wait, i64)> {
    let restart_block = registers.rax.cast_signed() == RESTART_BLOCK;
    if !restart_block && !seen.interrupted {
        return None;
    }
    if registers.orig_rax == libc::SYS_restart_syscall.cast_unsigned() {
        let note = note::read(tid, registers)?;
        let remaining = note.remaining(moments.stood_still);
        return Some((Wait { number: note.number, remaining, restart_block: true }, moments.stood_still));
    }
    let number = u32::try_from(registers.orig_rax).ok()?;
    let limit = match call::limit(pid, tid, &registers.into()) {
        Some(limit) => limit,
        // The kernel keeps even some of those in a restart block that have no limit, or an absolute one.
        None if restart_block => Wait::UNCHANGED,
        None => return None,
    };
    let whole = Wait { number, remaining: limit, restart_block };
    if whole.is_unchanged() {
        return Some((whole, moments.stood_still));
    }
    // A wait that was not seen before may have begun as late as the task stood still: one that is too long can be
    // told from a busy machine by nobody, one that is too short by everybody.
    let since = seen.waiting_since(tid, registers.orig_rax, moments);
    match since.and_then(|since| u64::try_from(moments.asked - since).ok()) {
        Some(waited) => Some((Wait { remaining: limit.saturating_sub(waited), ..whole }, moments.asked)),
        None => Some((whole, moments.stood_still)),
    }
}
