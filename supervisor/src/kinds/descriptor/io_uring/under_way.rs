//! Which requests of an io_uring are under way. The kernel does not say it, but the rings still hold the entries of the
//! last requests, and the last completions: what has an entry and no completion is under way.
//!
//! How many there are is the difference of the two counts, as long as every request has one completion: not those with
//! many (multishot), nor those without (`IOSQE_CQE_SKIP_SUCCESS`). Where there may be such ones, all requests since the
//! ring was made have to be in sight.
//!
//! What is found must agree with what the kernel says about waiting requests; requests that are done soon, such as those
//! of disks, are waited for. Whatever is not certain is refused.

use super::layout::{Contents, word};
use crate::error::{Error, Result, code};
use crate::proc::io_uring::RingInfo;
use std::collections::{BTreeMap, HashMap};
use vckpt_image_format::record::io_uring::IoUring;

/// What a request under way refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refers {
    /// A time in memory, at this address.
    Time(u64),
    /// A descriptor, which must be a socket for some operations.
    Descriptor {
        /// Its number.
        number: u32,
        /// Whether it must be a socket.
        socket: bool,
    },
    /// A place in the table of registered files.
    Registered(u32),
}

/// What a request that [`find`] has found refers to.
#[must_use]
pub fn refers(entry: &[u8]) -> Refers {
    let (number, entry) = (word(entry, 4), Entry(entry));
    match entry.operation() {
        operation::TIMEOUT => Refers::Time(u64::from(word(entry.0, 16)) | u64::from(word(entry.0, 20)) << 32),
        _ if entry.flags() & 1 != 0 => Refers::Registered(number),
        operation => {
            let socket = [operation::ACCEPT, operation::RECV].contains(&operation);
            Refers::Descriptor { number, socket }
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The entries of the requests that are under way, the oldest first.
    pub entries: Vec<u8>,
    /// What is not exact about them.
    pub degraded: Vec<String>,
}

/// Operations that can be asked for once more, and their names. Not those with lists of buffers (`READV`, `RECVMSG`): the
/// kernel has copied the lists, and the program may have thrown them away.
const AGAIN: &[(u8, &str)] = &[
    (operation::POLL_ADD, "POLL_ADD"),
    (operation::TIMEOUT, "TIMEOUT"),
    (operation::ACCEPT, "ACCEPT"),
    (operation::READ, "READ"),
    (operation::RECV, "RECV"),
];

/// Other operations that wait: `READV`, `SENDMSG`, `RECVMSG`, `LINK_TIMEOUT`, `CONNECT`, `SEND`, `WAITID`, `FUTEX_WAIT`, `FUTEX_WAITV`,
/// `EPOLL_WAIT`.
const WAITING: &[u8] = &[1, 9, 10, 15, 16, 26, 50, 51, 53, 59];

/// Numbers of operations (`enum io_uring_op`).
mod operation {
    pub(super) const POLL_ADD: u8 = 6;
    pub(super) const TIMEOUT: u8 = 11;
    pub(super) const ACCEPT: u8 = 13;
    pub(super) const READ: u8 = 22;
    pub(super) const RECV: u8 = 27;
}

/// `IOSQE_IO_DRAIN`, `IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`, `IOSQE_BUFFER_SELECT`.
const ENTANGLED: u8 = 2 | 4 | 8 | 32;
/// `IOSQE_CQE_SKIP_SUCCESS`.
const SILENT: u8 = 64;
/// `IORING_CQE_F_MORE`.
const MORE: u32 = 2;
/// `IORING_TIMEOUT_ABS` and `IORING_TIMEOUT_MULTISHOT`.
const ABSOLUTE: u32 = 1;
const REPEATED: u32 = 64;

/// Where the counters are of requests that were no such, and of completions that were lost.
const DROPPED: usize = 32;
const LOST: usize = 44;

/// An entry of the submission ring.
#[derive(Debug, Clone, Copy)]
struct Entry<'ring>(&'ring [u8]);

impl Entry<'_> {
    fn operation(self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    fn flags(self) -> u8 {
        self.0.get(1).copied().unwrap_or(0)
    }

    fn operation_flags(self) -> u32 {
        word(self.0, 28)
    }

    fn data(self) -> u64 {
        u64::from(word(self.0, 32)) | u64::from(word(self.0, 36)) << 32
    }

    fn name(self) -> String {
        let operation = self.operation();
        let known = AGAIN.iter().find(|(number, _)| *number == operation);
        known.map_or_else(|| format!("operation {operation}"), |(_, name)| (*name).to_owned())
    }
}

/// Finds the requests that are under way.
///
/// # Errors
/// [`code::RING`] if that is not certain, or if they can't be asked for once more.
pub fn find(info: &RingInfo, contents: &Contents, flags: u32) -> Result<Found> {
    let dropped = contents.word(DROPPED);
    let balance = info.taken.wrapping_sub(dropped).wrapping_sub(info.given).wrapping_sub(contents.word(LOST));
    let entries = entries(info, contents, flags);
    let completions = completions(info, contents, flags);
    let is_silent = |entry: &Option<Entry<'_>>| entry.is_some_and(|entry| entry.flags() & SILENT != 0);
    let many = completions.iter().any(|&(_, flags)| flags & MORE != 0);
    let silent = entries.iter().any(is_silent);
    let all = entries.len() == info.taken as usize
        && entries.iter().all(Option::is_some)
        && info.given <= info.completion_entries;
    let uneven = many || silent || balance.cast_signed() < 0;
    if !uneven && balance == 0 && info.polls.is_empty() {
        return Ok(Found::default());
    }
    if uneven && !all {
        return unclear(info, balance);
    }
    let left = without_completion(&entries, &completions);
    let Some(left) = left.filter(|left| uneven || left.len() == balance as usize) else {
        return Err(uncertain(info, balance));
    };
    agrees(&left, &info.polls)?;
    again(&left)
}

/// Nothing waits as far as the kernel says, but whether something is being done can't be known.
fn unclear(info: &RingInfo, balance: u32) -> Result<Found> {
    if !info.polls.is_empty() {
        return Err(uncertain(info, balance));
    }
    let what = "io_uring: requests with several completions or none hide whether others are under way; if so, they are \
                lost";
    Ok(Found { entries: Vec::new(), degraded: vec![what.to_owned()] })
}

fn uncertain(info: &RingInfo, balance: u32) -> Box<Error> {
    let why = match balance.cast_signed() {
        1.. => {
            format!("{balance} requests have no completion, and the ring does not hold all of them any more")
        }
        _ => "requests with several completions or none are among them".to_owned(),
    };
    let error = Error::new(code::RING, "an io_uring has requests under way that can't be seen").because(why);
    if info.polls.is_empty() { error.passing() } else { error }
}

/// The entries of the last requests, the oldest first; none for one whose place was used again.
fn entries<'ring>(info: &RingInfo, contents: &'ring Contents, flags: u32) -> Vec<Option<Entry<'ring>>> {
    let (size, length) = (info.submission_entries, IoUring::entry_length(flags));
    let prepared = info.submission_tail.wrapping_sub(info.taken).min(size);
    let count = info.taken.min(size - prepared);
    let array = IoUring::array(flags, info.completion_entries);
    let slot = |position: u32| {
        let place = position & (size - 1);
        if flags & IoUring::NO_ARRAY != 0 {
            place
        } else {
            contents.word(array + place as usize * 4) & (size - 1)
        }
    };
    let mut newer = vec![false; size as usize];
    let mut found: Vec<_> = (1..=count + prepared)
        .map(|back| {
            let slot = slot(info.submission_tail.wrapping_sub(back)) as usize;
            let was_used = std::mem::replace(newer.get_mut(slot)?, true);
            let bytes = contents.entries.get(slot * length..(slot + 1) * length)?;
            (!was_used).then_some(Entry(bytes))
        })
        .skip(prepared as usize)
        .collect();
    found.reverse();
    found
}

/// Data and flags of the last completions, the oldest first.
fn completions(info: &RingInfo, contents: &Contents, flags: u32) -> Vec<(u64, u32)> {
    let (size, length) = (info.completion_entries, IoUring::completion_length(flags));
    let count = info.given.min(size);
    let completion = |back: u32| {
        let place = (info.given.wrapping_sub(back) & (size - 1)) as usize;
        let at = IoUring::COMPLETIONS + place * length;
        let data = u64::from(contents.word(at)) | u64::from(contents.word(at + 4)) << 32;
        (data, contents.word(at + 12))
    };
    (1..=count).rev().map(completion).collect()
}

/// The entries that have no completion, the oldest first; none if that is not certain.
///
/// The completions are of more requests than the entries, so there may be too many: then the caller finds that requests
/// are missing. Of requests with the same number it is the newest that is not done, since it tells the program which
/// one is; a program to which it tells nothing (0) must have asked for the same again and again.
fn without_completion<'ring>(
    entries: &[Option<Entry<'ring>>],
    completions: &[(u64, u32)],
) -> Option<Vec<Entry<'ring>>> {
    let mut done: HashMap<u64, usize> = HashMap::new();
    for (data, _) in completions.iter().filter(|(_, flags)| flags & MORE == 0) {
        *done.entry(*data).or_default() += 1;
    }
    let mut of_number: BTreeMap<u64, Vec<(usize, Entry<'ring>)>> = BTreeMap::new();
    for (position, entry) in entries.iter().enumerate() {
        // One whose place was used again may be anything; if it is under way, one is missing.
        let Some(entry) = *entry else { continue };
        if entry.flags() & SILENT == 0 || AGAIN.iter().any(|(again, _)| *again == entry.operation()) {
            of_number.entry(entry.data()).or_default().push((position, entry));
        }
    }
    let mut left = Vec::new();
    for (data, entries) in of_number {
        let done = done.get(&data).copied().unwrap_or(0).min(entries.len());
        let (old, new) = entries.split_at(done);
        let are_same = || entries.iter().all(|(_, entry)| entry.0 == entries[0].1.0);
        if !old.is_empty() && !new.is_empty() && (data == 0 || new.len() > 1) && !are_same() {
            return None;
        }
        left.extend(new);
    }
    left.sort_by_key(|&(position, _)| position);
    Some(left.into_iter().map(|(_, entry)| entry).collect())
}

/// Fails unless what was found is what the kernel says about waiting requests. Reads may also be with a worker, and
/// time-outs are not told.
fn agrees(left: &[Entry<'_>], polls: &[u32]) -> Result<()> {
    let count = |operation: u8| {
        let found = left.iter().filter(|entry| entry.operation() == operation).count();
        (found, polls.iter().filter(|&&poll| poll == u32::from(operation)).count())
    };
    let agrees = AGAIN.iter().all(|&(number, _)| {
        let (found, told) = count(number);
        match number {
            operation::READ => told <= found,
            operation::TIMEOUT => true,
            _ => told == found,
        }
    });
    let known = |poll: &u32| AGAIN.iter().any(|&(number, _)| u32::from(number) == *poll);
    if agrees && polls.iter().all(known) {
        return Ok(());
    }
    Err(refused(left, "they are not those that the kernel says are waiting"))
}

fn refused(left: &[Entry<'_>], why: &str) -> Box<Error> {
    let names: Vec<String> = left.iter().map(|entry| entry.name()).collect();
    let what = format!("an io_uring has requests under way that can't be kept: {}", names.join(", "));
    let error = Error::new(code::RING, what).because(why);
    // What waits for something may wait for ever; others are done soon.
    let waits = |entry: &Entry<'_>| {
        let operation = entry.operation();
        WAITING.contains(&operation) || AGAIN.iter().any(|&(again, _)| again == operation)
    };
    if left.iter().any(waits) { error } else { error.passing() }
}

/// The entries, if all of them can be asked for once more.
fn again(left: &[Entry<'_>]) -> Result<Found> {
    let mut found = Found::default();
    for entry in left {
        let known = AGAIN.iter().any(|&(number, _)| number == entry.operation());
        if !known || entry.flags() & ENTANGLED != 0 {
            return Err(refused(left, "only requests that wait for something are asked for once more"));
        }
        if entry.operation() == operation::TIMEOUT {
            if entry.operation_flags() & REPEATED != 0 {
                return Err(refused(left, "how often a time-out was repeated can't be seen"));
            }
            if entry.operation_flags() & ABSOLUTE == 0 {
                let what = "a time-out of an io_uring starts anew, with the time that stands in memory now";
                found.degraded.push(what.to_owned());
            }
        }
        found.entries.extend(entry.0);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
