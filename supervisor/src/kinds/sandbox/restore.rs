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
    /// How many filters all threads have in common, the oldest first. They have them together, as after
    /// `SECCOMP_FILTER_FLAG_TSYNC` or as inherited by new threads: then any of them can give more to all.
    fn in_common(&self) -> usize {
        let Some((first, others)) = self.sandbox.threads.split_first() else { return 0 };
        if self.sandbox.threads.len() != self.tasks.len() {
            return 0;
        }
        let with = |other: &ThreadSandbox| {
            first.filters.iter().zip(&other.filters).take_while(|(one, other)| one == other).count()
        };
        others.iter().map(with).min().unwrap_or(first.filters.len())
    }
}

impl Action for Install {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let about = |error: Box<Error>| error.about(Subject::task(self.sandbox.process.0, "task"));
        let forbidden = |errno: Errno| {
            let error = Error::system(code::PRIVILEGE, "it ran under seccomp filters", errno);
            error.hint("run vckpt as root, and without filters of its own")
        };
        for thread in &self.sandbox.threads {
            let puppet = restoring.puppet(thread.thread).map_err(about)?;
            puppet
                .stop()
                .map_err(about)?
                .suspend_filters(OPTIONS)
                .map_err(|errno| about(forbidden(errno)))?;
            puppet.resume().map_err(about)?;
        }
        let common = self.in_common();
        for (number, ThreadSandbox { thread, filters }) in self.sandbox.threads.iter().enumerate() {
            let (shared, own) = filters.split_at(common);
            let shared = if number == 0 { shared } else { &[] };
            for (filter, flags) in with(shared, ALL_THREADS).chain(with(own, 0)) {
                install(restoring, *thread, filter, flags).map_err(about)?;
            }
        }
        Ok(())
    }
}

/// Filters, each with these flags.
fn with(filters: &[Filter], flags: u64) -> impl Iterator<Item = (&Filter, u64)> {
    filters.iter().map(move |filter| (filter, flags))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn install(tasks: u32, stacks: &[&[u8]]) -> Install {
        let filter = |&byte: &u8| Filter { flags: 0, program: vec![byte] };
        let thread = |(id, stack): (u32, &&[u8])| ThreadSandbox {
            thread: TaskId(id),
            filters: stack.iter().map(filter).collect(),
        };
        let threads = (1..).zip(stacks).map(thread).collect();
        Install { tasks: (1..=tasks).map(TaskId).collect(), sandbox: Sandbox { process: TaskId(1), threads } }
    }

    #[test]
    fn the_oldest_filters_may_be_those_of_all_threads() {
        assert_eq!(install(1, &[&[1, 2]]).in_common(), 2);
        assert_eq!(install(3, &[&[1, 2, 3], &[1, 2], &[1, 2, 4]]).in_common(), 2);
        assert_eq!(install(2, &[&[1, 2], &[3, 2]]).in_common(), 0);
        // One thread has none.
        assert_eq!(install(3, &[&[1], &[1]]).in_common(), 0);
    }
}
