//! `vckpt run`: a command that can be interrupted here and carried on elsewhere.
//!
//! One verb for both: if the image is there, the command goes on from it, else it is started. When this program is told
//! to end (`SIGTERM`), it dumps the command into the image; run again with that image, here or on another machine, the
//! command goes on where it was.

mod job;

use crate::cli::{ExternalChoice, OnTerm, Run, TcpChoice};
use crate::failure::{Failure, Result};
use crate::output::{Output, plain};
use crate::signals::Signals;
use crate::units;
use job::{CarriedOn, Job};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;
use vckpt_supervisor::dump::{self, Afterwards, Report, Request};
use vckpt_supervisor::error::{Class, Error, code};

/// The exit code that says: checkpointed, run me again. That of `EX_TEMPFAIL` in sysexits.h(3).
const AGAIN: u8 = 75;

/// What happens while the command runs.
#[derive(Debug)]
enum Event {
    /// A signal came for this program.
    Signal(Signal),
    /// The command has ended.
    Ended,
}

/// Runs a command.
pub(super) fn run(arguments: Run, output: &Output) -> Result<ExitCode> {
    let signals = Signals::cancel_or_hand_on()?;
    let in_terminal = is_in_foreground();
    let job = if is_there(&arguments.image)? {
        match Job::carry_on(&arguments.image, &signals, output)? {
            CarriedOn::Job(job) => job,
            CarriedOn::Interrupted => {
                output.warn(format!("vckpt: interrupted: {} is as it was", arguments.image.display()));
                return Ok(ExitCode::from(AGAIN));
            }
        }
    } else {
        match Job::start(&arguments.command, in_terminal) {
            Ok(job) => job,
            Err(error) => {
                let program =
                    arguments.command.first().map(|program| Path::new(program).display().to_string());
                let program = program.unwrap_or_default();
                output.warn(format!("vckpt: error: {program}: the command can't be started: {error}"));
                // As env(1) and shells do.
                let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
                return Ok(ExitCode::from(code));
            }
        }
    };
    let (tell, events) = channel();
    let of_end = tell.clone();
    let end = job.end()?;
    std::thread::Builder::new().name("end".to_owned()).spawn(move || {
        job::wait_readable(&end);
        let _ = of_end.send(Event::Ended);
    })?;
    signals.tell(move |signal| {
        let _ = tell.send(Event::Signal(signal));
    });
    let in_terminal = in_terminal && matches!(job, Job::Started(_));
    let watch = Watch { root: job.root(), arguments: &arguments, in_terminal, output };
    let code = watch.to_the_end(job, &events)?;
    signals.over();
    Ok(ExitCode::from(code))
}

/// Whether an image is there.
fn is_there(image: &Path) -> Result<bool> {
    image.try_exists().map_err(|error| {
        let message = format!("{}: the image can't be looked at: {error}", image.display());
        Failure::plain(Class::Transfer, message)
    })
}

/// Whether this program is in the foreground of a terminal, whose keys then reach the command by themselves.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Watches over a command.
#[derive(Debug)]
struct Watch<'run> {
    /// The process that is dumped, and that signals are for.
    root: i32,
    arguments: &'run Run,
    /// Whether it gets the signals of the keys by itself.
    in_terminal: bool,
    output: &'run Output,
}

impl Watch<'_> {
    /// Answers events until the command has ended or is in its image, and gives the exit code.
    fn to_the_end(&self, job: Job, events: &Receiver<Event>) -> Result<u8> {
        let next = || self.arguments.every.map(|every| Instant::now() + every);
        let mut renewal = next();
        // Whether the command was told to end, so that its end says nothing about its work.
        let mut told_to_end = false;
        loop {
            let event = match renewal {
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => {
                    return self.ended(job, told_to_end);
                }
                Ok(Event::Signal(Signal::SIGTERM)) => {
                    if self.arguments.on_term == OnTerm::Dump && self.checkpoint()? {
                        // It has ended by the dump, which may have waited for it already.
                        let _ = job.wait();
                        return Ok(AGAIN);
                    }
                    told_to_end = true;
                    self.hand_on(Signal::SIGTERM);
                }
                Ok(Event::Signal(signal)) => self.hand_on(signal),
                Err(RecvTimeoutError::Timeout) => {
                    self.renew();
                    renewal = next();
                }
            }
        }
    }

    /// The command has ended. An image would only do its work once more, unless that was not finished.
    fn ended(&self, job: Job, told_to_end: bool) -> Result<u8> {
        let status = job.wait()?;
        let image = &self.arguments.image;
        if told_to_end && is_there(image)? {
            self.output.say(format!("vckpt: told to end: {} is as it was", image.display()));
            return Ok(AGAIN);
        }
        match fs::remove_file(image) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("{}: the image can't be removed: {error}", image.display());
                Err(Failure::plain(Class::Transfer, message))
            }
            Ok(()) | Err(_) => Ok(u8::try_from(status & 0xff).unwrap_or(1)),
        }
    }

    /// Hands a signal on to the command.
    fn hand_on(&self, signal: Signal) {
        const OF_TERMINAL: [Signal; 6] = [
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGTSTP,
            Signal::SIGCONT,
            Signal::SIGWINCH,
        ];
        if !(self.in_terminal && OF_TERMINAL.contains(&signal)) {
            // That it is gone is told by another event.
            let _ = kill(Pid::from_raw(self.root), signal);
        }
        if signal == Signal::SIGTSTP {
            // The shell waits for this program to stop, too.
            let _ = raise(Signal::SIGSTOP);
        }
    }

    /// Ends the command, with all that it is in the image; whether that succeeded. If not, it goes on, and why is said.
    fn checkpoint(&self) -> Result<bool> {
        match self.dump(Afterwards::Kill) {
            Ok(report) => {
                let (image, time) = (self.arguments.image.display(), units::time(report.frozen));
                self.output.say(format!("vckpt: checkpointed into {image} in {time}; run again to carry on"));
                for item in &report.degraded {
                    self.output.say(format!("vckpt: degraded: {}", plain(item)));
                }
                Ok(true)
            }
            // It is told by another event.
            Err(error) if error.code == code::TARGET_DIED => Ok(false),
            Err(error) => {
                let word = "SIGTERM is handed on to the command".to_owned();
                Failure::from(error).with_guarantee(Some(word)).report(self.output);
                Ok(false)
            }
        }
    }

    /// Renews the image while the command runs on.
    fn renew(&self) {
        let Err(error) = self.dump(Afterwards::LeaveRunning) else { return };
        if error.code != code::TARGET_DIED {
            let word = "the command runs on, and the image is as it was".to_owned();
            Failure::from(error).with_guarantee(Some(word)).report(self.output);
        }
    }

    fn dump(&self, afterwards: Afterwards) -> std::result::Result<Report, Box<Error>> {
        let Run { image, freeze_timeout, embed_files, tcp, external, .. } = self.arguments;
        let request = Request {
            pid: self.root,
            output: dump::Output::File(image.clone()),
            afterwards,
            freeze_timeout: *freeze_timeout,
            force: true,
            embed_files: *embed_files,
            close_connections: *tcp == TcpChoice::Close,
            close_external: *external == ExternalChoice::Close,
        };
        dump::dump(request, &mut |_| ())
    }
}
