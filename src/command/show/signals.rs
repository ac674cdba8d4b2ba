//! Signals that wait to be delivered, and timers: what `ps -s` and `/proc/PID/timers` tell, and more.

use super::view::View;
use crate::table::{Align, Table};
use crate::units;
use nix::sys::signal::Signal as Name;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use vckpt_image_format::record::alarm::{Alarm, Notify, Setting};
use vckpt_image_format::record::signal::{Pending, Signal};
use vckpt_image_format::{FormatError, TaskId};

/// The first real-time signal that the C library leaves to programs.
const FIRST_REAL_TIME: u32 = 34;

/// All signals and timers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Signals {
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) timers: Vec<Timer>,
}

/// Signals of one number that wait in one queue.
#[derive(Debug, Serialize)]
pub(crate) struct Waiting {
    command: String,
    pid: u32,
    /// The thread for which they wait; none: any of the process.
    thread: Option<u32>,
    signal: String,
    count: usize,
    /// Whether no thread that could take them lets them in.
    blocked: bool,
}

/// A timer.
#[derive(Debug, Serialize)]
pub(crate) struct Timer {
    command: String,
    pid: u32,
    /// Its number, or the name of an interval timer.
    timer: String,
    clock: String,
    /// The signal that it sends.
    signal: Option<String>,
    /// The thread that gets it, if not any.
    thread: Option<u32>,
    /// Nanoseconds until it expires; 0: it does not run.
    remaining: u64,
    /// Nanoseconds from one expiry to the next; 0: it expires once.
    interval: u64,
    /// If its signal waits: how often it has expired since that was sent.
    missed: Option<u32>,
}

/// All signals and timers of an image.
pub(crate) fn signals(view: &View) -> Signals {
    // After opening, nothing of this can fail: what can't be decoded was refused then.
    try_signals(view).unwrap_or_default()
}

fn try_signals(view: &View) -> Result<Signals, FormatError> {
    let mut found = Signals::default();
    for record in view.image.all::<Signal>()? {
        let everywhere = record.threads.iter().fold(u64::MAX, |mask, thread| mask & thread.mask);
        found.waiting.extend(waiting(view, record.process, None, &record.pending, everywhere));
        for thread in &record.threads {
            let of = Some(thread.thread.0);
            found.waiting.extend(waiting(view, record.process, of, &thread.pending, thread.mask));
        }
    }
    for record in view.image.all::<Alarm>()? {
        found.timers.extend(interval_timers(view, &record));
        found.timers.extend(timers(view, &record));
    }
    Ok(found)
}

fn waiting(
    view: &View,
    process: TaskId,
    thread: Option<u32>,
    queue: &[Pending],
    mask: u64,
) -> impl Iterator<Item = Waiting> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for entry in queue {
        *counts.entry(entry.signal()).or_default() += 1;
    }
    let command = view.command(process);
    counts.into_iter().map(move |(signal, count)| Waiting {
        command: command.clone(),
        pid: process.0,
        thread,
        signal: name(signal),
        count,
        blocked: mask & 1_u64.rotate_left(signal.wrapping_sub(1)) != 0,
    })
}

fn interval_timers(view: &View, record: &Alarm) -> impl Iterator<Item = Timer> {
    const NAMES: [(&str, &str, &str); 3] = [
        ("real", "realtime", "SIGALRM"),
        ("virtual", "user time", "SIGVTALRM"),
        ("prof", "processor time", "SIGPROF"),
    ];
    let (command, pid) = (view.command(record.process), record.process.0);
    let timers = NAMES.into_iter().zip(record.interval_timers);
    let running = timers.filter(|(_, setting)| *setting != Setting::default());
    running.map(move |((timer, clock, signal), setting)| Timer {
        command: command.clone(),
        pid,
        timer: timer.to_owned(),
        clock: clock.to_owned(),
        signal: Some(signal.to_owned()),
        thread: None,
        remaining: setting.remaining.saturating_mul(1000),
        interval: setting.interval.saturating_mul(1000),
        missed: None,
    })
}

fn timers(view: &View, record: &Alarm) -> impl Iterator<Item = Timer> {
    let (command, pid) = (view.command(record.process), record.process.0);
    record.timers.iter().map(move |timer| Timer {
        command: command.clone(),
        pid,
        timer: timer.id.to_string(),
        clock: clock(timer.clock),
        signal: (timer.notify != Notify::None).then(|| name(timer.signal)),
        thread: match timer.notify {
            Notify::ThreadId(thread) => Some(thread.0),
            Notify::Signal | Notify::None | Notify::Thread => None,
        },
        remaining: timer.setting.remaining,
        interval: timer.setting.interval,
        missed: timer.waiting,
    })
}

/// `SIGUSR1`, `SIGRTMIN+6`.
fn name(signal: u32) -> String {
    match i32::try_from(signal).ok().and_then(|number| Name::try_from(number).ok()) {
        Some(known) => known.as_str().to_owned(),
        None if signal == FIRST_REAL_TIME => "SIGRTMIN".to_owned(),
        None if signal > FIRST_REAL_TIME => format!("SIGRTMIN+{}", signal - FIRST_REAL_TIME),
        None => format!("SIG{signal}"),
    }
}

/// As `clock_gettime(2)` names it; those of processor time are numbers of tasks.
fn clock(number: i32) -> String {
    const NAMES: [&str; 12] = [
        "realtime",
        "monotonic",
        "process",
        "thread",
        "monotonic raw",
        "realtime coarse",
        "monotonic coarse",
        "boottime",
        "realtime alarm",
        "boottime alarm",
        "sgi",
        "tai",
    ];
    if let Some(name) = usize::try_from(number).ok().and_then(|number| NAMES.get(number)) {
        return (*name).to_owned();
    }
    let sort = if number & 4 != 0 { "thread" } else { "process" };
    match !(number >> 3) {
        0 => sort.to_owned(),
        task => format!("{sort} {task}"),
    }
}

/// The signals as a table.
pub(super) fn waiting_lines(rows: &[Waiting]) -> Vec<String> {
    use Align::{Left, Right};
    let columns =
        [("COMMAND", Left), ("PID", Right), ("TID", Right), ("SIGNAL", Left), ("COUNT", Right), ("", Left)];
    let mut table = Table::new(&columns);
    for row in rows {
        table.row([
            row.command.clone(),
            row.pid.to_string(),
            row.thread.map_or_else(|| "any".to_owned(), |thread| thread.to_string()),
            row.signal.clone(),
            row.count.to_string(),
            if row.blocked { "blocked" } else { "" }.to_owned(),
        ]);
    }
    if rows.is_empty() { Vec::new() } else { table.lines() }
}

/// The timers as a table.
pub(super) fn timer_lines(rows: &[Timer]) -> Vec<String> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("COMMAND", Left),
        ("PID", Right),
        ("TIMER", Right),
        ("CLOCK", Left),
        ("SIGNAL", Left),
        ("TID", Right),
        ("LEFT", Right),
        ("INTERVAL", Right),
        ("MISSED", Right),
    ]);
    let time = |nanoseconds: u64| match nanoseconds {
        0 => "-".to_owned(),
        nanoseconds => units::time(Duration::from_nanos(nanoseconds)),
    };
    for row in rows {
        table.row([
            row.command.clone(),
            row.pid.to_string(),
            row.timer.clone(),
            row.clock.clone(),
            row.signal.clone().unwrap_or_else(|| "none".to_owned()),
            row.thread.map_or_else(|| "any".to_owned(), |thread| thread.to_string()),
            time(row.remaining),
            time(row.interval),
            row.missed.map_or_else(|| "-".to_owned(), |missed| missed.to_string()),
        ]);
    }
    if rows.is_empty() { Vec::new() } else { table.lines() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_and_clocks_have_names() {
        assert_eq!([name(10), name(34), name(40), name(33)], ["SIGUSR1", "SIGRTMIN", "SIGRTMIN+6", "SIG33"]);
        let of = |task: i32, thread: i32| clock(!task << 3 | 2 | thread);
        assert_eq!([clock(1), clock(11), of(0, 4)], ["monotonic", "tai", "thread"]);
        assert_eq!([of(7, 0), of(7, 4)], ["process 7", "thread 7"]);
    }

    #[test]
    fn timers_are_a_table() {
        let timer = Timer {
            command: "tool".to_owned(),
            pid: 7,
            timer: "3".to_owned(),
            clock: clock(1),
            signal: Some(name(34)),
            thread: None,
            remaining: 1_500_000,
            interval: 0,
            missed: Some(4),
        };
        let expected = [
            "COMMAND  PID  TIMER  CLOCK      SIGNAL    TID    LEFT  INTERVAL  MISSED",
            "tool       7      3  monotonic  SIGRTMIN  any  1.5 ms         -       4",
        ];
        assert_eq!(timer_lines(&[timer]), expected);
        assert!(timer_lines(&[]).is_empty() && waiting_lines(&[]).is_empty());
    }
}
