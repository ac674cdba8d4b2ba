//! Makes POSIX timers with the IDs that they had.

use super::observe::Clock;
use crate::error::{Error, Result, Subject, code};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex, Data};
use nix::errno::Errno;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::alarm::{Notify, Timer};

/// `PR_TIMER_CREATE_RESTORE_IDS` of `prctl(2)`.
const RESTORE_IDS: i32 = 77;
/// Size of `struct sigevent`.
const EVENT_LENGTH: usize = 64;
/// How many timers are made and deleted at most until an ID comes, where it can't be chosen.
const MOST_ATTEMPTS: u32 = 4_000_000;
/// How many of these are in one batch.
const ATTEMPTS: u32 = 200;

/// Makes the timers of a process, which are ordered by ID, not yet running.
///
/// # Errors
/// [`code::PRIVILEGE`] for clocks that need one, [`code::HOST_FEATURE`] if this kernel can't give an ID, else
/// [`code::TASK_RESTORE`].
pub(super) fn create(restoring: &mut Restoring<'_>, process: TaskId, timers: &[Timer]) -> Result<()> {
    if choose_ids(restoring, process, true)? {
        for timer in timers {
            let mut batch = Batch::new();
            let (call, _) = make(&mut batch, timer);
            let outcome = restoring.run(creator(process, timer), &batch)?;
            outcome.get(call).map_err(|errno| refused(process, timer, errno))?;
        }
        choose_ids(restoring, process, false)?;
        return Ok(());
    }
    let mut next = 0;
    for timer in timers {
        skip(restoring, process, timer, next)?;
        let mut batch = Batch::new();
        let (call, id) = make(&mut batch, timer);
        let outcome = restoring.run(creator(process, timer), &batch)?;
        outcome.get(call).map_err(|errno| refused(process, timer, errno))?;
        if outcome.half_word(id, 0) != timer.id {
            return Err(no_such_id(process, timer));
        }
        next = timer.id.saturating_add(1);
    }
    Ok(())
}

/// Whether IDs can be chosen from now on.
fn choose_ids(restoring: &mut Restoring<'_>, process: TaskId, on: bool) -> Result<bool> {
    let mut batch = Batch::new();
    let zero = Argument::value(0);
    let arguments = [RESTORE_IDS.into(), Argument::value(u64::from(on)), zero, zero, zero];
    let call = batch.call("choosing the IDs of timers", libc::SYS_prctl, arguments);
    Ok(restoring.run(process, &batch)?.get(call).is_ok())
}

/// Uses up the IDs from `next` to that of the timer.
fn skip(restoring: &mut Restoring<'_>, process: TaskId, timer: &Timer, next: u32) -> Result<()> {
    if timer.id.saturating_sub(next) > MOST_ATTEMPTS {
        return Err(no_such_id(process, timer));
    }
    let mut next = next;
    while next < timer.id {
        let end = timer.id.min(next.saturating_add(ATTEMPTS));
        let mut batch = Batch::new();
        for id in next..end {
            let (event, number) = (batch.data(&event(Notify::None, 0, 0)), batch.data(&[0; 4]));
            let monotonic = Argument::from(libc::CLOCK_MONOTONIC);
            batch.must("making a timer", libc::SYS_timer_create, [monotonic, event.into(), number.into()]);
            batch.must("deleting a timer", libc::SYS_timer_delete, [id.into()]);
        }
        restoring.run(process, &batch).map_err(|error| no_such_id(process, timer).because(error))?;
        next = end;
    }
    Ok(())
}

/// Adds the call that makes a timer, and the place of its ID.
fn make(batch: &mut Batch, timer: &Timer) -> (CallIndex, Data) {
    let event = batch.data(&event(timer.notify, timer.signal, timer.value));
    let id = batch.exchange(&timer.id.to_le_bytes());
    let call =
        batch.call("making a timer", libc::SYS_timer_create, [timer.clock.into(), event.into(), id.into()]);
    (call, id)
}

/// `struct sigevent`.
fn event(notify: Notify, signal: u32, value: u64) -> [u8; EVENT_LENGTH] {
    let (kind, thread) = match notify {
        Notify::Signal => (libc::SIGEV_SIGNAL, 0),
        Notify::None => (libc::SIGEV_NONE, 0),
        Notify::Thread => (libc::SIGEV_THREAD, 0),
        Notify::ThreadId(thread) => (libc::SIGEV_THREAD_ID, thread.0),
    };
    let mut event = [0; EVENT_LENGTH];
    event[..8].copy_from_slice(&value.to_le_bytes());
    event[8..12].copy_from_slice(&signal.to_le_bytes());
    event[12..16].copy_from_slice(&kind.to_le_bytes());
    event[16..20].copy_from_slice(&thread.to_le_bytes());
    event
}

/// The thread that must make a timer.
fn creator(process: TaskId, timer: &Timer) -> TaskId {
    match (Clock::of(timer.clock), timer.notify) {
        (Clock::OwnThread, Notify::ThreadId(thread)) => thread,
        _ => process,
    }
}

fn subject(process: TaskId) -> Subject {
    Subject { task: Some(process.0), ..Subject::default() }
}

fn refused(process: TaskId, timer: &Timer, errno: Errno) -> Box<Error> {
    let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::TASK_RESTORE };
    let what = format!("making timer {} of clock {}", timer.id, timer.clock);
    Error::system(code, what, errno).about(subject(process))
}

fn no_such_id(process: TaskId, timer: &Timer) -> Box<Error> {
    Error::new(code::HOST_FEATURE, format!("this kernel does not give the ID {} to a timer", timer.id))
        .about(subject(process))
        .hint("Linux 6.15 or later lets the IDs of timers be chosen")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_laid_out_as_the_kernel_has_it() {
        let event = event(Notify::ThreadId(TaskId(0x1234)), 34, 0x0102_0304_0506_0708);
        assert_eq!(event[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(event[8..20], [34, 0, 0, 0, 4, 0, 0, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(event[20..], [0; 44]);
    }

    #[test]
    fn a_timer_of_a_thread_is_made_by_it() {
        let timer = |clock, notify| Timer {
            id: 0,
            clock,
            notify,
            signal: 14,
            value: 0,
            setting: vckpt_image_format::record::alarm::Setting::default(),
            overrun: 0,
            waiting: None,
        };
        let to_thread = Notify::ThreadId(TaskId(7));
        assert_eq!(creator(TaskId(5), &timer(-2, to_thread)), TaskId(7));
        assert_eq!(creator(TaskId(5), &timer(1, to_thread)), TaskId(5));
        assert_eq!(creator(TaskId(5), &timer(-2, Notify::Signal)), TaskId(5));
    }
}
