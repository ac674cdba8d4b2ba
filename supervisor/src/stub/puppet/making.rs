//! Making puppets: the first from a tiny executable, its children and second threads by itself.

use super::Puppet;
use crate::error::{Error, Result, Subject, code};
use crate::stub::batch::Batch;
use crate::stub::channel::Channel;
use crate::stub::offspring::{self, Offspring};
use crate::stub::task_state::TaskState;
use crate::sys::process::{self, CloneArguments, Start};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use vckpt_image_format::TaskId;
use vckpt_parasite::protocol::{self, Boot, mode, operation};

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`.
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

/// Where a puppet is made.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Address of its area: the same in all processes of a restore.
    pub area: u64,
    /// Number of its socket: above every descriptor of the application.
    pub socket: i32,
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
            id,
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

    /// Makes a child process with this ID, which starts with a copy of everything that this puppet has but its
    /// descriptors. `exit_signal` is what the end of the child sends.
    ///
    /// # Errors
    /// [`code::PID_TAKEN`], [`code::PRIVILEGE`], or the kernel's reason.
    pub fn spawn(&mut self, id: TaskId, exit_signal: u32, flags: u64) -> Result<Self> {
        let (ours, theirs) = pair()?;
        let arguments = CloneArguments {
            flags,
            exit_signal: u64::from(exit_signal),
            set_tid: self.scratch(),
            set_tid_size: 1,
            ..CloneArguments::default()
        };
        self.write_scratch(&id.0.to_le_bytes())?;
        let mut batch = Batch::new();
        let words = batch.words(&arguments.words());
        let size = size_of::<CloneArguments>();
        let socket = batch.descriptor(theirs.as_raw_fd());
        let call = batch.operation(
            "making a process",
            operation::SPAWN,
            [words.into(), size.into(), socket, self.socket.into()],
        );
        self.send(&batch)?;
        let outcome = self.channel()?.receive(&batch, || Ok(()))?;
        outcome.get(call).map_err(|errno| refused(id, errno))?;
        drop(theirs);
        let tid = self.find(Offspring::Child, id)?;
        let mut child = Self {
            tid,
            id,
            area: self.area,
            socket: self.socket,
            newest: tid,
            state: TaskState::Gone,
            channel: Some(Channel::new(ours)),
            ours: true,
        };
        child.trace()?;
        child.close_inherited()?;
        Ok(child)
    }

    /// Makes a second thread with this ID; `index` counts the threads of the process from 1.
    ///
    /// # Errors
    /// [`code::PID_TAKEN`], [`code::PRIVILEGE`], or the kernel's reason.
    pub fn spawn_thread(&mut self, id: TaskId, index: usize) -> Result<Self> {
        let (ours, theirs) = pair()?;
        let area = self.area + (index * protocol::AREA_LENGTH) as u64;
        let socket = self.socket + i32::try_from(index).unwrap_or(i32::MAX);
        let boot_address = area + protocol::BOOT_OFFSET as u64;
        let arguments = CloneArguments {
            flags: THREAD_FLAGS,
            stack: area + protocol::STACK_OFFSET as u64,
            stack_size: protocol::STACK_LENGTH as u64,
            set_tid: self.scratch(),
            set_tid_size: 1,
            ..CloneArguments::default()
        };
        self.write_scratch(&id.0.to_le_bytes())?;
        let words = arguments.words();
        let mut batch = Batch::new();
        let theirs_there = batch.descriptor(theirs.as_raw_fd());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        let length = protocol::AREA_LENGTH - protocol::BOOT_OFFSET;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let arguments =
            [boot_address.into(), length.into(), protection.into(), flags.into(), (-1).into(), 0.into()];
        batch.must("mapping the area of a thread", libc::SYS_mmap, arguments);
        batch.must("moving a socket", libc::SYS_dup3, [theirs_there, socket.into(), libc::O_CLOEXEC.into()]);
        batch.must("closing a socket", libc::SYS_close, [theirs_there]);
        self.run(&batch)?;
        let boot = Boot { mode: mode::PUPPET_THREAD, ..boot(area, socket) };
        self.write(boot_address, &boot.to_bytes())?;
        let mut batch = Batch::new();
        let words = batch.words(&words);
        let size = size_of::<CloneArguments>();
        let arguments = [words.into(), size.into(), boot_address.into()];
        let call = batch.operation("making a thread", operation::SPAWN_THREAD, arguments);
        self.send(&batch)?;
        let outcome = self.channel()?.receive(&batch, || Ok(()))?;
        outcome.get(call).map_err(|errno| refused(id, errno))?;
        drop(theirs);
        let tid = self.find(Offspring::Thread, id)?;
        let mut thread = Self {
            tid,
            id,
            area,
            socket,
            newest: tid,
            state: TaskState::Gone,
            channel: Some(Channel::new(ours)),
            ours: true,
        };
        thread.trace()?;
        Ok(thread)
    }

    /// Finds the task that it has just made.
    fn find(&mut self, sort: Offspring, id: TaskId) -> Result<i32> {
        self.newest = offspring::find(self.tid, sort, id, self.newest)?;
        Ok(self.newest)
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
