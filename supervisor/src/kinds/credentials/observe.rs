//! Reads the credentials of each thread.

use super::credentials;
use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess, run_in_all};
use crate::proc::{read, status};
use crate::records::Records;
use crate::stub::batch::{Argument, Batch};
use vckpt_image_format::record::credentials::Credentials;

/// Gives the records of credentials.
///
/// # Errors
/// Whatever the stub or `/proc` says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for process in frozen.living() {
        let subject = process.subject();
        let record = observe_process(process).map_err(|error| error.about(subject));
        if let Some(record) = problems.take(record) {
            records.push(record);
        }
    }
    problems.finish()
}

fn observe_process(process: &mut FrozenProcess) -> Result<Credentials> {
    let mut batch = Batch::new();
    let option = Argument::from(libc::PR_GET_SECUREBITS);
    let secure_bits = batch.must("reading the secure bits", libc::SYS_prctl, [option]);
    let mut threads = Vec::new();
    let outcomes = run_in_all(&mut process.threads, &batch)?;
    for (thread, outcome) in process.threads.iter().zip(outcomes) {
        let bits = outcome.get(secure_bits).unwrap_or(0);
        let status = status::parse(&read::file(process.pid, &format!("task/{}/status", thread.tid))?)?;
        threads.push(credentials(thread.id, status, u32::try_from(bits).unwrap_or(0)));
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
