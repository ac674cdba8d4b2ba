//! Changes of credentials: from every state that a puppet may have to every state that an image may ask for.

use super::*;
use vckpt_image_format::TaskId;

const ALL: u64 = 0x1ff_ffff_ffff;
const ROOT: Ids = ids(0);

const fn ids(id: u32) -> Ids {
    Ids { real: id, effective: id, saved: id, file_system: id }
}

fn root() -> ThreadCredentials {
    let capabilities =
        CapabilitySets { inheritable: 0, permitted: ALL, effective: ALL, bounding: ALL, ambient: 0 };
    ThreadCredentials {
        thread: TaskId(5),
        user: ROOT,
        group: ROOT,
        groups: vec![0],
        capabilities,
        secure_bits: 0,
        no_new_privileges: false,
    }
}

/// A server's worker: another user without capabilities.
fn worker() -> ThreadCredentials {
    let capabilities = CapabilitySets { bounding: ALL, ..CapabilitySets::default() };
    ThreadCredentials { user: ids(33), group: ids(33), groups: vec![33], capabilities, ..root() }
}

#[test]
fn what_is_equal_needs_no_call() {
    assert_eq!(changes(&root(), &root()), []);
    assert_eq!(changes(&worker(), &worker()), []);
    let groups = |groups| ThreadCredentials { groups, ..worker() };
    assert_eq!(changes(&groups(vec![4, 33]), &groups(vec![33, 4])), []);
}

#[test]
fn a_worker_loses_its_rights_last() {
    let none = CapabilitySets { bounding: ALL, ..CapabilitySets::default() };
    let expected = [
        Change::Groups(vec![33]),
        Change::SecureBits(NO_SETUID_FIXUP.0),
        Change::GroupIds(ids(33)),
        Change::UserIds(ids(33)),
        Change::SecureBits(0),
        Change::Capabilities(none),
    ];
    assert_eq!(changes(&root(), &worker()), expected);
}

#[test]
fn an_ordinary_user_in_a_new_user_namespace_only_drops() {
    let mine = worker();
    let capabilities = CapabilitySets { permitted: ALL, effective: ALL, ..mine.capabilities };
    let puppet = ThreadCredentials { capabilities, ..mine.clone() };
    assert_eq!(changes(&puppet, &mine), [Change::Capabilities(mine.capabilities)]);
}

#[test]
fn ambient_capabilities_come_before_the_bits_and_after_the_ids() {
    let port = 1 << 10;
    let capabilities =
        CapabilitySets { inheritable: port, permitted: port, effective: port, bounding: port, ambient: port };
    let wanted = ThreadCredentials { capabilities, secure_bits: 0x2f, no_new_privileges: true, ..worker() };
    let calls = changes(&root(), &wanted);
    let place = |change: &Change| calls.iter().position(|call| call == change).unwrap();
    let raised = CapabilitySets { inheritable: port, ..root().capabilities };
    let order = [
        place(&Change::Capabilities(raised)),
        place(&Change::DropFromBounding(0)),
        place(&Change::SecureBits(NO_SETUID_FIXUP.0)),
        place(&Change::UserIds(ids(33))),
        place(&Change::RaiseAmbient(10)),
        place(&Change::SecureBits(0x2f)),
        place(&Change::Capabilities(capabilities)),
        place(&Change::NoNewPrivileges),
    ];
    assert!(order.is_sorted(), "{calls:?}");
    assert!(!calls.contains(&Change::DropFromBounding(10)));
}

#[test]
fn the_id_for_file_systems_follows_the_effective_one() {
    let user = Ids { file_system: 44, ..ids(33) };
    let wanted = ThreadCredentials { user, ..worker() };
    assert!(changes(&root(), &wanted).contains(&Change::FileSystemUser(44)));
    assert_eq!(changes(&wanted, &worker()).first(), Some(&Change::SecureBits(4)));
    let set_user = Ids { real: 33, effective: 0, saved: 0, file_system: 0 };
    let calls = changes(&root(), &ThreadCredentials { user: set_user, ..root() });
    assert_eq!(calls, [Change::SecureBits(4), Change::UserIds(set_user), Change::SecureBits(0)]);
}

#[test]
fn keeping_capabilities_needs_no_privilege() {
    let wanted = ThreadCredentials { secure_bits: KEEP_CAPS, ..worker() };
    assert_eq!(changes(&worker(), &wanted), [Change::KeepCapabilities(true)]);
}

#[test]
fn what_is_lacking_is_told() {
    let without = |bit: u64| {
        let sets = root().capabilities;
        let capabilities =
            CapabilitySets { permitted: ALL & !bit, effective: ALL & !bit, bounding: ALL & !bit, ..sets };
        ThreadCredentials { capabilities, ..root() }
    };
    let resource = 1 << 24;
    let found = lacking(&without(resource), &root());
    assert_eq!(found, Lacking { capabilities: resource, bounding: resource, new_privileges: false });
    let found = lacking(&without(resource), &worker());
    assert_eq!(found, Lacking { capabilities: 0, bounding: resource, new_privileges: false });
    assert_eq!(lacking(&root(), &worker()).bounding, 0);
}

#[test]
fn capabilities_are_laid_out_in_halves() {
    let sets = CapabilitySets {
        effective: 1 << 32,
        permitted: 2,
        inheritable: 3 << 32,
        ..CapabilitySets::default()
    };
    let words: Vec<u32> =
        capability_data(sets).chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [0, 2, 0, 1, 0, 3]);
}
