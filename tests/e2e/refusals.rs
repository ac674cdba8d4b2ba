//! Targets and places that must be refused: a named error, the right exit code, the target unharmed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::case::{Case, Ran, text};
use crate::harness::process::{alive, children, describe, signal, spawn, until, wait_exit};
use crate::harness::programs::free_port;
use crate::harness::{Outcome, Topic, ensure, is_root, need_root, skip};
use crate::kills::{outside, same_again};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "refusals",
    fixtures: &[("bound", bound), ("short-of", short_of)],
    cases: &[
        ("no_such_process", no_such_process),
        ("process_of_somebody_else", process_of_somebody_else),
        ("kernel_thread", kernel_thread),
        ("own_ancestor", own_ancestor),
        ("usage", usage),
        ("target_dies_midway", target_dies_midway),
        ("namespaces", namespaces),
        ("no_descriptor_left", || nothing_left("descriptors")),
        ("no_memory_left", || nothing_left("memory")),
        ("output_exists", output_exists),
        ("output_folder_missing", output_folder_missing),
        ("disk_full", disk_full),
        ("failed_restore_leaves_nothing", failed_restore),
    ],
};

/// A dump that must be refused; there must be no image afterwards.
fn refused(case: &mut Case, pid: i32, codes: &[i32]) -> Outcome<Ran> {
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &pid.to_string(), "-o", text(&image)])?;
    ran.refused(codes)?;
    ensure!(!image.exists(), "a refused dump left an image: {}", ran.describe());
    ensure!(ran.stderr.contains(&pid.to_string()), "the PID is not named: {}", ran.describe());
    Ok(ran)
}

fn no_such_process() -> Outcome {
    let mut case = Case::new()?;
    // A PID that has just ended.
    let pid = spawn(&mut Command::new("/bin/true"))?;
    wait_exit(pid, Duration::from_secs(10))?;
    refused(&mut case, pid, &[3, 9])?;
    case.vckpt(&["check", &pid.to_string()])?.refused(&[3, 9])?;
    case.finish_empty()
}

fn process_of_somebody_else() -> Outcome {
    let mut case = Case::new_as_ordinary_user()?;
    // The harness itself when it is root; else PID 1.
    let pid = if is_root() { i32::try_from(std::process::id())? } else { 1 };
    refused(&mut case, pid, &[3, 4])?;
    case.finish_empty()
}

fn kernel_thread() -> Outcome {
    need_root()?;
    if !describe(2).contains("kthreadd") {
        return skip("kernel threads in sight");
    }
    let mut case = Case::new()?;
    refused(&mut case, 2, &[3])?;
    case.finish_empty()
}

fn own_ancestor() -> Outcome {
    let mut case = Case::new()?;
    let bash = crate::harness::programs::need_program("bash")?;
    // The shell asks for its own dump, and says afterwards that it lives.
    let script = format!("'{}' dump $$ -o self.vckpt; echo status $?; true", text(&case.vckpt));
    let pid = spawn(case.command(&bash, "ancestor")?.args(["-c", &script]))?;
    wait_exit(pid, Duration::from_secs(30))?;
    let output = case.output("ancestor");
    ensure!(output.contains("status 3"), "the shell that dumps itself says {output}");
    ensure!(output.contains("VC-") && output.contains("hint"), "no named error: {output}");
    ensure!(!case.path("self.vckpt").exists(), "there is an image of the own ancestor");
    case.finish_empty()
}

fn usage() -> Outcome {
    let mut case = Case::new()?;
    for arguments in [
        &["dump"][..],
        &["dump", "-1"],
        &["dump", "0"],
        &["dump", "x"],
        &["restore"],
        &["nonsense"],
        &["dump", "1", "--leave-running", "--leave-stopped"],
    ] {
        let ran = case.vckpt(arguments)?;
        ensure!(ran.status.code() == Some(2), "not a matter of usage: {}", ran.describe());
        ensure!(!ran.stderr.contains("panicked") && !ran.stderr.is_empty(), "{}", ran.describe());
    }
    case.finish_empty()
}

fn target_dies_midway() -> Outcome {
    let mut case = Case::new()?;
    let image = case.path("dying.vckpt");
    for number in 0..20_u64 {
        let _ = fs::remove_file(case.path("ready"));
        let root = case.start("restless", &[])?;
        let pid = root.to_string();
        let arguments = ["dump", &pid, "-o", text(&image), "--leave-running"];
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        // The moment is what is varied here.
        std::thread::sleep(Duration::from_micros(number * 500));
        signal(root, libc::SIGKILL)?;
        let ran = case.ended(supervisor, files, &arguments)?;
        if ran.status.success() {
            case.vckpt(&["check", text(&image)])?.good()?;
            fs::remove_file(&image)?;
        } else {
            ran.refused(&[3, 9])?;
            ensure!(!image.exists(), "a failed dump left an image: {}", ran.describe());
        }
        wait_exit(root, Duration::from_secs(10))?;
    }
    case.finish_empty()
}

/// Namespaces are not supported yet: what a restore would lose is refused, or told.
fn namespaces() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = start_in(&case, libc::CLONE_NEWNET)?;
    let ran = refused(&mut case, root, &[3])?;
    ensure!(ran.stderr.contains("another network namespace"), "not named: {}", ran.describe());
    case.ask()?;
    case.finish(root)?;
    let mut case = Case::new()?;
    let root = start_in(&case, libc::CLONE_NEWNS)?;
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&case.path("told.vckpt")), "-R"])?.good()?;
    ensure!(ran.stderr.contains("its mount namespace is not kept"), "not told: {}", ran.describe());
    case.ask()?;
    case.finish(root)
}

/// Starts a program in a new namespace.
fn start_in(case: &Case, flag: i32) -> Outcome<i32> {
    let mut command = case.fixture("plain-counter", &[])?;
    // SAFETY: a system call with a plain integer.
    unsafe {
        command.pre_exec(move || match libc::unshare(flag) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let root = spawn(&mut command)?;
    case.wait_ready("plain-counter", root)?;
    Ok(root)
}

fn output_exists() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("plain-counter", &[])?;
    let image = case.path("there.vckpt");
    fs::write(&image, "precious")?;
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[2, 5])?;
    ensure!(ran.stderr.contains("there.vckpt"), "the file is not named: {}", ran.describe());
    ensure!(fs::read(&image)? == b"precious", "the file that was there has changed");
    case.ask()?;
    case.finish(root)
}

fn output_folder_missing() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("plain-counter", &[])?;
    let image = case.path("no-folder/image.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[2, 5])?;
    case.ask()?;
    case.finish(root)
}

/// A program that listens at two paths and at a port.
/// Eight threads in a process that has nothing left for all of their stubs, but something for a few.
fn short_of(stage: Stage) {
    for _ in 0..8 {
        thread(|| {
            loop {
                std::thread::sleep(Duration::from_millis(3));
            }
        });
    }
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let used = u64::try_from(fs::read_dir("/proc/self/fd").unwrap().count()).unwrap();
    let memory = stage.arguments.iter().any(|argument| argument == "memory");
    // Serving opens files and allocates a little.
    let (resource, limit) =
        if memory { (libc::RLIMIT_AS, pages * 4096 + 1024 * 1024) } else { (libc::RLIMIT_NOFILE, used + 4) };
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: a valid limit.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    stage.serve(|_| Ok(()));
}

/// What was made for the first of the stubs is taken away again.
fn nothing_left(what: &str) -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("short-of", &[what])?;
    case.ask()?;
    let calm = outside(root)?;
    let image = case.path("refused.vckpt");
    for _ in 0..3 {
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        same_again(root, &calm, "after a refused dump")?;
        case.ask()?;
    }
    case.finish(root)
}

fn bound(stage: Stage) {
    let first = UnixListener::bind(stage.path("socket")).unwrap();
    let second = UnixDatagram::bind(stage.path("datagrams")).unwrap();
    let port = stage.arguments[0].parse::<u16>().unwrap();
    let tcp = TcpListener::bind(("127.0.0.1", port)).unwrap();
    stage.serve(|_| {
        UnixStream::connect(stage.path("socket")).map_err(|error| error.to_string())?;
        first.accept().map_err(|error| error.to_string())?;
        verify!(second.local_addr().is_ok_and(|address| address.as_pathname().is_some()), "the datagrams");
        TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
        tcp.accept().map(drop).map_err(|error| error.to_string())
    });
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Outcome<Vec<OsString>> {
    let mut names =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A restore that fails late, when the paths were bound already: by a port that is taken.
fn failed_restore() -> Outcome {
    let mut case = Case::new()?;
    let port = free_port()?;
    let mut root = case.start("bound", &[&port.to_string()])?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let taken = TcpListener::bind(("127.0.0.1", port))?;
    // One file stays as the program left it, the other is gone.
    fs::remove_file(case.path("socket"))?;
    let before = names(&case.folder)?;
    let ran = case.vckpt(&["restore", text(&image), "--detach", "--pid-file", "pid"])?;
    ran.refused(&[5])?;
    ensure!(ran.stderr.contains(&port.to_string()), "the port is not named: {}", ran.describe());
    // The harness adds and removes files of its own for the command.
    let after = names(&case.folder)?;
    let new: Vec<_> = after.iter().filter(|name| !before.contains(name)).collect();
    let ours: Vec<_> = new.iter().filter(|name| **name != "vckpt.out").collect();
    ensure!(ours.is_empty(), "a restore that failed has left {ours:?}");
    ensure!(case.path("datagrams").exists(), "a restore that failed has removed a file");
    let left = children(i32::try_from(std::process::id())?);
    ensure!(left.iter().all(|&pid| !alive(pid)), "a restore that failed has left {left:?}");
    drop(taken);
    root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}

/// A target of 64 MiB and a disk of 8 MiB, in a mount namespace of `vckpt` alone.
fn disk_full() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("growth", &[])?;
    let disk = case.path("disk");
    fs::create_dir(&disk)?;
    let image = disk.join("image.vckpt");
    let listing = case.path("listing");
    let errors = case.path("errors");
    let bash = crate::harness::programs::need_program("bash")?;
    let mut command = case.command(&bash, "full")?;
    let script = "\"$0\" dump \"$1\" -o \"$2\"; status=$?; ls -A disk > listing; exit $status";
    command
        .args(["-c", script])
        .arg(&case.vckpt)
        .arg(root.to_string())
        .arg(&image)
        .stderr(File::create(&errors)?);
    let target = std::ffi::CString::new(text(&disk))?;
    // SAFETY: system calls only, with strings that were made before the fork.
    unsafe {
        command.pre_exec(move || {
            let none = std::ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let small = c"size=8m".as_ptr().cast();
            let good = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
                && libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, small) == 0;
            if good { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let pid = spawn(&mut command)?;
    let status = wait_exit(pid, Duration::from_secs(60))?;
    let errors = fs::read_to_string(errors)?;
    ensure!(matches!(status.code(), Some(5 | 7)), "a full disk ends with {status}: {errors}");
    ensure!(errors.contains("VC-") && errors.contains("hint"), "no named error: {errors}");
    let listing =
        until("the list of what is left", Duration::from_secs(5), || fs::read_to_string(&listing).ok())?;
    ensure!(listing.trim().is_empty(), "left on the full disk: {listing}");
    case.ask()?;
    case.finish(root)
}
