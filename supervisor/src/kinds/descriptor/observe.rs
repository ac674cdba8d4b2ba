//! Walking all descriptor tables of a frozen tree: which number leads to which description.

use super::DESCRIPTOR_KINDS;
use super::opened::{Holder, Opened, Walk};
use super::{io_uring, message_queue, owners, socket, terminal, unix};
use crate::error::{Problems, Result, Subject, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::file_lock;
use crate::proc::fdinfo::{self, FdInfo};
use crate::proc::locks::LockLine;
use crate::proc::read;
use crate::records::Records;
use crate::sys::file;
use crate::sys::process::order_of_files;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use vckpt_image_format::record::data_queued::Message;
use vckpt_image_format::record::description::Description;
use vckpt_image_format::record::descriptor_table::{Descriptor, DescriptorTable};
use vckpt_image_format::{DescriptionId, DescriptorTableId, Text};

const CLOSE_ON_EXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

/// A lock as it was seen through a descriptor.
#[derive(Debug, Clone, Copy)]
pub struct SeenLock {
    /// The descriptor.
    pub holder: Holder,
    /// The description that it leads to.
    pub description: DescriptionId,
    /// The lock.
    pub line: LockLine,
}

/// Looks at all descriptors.
///
/// # Errors
/// Every descriptor that can't be kept, at once.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut search = Search { opened: Vec::new(), candidates: HashMap::new(), locks: Vec::new() };
    for (process, seen) in numbers(frozen) {
        let seen = problems.take(seen);
        if let Some(table) = seen.and_then(|seen| problems.take(search.table(frozen, process, seen))) {
            records.push(table);
        }
    }
    search.in_flight(frozen, records, &mut problems);
    let Search { opened, locks, .. } = search;
    owners::report(&opened, records);
    let walk = Walk { frozen, opened };
    let mut claimed: Vec<Vec<&Opened>> = DESCRIPTOR_KINDS.iter().map(|_| Vec::new()).collect();
    for opened in &walk.opened {
        match DESCRIPTOR_KINDS.iter().position(|kind| (kind.claims)(opened)) {
            Some(kind) => claimed[kind].push(opened),
            None => problems.push(unknown(opened)),
        }
    }
    for (kind, opened) in DESCRIPTOR_KINDS.iter().zip(claimed) {
        if !opened.is_empty() {
            problems.take((kind.observe)(&walk, &opened, records));
        }
    }
    problems.take(file_lock::observe::observe(&walk, &locks, records));
    drop(walk);
    for mut pair in std::mem::take(&mut records.pairs) {
        problems.take(terminal::pair::queue::observe(frozen, &mut pair));
        records.push(pair.record);
    }
    for mut queue in std::mem::take(&mut records.queues) {
        problems.take(message_queue::messages::observe(frozen, &mut queue));
        records.push(queue.record);
    }
    problems.take(io_uring::ask::ask(frozen, records));
    problems.finish()
}

/// The error for a description that no kind claims.
fn unknown(opened: &Opened) -> Box<crate::error::Error> {
    let (major, minor) = opened.device();
    let what = match opened.file_type() {
        libc::S_IFCHR => format!("a character device that can't be kept ({major}:{minor})"),
        libc::S_IFBLK => format!("a block device ({major}:{minor})"),
        libc::S_IFSOCK => socket::unknown(opened),
        _ if opened.is_anonymous("userfaultfd") => {
            "a userfaultfd, whose registered memory can't be kept".to_owned()
        }
        _ if opened.is_anonymous("perf_event") => "a performance counter".to_owned(),
        _ => "a descriptor of a kind that is not supported yet".to_owned(),
    };
    opened.refuse(code::DESCRIPTOR_KIND, what)
}

/// What tells apart most descriptions that are not the same: what it leads to, inode, flags, position.
type Key = (OsString, u64, u32, u64);

struct Search {
    opened: Vec<Opened>,
    /// In the kernel's order.
    candidates: HashMap<Key, Vec<usize>>,
    locks: Vec<SeenLock>,
}

/// A descriptor, and what was seen of it.
type Seen = (Holder, Result<(Key, FdInfo)>);

/// The numbers in all descriptor tables, but for those of stubs, and what is seen of each: side by side.
fn numbers(frozen: &Frozen) -> Vec<(&FrozenProcess, Result<Vec<Seen>>)> {
    let ours = ours(frozen);
    let has_table =
        |process: &&FrozenProcess| !process.threads.is_empty() && process.shares.descriptors == process.index;
    let processes: Vec<_> = frozen.processes.iter().filter(has_table).collect();
    let tables = crate::parallel::map(&processes, |process| {
        let mut numbers = read::numbers(process.view, "fd")?;
        numbers.retain(|number| !ours.get(&process.index).is_some_and(|ours| ours.contains(number)));
        Ok(numbers)
    });
    let holder = |process: &FrozenProcess, number| {
        let index = process.index as usize;
        Holder { process: index, pid: process.view, number }
    };
    let holders: Vec<Holder> = processes
        .iter()
        .zip(&tables)
        .flat_map(|(process, table)| table.iter().flatten().map(move |&number| holder(process, number)))
        .collect();
    let mut seen = holders.iter().copied().zip(crate::parallel::map(&holders, |&holder| look(holder)));
    processes
        .into_iter()
        .zip(tables)
        .map(|(process, table)| {
            (process, table.map(|table: Vec<i32>| seen.by_ref().take(table.len()).collect()))
        })
        .collect()
}

/// The descriptors of stubs, by table: the index of the process that stands for all who have it.
fn ours(frozen: &Frozen) -> HashMap<u32, Vec<i32>> {
    let mut ours: HashMap<u32, Vec<i32>> = HashMap::new();
    for process in &frozen.processes {
        let descriptors = process.threads.iter().flat_map(|thread| thread.agent.descriptors());
        ours.entry(process.shares.descriptors).or_default().extend(descriptors);
    }
    ours
}

impl Search {
    /// The table of a process; its new descriptions are added.
    fn table(
        &mut self,
        frozen: &Frozen,
        process: &FrozenProcess,
        seen: Vec<Seen>,
    ) -> Result<DescriptorTable> {
        let mut problems = Problems::new();
        let mut descriptors = Vec::new();
        for (holder, looked) in seen {
            let number = holder.number;
            let found = looked.and_then(|looked| self.descriptor(frozen, process, holder, looked));
            let Some((place, info)) = problems.take(found) else { continue };
            let description = self.opened[place].description.id;
            self.locks.extend(info.locks.iter().map(|&line| SeenLock { holder, description, line }));
            descriptors.push(Descriptor {
                number: number.cast_unsigned(),
                close_on_exec: info.flags & CLOSE_ON_EXEC != 0,
                description,
            });
        }
        problems.finish()?;
        Ok(DescriptorTable { id: DescriptorTableId(process.index), descriptors })
    }

    /// The place of a descriptor's description among those that were found.
    fn descriptor(
        &mut self,
        frozen: &Frozen,
        process: &FrozenProcess,
        holder: Holder,
        (key, info): (Key, FdInfo),
    ) -> Result<(usize, FdInfo)> {
        let rank = match self.known(&key, holder)? {
            Ok(place) => {
                self.opened[place].holders.push(holder);
                return Ok((place, info));
            }
            Err(rank) => rank,
        };
        let subject = process.subject().descriptor(holder.number).with_path(Text::from(key.0.clone()));
        let copy = process.fetch_descriptor(holder.number).map_err(|error| error.about(subject.clone()))?;
        Ok((self.add(frozen, key, copy, Opening { holder, rank, info: info.clone(), subject })?, info))
    }

    /// The place of the description that a descriptor leads to, or its rank among those that look like it if it was not
    /// seen before.
    fn known(&self, key: &Key, holder: Holder) -> Result<Result<usize, usize>> {
        let candidates = self.candidates.get(key).map(Vec::as_slice).unwrap_or_default();
        let found = search_by(candidates, |&place| {
            let opened = &self.opened[place];
            let first = opened.holders[0];
            order_of_files((first.pid, first.number), (holder.pid, holder.number))
                .map_err(|errno| opened.failed("comparing two descriptors", errno))
        })?;
        Ok(found.map(|rank| candidates[rank]))
    }

    /// Adds the descriptions that only travel in sockets, also in those that do so themselves, and hands over what
    /// waits in each.
    fn in_flight(&mut self, frozen: &Frozen, records: &mut Records, problems: &mut Problems) {
        let mut seen = 0;
        while seen < self.opened.len() {
            let queues = problems.take(unix::queue::look(&self.opened[seen..])).unwrap_or_default();
            seen = self.opened.len();
            for queue in queues {
                let carrier = self.opened[queue.description.0 as usize].subject.clone();
                let mut messages = Vec::new();
                for message in queue.messages {
                    let travel =
                        message.descriptors.into_iter().map(|copy| self.travels(frozen, copy, &carrier));
                    let travel: Vec<_> = travel.filter_map(|result| problems.take(result)).collect();
                    messages.push(Message {
                        data: message.data,
                        source: message.source,
                        descriptors: travel,
                        sender: message.credentials.map(|found| unix::credentials::of(frozen, found)),
                        urgent: message.urgent,
                    });
                }
                records.unix_queues.insert(queue.description, messages);
            }
        }
    }

    /// The description that a descriptor leads to which travels in a socket; this program has a copy of it.
    fn travels(&mut self, frozen: &Frozen, copy: OwnedFd, carrier: &Subject) -> Result<DescriptionId> {
        let pid = std::process::id().cast_signed();
        let holder = Holder { process: Holder::NOBODY, pid, number: copy.as_raw_fd() };
        let (key, info) = look(holder)?;
        let rank = match self.known(&key, holder)? {
            Ok(place) => return Ok(self.opened[place].description.id),
            Err(rank) => rank,
        };
        let subject = carrier.clone().with_path(Text::from(key.0.clone()));
        let description = DescriptionId(u32::try_from(self.opened.len()).unwrap_or(u32::MAX));
        self.locks.extend(info.locks.iter().map(|&line| SeenLock { holder, description, line }));
        let place = self.add(frozen, key, copy, Opening { holder, rank, info, subject })?;
        let opened = &self.opened[place];
        if io_uring::claims(opened) {
            // Kernels from 6.7 on don't let them travel.
            return Err(opened.refuse(code::DESCRIPTOR_KIND, "an io_uring that only travels in a socket"));
        }
        Ok(description)
    }

    /// Adds a description that was not seen before, and gives its place.
    fn add(&mut self, frozen: &Frozen, key: Key, copy: OwnedFd, opening: Opening) -> Result<usize> {
        let Opening { holder, rank, info, subject } = opening;
        let status = rustix::fs::fstat(&copy).map_err(|errno| {
            crate::Error::system(code::PROC, "looking at a descriptor", errno).about(subject.clone())
        })?;
        let description = Description {
            id: DescriptionId(u32::try_from(self.opened.len()).unwrap_or(u32::MAX)),
            flags: info.flags & !CLOSE_ON_EXEC,
            owner: None,
            signal: 0,
        };
        let link = Text::from(key.0.clone());
        let mut opened =
            Opened { description, holders: vec![holder], link, info, status, file: copy, subject };
        if !opened.is_path_only() {
            opened.description.owner = owners::owner(frozen, &opened)?;
            let signal = file::signal(opened.file.as_fd());
            opened.description.signal =
                signal.map_err(|errno| opened.failed("asking for its signal", errno))?;
        }
        self.candidates.entry(key).or_default().insert(rank, self.opened.len());
        self.opened.push(opened);
        Ok(self.opened.len() - 1)
    }
}

/// [`slice::binary_search_by`] with comparisons that may fail.
fn search_by<T>(
    sorted: &[T],
    mut compare: impl FnMut(&T) -> Result<Ordering>,
) -> Result<Result<usize, usize>> {
    let mut failure = None;
    let found = sorted.binary_search_by(|item| {
        compare(item).unwrap_or_else(|error| {
            failure.get_or_insert(error);
            Ordering::Equal
        })
    });
    failure.map_or(Ok(found), Err)
}

/// A description that was not seen before: through which descriptor, what `/proc` says of that, and for errors.
struct Opening {
    holder: Holder,
    /// Its rank among those that look like it.
    rank: usize,
    info: FdInfo,
    subject: Subject,
}

/// What tells a descriptor's description apart, and what `/proc` says of it.
fn look(holder: Holder) -> Result<(Key, FdInfo)> {
    let Holder { pid, number, .. } = holder;
    let link = read::link(pid, &format!("fd/{number}"))?;
    let text = read::file(pid, &format!("fdinfo/{number}"))?;
    let info = fdinfo::parse(&String::from_utf8_lossy(&text));
    Ok(((link, info.inode, info.flags & !CLOSE_ON_EXEC, info.position), info))
}
