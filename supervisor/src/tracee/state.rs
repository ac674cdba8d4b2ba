//! The two states of a tracee and the moves between them.

use crate::error::{Error, Result, Subject, code};
use crate::sys::ptrace::{self, Registers, Waited};
use nix::errno::Errno;
use std::time::{Duration, Instant};
use vckpt_image_format::record::sandbox::Filter;

/// A tracee that runs, or may.
#[derive(Debug)]
pub struct Running {
    tid: i32,
}

/// A tracee that stands still. Dropping it lets it go on, untraced.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
}

/// Why a wait ended.
#[derive(Debug)]
pub enum Stop {
    /// It stopped because we asked (`PTRACE_EVENT_STOP`); with the stop signal if its process is stopped by one.
    Interrupted(Stopped, Option<i32>),
    /// It stopped at a `PTRACE_EVENT_…`.
    Event(Stopped, i32),
    /// It stopped at the entry or exit of a system call.
    Call(Stopped),
    /// A signal is about to be delivered to it.
    Signal(Stopped, i32),
    /// It has ended, with this wait status.
    Ended(i32),
}

/// How long a wait looks again and again before it sleeps between looks, and how long it then sleeps. Giving the
/// processor away by a yield instead would mean to wait for a whole turn of whoever else wants it.
const SPIN: Duration = Duration::from_micros(30);
const SLEEP: Duration = Duration::from_micros(20);
/// After this time a task that does not stop is suspected to have ended.
const SUSPICION: Duration = Duration::from_millis(1);

/// A pause between two looks at a task that is expected to stop, `waited` after the first.
pub fn pause(waited: Duration) {
    if waited < SPIN {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(SLEEP);
    }
}

impl Running {
    /// Begins to trace a task, with `PTRACE_O_…` options.
    ///
    /// # Errors
    /// [`code::NOT_PERMITTED`], [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn seize(tid: i32, options: i32) -> Result<Self> {
        match ptrace::seize(tid, options) {
            Ok(()) => Ok(Self { tid }),
            Err(errno) => Err(failure(tid, "tracing the task", errno)),
        }
    }

    /// A task that the kernel made a tracee by itself, as the child of one (`PTRACE_O_TRACEFORK` and the like).
    #[must_use]
    pub fn attached(tid: i32) -> Self {
        Self { tid }
    }

    /// The task's ID, as this program sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks it to stop; [`Running::wait`] then gives [`Stop::Interrupted`], after whatever else happens before.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(|errno| failure(self.tid, "stopping the task", errno))
    }

    /// Looks whether something happened, without waiting.
    ///
    /// # Errors
    /// [`code::PTRACE`]; itself is given back if nothing happened.
    pub fn poll(self) -> Result<std::result::Result<Stop, Self>> {
        match ptrace::wait(self.tid, false) {
            Ok(Waited::Nothing) => Ok(Err(self)),
            Ok(waited) => Ok(Ok(self.stop(waited))),
            Err(errno) => Err(failure(self.tid, "waiting for the task", errno)),
        }
    }

    /// Waits until something happens, at most until the deadline.
    ///
    /// # Errors
    /// [`code::FREEZE_TIMEOUT`] at the deadline; [`code::PTRACE`].
    pub fn wait(self, deadline: Instant) -> Result<Stop> {
        let begin = Instant::now();
        let mut running = self;
        loop {
            running = match running.poll()? {
                Ok(stop) => return Ok(stop),
                Err(running) => running,
            };
            let now = Instant::now();
            if now > deadline {
                return Err(Error::new(code::FREEZE_TIMEOUT, "the task did not stop in time")
                    .about(Subject { task: u32::try_from(running.tid).ok(), ..Subject::default() }));
            }
            if now - begin > SUSPICION && running.has_ended() {
                // It may have ended since the look above; then it has to be waited for, or its parent can't do so.
                return Ok(running.poll()?.unwrap_or(Stop::Ended(0)));
            }
            pause(now - begin);
        }
    }

    /// Whether it has ended, though no wait says so: the end of a process's first thread is told only when all others
    /// have been waited for.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read(format!("/proc/{}/stat", self.tid)).ok();
        let state = stat.as_deref().and_then(crate::proc::stat::parse).map(|stat| stat.state);
        matches!(state, None | Some(b'Z' | b'X'))
    }

    fn stop(self, waited: Waited) -> Stop {
        let stopped = Stopped { tid: self.tid };
        match waited {
            Waited::Ended { status } => Stop::Ended(status),
            Waited::Stopped { signal, event: libc::PTRACE_EVENT_STOP } => {
                Stop::Interrupted(stopped, (signal != libc::SIGTRAP).then_some(signal))
            }
            Waited::Stopped { signal, event: 0 } if signal == libc::SIGTRAP | 0x80 => Stop::Call(stopped),
            Waited::Stopped { signal, event: 0 } => Stop::Signal(stopped, signal),
            Waited::Stopped { event, .. } => Stop::Event(stopped, event),
            // `wait` only gives this when nothing happened, which callers treat before.
            Waited::Nothing => Stop::Event(stopped, 0),
        }
    }
}

impl Stopped {
    /// The task's ID, as this program sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Lets it go on, delivering a signal (0: none).
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn resume(self, signal: i32) -> Result<Running> {
        ptrace::resume(self.tid, signal)
            .map_err(|errno| failure(self.tid, "letting the task go on", errno))?;
        Ok(self.killed())
    }

    /// Lets it go on to the next entry or exit of a system call.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn resume_to_call(self) -> Result<Running> {
        ptrace::resume_to_call(self.tid, 0)
            .map_err(|errno| failure(self.tid, "letting the task go on", errno))?;
        Ok(self.killed())
    }

    /// Asks it to stop again as soon as it goes on.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(|errno| failure(self.tid, "stopping the task", errno))
    }

    /// As [`Stopped::resume_to_call`], delivering a signal.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn resume_to_call_with(self, signal: i32) -> Result<Running> {
        ptrace::resume_to_call(self.tid, signal)
            .map_err(|errno| failure(self.tid, "letting the task go on", errno))?;
        Ok(self.killed())
    }

    /// Stops tracing it; it goes on, with a signal (0: none).
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn detach(self, signal: i32) -> Result<()> {
        let tid = self.killed().tid;
        ptrace::detach(tid, signal).map_err(|errno| failure(tid, "letting the task go", errno))
    }

    /// It does not stand still any more, by no request of ours: a `SIGKILL` makes any task run to its end.
    #[must_use]
    pub fn killed(self) -> Running {
        let tid = self.tid;
        std::mem::forget(self);
        Running { tid }
    }

    /// Its registers.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn registers(&self) -> Result<Registers> {
        ptrace::registers(self.tid).map_err(|errno| failure(self.tid, "reading registers", errno))
    }

    /// Sets its registers.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn set_registers(&self, registers: &Registers) -> Result<()> {
        ptrace::set_registers(self.tid, registers)
            .map_err(|errno| failure(self.tid, "setting registers", errno))
    }

    /// Its extended state.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn xstate(&self) -> Result<Vec<u8>> {
        ptrace::xstate(self.tid).map_err(|errno| failure(self.tid, "reading the extended state", errno))
    }

    /// Sets its extended state.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn set_xstate(&self, state: &[u8]) -> Result<()> {
        ptrace::set_xstate(self.tid, state)
            .map_err(|errno| failure(self.tid, "setting the extended state", errno))
    }

    /// Its signal mask.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn signal_mask(&self) -> Result<u64> {
        ptrace::signal_mask(self.tid).map_err(|errno| failure(self.tid, "reading the signal mask", errno))
    }

    /// Sets its signal mask.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn set_signal_mask(&self, mask: u64) -> Result<()> {
        ptrace::set_signal_mask(self.tid, mask)
            .map_err(|errno| failure(self.tid, "setting the signal mask", errno))
    }

    /// Its pending signals, or those of its process; raw `siginfo_t`, the oldest first.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn pending_signals(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        ptrace::pending_signals(self.tid, shared)
            .map_err(|errno| failure(self.tid, "reading pending signals", errno))
    }

    /// Its system call filters, the oldest first.
    ///
    /// # Errors
    /// See ptrace(2), `PTRACE_SECCOMP_GET_FILTER`.
    pub fn filters(&self) -> std::result::Result<Vec<Filter>, Errno> {
        let mut filters = Vec::new();
        loop {
            match ptrace::filter(self.tid, filters.len()) {
                Ok((program, flags)) => filters.push(Filter { flags, program }),
                Err(Errno::ENOENT) => return Ok(filters),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Makes its system call filters have no effect as long as it is traced. It is killed, or not, at our end as before.
    ///
    /// # Errors
    /// See ptrace(2), `PTRACE_O_SUSPEND_SECCOMP`.
    pub fn suspend_filters(&self, options: i32) -> std::result::Result<(), Errno> {
        ptrace::set_options(self.tid, options | ptrace::OPTION_SUSPEND_SECCOMP)
    }

    /// The number of the last event.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] or [`code::PTRACE`].
    pub fn event_message(&self) -> Result<u64> {
        ptrace::event_message(self.tid).map_err(|errno| failure(self.tid, "reading an event", errno))
    }

    /// Brings it to a stop in which the kernel looks at pending signals and restarts calls when it goes on: the only
    /// place where the registers of an interrupted call may be set. It must have registers with which it could run.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`] if it ends meanwhile, [`code::PTRACE`].
    pub fn to_interruption(self, deadline: Instant) -> Result<Stopped> {
        self.interrupt()?;
        self.resume(0)?.expect_interruption(deadline)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.tid, 0);
    }
}

impl Running {
    /// Waits for the entry or exit of a system call. Stops that were asked for before, of which a process that is
    /// stopped by a signal has several, are passed over.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`], [`code::PTRACE`].
    pub fn expect_call(self, deadline: Instant) -> Result<Stopped> {
        let mut running = self;
        loop {
            let tid = running.tid;
            running = match running.wait(deadline)? {
                Stop::Call(stopped) => return Ok(stopped),
                Stop::Ended(_) => return Err(died(tid)),
                Stop::Interrupted(stopped, _) => stopped.resume_to_call()?,
                // The one signal that nobody can block and that does not end the task.
                Stop::Signal(stopped, libc::SIGSTOP) => stopped.resume_to_call_with(libc::SIGSTOP)?,
                other @ (Stop::Event(..) | Stop::Signal(..)) => {
                    return Err(Error::new(code::PTRACE, "the task did not stop at a system call")
                        .because(format!("{other:?}")));
                }
            };
        }
    }

    /// Waits for the stop that was asked for. Stops of other kinds that come before it are passed over; a signal that
    /// is about to be delivered is delivered.
    ///
    /// # Errors
    /// [`code::TARGET_DIED`], [`code::PTRACE`].
    pub fn expect_interruption(self, deadline: Instant) -> Result<Stopped> {
        let mut running = self;
        loop {
            let tid = running.tid;
            running = match running.wait(deadline)? {
                Stop::Interrupted(stopped, _) => return Ok(stopped),
                Stop::Ended(_) => return Err(died(tid)),
                Stop::Signal(stopped, signal) => stopped.resume(signal)?,
                Stop::Event(stopped, _) | Stop::Call(stopped) => stopped.resume(0)?,
            };
        }
    }
}

fn died(tid: i32) -> Box<Error> {
    Error::new(code::TARGET_DIED, "the task ended meanwhile")
        .about(Subject { task: u32::try_from(tid).ok(), ..Subject::default() })
}

fn failure(tid: i32, what: &str, errno: Errno) -> Box<Error> {
    let code = if [Errno::EPERM, Errno::EACCES].contains(&errno) {
        code::NOT_PERMITTED
    } else if [Errno::ESRCH, Errno::ECHILD].contains(&errno) {
        code::TARGET_DIED
    } else {
        code::PTRACE
    };
    Error::system(code, what, errno).about(Subject { task: u32::try_from(tid).ok(), ..Subject::default() })
}
