//! The command that is run: started here, or carried on from an image.

use crate::failure::{Failure, Result};
use crate::output::{Output, plain};
use crate::progress::Meter;
use crate::signals::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use vckpt_supervisor::error::code;
use vckpt_supervisor::restore::{self, Ending, Pids, Request, Restored, Source};
use vckpt_supervisor::sys::command::without_blocked_signals;

/// A running command.
#[derive(Debug)]
pub(super) enum Job {
    /// It was started.
    Started(Child),
    /// It goes on from an image.
    Restored(Restored),
}

/// What came of the attempt to carry on from an image.
pub(super) enum CarriedOn {
    /// It goes on.
    Job(Job),
    /// A signal has ended the attempt.
    Interrupted,
}

impl Job {
    /// Starts a command. In a terminal it stays in our process group, so that the terminal's signals reach it; else it
    /// gets one of its own.
    pub(super) fn start(command: &[OsString], in_terminal: bool) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::NotFound)?;
        let mut started = Command::new(program);
        started.args(arguments);
        if !in_terminal {
            started.process_group(0);
        }
        without_blocked_signals(&mut started).spawn().map(Self::Started)
    }

    /// Carries on from an image.
    pub(super) fn carry_on(image: &Path, signals: &Signals, output: &Output) -> Result<CarriedOn> {
        let request = Request {
            source: Source::File(image.to_path_buf()),
            pids: Pids::Automatic,
            detach: false,
            addresses: Vec::new(),
        };
        let mut meter = Meter::new(output);
        let restored = restore::restore(request, &mut |progress| {
            meter.update(&progress);
            if signals.cancelled().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(meter);
        let restored = match (restored, signals.cancelled()) {
            (Err(error), Some(_)) if error.code == code::CANCELLED => return Ok(CarriedOn::Interrupted),
            (restored, _) => restored?,
        };
        for item in &restored.report.degraded {
            output.say(format!("vckpt: degraded: {}", plain(item)));
        }
        Ok(CarriedOn::Job(Self::Restored(restored)))
    }

    /// The process that is dumped, and that signals are for.
    pub(super) fn root(&self) -> i32 {
        match self {
            Self::Started(child) => i32::try_from(child.id()).unwrap_or(0),
            Self::Restored(restored) => restored.report.pid,
        }
    }

    /// A descriptor that can be read when it has ended.
    pub(super) fn end(&self) -> Result<OwnedFd> {
        let pid = match self {
            Self::Started(_) => self.root(),
            Self::Restored(restored) => restored.child(),
        };
        let pid = Pid::from_raw(pid).ok_or_else(|| Failure::message("the command has no process ID"))?;
        Ok(pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?)
    }

    /// Waits for its end.
    pub(super) fn wait(self) -> Result<Ending> {
        Ok(match self {
            Self::Restored(restored) => {
                let in_namespace = restored.report.namespace;
                match restored.wait()? {
                    // Our init ends so if the command was killed.
                    Ending::Exited(status @ 129..) if in_namespace => Ending::Signaled(status - 128),
                    ending @ (Ending::Exited(_) | Ending::Signaled(_)) => ending,
                }
            }
            Self::Started(mut child) => {
                let status = child.wait()?;
                match status.code() {
                    Some(code) => Ending::Exited(code),
                    None => Ending::Signaled(status.signal().unwrap_or(0)),
                }
            }
        })
    }
}

/// Waits until a descriptor can be read; with a limit of zero, only looks. Whether it can.
pub(super) fn wait_readable(descriptor: &OwnedFd, limit: Option<&Timespec>) -> bool {
    loop {
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], limit) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}
