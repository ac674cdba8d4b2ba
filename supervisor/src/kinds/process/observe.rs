//! Observing processes.

use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::read;
use crate::records::Records;
use crate::stub::batch::Batch;
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_status::ProcessStatus;
use vckpt_image_format::{DescriptorTableId, FileSystemContextId, MemoryId};

/// Adds the records of all processes.
///
/// # Errors
/// What the kernel would not tell.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for process in &mut frozen.processes {
        let living = if process.threads.is_empty() { None } else { problems.take(living(process)) };
        records.push(Process {
            id: process.id,
            parent: process.parent,
            process_group: process.identity.process_group.cast_unsigned(),
            session: process.identity.session.cast_unsigned(),
            command: process.stat.command.as_slice().into(),
            exit_signal: u32::try_from(process.stat.exit_signal).unwrap_or(0),
            living,
        });
        records.push(ProcessStatus { process: process.id, state: process.state });
    }
    problems.finish()
}

fn living(process: &mut FrozenProcess) -> Result<Living> {
    let mut batch = Batch::new();
    let reaper = batch.room(8);
    let dumpable = batch.must("asking for dumpable", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]);
    let arguments = [libc::PR_GET_CHILD_SUBREAPER.into(), reaper.into()];
    batch.must("asking for the subreaper", libc::SYS_prctl, arguments);
    let personality =
        batch.must("asking for the personality", libc::SYS_personality, [0xffff_ffff_u32.into()]);
    let outcome = process.run(&batch)?;
    let number = |result: std::result::Result<u64, _>| {
        result.ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    };
    let adjustment = read::file(process.pid, "oom_score_adj")?;
    let adjustment = String::from_utf8_lossy(&adjustment).trim().parse().unwrap_or(0);
    Ok(Living {
        memory: MemoryId(process.index),
        descriptor_table: DescriptorTableId(process.index),
        file_system_context: FileSystemContextId(process.index),
        threads: process.threads.iter().map(|thread| thread.id).collect(),
        personality: number(outcome.get(personality)),
        dumpable: number(outcome.get(dumpable)),
        child_subreaper: outcome.half_word(reaper, 0) != 0,
        oom_score_adjustment: adjustment,
    })
}
