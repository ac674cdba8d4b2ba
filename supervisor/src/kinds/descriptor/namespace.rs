//! Namespace descriptors: files of `/proc/<pid>/ns`; see namespaces(7).
//!
//! - **Saved**: which namespace of which task; one of this program's own is that of the restore afterwards.
//! - **Refused**: namespaces in which neither a task of the tree nor this program is.

use super::opened::{Opened, Walk};
use super::{all, restore};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::read;
use crate::records::Records;
use crate::restoring::Restoring;
use vckpt_image_format::record::namespace_descriptor::NamespaceDescriptor;
use vckpt_image_format::{Image, TaskId, Text};

/// Files of `/proc/<pid>/ns`. The same namespace may be behind two of them: the first one is enough.
const FILES: &[&str] =
    &["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

/// Whether it is a namespace: its link is its type and number, such as `net:[4026531840]`.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    let link = &opened.link.0;
    let kind = link.split(|&byte| byte == b':').next().unwrap_or_default();
    opened.file_type() == libc::S_IFREG
        && link.get(kind.len()..).is_some_and(|rest| rest.starts_with(b":[") && rest.ends_with(b"]"))
        && FILES.iter().any(|file| file.as_bytes() == kind)
}

/// Gives a record for each.
///
/// # Errors
/// Those that are not to be found again.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for opened in opened {
        let Some((file, task)) = find(walk, opened) else {
            problems.push(
                opened
                    .refuse(code::DESCRIPTOR_KIND, "a namespace in which no process of the dumped tree is")
                    .hint("close the descriptor of the namespace before the dump"),
            );
            continue;
        };
        records.push(NamespaceDescriptor {
            description: opened.description.clone(),
            file: Text::from(file),
            task,
        });
    }
    problems.finish()
}

/// Where it is to be found: a file of a task of the tree, else of this program.
fn find(walk: &Walk<'_>, opened: &Opened) -> Option<(&'static str, Option<TaskId>)> {
    let is_it = |pid: i32, file: &str| {
        rustix::fs::stat(read::path(pid, &format!("ns/{file}")))
            .is_ok_and(|found| (found.st_dev, found.st_ino) == opened.inode())
    };
    let living = walk.frozen.processes.iter().flat_map(|process| &process.threads);
    let tasks = living.map(|thread| (thread.tid, Some(thread.id)));
    let ours = (std::process::id().cast_signed(), None);
    tasks
        .chain([ours])
        .find_map(|(pid, task)| FILES.iter().find(|file| is_it(pid, file)).map(|&file| (file, task)))
}

/// Adds a step for each.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<NamespaceDescriptor>(image)? {
        plan.action(Stage::Descriptors, OpenNamespace(record));
    }
    Ok(())
}

/// Opens a namespace.
#[derive(Debug)]
struct OpenNamespace(NamespaceDescriptor);

impl Action for OpenNamespace {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let pid = match self.0.task {
            Some(task) => restoring.system_id(task)?,
            None => std::process::id().cast_signed(),
        };
        let path = read::path(pid, &format!("ns/{}", self.0.file));
        let made = restore::open(&path, self.0.description.flags).map_err(|errno| {
            Error::system(code::DESCRIPTOR_RESTORE, "opening a namespace", errno)
                .about(Subject::path(path.display()))
        })?;
        restore::keep(restoring, &self.0.description, made)
    }
}
