//! Signal descriptors: made by signalfd(2).
//!
//! - **Saved**: the mask. Signals are not in it: they are pending for a thread or process.
//! - **Kernel**: `sigmask` in `fdinfo` (3.8).

use super::opened::{Opened, Walk};
use super::{all, restore};
use crate::error::{Error, Problems, Result, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::fdinfo::Detail;
use crate::records::Records;
use crate::restoring::Restoring;
use vckpt_image_format::Image;
use vckpt_image_format::record::signal_descriptor::SignalDescriptor;

/// Whether it is a signal descriptor.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("signalfd")
}

/// Gives a record for each.
///
/// # Errors
/// If the kernel does not tell the mask.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        let Detail::Signal { mask } = opened.info.detail else {
            problems.push(opened.refuse(code::PROC, "the kernel does not tell the mask of a signalfd"));
            continue;
        };
        records.push(SignalDescriptor { description: opened.description.clone(), mask });
    }
    problems.finish()
}

/// Adds a step for each.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<SignalDescriptor>(image)? {
        plan.action(Stage::Descriptors, MakeSignal(record));
    }
    Ok(())
}

/// Makes a signalfd.
#[derive(Debug)]
struct MakeSignal(SignalDescriptor);

impl Action for MakeSignal {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let made = crate::sys::file::signal_descriptor(self.0.mask)
            .map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "making a signalfd", errno))?;
        restore::keep(restoring, &self.0.description, made)
    }
}
