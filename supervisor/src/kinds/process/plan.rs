//! Planning processes: in which order they are made, and what each does on the way.

use super::ended::Remains;
use super::family::{Family, Places};
use super::groups::Groups;
use super::make::{Birth, MakeProcesses, Member};
use super::sessions;
use super::values::{SetValues, Value};
use crate::error::{Problems, Result};
use crate::kinds::memory::plan::{early, memories};
use crate::plan::{Plan, Stage};
use crate::stub::batch::Batch;
use std::collections::{BTreeMap, BTreeSet};
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_status::{ProcessStatus, State};

/// The component of the processor's state that has to be asked for: the tiles of AMX.
pub const TILES: u64 = 1 << 18;
/// `ARCH_REQ_XCOMP_PERM`.
const REQUEST_COMPONENT: u32 = 0x1023;

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
    let births = births(&processes, &states)?.0;
    let adoptions = sessions::adoptions(&births, &processes)?;
    let groups = Groups::new(&processes).without_leaders(&processes);
    plan.action(
        Stage::Tasks,
        MakeProcesses {
            births,
            adoptions,
            groups,
            outer_session: outer_session(&processes),
            early: memories,
        },
    );
    plan.action(Stage::TaskState, SetValues(processes.iter().flat_map(values).collect()));
    for process in &processes {
        state(process, plan);
    }
    Ok(())
}

/// How all processes come into the world, and where their puppets are.
///
/// # Errors
/// Shapes that can't be rebuilt, all at once.
pub fn births(processes: &[Process], states: &[ProcessStatus]) -> Result<(Vec<Birth>, Places)> {
    let mut problems = Problems::new();
    let mut births: Vec<Birth> = Vec::new();
    let mut family = Family::new(processes);
    let groups = Groups::new(processes);
    let states: BTreeMap<TaskId, &ProcessStatus> =
        states.iter().map(|status| (status.process, status)).collect();
    for process in processes {
        let status = states.get(&process.id).copied();
        let birth = birth(process, &family, groups.joins(process), status);
        births.extend(problems.take(family.descend(birth, process)));
    }
    problems.finish()?;
    let makers: BTreeSet<TaskId> = births.iter().filter_map(|birth| birth.maker).collect();
    for birth in &mut births {
        birth.others_early = birth.others.iter().any(|other| makers.contains(&other.id));
    }
    Ok((births, family.places))
}

/// How a process comes into the world.
fn birth(
    process: &Process,
    family: &Family<'_>,
    joins_group: Option<u32>,
    status: Option<&ProcessStatus>,
) -> Birth {
    let parent = process.parent.and_then(|parent| family.find(parent));
    let founds_session = process.session == process.id.0;
    // Its parent, and that one's session, came by the end of another process.
    let mut adopted = false;
    let before_parents_session = match parent {
        Some(parent) if !founds_session && process.session != parent.session => {
            // It was born before its parent founded a session of its own: its session is what the parent had then.
            let inherited = parent.parent.and_then(|grandparent| family.find(grandparent));
            let had = inherited.map_or_else(|| family.outside, |grandparent| Some(grandparent.session));
            let before = parent.session == parent.id.0 && had == Some(process.session);
            adopted = !before;
            before
        }
        _ => false,
    };
    let (zombie, stopped) = match status.map(|status| status.state) {
        Some(State::Zombie { status, user, group, capabilities }) => {
            (Some(Remains { status, user, group, capabilities, command: process.command.clone() }), None)
        }
        Some(State::Stopped { signal }) => (None, Some(signal.cast_signed())),
        Some(State::Running) | None => (None, None),
    };
    Birth {
        leader: Member { id: process.id, slot: 0, socket: 0 },
        others: Vec::new(),
        others_early: false,
        parent: process.parent,
        maker: None,
        flags: 0,
        exit_signal: process.exit_signal,
        founds_session,
        before_parents_session,
        adopted,
        joins_group,
        zombie,
        stopped,
        stop_untold: status.is_some_and(|status| status.stop_untold),
        continue_untold: status.is_some_and(|status| status.continue_untold),
    }
}

/// The session of the root, if its leader is not in the tree but also led the root's group: then a process can be made
/// that leads both again.
fn outer_session(all: &[Process]) -> Option<u32> {
    let root = all.first()?;
    outside(all)
        .filter(|&session| session == root.process_group && all.iter().all(|other| other.id.0 != session))
}

/// The session of the root, if it is led from outside of the tree.
pub(super) fn outside(all: &[Process]) -> Option<u32> {
    let root = all.first()?;
    (root.session != root.id.0).then_some(root.session)
}

/// What this program sets about a process.
fn values(process: &Process) -> Vec<Value> {
    let Some(living) = &process.living else { return Vec::new() };
    let score = living.oom_score_adjustment.to_string();
    let value = |file, shown, written| Value { process: process.id, file, shown, written };
    let mut values = vec![value("oom_score_adj", score.clone(), score)];
    let filter = living.core_dump_filter;
    values.extend(
        filter.map(|filter| value("coredump_filter", format!("{filter:08x}"), format!("{filter:#x}"))),
    );
    values
}

/// What a process sets about itself.
fn state(process: &Process, plan: &mut Plan) {
    let Some(living) = &process.living else { return };
    let mut batch = Batch::new();
    let reaper = u32::from(living.child_subreaper);
    let arguments = [libc::PR_SET_CHILD_SUBREAPER.into(), reaper.into(), 0.into(), 0.into(), 0.into()];
    batch.must("setting the subreaper", libc::SYS_prctl, arguments);
    let disabled = living.huge_pages_disabled;
    // Behind the first bit are the flags that go with it.
    let (value, flags) = (disabled & 1, disabled & !1);
    let arguments = [libc::PR_SET_THP_DISABLE.into(), value.into(), flags.into(), 0.into(), 0.into()];
    batch.must("setting the use of huge pages", libc::SYS_prctl, arguments);
    for bit in (0..32).map(|number| 1_u32 << number).filter(|bit| living.memory_barriers & bit != 0) {
        batch.must("registering memory barriers", libc::SYS_membarrier, [bit.into(), 0.into(), 0.into()]);
    }
    // What needs no permission can be used by everybody.
    if living.permitted_components & TILES != 0 {
        let arguments = [REQUEST_COMPONENT.into(), TILES.trailing_zeros().into()];
        batch.must("asking for the use of tiles", libc::SYS_arch_prctl, arguments);
    }
    plan.batch(Stage::TaskState, process.id, "process", batch);
    // Changing credentials clears this, so it comes after them. 2 (readable by root only) can't be asked for.
    let mut batch = Batch::new();
    let dumpable = living.dumpable.min(1);
    let arguments = [libc::PR_SET_DUMPABLE.into(), dumpable.into(), 0.into(), 0.into(), 0.into()];
    batch.must("setting dumpable", libc::SYS_prctl, arguments);
    // All memory is there, and so are all processes with that memory, who set it again.
    if living.deny_write_execute != 0 {
        let arguments =
            [libc::PR_SET_MDWE.into(), living.deny_write_execute.into(), 0.into(), 0.into(), 0.into()];
        batch.must("denying executable memory", libc::SYS_prctl, arguments);
    }
    plan.batch(Stage::Timers, process.id, "process", batch);
}
