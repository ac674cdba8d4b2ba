//! Where the demonstration happens: its folder, its processes, and that nothing of it is left behind.

use super::bakery::{BOOK_FILE, OVEN_FILE};
use super::book::{Book, Oven, Proof};
use crate::failure::{Failure, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid};
use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the bakery writes to standard error.
const NOTES_FILE: &str = "notes";
/// How long ended processes may take to vanish.
const REAPING: Duration = Duration::from_secs(3);

/// The stage.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
    keep: bool,
    /// The master of the bakery as it runs now, as this program sees it.
    master: Mutex<Option<i32>>,
}

/// The time since the start of the host.
pub(super) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Stage {
    /// A folder that nobody else can look into.
    pub(super) fn new(keep: bool) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("vckpt-demo-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| Failure::from(error).context(format!("{}: can't be made", folder.display())))?;
        Ok(Self { folder, keep, master: Mutex::new(None) })
    }

    /// Starts the bakery and gives the process ID of its master.
    pub(super) fn open(&self) -> Result<i32> {
        // Orphans of the bakery come to this program, which reaps them: their process IDs are free at once.
        set_child_subreaper(true).map_err(io::Error::from)?;
        // What this program inherited is none of the bakery's business.
        vckpt_supervisor::sys::process::keep_descriptors_private().map_err(io::Error::from)?;
        let child = Command::new(std::env::current_exe()?)
            .arg0("vckpt")
            .args(["bakery", "master"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join(NOTES_FILE))?)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(|_| Failure::message("a process ID is out of range"))?;
        self.set_master(Some(pid));
        Ok(pid)
    }

    /// The image.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("bakery.vckpt")
    }

    /// The folder, if it is to be kept.
    pub(super) fn kept(&self) -> Option<&Path> {
        self.keep.then_some(self.folder.as_path())
    }

    /// The book as it is now; empty if there is none.
    pub(super) fn book(&self) -> Result<Book> {
        Ok(Book::parse(&self.read(BOOK_FILE)?))
    }

    /// What is known of the oven.
    pub(super) fn oven(&self) -> Result<Oven> {
        Ok(Oven::parse(&self.read(OVEN_FILE)?))
    }

    /// What the bakery complained about.
    pub(super) fn notes(&self) -> Option<String> {
        let notes = self.read(NOTES_FILE).ok()?;
        Some(notes.trim().to_owned()).filter(|notes| !notes.is_empty())
    }

    fn read(&self, name: &str) -> Result<String> {
        match fs::read_to_string(self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            result => Ok(result?),
        }
    }

    /// Reaps the dumped bakery; says whether none of its members is left.
    pub(super) fn reap(&self, members: &[u32]) -> Result<bool> {
        self.set_master(None);
        reap_all();
        Ok(!members.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()))
    }

    /// The bakery runs again, with this process as its master.
    pub(super) fn returned(&self, pid: i32) {
        self.set_master(Some(pid));
    }

    /// Whether the members have their process IDs again.
    pub(super) fn has_ids(&self, members: &[u32], namespace: bool) -> Proof {
        if !namespace {
            let there = members.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists());
            return Proof::new(there, "every process has its old process ID");
        }
        let inner = self.master().and_then(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            line.split_whitespace().last()?.parse::<u32>().ok()
        });
        let there = inner.is_some() && inner == members.first().copied();
        Proof::new(there, "every process has its old process ID, in a PID namespace of its own")
    }

    /// Tells the bakery to close.
    pub(super) fn close(&self) -> Result<()> {
        if let Some(pid) = self.master() {
            kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Ends everything and removes the folder, whatever the state of the play.
    pub(super) fn clear(&self) {
        if let Some(pid) = self.set_master(None).map(Pid::from_raw) {
            // The master leads the group of all; if it has not come so far, it is alone.
            if getpgid(Some(pid)) == Ok(pid) {
                let _ = killpg(pid, Signal::SIGKILL);
            }
            let _ = kill(pid, Signal::SIGKILL);
            reap_all();
        }
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn master(&self) -> Option<i32> {
        *self.master.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_master(&self, pid: Option<i32>) -> Option<i32> {
        std::mem::replace(&mut *self.master.lock().unwrap_or_else(PoisonError::into_inner), pid)
    }
}

/// Reaps every child, until there are none or it takes too long.
fn reap_all() {
    let deadline = Instant::now() + REAPING;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => sleep(Duration::from_millis(5)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
