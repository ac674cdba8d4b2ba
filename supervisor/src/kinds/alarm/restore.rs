//! Makes the timers again and lets them run.

use super::observe::Clock;
use super::{create, overrun, time};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::signal::waiting::{SI_TIMER, bit};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::alarm::{Alarm, Notify, Setting, Timer};
use vckpt_image_format::record::signal::{Pending, Signal};

/// How long a timer may take to expire that is set to a moment in the past.
const PATIENCE: Duration = Duration::from_secs(2);

/// Nothing: [`signal`](crate::kinds::signal::restore) plans the steps of timers.
///
/// # Errors
/// None.
pub fn plan(_image: &Image, _plan: &mut Plan) -> Result<()> {
    Ok(())
}

/// The signals that wait for a process or one of its threads; bit 0 is signal 1.
fn waiting_for_process(signal: &Signal) -> u64 {
    entries(signal).fold(0, |set, pending| set | bit(pending.signal()))
}

fn entries(signal: &Signal) -> impl Iterator<Item = &Pending> {
    signal.pending.iter().chain(signal.threads.iter().flat_map(|thread| &thread.pending))
}

/// Adds the step that makes the timers of a process.
pub(crate) fn make(alarm: &Alarm, plan: &mut Plan) {
    if !alarm.timers.is_empty() {
        plan.action(Stage::Timers, Create { process: alarm.process, timers: alarm.timers.clone() });
    }
}

/// Adds the steps that let the timers of a process run whose signals don't wait: after all signals that do.
pub(crate) fn start(alarm: &Alarm, signal: Option<&Signal>, plan: &mut Plan) {
    let mut batch = Batch::new();
    let waiting = signal.map_or(0, waiting_for_process);
    for (which, &setting) in (0_u32..).zip(&alarm.interval_timers) {
        let setting = interval_timer(which, setting, waiting);
        if setting.remaining != 0 {
            let words = batch.words(&time::interval_timer_words(setting));
            let arguments = [Argument::from(which), words.into(), Argument::value(0)];
            batch.must("setting an interval timer", libc::SYS_setitimer, arguments);
        }
    }
    let process = alarm.process;
    if !alarm.timers.is_empty() {
        let expired = signal.into_iter().flat_map(entries).filter_map(|entry| sent_by(alarm, entry));
        let expired = expired.map(|timer| timer.id).collect();
        plan.action(Stage::Timers, Start { process, timers: alarm.timers.clone(), waiting, expired });
    }
    plan.batch(Stage::Timers, process, "interval timers", batch);
}

/// `ITIMER_REAL` does not run while its signal waits: it expires once more, which adds no signal, and then waits too.
fn interval_timer(which: u32, setting: Setting, waiting: u64) -> Setting {
    let expired =
        which == libc::ITIMER_REAL.cast_unsigned() && setting.remaining == 0 && setting.interval != 0;
    let waits = waiting & bit(libc::SIGALRM.cast_unsigned()) != 0;
    if expired && waits { Setting { remaining: 1, ..setting } } else { setting }
}

/// The timer that sends a waiting signal itself, so that nobody else must queue it.
pub(crate) fn sent_by<'alarm>(alarm: &'alarm Alarm, entry: &Pending) -> Option<&'alarm Timer> {
    let is_by = |timer: &&Timer| {
        entry.code() == SI_TIMER && entry.timer() == timer.id && entry.signal() == timer.signal
    };
    alarm.timers.iter().find(is_by).filter(|timer| expires_anew(timer))
}

/// Lets a timer expire whose signal waits.
#[derive(Debug)]
pub(crate) struct Expire {
    /// Its process.
    pub(crate) process: TaskId,
    /// The timer.
    pub(crate) timer: Timer,
}

impl Action for Expire {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Self { process, timer } = self;
        expire(restoring, *process, timer, timer.waiting.unwrap_or(0))?;
        await_expiry(restoring, *process, timer)
    }
}

fn expires_anew(timer: &Timer) -> bool {
    timer.waiting.is_some() && Clock::of(timer.clock) == Clock::Time
}

/// Makes the POSIX timers of a process.
#[derive(Debug)]
struct Create {
    process: TaskId,
    timers: Vec<Timer>,
}

impl Action for Create {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        create::create(restoring, self.process, &self.timers)
    }
}

/// Sets the POSIX timers of a process.
#[derive(Debug)]
struct Start {
    process: TaskId,
    timers: Vec<Timer>,
    /// The signals that wait for the process or one of its threads.
    waiting: u64,
    /// The timers that have expired already, when it was their turn among the signals that wait.
    expired: BTreeSet<u32>,
}

/// What a timer must do to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It does not run, or has been set already.
    Rests,
    /// It goes on with the time that remained.
    Runs,
    /// It expires at once, and missed so many expiries since.
    ExpiresAnew(u32),
    /// It expires at once, missed so many expiries since, and its signal is taken.
    ExpiresUnseen(u32),
}

impl Start {
    fn way(&self, timer: &Timer) -> Way {
        let counts = timer.setting.interval != 0 && Clock::of(timer.clock) == Clock::Time;
        match timer.waiting {
            _ if self.expired.contains(&timer.id) => Way::Rests,
            Some(missed) if expires_anew(timer) => Way::ExpiresAnew(missed),
            _ if timer.setting.remaining == 0 => Way::Rests,
            None if timer.overrun != 0
                && counts
                && timer.notify != Notify::None
                && self.waiting & bit(timer.signal) == 0 =>
            {
                Way::ExpiresUnseen(timer.overrun)
            }
            Some(_) | None => Way::Runs,
        }
    }

    fn set(&self, restoring: &mut Restoring<'_>, timer: &Timer) -> Result<()> {
        match self.way(timer) {
            Way::Rests => Ok(()),
            Way::Runs => {
                let mut batch = Batch::new();
                let words = batch.words(&time::timer_words(timer.setting));
                let zero = Argument::value(0);
                let arguments = [timer.id.into(), zero, words.into(), zero];
                batch.must("setting a timer", libc::SYS_timer_settime, arguments);
                restoring.run(self.process, &batch).map(drop)
            }
            Way::ExpiresAnew(missed) => {
                expire(restoring, self.process, timer, missed)?;
                await_expiry(restoring, self.process, timer)
            }
            Way::ExpiresUnseen(missed) => {
                expire(restoring, self.process, timer, missed)?;
                let mut batch = Batch::new();
                overrun::take(&mut batch, timer.signal, PATIENCE.as_secs());
                restoring.run(self.receiver(timer), &batch).map(drop)
            }
        }
    }

    fn receiver(&self, timer: &Timer) -> TaskId {
        match timer.notify {
            Notify::ThreadId(thread) => thread,
            Notify::Signal | Notify::None | Notify::Thread => self.process,
        }
    }
}

/// Sets a timer so that it expires at once, as if it had missed so many expiries since it did.
fn expire(restoring: &mut Restoring<'_>, process: TaskId, timer: &Timer, missed: u32) -> Result<()> {
    let mut batch = Batch::new();
    let now = batch.room(16);
    batch.must("reading a clock", libc::SYS_clock_gettime, [timer.clock.into(), now.into()]);
    let outcome = restoring.run(process, &batch)?;
    let first = time::first_expiry(time::moment(&outcome, now), timer.setting, missed);
    let mut batch = Batch::new();
    overrun::set_to(&mut batch, timer, first);
    restoring.run(process, &batch).map(drop)
}

/// Waits until a timer that was set to the past has expired: until then the kernel tells that a nanosecond is left.
fn await_expiry(restoring: &mut Restoring<'_>, process: TaskId, timer: &Timer) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut batch = Batch::new();
    let setting = batch.room(time::LENGTH);
    batch.must("reading a timer", libc::SYS_timer_gettime, [timer.id.into(), setting.into()]);
    while time::timer(&restoring.run(process, &batch)?, setting).remaining == 1 {
        if Instant::now() > deadline {
            let what = format!("timer {} did not expire in time", timer.id);
            let subject = Subject { task: Some(process.0), ..Subject::default() };
            return Err(Error::new(code::TASK_RESTORE, what).about(subject));
        }
    }
    Ok(())
}

impl Action for Start {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        for timer in &self.timers {
            self.set(restoring, timer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::record::signal::SIGINFO_LENGTH;

    const RUNNING: Setting = Setting { remaining: 30, interval: 100 };

    fn timer(setting: Setting, overrun: u32, waiting: Option<u32>) -> Timer {
        Timer { id: 2, clock: 1, notify: Notify::Signal, signal: 34, value: 0, setting, overrun, waiting }
    }

    fn way(timer: &Timer, waiting: u64) -> Way {
        Start { process: TaskId(5), timers: Vec::new(), waiting, expired: BTreeSet::from([9]) }.way(timer)
    }

    #[test]
    fn each_timer_is_brought_back_in_its_own_way() {
        assert_eq!(way(&timer(Setting::default(), 0, None), 0), Way::Rests);
        assert_eq!(way(&timer(RUNNING, 0, None), 0), Way::Runs);
        assert_eq!(way(&timer(RUNNING, 0, Some(4)), bit(34)), Way::ExpiresAnew(4));
        assert_eq!(way(&Timer { id: 9, ..timer(RUNNING, 0, Some(4)) }, bit(34)), Way::Rests);
        assert_eq!(way(&timer(Setting::default(), 0, Some(0)), bit(34)), Way::ExpiresAnew(0));
        assert_eq!(way(&timer(RUNNING, 6, None), 0), Way::ExpiresUnseen(6));
        // Another signal of that number waits, which must not be taken instead.
        assert_eq!(way(&timer(RUNNING, 6, None), bit(34)), Way::Runs);
    }

    #[test]
    fn timers_of_processor_time_are_never_set_to_the_past() {
        let timer = Timer { clock: -6, ..timer(RUNNING, 6, Some(1)) };
        assert_eq!(way(&timer, 0), Way::Runs);
        let alarm =
            Alarm { process: TaskId(5), interval_timers: [Setting::default(); 3], timers: vec![timer] };
        let mut information = [0; SIGINFO_LENGTH];
        for (place, word) in [(0, 34), (8, SI_TIMER), (16, 2)] {
            information[place..place + 4].copy_from_slice(&word.to_le_bytes());
        }
        let entry = Pending::new(&information);
        assert!(sent_by(&alarm, &entry).is_none());
        let alarm = Alarm { timers: vec![Timer { clock: 1, ..timer }], ..alarm };
        assert_eq!(sent_by(&alarm, &entry), Some(&alarm.timers[0]));
    }

    #[test]
    fn the_real_interval_timer_expires_again_only_if_its_signal_waits() {
        let expired = Setting { remaining: 0, interval: 100 };
        let alarm = bit(libc::SIGALRM.cast_unsigned());
        assert_eq!(interval_timer(0, expired, alarm).remaining, 1);
        assert_eq!(interval_timer(0, expired, 0).remaining, 0);
        assert_eq!(interval_timer(1, expired, alarm).remaining, 0);
        assert_eq!(interval_timer(0, RUNNING, alarm), RUNNING);
    }

    #[test]
    fn timers_that_do_not_run_need_no_step() {
        let alarm =
            Alarm { process: TaskId(5), interval_timers: [Setting::default(); 3], timers: Vec::new() };
        let mut plan = Plan::default();
        make(&alarm, &mut plan);
        start(&alarm, None, &mut plan);
        assert!(plan.is_empty());
        start(&Alarm { interval_timers: [RUNNING; 3], ..alarm }, None, &mut plan);
        assert_eq!(plan.len(), 1);
    }
}
