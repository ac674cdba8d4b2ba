//! Asks each process for its limits.

use super::LENGTH;
use crate::error::{Problems, Result};
use crate::frozen::Frozen;
use crate::records::Records;
use crate::stub::batch::{Argument, Batch, Data};
use vckpt_image_format::record::resource_limit::{Limit, NAMES, ResourceLimit};

/// Gives the records of limits.
///
/// # Errors
/// Whatever the stub says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let (batch, questions) = ask();
    let outcomes = frozen.run_in_processes(&batch);
    for (process, outcome) in frozen.living().zip(outcomes) {
        if let Some(outcome) = problems.take(outcome) {
            let limit = |&data| Limit { soft: outcome.word(data, 0), hard: outcome.word(data, 1) };
            records
                .push(ResourceLimit { process: process.id, limits: questions.iter().map(limit).collect() });
        }
    }
    problems.finish()
}

/// Asks for all limits.
fn ask() -> (Batch, Vec<Data>) {
    let mut batch = Batch::new();
    let ask = |number: usize| {
        let limit = batch.room(LENGTH);
        let arguments = [Argument::value(0), number.into(), Argument::value(0), limit.into()];
        batch.must("reading a limit", libc::SYS_prlimit64, arguments);
        limit
    };
    let questions = (0..NAMES.len()).map(ask).collect();
    (batch, questions)
}
