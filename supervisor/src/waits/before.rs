//! A look at a task before it is stopped: in which call it sleeps, and since when.
//!
//! `/proc/<pid>/task/<tid>/sched` tells when the task last went to sleep, by the clock of its processor's run queue.
//! That clock runs like `CLOCK_MONOTONIC` but for the time that a hypervisor took away, so the two are compared now.

use super::call::{self, Call};
use super::now;
use crate::proc::{read, stat};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What was seen before a task was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    number: u64,
    since: i64,
    sleeps: u64,
    /// When the wait is over, if it has a limit.
    deadline: Option<i64>,
}

/// The differences between `CLOCK_MONOTONIC` and the clocks of processors.
#[derive(Debug, Default)]
pub struct Clocks {
    differences: HashMap<i32, Option<i64>>,
}

/// A wait that is over so soon is let end: later nobody could tell it from the next one.
const SOON: i64 = 300_000;
/// How long such a wait is given, and between looks.
const GIVEN: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_micros(50);

impl Before {
    /// Looks at a task of process `pid`. Nothing if it runs, or is in no call whose time is limited, or the kernel does
    /// not tell.
    #[must_use]
    pub fn look(pid: i32, tid: i32, clocks: &mut Clocks) -> Option<Self> {
        let begin = Instant::now();
        loop {
            let seen = Self::glance(pid, tid, clocks)?;
            let soon = seen.deadline.is_some_and(|deadline| deadline - now() < SOON);
            if !soon || begin.elapsed() > GIVEN {
                return Some(seen);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn glance(pid: i32, tid: i32, clocks: &mut Clocks) -> Option<Self> {
        let call = parse_call(&read::file(tid, "syscall").ok()?)?;
        call::place(call.number)?;
        let (slept_at, sleeps) = parse(&read::file(tid, "sched").ok()?)?;
        let processor = stat::processor(&read::file(tid, "stat").ok()?)?;
        let since = slept_at + clocks.difference(processor)?;
        let limit = call::limit(pid, tid, &call).and_then(|limit| i64::try_from(limit).ok());
        let deadline = limit.map(|limit| since.saturating_add(limit));
        Some(Self { number: call.number, since, sleeps, deadline })
    }

    /// Since when the task waits in this call, if it is still the one that was seen. To be asked when it has stopped.
    #[must_use]
    pub fn waiting_since(&self, tid: i32, number: u64) -> Option<i64> {
        let (_, sleeps) = parse(&read::file(tid, "sched").ok()?)?;
        // It was woken by the stop and went to sleep once, in the stop.
        (number == self.number && sleeps <= self.sleeps + 1).then_some(self.since)
    }
}

impl Clocks {
    /// `CLOCK_MONOTONIC` minus the clock of a processor, in nanoseconds.
    fn difference(&mut self, processor: i32) -> Option<i64> {
        *self.differences.entry(processor).or_insert_with(|| compare(processor))
    }
}

/// Goes to a processor and reads its clock: that of the moment at which we came there.
fn compare(processor: i32) -> Option<i64> {
    let this = Pid::from_raw(0);
    let home = sched_getaffinity(this).ok()?;
    let mut there = CpuSet::new();
    there.set(usize::try_from(processor).ok()?).ok()?;
    let went = sched_setaffinity(this, &there);
    // Who comes back from a sleep has the time of that very moment; who has run on, that of the last tick.
    std::thread::sleep(Duration::from_nanos(1));
    let clock = std::fs::read("/proc/thread-self/sched").ok();
    let monotonic = now();
    sched_setaffinity(this, &home).ok()?;
    went.ok()?;
    let (at, _) = parse(&clock?)?;
    Some(monotonic - at)
}

/// The call that a task is in: number and arguments, then stack and instruction pointer. Nothing if it runs.
fn parse_call(text: &[u8]) -> Option<Call> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let number = words.next()?.parse::<u64>().ok()?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(Call { number, arguments })
}

/// When the task was last put to sleep or on its processor, in nanoseconds, and how often it has gone to sleep.
fn parse(text: &[u8]) -> Option<(i64, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.rsplit(':').next()?.trim())
    };
    let (milliseconds, nanoseconds) = value("se.exec_start")?.split_once('.')?;
    let at = milliseconds.parse::<i64>().ok()? * 1_000_000 + nanoseconds.parse::<i64>().ok()?;
    Some((at, value("nr_voluntary_switches")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_tells_when_a_task_went_to_sleep() {
        let text = b"cat (1933, #threads: 1)\n---\nse.exec_start         :        785333.070081\n\
            nr_switches    :    7\nnr_voluntary_switches     :           5\n";
        assert_eq!(parse(text), Some((785_333_070_081, 5)));
        assert_eq!(parse(b"nothing"), None);
    }

    #[test]
    fn the_kernel_tells_in_which_call_a_task_waits() {
        let text = b"230 0x0 0x1 0x7ffd 0x0 0x0 0xffff 0x7ffd5c60 0x7f3a\n";
        let call = Call { number: 230, arguments: [0, 1, 0x7ffd, 0, 0, 0xffff] };
        assert_eq!(parse_call(text), Some(call));
        assert_eq!(parse_call(b"running\n"), None);
        assert_eq!(parse_call(b"-1 0x7ffd 0x0\n"), None);
    }
}
