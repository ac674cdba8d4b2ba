//! Connecting the ends of pipes whose other side was in a process outside of the dumped tree.
//!
//! Such an end gets, if there is no better way:
//! 1. the pipe itself, if somebody still has it and this is the boot of the dump: nothing has changed then, and what
//!    waits in it still waits in it;
//! 2. a standard stream of this program, if it was a standard stream and nothing waits that would be lost by that;
//! 3. a pipe whose other side is closed, with what waited, and a line in the report.

use super::{restore::MakePipe, search};
use crate::error::Result;
use crate::kinds::descriptor::holders::Holders;
use crate::kinds::descriptor::restore;
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use vckpt_image_format::record::description::Description;

const NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const DIRECT: u32 = libc::O_DIRECT.cast_unsigned();

/// Connects all such pipes of an image.
#[derive(Debug)]
pub struct ConnectOutside {
    /// The boot of the dump.
    pub boot_id: String,
    /// The pipes.
    pub pipes: Vec<MakePipe>,
    /// Who has their ends.
    pub holders: Holders,
}

/// What an end can be connected to.
enum Connected {
    /// A description of its own, which gets its flags.
    Anew(OwnedFd),
    /// A description that is shared with others, who rely on its flags.
    Shared(OwnedFd),
}

impl Action for ConnectOutside {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let is_same_boot = !self.boot_id.is_empty() && boot_id.trim() == self.boot_id;
        let wanted = self.pipes.iter().filter(|_| is_same_boot).map(|made| made.pipe.inode);
        let found = search::find(wanted.collect());
        for made in &self.pipes {
            let place = found.get(&made.pipe.inode).map(std::path::PathBuf::as_path);
            self.connect(restoring, made, place)?;
        }
        Ok(())
    }
}

impl ConnectOutside {
    /// Connects the ends of one pipe; those that can't be are closed on the other side.
    fn connect(&self, restoring: &mut Restoring<'_>, made: &MakePipe, place: Option<&Path>) -> Result<()> {
        let mut left = Vec::new();
        for end in &made.pipe.ends {
            let again = place.and_then(|place| same_pipe(place, made.pipe.inode, end));
            match again.or_else(|| self.standard(made, end)) {
                Some(Connected::Anew(opened)) => restore::keep(restoring, end, opened)?,
                Some(Connected::Shared(opened)) => drop(restoring.descriptions.insert(end.id, opened)),
                None => left.push(end.clone()),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        for end in &left {
            restoring.degraded.push(self.line(made, end));
        }
        let mut closed = made.clone();
        closed.pipe.ends = left;
        closed.act(restoring)
    }

    /// A standard stream of this program, if it was used as one: as a terminal would be handed on.
    fn standard(&self, made: &MakePipe, end: &Description) -> Option<Connected> {
        if made.bytes() > 0 {
            return None;
        }
        let wanted: &[u32] = if end.reads() { &[0, 1, 2] } else { &[1, 2, 0] };
        let uses = |end: &Description| {
            let numbers: HashSet<u32> = self.holders.numbers(end.id).collect();
            wanted.iter().copied().find(|number| numbers.contains(number))
        };
        // Another description of the same pipe goes where that goes: `/dev/stdout`, opened by name.
        let number = uses(end).or_else(|| made.pipe.ends.iter().find_map(uses))?;
        standard_stream(number, end)
    }

    /// What to tell of an end that lost its other side.
    fn line(&self, made: &MakePipe, end: &Description) -> String {
        let bytes = made.bytes();
        let what = match (end.reads(), bytes) {
            (true, 0) => "it reads the end of file".to_owned(),
            (true, _) => format!("it reads the {bytes} bytes that waited, then the end of file"),
            (false, _) => "writing into it fails with EPIPE".to_owned(),
        };
        format!(
            "{}: pipe:[{}] led to a process outside of the dumped tree, which is gone: {what}",
            self.holders.name(end.id),
            made.pipe.inode
        )
    }
}

/// The pipe itself. A writer is only connected if somebody could still read what it writes.
fn same_pipe(place: &Path, inode: u64, end: &Description) -> Option<Connected> {
    let connected = match restore::open(place, (end.flags | NONBLOCK) & !DIRECT) {
        Ok(opened) => Connected::Anew(opened),
        Err(_) => Connected::Shared(own_descriptor(inode, end)?),
    };
    let (Connected::Anew(opened) | Connected::Shared(opened)) = &connected;
    // The process may have ended, and its number may be in use for something else.
    let is_it = rustix::fs::fstat(opened).is_ok_and(|status| status.st_ino == inode);
    (is_it && (end.reads() || has_reader(opened))).then_some(connected)
}

fn has_reader(writer: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(writer, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && !polled[0].revents().contains(PollFlags::ERR)
}

/// A copy of a descriptor that this program has of the pipe: for a pipe of somebody else, which can't be opened.
fn own_descriptor(inode: u64, end: &Description) -> Option<OwnedFd> {
    let own = process::pidfd_open(std::process::id().cast_signed()).ok()?;
    for entry in std::fs::read_dir("/proc/self/fd").ok()?.flatten() {
        let number = entry.file_name().to_str()?.parse().ok()?;
        if search::pipe(&entry.path()) == Some(inode)
            && let Ok(copy) = process::pidfd_getfd(own.as_fd(), number)
            && fits(copy.as_fd(), end)
        {
            return Some(copy);
        }
    }
    None
}

/// Whether all that may be done with an end may be done with this.
fn fits(file: BorrowedFd<'_>, end: &Description) -> bool {
    let mode = |flags: u32| flags & Description::ACCESS_MODE;
    crate::sys::file::status_flags(file).is_ok_and(|has| mode(has) == 2 || mode(has) == mode(end.flags))
}

/// A standard stream of this program; `/dev/null` if that is closed. A terminal or pipe is opened anew, so that its
/// flags are its own; a file is not, since its position is shared by all who write into it.
fn standard_stream(number: u32, end: &Description) -> Option<Connected> {
    let stream = match number {
        0 => rustix::stdio::stdin(),
        1 => rustix::stdio::stdout(),
        _ => rustix::stdio::stderr(),
    };
    let flags = (end.flags | NONBLOCK) & !DIRECT;
    let Ok(status) = rustix::fs::fstat(stream) else {
        return restore::open(Path::new("/dev/null"), flags).ok().map(Connected::Shared);
    };
    if !fits(stream, end) {
        return None;
    }
    let is_pipe = status.st_mode & libc::S_IFMT == libc::S_IFIFO;
    // The master of a pseudo-terminal would become another one.
    let is_master = status.st_rdev == rustix::fs::makedev(5, 2);
    let is_terminal = end.flags & DIRECT == 0 && !is_master && rustix::termios::isatty(stream);
    if (is_pipe || is_terminal)
        && let Ok(opened) = restore::open_again(stream, flags)
    {
        return Some(Connected::Anew(opened));
    }
    rustix::io::fcntl_dupfd_cloexec(stream, 0).ok().map(Connected::Shared)
}
