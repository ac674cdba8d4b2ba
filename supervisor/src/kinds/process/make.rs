//! Making processes: puppets that make one another.

use super::ended::Remains;
use super::groups::Leaderless;
use super::sessions::Adoption;
use crate::error::{Error, Result, code};
use crate::kinds::descriptor::terminal::pair::restore::take_controlling;
use crate::kinds::memory::build::{self, MemoryPlan};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::stub::puppet::{Child, THREAD_FLAGS};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::signal::SIGINFO_LENGTH;

/// A task, and where its puppet has its area and its socket: numbers that differ among those that share a memory, and
/// among those that share a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its ID.
    pub id: TaskId,
    /// The number of its area.
    pub slot: usize,
    /// The number of its socket.
    pub socket: usize,
}

/// How a process comes into the world.
#[derive(Debug, Clone)]
pub struct Birth {
    /// Its leader.
    pub leader: Member,
    /// Its other threads; none if it has ended.
    pub others: Vec<Member>,
    /// Whether a process is made by one of the others.
    pub others_early: bool,
    /// Its parent; none for the root.
    pub parent: Option<TaskId>,
    /// The task that makes it: of its parent, or of another child of that; none for the root.
    pub maker: Option<TaskId>,
    /// What it shares with the task that makes it: `CLONE_…`.
    pub flags: u64,
    /// The signal that its end sends.
    pub exit_signal: u32,
    /// Whether it founds its session.
    pub founds_session: bool,
    /// Whether it is born before its parent founds a session.
    pub before_parents_session: bool,
    /// Whether its parent is not who makes it, but who has got it when that one ended.
    pub adopted: bool,
    /// The group that it joins or founds; none: the one it was born into.
    pub joins_group: Option<u32>,
    /// What is left of it, if it ends at once.
    pub zombie: Option<Remains>,
    /// The signal that it is stopped by.
    pub stopped: Option<i32>,
    /// Whether its parent can still wait for that stop.
    pub stop_untold: bool,
    /// Whether its parent can still wait for its going on after a stop.
    pub continue_untold: bool,
}

impl Birth {
    /// The ID of the process.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.leader.id
    }
}

/// Makes all processes and threads.
#[derive(Debug)]
pub struct MakeProcesses {
    /// Parents before their children.
    pub births: Vec<Birth>,
    /// How those come into the world that their parents don't make.
    pub adoptions: Vec<Adoption>,
    /// Groups whose leader is made for them.
    pub groups: Vec<Leaderless>,
    /// The session of the root, if a process outside of the tree led it, and the root's group was its.
    pub outer_session: Option<u32>,
    /// Memories that have to be there before the children of a process are made.
    pub early: BTreeMap<TaskId, MemoryPlan>,
}

impl Action for MakeProcesses {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(root) = self.births.first() else {
            return Err(Error::new(code::IMAGE_BAD, "the image has no process"));
        };
        restoring.start_root(root.id(), self.outer_session)?;
        self.descendants(restoring, root.id())?;
        for adoption in &self.adoptions {
            self.adopt(restoring, adoption)?;
            self.descendants(restoring, adoption.child)?;
        }
        self.groups(restoring)?;
        restoring.end_leader()?;
        for birth in self.births.iter().filter(|birth| !birth.others_early) {
            spawn_others(restoring, birth)?;
        }
        for birth in &self.births {
            let Some(remains) = &birth.zombie else { continue };
            let Some(mut puppet) = restoring.puppets.remove(&birth.id()) else { continue };
            restoring.degraded.extend(remains.end(&mut puppet)?);
            restoring.zombies.insert(birth.id(), puppet.tid);
            if let (Some(parent), signal @ 1..) = (birth.parent, birth.exit_signal) {
                take_signal(restoring, parent, signal)?;
            }
        }
        self.births.iter().try_for_each(|birth| stop(restoring, birth))
    }
}

impl MakeProcesses {
    /// Makes all descendants of a process that need no adoption.
    fn descendants(&self, restoring: &mut Restoring<'_>, first: TaskId) -> Result<()> {
        let mut queue = VecDeque::from([first]);
        while let Some(id) = queue.pop_front() {
            let Some(birth) = self.births.iter().find(|birth| birth.id() == id) else { continue };
            self.family(restoring, birth)?;
            queue.extend(self.children(birth).map(Birth::id));
        }
        Ok(())
    }

    /// The children that a process makes itself.
    fn children(&self, birth: &Birth) -> impl Iterator<Item = &Birth> {
        let id = birth.id();
        self.births.iter().filter(move |child| child.parent == Some(id) && !child.adopted)
    }

    /// Makes a process by another one that ends.
    fn adopt(&self, restoring: &mut Restoring<'_>, adoption: &Adoption) -> Result<()> {
        let Some(birth) = self.births.iter().find(|birth| birth.id() == adoption.child) else {
            return Ok(());
        };
        let Some(parent) = birth.parent else { return Ok(()) };
        restoring.run(parent, &reaper(true))?;
        let temporary = Child { exit_signal: 0, ..Child::process(adoption.temporary) };
        let mut maker = restoring.puppet(adoption.from)?.spawn(temporary)?;
        if adoption.founds {
            maker.run(&found_session())?;
        }
        let child = Child { exit_signal: birth.exit_signal, ..Child::process(birth.id()) };
        let made = maker.spawn(child)?;
        restoring.puppets.insert(birth.id(), made);
        maker.end(0)?;
        restoring.run(adoption.from, &reap(adoption.temporary))?;
        restoring.run(parent, &reaper(false)).map(drop)
    }

    /// Lets a process found its session and make its children, each in its time.
    fn family(&self, restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
        let children = || self.children(birth);
        if birth.others_early {
            spawn_others(restoring, birth)?;
        }
        let memory = self.early.get(&birth.id());
        if let Some(memory) = memory {
            build::build(restoring, memory)?;
            // Whoever shares it is about to fork, not only the process that builds it.
            restoring.settle()?;
        }
        for child in children().filter(|child| child.before_parents_session) {
            spawn(restoring, child)?;
        }
        if birth.founds_session {
            restoring.run(birth.id(), &found_session())?;
            // Before the children are made, which inherit it.
            take_controlling(restoring, birth.id())?;
        }
        for child in children().filter(|child| !child.before_parents_session) {
            spawn(restoring, child)?;
        }
        Ok(())
    }

    /// Founds and joins process groups, founders first: also those who have left theirs.
    fn groups(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut leaders = Vec::new();
        for &Leaderless { group, member } in &self.groups {
            let leader = Child { exit_signal: 0, ..Child::process(TaskId(group)) };
            let mut leader = restoring.puppet(member)?.spawn(leader)?;
            leader.run(&join(0))?;
            leaders.push((leader, member));
        }
        let joined: BTreeSet<u32> = self.births.iter().filter_map(|birth| birth.joins_group).collect();
        let founds = |birth: &&Birth| joined.contains(&birth.id().0) && !birth.founds_session;
        for birth in self.births.iter().filter(founds) {
            restoring.run(birth.id(), &join(0))?;
        }
        // A founder that leaves its group does so when all others are in it.
        let (founders, others): (Vec<_>, Vec<_>) = self.births.iter().partition(founds);
        for birth in others.into_iter().chain(founders) {
            if let Some(group) = birth.joins_group.filter(|&group| group != birth.id().0) {
                restoring.run(birth.id(), &join(group))?;
            }
        }
        for (mut leader, member) in leaders {
            leader.end(0)?;
            restoring.run(member, &reap(leader.id))?;
        }
        Ok(())
    }
}

fn found_session() -> Batch {
    let mut batch = Batch::new();
    batch.must("founding a session", libc::SYS_setsid, []);
    batch
}

/// Joins a process group; 0: founds one.
fn join(group: u32) -> Batch {
    let mut batch = Batch::new();
    batch.must("joining a process group", libc::SYS_setpgid, [0.into(), group.into()]);
    batch
}

/// Makes a process one that gets the orphans among its descendants, or not any more.
fn reaper(is: bool) -> Batch {
    let mut batch = Batch::new();
    let arguments = [libc::PR_SET_CHILD_SUBREAPER.into(), u32::from(is).into(), 0.into(), 0.into(), 0.into()];
    batch.must("becoming a reaper", libc::SYS_prctl, arguments);
    batch
}

/// Waits for a child whose end sends no signal.
fn reap(child: TaskId) -> Batch {
    let mut batch = Batch::new();
    let arguments = [child.0.into(), 0.into(), libc::__WALL.into(), 0.into()];
    batch.must("waiting for a puppet", libc::SYS_wait4, arguments);
    batch
}

fn spawn(restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
    let Some((maker, parent)) = birth.maker.zip(birth.parent) else { return Ok(()) };
    let Member { id, slot, socket } = birth.leader;
    let parent = Some(restoring.system_id(parent)?);
    let child = Child { id, flags: birth.flags, exit_signal: birth.exit_signal, slot, socket, parent };
    let made = restoring.puppet(maker)?.spawn(child)?;
    restoring.puppets.insert(id, made);
    Ok(())
}

/// Makes the second threads of a process.
fn spawn_others(restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
    for &Member { id, slot, socket } in &birth.others {
        let thread = Child { id, flags: THREAD_FLAGS, exit_signal: 0, slot, socket, parent: None };
        let made = restoring.puppet(birth.id())?.spawn(thread)?;
        restoring.puppets.insert(id, made);
    }
    Ok(())
}

/// Stops a process that was stopped by a signal. Its puppets go on serving; the stop holds them when they are released.
/// The signal that its parent gets of this is taken away with those of all other puppets.
fn stop(restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
    let goes_on = birth.continue_untold.then_some(libc::SIGSTOP);
    let Some(signal) = birth.stopped.or(goes_on) else { return Ok(()) };
    let batch = restoring.puppet(birth.id())?.stop_process(signal)?;
    for other in &birth.others {
        restoring.puppet(other.id)?.stop()?;
    }
    for member in std::iter::once(&birth.leader).chain(&birth.others) {
        restoring.puppet(member.id)?.resume()?;
    }
    restoring.puppet(birth.id())?.receive(&batch)?;
    let (Some(parent), false) = (birth.parent, birth.stop_untold) else { return Ok(()) };
    let mut batch = Batch::new();
    let information = batch.data(&[0; SIGINFO_LENGTH]);
    let options = (libc::WSTOPPED | libc::WNOHANG | libc::__WALL).into();
    let arguments = [libc::P_PID.into(), birth.id().0.into(), information.into(), options, 0.into()];
    batch.must("waiting for the stop of a child", libc::SYS_waitid, arguments);
    restoring.run(parent, &batch)?;
    if birth.continue_untold {
        let pid = nix::unistd::Pid::from_raw(restoring.system_id(birth.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)
            .map_err(|errno| Error::system(code::TASK_RESTORE, "letting a stopped process go on", errno))?;
    }
    Ok(())
}

/// Takes the signal of a puppet's end away from its parent: the original had it long ago.
fn take_signal(restoring: &mut Restoring<'_>, parent: TaskId, signal: u32) -> Result<()> {
    let mut batch = Batch::new();
    let set = batch.words(&[1 << (signal - 1)]);
    let now = batch.words(&[0, 0]);
    batch.call("taking a signal", libc::SYS_rt_sigtimedwait, [set.into(), 0.into(), now.into(), 8.into()]);
    restoring.run(parent, &batch).map(drop)
}
