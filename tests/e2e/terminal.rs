//! Terminals and the restore in the foreground: output and input on a new terminal, signals, exit status.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{alive, children, signal, spawn, take_status, until, wait_exit, wait_gone};
use crate::harness::{Outcome, Topic, ensure, fail};
use crate::stage::Stage;
use crate::stage::kernel::check;

pub(crate) const TOPIC: Topic = Topic {
    name: "terminal",
    fixtures: &[("talker", talker), ("obedient", obedient)],
    cases: &[
        ("shell_job_on_another_terminal", shell_job),
        ("foreground_gives_exit_status", exit_status),
        ("foreground_gives_fatal_signal", fatal_signal),
        ("foreground_hands_on_signals", hands_on_signals),
    ],
};

const LIMIT: Duration = Duration::from_secs(20);

/// A terminal made by the test: the master end and the path of the other.
struct Terminal {
    master: File,
    path: String,
    seen: String,
}

impl Terminal {
    fn new() -> Outcome<Self> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: a path that ends with NUL, then our own descriptor and room for the name.
        let (master, path) = unsafe {
            let master = check(libc::open(c"/dev/ptmx".as_ptr(), flags))?;
            check(libc::grantpt(master))?;
            check(libc::unlockpt(master))?;
            let mut name = [0_u8; 64];
            libc::ptsname_r(master, name.as_mut_ptr().cast(), 64);
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
            let size = libc::winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
            check(libc::ioctl(master, libc::TIOCSWINSZ, &raw const size))?;
            (File::from_raw_fd(master), String::from_utf8_lossy(&name[..end]).into_owned())
        };
        Ok(Self { master, path, seen: String::new() })
    }

    /// Makes a command run in a session of its own with this as its controlling terminal.
    fn give_to(&self, command: &mut Command) -> Outcome {
        let end = File::options().read(true).write(true).open(&self.path)?;
        command.stdin(end.try_clone()?).stdout(end.try_clone()?).stderr(end);
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        Ok(())
    }

    /// Waits until this text has come out of the terminal, after what was waited for before.
    fn expect(&mut self, wanted: &str) -> Outcome {
        let mut buffer = [0; 4096];
        let (master, seen) = (&mut self.master, &mut self.seen);
        let found = until(&format!("{wanted:?} on the terminal"), LIMIT, || {
            if let Ok(count) = master.read(&mut buffer) {
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            seen.find(wanted)
        });
        let Ok(place) = found else {
            return fail(format!("{wanted:?} does not come; on the terminal is {seen:?}"));
        };
        seen.drain(..place + wanted.len());
        Ok(())
    }

    fn type_in(&mut self, line: &str) -> Outcome {
        Ok(self.master.write_all(line.as_bytes())?)
    }
}

/// Reads lines and answers each with a counter, the terminal's name and its size; Ctrl-C is counted too.
fn talker(_: Stage) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static INTERRUPTS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        INTERRUPTS.fetch_add(1, Ordering::SeqCst);
    }
    crate::stage::kernel::handle(libc::SIGINT, count, libc::SA_RESTART, &[]);
    println!("talker is ready");
    for (number, line) in std::io::stdin().lines().enumerate() {
        let line = line.unwrap();
        if line == "end" {
            std::process::exit(23);
        }
        // SAFETY: a valid place.
        let (terminal, group) = unsafe { (libc::isatty(0), libc::tcgetpgrp(0) == libc::getpgrp()) };
        let interrupts = INTERRUPTS.load(Ordering::SeqCst);
        println!(
            "answer {number} to {line}: terminal {terminal}, foreground {group}, interrupts {interrupts}."
        );
    }
}

fn shell_job() -> Outcome {
    let mut case = Case::new()?;
    let mut first = Terminal::new()?;
    // A shell with job control is the session's leader; the job is what is dumped, not the shell.
    let mut shell = Command::new("/bin/bash");
    shell
        .args(["--norc", "--noprofile", "-i"])
        .current_dir(&case.folder)
        .env("PS1", "prompt> ")
        .env("TERM", "dumb");
    first.give_to(&mut shell)?;
    let shell = spawn(&mut shell)?;
    first.expect("prompt> ")?;
    first.type_in(&format!("{} fixture talker {}\n", text(&case.fixtures), text(&case.folder)))?;
    first.expect("talker is ready")?;
    first.type_in("one\n")?;
    first.expect("answer 0 to one: terminal 1, foreground true, interrupts 0.")?;
    let job = *children(shell).first().ok_or(crate::harness::Stop::Failed("the shell has no job".into()))?;
    let mut image = case.dump_with(job, &[])?;
    first.expect("prompt> ")?;
    for round in 1..=2 {
        let mut next = Terminal::new()?;
        let mut restore = Command::new(&case.vckpt);
        // The file is written when the job is there; before, there may be an init of its namespace alone.
        let pid_file = case.path(&format!("job-{round}.pid"));
        restore.arg("restore").arg(&image).arg("--pid-file").arg(&pid_file).current_dir(&case.folder);
        next.give_to(&mut restore)?;
        let supervisor = spawn(&mut restore)?;
        let root = until("the restored job", LIMIT, || {
            std::fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok()
        })?;
        next.type_in("again\n")?;
        next.expect(&format!(
            "answer {round} to again: terminal 1, foreground true, interrupts {}.",
            round - 1
        ))?;
        next.type_in("\x03")?;
        next.expect("^C")?;
        ensure!(take_status(supervisor).is_none(), "the restore in the foreground ended by Ctrl-C");
        if round == 2 {
            next.type_in("end\n")?;
            let status = wait_exit(supervisor, LIMIT)?;
            ensure!(status.code() == Some(23), "the restore in the foreground ended with {status}, not 23");
        } else {
            image = case.dump_with(root, &[])?;
            wait_exit(supervisor, LIMIT)?;
            wait_gone(root, LIMIT)?;
        }
    }
    signal(shell, libc::SIGHUP)?;
    wait_exit(shell, LIMIT)?;
    case.finish_empty()
}

/// Ends with 42 on SIGTERM, notes SIGUSR1 in its output, and dies of SIGQUIT.
fn obedient(stage: Stage) {
    let set = crate::stage::kernel::signal_set(&[libc::SIGTERM, libc::SIGUSR1, libc::SIGWINCH]);
    crate::stage::kernel::block(&[libc::SIGTERM, libc::SIGUSR1, libc::SIGWINCH]);
    stage.publish("ready", "");
    loop {
        let mut number = 0;
        // SAFETY: valid places.
        unsafe { libc::sigwait(&raw const set, &raw mut number) };
        stage.publish(&format!("got-{number}"), "");
        if number == libc::SIGTERM {
            std::process::exit(42);
        }
    }
}

/// Dumps the obedient program and restores it in the foreground; gives `vckpt`, its output, and the root.
fn in_foreground(case: &mut Case) -> Outcome<(i32, [std::path::PathBuf; 2], i32)> {
    let root = case.start("obedient", &[])?;
    let image = case.dump(root)?;
    let pid_file = case.path("root.pid");
    let (supervisor, files) = case.start_vckpt(&["restore", text(&image), "--pid-file", text(&pid_file)])?;
    let root = until("the PID file of the restore in the foreground", LIMIT, || {
        if !alive(supervisor) {
            return Some(fail("the restore in the foreground ended early"));
        }
        std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok().map(Ok)
    })??;
    ensure!(alive(root) && alive(supervisor), "the restored program or its supervisor has ended");
    Ok((supervisor, files, root))
}

fn exit_status() -> Outcome {
    let mut case = Case::new()?;
    let (supervisor, files, root) = in_foreground(&mut case)?;
    signal(root, libc::SIGTERM)?;
    let ran = case.ended(supervisor, files, &["restore"])?;
    ensure!(ran.status.code() == Some(42), "not the program's status 42: {}", ran.describe());
    case.finish_empty()
}

fn fatal_signal() -> Outcome {
    let mut case = Case::new()?;
    let (supervisor, files, root) = in_foreground(&mut case)?;
    signal(root, libc::SIGKILL)?;
    let ran = case.ended(supervisor, files, &["restore"])?;
    let good = ran.status.code() == Some(128 + libc::SIGKILL) || ran.status.signal() == Some(libc::SIGKILL);
    ensure!(good, "not the status of a program killed by signal 9: {}", ran.describe());
    case.finish_empty()
}

fn hands_on_signals() -> Outcome {
    let mut case = Case::new()?;
    let (supervisor, files, root) = in_foreground(&mut case)?;
    for number in [libc::SIGUSR1, libc::SIGWINCH, libc::SIGTERM] {
        signal(supervisor, number)?;
        let got = case.path(&format!("got-{number}"));
        until(&format!("signal {number} to be handed on"), LIMIT, || got.exists().then_some(()))?;
    }
    let ran = case.ended(supervisor, files, &["restore"])?;
    ensure!(ran.status.code() == Some(42), "not the program's status 42: {}", ran.describe());
    wait_gone(root, LIMIT)?;
    ensure!(case.path("got-15").exists(), "SIGTERM did not reach the program");
    case.finish_empty()
}
