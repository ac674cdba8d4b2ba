//! Alarms: interval timers, POSIX timers with their IDs, what is left of them, and signals that were not taken.

use std::time::{Duration, Instant};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{block, check, signal_set, timespec};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "timers",
    fixtures: &[("interval", interval), ("posix", posix), ("ticking", ticking)],
    cases: &[
        ("interval_timers", || two_rounds("interval")),
        ("posix_ids_and_rest", || two_rounds("posix")),
        ("ticking_with_overrun", || two_rounds("ticking")),
    ],
};

/// (microseconds left, interval) of an interval timer.
fn left(which: i32) -> (i64, i64) {
    let mut now = libc::itimerval { it_interval: ZERO, it_value: ZERO };
    // SAFETY: a valid place; the raw number avoids a type that differs between C libraries.
    unsafe { libc::syscall(libc::SYS_getitimer, which, &raw mut now) };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    (micros(now.it_value), micros(now.it_interval))
}

const ZERO: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 0 };

fn interval(stage: Stage) {
    let start = |which: i32, seconds: i64, interval: i64| {
        let value = libc::timeval { tv_sec: seconds, tv_usec: 0 };
        let interval = libc::timeval { tv_sec: interval, tv_usec: 250_000 };
        let timer = libc::itimerval { it_interval: interval, it_value: value };
        // SAFETY: a valid structure, no old value wanted.
        check(unsafe { libc::syscall(libc::SYS_setitimer, which, &raw const timer, 0) }).unwrap();
    };
    let wanted = [(0, 3600, 10), (1, 1800, 20), (2, 900, 30)];
    for (which, seconds, interval) in wanted {
        start(which, seconds, interval);
    }
    let mut last = wanted.map(|(_, seconds, _)| seconds * 1_000_000 + 10_000);
    stage.serve(move |_| {
        for (number, (which, _, interval)) in wanted.into_iter().enumerate() {
            let (value, again) = left(which);
            verify!(again == interval * 1_000_000 + 250_000, "interval of timer {which}: {again} µs");
            // None of the cases takes a minute.
            let good = value <= last[number] && value > last[number] - 60_000_000;
            verify!(good, "timer {which} has {value} µs left, before it had {}", last[number]);
            last[number] = value;
        }
        Ok(())
    });
}

/// Makes a POSIX timer that sends a signal with a value (or nothing) and gives the kernel's ID.
fn create(clock: i32, signal: Option<i32>, value: usize) -> i32 {
    // SAFETY: a zeroed sigevent is valid; the raw call shows the kernel's own ID.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_value = libc::sigval { sival_ptr: value as *mut _ };
        event.sigev_signo = signal.unwrap_or(0);
        event.sigev_notify = if signal.is_some() { libc::SIGEV_SIGNAL } else { libc::SIGEV_NONE };
        let mut id = -1_i32;
        check(libc::syscall(libc::SYS_timer_create, clock, &raw const event, &raw mut id)).unwrap();
        id
    }
}

fn set(id: i32, flags: i32, value: Duration, interval: Duration) {
    let timer = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
    // SAFETY: a valid structure.
    check(unsafe { libc::syscall(libc::SYS_timer_settime, id, flags, &raw const timer, 0) }).unwrap();
}

/// (left, interval) of a timer, in nanoseconds, or the error.
fn get(id: i32) -> Result<(i64, i64), String> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: a valid place.
    let result = check(unsafe { libc::syscall(libc::SYS_timer_gettime, id, &raw mut now) });
    result.map_err(|error| format!("timer {id}: {error}"))?;
    let nanos = |time: libc::timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    Ok((nanos(now.it_value), nanos(now.it_interval)))
}

fn posix(stage: Stage) {
    // IDs with gaps: every second one is deleted again.
    let ids: Vec<i32> = (0..10).map(|number| create(libc::CLOCK_MONOTONIC, Some(50), number)).collect();
    for id in ids.iter().skip(1).step_by(2) {
        // SAFETY: an ID of our own.
        check(unsafe { libc::syscall(libc::SYS_timer_delete, *id) }).unwrap();
    }
    let seconds = Duration::from_secs;
    set(ids[0], 0, seconds(1000), seconds(5));
    set(ids[2], 0, seconds(2000), Duration::ZERO);
    let realtime = create(libc::CLOCK_REALTIME, None, 3);
    let deadline = crate::stage::kernel::clock(libc::CLOCK_REALTIME) + seconds(3000);
    set(realtime, libc::TIMER_ABSTIME, deadline, seconds(7));
    let boot = create(libc::CLOCK_BOOTTIME, None, 4);
    set(boot, 0, seconds(4000), Duration::ZERO);
    let cpu = create(libc::CLOCK_PROCESS_CPUTIME_ID, None, 5);
    set(cpu, 0, seconds(5000), Duration::ZERO);
    let expected =
        [(ids[0], 1000, 5), (ids[2], 2000, 0), (realtime, 3000, 7), (boot, 4000, 0), (cpu, 5000, 0)];
    let started = Instant::now();
    stage.serve(move |_| {
        for (id, value, interval) in expected {
            let (rest, again) = get(id)?;
            verify!(again == interval * 1_000_000_000, "interval of timer {id}: {again} ns");
            let gone = value * 1_000_000_000 - rest;
            let most = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX) + 100_000_000;
            verify!(
                (0..=most).contains(&gone),
                "timer {id} has {rest} ns left, {gone} ns less than at its start"
            );
        }
        for id in [ids[4], ids[6], ids[8]] {
            verify!(get(id)? == (0, 0), "the timer {id} that was never set runs: {:?}", get(id)?);
        }
        for id in [ids[1], ids[3], ids[5]] {
            verify!(get(id).is_err(), "the deleted timer {id} is back");
        }
        Ok(())
    });
}

fn ticking(stage: Stage) {
    const SIGNAL: i32 = 44;
    block(&[SIGNAL]);
    let id = create(libc::CLOCK_MONOTONIC, Some(SIGNAL), 4711);
    set(id, 0, Duration::from_millis(20), Duration::from_millis(20));
    let taken = move || {
        let set = signal_set(&[SIGNAL]);
        let limit = libc::timespec { tv_sec: 10, tv_nsec: 0 };
        // SAFETY: valid places; overrun is a plain getter.
        unsafe {
            let mut information: libc::siginfo_t = std::mem::zeroed();
            let number = check(libc::sigtimedwait(&raw const set, &raw mut information, &raw const limit));
            number.map_err(|error| format!("the timer does not tick: {error}"))?;
            let overrun = libc::syscall(libc::SYS_timer_getoverrun, id);
            let value = information.si_value().sival_ptr as usize;
            Ok::<_, String>((information.si_code, value, 1 + overrun))
        }
    };
    let started = Instant::now();
    let mut ticks = 0;
    // Whether a tick is pending at the very moment of looking is chance.
    stage.serve_except(&["pending"], move |_| {
        for _ in 0..5 {
            let (code, value, count) = taken()?;
            verify!((code, value) == (libc::SI_TIMER, 4711), "code {code}, value {value}");
            verify!(count >= 1, "overrun {count}");
            ticks += count;
        }
        let most = i64::try_from(started.elapsed().as_millis() / 20).unwrap_or(i64::MAX) + 2;
        verify!(ticks <= most, "{ticks} ticks in a time of {most}");
        Ok(())
    });
}
