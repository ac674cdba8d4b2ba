//! The names of the host, for a tree that lives in a UTS namespace of its own; see uts_namespaces(7).
//!
//! - **Saved**: the names of host and domain.
//! - **Not saved**: what `uname(2)` tells beside them, which is the kernel's.
//! - **Refused**: a tree with several such namespaces ([`namespace`](super::namespace)).
//!
//! The root of a restored tree makes the namespace anew, with its own rights or those of the user namespace in which an
//! ordinary user is restored.

use super::KindEntry;
use crate::error::Result;
use crate::frozen::Frozen;
use crate::kinds::descriptor::all;
use crate::plan::{Action, Plan, Stage};
use crate::proc::read;
use crate::records::Records;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::record::uts_namespace::UtsNamespace;
use vckpt_image_format::{Image, Text};

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "uts", observe, plan };

/// Bytes of each name in `struct new_utsname`, and which of them are the host's and the domain's.
const LENGTH: usize = 65;
const HOST: usize = 1;
const DOMAIN: usize = 5;
const NAMES: usize = 6;

/// Gives the record of a namespace that is not ours.
///
/// # Errors
/// Whatever the stub or `/proc` says.
fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let ours = std::process::id().cast_signed();
    let Some(process) = frozen.living().next() else { return Ok(()) };
    if read::link(process.view, "ns/uts")? == read::link(ours, "ns/uts")? {
        return Ok(());
    }
    let inode = rustix::fs::stat(read::path(process.view, "ns/uts")).map_or(0, |found| found.st_ino);
    let mut batch = Batch::new();
    let room = batch.room(NAMES * LENGTH);
    batch.must("asking for the names of the host", libc::SYS_uname, [room.into()]);
    let outcome = process.run(&batch)?;
    let name = |number: usize| {
        let bytes = outcome.bytes(room).get(number * LENGTH..(number + 1) * LENGTH).unwrap_or_default();
        Text::from(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
    };
    records.push(UtsNamespace { inode, host_name: name(HOST), domain_name: name(DOMAIN) });
    Ok(())
}

fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let Some(namespace) = all::<UtsNamespace>(image)?.into_iter().next() else { return Ok(()) };
    let Snapshot { root, .. } = crate::image::one(image)?;
    plan.action(Stage::Namespaces, OwnNamespace);
    let mut batch = Batch::new();
    for (purpose, number, name) in [
        ("naming the host", libc::SYS_sethostname, &namespace.host_name),
        ("naming the domain", libc::SYS_setdomainname, &namespace.domain_name),
    ] {
        let bytes = batch.data(&name.0);
        batch.must(purpose, number, [bytes.into(), name.0.len().into()]);
    }
    plan.batch(Stage::Descriptors, root, "names of the host", batch);
    Ok(())
}

/// Lets the root begin in a namespace of its own.
#[derive(Debug)]
struct OwnNamespace;

impl Action for OwnNamespace {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        restoring.root_namespaces |= libc::CLONE_NEWUTS.cast_unsigned();
        Ok(())
    }
}
