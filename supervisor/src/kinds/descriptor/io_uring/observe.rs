//! Looking at io_urings, as far as that needs nobody in the tree.
//!
//! Refused: rings that were not enabled yet or have restrictions, those that are polled for completions
//! (`IORING_SETUP_IOPOLL`), registered credentials, busy polling, registered files that can't be told from others, and
//! completions that wait for room.

use super::layout;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::descriptor::opened::{Holder, Opened, Walk};
use crate::proc::io_uring::{RingInfo, parse};
use crate::proc::read;
use crate::records::Records;
use crate::sys::io_uring;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use vckpt_image_format::DescriptionId;
use vckpt_image_format::record::io_uring::IoUring;

/// How long is waited for the ring to be left alone by others.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long is waited for the kernel to close the sockets of a ring.
const END: Duration = Duration::from_secs(1);
/// The lists of sockets in `/proc/self/net`.
const SOCKETS: [&str; 5] = ["unix", "tcp", "tcp6", "udp", "udp6"];

/// A ring that is still to be asked from inside.
#[derive(Debug)]
pub struct Looked {
    /// What is known of it.
    pub record: IoUring,
    /// What the kernel tells.
    pub info: RingInfo,
    /// The ring.
    pub file: OwnedFd,
    /// Who has it; never empty.
    pub holders: Vec<Holder>,
    /// What the first process that has it has open.
    pub files: Vec<Open>,
    /// All eventfds of the tree.
    pub events: Vec<DescriptionId>,
    /// For error messages.
    pub subject: Subject,
}

/// A descriptor of a process that has a ring.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Its number.
    pub number: u32,
    /// Where it leads to.
    pub description: DescriptionId,
    /// The inode, if that is a socket.
    pub socket: Option<u64>,
}

/// What must still be so when the image is complete.
#[derive(Debug)]
pub struct Watch {
    /// Who has the ring.
    pub holder: Holder,
    /// What it was like.
    pub info: RingInfo,
    /// Sockets that the kernel has in use for it, by their inodes: they are closed some time after the end of the tree.
    pub sockets: Vec<u64>,
    /// For error messages.
    pub subject: Subject,
}

impl Watch {
    /// Fails if something was completed meanwhile.
    ///
    /// # Errors
    /// [`code::RING`].
    pub fn check(&self) -> Result<()> {
        let now = info(self.holder, &self.subject)?;
        if (now.taken, now.given, now.polls.len())
            == (self.info.taken, self.info.given, self.info.polls.len())
        {
            return Ok(());
        }
        Err(Error::new(code::RING, "a request of an io_uring was completed while the image was written")
            .hint("dump again")
            .about(self.subject.clone()))
    }

    /// Waits, after the end of the tree, until its sockets are closed, so that a restore finds their addresses free.
    pub fn wait_for_end(&self) {
        let begin = Instant::now();
        let sockets: Vec<String> = self.sockets.iter().map(u64::to_string).collect();
        let is_there = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
            text.split_ascii_whitespace().any(|word| sockets.iter().any(|socket| socket == word))
        };
        while !sockets.is_empty() && begin.elapsed() < END && SOCKETS.into_iter().any(is_there) {
            crate::tracee::pause(begin.elapsed());
        }
    }
}

/// Hands over each ring, to be asked from inside.
///
/// # Errors
/// Rings that are [refused](self).
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        if let Some(looked) = problems.take(look(walk, opened, records)) {
            records.rings.push(looked);
        }
    }
    records.ring_refused = !problems.is_empty();
    problems.finish()
}

/// What the kernel tells of a ring.
///
/// # Errors
/// [`code::RING`] if others work on it all the time.
pub fn info(holder: Holder, subject: &Subject) -> Result<RingInfo> {
    let begin = Instant::now();
    loop {
        let text = read::file(holder.pid, &format!("fdinfo/{}", holder.number))?;
        let info = parse(&String::from_utf8_lossy(&text));
        if info.is_whole {
            return Ok(info);
        }
        if begin.elapsed() > PATIENCE {
            return Err(Error::new(code::RING, "the kernel works on an io_uring all the time")
                .passing()
                .about(subject.clone()));
        }
        crate::tracee::pause(begin.elapsed());
    }
}

fn look(walk: &Walk<'_>, opened: &Opened, records: &mut Records) -> Result<Looked> {
    let refuse = |what: &str| Err(opened.refuse(code::RING, what));
    let failed = |errno: Errno| opened.failed("looking at an io_uring", errno);
    let holder = opened.holders[0];
    let info = info(holder, &opened.subject)?;
    let ring = opened.file.as_fd();
    match io_uring::enter(ring, 0, 0) {
        Err(Errno::EBADFD) => {
            return refuse("an io_uring that was not enabled yet (IORING_SETUP_R_DISABLED)");
        }
        result => result.map_err(failed)?,
    };
    if io_uring::enter_with_bad_time(ring) != Err(Errno::EFAULT) {
        return refuse("an io_uring whose completions are polled for (IORING_SETUP_IOPOLL)");
    }
    if info.personalities {
        return refuse("an io_uring with registered credentials");
    }
    if info.busy_polling {
        return refuse("an io_uring that polls network devices busily (NAPI)");
    }
    if info.overflown > 0 {
        let error = opened.refuse(code::RING, "an io_uring with completions that wait for room in it");
        return Err(error.passing());
    }
    let mut flags = match layout::flags(ring, &info) {
        // What the kernel says instead of EINVAL, since it finds no address for what can't be mapped.
        Err(Errno::EINVAL | Errno::ENOMEM) => {
            return refuse("an io_uring in memory that the program has given (IORING_SETUP_NO_MMAP)");
        }
        result => result.map_err(failed)?,
    };
    match io_uring::probe(ring) {
        Ok(()) => {}
        Err(Errno::EEXIST) => flags |= IoUring::SINGLE_ISSUER,
        Err(Errno::EACCES) => return refuse("an io_uring with restrictions"),
        Err(errno) => return Err(failed(errno)),
    }
    match io_uring::enter(ring, 0, io_uring::GET_EVENTS) {
        Ok(_) => {}
        Err(Errno::EEXIST) => flags |= IoUring::DEFERRED,
        Err(errno) => return Err(failed(errno)),
    }
    if info.thread.is_some() {
        flags |= IoUring::POLLED;
    }
    let record = IoUring {
        id: records.ring(opened.inode()),
        description: opened.description.clone(),
        maker: vckpt_image_format::TaskId(0),
        flags,
        submission_entries: info.submission_entries,
        completion_entries: info.completion_entries,
        taken: info.taken,
        given: info.given,
        rings: Vec::new(),
        entries: Vec::new(),
        under_way: Vec::new(),
        files: files(walk, opened, &info)?,
        buffers: info.buffers.clone(),
        event: None,
        registered: Vec::new(),
    };
    let events = walk.opened.iter().filter(|opened| opened.is_anonymous("eventfd"));
    let events = events.map(|opened| opened.description.id).collect();
    let file = opened.file.try_clone().map_err(|error| opened.failed("copying a descriptor", error))?;
    let (holders, subject) = (opened.holders.clone(), opened.subject.clone());
    let files = walk.opened.iter().flat_map(|opened| {
        let socket = (opened.file_type() == libc::S_IFSOCK).then_some(opened.status.st_ino);
        let here = opened.holders.iter().filter(|other| other.process == holder.process);
        let description = opened.description.id;
        here.map(move |other| Open { number: other.number.cast_unsigned(), description, socket })
    });
    let files = files.collect();
    Ok(Looked { record, info, file, holders, files, events, subject })
}

/// The descriptions that are registered, by what the kernel calls them.
fn files(walk: &Walk<'_>, opened: &Opened, info: &RingInfo) -> Result<Vec<Option<DescriptionId>>> {
    let find = |name: &String| {
        let mut found = walk.opened.iter().filter(|other| other.link.0 == name.as_bytes());
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only.description.id),
            (None, _) => Err("that no process has open any more"),
            (Some(_), Some(_)) => Err("that is open in several ways, which can't be told apart"),
        }
    };
    let places = info.files.iter().map(|name| match name {
        Some(name) => find(name).map(Some).map_err(|why| {
            let what = format!("an io_uring has registered a file ({name}) {why}");
            opened.refuse(code::RING, what)
        }),
        None => Ok(None),
    });
    places.collect()
}
