//! Process descriptors: made by `pidfd_open(2)` or `clone(2)`.
//!
//! - **Saved**: for which process or thread of the tree; that the process has ended and was waited for.
//! - **Refused**: those of processes outside of the tree.
//! - **Not saved**: with which status a process that is gone has ended (`PIDFD_GET_INFO`).
//! - **Kernel**: `Pid` in `fdinfo` (5.3).
//!
//! One whose process is gone is made of a process that is started for it and ended.

use super::opened::{Opened, Walk};
use super::{all, restore};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::fdinfo::Detail;
use crate::records::Records;
use crate::restoring::Restoring;
use crate::sys::process;
use vckpt_image_format::Image;
use vckpt_image_format::record::process_descriptor::ProcessDescriptor;

/// `PIDFD_NONBLOCK` and `PIDFD_THREAD`: what `pidfd_open(2)` takes.
const FLAGS: u32 = (libc::O_NONBLOCK | libc::O_EXCL).cast_unsigned();

/// Whether it is a pidfd.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("pidfd")
}

/// Gives a record for each.
///
/// # Errors
/// Those of processes outside of the tree.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        let Detail::Process { pid } = opened.info.detail else {
            problems.push(opened.refuse(code::PROC, "the kernel does not tell the process of a pidfd"));
            continue;
        };
        let task = walk.frozen.virtual_id(pid);
        if task.is_none() && pid != -1 {
            let what = format!("a descriptor of process {pid}, which is outside of the dumped tree");
            problems.push(
                opened
                    .refuse(code::DESCRIPTOR_KIND, what)
                    .hint("dump a process above both, or close the pidfd before the dump"),
            );
            continue;
        }
        records.push(ProcessDescriptor { description: opened.description.clone(), task });
    }
    problems.finish()
}

/// Adds a step for each.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<ProcessDescriptor>(image)? {
        plan.action(Stage::Descriptors, OpenProcess(record));
    }
    Ok(())
}

/// Opens a pidfd.
#[derive(Debug)]
struct OpenProcess(ProcessDescriptor);

impl Action for OpenProcess {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let flags = self.0.description.flags & FLAGS;
        let open = |pid: i32| {
            process::pidfd_open_with(pid, flags).map_err(|errno| {
                Error::system(code::DESCRIPTOR_RESTORE, "opening a pidfd", errno)
                    .about(Subject { task: self.0.task.map(|task| task.0), ..Subject::default() })
            })
        };
        let made = match self.0.task {
            // A process that has ended has no puppet any more, but its ID is taken until it is waited for.
            Some(task) => match restoring.zombies.get(&task) {
                Some(&pid) => open(pid)?,
                None => open(restoring.system_id(task)?)?,
            },
            None => restoring.with_mortal(open)?,
        };
        restore::keep(restoring, &self.0.description, made)
    }
}
