//! Installs filters, which stay suspended until the release.

use crate::error::{Error, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::stub::puppet::OPTIONS;
use nix::errno::Errno;
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::sandbox::{Filter, INSTRUCTION, Sandbox, ThreadSandbox};

/// `SECCOMP_SET_MODE_FILTER`.
const SET_FILTER: u32 = 1;
/// `SECCOMP_FILTER_FLAG_TSYNC`.
const ALL_THREADS: u64 = 1;

/// Adds the steps for the filters of every thread.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let sandboxes = crate::image::all::<Sandbox>(image)?;
    if sandboxes.is_empty() {
        return Ok(());
    }
    let processes = crate::image::all::<Process>(image)?;
    for sandbox in sandboxes {
        let process = processes.iter().find(|process| process.id == sandbox.process);
        let tasks = process.map(Process::tasks).unwrap_or_default();
        plan.action(Stage::Credentials, Install { tasks, sandbox });
    }
    Ok(())
}

/// Installs the filters of a process.
#[derive(Debug)]
struct Install {
    /// All of its threads.
    tasks: Vec<TaskId>,
    sandbox: Sandbox,
}

impl Install {
    /// Whether all threads have the same filters: then they have them together, as after `SECCOMP_FILTER_FLAG_TSYNC`.
    fn is_alike(&self) -> bool {
        let first = self.sandbox.threads.first();
        self.sandbox.threads.len() == self.tasks.len()
            && self
                .sandbox
                .threads
                .iter()
                .all(|thread| first.is_some_and(|first| first.filters == thread.filters))
    }
}

impl Action for Install {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::task(self.sandbox.process.0, "task"));
        let forbidden = |errno: Errno| {
            let error = Error::system(code::PRIVILEGE, "it ran under seccomp filters", errno);
            error.hint("run vckpt as root, and without filters of its own")
        };
        let is_alike = self.is_alike();
        let members: Vec<TaskId> = if is_alike {
            self.tasks.clone()
        } else {
            self.sandbox.threads.iter().map(|thread| thread.thread).collect()
        };
        for member in members {
            let puppet = restoring.puppet(member).map_err(about)?;
            puppet
                .stop()
                .map_err(about)?
                .suspend_filters(OPTIONS)
                .map_err(|errno| about(forbidden(errno)))?;
            puppet.resume().map_err(about)?;
        }
        let (flags, count) = if is_alike { (ALL_THREADS, 1) } else { (0, usize::MAX) };
        for ThreadSandbox { thread, filters } in self.sandbox.threads.iter().take(count) {
            for filter in filters {
                install(restoring, *thread, filter, flags).map_err(about)?;
            }
        }
        Ok(())
    }
}

/// Puts a filter into the memory of a thread, lets it install it, and takes it away again.
fn install(restoring: &mut Restoring<'_>, thread: TaskId, filter: &Filter, flags: u64) -> Result<()> {
    let length = (16 + filter.program.len()).next_multiple_of(4096);
    let mut batch = Batch::new();
    let (protection, map) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let arguments = [0.into(), length.into(), protection.into(), map.into(), (-1).into(), 0.into()];
    let place = batch.must("making room for a filter", libc::SYS_mmap, arguments);
    let place = restoring.run(thread, &batch)?.get(place);
    let place =
        place.map_err(|errno| Error::system(code::TASK_RESTORE, "making room for a filter", errno))?;
    // struct sock_fprog: the number of instructions, and where they are.
    let count = (filter.program.len() / INSTRUCTION) as u64;
    let mut bytes: Vec<u8> = [count, place + 16].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(&filter.program);
    restoring.puppet(thread)?.write(place, &bytes)?;
    let mut batch = Batch::new();
    let arguments = [SET_FILTER.into(), (filter.flags | flags).into(), place.into()];
    batch.must("installing a filter", libc::SYS_seccomp, arguments);
    batch.must("taking room away", libc::SYS_munmap, [place.into(), length.into()]);
    restoring.run(thread, &batch).map(drop)
}
