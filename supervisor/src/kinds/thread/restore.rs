//! Planning threads: what each sets about itself before it gets its registers.

use super::observe::{DEFAULT_FAILURE, SPECULATION};
use super::release::Release;
use crate::error::Result;
use crate::kinds::process::plan::TILES;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::collections::BTreeMap;
use vckpt_image_format::Text;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::lightweight_process::LightweightProcess;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_map::Source;
use vckpt_image_format::record::signal::Signal;
use vckpt_parasite::protocol::operation;

/// `PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC`.
const RESTRICTED: u32 = 4 | 8 | 16;
/// `PR_SET_SPECULATION_CTRL`.
const SET_SPECULATION: i32 = 53;
/// Where the extended state says which of its components are in use (`XSTATE_BV`).
const USED_COMPONENTS: usize = 512;
/// `ARCH_SET_CPUID`.
const SET_CPUID: i32 = 0x1012;

/// Takes the time stamp counter, the identification of the processor, and ways of speculation from a thread.
#[derive(Debug)]
struct Restrict(LightweightProcess);

impl Restrict {
    fn is_needed(thread: &LightweightProcess) -> bool {
        thread.time_stamp_counter > 1
            || thread.identification_denied
            || thread.speculation.iter().any(|value| value & RESTRICTED != 0)
    }
}

impl Action for Restrict {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let thread = &self.0;
        let mut batch = Batch::new();
        let mut calls = Vec::new();
        for (kind, value) in SPECULATION.into_iter().zip(thread.speculation) {
            let wanted = value & RESTRICTED;
            if wanted != 0 {
                let arguments = [SET_SPECULATION.into(), kind.into(), wanted.into(), 0.into(), 0.into()];
                calls.push(batch.call("restricting speculation", libc::SYS_prctl, arguments));
            }
        }
        if thread.time_stamp_counter > 1 {
            let arguments = [libc::PR_SET_TSC.into(), thread.time_stamp_counter.into()];
            batch.must("taking the time stamp counter", libc::SYS_prctl, arguments);
        }
        let denial = thread.identification_denied.then(|| {
            let arguments = [SET_CPUID.into(), 0.into()];
            batch.call("denying CPUID", libc::SYS_arch_prctl, arguments)
        });
        let outcome = restoring.run(thread.id, &batch)?;
        if let Some(Err(errno)) = denial.map(|call| outcome.get(call)) {
            let line = format!("thread {}: it may identify this processor (CPUID): {errno}", thread.id);
            restoring.degraded.push(line);
        }
        if let Some(errno) = calls.into_iter().find_map(|call| outcome.get(call).err()) {
            let line =
                format!("thread {}: this kernel does not restrict its speculation: {errno}", thread.id);
            restoring.degraded.push(line);
        }
        Ok(())
    }
}

/// Adds the state of all threads, and the release.
///
/// # Errors
/// [`code::IMAGE_BAD`](crate::error::code::IMAGE_BAD).
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let threads = crate::image::all::<LightweightProcess>(image)?;
    for thread in &threads {
        plan.batch(Stage::TaskState, thread.id, "thread", state(thread));
        if uses_tiles(thread) {
            // Its process has the permission by now. The kernel gives a thread room for tiles when it uses one, and takes
            // none from ptrace before.
            let mut batch = Batch::new();
            batch.operation("using tiles", operation::TILES, []);
            plan.batch(Stage::Timers, thread.id, "thread", batch);
        }
        if Restrict::is_needed(thread) {
            plan.action(Stage::Timers, Restrict(thread.clone()));
        }
        if thread.parent_death_signal != 0 {
            // Changing credentials clears this, so it comes after them.
            let mut batch = Batch::new();
            let arguments = [libc::PR_SET_PDEATHSIG.into(), thread.parent_death_signal.into()];
            batch.must("setting the death signal", libc::SYS_prctl, arguments);
            plan.batch(Stage::Timers, thread.id, "thread", batch);
        }
    }
    for process in crate::image::all::<Process>(image)? {
        if process.living.is_some_and(|living| living.ended_leader.is_some()) {
            let mut batch = Batch::new();
            name(&mut batch, &process.command);
            plan.batch(Stage::TaskState, process.id, "first thread", batch);
        }
    }
    let mut vdso = BTreeMap::new();
    for (memory, (_, mappings)) in crate::kinds::memory::plan::maps(image)? {
        let own = mappings
            .iter()
            .find(|mapping| matches!(&mapping.source, Source::Kernel { name } if name == "[vdso]"));
        vdso.extend(own.map(|mapping| (memory, mapping.start)));
    }
    let signals = crate::image::all::<Signal>(image)?;
    let masks = signals
        .iter()
        .flat_map(|signal| &signal.threads)
        .map(|thread| (thread.thread, thread.mask))
        .collect();
    plan.action(Stage::Release, Release { threads, vdso, masks });
    Ok(())
}

/// Whether there is something in tiles of its extended state.
fn uses_tiles(thread: &LightweightProcess) -> bool {
    let used = thread.xstate.get(USED_COMPONENTS..USED_COMPONENTS + 8).and_then(|word| word.try_into().ok());
    used.is_some_and(|word| u64::from_le_bytes(word) & TILES != 0)
}

fn name(batch: &mut Batch, name: &Text) {
    let mut name = name.0.clone();
    name.truncate(15);
    name.push(0);
    let name = batch.data(&name);
    batch.must("setting the name", libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
}

fn state(thread: &LightweightProcess) -> Batch {
    let mut batch = Batch::new();
    name(&mut batch, &thread.name);
    batch.must("setting the tid address", libc::SYS_set_tid_address, [thread.clear_child_tid.into()]);
    let (head, length) = thread.robust_list;
    if head != 0 {
        batch.must("setting the robust list", libc::SYS_set_robust_list, [head.into(), length.into()]);
    }
    batch.must("setting the personality", libc::SYS_personality, [thread.personality.into()]);
    if thread.memory_failure != DEFAULT_FAILURE {
        let (option, set) = (libc::PR_MCE_KILL.into(), libc::PR_MCE_KILL_SET.into());
        let arguments = [option, set, thread.memory_failure.into(), 0.into(), 0.into()];
        batch.must("setting the end by failing memory", libc::SYS_prctl, arguments);
    }
    if let Some(rseq) = thread.rseq {
        let arguments = [rseq.address.into(), rseq.size.into(), 0.into(), rseq.signature.into()];
        batch.must("registering restartable sequences", libc::SYS_rseq, arguments);
    }
    batch
}
