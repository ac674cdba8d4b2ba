//! Makes the timers again and lets them run.

use super::observe::Clock;
use super::{create, overrun, time};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::signal::observe::SET_LENGTH;
use crate::kinds::signal::waiting::bit;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::alarm::{Alarm, Notify, Setting, Timer};
use vckpt_image_format::record::signal::Signal;

/// How long a timer may take to expire that is set to a moment in the past.
const PATIENCE: Duration = Duration::from_secs(2);

/// Adds the steps for the timers of every process.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let signals: Vec<Signal> = crate::image::all(image)?;
    for alarm in crate::image::all::<Alarm>(image)? {
        let signal = signals.iter().find(|signal| signal.process == alarm.process);
        steps(alarm, signal.map_or(0, waiting_for_process), plan);
    }
    Ok(())
}

fn waiting_for_process(signal: &Signal) -> u64 {
    let threads = signal.threads.iter().flat_map(|thread| &thread.pending);
    signal.pending.iter().chain(threads).fold(0, |set, pending| set | bit(pending.signal()))
}

fn steps(alarm: Alarm, waiting: u64, plan: &mut Plan) {
    let mut batch = Batch::new();
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
        plan.action(Stage::Timers, Timers { process, timers: alarm.timers, waiting });
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

/// The timers whose signal waits and will be sent by themselves, so that nobody else must queue it.
pub(crate) fn sent_by_timer(alarm: &Alarm) -> BTreeSet<u32> {
    alarm.timers.iter().filter(|timer| expires_anew(timer)).map(|timer| timer.id).collect()
}

fn expires_anew(timer: &Timer) -> bool {
    timer.waiting.is_some() && Clock::of(timer.clock) == Clock::Time
}

/// Makes the POSIX timers of a process and sets them.
#[derive(Debug)]
struct Timers {
    process: TaskId,
    timers: Vec<Timer>,
    /// The signals that wait for the process or one of its threads.
    waiting: u64,
}

/// What a timer must do to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It does not run.
    Rests,
    /// It goes on with the time that remained.
    Runs,
    /// It expires at once, and missed so many expiries since.
    ExpiresAnew(u32),
    /// It expires at once, missed so many expiries since, and its signal is taken.
    ExpiresUnseen(u32),
}

impl Timers {
    fn way(&self, timer: &Timer) -> Way {
        let counts = timer.setting.interval != 0 && Clock::of(timer.clock) == Clock::Time;
        match timer.waiting {
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
                self.expire(restoring, timer, missed)?;
                self.await_signal(restoring, timer)
            }
            Way::ExpiresUnseen(missed) => {
                self.expire(restoring, timer, missed)?;
                let mut batch = Batch::new();
                overrun::take(&mut batch, timer.signal, PATIENCE.as_secs());
                restoring.run(self.receiver(timer), &batch).map(drop)
            }
        }
    }

    fn expire(&self, restoring: &mut Restoring<'_>, timer: &Timer, missed: u32) -> Result<()> {
        let mut batch = Batch::new();
        let now = batch.room(16);
        batch.must("reading a clock", libc::SYS_clock_gettime, [timer.clock.into(), now.into()]);
        let outcome = restoring.run(self.process, &batch)?;
        let first = time::first_expiry(time::moment(&outcome, now), timer.setting, missed);
        let mut batch = Batch::new();
        overrun::set_to(&mut batch, timer, first);
        restoring.run(self.process, &batch).map(drop)
    }

    /// Waits until the signal of a timer that was set to the past is there.
    fn await_signal(&self, restoring: &mut Restoring<'_>, timer: &Timer) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut batch = Batch::new();
        let set = batch.room(8);
        let arguments = [set.into(), Argument::value(SET_LENGTH)];
        batch.must("reading the waiting signals", libc::SYS_rt_sigpending, arguments);
        while restoring.run(self.receiver(timer), &batch)?.word(set, 0) & bit(timer.signal) == 0 {
            if Instant::now() > deadline {
                let what = format!("timer {} did not expire in time", timer.id);
                return Err(Error::new(code::TASK_RESTORE, what).about(self.subject()));
            }
        }
        Ok(())
    }

    fn receiver(&self, timer: &Timer) -> TaskId {
        match timer.notify {
            Notify::ThreadId(thread) => thread,
            Notify::Signal | Notify::None | Notify::Thread => self.process,
        }
    }

    fn subject(&self) -> Subject {
        Subject { task: Some(self.process.0), ..Subject::default() }
    }
}

impl Action for Timers {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        create::create(restoring, self.process, &self.timers)?;
        for timer in &self.timers {
            self.set(restoring, timer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Setting = Setting { remaining: 30, interval: 100 };

    fn timer(setting: Setting, overrun: u32, waiting: Option<u32>) -> Timer {
        Timer { id: 2, clock: 1, notify: Notify::Signal, signal: 34, value: 0, setting, overrun, waiting }
    }

    fn way(timer: &Timer, waiting: u64) -> Way {
        Timers { process: TaskId(5), timers: Vec::new(), waiting }.way(timer)
    }

    #[test]
    fn each_timer_is_brought_back_in_its_own_way() {
        assert_eq!(way(&timer(Setting::default(), 0, None), 0), Way::Rests);
        assert_eq!(way(&timer(RUNNING, 0, None), 0), Way::Runs);
        assert_eq!(way(&timer(RUNNING, 0, Some(4)), bit(34)), Way::ExpiresAnew(4));
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
        assert!(sent_by_timer(&alarm).is_empty());
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
        steps(alarm.clone(), 0, &mut plan);
        assert!(plan.is_empty());
        steps(Alarm { interval_timers: [RUNNING; 3], ..alarm }, 0, &mut plan);
        assert_eq!(plan.len(), 1);
    }
}
