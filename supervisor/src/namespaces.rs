//! A PID namespace for a restored tree whose IDs are taken here, with an init of ours; for an ordinary user within a
//! user namespace of its own.
//!
//! Not here: the namespaces that the application itself had.

use crate::error::{Error, Result, code};
use crate::stub::batch::{Batch, Data};
use crate::stub::puppet::{Place, Puppet};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getegid, geteuid};
use std::fs;
use vckpt_image_format::TaskId;

/// Starts the init: a puppet in a PID and mount namespace of its own, with its own `/proc`. Also tells what is not as
/// it should be.
///
/// # Errors
/// [`code::PRIVILEGE`] or [`code::HOST_FEATURE`] with the kernel's reason.
pub(crate) fn start_init(place: Place) -> Result<(Puppet, Vec<String>)> {
    let ordinary = !geteuid().is_root();
    let user = if ordinary { libc::CLONE_NEWUSER } else { 0 };
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | user).cast_unsigned();
    let mut init = Puppet::start(TaskId(1), u64::from(flags), &[], place).map_err(|error| {
        Error::new(code::HOST_FEATURE, "making a PID namespace")
            .because(error.why.as_deref().unwrap_or("refused"))
    })?;
    if ordinary {
        map_ids(init.tid, geteuid(), getegid())?;
    }
    let degraded = match mount_proc(&mut init)? {
        None => Vec::new(),
        Some(errno) => vec![format!(
            "/proc shows the processes of the host: mounting a new one failed ({})",
            errno.desc()
        )],
    };
    Ok((init, degraded))
}

/// Gives the new mount namespace a `/proc` of the new PID namespace, of which the old one is told nothing. Gives the
/// reason if it can't be.
fn mount_proc(init: &mut Puppet) -> Result<Option<Errno>> {
    let mut batch = Batch::new();
    let (none, root, folder) = (batch.data(b"none\0"), batch.data(b"/\0"), batch.data(b"/proc\0"));
    let separate = |batch: &mut Batch, path: Data| {
        let propagation = libc::MS_REC | libc::MS_SLAVE;
        let arguments = [none.into(), path.into(), 0.into(), propagation.into(), 0.into()];
        batch.call("separating mounts", libc::SYS_mount, arguments)
    };
    let all = separate(&mut batch, root);
    // A root directory that was only changed to is no mount point, but /proc in it is one.
    let own = separate(&mut batch, folder);
    let outcome = init.run(&batch)?;
    if let (Err(_), Err(errno)) = (outcome.get(all), outcome.get(own)) {
        return Ok(Some(errno));
    }
    let mut batch = Batch::new();
    let (proc, folder) = (batch.data(b"proc\0"), batch.data(b"/proc\0"));
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let arguments = [proc.into(), folder.into(), proc.into(), flags.into(), 0.into()];
    let mount = batch.call("mounting /proc", libc::SYS_mount, arguments);
    Ok(init.run(&batch)?.get(mount).err())
}

/// Maps the own user and group into a new user namespace: all that an ordinary user may.
fn map_ids(pid: i32, user: Uid, group: Gid) -> Result<()> {
    let write = |name: &str, text: String| {
        fs::write(crate::proc::read::path(pid, name), text).map_err(|error| {
            Error::system(code::PRIVILEGE, format!("writing {name} of a user namespace"), error)
        })
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{user} {user} 1"))?;
    write("gid_map", format!("{group} {group} 1"))
}
