//! Asks each process for its limits.

use super::LENGTH;
use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::records::Records;
use crate::stub::batch::{Argument, Batch};
use vckpt_image_format::record::resource_limit::{Limit, NAMES, ResourceLimit};

/// Gives the records of limits.
///
/// # Errors
/// Whatever the stub says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for process in frozen.living() {
        if let Some(record) = problems.take(observe_process(process)) {
            records.push(record);
        }
    }
    problems.finish()
}

fn observe_process(process: &mut FrozenProcess) -> Result<ResourceLimit> {
    let mut batch = Batch::new();
    let ask = |number: usize| {
        let limit = batch.room(LENGTH);
        let arguments = [Argument::value(0), number.into(), Argument::value(0), limit.into()];
        batch.must("reading a limit", libc::SYS_prlimit64, arguments);
        limit
    };
    let questions: Vec<_> = (0..NAMES.len()).map(ask).collect();
    let outcome = process.run(&batch)?;
    let limit = |data| Limit { soft: outcome.word(data, 0), hard: outcome.word(data, 1) };
    Ok(ResourceLimit { process: process.id, limits: questions.into_iter().map(limit).collect() })
}
