//! Alarm (kind 1): the interval timers and POSIX timers of a process.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The timers of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The process.
    pub process: TaskId,
    /// `setitimer(2)`: `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`, in microseconds.
    pub interval_timers: [Setting; 3],
    /// `timer_create(2)`, by ID.
    pub timers: Vec<Timer>,
}

/// When a timer expires.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Time until it expires next; 0 if it does not run.
    pub remaining: u64,
    /// Time from one expiry to the next; 0 if it expires only once.
    pub interval: u64,
}

/// A POSIX timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// The kernel's ID of it.
    pub id: u32,
    /// Its clock, as the kernel numbers it: negative for processor time.
    pub clock: i32,
    /// How it tells that it expired.
    pub notify: Notify,
    /// The signal of that.
    pub signal: u32,
    /// What comes with the signal: `sigev_value`.
    pub value: u64,
    /// When it expires, in nanoseconds.
    pub setting: Setting,
    /// How often it expired in vain before its signal that was delivered last: `timer_getoverrun(2)`.
    pub overrun: u32,
    /// Set if its signal waits to be delivered: how often it has expired since that was sent. It does not run then,
    /// and goes on when the signal is delivered.
    pub waiting: Option<u32>,
}

/// How a timer tells that it expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notify {
    /// `SIGEV_SIGNAL`: by a signal to the process.
    Signal,
    /// `SIGEV_NONE`: not at all.
    None,
    /// `SIGEV_THREAD`: like [`Notify::Signal`] for the kernel.
    Thread,
    /// `SIGEV_THREAD_ID`: by a signal to one thread.
    ThreadId(TaskId),
}

impl Record for Alarm {
    const KIND: Kind = Kind::Alarm;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        let running = self.interval_timers.iter().filter(|timer| timer.remaining != 0).count();
        format!(
            "{running} interval timers and {} POSIX timers of process {}",
            self.timers.len(),
            self.process
        )
    }

    fn refers(&self) -> Vec<Identity> {
        let threads = self.timers.iter().filter_map(|timer| match timer.notify {
            Notify::ThreadId(thread) => Some(Identity::from(thread)),
            Notify::Signal | Notify::None | Notify::Thread => None,
        });
        std::iter::once(self.process.into()).chain(threads).collect()
    }

    fn check(&self) -> Result<(), String> {
        const LONGEST: u64 = i64::MAX as u64;
        if let Some(timer) =
            self.interval_timers.iter().find(|timer| timer.remaining.max(timer.interval) > LONGEST)
        {
            return Err(format!("an interval timer of {timer:?} is out of range"));
        }
        let mut last = None;
        for timer in &self.timers {
            if Some(timer.id) <= last || timer.id > i32::MAX.cast_unsigned() {
                return Err(format!("timer {} is out of order or range", timer.id));
            }
            last = Some(timer.id);
            if timer.signal > 64 || timer.setting.remaining.max(timer.setting.interval) > LONGEST {
                return Err(format!("timer {} has a setting out of range", timer.id));
            }
        }
        Ok(())
    }
}
