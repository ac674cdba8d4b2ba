//! `/proc/<pid>/timers`: the POSIX timers of a process, without their times.

use crate::error::{Error, Result, code};

/// What `timers` says of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// The kernel's ID of it.
    pub id: u32,
    /// Its signal.
    pub signal: u32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_SIGNAL` (0), `SIGEV_NONE` (1), or `SIGEV_THREAD` (2).
    pub notify: u32,
    /// For `SIGEV_THREAD_ID`: the thread that gets the signal, by the ID that the reader sees (0: it has ended).
    pub thread: Option<i32>,
    /// Its clock, as the kernel numbers it.
    pub clock: i32,
}

/// Takes `timers` apart; the result is ordered by ID.
///
/// # Errors
/// [`code::PROC`] if it is not as `proc_pid_timers(5)` has it.
pub fn parse(text: &[u8]) -> Result<Vec<Timer>> {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().peekable();
    let mut timers = Vec::new();
    while lines.peek().is_some() {
        let mut next = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(": ");
        let block = [next("ID"), next("signal"), next("notify"), next("ClockID")];
        let timer = timer(block);
        timers.push(timer.ok_or_else(|| {
            Error::new(code::PROC, format!("the list of timers has the strange entry {block:?}"))
        })?);
    }
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

fn timer([id, signal, notify, clock]: [Option<&str>; 4]) -> Option<Timer> {
    let (signal, value) = signal?.split_once('/')?;
    let (notify, receiver) = notify?.split_once('/')?;
    let notify = match notify {
        "signal" => 0,
        "none" => 1,
        "thread" => 2,
        _ => return None,
    };
    let (receiver, number) = receiver.split_once('.')?;
    let number: i32 = number.parse().ok()?;
    Some(Timer {
        id: id?.parse().ok()?,
        signal: signal.parse().ok()?,
        value: u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()?,
        notify,
        thread: (receiver == "tid").then_some(number),
        clock: clock?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_taken_apart_and_ordered() {
        let text = "ID: 5\nsignal: 34/00007fff86e452a8\nnotify: signal/tid.2634\nClockID: 1\n\
            ID: 0\nsignal: 14/0000000000000000\nnotify: none/pid.2630\nClockID: -6\n";
        let signal =
            Timer { id: 5, signal: 34, value: 0x7fff_86e4_52a8, notify: 0, thread: Some(2634), clock: 1 };
        let none = Timer { id: 0, signal: 14, value: 0, notify: 1, thread: None, clock: -6 };
        assert_eq!(parse(text.as_bytes()), Ok(vec![none, signal]));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_strange_is_shown() {
        for text in ["ID: 5\n", "ID: 5\nsignal: 34\nnotify: none/pid.1\nClockID: 0\n", "nonsense"] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().code, code::PROC);
        }
    }
}
