//! The resource kinds: one folder each, with both directions in it. This list is the only place that names them all.
//!
//! A kind looks at the frozen tree and gives records ([`KindEntry::observe`]), and turns records into steps
//! ([`KindEntry::plan`]). What a step does stands in the same folder.

pub mod alarm;
pub mod credentials;
pub mod resource_limit;
pub mod schedule;
pub mod signal;

use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::plan::Plan;
use crate::records::Records;
use vckpt_image_format::Record;
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
    // Observes the timers too, so it comes before what takes time.
    KindEntry { name: "signal", observe: signal::observe::observe, plan: signal::restore::plan },
    KindEntry { name: "alarm", observe: alarm::observe::observe, plan: alarm::restore::plan },
    KindEntry { name: "schedule", observe: schedule::observe::observe, plan: schedule::restore::plan },
    KindEntry {
        name: "resource_limit",
        observe: resource_limit::observe::observe,
        plan: resource_limit::restore::plan,
    },
    // Takes rights away: the last of its stage.
    KindEntry {
        name: "credentials",
        observe: credentials::observe::observe,
        plan: credentials::restore::plan,
    },
];

/// Every record of a kind in an image.
///
/// # Errors
/// [`code::IMAGE_BAD`] if one can't be decoded.
pub(crate) fn all<R: Record>(image: &Image) -> Result<Vec<R>> {
    image.all().map_err(|error| Error::new(code::IMAGE_BAD, "reading the image").because(error))
}
