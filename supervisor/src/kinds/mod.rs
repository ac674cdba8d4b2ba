//! The resource kinds: one folder each, with both directions in it. This list is the only place that names them all.
//!
//! A kind looks at the frozen tree and gives records ([`KindEntry::observe`]), and turns records into steps
//! ([`KindEntry::plan`]). What a step does stands in the same folder.

pub mod current_directory;
pub mod descriptor;
pub mod file_lock;
pub mod nameless_file;

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
    KindEntry {
        name: "nameless_file",
        observe: nameless_file::observe::observe,
        plan: nameless_file::restore::plan,
    },
    KindEntry {
        name: "current_directory",
        observe: current_directory::observe::observe,
        plan: current_directory::restore::plan,
    },
    KindEntry { name: "descriptor", observe: descriptor::observe::observe, plan: descriptor::plan },
    KindEntry { name: "file_lock", observe: file_lock::observe::nothing, plan: file_lock::restore::plan },
];
