//! Processes: the frozen programs and the commands that are measured.

use super::Outcome;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes this program the one that reaps what it has frozen and restored.
pub(crate) fn prepare() -> Outcome {
    set_child_subreaper(true)?;
    vckpt_supervisor::sys::process::keep_descriptors_private()?;
    Ok(())
}

/// A folder for images that vanishes when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A new folder within another one.
    pub(crate) fn new(within: &Path) -> Outcome<Self> {
        let path = within.join(format!("vckpt-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A program that is frozen and restored; the leader of a session and a process group of its own.
#[derive(Debug)]
pub(crate) struct Program {
    pid: Pid,
}

impl Program {
    /// Starts a command, without waiting for anything.
    pub(crate) fn start(command: &mut Command) -> Outcome<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { pid: Pid::from_raw(i32::try_from(child.id())?) })
    }

    /// Starts `sleep` and waits until it sleeps.
    pub(crate) fn sleep() -> Outcome<Self> {
        let program = Self::start(Command::new("setsid").args(["sleep", "100000"]))?;
        let pid = u32::try_from(program.pid.as_raw())?;
        until(|| Ok(sleeps(pid).then_some(())))?;
        Ok(program)
    }

    /// Starts a fixture and gives what it says when it is ready.
    pub(crate) fn fixture(folder: &Folder, words: &[&str]) -> Outcome<(Self, u64)> {
        let ready = folder.file("ready");
        let _ = fs::remove_file(&ready);
        let mut command = Command::new(std::env::current_exe()?);
        let program = Self::start(command.arg("fixture").args(words).arg(&ready))?;
        let said = until(|| {
            let text = fs::read_to_string(&ready).unwrap_or_default();
            Ok(text.strip_suffix('\n').and_then(|text| text.parse().ok()))
        })?;
        Ok((program, said))
    }

    /// Its process ID.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The wall time of `vckpt dump`, which ends it, and how long it stood still in that.
    pub(crate) fn dump_and_tell(&self, image: &Path) -> Outcome<(Duration, Duration)> {
        let _ = fs::remove_file(image);
        let mut command = vckpt();
        let begin = Instant::now();
        let output = said(command.args(["dump", "--json", "-o"]).arg(image).arg(self.pid.to_string()))?;
        let time = begin.elapsed();
        reap()?;
        let frozen = output.lines().find_map(|line| line.trim().strip_prefix("\"frozen_ms\": "));
        let frozen: f64 = frozen.ok_or("a dump says how long it froze")?.trim_end_matches(',').parse()?;
        Ok((time, Duration::from_secs_f64(frozen / 1000.0)))
    }

    /// The wall time of `vckpt dump`, which ends it.
    pub(crate) fn dump(&self, image: &Path) -> Outcome<Duration> {
        let _ = fs::remove_file(image);
        let time = run(vckpt().args(["dump", "-q", "-o"]).arg(image).arg(self.pid.to_string()))?;
        reap()?;
        Ok(time)
    }

    /// The wall time of `vckpt restore --detach`.
    pub(crate) fn restore(image: &Path) -> Outcome<Duration> {
        run(vckpt().args(["restore", "-q", "--detach"]).arg(image))
    }
}

impl Drop for Program {
    /// Ends it, restored or not, with all its children.
    fn drop(&mut self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = reap();
    }
}

/// The command that is measured: the one that was built, or that which `VCKPT_BIN` names.
pub(crate) fn vckpt() -> Command {
    Command::new(std::env::var_os("VCKPT_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_vckpt").into()))
}

/// Runs a command to its end; the time it took.
pub(crate) fn run(command: &mut Command) -> Outcome<Duration> {
    let begin = Instant::now();
    said(command)?;
    Ok(begin.elapsed())
}

/// Runs a command to its end; what it says.
fn said(command: &mut Command) -> Outcome<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{command:?} failed ({}):\n{said}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a process waits in clock_nanosleep(2).
pub(crate) fn sleeps(pid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall"));
    call.is_ok_and(|call| call.starts_with("230 "))
}

/// Waits for the end of every child that has ended or is about to.
pub(crate) fn reap() -> Outcome {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn until<T>(mut condition: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if begin.elapsed() > PATIENCE {
            return Err("a program was not ready in time".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
