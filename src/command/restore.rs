//! `vckpt restore`: an image → running processes.

use super::{fidelity, milliseconds};
use crate::cli::{PidChoice, Restore};
use crate::failure::{Failure, Result};
use crate::output::{Output, plain};
use crate::progress::Meter;
use crate::signals::Signals;
use crate::units;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use vckpt_supervisor::error::{Class, code};
use vckpt_supervisor::restore::{self, Ending, Pids, Report, Request, Source};

/// Restores; then ends, or stays as the parent.
pub(super) fn run(arguments: Restore, output: &Output) -> Result<ExitCode> {
    let signals = Signals::cancel_or_hand_on()?;
    let pid_file = arguments.pid_file.clone().map(PidFile::create).transpose()?;
    let detach = arguments.detach;
    let mut meter = Meter::new(output);
    let restored = restore::restore(request(arguments)?, &mut |progress| {
        meter.update(&progress);
        if signals.cancelled().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(meter);
    let restored = match (restored, signals.cancelled()) {
        (Err(error), Some(signal)) if error.code == code::CANCELLED => {
            output.warn("vckpt: interrupted: nothing was restored");
            return Ok(u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        (restored, _) => restored?,
    };
    let pid = restored.report.pid;
    if detach {
        signals.over();
    } else {
        signals.hand_on(pid)?;
    }
    if let Some(file) = pid_file {
        file.write(pid)?;
    }
    print(&restored.report, detach, output)?;
    if detach {
        return Ok(ExitCode::SUCCESS);
    }
    let ending = restored.wait()?;
    signals.over();
    Ok(exit_code(ending))
}

fn request(arguments: Restore) -> Result<Request> {
    let source = if arguments.image.as_os_str() == "-" {
        // Without a buffer that reads ahead.
        Source::Stream(Box::new(File::from(io::stdin().as_fd().try_clone_to_owned()?)))
    } else {
        Source::File(arguments.image)
    };
    let pids = match arguments.pids {
        None => Pids::Automatic,
        Some(PidChoice::Same) => Pids::Same,
        Some(PidChoice::Namespace) => Pids::Namespace,
    };
    Ok(Request { source, pids, detach: arguments.detach, addresses: arguments.map_ip.clone() })
}

/// The status with which a shell would report such an end.
pub(super) fn exit_code(ending: Ending) -> ExitCode {
    let code = match ending {
        Ending::Exited(status) => status,
        Ending::Signaled(signal) => 128 + signal,
    };
    u8::try_from(code & 0xff).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The file for the process ID: made before anything is restored, so that a path that can't be written is known in
/// time, and removed again if nothing is.
#[derive(Debug)]
struct PidFile {
    path: PathBuf,
    file: File,
    written: bool,
}

impl PidFile {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|error| {
            Failure::plain(
                Class::Transfer,
                format!("{}: the PID file can't be written: {error}", path.display()),
            )
        })?;
        Ok(Self { path, file, written: false })
    }

    fn write(mut self, pid: i32) -> Result<()> {
        writeln!(self.file, "{pid}")?;
        self.written = true;
        Ok(())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !self.written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A [`Report`] in JSON.
#[derive(Serialize)]
struct Json<'a> {
    pid: i32,
    virtual_pid: u32,
    pid_namespace: bool,
    processes: usize,
    threads: usize,
    total_ms: f64,
    degraded: &'a [String],
}

fn print(report: &Report, detach: bool, output: &Output) -> Result<()> {
    if output.json {
        output.object(&Json {
            pid: report.pid,
            virtual_pid: report.root,
            pid_namespace: report.namespace,
            processes: report.processes,
            threads: report.threads,
            total_ms: milliseconds(report.total),
            degraded: &report.degraded,
        })?;
        return Ok(());
    }
    if !detach {
        // The terminal belongs to the restored program now.
        for item in &report.degraded {
            output.say(format!("vckpt: degraded: {}", plain(item)));
        }
        return Ok(());
    }
    let place = if report.namespace {
        format!(", {} in a PID namespace of its own", report.root)
    } else {
        String::new()
    };
    output.say(format!(
        "restored {} ({}, {}{place}) in {}",
        report.pid,
        units::count(report.processes, "process", "processes"),
        units::count(report.threads, "thread", "threads"),
        units::time(report.total),
    ));
    output.say(fidelity(&report.degraded));
    for item in &report.degraded {
        output.say(format!("  {}", plain(item)));
    }
    Ok(output.line(report.pid.to_string())?)
}
