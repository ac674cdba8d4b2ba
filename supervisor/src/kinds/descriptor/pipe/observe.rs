//! Looking at pipes: their ends, and what waits in them.

use crate::error::{Problems, Result};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::nameless_file;
use crate::records::Records;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::PipeId;
use vckpt_image_format::record::data_queued::{DataQueued, Message, Queue};
use vckpt_image_format::record::pipe::{Pipe, Reach};

/// Gives a record for each pipe, and for its data.
///
/// # Errors
/// What can't be looked at.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut pipes: BTreeMap<(u64, u64), Vec<&Opened>> = BTreeMap::new();
    for opened in opened {
        pipes.entry(opened.inode()).or_default().push(opened);
    }
    let mut problems = Problems::new();
    for (number, ends) in pipes.into_values().enumerate() {
        let id = PipeId(u32::try_from(number).unwrap_or(u32::MAX));
        problems.take(pipe(id, &ends, records));
    }
    problems.finish()
}

fn pipe(id: PipeId, ends: &[&Opened], records: &mut Records) -> Result<()> {
    let Some(&first) = ends.first() else { return Ok(()) };
    let is_fifo = first.link.0.starts_with(b"/");
    let has_name =
        rustix::fs::stat(first.link.as_path()).map(|found| (found.st_dev, found.st_ino)) == Ok(first.inode());
    let path =
        is_fifo.then(|| if has_name { first.link.clone() } else { nameless_file::old_path(&first.link) });
    let nameless = path
        .as_ref()
        .filter(|_| !has_name)
        .map(|path| nameless_file::observe::observe_nameless(records, first.file.as_fd(), path));
    let nameless = nameless.transpose().map_err(|error| error.about(first.subject.clone()))?;
    let reader = ends.iter().find(|end| end.description.reads());
    let reach = reach(ends)?;
    let capacity = rustix::pipe::fcntl_getpipe_size(&first.file)
        .map_err(|errno| first.failed("asking for the capacity of a pipe", errno))?;
    let packets = ends.iter().any(|end| end.description.flags & libc::O_DIRECT.cast_unsigned() != 0);
    let messages = match reader {
        Some(reader) => waiting(&reader.file, capacity, packets, reach)
            .map_err(|errno| reader.failed("copying what waits in a pipe", errno))?,
        None => Vec::new(),
    };
    records.push(Pipe {
        id,
        inode: first.status.st_ino,
        path,
        nameless,
        capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
        reach,
        ends: ends.iter().map(|end| end.description.clone()).collect(),
    });
    let borders = packets || messages.len() > 1;
    for record in DataQueued::portions(Queue::Pipe(id), borders, messages) {
        records.push(record);
    }
    Ok(())
}

/// Where the side is that nobody in the tree has: closed altogether, or open outside.
fn reach(ends: &[&Opened]) -> Result<Reach> {
    let reader = ends.iter().find(|end| end.description.reads());
    let writer = ends.iter().find(|end| end.description.writes());
    let (end, closed) = match (reader, writer) {
        (Some(reader), None) => (reader, PollFlags::HUP),
        (None, Some(writer)) => (writer, PollFlags::ERR),
        _ => return Ok(Reach::Inside),
    };
    let mut polled = [PollFd::new(&end.file, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(|errno| end.failed("asking whether a pipe is closed", errno))?;
    // A FIFO is found again by its name.
    let is_fifo = end.link.0.starts_with(b"/");
    Ok(if polled[0].revents().contains(closed) || is_fifo { Reach::Inside } else { Reach::Outside })
}

/// A copy of what waits in a pipe. Each message is what one read gives: a packet, or all that comes before one.
/// Others may read from a pipe that leads outside meanwhile: then it is what was still there.
fn waiting(
    reader: &OwnedFd,
    capacity: usize,
    packets: bool,
    reach: Reach,
) -> std::result::Result<Vec<Message>, rustix::io::Errno> {
    let length = usize::try_from(rustix::io::ioctl_fionread(reader)?).unwrap_or(usize::MAX);
    if length == 0 {
        return Ok(Vec::new());
    }
    let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    rustix::pipe::fcntl_setpipe_size(&to, capacity)?;
    let mut left = length;
    while left > 0 {
        match rustix::pipe::tee(reader, &to, left, SpliceFlags::NONBLOCK) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
            Ok(_) if reach == Reach::Outside => break,
            // Every call begins at the front again: what comes back must be all.
            Ok(copied) if copied < left => return Err(rustix::io::Errno::OVERFLOW),
            Ok(copied) => left -= copied,
        }
    }
    let mut messages = Vec::new();
    let mut buffer = vec![0; length];
    let mut total = 0;
    while total < length {
        let count = match rustix::io::read(&from, &mut buffer[..]) {
            Err(rustix::io::Errno::AGAIN) | Ok(0) => break,
            other => other?,
        };
        total += count;
        messages.push(Message::plain(buffer[..count].to_vec()));
    }
    if reach == Reach::Inside && !packets && total != length {
        return Err(rustix::io::Errno::IO);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(messages: &[Message]) -> Vec<Vec<u8>> {
        messages.iter().map(|message| message.data.clone()).collect()
    }

    #[test]
    fn the_data_stays_in_the_pipe() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"hello ").unwrap();
        rustix::io::write(&writer, b"world").unwrap();
        for _ in 0..2 {
            assert_eq!(
                data(&waiting(&reader, 65536, false, Reach::Inside).unwrap()),
                [b"hello world".to_vec()]
            );
        }
        let mut buffer = [0; 20];
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 11);
        assert!(waiting(&reader, 65536, false, Reach::Inside).unwrap().is_empty());
    }

    #[test]
    fn packets_stay_apart() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::DIRECT).unwrap();
        rustix::io::write(&writer, b"one").unwrap();
        rustix::io::write(&writer, b"three").unwrap();
        assert_eq!(
            data(&waiting(&reader, 65536, true, Reach::Inside).unwrap()),
            [b"one".to_vec(), b"three".to_vec()]
        );
    }

    #[test]
    fn a_full_pipe_comes_whole() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
        let mut sent = 0;
        while let Ok(count) = rustix::io::write(&writer, &bytes[sent..]) {
            sent += count;
            if sent == bytes.len() {
                break;
            }
        }
        assert_eq!(data(&waiting(&reader, 1 << 20, false, Reach::Inside).unwrap()).concat(), bytes[..sent]);
    }
}
