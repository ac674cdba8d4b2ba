//! How often a timer has expired while its signal waits.
//!
//! The kernel tells that only to who takes the signal. So the process takes it and queues a copy for itself, in one
//! batch, which no death of this program can cut in two; then it takes the copy back and sets the timer to the moment
//! of its first expiry, again in one batch. It expires at once, and signal, count and rhythm are as they were.

use super::observe::Clock;
use super::time;
use crate::error::Result;
use crate::frozen::FrozenProcess;
use crate::kinds::signal::observe::SET_LENGTH;
use crate::kinds::signal::waiting::{SI_TIMER, Settled, bit};
use crate::stub::batch::{Argument, Batch, CallIndex, Data};
use vckpt_image_format::record::alarm::{Alarm, Notify, Timer};
use vckpt_image_format::record::signal::{Pending, SIGINFO_LENGTH};

/// Place of `si_overrun` among the words of a `siginfo_t`.
const OVERRUN: usize = 5;

/// Finds out which timers have a signal that waits, and how often they have expired since. Gives the numbers of those of
/// which that can't be known.
///
/// # Errors
/// If the stub can't be reached, or the kernel refuses.
pub fn measure(process: &mut FrozenProcess, alarm: &mut Alarm, queues: &Settled) -> Result<Vec<u32>> {
    let mut unknown = Vec::new();
    for timer in &mut alarm.timers {
        let same: Vec<&Pending> = queues.entries().filter(|entry| entry.signal() == timer.signal).collect();
        if !same.iter().any(|entry| entry.code() == SI_TIMER && entry.timer() == timer.id) {
            continue;
        }
        timer.waiting = Some(0);
        // With others of the same signal around, taking it would change their order.
        match same.len() == 1 && Clock::of(timer.clock) == Clock::Time {
            _ if timer.setting.interval == 0 => {}
            true => measure_one(process, timer)?,
            false => unknown.push(timer.id),
        }
    }
    Ok(unknown)
}

fn measure_one(process: &mut FrozenProcess, timer: &mut Timer) -> Result<()> {
    let receiver = match timer.notify {
        Notify::ThreadId(id) => process.threads.iter_mut().find(|thread| thread.id == id),
        Notify::Signal | Notify::None | Notify::Thread => process.threads.first_mut(),
    };
    let Some(receiver) = receiver else { return Ok(()) };

    let mut batch = Batch::new();
    let information = take(&mut batch, timer.signal, 0);
    let copied = queue_copy(&mut batch, timer, information);
    let (setting, now) = (batch.room(time::LENGTH), batch.room(16));
    batch.call("reading a timer", libc::SYS_timer_gettime, [timer.id.into(), setting.into()]);
    batch.call("reading a clock", libc::SYS_clock_gettime, [timer.clock.into(), now.into()]);
    let outcome = receiver.run(&batch)?;
    let missed = outcome.half_word(information, OVERRUN);
    timer.waiting = Some(missed);
    timer.setting = time::timer(&outcome, setting);

    let mut batch = Batch::new();
    if outcome.get(copied).is_ok() {
        take(&mut batch, timer.signal, 0);
    }
    let first = time::first_expiry(time::moment(&outcome, now), timer.setting, missed);
    set_to(&mut batch, timer, first);
    receiver.run(&batch).map(drop)
}

/// Takes a waiting signal, or waits so many seconds for it.
pub(super) fn take(batch: &mut Batch, signal: u32, patience: u64) -> Data {
    let (set, timeout) = (batch.words(&[bit(signal)]), batch.words(&[patience, 0]));
    let information = batch.room(SIGINFO_LENGTH);
    let arguments = [set.into(), information.into(), timeout.into(), Argument::value(SET_LENGTH)];
    batch.must("taking the signal of a timer", libc::SYS_rt_sigtimedwait, arguments);
    information
}

fn queue_copy(batch: &mut Batch, timer: &Timer, information: Data) -> CallIndex {
    let signal = Argument::from(timer.signal);
    let process = batch.must("asking for the process ID", libc::SYS_getpid, []);
    let label = "queueing the signal of a timer";
    if let Notify::ThreadId(_) = timer.notify {
        let thread = batch.must("asking for the thread ID", libc::SYS_gettid, []);
        let arguments = [process.into(), thread.into(), signal, information.into()];
        return batch.call(label, libc::SYS_rt_tgsigqueueinfo, arguments);
    }
    batch.call(label, libc::SYS_rt_sigqueueinfo, [process.into(), signal, information.into()])
}

/// Sets a timer to a moment of its clock.
pub(super) fn set_to(batch: &mut Batch, timer: &Timer, moment: u64) {
    let [interval, interval_rest, ..] = time::timer_words(timer.setting);
    let words = batch.words(&[interval, interval_rest, moment / time::SECOND, moment % time::SECOND]);
    let arguments = [timer.id.into(), Argument::from(libc::TIMER_ABSTIME), words.into(), Argument::value(0)];
    batch.must("setting a timer", libc::SYS_timer_settime, arguments);
}
