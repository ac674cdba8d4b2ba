//! Planning processes: in which order they are made, and what each does on the way.

use super::make::{Birth, MakeProcesses, SetValue};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::memory::plan::{early, memories};
use crate::plan::{Plan, Stage};
use crate::stub::batch::Batch;
use std::collections::BTreeSet;
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_status::{ProcessStatus, State};

/// Adds the making of all processes and threads, and the state of each process.
///
/// # Errors
/// Sessions and groups that can't be rebuilt, all at once.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let processes = crate::image::all::<Process>(image)?;
    let states = crate::image::all::<ProcessStatus>(image)?;
    let mut memories = memories(image)?;
    let early: BTreeSet<TaskId> = early(&memories).into_iter().collect();
    memories.retain(|process, _| early.contains(process));
    let mut problems = Problems::new();
    let mut births = Vec::new();
    problems.take(nothing_shared(&processes));
    for process in &processes {
        let status = states.iter().find(|status| status.process == process.id);
        births.extend(problems.take(birth(process, &processes, status)));
    }
    problems.finish()?;
    plan.action(
        Stage::Tasks,
        MakeProcesses { births, outer_session: outer_session(&processes), early: memories },
    );
    for process in &processes {
        state(process, plan);
    }
    Ok(())
}

/// Refuses images in which two processes share what only the threads of one can share today.
fn nothing_shared(processes: &[Process]) -> Result<()> {
    let living = || processes.iter().filter_map(|process| process.living.as_ref());
    let (mut memories, mut tables, mut contexts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let distinct = living().all(|living| {
        memories.insert(living.memory)
            && tables.insert(living.descriptor_table)
            && contexts.insert(living.file_system_context)
    });
    if distinct {
        Ok(())
    } else {
        Err(Error::new(code::SHARED_BETWEEN_PROCESSES, "two processes of the image share what is theirs"))
    }
}

/// How a process comes into the world.
fn birth(process: &Process, all: &[Process], status: Option<&ProcessStatus>) -> Result<Birth> {
    let find = |id: u32| all.iter().find(|other| other.id.0 == id);
    let shape = |what: &str| {
        Err(Error::new(code::SESSION_SHAPE, what).about(Subject::task(process.id.0, &process.command)))
    };
    let parent = process.parent.and_then(|parent| find(parent.0));
    let founds_session = process.session == process.id.0;
    let before_parents_session = match parent {
        Some(parent) if !founds_session && process.session != parent.session => {
            // It was born before its parent founded a session of its own: its session is what the parent had then.
            let inherited = parent.parent.and_then(|grandparent| find(grandparent.0));
            let had = inherited.map_or_else(|| outside(all), |grandparent| Some(grandparent.session));
            if parent.session != parent.id.0 || had != Some(process.session) {
                return shape("its session was founded by a process that is not in the tree any more");
            }
            true
        }
        _ => false,
    };
    let group = process.process_group;
    let joins_group =
        if group == process.id.0 || find(group).is_some_and(|leader| leader.session == process.session) {
            (!founds_session).then_some(group)
        } else if Some(group) == all.first().map(|root| root.process_group) {
            // The group of the root, which is led from outside: that of whoever restores.
            None
        } else {
            return shape("its process group is led by a process that has ended");
        };
    let (zombie, stopped) = match status.map(|status| status.state) {
        Some(State::Zombie { status }) => (Some(status), None),
        Some(State::Stopped { signal }) => (None, Some(signal.cast_signed())),
        Some(State::Running) | None => (None, None),
    };
    Ok(Birth {
        id: process.id,
        parent: process.parent,
        exit_signal: process.exit_signal,
        threads: process.living.as_ref().map(|living| living.threads.clone()).unwrap_or_default(),
        founds_session,
        before_parents_session,
        joins_group,
        zombie,
        stopped,
        stop_untold: status.is_some_and(|status| status.stop_untold),
    })
}

/// The session of the root, if its leader is not in the tree but also led the root's group: then a process can be made
/// that leads both again.
fn outer_session(all: &[Process]) -> Option<u32> {
    let root = all.first()?;
    outside(all)
        .filter(|&session| session == root.process_group && all.iter().all(|other| other.id.0 != session))
}

/// The session of the root, if it is led from outside of the tree.
fn outside(all: &[Process]) -> Option<u32> {
    let root = all.first()?;
    (root.session != root.id.0).then_some(root.session)
}

/// What a process sets about itself.
fn state(process: &Process, plan: &mut Plan) {
    let Some(living) = &process.living else { return };
    let mut batch = Batch::new();
    batch.must("setting the personality", libc::SYS_personality, [living.personality.into()]);
    let reaper = u32::from(living.child_subreaper);
    let arguments = [libc::PR_SET_CHILD_SUBREAPER.into(), reaper.into(), 0.into(), 0.into(), 0.into()];
    batch.must("setting the subreaper", libc::SYS_prctl, arguments);
    let disabled = living.huge_pages_disabled;
    // Behind the first bit are the flags that go with it.
    let (value, flags) = (disabled & 1, disabled & !1);
    let arguments = [libc::PR_SET_THP_DISABLE.into(), value.into(), flags.into(), 0.into(), 0.into()];
    batch.must("setting the use of huge pages", libc::SYS_prctl, arguments);
    plan.batch(Stage::TaskState, process.id, "process", batch);
    let score = living.oom_score_adjustment.to_string();
    let set = |file, shown, written| SetValue { process: process.id, file, shown, written };
    plan.action(Stage::TaskState, set("oom_score_adj", score.clone(), score));
    if let Some(filter) = living.core_dump_filter {
        plan.action(
            Stage::TaskState,
            set("coredump_filter", format!("{filter:08x}"), format!("{filter:#x}")),
        );
    }
    // Changing credentials clears this, so it comes after them. 2 (readable by root only) can't be asked for.
    let mut batch = Batch::new();
    let dumpable = living.dumpable.min(1);
    let arguments = [libc::PR_SET_DUMPABLE.into(), dumpable.into(), 0.into(), 0.into(), 0.into()];
    batch.must("setting dumpable", libc::SYS_prctl, arguments);
    plan.batch(Stage::Timers, process.id, "process", batch);
}
