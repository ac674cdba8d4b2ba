//! `vckpt run`: a command that can be interrupted here and carried on elsewhere.
//!
//! One verb for both: if the image is there, the command goes on from it, else it is started. When this program is told
//! to end (`SIGTERM`), it dumps the command into the image; run again with that image, here or on another machine, the
//! command goes on where it was.

mod job;
mod lock;

use super::restore::exit_code;
use crate::cli::{ExternalChoice, OnTerm, Run, TcpChoice};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::signals::Signals;
use job::{CarriedOn, Job};
use lock::Lock;
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use rustix::event::Timespec;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;
use vckpt_supervisor::error::Class;
use vckpt_supervisor::restore::Ending;
use vckpt_supervisor::sys::command::without_blocked_signals;

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
    let signals = Signals::queue()?;
    let _lock = Lock::take(&arguments.image)?;
    let job = if is_there(&arguments.image)? {
        match Job::carry_on(&arguments.image, &signals, output)? {
            CarriedOn::Job(job) => job,
            CarriedOn::Interrupted => {
                output.warn(format!("vckpt: interrupted: {} is as it was", arguments.image.display()));
                return Ok(ExitCode::from(AGAIN));
            }
        }
    } else {
        if let Some(signal) = signals.cancelled() {
            return Ok(exit_code(Ending::Signaled(signal)));
        }
        match Job::start(&arguments.command, is_in_foreground()) {
            Ok(job) => job,
            Err(error) => return Ok(not_started(&arguments, &error, output)),
        }
    };
    let (tell, events) = channel();
    let of_end = tell.clone();
    let end = job.end()?;
    let watched = end.try_clone()?;
    std::thread::Builder::new().name("end".to_owned()).spawn(move || {
        job::wait_readable(&watched, None);
        let _ = of_end.send(Event::Ended);
    })?;
    signals.tell(move |signal| {
        let _ = tell.send(Event::Signal(signal));
    });
    let watch = Watch { root: job.root(), end, arguments: &arguments, output };
    let code = watch.to_the_end(job, &events)?;
    signals.over();
    Ok(code)
}

/// A command that can't be started, as env(1) and shells say it.
fn not_started(arguments: &Run, error: &io::Error, output: &Output) -> ExitCode {
    let program = arguments.command.first().map(|program| Path::new(program).display().to_string());
    let program = program.unwrap_or_default();
    output.warn(format!("vckpt: error: {program}: the command can't be started: {error}"));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Whether an image is there.
fn is_there(image: &Path) -> Result<bool> {
    image.try_exists().map_err(|error| {
        let message = format!("{}: the image can't be looked at: {error}", image.display());
        Failure::plain(Class::Transfer, message)
    })
}

/// Whether this program is in the foreground of a terminal, whose keys reach all of its process group.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// What a dump of the command has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dumped {
    /// It is in the image.
    Yes,
    /// It ended meanwhile, by itself.
    Ended,
    /// It could not be dumped, which was said, and goes on.
    No,
}

/// Watches over a command.
#[derive(Debug)]
struct Watch<'run> {
    /// The process that is dumped, and that signals are for. It is a child that is waited for at the end only, or the
    /// child of one: so its number is nobody else's.
    root: i32,
    /// Can be read when the command has ended.
    end: OwnedFd,
    arguments: &'run Run,
    output: &'run Output,
}

impl Watch<'_> {
    /// Answers events until the command has ended or is in its image, and gives the exit code.
    fn to_the_end(&self, job: Job, events: &Receiver<Event>) -> Result<ExitCode> {
        let next = || self.arguments.every.map(|every| Instant::now() + every);
        let mut renewal = next();
        // Whether the command was told to end: what it does then is not to be carried on.
        let mut told_to_end = false;
        loop {
            let event = match renewal {
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => {
                    return self.ended(job.wait()?, told_to_end);
                }
                Ok(Event::Signal(Signal::SIGTERM)) if !told_to_end => {
                    let dumps = self.arguments.on_term == OnTerm::Dump;
                    match if dumps { self.dump(false)? } else { Dumped::No } {
                        Dumped::Yes => return self.checkpointed(job),
                        Dumped::Ended => {}
                        Dumped::No => {
                            (told_to_end, renewal) = (true, None);
                            self.output.say("vckpt: SIGTERM is handed on to the command");
                            self.hand_on(Signal::SIGTERM);
                        }
                    }
                }
                Ok(Event::Signal(signal)) => self.hand_on(signal),
                Err(RecvTimeoutError::Timeout) => {
                    self.dump(true)?;
                    renewal = next();
                }
            }
        }
    }

    /// The command is in its image.
    fn checkpointed(&self, job: Job) -> Result<ExitCode> {
        job.wait()?;
        self.output.say(format!("vckpt: run again to carry on from {}", self.arguments.image.display()));
        Ok(ExitCode::from(AGAIN))
    }

    /// The command has ended. If it has done its work, an image would only do that once more; but not if it was killed
    /// or told to end.
    fn ended(&self, ending: Ending, told_to_end: bool) -> Result<ExitCode> {
        let image = &self.arguments.image;
        let has_done_its_work = matches!(ending, Ending::Exited(_)) && !told_to_end;
        if !has_done_its_work {
            if is_there(image)? {
                self.output.say(format!("vckpt: {} is kept: run again to carry on from it", image.display()));
                return Ok(if told_to_end { ExitCode::from(AGAIN) } else { exit_code(ending) });
            }
            return Ok(exit_code(ending));
        }
        match fs::remove_file(image) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("{}: the image can't be removed: {error}", image.display());
                Err(Failure::plain(Class::Transfer, message))
            }
            Ok(()) | Err(_) => Ok(exit_code(ending)),
        }
    }

    /// Hands a signal on to the command, unless it is in our process group and has got it from the terminal.
    fn hand_on(&self, signal: Signal) {
        const OF_TERMINAL: [Signal; 6] = [
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGTSTP,
            Signal::SIGCONT,
            Signal::SIGWINCH,
        ];
        let root = rustix::process::Pid::from_raw(self.root);
        let is_in_our_group =
            || rustix::process::getpgid(root).is_ok_and(|group| group == rustix::process::getpgrp());
        if !(OF_TERMINAL.contains(&signal) && is_in_our_group() && is_in_foreground()) {
            // That it is gone is told by another event.
            let _ = kill(Pid::from_raw(self.root), signal);
        }
        if signal == Signal::SIGTSTP {
            // The shell waits for this program to stop, too.
            let _ = raise(Signal::SIGSTOP);
        }
    }

    /// Dumps the command by a program of its own: who traces takes the end of what it traces, and this program is to
    /// hear of that itself.
    fn dump(&self, leave_running: bool) -> Result<Dumped> {
        let Run { image, freeze_timeout, embed_files, tcp, external, .. } = self.arguments;
        let mut dump = Command::new("/proc/self/exe");
        dump.args(["dump", "--force", "--freeze-timeout", &freeze_timeout.as_secs_f64().to_string(), "-o"]);
        dump.arg(image);
        let options = [
            ("--leave-running", leave_running),
            ("--embed-files", *embed_files),
            ("--tcp=close", *tcp == TcpChoice::Close),
            ("--external=close", *external == ExternalChoice::Close),
        ];
        dump.args(options.iter().filter(|(_, wanted)| *wanted).map(|(option, _)| option));
        dump.arg(self.root.to_string());
        // Not in our process group: what ends that one must not end the dump.
        dump.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        if without_blocked_signals(&mut dump).status()?.success() {
            return Ok(Dumped::Yes);
        }
        let at_once = Timespec::default();
        Ok(if job::wait_readable(&self.end, Some(&at_once)) { Dumped::Ended } else { Dumped::No })
    }
}
