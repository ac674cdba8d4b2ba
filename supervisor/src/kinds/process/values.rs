//! Values about processes that are written to files of `/proc`: by this program, since a process may not be allowed to.

use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::Action;
use crate::proc::read;
use crate::restoring::Restoring;
use std::fs;
use vckpt_image_format::TaskId;

/// A value of a process.
#[derive(Debug)]
pub struct Value {
    /// The process.
    pub process: TaskId,
    /// The file of `/proc/<pid>`.
    pub file: &'static str,
    /// What the kernel shows then.
    pub shown: String,
    /// What is written.
    pub written: String,
}

/// Gives processes their values, if they don't have them already.
#[derive(Debug)]
pub struct SetValues(pub Vec<Value>);

impl Action for SetValues {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut values = Vec::with_capacity(self.0.len());
        for value in &self.0 {
            values.push((restoring.system_id(value.process)?, value));
        }
        let mut problems = Problems::new();
        for result in crate::parallel::map(&values, |&(pid, value)| value.set(pid)) {
            problems.take(result);
        }
        problems.finish()
    }
}

impl Value {
    fn set(&self, pid: i32) -> Result<()> {
        let path = read::path(pid, self.file);
        if fs::read_to_string(&path).unwrap_or_default().trim() == self.shown {
            return Ok(());
        }
        fs::write(&path, &self.written).map_err(|error| {
            Error::system(code::TASK_RESTORE, format!("setting {} to {}", self.file, self.shown), error)
                .about(Subject { task: Some(self.process.0), ..Subject::default() })
        })
    }
}
