//! Setting current directories again.

use crate::error::Result;
use crate::kinds::descriptor::all;
use crate::plan::{Plan, Stage};
use crate::stub::batch::Batch;
use std::collections::BTreeSet;
use vckpt_image_format::Image;
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::record::process::Process;

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
        if let Some(context) = context {
            plan.batch(Stage::Descriptors, process.id, "setting the current directory", batch(context));
        }
    }
    Ok(())
}

/// The directory first, by the path that this host has; a new root does not change it.
fn batch(context: &CurrentDirectory) -> Batch {
    let mut batch = Batch::new();
    let path = |path: &[u8]| [path, b"\0"].concat();
    let directory = batch.data(&path(&context.directory.0));
    batch.must("changing to the current directory", libc::SYS_chdir, [directory.into()]);
    if context.root.0 != b"/" {
        let root = batch.data(&path(&context.root.0));
        batch.must("changing the root directory", libc::SYS_chroot, [root.into()]);
    }
    batch.must("setting the umask", libc::SYS_umask, [context.umask.into()]);
    batch
}
