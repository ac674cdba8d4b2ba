//! `vckpt dump`: a running tree of processes → an image.

use super::{fidelity, milliseconds};
use crate::cli::Dump;
use crate::failure::{Failure, Result};
use crate::output::{Output, plain};
use crate::progress::Meter;
use crate::signals::Signals;
use crate::units;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use vckpt_supervisor::dump::{self, Afterwards, Report, Request};

/// Dumps, and says what was dumped.
pub(super) fn run(arguments: Dump, output: &Output) -> Result<ExitCode> {
    let pid = arguments.pid;
    let before = state(pid);
    let signals = Signals::end_with(move || {
        let word = after(pid, before).map_or_else(String::new, |word| format!(": {word}"));
        Output::new(false, false).warn(format!("vckpt: interrupted{word}"));
    })?;
    let to_stdout = arguments.output.as_deref().is_some_and(|path| path.as_os_str() == "-");
    let request = request(arguments)?;
    let mut meter = Meter::new(output);
    let result = dump::dump(request, &mut |progress| {
        // All is written: an image that has got its name must not be called interrupted.
        if progress.phase == "seal" {
            signals.over();
        }
        meter.update(&progress);
    });
    drop(meter);
    let report = result.map_err(|error| Failure::from(error).with_guarantee(after(pid, before)))?;
    print(&report, to_stdout, output)?;
    Ok(ExitCode::SUCCESS)
}

fn request(arguments: Dump) -> Result<Request> {
    let afterwards = match (arguments.leave_running, arguments.leave_stopped) {
        (true, _) => Afterwards::LeaveRunning,
        (false, true) => Afterwards::LeaveStopped,
        (false, false) => Afterwards::Kill,
    };
    let output = match arguments.output {
        None => dump::Output::DefaultName,
        Some(path) if path.as_os_str() == "-" => stream()?,
        Some(path) => dump::Output::File(path),
    };
    Ok(Request {
        pid: arguments.pid,
        output,
        afterwards,
        freeze_timeout: arguments.freeze_timeout,
        force: arguments.force,
        embed_files: arguments.embed_files,
        close_connections: arguments.tcp == crate::cli::TcpChoice::Close,
        close_external: arguments.external == crate::cli::ExternalChoice::Close,
    })
}

/// Standard output, without a buffer that looks for the ends of lines.
fn stream() -> Result<dump::Output> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(dump::Output::Stream(Box::new(File::from(descriptor))))
}

/// What became of the target: the guarantee that every failure ends with.
fn after(pid: i32, before: Option<char>) -> Option<String> {
    // There was nothing to harm.
    let before = before.filter(|&state| state != 'Z')?;
    let word = match (before, state(pid)) {
        (_, None | Some('Z' | 'X')) => "the process has ended",
        ('T', Some('T')) => "the process is stopped, as it was before",
        ('t', Some('t')) => "the process is in the hands of another tracer, as it was before",
        (_, Some('T' | 't')) => "the process is stopped; kill -CONT lets it go on",
        _ => "the process is running again",
    };
    Some(word.to_owned())
}

/// The state letter of a process.
fn state(pid: i32) -> Option<char> {
    let status = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may itself have some.
    let behind_name = status.iter().rposition(|&byte| byte == b')')?;
    status.get(behind_name + 2).map(|&byte| char::from(byte))
}

/// A [`Report`] in JSON.
#[derive(Serialize)]
struct Json<'a> {
    image: Option<String>,
    pid: u32,
    command: &'a str,
    processes: usize,
    threads: usize,
    frozen_ms: f64,
    total_ms: f64,
    memory_bytes: u64,
    image_bytes: u64,
    degraded: &'a [String],
}

fn print(report: &Report, to_stdout: bool, output: &Output) -> Result<()> {
    let image = report.image.as_ref().map(|path| path.display().to_string());
    if output.json {
        let json = Json {
            image,
            pid: report.root,
            command: &report.command,
            processes: report.processes,
            threads: report.threads,
            frozen_ms: milliseconds(report.frozen),
            total_ms: milliseconds(report.total),
            memory_bytes: report.memory_bytes,
            image_bytes: report.image_bytes,
            degraded: &report.degraded,
        };
        if to_stdout {
            output.warn(serde_json::to_string_pretty(&json).map_err(io::Error::from)?);
        } else {
            output.object(&json)?;
        }
        return Ok(());
    }
    output.say(format!(
        "checkpointed {} ({}, {}) frozen {}, total {}, {} -> {}",
        report.root,
        plain(&report.command),
        units::count(report.processes, "process", "processes"),
        units::time(report.frozen),
        units::time(report.total),
        units::bytes(report.memory_bytes),
        units::bytes(report.image_bytes),
    ));
    output.say(fidelity(&report.degraded));
    for item in &report.degraded {
        output.say(format!("  {}", plain(item)));
    }
    match image {
        Some(path) if !to_stdout => Ok(output.line(path)?),
        _ => Ok(()),
    }
}
