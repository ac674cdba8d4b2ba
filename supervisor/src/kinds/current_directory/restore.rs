//! Setting current directories again.

use crate::error::{Error, Result, code};
use crate::kinds::descriptor::all;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::{Image, NamelessFileId, TaskId, Text};

/// Adds the calls for each process.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let contexts = all::<CurrentDirectory>(image)?;
    let mut seen = BTreeSet::new();
    for process in all::<Process>(image)? {
        let Some(living) = &process.living else { continue };
        if !seen.insert(living.file_system_context) {
            continue;
        }
        let context = contexts.iter().find(|context| context.context == living.file_system_context);
        let Some(context) = context else { continue };
        match context.nameless {
            None => {
                let batch = batch(context, |batch| {
                    let directory = batch.data(&path(&context.directory));
                    batch.must("changing to the current directory", libc::SYS_chdir, [directory.into()]);
                });
                plan.batch(Stage::Descriptors, process.id, "setting the current directory", batch);
            }
            Some(id) => {
                plan.action(
                    Stage::Descriptors,
                    EnterRemoved { process: process.id, context: context.clone(), id },
                );
            }
        }
    }
    Ok(())
}

/// The directory first, by the path that this host has; a new root does not change it.
fn batch(context: &CurrentDirectory, enter: impl FnOnce(&mut Batch)) -> Batch {
    let mut batch = Batch::new();
    enter(&mut batch);
    if context.root.0 != b"/" {
        let root = batch.data(&path(&context.root));
        batch.must("changing the root directory", libc::SYS_chroot, [root.into()]);
    }
    batch.must("setting the umask", libc::SYS_umask, [context.umask.into()]);
    batch
}

/// A path with the NUL that ends it.
fn path(path: &Text) -> Vec<u8> {
    [&path.0[..], b"\0"].concat()
}

/// Enters a directory that has no name.
#[derive(Debug)]
struct EnterRemoved {
    process: TaskId,
    context: CurrentDirectory,
    id: NamelessFileId,
}

impl Action for EnterRemoved {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(directory) = restoring.nameless_files.get(&self.id).map(AsRawFd::as_raw_fd) else {
            return Err(Error::new(code::INTERNAL, "a directory without a name was not made"));
        };
        let batch = batch(&self.context, |batch| {
            let directory = batch.descriptor(directory);
            batch.must("changing to the current directory", libc::SYS_fchdir, [directory]);
            batch.must("closing a directory", libc::SYS_close, [directory]);
        });
        restoring.run(self.process, &batch).map(drop)
    }
}
