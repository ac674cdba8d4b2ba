//! Event descriptors: counters made by eventfd(2).
//!
//! - **Saved**: the counter and whether it is a semaphore.
//! - **Kernel**: `eventfd-count` in `fdinfo` (3.8), `eventfd-semaphore` (6.5; before, all are taken for counters).

use super::opened::{Opened, Walk};
use super::{all, restore};
use crate::error::{Error, Problems, Result, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::fdinfo::Detail;
use crate::records::Records;
use crate::restoring::Restoring;
use rustix::event::EventfdFlags;
use vckpt_image_format::Image;
use vckpt_image_format::record::event_descriptor::EventDescriptor;

/// Whether it is an event descriptor.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("eventfd")
}

/// Gives a record for each.
///
/// # Errors
/// If the kernel does not tell the counter.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        let Detail::Event { count, semaphore } = opened.info.detail else {
            problems.push(opened.refuse(code::PROC, "the kernel does not tell the state of an eventfd"));
            continue;
        };
        let semaphore = semaphore.unwrap_or(false);
        records.push(EventDescriptor { description: opened.description.clone(), count, semaphore });
    }
    problems.finish()
}

/// Adds a step for each.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<EventDescriptor>(image)? {
        plan.action(Stage::Descriptors, MakeEvent(record));
    }
    Ok(())
}

/// Makes an eventfd.
#[derive(Debug)]
struct MakeEvent(EventDescriptor);

impl Action for MakeEvent {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let failed =
            |errno: rustix::io::Errno| Error::system(code::DESCRIPTOR_RESTORE, "making an eventfd", errno);
        let semaphore = if self.0.semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | semaphore;
        let made = rustix::event::eventfd(0, flags).map_err(failed)?;
        if self.0.count != 0 {
            rustix::io::write(&made, &self.0.count.to_ne_bytes()).map_err(failed)?;
        }
        restore::keep(restoring, &self.0.description, made)
    }
}
