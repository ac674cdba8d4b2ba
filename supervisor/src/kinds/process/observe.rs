//! Observing processes.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::read;
use crate::records::Records;
use crate::stub::batch::Batch;
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_status::{ProcessStatus, State};
use vckpt_image_format::record::signal::SIGINFO_LENGTH;
use vckpt_image_format::{DescriptorTableId, FileSystemContextId, MemoryId, TaskId};

/// `MEMBARRIER_CMD_GET_REGISTRATIONS` (Linux 6.3).
const MEMBARRIER_GET_REGISTRATIONS: u32 = 1 << 9;

/// `ARCH_GET_XCOMP_PERM` (Linux 5.16).
const GET_PERMITTED_COMPONENTS: u32 = 0x1022;

/// Adds the records of all processes.
///
/// # Errors
/// What the kernel would not tell.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut all = Vec::new();
    for process in &mut frozen.processes {
        let living = if process.threads.is_empty() { None } else { problems.take(living(process)) };
        if living.is_some() {
            let subject = process.subject();
            problems.take(super::segments::refuse(process).map_err(|error| error.about(subject)));
        }
        all.push(Process {
            id: process.id,
            parent: process.parent,
            parent_thread: process.parent_thread,
            process_group: process.identity.process_group.cast_unsigned(),
            session: process.identity.session.cast_unsigned(),
            command: process.stat.command.as_slice().into(),
            exit_signal: u32::try_from(process.stat.exit_signal).unwrap_or(0),
            living,
        });
    }
    for (record, process) in all.iter_mut().zip(&frozen.processes) {
        let first =
            usize::try_from(process.shares.handlers).ok().and_then(|first| frozen.processes.get(first));
        if let Some(living) = &mut record.living {
            living.handlers_of = first.map(|first| first.id).filter(|&first| first != process.id);
        }
    }
    // What can't be made again is refused here.
    problems.take(super::family::places(&all));
    if let Some((adopted, _)) = problems.take(super::family::adopted(&all)) {
        let processes = frozen.processes.iter_mut();
        processes.for_each(|process| process.adopted = adopted.contains(&process.id));
    }
    all.into_iter().for_each(|process| records.push(process));
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
    let (id, state) = (process.id, process.state);
    let mut status = ProcessStatus { process: id, state, stop_untold: false, continue_untold: false };
    let parent = before.iter_mut().find(|other| Some(other.id) == process.parent);
    if let Some(parent) = parent {
        match state {
            State::Stopped { .. } => status.stop_untold = is_untold(parent, id, libc::WSTOPPED)?,
            State::Running => status.continue_untold = is_untold(parent, id, libc::WCONTINUED)?,
            State::Zombie { .. } => {}
        }
    }
    Ok(status)
}

/// Whether a process can still wait for a change of its child.
fn is_untold(parent: &mut FrozenProcess, child: TaskId, change: i32) -> Result<bool> {
    let mut batch = Batch::new();
    let information = batch.room(SIGINFO_LENGTH);
    let options = change | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [libc::P_PID.into(), child.0.into(), information.into(), options.into(), 0.into()];
    batch.must("asking for the stop of a child", libc::SYS_waitid, arguments);
    Ok(parent.run(&batch)?.half_word(information, 0) != 0)
}

fn living(process: &mut FrozenProcess) -> Result<Living> {
    let mut batch = Batch::new();
    let reaper = batch.room(8);
    let dumpable = batch.must("asking for dumpable", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]);
    let arguments = [libc::PR_GET_CHILD_SUBREAPER.into(), reaper.into()];
    batch.must("asking for the subreaper", libc::SYS_prctl, arguments);
    let huge_pages = [libc::PR_GET_THP_DISABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    let huge_pages = batch.must("asking for huge pages", libc::SYS_prctl, huge_pages);
    let denial = [libc::PR_GET_MDWE.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    let denial = batch.call("asking for executable memory", libc::SYS_prctl, denial);
    let barriers = batch.call(
        "asking for memory barriers",
        libc::SYS_membarrier,
        [MEMBARRIER_GET_REGISTRATIONS.into(), 0.into(), 0.into()],
    );
    let components = batch.room(8);
    let arguments = [GET_PERMITTED_COMPONENTS.into(), components.into()];
    batch.call("asking for components of the state", libc::SYS_arch_prctl, arguments);
    let outcome = process.run(&batch)?;
    let number = |result: std::result::Result<u64, _>| {
        result.ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    };
    let adjustment = read::file(process.view, "oom_score_adj")?;
    let adjustment = String::from_utf8_lossy(&adjustment).trim().parse().unwrap_or(0);
    let core_dump_filter = read::file(process.view, "coredump_filter").ok();
    let core_dump_filter =
        core_dump_filter.and_then(|text| u32::from_str_radix(String::from_utf8_lossy(&text).trim(), 16).ok());
    Ok(Living {
        memory: MemoryId(process.shares.memory),
        descriptor_table: DescriptorTableId(process.shares.descriptors),
        file_system_context: FileSystemContextId(process.shares.file_system),
        threads: process.threads.iter().map(|thread| thread.id).collect(),
        ended_leader: process.ended_leader,
        handlers_of: None,
        dumpable: number(outcome.get(dumpable)),
        child_subreaper: outcome.half_word(reaper, 0) != 0,
        oom_score_adjustment: adjustment,
        core_dump_filter,
        deny_write_execute: number(outcome.get(denial)),
        memory_barriers: number(outcome.get(barriers)),
        permitted_components: outcome.word(components, 0),
        huge_pages_disabled: number(outcome.get(huge_pages)),
    })
}
