//! Making puppets: the first from a tiny executable; each makes its children, their siblings and second threads by
//! itself.

use super::Puppet;
use crate::error::{Error, Result, Subject, code};
use crate::stub::batch::{Argument, Batch, CallIndex};
use crate::stub::channel::Channel;
use crate::stub::offspring::{self, Offspring};
use crate::stub::task_state::TaskState;
use crate::sys::process::{self, CloneArguments, Start};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use vckpt_image_format::TaskId;
use vckpt_parasite::protocol::{self, Boot, mode, operation};

/// `CLONE_VM`.
pub const MEMORY: u64 = 0x100;
/// `CLONE_FS`.
pub const FILE_SYSTEM: u64 = 0x200;
/// `CLONE_FILES`.
pub const FILES: u64 = 0x400;
/// `CLONE_SIGHAND`.
pub const HANDLERS: u64 = 0x800;
/// `CLONE_PARENT`.
pub const PARENT: u64 = 0x8000;
/// `CLONE_THREAD`.
const THREAD: u64 = 0x1_0000;
/// What threads share: all of this, and `CLONE_SYSVSEM`.
pub const THREAD_FLAGS: u64 = MEMORY | FILE_SYSTEM | FILES | HANDLERS | THREAD | 0x4_0000;

/// What came of the call that makes a task.
type Made = std::result::Result<(), Errno>;

/// Where a puppet is made.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Address of the first area: the same in all memories of a restore.
    pub area: u64,
    /// The lowest number of a socket: above every descriptor of the application.
    pub socket: i32,
}

impl Place {
    /// Address of the area with this number. Tasks that share a memory have different ones.
    #[must_use]
    pub fn area_of(&self, slot: usize) -> u64 {
        self.area + (slot * protocol::AREA_LENGTH) as u64
    }
}

/// A task that a puppet is to make.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    /// Its ID.
    pub id: TaskId,
    /// What it shares: `CLONE_…`.
    pub flags: u64,
    /// The signal that its end sends.
    pub exit_signal: u32,
    /// The number of its area, if it shares the memory.
    pub slot: usize,
    /// The number of its socket: different ones for tasks that share a descriptor table.
    pub socket: usize,
    /// Its parent as this program sees it, if that is not the puppet's process.
    pub parent: Option<i32>,
}

impl Child {
    /// A process that shares nothing.
    #[must_use]
    pub fn process(id: TaskId) -> Self {
        let exit_signal = libc::SIGCHLD.cast_unsigned();
        Self { id, flags: 0, exit_signal, slot: 0, socket: 0, parent: None }
    }
}

impl Puppet {
    /// Starts the first puppet, in new namespaces (`CLONE_NEW…`) if wanted, with the IDs `pids` (the innermost
    /// namespace first; none: as the kernel gives).
    ///
    /// # Errors
    /// [`code::PID_TAKEN`], [`code::PRIVILEGE`], or [`code::INJECT`] with the kernel's reason.
    pub fn start(id: TaskId, flags: u64, pids: &[i32], place: Place) -> Result<Self> {
        let (ours, theirs) = pair()?;
        let program = program(place)?;
        let start = Start { flags, pids, socket: (theirs.as_fd(), place.socket), program: program.as_fd() };
        let tid = process::start_program(start).map_err(|errno| refused(id, errno))?;
        drop(theirs);
        let mut puppet = Self {
            tid,
            process: tid,
            id,
            place,
            area: place.area,
            socket: place.socket,
            newest: tid,
            state: TaskState::Gone,
            channel: Some(Channel::new(ours)),
            ours: true,
        };
        puppet.trace()?;
        puppet.close_inherited()?;
        puppet.leave_program()?;
        Ok(puppet)
    }

    /// Closes every descriptor but its own socket.
    fn close_inherited(&mut self) -> Result<()> {
        let mut batch = Batch::new();
        if self.socket > 0 {
            batch.must(
                "closing descriptors",
                libc::SYS_close_range,
                [0.into(), (self.socket - 1).into(), 0.into()],
            );
        }
        let above = [(self.socket + 1).into(), u32::MAX.into(), 0.into()];
        batch.must("closing descriptors", libc::SYS_close_range, above);
        self.run(&batch).map(drop)
    }

    /// Replaces the mappings of the program that it was started from by anonymous copies: the kernel lets nobody
    /// change `/proc/<pid>/exe` while the old program is mapped.
    fn leave_program(&mut self) -> Result<()> {
        let length = protocol::BOOT_OFFSET + protocol::BOOT_LENGTH;
        let copy = self.area + 2 * protocol::AREA_LENGTH as u64;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let mut batch = Batch::new();
        let none = (-1).into();
        let arguments = [copy.into(), length.into(), writable.into(), flags.into(), none, 0.into()];
        batch.must("mapping a copy of the stub", libc::SYS_mmap, arguments);
        let executable = (libc::PROT_READ | libc::PROT_EXEC).into();
        let arguments = [copy.into(), protocol::CODE_LENGTH.into(), executable];
        batch.must("protecting a copy of the stub", libc::SYS_mprotect, arguments);
        self.run(&batch)?;
        let memory = self.memory()?;
        let failure = |error| Error::system(code::INJECT, "copying the stub", error);
        let mut bytes = vec![0; length];
        memory.read_exact_at(&mut bytes, self.area).map_err(failure)?;
        memory.write_all_at(&bytes, copy).map_err(failure)?;
        let mut batch = Batch::new();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        for (offset, length) in [(0, protocol::CODE_LENGTH), (protocol::BOOT_OFFSET, protocol::BOOT_LENGTH)] {
            let offset = offset as u64;
            let (from, to) = (copy + offset, self.area + offset);
            let arguments = [from.into(), length.into(), length.into(), flags.into(), to.into()];
            batch.must("moving a copy of the stub", libc::SYS_mremap, arguments);
        }
        self.run(&batch).map(drop)
    }

    /// Makes a task as described. A process without the memory of this one starts with a copy of it.
    ///
    /// # Errors
    /// [`code::PID_TAKEN`], [`code::PRIVILEGE`], or the kernel's reason.
    pub fn spawn(&mut self, child: Child) -> Result<Self> {
        let (ours, theirs) = pair()?;
        let socket = self.place.socket + i32::try_from(child.socket).unwrap_or(i32::MAX);
        let shares_memory = child.flags & MEMORY != 0;
        let area = if shares_memory { self.place.area_of(child.slot) } else { self.area };
        let result = if shares_memory {
            self.spawn_beside(child, theirs.as_raw_fd(), area, socket)
        } else {
            self.spawn_copy(child, theirs.as_raw_fd(), socket)
        };
        result?.map_err(|errno| refused(child.id, errno))?;
        drop(theirs);
        let is_thread = child.flags & THREAD != 0;
        let sort = if is_thread { Offspring::Thread } else { Offspring::Child };
        let parent = child.parent.unwrap_or(self.process);
        self.newest = offspring::find(parent, sort, child.id, self.newest)?;
        let tid = self.newest;
        let mut puppet = Self {
            tid,
            process: if is_thread { self.process } else { tid },
            id: child.id,
            place: self.place,
            area,
            socket,
            newest: tid,
            state: TaskState::Gone,
            channel: Some(Channel::new(ours)),
            ours: true,
        };
        puppet.trace()?;
        if child.flags & FILES == 0 {
            if shares_memory {
                let mut batch = Batch::new();
                batch.must("closing a socket", libc::SYS_close, [socket.into()]);
                self.run(&batch)?;
            }
            puppet.close_inherited()?;
        }
        Ok(puppet)
    }

    /// Makes a process that starts with a copy of this memory.
    fn spawn_copy(&mut self, child: Child, theirs: RawFd, socket: RawFd) -> Result<Made> {
        let arguments = self.clone_arguments(child)?;
        let (mut batch, mut there) = (Batch::new(), Argument::from(socket));
        if child.flags & FILES == 0 {
            there = batch.descriptor(theirs);
        } else {
            self.hand_over(theirs, socket)?;
        }
        let words = batch.words(&arguments.words());
        let arguments = [words.into(), size_of::<CloneArguments>().into(), there, socket.into()];
        let call = batch.operation("making a process", operation::SPAWN, arguments);
        self.made(&batch, call)
    }

    /// Makes a thread, or a process that has this very memory.
    fn spawn_beside(&mut self, child: Child, theirs: RawFd, area: u64, socket: RawFd) -> Result<Made> {
        let boot_address = area + protocol::BOOT_OFFSET as u64;
        let mut batch = Batch::new();
        // A copy of another task's area may be there: of one that has made this process or one above it.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let length = protocol::AREA_LENGTH - protocol::BOOT_OFFSET;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let arguments =
            [boot_address.into(), length.into(), protection.into(), flags.into(), (-1).into(), 0.into()];
        batch.must("mapping the area of a thread", libc::SYS_mmap, arguments);
        self.run(&batch)?;
        self.hand_over(theirs, socket)?;
        let boot = Boot { mode: mode::PUPPET_THREAD, ..boot(area, socket) };
        self.write(boot_address, &boot.to_bytes())?;
        let arguments = CloneArguments {
            stack: area + protocol::STACK_OFFSET as u64,
            stack_size: protocol::STACK_LENGTH as u64,
            ..self.clone_arguments(child)?
        };
        let mut batch = Batch::new();
        let words = batch.words(&arguments.words());
        let arguments = [words.into(), size_of::<CloneArguments>().into(), boot_address.into()];
        let call = batch.operation("making a thread", operation::SPAWN_THREAD, arguments);
        self.made(&batch, call)
    }

    fn clone_arguments(&self, child: Child) -> Result<CloneArguments> {
        self.write_scratch(&child.id.0.to_le_bytes())?;
        // A thread has no such signal, and the child of our parent has ours.
        let own_signal = child.flags & (THREAD | PARENT) == 0;
        Ok(CloneArguments {
            flags: child.flags,
            exit_signal: if own_signal { u64::from(child.exit_signal) } else { 0 },
            set_tid: self.scratch(),
            set_tid_size: 1,
            ..CloneArguments::default()
        })
    }

    /// Puts a socket under a number into the puppet's table.
    fn hand_over(&mut self, socket: RawFd, number: RawFd) -> Result<()> {
        let mut batch = Batch::new();
        let there = batch.descriptor(socket);
        batch.must("moving a socket", libc::SYS_dup3, [there, number.into(), libc::O_CLOEXEC.into()]);
        batch.must("closing a socket", libc::SYS_close, [there]);
        self.run(&batch).map(drop)
    }

    /// Runs a batch that makes a task.
    fn made(&mut self, batch: &Batch, call: CallIndex) -> Result<Made> {
        self.send(batch)?;
        Ok(self.channel()?.receive(batch, || Ok(()))?.get(call).map(drop))
    }
}

fn boot(area: u64, socket: i32) -> Boot {
    Boot {
        magic: protocol::BOOT_MAGIC,
        version: protocol::VERSION,
        mode: mode::PUPPET,
        socket,
        peer: -1,
        area,
        home: 0,
        epitaph: 0,
        epitaph_detail: 0,
    }
}

fn pair() -> Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::system(code::INJECT, "making a socket pair for a puppet", errno))
}

fn program(place: Place) -> Result<File> {
    let failure =
        |error: std::io::Error| Error::system(code::INJECT, "making the program of the puppets", error);
    let file = memfd_create(c"vckpt-puppet", MFdFlags::MFD_CLOEXEC).map_err(|errno| failure(errno.into()))?;
    let mut file = File::from(file);
    file.write_all(&vckpt_parasite::executable(place.area, &boot(place.area, place.socket)))
        .map_err(failure)?;
    Ok(file)
}

fn refused(id: TaskId, errno: Errno) -> Box<Error> {
    let (code, what) = if errno == Errno::EEXIST {
        (code::PID_TAKEN, "the process ID is taken")
    } else if errno == Errno::EPERM {
        (code::PRIVILEGE, "choosing a process ID")
    } else {
        (code::INJECT, "making a puppet")
    };
    Error::system(code, what, errno).about(Subject { task: Some(id.0), ..Subject::default() })
}
