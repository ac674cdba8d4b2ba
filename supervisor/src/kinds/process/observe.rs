//! Observing processes.

use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::read;
use crate::records::Records;
use crate::stub::batch::{Batch, CallIndex, Data, Outcome};
use std::collections::{HashMap, HashSet};
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_status::{ProcessStatus, State};
use vckpt_image_format::record::signal::SIGINFO_LENGTH;
use vckpt_image_format::{DescriptorTableId, FileSystemContextId, MemoryId, TaskId};

/// `MEMBARRIER_CMD_GET_REGISTRATIONS` (Linux 6.3).
const MEMBARRIER_GET_REGISTRATIONS: u32 = 1 << 9;

/// For how many children a parent is asked at a time.
const CHILDREN_A_BATCH: usize = 128;

/// `ARCH_GET_XCOMP_PERM` (Linux 5.16).
const GET_PERMITTED_COMPONENTS: u32 = 0x1022;

/// Adds the records of all processes.
///
/// # Errors
/// What the kernel would not tell.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut all = Vec::new();
    let mut living = living(frozen).into_iter();
    problems.take(super::segments::refuse(frozen));
    for process in &frozen.processes {
        let living =
            if process.threads.is_empty() { None } else { living.next().and_then(|one| problems.take(one)) };
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
    problems.take(states(frozen, records));
    problems.finish()
}

/// Adds the states of all processes. Parents are asked whether they know that a child has stopped, or goes on.
fn states(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut questions: HashMap<TaskId, Untold> = HashMap::new();
    for process in &frozen.processes {
        let change = match process.state {
            State::Stopped { .. } => libc::WSTOPPED,
            State::Running => libc::WCONTINUED,
            State::Zombie { .. } => continue,
        };
        if let Some(parent) = process.parent {
            questions.entry(parent).or_default().ask(process.id, change);
        }
    }
    let batches =
        |process: &FrozenProcess, some: usize| Some(&questions.get(&process.id)?.batches.get(some)?.0);
    let most = questions.values().map(|question| question.batches.len()).max().unwrap_or(0);
    let mut untold = HashSet::new();
    for some in 0..most {
        let answers = frozen.run_in_some(|process| batches(process, some));
        for (process, answer) in frozen.living().zip(answers) {
            let asked = questions.get(&process.id).and_then(|question| question.batches.get(some));
            let answer = answer.and_then(|answer| problems.take(answer));
            if let (Some((_, asked)), Some(answer)) = (asked, answer) {
                let has_changed =
                    |&&(_, information): &&(TaskId, Data)| answer.half_word(information, 0) != 0;
                untold.extend(asked.iter().filter(has_changed).map(|&(child, _)| child));
            }
        }
    }
    for process in &frozen.processes {
        let is_untold = untold.contains(&process.id);
        let is_stopped = matches!(process.state, State::Stopped { .. });
        records.push(ProcessStatus {
            process: process.id,
            state: process.state,
            stop_untold: is_untold && is_stopped,
            continue_untold: is_untold && !is_stopped,
        });
    }
    problems.finish()
}

/// Questions to a parent: for which children it can still wait.
#[derive(Default)]
struct Untold {
    batches: Vec<(Batch, Vec<(TaskId, Data)>)>,
}

impl Untold {
    fn ask(&mut self, child: TaskId, change: i32) {
        if self.batches.last().is_none_or(|(_, children)| children.len() == CHILDREN_A_BATCH) {
            self.batches.push((Batch::new(), Vec::new()));
        }
        let Some((batch, children)) = self.batches.last_mut() else { return };
        let information = batch.room(SIGINFO_LENGTH);
        let options = change | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let arguments = [libc::P_PID.into(), child.0.into(), information.into(), options.into(), 0.into()];
        batch.must("asking for the stop of a child", libc::SYS_waitid, arguments);
        children.push((child, information));
    }
}

/// What is asked of a process itself.
struct Question {
    batch: Batch,
    reaper: Data,
    dumpable: CallIndex,
    huge_pages: CallIndex,
    denial: CallIndex,
    barriers: CallIndex,
    components: Data,
}

impl Question {
    fn new() -> Self {
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
        Self { batch, reaper, dumpable, huge_pages, denial, barriers, components }
    }
}

/// What only living processes have, in the order of [`Frozen::living`].
fn living(frozen: &mut Frozen) -> Vec<Result<Living>> {
    let question = Question::new();
    let outcomes = frozen.run_in_processes(&question.batch);
    let files = frozen.map_processes(|process| {
        let adjustment = read::file(process.view, "oom_score_adj");
        (adjustment, read::file(process.view, "coredump_filter").ok())
    });
    let living = frozen.living().zip(outcomes).zip(files);
    living
        .map(|((process, outcome), (adjustment, filter))| {
            Ok(question.living(process, &outcome?, &adjustment?, filter.as_deref()))
        })
        .collect()
}

impl Question {
    fn living(
        &self,
        process: &FrozenProcess,
        outcome: &Outcome,
        adjustment: &[u8],
        filter: Option<&[u8]>,
    ) -> Living {
        let number = |call| outcome.get(call).ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        let filter = filter.map(|text| String::from_utf8_lossy(text).into_owned());
        Living {
            memory: MemoryId(process.shares.memory),
            descriptor_table: DescriptorTableId(process.shares.descriptors),
            file_system_context: FileSystemContextId(process.shares.file_system),
            threads: process.threads.iter().map(|thread| thread.id).collect(),
            ended_leader: process.ended_leader,
            handlers_of: None,
            dumpable: number(self.dumpable),
            child_subreaper: outcome.half_word(self.reaper, 0) != 0,
            oom_score_adjustment: String::from_utf8_lossy(adjustment).trim().parse().unwrap_or(0),
            core_dump_filter: filter.and_then(|text| u32::from_str_radix(text.trim(), 16).ok()),
            deny_write_execute: number(self.denial),
            memory_barriers: number(self.barriers),
            permitted_components: outcome.word(self.components, 0),
            huge_pages_disabled: number(self.huge_pages),
        }
    }
}
