//! Gives each thread its credentials.

use super::change::{self, Change, Lacking, members};
use super::credentials;
use crate::error::{Error, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::{id_map, read, status};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex};
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::credentials::{Credentials, ThreadCredentials};

/// Adds the steps for the credentials of every thread.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in crate::image::all::<Credentials>(image)? {
        plan.action(Stage::Credentials, SetCredentials(record));
    }
    Ok(())
}

/// Sets the credentials of the threads of a process.
#[derive(Debug)]
struct SetCredentials(Credentials);

impl Action for SetCredentials {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        for (number, wanted) in self.0.threads.iter().enumerate() {
            let (question, secure_bits) = ask();
            let (thread, wanted) = (wanted.thread, wanted.clone());
            restoring.begin(thread, question, move |restoring, outcome| {
                let has = has(restoring, thread, outcome.get(secure_bits).unwrap_or(0));
                set(restoring, has, &wanted)?;
                if number == 0 { tell_hidden_groups(restoring, &wanted) } else { Ok(()) }
            })?;
        }
        Ok(())
    }

    fn overlaps(&self) -> bool {
        true
    }
}

/// Makes of the credentials that a thread has those that it shall have.
fn set(
    restoring: &mut Restoring<'_>,
    has: Result<ThreadCredentials>,
    wanted: &ThreadCredentials,
) -> Result<()> {
    let subject = Subject { task: Some(wanted.thread.0), ..Subject::default() };
    let has = has.map_err(|error| error.about(subject.clone()))?;
    let lacking = change::lacking(&has, wanted);
    refuse(lacking).map_err(|error| error.about(subject.clone()))?;
    if lacking.bounding != 0 {
        let line = format!(
            "thread {}: programs that it starts can't get {}",
            wanted.thread,
            names(lacking.bounding)
        );
        restoring.degraded.push(line);
    }
    let changes = change::changes(&has, wanted);
    if changes.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    changes.iter().for_each(|change| change.add(&mut batch));
    restoring
        .run(wanted.thread, &batch)
        .map_err(|error| explain(error, &has, wanted, &changes).about(subject.clone()))?;
    verify(restoring, wanted, lacking).map_err(|error| error.about(subject))
}

/// In a user namespace that does not know a group, the process has its rights but is not told its number.
fn tell_hidden_groups(restoring: &mut Restoring<'_>, leader: &ThreadCredentials) -> Result<()> {
    if leader.groups.is_empty() {
        return Ok(());
    }
    let map = id_map::parse(&read::file(restoring.system_id(leader.thread)?, "gid_map")?)?;
    let is_hidden = |group: &&u32| id_map::inside(&map, **group) != Some(**group);
    let hidden: Vec<&u32> = leader.groups.iter().filter(is_hidden).collect();
    if !hidden.is_empty() {
        let process = leader.thread;
        let line =
            format!("process {process}: its groups {hidden:?} still count, but look like others to it");
        restoring.degraded.push(line);
    }
    Ok(())
}

/// The credentials that a puppet has.
fn current(restoring: &mut Restoring<'_>, thread: TaskId) -> Result<ThreadCredentials> {
    let (batch, secure_bits) = ask();
    let bits = restoring.run(thread, &batch)?.get(secure_bits).unwrap_or(0);
    has(restoring, thread, bits)
}

/// What a puppet has to be asked for.
fn ask() -> (Batch, CallIndex) {
    let mut batch = Batch::new();
    let option = Argument::from(libc::PR_GET_SECUREBITS);
    let secure_bits = batch.must("reading the secure bits", libc::SYS_prctl, [option]);
    (batch, secure_bits)
}

/// The credentials of a puppet that has these secure bits.
fn has(restoring: &Restoring<'_>, thread: TaskId, secure_bits: u64) -> Result<ThreadCredentials> {
    let status = status::parse(&read::file(restoring.known_puppet(thread)?.tid, "status")?)?;
    Ok(credentials(thread, status, u32::try_from(secure_bits).unwrap_or(0)))
}

fn refuse(lacking: Lacking) -> Result<()> {
    if lacking.capabilities != 0 {
        let what = format!("it had capabilities that can't be given here: {}", names(lacking.capabilities));
        return Err(Error::new(code::PRIVILEGE, what).hint("run vckpt with these capabilities"));
    }
    if lacking.new_privileges {
        let what = "it could gain rights by starting a program, which is forbidden here (no_new_privs)";
        return Err(Error::new(code::PRIVILEGE, what).hint("run vckpt from a shell without no_new_privs"));
    }
    Ok(())
}

/// What a refused call means.
fn explain(
    error: Box<Error>,
    has: &ThreadCredentials,
    wanted: &ThreadCredentials,
    changes: &[Change],
) -> Box<Error> {
    let Some(change) = changes.iter().find(|change| change.label() == error.what) else { return error };
    let what = match change {
        Change::Groups(groups) => format!("it was in the groups {groups:?}, and here {:?}", has.groups),
        Change::UserIds(_) | Change::FileSystemUser(_) => {
            format!("it ran as user {:?}, and here as {:?}", wanted.user, has.user)
        }
        Change::GroupIds(_) | Change::FileSystemGroup(_) => {
            format!("it ran as group {:?}, and here as {:?}", wanted.group, has.group)
        }
        Change::SecureBits(_) | Change::KeepCapabilities(_) => {
            format!("it had the secure bits {:#x}, and here {:#x}", wanted.secure_bits, has.secure_bits)
        }
        Change::Capabilities(_)
        | Change::DropFromBounding(_)
        | Change::ClearAmbient
        | Change::RaiseAmbient(_)
        | Change::NoNewPrivileges => {
            format!("it had the capabilities {:x?}, and here {:x?}", wanted.capabilities, has.capabilities)
        }
    };
    let why = error.why.unwrap_or_default();
    Error::new(code::PRIVILEGE, what).because(format!("{}: {why}", change.label()))
}

/// Fails if the thread has not become what it shall be: `setfsuid(2)` does not say when it fails, and more rights than
/// it had are never left to it.
fn verify(restoring: &mut Restoring<'_>, wanted: &ThreadCredentials, lacking: Lacking) -> Result<()> {
    let has = current(restoring, wanted.thread)?;
    let mut expected = wanted.clone();
    expected.capabilities.bounding &= !lacking.bounding;
    let rest = change::changes(&has, &expected);
    let Some(change) = rest.first() else { return Ok(()) };
    Err(Error::new(code::PRIVILEGE, format!("{} had no effect", change.label())))
}

/// Names of capabilities, by number; see `capabilities(7)`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities by name.
fn names(set: u64) -> String {
    let name = |number: u32| {
        let name = usize::try_from(number).ok().and_then(|number| NAMES.get(number));
        name.map_or_else(|| format!("capability {number}"), |name| (*name).to_owned())
    };
    members(set).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named() {
        assert_eq!(
            names(1 << 24 | 1 << 40 | 1 << 50),
            "CAP_SYS_RESOURCE, CAP_CHECKPOINT_RESTORE, capability 50"
        );
    }

    #[test]
    fn what_is_lacking_is_refused_by_name() {
        let none = Lacking { capabilities: 0, bounding: 0, new_privileges: false };
        assert_eq!(refuse(Lacking { bounding: 1, ..none }), Ok(()));
        let error = refuse(Lacking { capabilities: 1 << 21, ..none }).unwrap_err();
        assert_eq!(error.what, "it had capabilities that can't be given here: CAP_SYS_ADMIN");
        assert!(refuse(Lacking { new_privileges: true, ..none }).is_err());
    }
}
