//! Namespaces: what the kernel shows a process of the host.
//!
//! Kept so far: the clocks of a time namespace; the IDs that a PID namespace gives; by kinds of their own, IPC and UTS
//! namespaces. A restore may put its tree into PID, user and mount namespaces of its own. Not kept, and so refused:
//! network and user namespaces other than our own, and tasks of one tree in different ones. A mount namespace is not kept
//! either, but most are much like our own: that is told.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::KindEntry;
use crate::plan::Plan;
use crate::proc::read;
use crate::records::Records;
use std::ffi::OsString;
use vckpt_image_format::reader::Image;

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "namespace", observe, plan };

/// The namespaces that a tree must share with us: file of `/proc/<pid>/ns`, name for people.
const SHARED_WITH_US: &[(&str, &str)] = &[("net", "network"), ("user", "user")];

/// All that the processes of a tree must share with one another.
const SHARED_BY_ALL: [(&str, &str); 7] = [
    ("net", "network"),
    ("uts", "UTS"),
    ("ipc", "IPC"),
    ("time", "time"),
    ("user", "user"),
    ("pid", "PID"),
    ("mnt", "mount"),
];

fn plan(_image: &Image, _plan: &mut Plan) -> Result<()> {
    Ok(())
}

fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let Some(root) = frozen.processes.first() else { return Ok(()) };
    let ours = std::process::id().cast_signed();
    let restored = was_restored(root);
    for (file, name) in SHARED_WITH_US {
        if namespace(root.view, file) != namespace(ours, file) && !(restored && *file == "user") {
            problems.push(refusal(root, &format!("it is in another {name} namespace than vckpt")));
        }
    }
    if namespace(root.view, "time_for_children") != namespace(root.view, "time") {
        problems.push(refusal(root, "its children are born into another time namespace than its own"));
    }
    if namespace(root.view, "mnt") != namespace(ours, "mnt") && !restored {
        records.degraded.push(format!(
            "{}: its mount namespace is not kept: its files are looked for in that of vckpt restore",
            root.subject()
        ));
    }
    let of_root = SHARED_BY_ALL.map(|(file, _)| namespace(root.view, file));
    let refusals = frozen.map_threads(|process, thread| {
        let others = SHARED_BY_ALL.iter().zip(&of_root);
        let others = others.filter(|((file, _), of_root)| namespace(thread.tid, file) != **of_root);
        let refusal = |((_, name), _): (&(&str, &str), _)| {
            let who = if thread.tid == process.view { "it" } else { "one of its threads" };
            let what = format!("{who} is in another {name} namespace than the first process of its tree");
            refusal(process, &what)
        };
        others.map(refusal).collect::<Vec<_>>()
    });
    refusals.into_iter().flatten().flatten().for_each(|refusal| problems.push(refusal));
    problems.finish()
}

/// Whether a process is in another time namespace than this program.
pub(crate) fn has_own_clocks(pid: i32) -> bool {
    namespace(pid, "time") != namespace(std::process::id().cast_signed(), "time")
}

/// What tells namespaces of a kind apart; none if this kernel has none of the kind.
fn namespace(pid: i32, file: &str) -> Option<OsString> {
    read::link(pid, &format!("ns/{file}")).ok()
}

/// Whether the root is an init of ours or its child, which a restore has put into namespaces like these.
fn was_restored(root: &FrozenProcess) -> bool {
    [root.stat.parent, root.pid].into_iter().any(|pid| {
        read::link(pid, "exe")
            .is_ok_and(|program| program.as_encoded_bytes().starts_with(b"/memfd:vckpt-puppet"))
    })
}

fn refusal(process: &FrozenProcess, what: &str) -> Box<Error> {
    Error::new(code::TASK_STATE, what).hint("namespaces are not supported yet").about(process.subject())
}
