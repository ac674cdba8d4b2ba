//! A look at a task just before it is stopped: in which call it sleeps, and since when.
//!
//! `/proc/<pid>/task/<tid>/sched` tells when the task last went to sleep, by the clock of its processor's run queue.
//! That clock runs like `CLOCK_MONOTONIC` but for the time that interrupts and a hypervisor took away, so the two are
//! compared now.
//!
//! Between the look and the stop the task may have ended its wait and made the same call again. Then it has either
//! slept once more, or was running already when it was asked to stop: the file tells both.

use super::call::{self, Call};
use super::{Moments, now};
use crate::proc::{read, stat};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What was seen before a task was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    number: u64,
    /// The processor on which it slept.
    processor: i32,
    scheduled: Scheduled,
}

/// What the scheduler tells of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheduled {
    /// When it was last put to sleep or on its processor, by the clock of that, in nanoseconds.
    at: i64,
    /// For how long it has run in all, in nanoseconds.
    ran: i64,
    /// How often it has gone to sleep.
    sleeps: u64,
    /// How often it had to give up its processor.
    evictions: u64,
}

/// The differences between `CLOCK_MONOTONIC` and the clocks of processors.
#[derive(Debug, Default)]
pub struct Clocks {
    differences: HashMap<i32, Difference>,
}

/// `CLOCK_MONOTONIC` minus the clock of a processor, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Difference {
    /// As near as can be told.
    near: i64,
    /// It is this or less, for certain: what is reckoned with it is too late rather than too early.
    most: i64,
}

/// A task that sleeps does not run earlier than this after the moment at which it is about to be asked to stop, in
/// nanoseconds: the request alone takes most of that. Measured: never below 2,700.
const WAKING: i64 = 1_500;

impl Before {
    /// Looks at a task. Nothing if it runs, or is in no call whose time is limited, or the kernel does not tell.
    #[must_use]
    pub fn look(tid: i32) -> Option<Self> {
        let Call { number, .. } = parse_call(&read::file(tid, "syscall").ok()?)?;
        call::place(number)?;
        let slept = parse(&read::file(tid, "sched").ok()?)?;
        let processor = processor(tid)?;
        // Last: the less time passes from this to the stop, the better.
        let scheduled = parse(&read::file(tid, "sched").ok()?)?;
        // Else it may have moved to another processor meanwhile, and made another call.
        (slept == scheduled).then_some(Self { number, processor, scheduled })
    }

    /// Since when the task waits in a call of this number, if that is still the one that was seen. To be asked when it
    /// has stopped.
    #[must_use]
    pub fn waiting_since(&self, tid: i32, number: u64, moments: Moments, clocks: &Clocks) -> Option<i64> {
        let scheduled = parse(&read::file(tid, "sched").ok()?)?;
        // It was woken by the stop and went to sleep once, in the stop.
        if number != self.number || scheduled.sleeps > self.scheduled.sleeps + 1 {
            return None;
        }
        // It may have been woken by the end of its wait just before, and made the call again.
        let difference = clocks.difference(processor(tid)?)?;
        let woken_at = scheduled.at - (scheduled.ran - self.scheduled.ran) + difference.near;
        // Too late, if anything: a wait that is too short is what a program would notice.
        let since = self.scheduled.at + clocks.difference(self.processor)?.most;
        (woken_at > moments.asked + WAKING).then_some(since)
    }
}

fn processor(tid: i32) -> Option<i32> {
    stat::processor(&read::file(tid, "stat").ok()?)
}

impl Clocks {
    /// Reads the clocks of the processors on which these tasks slept and were stopped. To be called when they have
    /// stopped: the clocks fall behind all the time. On a processor that a task of high priority keeps for itself there is
    /// nothing to be read in good time, and then it is as if the kernel did not tell.
    #[must_use]
    pub fn read<'seen>(tasks: impl Iterator<Item = (i32, &'seen Before)>) -> Self {
        const PATIENCE: Duration = Duration::from_millis(100);
        let processors: BTreeSet<i32> =
            tasks.flat_map(|(tid, before)| [Some(before.processor), processor(tid)]).flatten().collect();
        let wanted = processors.len();
        if wanted == 0 {
            return Self::default();
        }
        let (tell, hear) = mpsc::channel();
        for processor in processors {
            let tell = tell.clone();
            let compare = move || compare(processor, |sample| tell.send((processor, sample)).is_ok());
            if std::thread::Builder::new().name("clock".to_owned()).spawn(compare).is_err() {
                break;
            }
        }
        // When nobody can tell any more, there is nothing to wait for.
        drop(tell);
        let deadline = Instant::now() + PATIENCE;
        let mut samples: HashMap<i32, Vec<Sample>> = HashMap::new();
        while let Ok((processor, sample)) =
            hear.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            samples.entry(processor).or_default().push(sample);
            if samples.len() == wanted && samples.values().all(|samples| samples.len() >= SAMPLES) {
                break;
            }
        }
        let differences = samples
            .into_iter()
            .filter_map(|(processor, samples)| Some((processor, Sample::difference(&samples)?)));
        Self { differences: differences.collect() }
    }

    fn difference(&self, processor: i32) -> Option<Difference> {
        self.differences.get(&processor).copied()
    }
}

/// How often a clock is read.
const SAMPLES: usize = 3;

/// One reading of the clock of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// `CLOCK_MONOTONIC` before it minus the reading: that of the moment just before, unless it was set since.
    before: i64,
    /// `CLOCK_MONOTONIC` after it minus the reading.
    after: i64,
}

impl Sample {
    /// What the samples of one processor say together.
    fn difference(samples: &[Self]) -> Option<Difference> {
        let most = samples.iter().map(|sample| sample.after).min()?;
        // A tick may set the clock of one of them a little ahead: the middle one is good.
        let mut near: Vec<_> = samples.iter().map(|sample| sample.before).collect();
        near.sort_unstable();
        near.get(near.len() / 2).map(|&near| Difference { near, most })
    }
}

/// Goes to a processor and reads its clock a few times, while somebody wants to hear of it.
fn compare(processor: i32, tell: impl Fn(Sample) -> bool) -> Option<()> {
    const TRIES: usize = 16;
    const SLEEP: Duration = Duration::from_micros(20);
    let mut there = CpuSet::new();
    there.set(usize::try_from(processor).ok()?).ok()?;
    sched_setaffinity(Pid::from_raw(0), &there).ok()?;
    let mut before = own()?.evictions;
    let mut told = 0;
    for _ in 0..TRIES {
        std::thread::sleep(SLEEP);
        // Who comes back from a sleep has the time of that very moment.
        let back = now();
        let scheduled = own()?;
        let after = now();
        // Unless somebody else got the processor meanwhile.
        if scheduled.evictions == before {
            told += 1;
            if !tell(Sample { before: back - scheduled.at, after: after - scheduled.at }) || told == SAMPLES {
                break;
            }
        }
        before = scheduled.evictions;
    }
    Some(())
}

/// What the scheduler tells of this thread.
fn own() -> Option<Scheduled> {
    parse(&std::fs::read("/proc/thread-self/sched").ok()?)
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

/// The parts of `sched` that matter here.
fn parse(text: &[u8]) -> Option<Scheduled> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.rsplit(':').next()?.trim())
    };
    let time = |name: &str| {
        let (milliseconds, nanoseconds) = value(name)?.split_once('.')?;
        Some(milliseconds.parse::<i64>().ok()? * 1_000_000 + nanoseconds.parse::<i64>().ok()?)
    };
    Some(Scheduled {
        at: time("se.exec_start")?,
        ran: time("se.sum_exec_runtime")?,
        sleeps: value("nr_voluntary_switches")?.parse().ok()?,
        evictions: value("nr_involuntary_switches")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_tells_when_a_task_went_to_sleep() {
        let text = b"cat (1933, #threads: 1)\n---\nse.exec_start         :        785333.070081\n\
            se.sum_exec_runtime  :   12.000345\nnr_switches    :    7\nnr_voluntary_switches  :  5\nnr_involuntary_switches : 2\n";
        assert_eq!(
            parse(text),
            Some(Scheduled { at: 785_333_070_081, ran: 12_000_345, sleeps: 5, evictions: 2 })
        );
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
