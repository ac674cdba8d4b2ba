//! `vckpt check`: everything that stands in the way of a dump or restore, at once.

use crate::cli::Check;
use crate::failure::{self, Problem, Result};
use crate::output::{Output, plain};
use crate::units;
use serde::Serialize;
use std::process::ExitCode;
use vckpt_supervisor::check::{self, CheckReport};
use vckpt_supervisor::error::Class;

/// Checks a process or an image.
pub(super) fn run(arguments: &Check, output: &Output) -> Result<ExitCode> {
    // A file whose name is a number can be given with a folder: ./4711.
    let pid = arguments.subject.to_str().and_then(|text| text.parse::<i32>().ok()).filter(|&pid| pid > 0);
    let (report, verb) = match pid {
        Some(pid) => (check::check_process(pid)?, "dumped"),
        None => (check::check_image(&arguments.subject)?, "restored"),
    };
    print(&report, &arguments.subject.display().to_string(), verb, output)?;
    Ok(ExitCode::from(match (report.problems.first(), report.degraded.is_empty()) {
        (Some(problem), _) => problem.code.class as u8,
        (None, false) => Class::Degraded as u8,
        (None, true) => 0,
    }))
}

/// A [`CheckReport`] in JSON.
#[derive(Serialize)]
struct Json<'a> {
    ok: bool,
    problems: Vec<Problem>,
    degraded: &'a [String],
}

fn print(report: &CheckReport, subject: &str, verb: &str, output: &Output) -> Result<()> {
    if output.json {
        let problems: Vec<Problem> = report.problems.iter().map(failure::problem).collect();
        output.object(&Json { ok: problems.is_empty(), problems, degraded: &report.degraded })?;
        return Ok(());
    }
    for line in failure::lines(report.problems.iter()) {
        output.warn(line);
    }
    output.lines(report.degraded.iter().map(|item| format!("degraded: {}", plain(item))))?;
    let verdict = match (report.problems.len(), report.degraded.is_empty()) {
        (0, true) => format!("can be {verb}, exactly"),
        (0, false) => format!("can be {verb}, but not exactly"),
        (number, _) => {
            format!("can't be {verb}: {} in the way", units::count(number, "thing stands", "things stand"))
        }
    };
    let size = units::count(report.processes, "process", "processes");
    Ok(output.line(format!("{subject} ({}, {size}) {verdict}", plain(&report.command)))?)
}
