//! Times as timers have them: the kernel's structures, and when a timer must have begun to be where it is.

use crate::stub::batch::{Data, Outcome};
use vckpt_image_format::record::alarm::Setting;

/// Nanoseconds of a second.
pub(super) const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of a microsecond.
pub(super) const MICROSECOND: u64 = 1000;
/// Microseconds of a second.
const MILLION: u64 = 1_000_000;
/// Size of `struct itimerval` and `struct itimerspec`.
pub(super) const LENGTH: usize = 32;

/// An answer of `getitimer`, in microseconds.
pub(super) fn interval_timer(outcome: &Outcome, data: Data) -> Setting {
    setting(outcome, data, MILLION)
}

/// An answer of `timer_gettime`, in nanoseconds.
pub(super) fn timer(outcome: &Outcome, data: Data) -> Setting {
    setting(outcome, data, SECOND)
}

fn setting(outcome: &Outcome, data: Data, unit: u64) -> Setting {
    let time =
        |index| outcome.word(data, index).saturating_mul(unit).saturating_add(outcome.word(data, index + 1));
    Setting { interval: time(0), remaining: time(2) }
}

/// `struct itimerval`.
pub(super) fn interval_timer_words(setting: Setting) -> [u64; 4] {
    words(setting, MILLION)
}

/// `struct itimerspec`.
pub(super) fn timer_words(setting: Setting) -> [u64; 4] {
    words(setting, SECOND)
}

fn words(setting: Setting, unit: u64) -> [u64; 4] {
    let Setting { remaining, interval } = setting;
    [interval / unit, interval % unit, remaining / unit, remaining % unit]
}

/// A timer of processor time as it must be set: the kernel adds a tick to what it is told, and so has told us too much.
pub(super) fn without_tick(setting: Setting, tick: u64) -> Setting {
    let remaining = match setting.remaining {
        0 => 0,
        remaining => remaining.saturating_sub(tick).max(1),
    };
    Setting { remaining, ..setting }
}

/// A `struct timespec`, in nanoseconds.
pub(super) fn moment(outcome: &Outcome, data: Data) -> u64 {
    outcome.word(data, 0).saturating_mul(SECOND).saturating_add(outcome.word(data, 1))
}

/// The moment at which a timer expired first, of which `missed` expiries were missed since and the next comes in
/// `setting.remaining`: set to this moment, it is at once where it was. Never 0, which would stop it.
pub(super) fn first_expiry(now: u64, setting: Setting, missed: u32) -> u64 {
    let since = setting.interval.saturating_mul(u64::from(missed) + 1);
    let next = now.saturating_add(setting.remaining.min(setting.interval));
    next.saturating_sub(since).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `hrtimer_forward` counts, from 0 for the first expiry.
    fn missed(now: u64, first: u64, interval: u64) -> u64 {
        (now - first) / interval
    }

    #[test]
    fn a_timer_set_to_its_first_expiry_is_where_it_was() {
        for (remaining, count) in [(1, 0), (30, 7), (99, 3), (100, 5)] {
            let setting = Setting { remaining, interval: 100 };
            let first = first_expiry(10_000, setting, count);
            assert_eq!(missed(10_000, first, 100), u64::from(count));
            assert_eq!((first + 100 * (u64::from(count) + 1)) - 10_000, remaining);
        }
    }

    #[test]
    fn a_moment_before_the_clock_began_is_its_beginning() {
        assert_eq!(first_expiry(50, Setting { remaining: 10, interval: 100 }, 9), 1);
        assert_eq!(first_expiry(50, Setting { remaining: 0, interval: 0 }, 0), 50);
    }

    #[test]
    fn a_tick_is_taken_off_what_runs() {
        let of = |remaining| without_tick(Setting { remaining, interval: 7 }, 4000).remaining;
        assert_eq!([of(0), of(1), of(4000), of(9000)], [0, 1, 1, 5000]);
    }

    #[test]
    fn settings_are_split_into_seconds_and_rest() {
        let setting = Setting { remaining: 3_000_007, interval: 1_500_000 };
        assert_eq!(interval_timer_words(setting), [1, 500_000, 3, 7]);
        assert_eq!(timer_words(setting), [0, 1_500_000, 0, 3_000_007]);
    }
}
