//! The resource kinds: one folder each, with both directions in it. This list is the only place that names them all.
//!
//! A kind looks at the frozen tree and gives records ([`KindEntry::observe`]), and turns records into steps
//! ([`KindEntry::plan`]). What a step does stands in the same folder.

pub mod alarm;
pub mod credentials;
pub mod current_directory;
pub mod descriptor;
pub mod file_lock;
pub mod ipc;
pub mod memory;
pub mod nameless_file;
pub mod namespace;
pub mod platform;
pub mod process;
pub mod resource_limit;
pub mod sandbox;
pub mod schedule;
pub mod segment;
pub mod signal;
pub mod thread;
pub mod uts;

use crate::error::Result;
use crate::frozen::Frozen;
use crate::plan::Plan;
use crate::records::Records;
use vckpt_image_format::reader::Image;

/// A kind's two directions.
#[derive(Debug, Clone, Copy)]
pub struct KindEntry {
    /// Its name, as the folder's.
    pub name: &'static str,
    /// Looks at the tree; changes nothing. All problems that it finds are reported at once.
    pub observe: fn(&mut Frozen, &mut Records) -> Result<()>,
    /// Turns the records of the image into steps; makes no system call.
    pub plan: fn(&Image, &mut Plan) -> Result<()>,
}

/// All kinds. Within a stage of a restore their steps run in this order.
pub const KINDS: &[KindEntry] = &[
    // Timers run on while we look, so they come first.
    KindEntry { name: "signal", observe: signal::observe::observe, plan: signal::restore::plan },
    KindEntry { name: "alarm", observe: alarm::observe::observe, plan: alarm::restore::plan },
    namespace::ENTRY,
    uts::ENTRY,
    ipc::ENTRY,
    process::ENTRY,
    thread::ENTRY,
    KindEntry { name: "schedule", observe: schedule::observe::observe, plan: schedule::restore::plan },
    segment::ENTRY,
    KindEntry {
        name: "nameless_file",
        observe: nameless_file::observe::observe,
        plan: nameless_file::restore::plan,
    },
    memory::ENTRY,
    KindEntry {
        name: "current_directory",
        observe: current_directory::observe::observe,
        plan: current_directory::restore::plan,
    },
    KindEntry { name: "descriptor", observe: descriptor::observe::observe, plan: descriptor::plan },
    KindEntry { name: "file_lock", observe: file_lock::observe::nothing, plan: file_lock::restore::plan },
    KindEntry {
        name: "resource_limit",
        observe: resource_limit::observe::observe,
        plan: resource_limit::restore::plan,
    },
    KindEntry { name: "sandbox", observe: sandbox::observe::observe, plan: sandbox::restore::plan },
    // Takes rights away: the last of its stage.
    KindEntry {
        name: "credentials",
        observe: credentials::observe::observe,
        plan: credentials::restore::plan,
    },
    // Puts the snapshot record, which says what is not exact, before all others.
    platform::ENTRY,
];
