//! Which calls turn the credentials that a thread has into those that it shall have, in an order in which each is still
//! allowed. Pure.
//!
//! The order: groups need `CAP_SETGID`; inheritable capabilities may be raised only within the bounding set, so before
//! that is cut; the secure bits are set so that changing user IDs leaves the capabilities alone, and at the end to what
//! they shall be, before the capability to set them is given up; ambient ones need to be permitted and inheritable.

use crate::stub::batch::{Argument, Batch};
use vckpt_image_format::record::credentials::{CapabilitySets, Ids, ThreadCredentials};

/// `SECBIT_NO_SETUID_FIXUP` and its lock.
const NO_SETUID_FIXUP: (u32, u32) = (1 << 2, 1 << 3);
/// `SECBIT_KEEP_CAPS`.
const KEEP_CAPS: u32 = 1 << 4;
/// `SECBIT_NO_CAP_AMBIENT_RAISE` and its lock.
const NO_CAP_AMBIENT_RAISE: (u32, u32) = (1 << 6, 1 << 7);
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// One call; the order of the list of [`changes`] is the order in which they must be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `setgroups(2)`.
    Groups(Vec<u32>),
    /// `capset(2)`.
    Capabilities(CapabilitySets),
    /// `PR_CAPBSET_DROP`.
    DropFromBounding(u32),
    /// `PR_SET_SECUREBITS`.
    SecureBits(u32),
    /// `PR_SET_KEEPCAPS`, which needs no privilege.
    KeepCapabilities(bool),
    /// `setresgid(2)`.
    GroupIds(Ids),
    /// `setfsgid(2)`.
    FileSystemGroup(u32),
    /// `setresuid(2)`.
    UserIds(Ids),
    /// `setfsuid(2)`.
    FileSystemUser(u32),
    /// `PR_CAP_AMBIENT_CLEAR_ALL`.
    ClearAmbient,
    /// `PR_CAP_AMBIENT_RAISE`.
    RaiseAmbient(u32),
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
}

/// The calls that turn `has` into `wanted`. Rights that `has` lacks are not looked at here: see [`lacking`].
#[must_use]
pub fn changes(has: &ThreadCredentials, wanted: &ThreadCredentials) -> Vec<Change> {
    let mut changes = Vec::new();
    let (has_sets, wanted_sets) = (has.capabilities, wanted.capabilities);
    if !same_groups(&has.groups, &wanted.groups) {
        changes.push(Change::Groups(wanted.groups.clone()));
    }
    let raised = CapabilitySets { inheritable: wanted_sets.inheritable, ..has_sets };
    if has_sets.inheritable != wanted_sets.inheritable {
        changes.push(Change::Capabilities(raised));
    }
    changes.extend(members(has_sets.bounding & !wanted_sets.bounding).map(Change::DropFromBounding));

    let raise_ambient = wanted_sets.ambient & !(has_sets.ambient & wanted_sets.inheritable) != 0;
    let mut bits = has.secure_bits;
    if has.user != wanted.user {
        bits = with(bits, NO_SETUID_FIXUP);
    }
    if raise_ambient {
        bits = without(bits, NO_CAP_AMBIENT_RAISE);
    }
    if bits != has.secure_bits {
        changes.push(Change::SecureBits(bits));
    }
    change_ids(has, wanted, &mut changes);
    if has_sets.ambient & !wanted_sets.ambient != 0 {
        changes.push(Change::ClearAmbient);
        changes.extend(members(wanted_sets.ambient).map(Change::RaiseAmbient));
    } else if raise_ambient {
        changes.extend(members(wanted_sets.ambient & !has_sets.ambient).map(Change::RaiseAmbient));
    }
    if bits ^ wanted.secure_bits == KEEP_CAPS {
        changes.push(Change::KeepCapabilities(wanted.secure_bits & KEEP_CAPS != 0));
    } else if bits != wanted.secure_bits {
        changes.push(Change::SecureBits(wanted.secure_bits));
    }
    if (raised.permitted, raised.effective) != (wanted_sets.permitted, wanted_sets.effective) {
        changes.push(Change::Capabilities(wanted_sets));
    }
    if wanted.no_new_privileges && !has.no_new_privileges {
        changes.push(Change::NoNewPrivileges);
    }
    changes
}

fn change_ids(has: &ThreadCredentials, wanted: &ThreadCredentials, changes: &mut Vec<Change>) {
    let resources = |ids: &Ids| (ids.real, ids.effective, ids.saved);
    // Setting the three sets the ID for file systems to the effective one.
    let after = |has: &Ids, wanted: &Ids| {
        if resources(has) == resources(wanted) { has.file_system } else { wanted.effective }
    };
    if resources(&has.group) != resources(&wanted.group) {
        changes.push(Change::GroupIds(wanted.group));
    }
    if after(&has.group, &wanted.group) != wanted.group.file_system {
        changes.push(Change::FileSystemGroup(wanted.group.file_system));
    }
    if resources(&has.user) != resources(&wanted.user) {
        changes.push(Change::UserIds(wanted.user));
    }
    if after(&has.user, &wanted.user) != wanted.user.file_system {
        changes.push(Change::FileSystemUser(wanted.user.file_system));
    }
}

/// What no call can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// Capabilities that the thread had.
    pub capabilities: u64,
    /// Capabilities that a program could have given to it.
    pub bounding: u64,
    /// Whether it can gain rights by `execve` only there.
    pub new_privileges: bool,
}

/// What a thread shall have and can't get.
#[must_use]
pub fn lacking(has: &ThreadCredentials, wanted: &ThreadCredentials) -> Lacking {
    let (has_sets, wanted_sets) = (has.capabilities, wanted.capabilities);
    let inheritable =
        wanted_sets.inheritable & !(has_sets.inheritable | has_sets.permitted | has_sets.bounding);
    Lacking {
        capabilities: wanted_sets.permitted & !has_sets.permitted | inheritable,
        bounding: wanted_sets.bounding & !has_sets.bounding,
        new_privileges: has.no_new_privileges && !wanted.no_new_privileges,
    }
}

impl Change {
    /// Adds the call to a batch; it ends the batch if it is refused.
    pub fn add(&self, batch: &mut Batch) {
        let zero = Argument::value(0);
        let prctl = |batch: &mut Batch, label, option: i32, value: Argument, third: Argument| {
            batch.must(label, libc::SYS_prctl, [option.into(), value, third, zero, zero]);
        };
        match self {
            Change::Groups(groups) => {
                let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
                let list = batch.data(&bytes);
                batch.must(self.label(), libc::SYS_setgroups, [groups.len().into(), list.into()]);
            }
            Change::Capabilities(sets) => {
                let header = batch.words(&[u64::from(CAPABILITY_VERSION)]);
                let sets = batch.data(&capability_data(*sets));
                batch.must(self.label(), libc::SYS_capset, [header.into(), sets.into()]);
            }
            Change::DropFromBounding(capability) => {
                prctl(batch, self.label(), libc::PR_CAPBSET_DROP, (*capability).into(), zero);
            }
            Change::SecureBits(bits) => {
                prctl(batch, self.label(), libc::PR_SET_SECUREBITS, (*bits).into(), zero);
            }
            Change::KeepCapabilities(keep) => {
                prctl(batch, self.label(), libc::PR_SET_KEEPCAPS, u32::from(*keep).into(), zero);
            }
            Change::GroupIds(ids) => three(batch, self.label(), libc::SYS_setresgid, *ids),
            Change::UserIds(ids) => three(batch, self.label(), libc::SYS_setresuid, *ids),
            Change::FileSystemGroup(id) => drop(batch.must(self.label(), libc::SYS_setfsgid, [(*id).into()])),
            Change::FileSystemUser(id) => drop(batch.must(self.label(), libc::SYS_setfsuid, [(*id).into()])),
            Change::ClearAmbient => {
                prctl(batch, self.label(), libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.into(), zero);
            }
            Change::RaiseAmbient(capability) => {
                let raise = libc::PR_CAP_AMBIENT_RAISE.into();
                prctl(batch, self.label(), libc::PR_CAP_AMBIENT, raise, (*capability).into());
            }
            Change::NoNewPrivileges => {
                prctl(batch, self.label(), libc::PR_SET_NO_NEW_PRIVS, Argument::value(1), zero);
            }
        }
    }

    /// What the call is for.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Change::Groups(_) => "setting the supplementary groups",
            Change::Capabilities(_) => "setting the capabilities",
            Change::DropFromBounding(_) => "dropping from the bounding set",
            Change::SecureBits(_) | Change::KeepCapabilities(_) => "setting the secure bits",
            Change::GroupIds(_) => "setting the group IDs",
            Change::FileSystemGroup(_) => "setting the group ID for file systems",
            Change::UserIds(_) => "setting the user IDs",
            Change::FileSystemUser(_) => "setting the user ID for file systems",
            Change::ClearAmbient | Change::RaiseAmbient(_) => "setting the ambient capabilities",
            Change::NoNewPrivileges => "forbidding new privileges",
        }
    }
}

fn three(batch: &mut Batch, label: &'static str, number: i64, ids: Ids) {
    batch.must(label, number, [ids.real.into(), ids.effective.into(), ids.saved.into()]);
}

/// `struct __user_cap_data_struct [2]`: the lower halves of effective, permitted, inheritable; then the upper ones.
fn capability_data(sets: CapabilitySets) -> Vec<u8> {
    let sets = [sets.effective, sets.permitted, sets.inheritable].map(u64::to_le_bytes);
    let halves = |from: usize| sets.iter().flat_map(move |set| set[from..from + 4].to_vec());
    halves(0).chain(halves(4)).collect()
}

fn with(bits: u32, (bit, lock): (u32, u32)) -> u32 {
    if bits & lock != 0 { bits } else { bits | bit }
}

fn without(bits: u32, (bit, lock): (u32, u32)) -> u32 {
    if bits & lock != 0 { bits } else { bits & !bit }
}

/// Whether two lists have the same groups, in any order.
fn same_groups(one: &[u32], other: &[u32]) -> bool {
    let sorted = |groups: &[u32]| {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        groups
    };
    sorted(one) == sorted(other)
}

/// The numbers of the bits of a set.
pub(super) fn members(set: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| set >> bit & 1 != 0)
}

#[cfg(test)]
mod tests;
