//! A puppet: an empty task that is being turned into a restored one.
//!
//! The first one is started from a tiny executable; it makes the others on command. A puppet ends itself when this
//! program goes away, and is killed when it is dropped before its [release](Puppet::release).

mod stopping;

use super::batch::{Batch, Outcome};
use super::channel::Channel;
use super::offspring::{self, Offspring};
use super::task_state::TaskState;
use crate::error::{Error, Result, Subject, code};
use crate::sys::process::{self, CloneArguments, Start};
use crate::tracee::{Running, Stop, Stopped};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vckpt_image_format::TaskId;
use vckpt_parasite::protocol::{self, Boot, mode, operation};

const PATIENCE: Duration = Duration::from_secs(10);

/// A puppet: a process, or a second thread of one.
#[derive(Debug)]
pub struct Puppet {
    /// Its thread ID, as this program sees it.
    pub tid: i32,
    /// The ID that the application knows.
    pub id: TaskId,
    /// Address of its area.
    pub area: u64,
    /// Number of its socket in its own table.
    pub socket: i32,
    /// The last task that it made, as this program sees it; at first itself.
    newest: i32,
    state: TaskState,
    channel: Option<Channel>,
    /// Whether it is still ours to end.
    ours: bool,
}

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

    fn trace(&mut self) -> Result<()> {
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
        self.state = TaskState::Running(Running::seize(self.tid, options)?);
        Ok(())
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

    /// Its memory.
    ///
    /// # Errors
    /// As [`read::file`](crate::proc::read::file).
    pub fn memory(&self) -> Result<File> {
        let path = crate::proc::read::path(self.tid, "mem");
        let file = File::options().read(true).write(true).open(path);
        file.map_err(|error| crate::proc::read::failure(self.tid, "mem", &error))
    }

    /// An address in its area that nothing else uses: room of `protocol::FRAMES_LENGTH` bytes.
    #[must_use]
    pub fn scratch(&self) -> u64 {
        self.area + protocol::FRAMES_OFFSET as u64
    }

    /// For error messages.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject { task: Some(self.id.0), ..Subject::default() }
    }

    fn channel(&self) -> Result<&Channel> {
        self.channel.as_ref().ok_or_else(|| {
            Error::new(code::INTERNAL, "a batch for a puppet that does not listen any more")
                .about(self.subject())
        })
    }

    /// Runs a batch and checks that what must not fail did not.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`], [`code::TARGET_DIED`], [`code::REMOTE_CALL`].
    pub fn run(&mut self, batch: &Batch) -> Result<Outcome> {
        self.send(batch)?;
        self.receive(batch)
    }

    /// Sends a batch without waiting for what comes of it.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn send(&mut self, batch: &Batch) -> Result<()> {
        self.channel()?.send(batch).map_err(|error| error.about(self.subject()))
    }

    /// Waits for what comes of the batch that was sent.
    ///
    /// # Errors
    /// As [`Puppet::run`].
    pub fn receive(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(channel) = &self.channel else {
            return Err(
                Error::new(code::INTERNAL, "an answer from a puppet that does not listen").about(subject)
            );
        };
        let state = &mut self.state;
        let outcome = channel.receive(batch, || state.look()).map_err(|error| error.about(subject))?;
        outcome.check(batch, &self.subject())?;
        Ok(outcome)
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

    fn write_scratch(&self, bytes: &[u8]) -> Result<()> {
        self.write(self.scratch(), bytes)
    }

    /// Writes to its memory.
    ///
    /// # Errors
    /// [`code::MEMORY_ACCESS`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        process::write_memory(self.tid, address, bytes).map_err(|errno| {
            Error::system(code::MEMORY_ACCESS, "writing to a puppet", errno)
                .about(self.subject().address(address))
        })
    }

    /// Ends its conversation: it closes its socket and waits to be set up by ptrace.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`], [`code::TARGET_DIED`].
    pub fn park(&mut self) -> Result<()> {
        let mut batch = Batch::new();
        batch.operation("parking", operation::PARK, []);
        self.send(&batch)?;
        self.channel()?.expect_end().map_err(|error| error.about(self.subject()))?;
        self.channel = None;
        Ok(())
    }

    /// Stops it, after it was parked.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn stop(&mut self) -> Result<&Stopped> {
        if let TaskState::Running(running) = self.state.take() {
            running.interrupt()?;
            self.state = TaskState::Stopped(running.expect_interruption(Instant::now() + PATIENCE)?);
        }
        self.stopped()
    }

    /// Its stopped state.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs.
    pub fn stopped(&self) -> Result<&Stopped> {
        match &self.state {
            TaskState::Stopped(stopped) => Ok(stopped),
            TaskState::Running(_) | TaskState::Gone => {
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Replaces its stopped state by what a move of it gives.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it runs; what the move says.
    pub fn step(&mut self, step: impl FnOnce(Stopped) -> Result<Stopped>) -> Result<()> {
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.state = TaskState::Stopped(step(stopped)?);
                Ok(())
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Lets it run as what it has become.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn release(&mut self) -> Result<()> {
        match self.state.take() {
            TaskState::Stopped(stopped) => {
                self.ours = false;
                stopped.detach(0)
            }
            other @ (TaskState::Running(_) | TaskState::Gone) => {
                self.state = other;
                Err(Error::new(code::INTERNAL, "a puppet does not stand still").about(self.subject()))
            }
        }
    }

    /// Makes it end itself with this wait status; its parent will find a zombie.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn end(&mut self, status: u32) -> Result<()> {
        let signal = status & 0x7f;
        let mut batch = Batch::new();
        if signal == 0 {
            batch.call("ending", libc::SYS_exit_group, [(status >> 8).into()]);
        } else {
            let none = batch.words(&[0]);
            let default = batch.words(&[0, 0, 0, 0]);
            // No core file: the one of the original's death is enough.
            let zero = batch.words(&[0, 0]);
            batch.call(
                "limiting",
                libc::SYS_prlimit64,
                [0.into(), libc::RLIMIT_CORE.into(), zero.into(), 0.into()],
            );
            batch.call(
                "handling",
                libc::SYS_rt_sigaction,
                [signal.into(), default.into(), 0.into(), 8.into()],
            );
            let own = batch.call("asking", libc::SYS_gettid, []);
            batch.call("signalling", libc::SYS_tkill, [own.into(), signal.into()]);
            batch.call(
                "unblocking",
                libc::SYS_rt_sigprocmask,
                [libc::SIG_SETMASK.into(), none.into(), 0.into(), 8.into()],
            );
            batch.call("ending", libc::SYS_exit_group, [0.into()]);
        }
        self.send(&batch)?;
        self.channel = None;
        if let TaskState::Running(running) = self.state.take() {
            wait_for_end(running)?;
        }
        self.ours = false;
        Ok(())
    }

    /// Makes it the init of its PID namespace, which lives as long as the process `root` and its orphans.
    ///
    /// # Errors
    /// [`code::STUB_SILENT`].
    pub fn become_init(&mut self, root: TaskId) -> Result<()> {
        let mut batch = Batch::new();
        batch.operation("becoming init", operation::INIT, [root.0.into()]);
        self.run(&batch)?;
        self.channel = None;
        self.stop()?;
        self.release()
    }
}

fn wait_for_end(running: Running) -> Result<()> {
    let mut running = running;
    loop {
        running = match running.wait(Instant::now() + PATIENCE)? {
            Stop::Ended(_) => return Ok(()),
            Stop::Signal(stopped, signal) => stopped.resume(signal)?,
            Stop::Interrupted(stopped, _) | Stop::Event(stopped, _) | Stop::Call(stopped) => {
                stopped.resume(0)?
            }
        };
    }
}

impl Drop for Puppet {
    /// Ends a puppet that was not released.
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Puppet {
    /// Ends a puppet that was not released; its end is still to be waited for.
    pub fn kill(&mut self) -> Option<Running> {
        if !std::mem::replace(&mut self.ours, false) {
            return None;
        }
        let dying = match self.state.take() {
            TaskState::Stopped(stopped) => stopped.killed(),
            TaskState::Running(running) => running,
            // A step of it failed and nobody holds it any more.
            TaskState::Gone => Running::attached(self.tid),
        };
        // A thread takes its whole process along, which is meant.
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.tid), nix::sys::signal::Signal::SIGKILL);
        Some(dying)
    }
}

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`.
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

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
