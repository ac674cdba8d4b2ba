//! Timer descriptor (kind 79): made by `timerfd_create(2)`.

use super::description::Description;
use super::{Kind, Record};
use crate::id::Identity;
use serde::{Deserialize, Serialize};

/// A timerfd. Times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerDescriptor {
    /// What every description has.
    pub description: Description,
    /// Its clock (`CLOCK_…`).
    pub clock: u32,
    /// The flags of the last `timerfd_settime(2)` (`TFD_TIMER_…`).
    pub settime_flags: u32,
    /// What was left until it expires next; 0: it is not running.
    pub remaining: u64,
    /// The interval of a timer that repeats; 0: it does not.
    pub interval: u64,
    /// How often it expired since it was read.
    pub ticks: u64,
}

/// Most nanoseconds of a time: what `ktime_t` holds.
const LONGEST: u64 = i64::MAX as u64;

impl Record for TimerDescriptor {
    const KIND: Kind = Kind::TimerDescriptor;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("timerfd of clock {} with {} ns left", self.clock, self.remaining)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.description.id.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.description.refers()
    }

    fn check(&self) -> Result<(), String> {
        if self.remaining > LONGEST || self.interval > LONGEST {
            return Err("a time is out of range".to_owned());
        }
        self.description.check()
    }
}
