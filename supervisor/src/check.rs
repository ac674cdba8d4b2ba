//! Checking: everything that stands in the way of a dump or a restore, at once, without doing either.

use crate::error::{Error, Result, code};
use crate::freeze;
use crate::look::{Look, Wanted, look};
use crate::restore::{self, Source};
use crate::{image, place};
use std::path::Path;
use std::time::Duration;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::snapshot::Snapshot;

/// How long the target may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// What stands in the way.
    pub problems: Vec<Error>,
    /// What would not be exact.
    pub degraded: Vec<String>,
    /// Name of the root.
    pub command: String,
    /// Number of processes.
    pub processes: usize,
}

/// Looks whether a tree of processes can be dumped. It stands still for a moment.
///
/// # Errors
/// If it can't be looked at, such as [`code::NO_PROCESS`] or [`code::NOT_PERMITTED`].
pub fn check_process(pid: i32) -> Result<CheckReport> {
    let command = crate::proc::read::file(pid, "comm").unwrap_or_default();
    let mut report = CheckReport {
        command: String::from_utf8_lossy(&command).trim().to_owned(),
        ..CheckReport::default()
    };
    let looked =
        freeze::preflight(pid).and_then(|()| look(pid, PATIENCE, Wanted::default(), &mut Vec::new()));
    let Look { frozen, records, .. } = match looked {
        Ok(look) => look,
        Err(error) if is_refusal(&error) => return Ok(CheckReport { problems: separate(error), ..report }),
        Err(error) => return Err(error),
    };
    report.processes = frozen.processes.len();
    let records = records.map(|mut records| {
        drop(records.hold.take());
        records
    });
    frozen.release()?;
    match records {
        Ok(records) => report.degraded = records.degraded,
        Err(error) => report.problems = separate(error),
    }
    Ok(report)
}

/// Whether an error says something about the target, and not that it could not be looked at.
fn is_refusal(error: &Error) -> bool {
    [code::TASK_STATE, code::SHARED_BETWEEN_PROCESSES, code::SESSION_SHAPE].contains(&error.code)
}

/// Looks whether an image can be restored here.
///
/// # Errors
/// If it can't be opened, or is no image.
pub fn check_image(path: &Path) -> Result<CheckReport> {
    let image = restore::open(Source::File(path.to_path_buf()))?;
    let snapshot: Snapshot = image::one(&image)?;
    let mut report = CheckReport {
        command: snapshot.command.to_string(),
        degraded: snapshot.degraded,
        processes: image::all::<Process>(&image)?.len(),
        ..CheckReport::default()
    };
    let hosted = restore::plan(&image, &[]).and_then(|plan| restore::host(&image, &plan));
    for result in [hosted, place::find(&image).map(drop)] {
        report.problems.extend(result.err().map(separate).unwrap_or_default());
    }
    Ok(report)
}

fn separate(mut error: Box<Error>) -> Vec<Error> {
    let others = std::mem::take(&mut error.others);
    std::iter::once(*error).chain(others).collect()
}
