//! Looking at epoll sets.

use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Holder, Opened, Walk};
use crate::proc::fdinfo::{Detail, EpollLine};
use crate::records::Records;
use crate::sys::file::is_epoll_target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use vckpt_image_format::DescriptionId;
use vckpt_image_format::record::epoll::{Epoll, EpollTarget};

/// Gives a record for each set.
///
/// # Errors
/// Sets that watch something that nobody in the tree has.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for set in opened {
        let mut targets = Vec::new();
        let mut seen: HashMap<u32, u32> = HashMap::new();
        for line in lines(set) {
            let offset = seen.entry(line.number).or_default();
            let description = target(walk, set, line, *offset);
            *offset += 1;
            let EpollLine { number, events, data, .. } = *line;
            targets.extend(problems.take(description).map(|description| EpollTarget {
                number,
                description,
                events,
                data,
            }));
        }
        targets.sort_by_key(|target| target.number);
        records.push(Epoll { description: set.description.clone(), targets, quiet: is_quiet(set)? });
    }
    problems.finish()
}

fn lines(set: &Opened) -> &[EpollLine] {
    if let Detail::Epoll(lines) = &set.info.detail { lines } else { &[] }
}

/// Whether it has nothing to tell. Asking takes nothing out.
fn is_quiet(set: &Opened) -> Result<bool> {
    let mut polled = [PollFd::new(&set.file, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map(|count| count == 0)
        .map_err(|errno| set.failed("asking whether an epoll set has something to tell", errno))
}

/// The description that an entry watches: mostly what its number leads to in a process that has the set.
fn target(walk: &Walk<'_>, set: &Opened, line: &EpollLine, offset: u32) -> Result<DescriptionId> {
    let is_it = |candidate: &&Opened| {
        let inode = candidate.status.st_ino;
        (line.inode == 0 || inode == line.inode)
            && watches(set.holders[0], candidate.holders[0], line.number, offset)
    };
    let number = line.number.cast_signed();
    let likely = set.holders.iter().filter_map(|holder| walk.find(holder.process, number));
    if let Some(found) = likely.into_iter().find(is_it).or_else(|| walk.opened.iter().find(is_it)) {
        return Ok(found.description.id);
    }
    Err(set
        .refuse(code::DESCRIPTOR_KIND, format!("an epoll set watches something that no process has any more (once \
             descriptor {number})"))
        .hint("the program closed the descriptor in one process while another still had it: restart it before the dump"))
}

fn watches(set: Holder, candidate: Holder, number: u32, offset: u32) -> bool {
    is_epoll_target(candidate.pid, candidate.number, set.pid, set.number, number, offset).unwrap_or(false)
}
