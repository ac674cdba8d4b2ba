//! The commands themselves: `demo`, `show`, `check`, streams, default names, PIDs that are taken.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{alive, spawn, state, until, wait_exit, wait_gone};
use crate::harness::{Outcome, Topic, ensure, fail, skip};
use crate::stage::Stage;
use crate::stage::kernel::{check, fork, pipe, put};

pub(crate) const TOPIC: Topic = Topic {
    name: "commands",
    fixtures: &[("everything", everything)],
    cases: &[
        ("demo", demo),
        ("show_tables", show_tables),
        ("show_records", show_records),
        ("show_json", show_json),
        ("check_process", check_process),
        ("default_name", default_name),
        ("through_a_stream", through_a_stream),
        ("pid_taken", pid_taken),
        ("pids_namespace", pids_namespace),
        ("two_restores_of_one_image", two_at_once),
        ("help_and_version", help_and_version),
    ],
};

/// The kinds of FIG. 7 that a plain program has; the others belong to environments and interprocess communication.
const KINDS: &[&str] = &[
    "Alarm",
    "File",
    "Signal",
    "Current directory",
    "Resource limit",
    "Process",
    "Snapshot",
    "Platform name",
    "Data queued",
    "Process status",
    "Credentials",
    "File locking",
    "MMap memory",
    "Process map",
    "Schedule control",
    "Lightweight process",
];

/// A program with something of every kind.
fn everything(stage: Stage) {
    let file = File::create(stage.path("locked")).unwrap();
    let ends = pipe(0);
    put(ends[1], b"queued data").unwrap();
    // SAFETY: plain calls on what this function owns.
    unsafe {
        check(libc::flock(std::os::fd::AsRawFd::as_raw_fd(&file), libc::LOCK_EX)).unwrap();
        libc::alarm(3000);
    }
    crate::stage::kernel::block(&[libc::SIGUSR1]);
    // SAFETY: a blocked signal to ourselves.
    unsafe { libc::raise(libc::SIGUSR1) };
    crate::stage::thread(|| {
        loop {
            std::thread::park();
        }
    });
    let (ask, _keep) = (pipe(0), ends);
    fork(move || {
        // Only the parent may hold the other end, or this child would never see its end.
        // SAFETY: our own descriptor.
        unsafe { libc::close(ask[1]) };
        i32::from(crate::stage::kernel::take(ask[0], 1).is_err())
    });
    fork(|| 3);
    stage.serve(|_| Ok(()));
}

fn demo() -> Outcome {
    let mut case = Case::new()?;
    let ran = case.vckpt(&["demo"])?.good()?;
    let text = format!("{}{}", ran.stdout, ran.stderr);
    ensure!(text.lines().count() >= 5, "the demo says only {text:?}");
    ensure!(!text.contains('\x1b'), "colours or cursor movements without a terminal: {text:?}");
    case.finish_empty()
}

/// A case with an image of the program that has everything.
fn with_image() -> Outcome<(Case, i32, String)> {
    let mut case = Case::new()?;
    let root = case.start("everything", &[])?;
    let image = case.dump_with(root, &["--leave-running"])?;
    let image = text(&image).to_owned();
    Ok((case, root, image))
}

fn show_tables() -> Outcome {
    let (mut case, root, image) = with_image()?;
    let ran = case.vckpt(&["show", &image])?.good()?;
    for wanted in [root.to_string().as_str(), "fixture everything", "locked", "pipe", "[heap]", "[stack]"] {
        ensure!(ran.stdout.contains(wanted), "{wanted:?} is not shown: {}", ran.describe());
    }
    let ran = case.vckpt(&["show", &image, "--signals"])?.good()?;
    for wanted in ["waiting signals", "SIGUSR1", "blocked", "timers", "real", "SIGALRM"] {
        ensure!(ran.stdout.contains(wanted), "{wanted:?} is not shown: {}", ran.describe());
    }
    ensure!(!ran.stdout.contains("[heap]"), "more is shown than asked for: {}", ran.describe());
    case.finish(root)
}

fn show_records() -> Outcome {
    let (mut case, root, image) = with_image()?;
    let ran = case.vckpt(&["show", &image, "--records"])?.good()?;
    for kind in KINDS {
        ensure!(ran.stdout.contains(kind), "no record of kind {kind}: {}", ran.describe());
    }
    case.finish(root)
}

/// All strings in a JSON value.
fn strings(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::String(text) => {
            found.insert(text.clone());
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        serde_json::Value::Object(fields) => fields.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

fn show_json() -> Outcome {
    let (mut case, root, image) = with_image()?;
    let ran = case.vckpt(&["show", &image, "--json"])?.good()?;
    let _: serde_json::Value = serde_json::from_str(&ran.stdout)?;
    let ran = case.vckpt(&["show", &image, "--records", "--json"])?.good()?;
    let mut found = BTreeSet::new();
    strings(&serde_json::from_str(&ran.stdout)?, &mut found);
    for kind in KINDS {
        ensure!(found.contains(*kind), "no string {kind:?} in the JSON: {}", ran.describe());
    }
    case.finish(root)
}

fn check_process() -> Outcome {
    let (mut case, root, image) = with_image()?;
    let state_before = state(root);
    case.vckpt(&["check", &root.to_string()])?.good()?;
    ensure!(alive(root) && state_before.is_some(), "checked to death");
    case.vckpt(&["check", &image])?.good()?;
    case.ask()?;
    case.finish(root)
}

fn default_name() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("odd", &[])?;
    let ran = case.vckpt(&["dump", &root.to_string(), "--leave-running"])?.good()?;
    let image = case.path(ran.stdout.trim());
    ensure!(image.is_file(), "no image where stdout says: {}", ran.describe());
    let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ensure!(name.ends_with(&format!("-{root}.vckpt")), "the default name is {name}");
    case.ask()?;
    case.finish(root)
}

fn through_a_stream() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("family", &[])?;
    case.ask()?;
    for round in 0..2 {
        let ends = pipe(libc::O_CLOEXEC);
        // SAFETY: each end is owned once.
        let [from, to] = ends.map(|end| unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(end) });
        // cat stands for ssh: it holds the image while no process has it, in a file.
        let file = case.path(&format!("stream-{round}"));
        let mut cat = case.command(&crate::harness::programs::need_program("cat")?, "cat")?;
        let cat = spawn(cat.stdin(Stdio::from(from)).stdout(File::create(&file)?))?;
        let mut dump = case.command(&case.vckpt, "dump")?;
        let dump_pid = spawn(dump.args(["dump", &root.to_string(), "-o", "-"]).stdout(Stdio::from(to)))?;
        // It holds an end of the pipe, which cat reads to the end.
        drop(dump);
        let status = wait_exit(dump_pid, Duration::from_secs(30))?;
        ensure!(status.success(), "the dump into a stream ended with {status}: {}", case.output("dump"));
        let status = wait_exit(cat, Duration::from_secs(30))?;
        ensure!(status.success(), "cat ended with {status}");
        wait_gone(root, Duration::from_secs(5))?;
        let mut feed = case.command(&crate::harness::programs::need_program("cat")?, "feed")?;
        let ends = pipe(libc::O_CLOEXEC);
        // SAFETY: as above.
        let [from, to] = ends.map(|end| unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(end) });
        let feed_pid = spawn(feed.arg(&file).stdout(Stdio::from(to)))?;
        drop(feed);
        let mut restore = case.command(&case.vckpt, "restore")?;
        let pid_file = case.path("stream.pid");
        restore.args(["restore", "-", "--detach", "--pid-file", text(&pid_file)]).stdin(Stdio::from(from));
        let restore_pid = spawn(&mut restore)?;
        drop(restore);
        let status = wait_exit(restore_pid, Duration::from_secs(30))?;
        ensure!(
            status.success(),
            "the restore from a stream ended with {status}: {}",
            case.output("restore")
        );
        wait_exit(feed_pid, Duration::from_secs(10))?;
        root = fs::read_to_string(&pid_file)?.trim().parse()?;
        case.ask()?;
    }
    case.finish(root)
}

/// Makes a sleeping process with a certain PID, if the kernel lets us.
fn take_pid(pid: i32) -> Outcome<i32> {
    let wanted = [pid];
    let mut arguments = [0_u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    arguments[8] = wanted.as_ptr() as u64;
    arguments[9] = 1;
    // SAFETY: the structure of clone3 with 88 bytes; the child makes plain calls only.
    let result = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), 88) };
    match result {
        0 => loop {
            // SAFETY: waits until it is killed.
            unsafe { libc::pause() };
        },
        got if got == i64::from(pid) => Ok(pid),
        _ => match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EPERM) => skip("clone3 with a chosen PID"),
            error => fail(format!("PID {pid} cannot be taken: {error}")),
        },
    }
}

fn pid_taken() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("family", &[])?;
    let image = case.dump(root)?;
    let squatter = take_pid(root)?;
    let ran = case.vckpt(&["restore", text(&image), "--detach", "--pids", "same"])?;
    ran.refused(&[5])?;
    ensure!(ran.stderr.contains(&root.to_string()), "the PID is not named: {}", ran.describe());
    // Without insisting: a namespace, in which the program still has its PIDs.
    let restored = case.restore(&image)?;
    ensure!(restored != squatter, "the restored root has the PID of another process");
    case.ask()?;
    let again = case.round(restored)?;
    ensure!(alive(squatter), "the process that had the PID is gone");
    crate::harness::process::signal(squatter, libc::SIGKILL)?;
    wait_gone(squatter, Duration::from_secs(5))?;
    case.finish(again)
}

fn pids_namespace() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("zombies", &[])?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore_with(&image, &["--pids", "namespace"])?;
        let same = fs::read_link("/proc/self/ns/pid")? == fs::read_link(format!("/proc/{root}/ns/pid"))?;
        ensure!(!same, "--pids namespace restored into the caller's namespace");
        case.ask()?;
    }
    case.finish(root)
}

/// An image can be started more than once: the second goes into a namespace of its own.
fn two_at_once() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("plain-counter", &[])?;
    let image = case.dump(root)?;
    let first = case.restore(&image)?;
    let second = case.restore(&image)?;
    ensure!(
        first != second && alive(first) && alive(second),
        "two restores of one image: {first} and {second}"
    );
    crate::harness::process::signal(second, libc::SIGKILL)?;
    until("the second to end", Duration::from_secs(10), || {
        crate::harness::process::reap();
        (!alive(second)).then_some(())
    })?;
    case.ask()?;
    case.finish(first)
}

fn help_and_version() -> Outcome {
    let mut case = Case::new()?;
    let help = case.vckpt(&["--help"])?.good()?;
    for command in ["dump", "restore", "check", "show", "demo"] {
        ensure!(help.stdout.contains(command), "--help does not name {command}");
        case.vckpt(&[command, "--help"])?.good()?;
    }
    let version = case.vckpt(&["--version"])?.good()?;
    ensure!(version.stdout.starts_with("vckpt "), "{}", version.describe());
    case.finish_empty()
}
