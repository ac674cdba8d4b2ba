//! Walking all descriptor tables of a frozen tree: which number leads to which description.

use super::DESCRIPTOR_KINDS;
use super::opened::{Holder, Opened, Walk};
use super::{io_uring, message_queue, owners, socket, terminal};
use crate::error::{Problems, Result, code};
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
use std::os::fd::AsFd;
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
    let mut search =
        Search { opened: Vec::new(), candidates: HashMap::new(), locks: Vec::new(), ours: ours(frozen) };
    for (index, process) in frozen.processes.iter().enumerate() {
        if process.threads.is_empty() || process.shares.descriptors != process.index {
            continue;
        }
        if let Some(table) = problems.take(search.table(frozen, index, process)) {
            records.push(table);
        }
    }
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
    ours: HashMap<u32, Vec<i32>>,
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
    fn table(&mut self, frozen: &Frozen, index: usize, process: &FrozenProcess) -> Result<DescriptorTable> {
        let ours = self.ours.remove(&process.index).unwrap_or_default();
        let mut problems = Problems::new();
        let mut descriptors = Vec::new();
        for number in read::numbers(process.view, "fd")? {
            if ours.contains(&number) {
                continue;
            }
            let holder = Holder { process: index, pid: process.view, number };
            let Some((place, info)) = problems.take(self.descriptor(frozen, process, holder)) else {
                continue;
            };
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
    ) -> Result<(usize, FdInfo)> {
        let Holder { pid, number, .. } = holder;
        let link = read::link(pid, &format!("fd/{number}"))?;
        let text = read::file(pid, &format!("fdinfo/{number}"))?;
        let info = fdinfo::parse(&String::from_utf8_lossy(&text));
        let key = (link.clone(), info.inode, info.flags & !CLOSE_ON_EXEC, info.position);
        let candidates = self.candidates.entry(key.clone()).or_default();
        let found = search_by(candidates, |&place| {
            let opened = &self.opened[place];
            let first = opened.holders[0];
            order_of_files((first.pid, first.number), (pid, number))
                .map_err(|errno| opened.failed("comparing two descriptors", errno))
        })?;
        let rank = match found {
            Ok(rank) => {
                let place = candidates[rank];
                self.opened[place].holders.push(holder);
                return Ok((place, info));
            }
            Err(rank) => rank,
        };
        let opened = self.open(frozen, process, holder, link.into(), info.clone())?;
        self.candidates.entry(key).or_default().insert(rank, self.opened.len());
        self.opened.push(opened);
        Ok((self.opened.len() - 1, info))
    }

    /// A description that was not seen before.
    fn open(
        &self,
        frozen: &Frozen,
        process: &FrozenProcess,
        holder: Holder,
        link: Text,
        info: FdInfo,
    ) -> Result<Opened> {
        let subject = process.subject().descriptor(holder.number).with_path(&link);
        let copy = process.fetch_descriptor(holder.number).map_err(|error| error.about(subject.clone()))?;
        let status = rustix::fs::fstat(&copy).map_err(|errno| {
            crate::Error::system(code::PROC, "looking at a descriptor", errno).about(subject.clone())
        })?;
        let description = Description {
            id: DescriptionId(u32::try_from(self.opened.len()).unwrap_or(u32::MAX)),
            flags: info.flags & !CLOSE_ON_EXEC,
            owner: None,
            signal: 0,
        };
        let mut opened =
            Opened { description, holders: vec![holder], link, info, status, file: copy, subject };
        if !opened.is_path_only() {
            opened.description.owner = owners::owner(frozen, &opened)?;
            let signal = file::signal(opened.file.as_fd());
            opened.description.signal =
                signal.map_err(|errno| opened.failed("asking for its signal", errno))?;
        }
        Ok(opened)
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
