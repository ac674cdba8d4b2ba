//! Timer descriptors: made by `timerfd_create(2)`.
//!
//! - **Saved**: clock, remaining time, interval, expirations that were not read, flags of `timerfd_settime(2)`.
//! - **Time**: what was left at the freeze is left after the restore. A timer that was set to a time of day expires at
//!   that time of day, at once if it has passed.
//! - **Not saved**: that a timer of another clock was set to an absolute time, which makes no difference any more.
//! - **Kernel**: `fdinfo` (3.17); `TFD_IOC_SET_TICKS` needs `CONFIG_CHECKPOINT_RESTORE`.

use super::opened::{Opened, Walk};
use super::{all, restore, tables};
use crate::error::{Error, Problems, Result, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::fdinfo::Detail;
use crate::records::Records;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use rustix::time::{TimerfdClockId, TimerfdFlags};
use vckpt_image_format::Image;
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::record::timer_descriptor::TimerDescriptor;

/// `TFD_TIMER_ABSTIME`.
const ABSOLUTE: u32 = 1;
/// `TFD_IOC_SET_TICKS`: `_IOW('T', 0, u64)`.
const SET_TICKS: u64 = 0x4008_5400;
const SECOND: u64 = 1_000_000_000;

/// Whether it is a timer descriptor.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("timerfd")
}

/// Gives a record for each.
///
/// # Errors
/// If the kernel does not tell its state.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        let Detail::Timer(timer) = opened.info.detail else {
            problems.push(opened.refuse(code::PROC, "the kernel does not tell the state of a timerfd"));
            continue;
        };
        records.push(TimerDescriptor {
            description: opened.description.clone(),
            clock: timer.clock,
            settime_flags: timer.settime_flags,
            remaining: timer.remaining,
            interval: timer.interval,
            ticks: timer.ticks,
        });
    }
    problems.finish()
}

/// Adds the steps that make each and, when all else is done, start it.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let timers = all::<TimerDescriptor>(image)?;
    if timers.is_empty() {
        return Ok(());
    }
    let tables = tables(image)?;
    let realtime = all::<Snapshot>(image)?.first().map_or(0, |snapshot| snapshot.realtime);
    for timer in timers {
        let found = tables.iter().find_map(|(process, table)| {
            let is_it = table.descriptors.iter().find(|found| found.description == timer.description.id)?;
            Some((process.id, is_it.number))
        });
        if let Some((process, number)) = found {
            plan.batch(Stage::Timers, process, "starting a timerfd", start(&timer, number, realtime));
        }
        plan.action(Stage::Descriptors, MakeTimer(timer));
    }
    Ok(())
}

/// The calls that start it in a process that has it under this number.
fn start(timer: &TimerDescriptor, number: u32, realtime: i64) -> Batch {
    let mut batch = Batch::new();
    // One that repeats, has expired and was not read stands still until it is read: it is made to expire at once, and
    // so stands in the same way.
    let stands = timer.remaining == 0 && timer.interval != 0 && timer.ticks != 0;
    let timer = &TimerDescriptor { remaining: timer.remaining.max(u64::from(stands)), ..timer.clone() };
    if timer.remaining != 0 {
        let of_day = matches!(timer.clock.cast_signed(), libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        let (value, flags) = if of_day && !stands && timer.settime_flags & ABSOLUTE != 0 {
            (timer.remaining.saturating_add_signed(realtime), timer.settime_flags)
        } else {
            (timer.remaining, 0)
        };
        let words = [timer.interval / SECOND, timer.interval % SECOND, value / SECOND, value % SECOND];
        let setting = batch.words(&words);
        batch.must(
            "starting a timerfd",
            libc::SYS_timerfd_settime,
            [number.into(), flags.into(), setting.into(), 0_u64.into()],
        );
    }
    if timer.ticks != 0 {
        let ticks = batch.words(&[timer.ticks]);
        let arguments = [number.into(), SET_TICKS.into(), ticks.into()];
        batch.must("setting the expirations of a timerfd", libc::SYS_ioctl, arguments);
    }
    batch
}

/// Makes a timerfd that does not run yet.
#[derive(Debug)]
struct MakeTimer(TimerDescriptor);

impl Action for MakeTimer {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let clock = match self.0.clock.cast_signed() {
            libc::CLOCK_REALTIME => TimerfdClockId::Realtime,
            libc::CLOCK_BOOTTIME => TimerfdClockId::Boottime,
            libc::CLOCK_REALTIME_ALARM => TimerfdClockId::RealtimeAlarm,
            libc::CLOCK_BOOTTIME_ALARM => TimerfdClockId::BoottimeAlarm,
            _ => TimerfdClockId::Monotonic,
        };
        let made = rustix::time::timerfd_create(clock, TimerfdFlags::CLOEXEC)
            .map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "making a timerfd", errno))?;
        restore::keep(restoring, &self.0.description, made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::DescriptionId;
    use vckpt_image_format::record::description::Description;

    fn timer(clock: i32, settime_flags: u32, remaining: u64, ticks: u64) -> TimerDescriptor {
        let description = Description { id: DescriptionId(0), flags: 2, owner: None, signal: 0 };
        let clock = clock.cast_unsigned();
        TimerDescriptor { description, clock, settime_flags, remaining, interval: 0, ticks }
    }

    fn value(batch: &Batch) -> u64 {
        u64::from_le_bytes(batch.data[16..24].try_into().unwrap()) * SECOND
            + u64::from_le_bytes(batch.data[24..32].try_into().unwrap())
    }

    #[test]
    fn what_was_left_is_left() {
        let batch = start(&timer(libc::CLOCK_MONOTONIC, ABSOLUTE, 3 * SECOND + 5, 0), 4, 77);
        assert_eq!(value(&batch), 3 * SECOND + 5);
        assert_eq!(batch.calls[0].arguments[1], 0);
    }

    #[test]
    fn a_time_of_day_stays_what_it_is() {
        let batch = start(&timer(libc::CLOCK_REALTIME, ABSOLUTE, 3, 0), 4, 1_700_000_000_000_000_000);
        assert_eq!(value(&batch), 1_700_000_000_000_000_003);
        assert_eq!(batch.calls[0].arguments[1], 1);
    }

    #[test]
    fn expirations_are_kept_without_a_running_timer() {
        assert_eq!(start(&timer(libc::CLOCK_MONOTONIC, 0, 0, 9), 4, 0).calls.len(), 1);
        assert!(start(&timer(libc::CLOCK_MONOTONIC, 0, 0, 0), 4, 0).is_empty());
    }

    #[test]
    fn a_repeating_timer_that_waits_to_be_read_goes_on() {
        let repeats = TimerDescriptor { interval: SECOND, ..timer(libc::CLOCK_MONOTONIC, 0, 0, 2) };
        let batch = start(&repeats, 4, 0);
        assert_eq!((batch.calls.len(), value(&batch)), (2, 1));
    }
}
