//! Sets the limits of each process.

use super::LENGTH;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex, Data, Outcome};
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
        plan.batch(Stage::Timers, record.process, "limit of waiting signals", pending_signals(&record));
        plan.action(Stage::Credentials, SetLimits(record));
    }
    Ok(())
}

/// The limit of waiting signals. These are queued after everything that takes rights away, and may be more than the
/// limit lets in since it was set.
const PENDING: usize = libc::RLIMIT_SIGPENDING as usize;

/// The call that sets the limit of waiting signals to what it was, when all wait that did.
fn pending_signals(record: &ResourceLimit) -> Batch {
    let mut batch = Batch::new();
    if let Some(&limit) = record.limits.get(PENDING) {
        let arguments = set(&mut batch, PENDING, limit);
        batch.must("setting the limit of waiting signals", libc::SYS_prlimit64, arguments);
    }
    batch
}

fn set(batch: &mut Batch, number: usize, limit: Limit) -> [Argument; 4] {
    let words = batch.words(&[limit.soft, limit.hard]);
    [Argument::value(0), number.into(), words.into(), Argument::value(0)]
}

/// The question for the limit of this number.
fn ask(number: usize) -> (Batch, Data) {
    let mut batch = Batch::new();
    let room = batch.room(LENGTH);
    let arguments = [Argument::value(0), number.into(), Argument::value(0), room.into()];
    batch.must("reading a limit", libc::SYS_prlimit64, arguments);
    (batch, room)
}

fn answer(room: Data, outcome: &Outcome) -> Limit {
    Limit { soft: outcome.word(room, 0), hard: outcome.word(room, 1) }
}

/// Sets the limits of a process, and says which ones it may not have.
#[derive(Debug, Clone)]
struct SetLimits(ResourceLimit);

impl SetLimits {
    /// The calls for a process that has this limit of waiting signals: the most for the time being.
    fn batch(&self, pending: Limit) -> (Batch, Vec<CallIndex>) {
        let mut batch = Batch::new();
        let call = |(number, &limit): (usize, &Limit)| {
            let most = limit.hard.max(pending.hard);
            let limit = if number == PENDING { Limit { soft: most, hard: most } } else { limit };
            let arguments = set(&mut batch, number, limit);
            batch.call("setting a limit", libc::SYS_prlimit64, arguments)
        };
        let calls = self.0.limits.iter().enumerate().map(call).collect();
        (batch, calls)
    }

    /// What the limit of this number is now.
    fn has(&self, restoring: &mut Restoring<'_>, number: usize) -> Result<Limit> {
        let (batch, room) = ask(number);
        Ok(answer(room, &restoring.run(self.0.process, &batch)?))
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
        let has = match self.has(restoring, number) {
            Ok(has) => has,
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
        let (question, room) = ask(PENDING);
        let wanted = self.clone();
        restoring.begin(self.0.process, question, move |restoring, outcome| {
            let (batch, calls) = wanted.batch(answer(room, &outcome));
            let process = wanted.0.process;
            restoring.begin(process, batch, move |restoring, outcome| {
                let mut problems = Problems::new();
                for ((number, limit), call) in wanted.0.limits.iter().enumerate().zip(calls) {
                    if let Err(errno) = outcome.get(call) {
                        problems.push(wanted.refused(restoring, number, *limit, errno));
                    }
                }
                problems.finish()
            })
        })
    }

    fn overlaps(&self) -> bool {
        true
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
        let (batch, calls) =
            SetLimits(ResourceLimit { process: TaskId(5), limits }).batch(Limit { soft: 0, hard: 99 });
        assert_eq!(calls.len(), 16);
        for (number, call) in batch.calls.iter().enumerate() {
            assert_eq!(call.arguments[1], number as u64);
            let offset = usize::try_from(call.arguments[2]).unwrap();
            let soft = if number == PENDING { UNLIMITED } else { number as u64 };
            assert_eq!(batch.data[offset..offset + 8], soft.to_le_bytes());
        }
    }

    #[test]
    fn the_limit_of_waiting_signals_is_not_lowered_before_they_wait() {
        let limits = vec![Limit { soft: 1, hard: 2 }; 16];
        let record = ResourceLimit { process: TaskId(5), limits };
        let value = |batch: &Batch, call: usize| {
            let offset = usize::try_from(batch.calls[call].arguments[2]).unwrap();
            batch.data[offset..offset + 16].to_vec()
        };
        let last = pending_signals(&record);
        let (first, _) = SetLimits(record).batch(Limit { soft: 3, hard: 50 });
        assert_eq!(value(&first, PENDING), [50_u64, 50].map(u64::to_le_bytes).concat());
        assert_eq!(value(&last, 0), [1_u64, 2].map(u64::to_le_bytes).concat());
    }

    #[test]
    fn limits_are_shown_in_words() {
        assert_eq!(Shown(Limit { soft: 1024, hard: UNLIMITED }).to_string(), "1024 (hard: unlimited)");
    }
}
