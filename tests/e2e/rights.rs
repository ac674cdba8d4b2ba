//! Rights of single threads, which the kernel keeps apart though the C library keeps them alike; of children that have
//! others than their parents.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::harness::case::two_rounds;
use crate::harness::{Outcome, Topic, need_root};
use crate::stage::Stage;
use crate::stage::asked::{Asked, verify_all};
use crate::stage::kernel::check;

pub(crate) const TOPIC: Topic = Topic {
    name: "rights",
    fixtures: &[("many-rights", many_rights), ("modest-rights", modest_rights)],
    cases: &[("of_threads_and_a_child", as_root), ("that_need_no_privilege", || two_rounds("modest-rights"))],
};

fn as_root() -> Outcome {
    need_root()?;
    two_rounds("many-rights")
}

const KEEP_CAPS: u64 = 1 << 4;
/// `CAP_CHOWN`, `CAP_KILL`, `CAP_SETPCAP`, `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN`.
const CHOWN: u32 = 0;
const KILL: u32 = 5;
const SETPCAP: u32 = 8;
const BIND: u32 = 10;
const ADMIN: u32 = 12;

/// A system call of this thread alone, which has to succeed.
fn call(number: i64, arguments: [u64; 3]) {
    let [first, second, third] = arguments;
    // SAFETY: plain integers, or pointers to lists that outlive the call.
    check(unsafe { libc::syscall(number, first, second, third) }).unwrap();
}

fn option(number: i32, value: u64) {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(number, value, 0, 0, 0) }).unwrap();
}

fn groups(list: &[u32]) {
    call(libc::SYS_setgroups, [list.len() as u64, list.as_ptr() as u64, 0]);
}

/// Effective, permitted and inheritable capabilities, of those with low numbers.
fn capabilities(effective: u32, permitted: u32, inheritable: u32) {
    let header = [0x2008_0522_u32, 0];
    let sets = [[effective, permitted, inheritable], [0, 0, 0]];
    call(libc::SYS_capset, [header.as_ptr() as u64, sets.as_ptr() as u64, 0]);
}

fn raise_ambient(capability: u32) {
    let raise = libc::PR_CAP_AMBIENT_RAISE;
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0, 0) }).unwrap();
}

/// Whether the case is one of root.
fn stage_is_roots() -> bool {
    std::env::args().nth(2).is_some_and(|name| name == "many-rights")
}

/// All that the kernel says of the rights of the calling thread, and what they do.
fn rights() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    // An ordinary user is restored in a user namespace, in which nobody sets groups.
    let names = ["Uid", "Gid", "Cap", "NoNew", if stage_is_roots() { "Groups" } else { "Uid" }];
    let mut found: Vec<String> = status
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)))
        .map(|line| line.replace('\t', " "))
        .collect();
    for number in [libc::PR_GET_SECUREBITS, libc::PR_GET_KEEPCAPS, libc::PR_GET_NO_NEW_PRIVS] {
        // SAFETY: options without arguments.
        found.push(unsafe { libc::prctl(number, 0, 0, 0, 0) }.to_string());
    }
    // Whose is what it makes, and whether it may do what CAP_CHOWN allows.
    // SAFETY: plain integers.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    let path = format!("made-by-{tid}");
    match std::fs::write(&path, "") {
        Err(error) => found.push(error.to_string()),
        Ok(()) => {
            let owner = std::fs::metadata(&path).map(|file| (file.uid(), file.gid()));
            let given = std::os::unix::fs::chown(&path, Some(4242), None).is_ok();
            found.push(format!("{owner:?} {given}"));
        }
    }
    let _ = std::fs::remove_file(&path);
    found.join("; ")
}

/// Threads that are other users, have other capabilities, secure bits, and ways to get more.
fn many_rights(stage: Stage) {
    std::fs::set_permissions(&stage.folder, PermissionsExt::from_mode(0o777)).unwrap();
    let with_capabilities = |permitted: &[u32]| permitted.iter().fold(0, |set, number| set | 1 << number);
    let all = vec![
        Asked::thread("another user", another_user, rights),
        Asked::thread(
            "a root with few capabilities",
            move || {
                option(libc::PR_CAPBSET_DROP, 25);
                let kept = with_capabilities(&[CHOWN, KILL, SETPCAP, BIND, ADMIN]);
                capabilities(kept & !(1 << CHOWN), kept, 1 << KILL | 1 << BIND);
                raise_ambient(BIND);
            },
            rights,
        ),
        Asked::thread(
            "a user that kept its capabilities",
            || {
                option(libc::PR_SET_KEEPCAPS, 1);
                call(libc::SYS_setresuid, [2101, 2102, 2103]);
                option(libc::PR_SET_KEEPCAPS, 1);
                // SAFETY: plain integers; it tells the old number.
                unsafe { libc::syscall(libc::SYS_setfsuid, 2103) };
            },
            rights,
        ),
        Asked::thread(
            "locked secure bits",
            || {
                option(libc::PR_SET_SECUREBITS, 0xff & !KEEP_CAPS);
                option(libc::PR_SET_NO_NEW_PRIVS, 1);
            },
            rights,
        ),
        Asked::thread("no new privileges", || option(libc::PR_SET_NO_NEW_PRIVS, 1), rights),
        Asked::child(
            "a child that is another user",
            || {
                groups(&[8001]);
                call(libc::SYS_setresgid, [8100, 8100, 8100]);
                option(libc::PR_SET_SECUREBITS, KEEP_CAPS);
                call(libc::SYS_setresuid, [8200, 8200, 8200]);
                capabilities(1 << KILL, 1 << KILL | 1 << CHOWN, 1 << KILL);
                raise_ambient(KILL);
            },
            rights,
        ),
    ];
    // Changes of users make it a process of which only root may see.
    option(libc::PR_SET_DUMPABLE, 1);
    stage.serve(move |_| verify_all(&all));
}

fn another_user() {
    groups(&[6001, 6002, 70_000]);
    call(libc::SYS_setresgid, [3001, 3002, 3003]);
    // SAFETY: plain integers; both tell the old number.
    unsafe { libc::syscall(libc::SYS_setfsgid, 3003) };
    // Root may be taken up again.
    call(libc::SYS_setresuid, [2001, 2002, 0]);
}

/// What anybody may do to a single thread.
fn modest_rights(stage: Stage) {
    let all = vec![
        Asked::thread("no new privileges", || option(libc::PR_SET_NO_NEW_PRIVS, 1), rights),
        Asked::thread("keeps capabilities", || option(libc::PR_SET_KEEPCAPS, 1), rights),
        Asked::thread("nothing special", || {}, rights),
        Asked::child("a child", || option(libc::PR_SET_NO_NEW_PRIVS, 1), rights),
    ];
    stage.serve(move |_| verify_all(&all));
}
