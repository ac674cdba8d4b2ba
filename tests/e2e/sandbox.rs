//! System call filters: kept by root, refused by name where that is not possible.

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::asked::Asked;
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "sandbox",
    fixtures: &[
        ("filters", filters),
        ("common", common),
        ("forbidding", forbidding),
        ("landlocked", landlocked),
        ("not-landlocked", not_landlocked),
    ],
    cases: &[
        ("filters_of_threads_and_children", filters_of_threads),
        ("filters_in_common", filters_in_common),
        ("filters_that_are_refused", filters_that_are_refused),
        ("filters_of_an_ordinary_user", filters_of_an_ordinary_user),
        ("landlock_is_refused", landlock_is_refused),
        ("landlock_of_a_restored_tree", landlock_of_a_restored_tree),
        ("landlock_is_not_suspected", landlock_is_not_suspected),
        ("landlock_of_vckpt_itself", landlock_of_vckpt_itself),
    ],
};

fn filters_of_threads() -> Outcome {
    need_root()?;
    two_rounds("filters")
}

fn filters_in_common() -> Outcome {
    need_root()?;
    two_rounds("common")
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ERROR: u32 = libc::SECCOMP_RET_ERRNO;

/// Answers one call, and allows all others.
fn install(number: i64, answer: u32, flags: u64) -> i64 {
    let one = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let program =
        [one(0x20, 0, 0, 0), one(0x15, 0, 1, number as u32), one(0x06, 0, 0, answer), one(0x06, 0, 0, ALLOW)];
    let program = libc::sock_fprog { len: 4, filter: program.as_ptr().cast_mut() };
    // SAFETY: a valid program, which the kernel copies.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
}

/// The error numbers of three calls, 0 if they are made; the number of filters.
fn answers() -> String {
    let error = |number| {
        // SAFETY: these calls take no arguments, or fail with a null pointer.
        let result = unsafe { libc::syscall(number, 0) };
        if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
    };
    let errors = [libc::SYS_getppid, libc::SYS_getpgrp, libc::SYS_getuid].map(error);
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("Seccomp") || line.starts_with("NoNewPrivs"));
    format!("{errors:?} {}", lines.collect::<Vec<_>>().join(" "))
}

/// A process with two filters, a thread with one more, and a child that can gain no rights and has its own.
fn filters(stage: Stage) {
    let (ask, answer) = (pipe(0), pipe(0));
    check(install(libc::SYS_getppid, ERROR | 42, 0)).unwrap();
    check(install(libc::SYS_getpgrp, ERROR | 43, libc::SECCOMP_FILTER_FLAG_LOG)).unwrap();
    // Who has no timers is not asked for them, so that it does no harm.
    check(install(libc::SYS_timer_gettime, libc::SECCOMP_RET_KILL_PROCESS, 0)).unwrap();
    fork(|| {
        // SAFETY: plain integers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).unwrap();
        check(install(libc::SYS_getuid, ERROR | 45, 0)).unwrap();
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            put(answer[1], answers().as_bytes()).unwrap();
        }
        0
    });
    let (tell, hear) = std::sync::mpsc::channel();
    let (order, orders) = std::sync::mpsc::channel::<()>();
    thread(move || {
        check(install(libc::SYS_getuid, ERROR | 44, 0)).unwrap();
        while orders.recv().is_ok() {
            tell.send(answers()).unwrap();
        }
    });
    let verify_all = move || -> Verdict {
        order.send(()).map_err(|error| error.to_string())?;
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], 400).map_err(|error| error.to_string())?;
        let found = [
            answers(),
            hear.recv().map_err(|error| error.to_string())?,
            String::from_utf8_lossy(&child).into_owned(),
        ];
        let expected = [("[42, 43, 0]", 0, 3), ("[42, 43, 44]", 0, 4), ("[42, 43, 45]", 1, 4)];
        for (found, (errors, no_new, count)) in found.iter().zip(expected) {
            let wanted = format!("{errors} NoNewPrivs:\t{no_new} Seccomp:\t2 Seccomp_filters:\t{count}");
            verify!(*found == wanted, "{found}, not {wanted}");
        }
        Ok(())
    };
    verify_all().unwrap();
    stage.serve(move |_| verify_all());
}

/// Threads that have filters in common, and one of them more: as long as no other has gone a way of its own, it can give
/// all of its filters to all (`SECCOMP_FILTER_FLAG_TSYNC`).
fn common(stage: Stage) {
    check(install(libc::SYS_getppid, ERROR | 42, 0)).unwrap();
    let early = Asked::thread("with the first filter", || {}, answers);
    // For all threads at once.
    check(install(libc::SYS_mount, libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_FILTER_FLAG_TSYNC)).unwrap();
    check(install(libc::SYS_getpgrp, ERROR | 43, 0)).unwrap();
    let late = Asked::child("a child", || {}, answers);
    let of = |errors: &str, filters: u32| {
        format!("{errors} NoNewPrivs:\t0 Seccomp:\t2 Seccomp_filters:\t{filters}")
    };
    let (own, others) = (of("[42, 43, 0]", 3), of("[42, 0, 0]", 2));
    stage.serve(move |number| {
        verify!(answers() == own, "{}, not {own}", answers());
        verify!(early.now()? == others, "a thread: {}, not {others}", early.now()?);
        late.verify()?;
        if number == 3 {
            let result = install(libc::SYS_getuid, ERROR | 44, libc::SECCOMP_FILTER_FLAG_TSYNC);
            verify!(result == 0, "filters for all threads: {result}");
            let (wanted, found) = (of("[42, 43, 44]", 4), early.now()?);
            verify!(found == wanted, "after that: {found}, not {wanted}");
        }
        Ok(())
    });
}

/// A process whose filter, or mode, is told by the argument.
fn forbidding(stage: Stage) {
    let kind = stage.arguments[0].as_str();
    if !crate::harness::is_root() {
        // SAFETY: plain integers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).unwrap();
    }
    match kind {
        "kill" => drop(check(install(libc::SYS_sched_getattr, libc::SECCOMP_RET_KILL_PROCESS, 0)).unwrap()),
        "notify" => drop(check(install(libc::SYS_mount, libc::SECCOMP_RET_USER_NOTIF, 0)).unwrap()),
        "listener" => {
            let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            check(install(libc::SYS_mount, libc::SECCOMP_RET_USER_NOTIF, flags)).unwrap();
        }
        "home" => drop(check(install(libc::SYS_munmap, ERROR | 1, 0)).unwrap()),
        "strict" => {
            let ends = pipe(0);
            let child = fork(|| {
                // SAFETY: a mode without arguments; then the one call that is left to it.
                unsafe {
                    libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT);
                    let mut byte = 0_u8;
                    libc::syscall(libc::SYS_read, ends[0], &raw mut byte, 1);
                    libc::syscall(libc::SYS_exit, 0);
                }
                0
            });
            let status = format!("/proc/{child}/status");
            while !std::fs::read_to_string(&status).unwrap_or_default().contains("Seccomp:\t1") {
                std::thread::yield_now();
            }
        }
        _ => drop(check(install(libc::SYS_mount, ERROR | 1, 0)).unwrap()),
    }
    stage.serve(|_| Ok(()));
}

fn refused(kind: &str, words: &str) -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("forbidding", &[kind])?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains(words), "{kind}: not by name: {}", ran.describe());
    case.ask()?;
    case.finish(root)
}

fn filters_that_are_refused() -> Outcome {
    need_root()?;
    refused("kill", "does not allow sched_getattr")?;
    refused("notify", "SECCOMP_RET_USER_NOTIF")?;
    refused("listener", "SECCOMP_RET_USER_NOTIF")?;
    refused("home", "does not allow munmap")?;
    refused("strict", "strict mode of seccomp")
}

fn filters_of_an_ordinary_user() -> Outcome {
    if crate::harness::is_root() {
        return crate::harness::skip("an ordinary user");
    }
    refused("plain", "it runs under a seccomp filter")
}

/// Gives this thread a rule: no sockets are made in any folder.
fn restrict() -> std::io::Result<()> {
    const MAKE_SOCKET: u64 = 1 << 9;
    let attributes = [MAKE_SOCKET];
    // SAFETY: plain integers, eight bytes of attributes, and a descriptor of our own.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let rules = check(libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), 8, 0))?;
        check(libc::syscall(libc::SYS_landlock_restrict_self, rules, 0))?;
        check(libc::close(rules as i32))?;
    }
    Ok(())
}

fn need_landlock() -> Outcome {
    let none = std::ptr::null::<u64>();
    // SAFETY: with this flag there are no attributes.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, 1) };
    if version > 0 { Ok(()) } else { crate::harness::skip("Landlock") }
}

/// A tree of which the argument says who has a rule.
fn landlocked(stage: Stage) {
    let answer = || std::os::unix::net::UnixListener::bind("socket").is_err().to_string();
    match stage.arguments[0].as_str() {
        "process" => restrict().unwrap(),
        "thread" => std::mem::forget(Asked::thread("a thread", || restrict().unwrap(), answer)),
        "child" => std::mem::forget(Asked::child("a child", || restrict().unwrap(), answer)),
        // Asked to do so when it has been restored.
        _ => {}
    }
    let path = stage.path("restrict");
    stage.serve_except(&["status NoNewPrivs", "no new privileges"], move |_| {
        if path.exists() {
            restrict().map_err(|error| error.to_string())?;
        }
        Ok(())
    });
}

fn refuses_landlock(case: &mut Case, root: i32) -> Outcome {
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("restricted by Landlock"), "not by name: {}", ran.describe());
    case.ask()
}

fn landlock_is_refused() -> Outcome {
    need_landlock()?;
    for who in ["process", "thread", "child"] {
        let mut case = Case::new()?;
        let root = case.start("landlocked", &[who])?;
        refuses_landlock(&mut case, root)?;
        case.finish(root)?;
    }
    Ok(())
}

/// One that is in namespaces of its own by then, if an ordinary user has restored it.
fn landlock_of_a_restored_tree() -> Outcome {
    need_landlock()?;
    let mut case = Case::new()?;
    let root = case.start("landlocked", &["later"])?;
    let root = case.round(root)?;
    let root = case.round(root)?;
    std::fs::write(case.path("restrict"), "")?;
    case.ask()?;
    if !case.is_control() {
        refuses_landlock(&mut case, root)?;
    }
    case.finish(root)
}

/// Threads and children that are others than root, without rules.
fn not_landlocked(stage: Stage) {
    let name = || "free".to_owned();
    let user = |number: u32| {
        // SAFETY: plain integers, for this thread alone.
        unsafe {
            check(libc::syscall(libc::SYS_setresgid, number, number, number)).unwrap();
            check(libc::syscall(libc::SYS_setresuid, number, number, number)).unwrap();
        }
    };
    let no_more = || {
        // SAFETY: plain integers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).unwrap();
    };
    let mut all = vec![Asked::thread("without new privileges", no_more, name)];
    if crate::harness::is_root() {
        all.push(Asked::thread("a thread of another user", move || user(2001), name));
        all.push(Asked::child("a child of another user", move || user(2002), name));
    }
    stage.serve(move |_| crate::stage::asked::verify_all(&all));
}

fn landlock_is_not_suspected() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("not-landlocked", &[])?;
    for _ in 0..2 {
        let image = case.path("exact.vckpt");
        let ran =
            case.vckpt(&["dump", &root.to_string(), "--leave-running", "--force", "-o", text(&image)])?;
        let ran = ran.good()?;
        ensure!(!ran.stderr.contains("Landlock"), "Landlock is suspected: {}", ran.describe());
        root = case.round(root)?;
    }
    case.finish(root)
}

/// What `vckpt` may not do, the tree that it traces may not do either.
fn landlock_of_vckpt_itself() -> Outcome {
    need_landlock()?;
    let mut case = Case::new()?;
    let image = case.path("restricted.vckpt");
    let bash = crate::harness::programs::need_program("bash")?;
    let mut command = case.command(&bash, "restricted")?;
    let script = "\"$0\" fixture landlocked \"$1\" later & root=$!; while [ ! -e ready ]; do :; done; \
                  \"$2\" dump $root -o \"$3\"; echo $? > status";
    command.args(["-c", script]).arg(&case.fixtures).arg(&case.folder).arg(&case.vckpt).arg(&image);
    // SAFETY: system calls only.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, restrict) };
    let pid = crate::harness::process::spawn(&mut command)?;
    crate::harness::process::wait_exit(pid, std::time::Duration::from_secs(60))?;
    let output = case.output("restricted");
    ensure!(std::fs::read_to_string(case.path("status"))?.trim() == "0", "a restricted dump: {output}");
    ensure!(output.contains("vckpt is restricted by Landlock"), "it does not say so: {output}");
    case.finish_empty()
}
