//! What the bakery wrote down, and what it proves. Nothing is read or printed here.

use super::bakery::{CLOSED, OVEN};
use crate::units;
use serde::Serialize;
use std::time::Duration;

/// How far a clock may be off when the machine is busy.
const TOLERANCE: Duration = Duration::from_millis(150);
/// So many sales after the restore the counts are compared: what a clock caught up with would show by then.
const SETTLED: usize = 20;
/// How far the counts may have grown by then.
const TICKS_BETWEEN: u64 = 40;
const WASHED_BETWEEN: u64 = 400;

/// A sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) loaf: u64,
    pub(super) ticks: u64,
    pub(super) washed: u64,
}

/// The book of the shop.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Book {
    pub(super) entries: Vec<Entry>,
    pub(super) closed: bool,
    /// Lines that are none.
    pub(super) strange: usize,
}

/// When the bread was put into the oven and when it was ready, since the start of the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Oven {
    pub(super) put_in: Option<Duration>,
    pub(super) ready: Option<Duration>,
}

/// How long the bakery was away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    pub(super) at_least: Duration,
    pub(super) at_most: Duration,
}

/// Something that was to be proved.
#[derive(Debug, Serialize)]
pub(super) struct Proof {
    pub(super) passed: bool,
    pub(super) what: String,
}

impl Proof {
    pub(super) fn new(passed: bool, what: impl Into<String>) -> Self {
        Self { passed, what: what.into() }
    }
}

impl Book {
    pub(super) fn parse(text: &str) -> Self {
        let mut book = Self::default();
        // A line without its end is still being written.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut numbers = line.split(' ').map(str::parse);
            match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(loaf)), Some(Ok(ticks)), Some(Ok(washed)), None) if !book.closed => {
                    book.entries.push(Entry { loaf, ticks, washed });
                }
                _ if line == CLOSED && !book.closed => book.closed = true,
                _ => book.strange += 1,
            }
        }
        book
    }
}

impl Oven {
    pub(super) fn parse(text: &str) -> Self {
        let find = |word: &str| {
            let line =
                text.split_inclusive('\n').find_map(|line| line.strip_prefix(word)?.strip_suffix('\n'))?;
            line.trim().parse().ok().map(Duration::from_nanos)
        };
        Self { put_in: find("in "), ready: find("ready ") }
    }
}

/// What the book and the oven prove, given what the book said when the bakery was away.
pub(super) fn proofs(before: &Book, after: &Book, oven: &Oven, away: Away) -> Vec<Proof> {
    let mut proofs = Vec::new();
    let in_order = after.entries.iter().zip(1..).all(|(entry, number)| entry.loaf == number);
    let kept = after.entries.starts_with(&before.entries) && after.entries.len() > before.entries.len();
    let sold = after.entries.len();
    proofs.push(Proof::new(
        in_order && kept && after.strange == 0,
        format!("all loaves from 1 to {sold} went through the pipe into the book: none lost, none doubled"),
    ));
    let settled = after.entries.get(before.entries.len() + SETTLED).or(after.entries.last());
    let (last, first) = (before.entries.last(), settled);
    let goes_on = |count: fn(&Entry) -> u64, most: u64| {
        let rises = after.entries.is_sorted_by_key(count);
        let (last, first) = (last.map_or(0, count), first.map_or(0, count));
        let moved = after.entries.last().map_or(0, count) > last;
        (rises && moved && first >= last && first - last <= most, last, first)
    };
    let (passed, last_count, first_count) = goes_on(|entry| entry.ticks, TICKS_BETWEEN);
    let text =
        format!("the clock's thread and its periodic timer went on: tick {last_count}, then {first_count}");
    proofs.push(Proof::new(passed, text));
    let (passed, last_count, first_count) = goes_on(|entry| entry.washed, WASHED_BETWEEN);
    let text =
        format!("the washer's thread found all its memory as it was: tray {last_count}, then {first_count}");
    proofs.push(Proof::new(passed, text));
    proofs.push(baked(oven, away));
    proofs
}

/// Whether the bread was in the oven as long as it should be, not counting the time away.
fn baked(oven: &Oven, away: Away) -> Proof {
    let took = oven.ready.zip(oven.put_in).and_then(|(ready, put_in)| ready.checked_sub(put_in));
    let Some(took) = took else {
        return Proof::new(false, "the bread never came out of the oven");
    };
    let earliest = (OVEN + away.at_least).saturating_sub(TOLERANCE);
    let latest = OVEN + away.at_most + TOLERANCE;
    let text = format!(
        "the bread's timer kept what was left of its {}: ready after {}, of which {} away",
        units::time(OVEN),
        units::time(took),
        units::time((away.at_least + away.at_most) / 2),
    );
    Proof::new((earliest..=latest).contains(&took), text)
}

#[cfg(test)]
mod tests {
    use super::{Away, Book, Oven, proofs};
    use std::time::Duration;

    const AWAY: Away = Away { at_least: Duration::from_millis(600), at_most: Duration::from_millis(700) };

    fn passed(before: &str, after: &str, oven: &str) -> Vec<bool> {
        let proofs = proofs(&Book::parse(before), &Book::parse(after), &Oven::parse(oven), AWAY);
        proofs.iter().map(|proof| proof.passed).collect()
    }

    #[test]
    fn going_on_is_proved() {
        let after = "1 5 9\n2 5 10\n3 6 11\n4 7 12\nclosed\n";
        assert_eq!(passed("1 5 9\n2 5 10\n", after, "in 1000\nready 2650001000\n"), [true; 4]);
    }

    #[test]
    fn what_is_wrong_is_found() {
        let before = "1 5 9\n2 5 10\n";
        let lost = "1 5 9\n2 5 10\n4 6 11\n5 7 12\n";
        assert_eq!(passed(before, lost, "in 0\nready 2650000000\n"), [false, true, true, true]);
        let from_scratch = "1 5 9\n2 5 10\n3 0 0\n4 1 1\n";
        assert_eq!(passed(before, from_scratch, "in 0\nready 2000000000\n"), [true, false, false, false]);
    }
}
