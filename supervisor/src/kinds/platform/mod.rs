//! Snapshot and platform name (kinds 10 and 12): the image itself, and the host that the application knew.
//!
//! Saved: clocks, boot, what the processor can do, `uname(2)` as the application's UTS namespace shows it. Not restored:
//! the host name (that is the business of UTS namespaces), kernel release and machine (nobody can). What a processor
//! lacks is refused before anything is made.

mod features;

use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::kinds::KindEntry;
use crate::plan::Plan;
use crate::records::Records;
use crate::stub::batch::Batch;
use nix::time::ClockId;
use vckpt_image_format::Text;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::platform_name::PlatformName;
use vckpt_image_format::record::snapshot::Snapshot;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "platform", observe, plan };

/// Bytes of each field of `struct new_utsname`.
const FIELD: usize = 65;

fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let root = frozen.root;
    let Some(process) = frozen.processes.first_mut() else {
        return Err(Error::new(code::INTERNAL, "a frozen tree without a root"));
    };
    let mut batch = Batch::new();
    let room = batch.room(6 * FIELD);
    batch.must("uname", libc::SYS_uname, [room.into()]);
    let mut clock = |id: i32| {
        let room = batch.room(16);
        batch.must("asking for a clock", libc::SYS_clock_gettime, [id.into(), room.into()]);
        room
    };
    let clocks = [clock(libc::CLOCK_MONOTONIC), clock(libc::CLOCK_BOOTTIME)];
    let outcome = process.run(&batch)?;
    let [monotonic, boottime] = clocks.map(|clock| {
        let time = outcome.word(clock, 0) * 1_000_000_000 + outcome.word(clock, 1);
        time.cast_signed()
    });
    let names: Vec<Text> = outcome.bytes(room).chunks_exact(FIELD).map(until_zero).collect();
    let name = |index: usize| names.get(index).cloned().unwrap_or_default();
    let xstate = process.threads.first().map(|leader| leader.agent.xstate()).unwrap_or_default();
    // The first word of the area that XSAVE leaves to software: ptrace puts XCR0 there.
    let components = xstate.get(464..472).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let degraded = records.degraded.clone();
    // The snapshot is the first record of an image.
    records.records.insert(
        0,
        Box::new(Snapshot {
            root,
            command: process.command.as_str().into(),
            writer: env!("CARGO_PKG_VERSION").to_owned(),
            realtime: crate::clocks::now(ClockId::CLOCK_REALTIME),
            monotonic,
            boottime,
            time_namespace: crate::kinds::namespace::has_own_clocks(process.view),
            boot_id: boot_id.trim().to_owned(),
            xstate_features: components,
            processor_features: features::here(),
            xstate_size: u32::try_from(xstate.len()).unwrap_or(u32::MAX),
            dumped_by: nix::unistd::geteuid().as_raw(),
            degraded,
        }),
    );
    records.push(PlatformName {
        node: name(1),
        domain: name(5),
        release: name(2),
        version: name(3),
        machine: name(4),
    });
    Ok(())
}

fn until_zero(field: &[u8]) -> Text {
    field.split(|&byte| byte == 0).next().unwrap_or_default().into()
}

fn plan(image: &Image, _plan: &mut Plan) -> Result<()> {
    let snapshot: Snapshot = crate::image::one(image)?;
    let here = features::here();
    let mut missing = features::component_names(snapshot.xstate_features & !features::components());
    let missing_instructions = features::missing(&snapshot.processor_features, &here);
    missing.extend(missing_instructions.into_iter().map(str::to_owned));
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(code::PROCESSOR_FEATURE, "this processor lacks what the programs of the image may use")
        .because(format!("missing: {}", missing.join(", "))))
}
