//! Sets the limits of each process.

use super::LENGTH;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex};
use nix::errno::Errno;
use std::fmt;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::resource_limit::{Limit, NAMES, ResourceLimit, UNLIMITED};

/// Adds the steps for the limits of every process.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in crate::image::all::<ResourceLimit>(image)? {
        plan.action(Stage::Credentials, SetLimits(record));
    }
    Ok(())
}

/// Sets the limits of a process, and says which ones it may not have.
#[derive(Debug)]
struct SetLimits(ResourceLimit);

impl SetLimits {
    fn batch(&self) -> (Batch, Vec<CallIndex>) {
        let mut batch = Batch::new();
        let set = |(number, limit): (usize, &Limit)| {
            let words = batch.words(&[limit.soft, limit.hard]);
            let arguments = [Argument::value(0), number.into(), words.into(), Argument::value(0)];
            batch.call("setting a limit", libc::SYS_prlimit64, arguments)
        };
        let calls = self.0.limits.iter().enumerate().map(set).collect();
        (batch, calls)
    }

    fn refused(
        &self,
        restoring: &mut Restoring<'_>,
        number: usize,
        wanted: Limit,
        errno: Errno,
    ) -> Box<Error> {
        let subject = Subject { task: Some(self.0.process.0), ..Subject::default() };
        let name = NAMES.get(number).copied().unwrap_or("limit");
        let mut batch = Batch::new();
        let room = batch.room(LENGTH);
        let arguments = [Argument::value(0), number.into(), Argument::value(0), room.into()];
        batch.must("reading a limit", libc::SYS_prlimit64, arguments);
        let has = match restoring.run(self.0.process, &batch) {
            Ok(outcome) => Limit { soft: outcome.word(room, 0), hard: outcome.word(room, 1) },
            Err(error) => return error.about(subject),
        };
        let what = format!("setting {name} to {} while only {} is allowed here", Shown(wanted), Shown(has));
        let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::TASK_RESTORE };
        let hint =
            "raise the hard limit of the shell that restores (ulimit -H), or run vckpt with CAP_SYS_RESOURCE";
        Error::system(code, what, errno).about(subject).hint(hint)
    }
}

impl Action for SetLimits {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let (batch, calls) = self.batch();
        let outcome = restoring.run(self.0.process, &batch)?;
        let mut problems = Problems::new();
        for ((number, limit), call) in self.0.limits.iter().enumerate().zip(calls) {
            if let Err(errno) = outcome.get(call) {
                problems.push(self.refused(restoring, number, *limit, errno));
            }
        }
        problems.finish()
    }
}

struct Shown(Limit);

impl fmt::Display for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value| if value == UNLIMITED { "unlimited".to_owned() } else { format!("{value}") };
        write!(formatter, "{} (hard: {})", word(self.0.soft), word(self.0.hard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::TaskId;

    #[test]
    fn each_limit_is_set_by_its_number() {
        let limits = (0..16).map(|number| Limit { soft: number, hard: UNLIMITED }).collect();
        let (batch, calls) = SetLimits(ResourceLimit { process: TaskId(5), limits }).batch();
        assert_eq!(calls.len(), 16);
        for (number, call) in batch.calls.iter().enumerate() {
            assert_eq!(call.arguments[1], number as u64);
            let offset = usize::try_from(call.arguments[2]).unwrap();
            assert_eq!(batch.data[offset..offset + 8], (number as u64).to_le_bytes());
        }
    }

    #[test]
    fn limits_are_shown_in_words() {
        assert_eq!(Shown(Limit { soft: 1024, hard: UNLIMITED }).to_string(), "1024 (hard: unlimited)");
    }
}
