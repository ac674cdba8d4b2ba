//! Making pipes again, with what waited in them.

use super::outside::ConnectOutside;
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::holders::Holders;
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use vckpt_image_format::record::Record;
use vckpt_image_format::record::data_queued::{DataQueued, Queue};
use vckpt_image_format::record::description::Description;
use vckpt_image_format::record::pipe::{Pipe, Reach};
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::{Image, Text};

/// `O_LARGEFILE`, which every file has that is opened by a 64-bit program; for the C library it is 0.
const LARGE_FILE: u32 = 0o100_000;

/// Adds a step for each pipe, and one for all that lead outside.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let mut data = all::<DataQueued>(image)?;
    data.retain(|record| matches!(record.queue, Queue::Pipe(_)));
    let mut pipes = Vec::new();
    for pipe in all::<Pipe>(image)? {
        let (mine, others) = data.into_iter().partition(|record| record.queue == Queue::Pipe(pipe.id));
        data = others;
        match pipe.reach {
            Reach::Inside => plan.action(Stage::Descriptors, MakePipe { pipe, data: mine }),
            Reach::Outside => pipes.push(MakePipe { pipe, data: mine }),
        }
    }
    if !pipes.is_empty() {
        let Snapshot { boot_id, .. } = crate::image::one(image)?;
        let holders = Holders::of(image)?;
        plan.action(Stage::Descriptors, ConnectOutside { boot_id, pipes, holders });
    }
    Ok(())
}

/// Makes a pipe, or opens a FIFO, and fills it.
#[derive(Debug, Clone)]
pub struct MakePipe {
    /// The pipe.
    pub pipe: Pipe,
    /// What waited in it.
    pub data: Vec<DataQueued>,
}

impl Action for MakePipe {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let failed = |what| {
            let subject = Subject::path(self.pipe.name());
            move |errno: Errno| Error::system(code::DESCRIPTOR_RESTORE, what, errno).about(subject.clone())
        };
        let (reader, writer) = match &self.pipe.path {
            Some(path) => self.open_fifo(&self.place(restoring, path))?,
            None => rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("making a pipe"))?,
        };
        let capacity = usize::try_from(self.pipe.capacity).unwrap_or(usize::MAX);
        if rustix::pipe::fcntl_getpipe_size(&writer).map_err(failed("asking for the capacity of a pipe"))?
            != capacity
        {
            rustix::pipe::fcntl_setpipe_size(&writer, capacity)
                .map_err(failed("setting the capacity of a pipe"))?;
        }
        self.fill(&reader, &writer).map_err(failed("filling a pipe"))?;
        // What was made is one description of each side of a pipe; others are opened by `/proc`, without waiting,
        // whatever their flags say. It is closed last: a side without an open end would be closed for good.
        let (first_reader, first_writer) = (self.first(0), self.first(1));
        for end in &self.pipe.ends {
            if [first_reader, first_writer].into_iter().flatten().any(|first| first.id == end.id) {
                continue;
            }
            let side = if end.reads() { &reader } else { &writer };
            let flags = (end.flags | libc::O_NONBLOCK.cast_unsigned()) & !libc::O_DIRECT.cast_unsigned();
            let made =
                restore::open_again(side.as_fd(), flags).map_err(failed("opening an end of a pipe"))?;
            restore::keep(restoring, end, made)
                .map_err(|error| error.about(Subject::path(self.pipe.name())))?;
        }
        for (end, made) in [(first_reader, reader), (first_writer, writer)] {
            let Some(end) = end else { continue };
            restore::keep(restoring, end, made)
                .map_err(|error| error.about(Subject::path(self.pipe.name())))?;
        }
        Ok(())
    }
}

impl MakePipe {
    /// The description of a side, by its access mode, that is the one with which a pipe was made: it was not opened, so
    /// it has not the flag that opening gives.
    fn first(&self, mode: u32) -> Option<&Description> {
        let is_pipe = self.pipe.path.is_none();
        let side =
            || self.pipe.ends.iter().filter(|end| is_pipe && end.flags & Description::ACCESS_MODE == mode);
        side().find(|end| end.flags & LARGE_FILE == 0).or_else(|| side().next())
    }

    /// How much waited in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.iter().flat_map(|record| &record.messages).map(|message| message.data.len()).sum()
    }

    /// Where a FIFO is to be found; one whose name is gone by the descriptor with which it was made again.
    fn place(&self, restoring: &Restoring<'_>, path: &Text) -> PathBuf {
        let made = self.pipe.nameless.and_then(|id| restoring.nameless_files.get(&id));
        made.map_or_else(|| restoring.path(path.as_path()), |made| restore::by_descriptor(made.as_fd()))
    }

    /// A reading and a writing description of a FIFO, neither of which waits for somebody else.
    fn open_fifo(&self, path: &std::path::Path) -> Result<(OwnedFd, OwnedFd)> {
        let found = rustix::fs::stat(path).map_err(|errno| {
            Error::system(code::FILE_DIFFERS, "a FIFO that was open can't be found", errno)
                .about(Subject::path(path.display()))
        })?;
        if found.st_mode & libc::S_IFMT != libc::S_IFIFO {
            return Err(Error::new(code::FILE_DIFFERS, "there is something else where a FIFO was")
                .about(Subject::path(path.display())));
        }
        let failed = |errno| {
            Error::system(code::DESCRIPTOR_RESTORE, "opening a FIFO", errno)
                .about(Subject::path(path.display()))
        };
        let both = restore::open(path, (libc::O_RDWR | libc::O_NONBLOCK).cast_unsigned()).map_err(failed)?;
        let other = rustix::io::fcntl_dupfd_cloexec(&both, 0).map_err(failed)?;
        Ok((both, other))
    }

    /// Writes the data. What is in a FIFO already is what somebody else keeps there: ours among it.
    fn fill(&self, reader: &OwnedFd, writer: &OwnedFd) -> std::result::Result<(), Errno> {
        if self.pipe.path.is_some() && rustix::io::ioctl_fionread(reader)? > 0 {
            return Ok(());
        }
        let borders = self.data.iter().any(|record| record.borders);
        let mode = libc::O_NONBLOCK | if borders { libc::O_DIRECT } else { 0 };
        let set = |flags: i32| {
            crate::sys::file::set_status_flags(writer.as_fd(), flags.cast_unsigned())
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        };
        set(mode)?;
        for message in self.data.iter().flat_map(|record| &record.messages) {
            let mut rest = &message.data[..];
            while !rest.is_empty() {
                let written = rustix::io::write(writer, rest)?;
                rest = &rest[written.min(rest.len())..];
            }
        }
        set(0)
    }
}
