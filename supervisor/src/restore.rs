//! Restoring a tree of processes: load, plan, act.

use crate::act::act;
use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::KINDS;
use crate::place;
use crate::plan::Plan;
use crate::progress::{Follow, Progress};
use crate::restoring::{Released, Restoring};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::debug;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::snapshot::Snapshot;

/// Where the image comes from.
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Whatever gives bytes; they are kept in a file without a name until the restore is done.
    Stream(Box<dyn Read>),
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Source::Stream(_) => formatter.write_str("Stream"),
        }
    }
}

/// Which process IDs the tree gets, as this host sees it. The application always keeps the ones that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pids {
    /// The same if all are free and may be chosen, else a PID namespace.
    Automatic,
    /// The same, or it fails.
    Same,
    /// A PID namespace.
    Namespace,
}

/// What to restore.
#[derive(Debug)]
pub struct Request {
    /// The image.
    pub source: Source,
    /// Its process IDs.
    pub pids: Pids,
    /// Whether the caller goes away; else the root is its child in the foreground.
    pub detach: bool,
    /// Addresses that sockets had, and those that they get.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Report {
    /// The root, by the ID that it knows.
    pub root: u32,
    /// The root, as this program sees it.
    pub pid: i32,
    /// Its name.
    pub command: String,
    /// Whether the tree is in a PID namespace of its own.
    pub namespace: bool,
    /// Number of processes, also those that have ended and were not waited for.
    pub processes: usize,
    /// Number of threads.
    pub threads: usize,
    /// How long all of it took.
    pub total: Duration,
    /// What is not exactly as it was.
    pub degraded: Vec<String>,
}

/// How the root ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By `exit`, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// A restored tree, whose root is a child of this program as long as it lives.
#[derive(Debug)]
pub struct Restored {
    /// What was restored.
    pub report: Report,
    released: Released,
}

impl Restored {
    /// Waits for the end of the root.
    ///
    /// # Errors
    /// [`code::INTERNAL`] if it is not to be waited for.
    pub fn wait(self) -> Result<Ending> {
        let ending = self.wait_for_root();
        crate::kinds::descriptor::terminal::restore::take_foreground_back();
        ending
    }

    fn wait_for_root(&self) -> Result<Ending> {
        loop {
            // Clones of all kinds, since the root may have any exit signal.
            match waitpid(Pid::from_raw(self.released.child), Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(_, status)) => return Ok(Ending::Exited(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ending::Signaled(signal as i32)),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::system(code::INTERNAL, "waiting for the root", errno)),
            }
        }
    }

    /// The child of this program whose end is that of the tree: the root, or the init of its PID namespace.
    #[must_use]
    pub fn child(&self) -> i32 {
        self.released.child
    }

    /// Sends the root a signal.
    ///
    /// # Errors
    /// [`code::NO_PROCESS`] if it is gone.
    pub fn forward(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.released.root), signal)
            .map_err(|errno| Error::system(code::NO_PROCESS, "sending a signal to the root", errno))
    }
}

/// Restores a tree of processes. `progress` may end it by a break.
///
/// # Errors
/// Whatever stood in the way, or [`code::CANCELLED`]; then nothing is left of it.
pub fn restore(request: Request, progress: &mut Follow<'_>) -> Result<Restored> {
    let begin = Instant::now();
    // Not asked for the answer: the first step that changes anything asks again.
    let _ = progress(Progress { phase: "verify", done: 0, total: 0 });
    let image = open(request.source)?;
    debug!(bytes = image.len(), elapsed = ?begin.elapsed(), "verified");
    let plan = plan(&image, &request.addresses)?;
    host(&image, &plan)?;
    debug!(steps = plan.len(), elapsed = ?begin.elapsed(), "planned");
    let snapshot: Snapshot = crate::image::one(&image)?;
    let place = place::find(&image)?;
    let namespace = match request.pids {
        Pids::Same => false,
        Pids::Namespace => true,
        Pids::Automatic => !place::can_have_same_ids(&image)?,
    };
    let attempt = |namespace: bool, progress: &mut Follow<'_>| {
        let mut restoring = Restoring::new(&image, snapshot.root, place);
        restoring.detached = request.detach;
        restoring.clocks = crate::clocks::needed(&snapshot);
        if namespace {
            restoring.enter_namespace()?;
        }
        act(&plan, &mut restoring, progress)?;
        let degraded = std::mem::take(&mut restoring.degraded);
        Ok::<_, Box<Error>>((restoring.finish()?, degraded, namespace))
    };
    let result = match attempt(namespace, progress) {
        // Somebody took an ID meanwhile, or we may not choose it.
        Err(error)
            if request.pids == Pids::Automatic
                && !namespace
                && [code::PID_TAKEN, code::PRIVILEGE].contains(&error.code) =>
        {
            debug!(%error, "trying again in a PID namespace");
            attempt(true, progress)
        }
        result => result,
    };
    let (released, degraded, namespace) = result?;
    let processes: Vec<Process> = crate::image::all(&image)?;
    let report = Report {
        root: snapshot.root.0,
        pid: released.root,
        command: snapshot.command.to_string(),
        namespace,
        processes: processes.len(),
        threads: processes
            .iter()
            .filter_map(|process| process.living.as_ref())
            .map(|living| living.threads.len())
            .sum(),
        total: begin.elapsed(),
        degraded: snapshot.degraded.into_iter().chain(degraded).collect(),
    };
    Ok(Restored { report, released })
}

/// Opens and verifies an image.
pub(crate) fn open(source: Source) -> Result<Image> {
    let file = match source {
        Source::File(path) => File::open(&path).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let code = if missing { code::IMAGE_MISSING } else { code::IMAGE_OPEN };
            Error::system(code, "opening the image", error).about(Subject::path(path.display()))
        })?,
        Source::Stream(mut stream) => spool(&mut stream).map_err(|error| {
            Error::system(code::IMAGE_OPEN, "keeping the image that comes as a stream", error)
        })?,
    };
    Image::open(file).map_err(crate::image::failure)
}

fn spool(stream: &mut dyn Read) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let folder = std::env::temp_dir();
    let mut file =
        File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder)?;
    io::copy(stream, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// Looks whether this host has what the image relies on; all problems at once.
pub(crate) fn host(image: &Image, plan: &Plan) -> Result<()> {
    let mut problems = Problems::new();
    problems.take(crate::kinds::memory::mapped_file::check(image));
    problems.take(crate::kinds::descriptor::internet::check(image, plan));
    problems.take(crate::kinds::descriptor::packet::restore::check(image));
    problems.take(crate::kinds::descriptor::io_uring::rights::check(image));
    problems.take(crate::kinds::descriptor::unix::restore::check(image));
    problems.finish()
}

/// Asks every kind what there is to do; all problems at once.
pub(crate) fn plan(image: &Image, addresses: &[(IpAddr, IpAddr)]) -> Result<Plan> {
    let mut problems = Problems::new();
    let mut plan = Plan::new(addresses);
    for kind in KINDS {
        problems.take((kind.plan)(image, &mut plan));
    }
    problems.finish()?;
    Ok(plan)
}
