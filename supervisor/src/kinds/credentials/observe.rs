//! Reads the credentials of each thread.

use super::credentials;
use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::status::Status;
use crate::proc::{read, status};
use crate::records::Records;
use crate::stub::batch::{Argument, Batch, CallIndex, Outcome};
use vckpt_image_format::record::credentials::Credentials;

/// Gives the records of credentials.
///
/// # Errors
/// Whatever the stub or `/proc` says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut batch = Batch::new();
    let option = Argument::from(libc::PR_GET_SECUREBITS);
    let secure_bits = batch.must("reading the secure bits", libc::SYS_prctl, [option]);
    let outcomes = frozen.run_in_threads(&batch);
    let told = frozen.map_threads(|process, thread| {
        status::parse(&read::file(process.pid, &format!("task/{}/status", thread.tid))?)
    });
    for ((process, outcomes), told) in frozen.living().zip(outcomes).zip(told) {
        let record = outcomes.and_then(|outcomes| record(process, secure_bits, &outcomes, told));
        let record = record.map_err(|error| error.about(process.subject()));
        if let Some(record) = problems.take(record) {
            records.push(record);
        }
    }
    problems.finish()
}

/// The record of a process, from what its threads answered and what is told of them.
fn record(
    process: &FrozenProcess,
    secure_bits: CallIndex,
    outcomes: &[Outcome],
    told: Vec<Result<Status>>,
) -> Result<Credentials> {
    let mut threads = Vec::new();
    for ((thread, outcome), status) in process.threads.iter().zip(outcomes).zip(told) {
        let bits = outcome.get(secure_bits).unwrap_or(0);
        threads.push(credentials(thread.id, status?, u32::try_from(bits).unwrap_or(0)));
    }
    if process.ended_leader.is_some() {
        // Signals are still sent to it by its rights. It has no secure bits that could be asked for: those of another
        // thread, as the C library keeps them.
        let bits = threads.first().map_or(0, |thread| thread.secure_bits);
        let status = status::parse(&read::file(process.pid, "status")?)?;
        threads.insert(0, credentials(process.id, status, bits));
    }
    Ok(Credentials { process: process.id, threads })
}
