//! Dumping a tree of processes: freeze, observe, store, and then end it or let it go on.

use crate::error::code::Class;
use crate::error::{Error, Result, Subject, code};
use crate::freeze;
use crate::kinds::descriptor::internet::hold::Hold;
use crate::kinds::descriptor::io_uring::observe::Watch;
use crate::look::{Look, Wanted, look};
use crate::output::ImageFile;
use crate::proc::stat;
use crate::progress::Progress;
use crate::store;
use crate::tracee::Haste;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::debug;

/// What becomes of the tree when the image is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It is ended.
    Kill,
    /// It goes on as if nothing had been.
    LeaveRunning,
    /// It is stopped as by `SIGSTOP`.
    LeaveStopped,
}

/// Where the image goes.
pub enum Output {
    /// To a new file.
    File(PathBuf),
    /// To a new file `<comm>-<pid>.vckpt` in the current directory.
    DefaultName,
    /// To whatever takes bytes.
    Stream(Box<dyn Write>),
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Output::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Output::DefaultName => formatter.write_str("DefaultName"),
            Output::Stream(_) => formatter.write_str("Stream"),
        }
    }
}

/// What to dump.
#[derive(Debug)]
pub struct Request {
    /// The root of the tree, as this program sees it.
    pub pid: i32,
    /// Where the image goes.
    pub output: Output,
    /// What becomes of the tree.
    pub afterwards: Afterwards,
    /// How long stopping it may take.
    pub freeze_timeout: Duration,
    /// Whether an existing file may be replaced.
    pub force: bool,
    /// Whether mapped files (programs, libraries) are stored too, for hosts that lack them.
    pub embed_files: bool,
    /// Whether TCP connections with peers outside of the tree are kept as if the peer had closed them.
    pub close_connections: bool,
    /// Whether unix sockets with peers outside of the tree are kept as if the peer had closed them.
    pub close_external: bool,
}

/// What was dumped.
#[derive(Debug, Clone)]
pub struct Report {
    /// The file, if it is one.
    pub image: Option<PathBuf>,
    /// The root, by the ID that it knows.
    pub root: u32,
    /// Its name.
    pub command: String,
    /// Number of processes.
    pub processes: usize,
    /// Number of threads.
    pub threads: usize,
    /// How long the tree stood still; up to its end if it was ended.
    pub frozen: Duration,
    /// How long all of it took.
    pub total: Duration,
    /// Bytes of memory that the image stands for.
    pub memory_bytes: u64,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// What could not be kept exactly.
    pub degraded: Vec<String>,
}

/// Dumps a tree of processes.
///
/// # Errors
/// Whatever stood in the way; then the tree goes on as before, and there is no image.
pub fn dump(request: Request, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let begin = Instant::now();
    let _haste = Haste::begin();
    freeze::preflight(request.pid)?;
    let (sink, file) = open(request.output, request.pid, request.force)?;
    progress(Progress { phase: "freeze", done: 0, total: 0 });
    let mut members = vec![request.pid];
    let Request { embed_files, close_connections, close_external, .. } = request;
    let wanted = Wanted { embed_files, close_connections, close_external };
    let looked = look(request.pid, request.freeze_timeout, wanted, &mut members);
    let Look { frozen, records, since: frozen_at } = looked.map_err(|error| or_the_end(error, &members))?;
    let mut records = records.map_err(|error| or_the_end(error, &members))?;
    let degraded = records.degraded.clone();
    let root = frozen.processes.first();
    let mut report = Report {
        image: file.as_ref().map(|file| file.path().to_path_buf()),
        root: frozen.root.0,
        command: root.map(|root| root.command.clone()).unwrap_or_default(),
        processes: frozen.processes.len(),
        threads: frozen.processes.iter().map(|process| process.threads.len()).sum(),
        frozen: Duration::ZERO,
        total: Duration::ZERO,
        memory_bytes: 0,
        image_bytes: 0,
        degraded,
    };
    let stored = store::store(&records, sink, progress);
    let (mut sink, stored) = stored.map_err(|error| or_the_end(error, &members))?;
    let hold = records.hold.take();
    let watched = std::mem::take(&mut records.watched);
    drop(records);
    sink.flush().map_err(|error| Error::system(code::IMAGE_WRITE, "writing the image", error))?;
    drop(sink);
    watched.iter().try_for_each(Watch::check)?;
    debug!(bytes = stored.image, elapsed = ?frozen_at.elapsed(), "stored");
    (report.memory_bytes, report.image_bytes) = (stored.memory, stored.image);
    progress(Progress { phase: "seal", done: 0, total: 0 });
    match request.afterwards {
        Afterwards::Kill => {
            // The image has to be safe before there is nothing else left.
            file.map_or(Ok(()), ImageFile::commit)?;
            Hold::end(hold, || frozen.kill())?;
            watched.iter().for_each(Watch::wait_for_end);
            report.frozen = frozen_at.elapsed();
        }
        Afterwards::LeaveRunning => {
            drop(hold);
            frozen.release().map_err(|error| or_the_end(error, &members))?;
            report.frozen = frozen_at.elapsed();
            file.map_or(Ok(()), ImageFile::commit)?;
        }
        Afterwards::LeaveStopped => {
            file.map_or(Ok(()), ImageFile::commit)?;
            drop(hold);
            frozen.stop().map_err(|error| or_the_end(error, &members))?;
            report.frozen = frozen_at.elapsed();
        }
    }
    report.total = begin.elapsed();
    Ok(report)
}

/// The other threads of a process that ends do so within this time after its first.
const END_OF_THREADS: Duration = Duration::from_millis(100);

/// What fails because a process of the tree has ended is about that, whatever it was that failed first.
fn or_the_end(error: Box<Error>, members: &[i32]) -> Box<Error> {
    let by_the_end = [Class::Internal, Class::Host, Class::Timeout, Class::TargetLost];
    let is_ending = |tid: i32| {
        let stat = crate::proc::read::file(tid, "stat").ok();
        stat.as_deref()
            .and_then(stat::parse)
            .is_none_or(|stat| matches!(stat.state, b'Z' | b'X') || stat.flags & stat::FLAG_EXITING != 0)
    };
    let all_are_ending = |pid: i32| {
        let threads = crate::proc::read::numbers(pid, "task").unwrap_or_default();
        threads.into_iter().all(is_ending)
    };
    // A first thread may end before the others do, or just be the first.
    let has_ended = |pid: i32| {
        let begin = Instant::now();
        while is_ending(pid) {
            if all_are_ending(pid) {
                return true;
            }
            if begin.elapsed() > END_OF_THREADS {
                return false;
            }
            crate::tracee::pause(END_OF_THREADS);
        }
        false
    };
    let Some(&pid) = members.iter().find(|&&pid| has_ended(pid)) else { return error };
    if !by_the_end.contains(&error.code.class) {
        return error;
    }
    Error::new(code::TARGET_DIED, "the process ended while it was being dumped")
        .because(error)
        .about(Subject { task: Some(pid.cast_unsigned()), ..Subject::default() })
}

fn open(output: Output, pid: i32, force: bool) -> Result<(Box<dyn Write>, Option<ImageFile>)> {
    let path = match output {
        Output::Stream(sink) => return Ok((sink, None)),
        Output::File(path) => path,
        Output::DefaultName => {
            let name = crate::proc::read::file(pid, "comm")?;
            let name = String::from_utf8_lossy(&name).trim().replace('/', "_");
            PathBuf::from(format!("{name}-{pid}.vckpt"))
        }
    };
    let (file, sink) = ImageFile::create(path, force)?;
    Ok((Box::new(sink), Some(file)))
}
