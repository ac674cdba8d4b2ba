//! A tree of processes that stands still: what observing looks at.
//!
//! It is made by [`freeze`](crate::freeze), which also lets it go again.

mod asking;

pub use asking::{run_in_all, run_side_by_side};

use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::sandbox::observe::permit;
use crate::proc::identity::Identity;
use crate::proc::maps::MapLine;
use crate::proc::stat::Stat;
use crate::stub::agent::{self, Agent};
use crate::stub::batch::{Batch, Outcome};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::lightweight_process::Dispatch;
use vckpt_image_format::record::process::EndedLeader;
use vckpt_image_format::record::process_status::State;
use vckpt_image_format::record::sandbox::Filter;

/// A tree of processes of which no task runs.
#[derive(Debug)]
pub struct Frozen {
    /// The root, by its virtual ID.
    pub root: TaskId,
    /// All processes; parents before their children.
    pub processes: Vec<FrozenProcess>,
}

/// A process that stands still, or has ended and was not waited for (then without threads).
#[derive(Debug)]
pub struct FrozenProcess {
    /// Its place in [`Frozen::processes`].
    pub index: u32,
    /// Its ID as it knows it (in its innermost PID namespace).
    pub id: TaskId,
    /// Its ID as this program sees it.
    pub pid: i32,
    /// The thread through which `/proc` shows what all threads share: the leader, or another one if that has ended.
    pub view: i32,
    /// What is left of its leader, if that has ended while other threads run.
    pub ended_leader: Option<EndedLeader>,
    /// Whether it has come to its parent by the end of another process, so that it shares no pages with it.
    pub adopted: bool,
    /// With whom it shares what.
    pub shares: Shares,
    /// Its parent within the tree, by virtual ID.
    pub parent: Option<TaskId>,
    /// The thread of its parent that it is a child of, if that is not the leader.
    pub parent_thread: Option<TaskId>,
    /// Its name (`comm`).
    pub command: String,
    /// Running, stopped or ended.
    pub state: State,
    /// A descriptor that stands for it, or for one of its threads if the leader has ended.
    pub pidfd: OwnedFd,
    /// Its memory (`/proc/<pid>/mem`), open for reading and, unless it has ended, writing.
    pub memory: File,
    /// Its mappings before a stub was put in place.
    pub maps: Vec<MapLine>,
    /// Its `/proc/<pid>/stat`: IDs as this program sees them.
    pub stat: Stat,
    /// Its identity in its own namespaces.
    pub identity: Identity,
    /// Its threads that live, the leader first. None if it has ended.
    pub threads: Vec<FrozenThread>,
}

/// What processes may share: for each the place of the first process that has it, which is also the number that it has
/// in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Its memory.
    pub memory: u32,
    /// Its descriptor table.
    pub descriptors: u32,
    /// Its current directory, root directory and umask.
    pub file_system: u32,
    /// Its signal handlers.
    pub handlers: u32,
}

impl Shares {
    /// Nothing is shared.
    #[must_use]
    pub fn none(index: u32) -> Self {
        Self { memory: index, descriptors: index, file_system: index, handlers: index }
    }
}

/// A thread that stands still.
#[derive(Debug)]
pub struct FrozenThread {
    /// Its ID as it knows it.
    pub id: TaskId,
    /// Its ID as this program sees it.
    pub tid: i32,
    /// Its name (`comm`).
    pub name: Vec<u8>,
    /// Its system call filters, which are suspended; the oldest first.
    pub filters: Vec<Filter>,
    /// How its calls are dispatched, if they are.
    pub dispatch: Option<Dispatch>,
    /// The stub in it, and the state to which it will be put back.
    pub agent: Agent,
}

impl Frozen {
    /// The process with this virtual ID.
    #[must_use]
    pub fn process(&self, id: TaskId) -> Option<&FrozenProcess> {
        self.processes.iter().find(|process| process.id == id)
    }

    /// The virtual ID of a task that this program sees as `pid`, if it belongs to the tree.
    #[must_use]
    pub fn virtual_id(&self, pid: i32) -> Option<TaskId> {
        self.processes.iter().find_map(|process| {
            if process.pid == pid {
                return Some(process.id);
            }
            process.threads.iter().find(|thread| thread.tid == pid).map(|thread| thread.id)
        })
    }

    /// The processes that have not ended.
    pub fn living(&mut self) -> impl Iterator<Item = &mut FrozenProcess> {
        self.processes.iter_mut().filter(|process| !process.threads.is_empty())
    }
}

impl FrozenProcess {
    /// For error messages.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject::task(self.id.0, &self.command)
    }

    /// Runs a batch in the leader, or in another thread if that has ended.
    ///
    /// # Errors
    /// If the stub can't be reached, or a call that must not fail did.
    pub fn run(&mut self, batch: &Batch) -> Result<Outcome> {
        let subject = self.subject();
        let Some(leader) = self.threads.first_mut() else {
            return Err(Error::new(code::INTERNAL, "a batch for a process that has ended").about(subject));
        };
        leader.run(batch).map_err(|error| error.about(subject))
    }

    /// A copy of one of its descriptors (the same open file description).
    ///
    /// # Errors
    /// [`code::NOT_PERMITTED`] or [`code::PROC`] with the kernel's reason.
    pub fn fetch_descriptor(&self, number: i32) -> Result<OwnedFd> {
        crate::sys::process::pidfd_getfd(self.pidfd.as_fd(), number).map_err(|errno| {
            Error::system(code::NOT_PERMITTED, "fetching a descriptor", errno)
                .about(self.subject().descriptor(number))
        })
    }
}

impl FrozenThread {
    /// Runs a batch in this thread and checks that what must not fail did not.
    ///
    /// # Errors
    /// If the stub can't be reached, or a call that must not fail did.
    pub fn run(&mut self, batch: &Batch) -> Result<Outcome> {
        permit(&self.filters, batch)?;
        self.agent.run(batch)
    }
}

impl Frozen {
    /// Takes every stub out, so that each thread stands still with its own state, and then lets all go on together.
    ///
    /// # Errors
    /// The threads that are gone. All others are let go all the same.
    pub fn release(mut self) -> Result<()> {
        let mut problems = self.remove_stubs();
        self.let_go(&mut problems);
        problems.finish()
    }

    /// As [`Frozen::release`], but every process is then stopped as by `SIGSTOP`.
    ///
    /// # Errors
    /// The threads that are gone.
    pub fn stop(mut self) -> Result<()> {
        let mut problems = self.remove_stubs();
        for process in self.processes.iter().filter(|process| !process.threads.is_empty()) {
            // It takes effect when the threads are let go.
            let _ = crate::sys::process::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGSTOP);
        }
        self.let_go(&mut problems);
        problems.finish()
    }

    /// First out of the threads whose areas were made by others, which then take these away.
    fn remove_stubs(&mut self) -> Problems {
        let mut problems = self.remove_stubs_of(false);
        problems.append(self.remove_stubs_of(true));
        problems
    }

    fn remove_stubs_of(&mut self, made_by_themselves: bool) -> Problems {
        let agents = self.processes.iter_mut().flat_map(|process| {
            let memory = &process.memory;
            let agents = process.threads.iter_mut().map(|thread| &mut thread.agent);
            agents
                .filter(|agent| agent.made_its_area() == made_by_themselves)
                .map(move |agent| (agent, memory))
        });
        let (areas, mut problems) = agent::remove(agents);
        for process in &mut self.processes {
            let maker =
                |thread: &&mut FrozenThread| thread.agent.is_injected() && thread.agent.made_its_area();
            let Some(maker) = process.threads.iter_mut().find(maker) else {
                continue;
            };
            let own: Vec<u64> =
                areas.iter().filter(|(pid, _)| *pid == process.pid).map(|&(_, area)| area).collect();
            problems.take(maker.agent.unmap(&own));
        }
        problems
    }

    fn let_go(&mut self, problems: &mut Problems) {
        for process in &mut self.processes {
            for thread in &mut process.threads {
                problems.take(thread.agent.release(&process.memory));
            }
        }
    }

    /// Ends every process of the tree, and returns when none of them runs any more.
    ///
    /// # Errors
    /// [`code::PTRACE`] if one can't be ended.
    pub fn kill(mut self) -> Result<()> {
        let mut problems = Problems::new();
        for process in self.processes.iter().filter(|process| !process.threads.is_empty()) {
            match crate::sys::process::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => problems
                    .push(Error::system(code::PTRACE, "ending the process", errno).about(process.subject())),
            }
        }
        for process in &mut self.processes {
            // The leader last: it is only reported when all others have ended.
            for thread in process.threads.iter_mut().rev() {
                problems.take(thread.agent.wait_for_end());
            }
        }
        problems.finish()
    }
}

impl Drop for Frozen {
    /// Lets the tree go on as before when something has failed; does nothing after a release.
    fn drop(&mut self) {
        let mut problems = self.remove_stubs();
        self.let_go(&mut problems);
    }
}
