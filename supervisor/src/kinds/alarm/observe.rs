//! Looks at the timers of a process. The kind [`signal`](crate::kinds::signal::observe) calls this, since timers and
//! waiting signals must be seen at one moment.

use super::time;
use crate::error::{Error, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::{read, timers};
use crate::records::Records;
use crate::stub::batch::{Argument, Batch, CallIndex, Data, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::alarm::{Alarm, Notify, Timer};

/// Nothing: [`signal`](crate::kinds::signal::observe) gives the records of timers.
///
/// # Errors
/// None.
pub fn observe(_frozen: &mut Frozen, _records: &mut Records) -> Result<()> {
    Ok(())
}

/// A POSIX timer of which the times are still to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    listed: timers::Timer,
    notify: Notify,
}

impl Listed {
    /// Whether it sends its signal to one thread.
    #[must_use]
    pub fn is_for_a_thread(&self) -> bool {
        matches!(self.notify, Notify::ThreadId(_))
    }
}

/// The POSIX timers of a process.
///
/// # Errors
/// [`code::TASK_STATE`] for one that can't be kept; as reading `/proc`.
pub fn list(process: &FrozenProcess, names: &BTreeMap<i32, TaskId>) -> Result<Vec<Listed>> {
    let text = read::file(process.view, "timers").map_err(|error| {
        if error.code != code::TARGET_DIED || !read::path(process.view, "stat").exists() {
            return error;
        }
        Error::new(
            code::HOST_FEATURE,
            "this kernel does not tell the timers of a process (/proc/<pid>/timers)",
        )
        .hint("a kernel with CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS is needed")
    })?;
    let listed = timers::parse(&text)?;
    listed
        .into_iter()
        .map(|timer| {
            let thread = timer.thread.map(|tid| names.get(&tid).copied());
            let own: Vec<TaskId> = process.threads.iter().map(|thread| thread.id).collect();
            let all = names.values().copied().chain([process.id]).collect();
            classify(timer, thread, &own, &all).map_err(|error| error.about(process.subject()))
        })
        .collect()
}

/// Finds out how a timer notifies, and refuses it if it can't be made again. `own` are the threads of its process, `all`
/// those of the tree.
fn classify(
    listed: timers::Timer,
    thread: Option<Option<TaskId>>,
    own: &[TaskId],
    all: &BTreeSet<TaskId>,
) -> Result<Listed> {
    let refuse = |why: &str| Err(Error::new(code::TASK_STATE, format!("timer {} {why}", listed.id)));
    let notify = match (thread, listed.notify) {
        (Some(Some(id)), _) => Notify::ThreadId(id),
        (Some(None), _) => return refuse("sends its signal to a thread that has ended"),
        (None, 1) => Notify::None,
        (None, 2) => Notify::Thread,
        (None, _) => Notify::Signal,
    };
    match Clock::of(listed.clock) {
        Clock::Time | Clock::OwnProcess => {}
        Clock::Task(task) if own.contains(&task) => {}
        Clock::Process(process) if all.contains(&process) => {}
        // The thread that made it can't be seen; a timer that notifies a thread is taken to be that thread's.
        Clock::OwnThread if own.len() == 1 || matches!(notify, Notify::ThreadId(_)) => {}
        Clock::OwnThread => {
            return refuse("counts the processor time of a thread, and of which can't be seen");
        }
        Clock::Task(_) => return refuse("runs by the clock of a thread that has ended"),
        Clock::Process(_) => {
            return refuse("runs by the clock of a process that has ended or is not in the tree");
        }
        Clock::Device => return refuse("runs by the clock of a device"),
    }
    Ok(Listed { listed, notify })
}

/// What a clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// Time: `CLOCK_REALTIME`, `CLOCK_MONOTONIC` and the like.
    Time,
    /// The processor time of the process.
    OwnProcess,
    /// The processor time of the thread that made the timer.
    OwnThread,
    /// The processor time of a thread that the number names.
    Task(TaskId),
    /// The processor time of a process that the number names, by its leader.
    Process(TaskId),
    /// Whatever a device counts.
    Device,
}

impl Clock {
    /// What the clock of this number counts. Those of processor time are negative: the complement of a process ID
    /// (0 for the caller's), 1 bit for "of the thread", 2 bits for which time; 3 in these is a descriptor.
    pub(super) fn of(clock: i32) -> Self {
        match clock {
            2 => Clock::OwnProcess,
            3 => Clock::OwnThread,
            0.. => Clock::Time,
            _ if clock & 3 == 3 => Clock::Device,
            _ => match (!(clock >> 3)).cast_unsigned() {
                0 if clock & 4 != 0 => Clock::OwnThread,
                0 => Clock::OwnProcess,
                task if clock & 4 != 0 => Clock::Task(TaskId(task)),
                process => Clock::Process(TaskId(process)),
            },
        }
    }
}

/// Questions for the times of all timers of a process.
#[derive(Debug)]
pub struct Questions {
    interval_timers: [Data; 3],
    tick: Data,
    timers: Vec<(Data, CallIndex)>,
}

impl Questions {
    /// Adds them to a batch for the process.
    pub fn ask(batch: &mut Batch, timers: &[Listed]) -> Self {
        let interval_timers = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|which| {
            let setting = batch.room(time::LENGTH);
            batch.must(
                "reading an interval timer",
                libc::SYS_getitimer,
                [Argument::from(which), setting.into()],
            );
            setting
        });
        let tick = batch.room(16);
        let coarse = Argument::from(libc::CLOCK_MONOTONIC_COARSE);
        batch.must("reading the length of a tick", libc::SYS_clock_getres, [coarse, tick.into()]);
        let timers = timers.iter().map(|timer| {
            let setting = batch.room(time::LENGTH);
            let id = Argument::from(timer.listed.id);
            batch.must("reading a timer", libc::SYS_timer_gettime, [id, setting.into()]);
            (setting, batch.must("reading the overrun of a timer", libc::SYS_timer_getoverrun, [id]))
        });
        Self { timers: timers.collect(), interval_timers, tick }
    }

    /// The answers.
    #[must_use]
    pub fn alarm(&self, process: TaskId, timers: &[Listed], outcome: &Outcome) -> Alarm {
        let answer = |(Listed { listed, notify }, (setting, overrun)): (&Listed, &(Data, CallIndex))| Timer {
            id: listed.id,
            clock: listed.clock,
            notify: *notify,
            signal: listed.signal,
            value: listed.value,
            setting: time::timer(outcome, *setting),
            overrun: outcome.get(*overrun).ok().and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            waiting: None,
        };
        let [real, virtual_time, profiling] =
            self.interval_timers.map(|setting| time::interval_timer(outcome, setting));
        let tick = time::moment(outcome, self.tick) / time::MICROSECOND;
        Alarm {
            process,
            interval_timers: [
                real,
                time::without_tick(virtual_time, tick),
                time::without_tick(profiling, tick),
            ],
            timers: timers.iter().zip(&self.timers).map(answer).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [TaskId; 2] = [TaskId(6), TaskId(7)];

    fn listed(clock: i32, notify: u32) -> timers::Timer {
        timers::Timer { id: 3, signal: 14, value: 0, notify, thread: None, clock }
    }

    #[test]
    fn clocks_are_told_apart() {
        let process_clock_of = |pid: i32| (!pid << 3) | 2;
        let thread_clock_of = |pid: i32| (!pid << 3) | 6;
        for (clock, expected) in [
            (0, Clock::Time),
            (7, Clock::Time),
            (2, Clock::OwnProcess),
            (3, Clock::OwnThread),
            (-6, Clock::OwnProcess),
            (-2, Clock::OwnThread),
            (process_clock_of(4711), Clock::Process(TaskId(4711))),
            (thread_clock_of(4711), Clock::Task(TaskId(4711))),
            ((!5 << 3) | 3, Clock::Device),
        ] {
            assert_eq!(Clock::of(clock), expected, "clock {clock}");
        }
    }

    #[test]
    fn notification_is_told_apart() {
        let all = BTreeSet::from(OWN);
        let notify =
            |thread, number| classify(listed(1, number), thread, &OWN, &all).map(|listed| listed.notify);
        assert_eq!(notify(None, 0), Ok(Notify::Signal));
        assert_eq!(notify(None, 1), Ok(Notify::None));
        assert_eq!(notify(None, 2), Ok(Notify::Thread));
        assert_eq!(notify(Some(Some(TaskId(7))), 0), Ok(Notify::ThreadId(TaskId(7))));
        assert!(notify(Some(None), 0).is_err());
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_number() {
        let all = BTreeSet::from([TaskId(6), TaskId(7), TaskId(9)]);
        let classify = |clock, thread, own: &[TaskId]| classify(listed(clock, 0), thread, own, &all);
        assert!(classify(-2, None, &[TaskId(6)]).is_ok());
        assert!(classify(-2, Some(Some(TaskId(7))), &OWN).is_ok());
        let of = |pid: i32| (!pid << 3) | 2;
        assert!(classify(of(9), None, &OWN).is_ok());
        assert!(classify(of(8), None, &OWN).is_err() && classify(of(9) | 4, None, &OWN).is_err());
        let error = classify(-2, None, &OWN).unwrap_err();
        assert_eq!(error.what, "timer 3 counts the processor time of a thread, and of which can't be seen");
    }
}
