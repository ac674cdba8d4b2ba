//! Observing processes.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::read;
use crate::records::Records;
use crate::stub::batch::Batch;
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_status::{ProcessStatus, State};
use vckpt_image_format::record::signal::SIGINFO_LENGTH;
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
    }
    for index in 0..frozen.processes.len() {
        if let Some(status) = problems.take(status(frozen, index)) {
            records.push(status);
        }
    }
    problems.finish()
}

/// The state of a process; if it is stopped, its parent is asked whether it knows.
fn status(frozen: &mut Frozen, index: usize) -> Result<ProcessStatus> {
    let (before, rest) = frozen.processes.split_at_mut(index);
    let Some(process) = rest.first() else {
        return Err(Error::new(code::INTERNAL, "a process that is not in the tree"));
    };
    let mut status = ProcessStatus { process: process.id, state: process.state, stop_untold: false };
    let parent = before.iter_mut().find(|other| Some(other.id) == process.parent);
    if let (State::Stopped { .. }, Some(parent)) = (process.state, parent) {
        let mut batch = Batch::new();
        let information = batch.room(SIGINFO_LENGTH);
        let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
        let arguments =
            [libc::P_PID.into(), process.id.0.into(), information.into(), options.into(), 0.into()];
        batch.must("asking for the stop of a child", libc::SYS_waitid, arguments);
        status.stop_untold = parent.run(&batch)?.half_word(information, 0) != 0;
    }
    Ok(status)
}

fn living(process: &mut FrozenProcess) -> Result<Living> {
    let mut batch = Batch::new();
    let reaper = batch.room(8);
    let dumpable = batch.must("asking for dumpable", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]);
    let arguments = [libc::PR_GET_CHILD_SUBREAPER.into(), reaper.into()];
    batch.must("asking for the subreaper", libc::SYS_prctl, arguments);
    let personality =
        batch.must("asking for the personality", libc::SYS_personality, [0xffff_ffff_u32.into()]);
    let huge_pages = [libc::PR_GET_THP_DISABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    let huge_pages = batch.must("asking for huge pages", libc::SYS_prctl, huge_pages);
    let outcome = process.run(&batch)?;
    let number = |result: std::result::Result<u64, _>| {
        result.ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    };
    let adjustment = read::file(process.pid, "oom_score_adj")?;
    let adjustment = String::from_utf8_lossy(&adjustment).trim().parse().unwrap_or(0);
    let core_dump_filter = read::file(process.pid, "coredump_filter").ok();
    let core_dump_filter =
        core_dump_filter.and_then(|text| u32::from_str_radix(String::from_utf8_lossy(&text).trim(), 16).ok());
    Ok(Living {
        memory: MemoryId(process.index),
        descriptor_table: DescriptorTableId(process.index),
        file_system_context: FileSystemContextId(process.index),
        threads: process.threads.iter().map(|thread| thread.id).collect(),
        personality: number(outcome.get(personality)),
        dumpable: number(outcome.get(dumpable)),
        child_subreaper: outcome.half_word(reaper, 0) != 0,
        oom_score_adjustment: adjustment,
        core_dump_filter,
        huge_pages_disabled: number(outcome.get(huge_pages)),
    })
}
