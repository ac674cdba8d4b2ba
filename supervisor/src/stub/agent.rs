//! The stub in a task that is being dumped: put in place, asked, and taken out again without a trace.
//!
//! At every moment from [`Agent::prepare`] to [`Agent::release`] the task finds its own way back if this program dies:
//! see [`sigframe`]. The one exception is a task whose stack has no room below its red zone
//! for the frames; then the few microseconds of each remote call are not covered.

use super::batch::{Batch, Outcome};
use super::channel::Channel;
use crate::error::{Error, Result, Subject, code};
use crate::sys::process;
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::{self, Gadgets, WayHome};
use crate::tracee::{Running, Stop, Stopped, restartable};
use crate::waits::before::Before;
use crate::waits::{self, RESTART_NO_HANDLER, resume, updated};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vckpt_image_format::record::lightweight_process::Wait;
use vckpt_parasite::protocol::{self, Boot, mode};

/// How long a task may take for a step of being injected or released.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a process offers to the agents in its threads.
#[derive(Debug, Clone, Copy)]
pub struct Host<'process> {
    /// `/proc/<pid>/mem`, open for reading and writing.
    pub memory: &'process File,
    /// A descriptor for the process.
    pub pidfd: BorrowedFd<'process>,
    /// Instructions of its own.
    pub gadgets: Gadgets,
}

#[derive(Debug)]
enum State {
    Stopped(Stopped),
    Running(Running),
    Gone,
}

/// A thread that stands still, and the stub in it if one was put there.
#[derive(Debug)]
pub struct Agent {
    tid: i32,
    state: State,
    /// What the thread will be put back to.
    registers: Registers,
    xstate: Vec<u8>,
    signal_mask: u64,
    pending: Vec<[u8; 128]>,
    shared_pending: Vec<[u8; 128]>,
    rseq: (u64, u32, u32),
    wait: Option<Wait>,
    /// When it stood still, by `CLOCK_MONOTONIC` in nanoseconds.
    stopped_at: i64,
    /// Instructions of the process, once they were looked for.
    gadgets: Option<Gadgets>,
    injected: Option<Injected>,
}

#[derive(Debug)]
struct Injected {
    channel: Channel,
    /// Number of the stub's end in the target.
    socket: i32,
    area: u64,
    call_and_return: u64,
    way_home: WayHome,
    /// What was below the stack pointer before.
    overwritten: Vec<u8>,
}

impl Agent {
    /// Takes down the state of a thread that was interrupted. Nothing is changed, but that a call which the kernel
    /// would end with `EINTR` only because of us is marked to be restarted.
    ///
    /// # Errors
    /// If the thread is gone or can't be read.
    pub fn prepare(stopped: Stopped, pid: i32, stopped_at: i64, before: Option<&Before>) -> Result<Self> {
        let mut registers = stopped.registers()?;
        let in_call = registers.orig_rax.cast_signed() >= 0;
        // A close has happened although it was interrupted: it is never made again.
        let close = registers.orig_rax == libc::SYS_close.cast_unsigned();
        let interrupted = in_call && !close && registers.rax.cast_signed() == -i64::from(libc::EINTR);
        let wait = in_call
            .then(|| waits::observe((pid, stopped.tid()), &registers, interrupted, stopped_at, before))
            .flatten();
        if interrupted {
            // Made again unless a handler runs, which is what the program would have seen without us.
            registers.rax = RESTART_NO_HANDLER.cast_unsigned();
            stopped.set_registers(&registers)?;
        }
        let rseq = crate::sys::ptrace::rseq(stopped.tid()).unwrap_or_default();
        if let Some(pointer) = restartable::abort(stopped.tid(), rseq.0, &mut registers) {
            stopped.set_registers(&registers)?;
            // The kernel clears it by itself if this fails: the task is not in the sequence any more.
            let _ = process::write_memory(stopped.tid(), pointer, &[0; 8]);
        }
        Ok(Self {
            tid: stopped.tid(),
            xstate: stopped.xstate()?,
            signal_mask: stopped.signal_mask()?,
            pending: stopped.pending_signals(false)?,
            shared_pending: stopped.pending_signals(true)?,
            rseq,
            wait,
            stopped_at,
            gadgets: None,
            registers,
            state: State::Stopped(stopped),
            injected: None,
        })
    }

    /// The thread's ID, as this program sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The thread's own registers.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The thread's own extended state.
    #[must_use]
    pub fn xstate(&self) -> &[u8] {
        &self.xstate
    }

    /// The thread's own signal mask: bit n-1 for signal n.
    #[must_use]
    pub fn signal_mask(&self) -> u64 {
        self.signal_mask
    }

    /// The thread's rseq area: address (0: none), size, signature.
    #[must_use]
    pub fn rseq(&self) -> (u64, u32, u32) {
        self.rseq
    }

    /// The wait that was interrupted, if it had a limit of time.
    #[must_use]
    pub fn wait(&self) -> Option<Wait> {
        self.wait
    }

    /// Addresses of a `syscall; ret` and of a `rt_sigreturn` in the program, if it has both.
    #[must_use]
    pub fn instructions(&self) -> Option<(u64, u64)> {
        let gadgets = self.gadgets.filter(|gadgets| gadgets.signal_return != 0)?;
        Some((gadgets.call_and_return, gadgets.signal_return))
    }

    /// The signals that were pending at the freeze, for the thread or for its process: raw `siginfo_t`, in order.
    ///
    /// # Errors
    /// None today.
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        Ok(if shared { self.shared_pending.clone() } else { self.pending.clone() })
    }

    /// Numbers of descriptors in the target that are the stub's, not the target's.
    #[must_use]
    pub fn descriptors(&self) -> Vec<i32> {
        self.injected.iter().map(|injected| injected.socket).collect()
    }

    /// Puts the stub into the thread, at an address where `protocol::AREA_LENGTH` bytes are free.
    ///
    /// # Errors
    /// [`code::INJECT`] if the target refuses a call; if the thread is gone.
    pub fn inject(&mut self, host: Host<'_>, area: u64) -> Result<()> {
        let State::Stopped(stopped) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(Error::new(code::INTERNAL, "a stub for a task that does not stand still"));
        };
        self.gadgets = Some(host.gadgets);
        let way_home = sigframe::way_home(
            &self.registers,
            &self.xstate,
            self.signal_mask,
            host.gadgets,
            (area, protocol::AREA_LENGTH as u64),
        );
        let mut overwritten = vec![0; way_home.bytes.len()];
        read_exact(host.memory, way_home.address, &mut overwritten)?;
        write_exact(host.memory, way_home.address, &way_home.bytes)?;

        let code_length = protocol::CODE_LENGTH as u64;
        let rest = protocol::AREA_LENGTH as u64 - code_length;
        let executable = u64::from((libc::PROT_READ | libc::PROT_EXEC).cast_unsigned());
        let writable = u64::from((libc::PROT_READ | libc::PROT_WRITE).cast_unsigned());
        let call = |stopped: Stopped, number: i64, arguments: [u64; 6]| {
            let registers = call_registers(&self.registers, host.gadgets, &way_home, number, arguments);
            stopped.set_registers(&registers)?;
            stopped.set_signal_mask(u64::MAX)?;
            let stopped = stopped.make_call(Instant::now() + PATIENCE)?;
            let result = stopped.registers()?.rax.cast_signed();
            Ok::<_, Box<Error>>((stopped, result))
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        let flags = u64::from(flags.cast_unsigned());
        let mut stopped = stopped;
        for (address, length, protection) in
            [(area, code_length, executable), (area + code_length, rest, writable)]
        {
            let result;
            let arguments = [address, length, protection, flags, u64::MAX, 0];
            (stopped, result) = call(stopped, libc::SYS_mmap, arguments)?;
            if result.cast_unsigned() != address {
                self.put_back(stopped, &way_home, &overwritten, host.memory)?;
                return Err(self.refused("making room for the stub", result));
            }
        }
        let boot = Boot {
            magic: protocol::BOOT_MAGIC,
            version: protocol::VERSION,
            mode: mode::AGENT,
            socket: -1,
            peer: -1,
            area,
            home: if host.gadgets.signal_return == 0 { way_home.second } else { way_home.first },
            epitaph: 0,
            epitaph_detail: 0,
        };
        let boot_address = area + protocol::BOOT_OFFSET as u64;
        write_exact(host.memory, area, vckpt_parasite::STUB_IMAGE)?;
        write_exact(host.memory, boot_address, &boot.to_bytes())?;
        let mut registers = self.registers;
        registers.rip = area + vckpt_parasite::ENTRY_OFFSET as u64;
        registers.rsp = area + (protocol::STACK_OFFSET + protocol::STACK_LENGTH) as u64;
        registers.rdi = boot_address;
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x400;
        stopped.set_registers(&registers)?;
        let stopped = stopped.make_call(Instant::now() + PATIENCE)?;
        let result = stopped.registers()?.rax.cast_signed();
        if result != 0 {
            // The stub notices by itself and goes home, unmapping its area.
            self.state = State::Running(stopped.resume(0)?);
            return Err(self.refused("making the socket pair of the stub", result));
        }
        let mut bytes = [0; size_of::<Boot>()];
        read_exact(host.memory, boot_address, &mut bytes)?;
        let boot =
            Boot::from_bytes(&bytes).ok_or_else(|| Error::new(code::INJECT, "the boot page is damaged"))?;
        let socket = process::pidfd_getfd(host.pidfd, boot.peer)
            .map_err(|errno| Error::system(code::INJECT, "fetching the socket of the stub", errno));
        self.state = State::Running(stopped.resume(0)?);
        self.injected = Some(Injected {
            channel: Channel::new(socket?),
            socket: boot.socket,
            area,
            call_and_return: host.gadgets.call_and_return,
            way_home,
            overwritten,
        });
        Ok(())
    }

    fn refused(&self, what: &str, result: i64) -> Box<Error> {
        let errno = i32::try_from(-result).unwrap_or(0);
        Error::system(code::INJECT, what, std::io::Error::from_raw_os_error(errno)).about(self.subject())
    }

    fn subject(&self) -> Subject {
        Subject { task: u32::try_from(self.tid).ok(), ..Subject::default() }
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
        let Some(injected) = &self.injected else {
            return Err(Error::new(code::INTERNAL, "a batch for a task without a stub").about(self.subject()));
        };
        injected.channel.send(batch).map_err(|error| error.about(self.subject()))
    }

    /// Waits for what comes of the batch that was sent.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub fn receive(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(injected) = &self.injected else {
            return Err(Error::new(code::INTERNAL, "an answer from a task without a stub").about(subject));
        };
        let state = &mut self.state;
        let outcome =
            injected.channel.receive(batch, || look(state)).map_err(|error| error.about(subject.clone()))?;
        outcome.check(batch, &subject)?;
        Ok(outcome)
    }

    /// Takes the stub out: the thread stands still with its own state, as after [`Agent::prepare`].
    ///
    /// # Errors
    /// If the thread is gone or does not obey. If it can't be taken out, the stub goes home by itself when its
    /// channel is dropped.
    pub fn remove(&mut self, memory: &File) -> Result<()> {
        let Some(injected) = self.injected.take() else { return Ok(()) };
        let running = match std::mem::replace(&mut self.state, State::Gone) {
            State::Running(running) => running,
            other @ (State::Stopped(_) | State::Gone) => {
                self.state = other;
                return Err(
                    Error::new(code::INTERNAL, "a stub in a task that does not run").about(self.subject())
                );
            }
        };
        running.interrupt()?;
        let mut stopped = running.expect_interruption(Instant::now() + PATIENCE)?;
        let gadgets = Gadgets { call_and_return: injected.call_and_return, signal_return: 0 };
        let socket = u64::from(injected.socket.cast_unsigned());
        let calls = [
            (libc::SYS_close, [socket, 0, 0, 0, 0, 0]),
            (libc::SYS_munmap, [injected.area, protocol::AREA_LENGTH as u64, 0, 0, 0, 0]),
        ];
        for (number, arguments) in calls {
            let registers = call_registers(&self.registers, gadgets, &injected.way_home, number, arguments);
            stopped.set_registers(&registers)?;
            stopped = stopped.make_call(Instant::now() + PATIENCE)?;
        }
        self.put_back(stopped, &injected.way_home, &injected.overwritten, memory)
    }

    /// Puts a thread that stands still after a remote call back to its own state.
    fn put_back(
        &mut self,
        stopped: Stopped,
        way_home: &WayHome,
        overwritten: &[u8],
        memory: &File,
    ) -> Result<()> {
        let stopped = stopped.to_interruption(Instant::now() + PATIENCE)?;
        stopped.set_xstate(&self.xstate)?;
        // The mask before the registers: until it has its own registers, the thread would go home by the frames,
        // which set the mask; afterwards nobody would.
        stopped.set_signal_mask(self.signal_mask)?;
        stopped.set_registers(&self.registers)?;
        write_exact(memory, way_home.address, overwritten)?;
        self.state = State::Stopped(stopped);
        Ok(())
    }

    /// Lets the thread go on; if it was in a call that waits for at most some time, with the time that is left.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn release(&mut self, memory: &File) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Stopped(stopped) => {
                if let Some(wait) = self.wait_that_is_left() {
                    let (mask, gadgets) = (self.signal_mask, self.gadgets);
                    let resume = resume::resume(&self.registers, &self.xstate, mask, Some(&wait), gadgets);
                    if let Some((address, bytes)) = &resume.bytes {
                        write_exact(memory, *address, bytes)?;
                    }
                    stopped.set_registers(&resume.registers)?;
                } else {
                    // A time-out that can't be written any more is the program's own affair.
                    let _ = updated::shorten(memory, &self.registers, self.passed());
                }
                stopped.detach(0)
            }
            State::Running(_) | State::Gone => Ok(()),
        }
    }

    /// The wait with what is left of it now. Time that passes during a dump counts: the program could not tell it from
    /// time in which it got no processor.
    fn wait_that_is_left(&self) -> Option<Wait> {
        let wait = self.wait?;
        Some(Wait { remaining: wait.remaining.saturating_sub(self.passed()), ..wait })
    }

    /// How long the thread stands still, in nanoseconds.
    fn passed(&self) -> u64 {
        u64::try_from(waits::now() - self.stopped_at).unwrap_or(0)
    }

    /// Waits for the end of a thread that was killed.
    ///
    /// # Errors
    /// [`code::PTRACE`] if it does not end.
    pub fn wait_for_end(&mut self) -> Result<()> {
        self.injected = None;
        let mut running = match std::mem::replace(&mut self.state, State::Gone) {
            State::Stopped(stopped) => stopped.killed(),
            State::Running(running) => running,
            State::Gone => return Ok(()),
        };
        loop {
            running = match running.wait(Instant::now() + PATIENCE) {
                Ok(Stop::Ended(_)) => return Ok(()),
                Ok(
                    Stop::Interrupted(stopped, _)
                    | Stop::Event(stopped, _)
                    | Stop::Call(stopped)
                    | Stop::Signal(stopped, _),
                ) => stopped.killed(),
                Err(error) if error.code == code::TARGET_DIED => return Ok(()),
                Err(error) => return Err(error),
            };
        }
    }

    /// Whether a stub is in place.
    #[must_use]
    pub fn is_injected(&self) -> bool {
        self.injected.is_some()
    }
}

impl Drop for Agent {
    /// Lets the thread go, whatever it is doing: a stub that is still there goes home by itself.
    fn drop(&mut self) {
        self.injected = None;
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Gone)
            && running.interrupt().is_ok()
        {
            // Dropping a stopped task detaches from it.
            let _ = running.expect_interruption(Instant::now() + PATIENCE);
        }
    }
}

/// Fails if a running task has ended or was stopped by something that the stub can't survive.
fn look(state: &mut State) -> Result<()> {
    let State::Running(running) = std::mem::replace(state, State::Gone) else { return Ok(()) };
    let tid = running.tid();
    match running.poll()? {
        Err(running) => {
            *state = State::Running(running);
            Ok(())
        }
        Ok(Stop::Ended(status)) => Err(Error::new(code::TARGET_DIED, "the task ended meanwhile")
            .because(format!("wait status {status:#x}"))),
        Ok(Stop::Interrupted(stopped, _) | Stop::Event(stopped, _) | Stop::Call(stopped)) => {
            *state = State::Running(stopped.resume(0)?);
            Ok(())
        }
        Ok(Stop::Signal(stopped, libc::SIGSTOP)) => {
            *state = State::Running(stopped.resume(libc::SIGSTOP)?);
            Ok(())
        }
        Ok(Stop::Signal(stopped, signal)) => {
            let registers = stopped.registers()?;
            *state = State::Stopped(stopped);
            Err(Error::new(code::STUB_SILENT, "the stub was hit by a signal")
                .because(format!("signal {signal} at {:#x}, task {tid}", registers.rip)))
        }
    }
}

/// The registers of a remote call, that goes home by itself when nobody stops it at its exit.
fn call_registers(
    home: &Registers,
    gadgets: Gadgets,
    way_home: &WayHome,
    number: i64,
    arguments: [u64; 6],
) -> Registers {
    let mut registers = *home;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
    registers.rax = number.cast_unsigned();
    registers.orig_rax = u64::MAX;
    registers.rip = gadgets.call_and_return;
    registers.rsp = way_home.address;
    registers
}

fn read_exact(memory: &File, address: u64, buffer: &mut [u8]) -> Result<()> {
    memory.read_exact_at(buffer, address).map_err(|error| {
        Error::system(code::MEMORY_ACCESS, "reading the memory of the target", error)
            .about(Subject::default().address(address))
    })
}

fn write_exact(memory: &File, address: u64, bytes: &[u8]) -> Result<()> {
    memory.write_all_at(bytes, address).map_err(|error| {
        Error::system(code::MEMORY_ACCESS, "writing to the memory of the target", error)
            .about(Subject::default().address(address))
    })
}
