//! Making processes: puppets that make one another.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::terminal::pair::restore::take_controlling;
use crate::kinds::memory::build::{self, MemoryPlan};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::collections::BTreeMap;
use std::fs;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::signal::SIGINFO_LENGTH;

/// How a process comes into the world.
#[derive(Debug, Clone)]
pub struct Birth {
    /// Its ID.
    pub id: TaskId,
    /// Its parent; none for the root.
    pub parent: Option<TaskId>,
    /// The signal that its end sends.
    pub exit_signal: u32,
    /// Its threads, the leader first; none if it has ended.
    pub threads: Vec<TaskId>,
    /// Whether it founds its session.
    pub founds_session: bool,
    /// Whether it is born before its parent founds a session.
    pub before_parents_session: bool,
    /// The group that it joins or founds; none: the one it was born into.
    pub joins_group: Option<u32>,
    /// The wait status with which it ends at once.
    pub zombie: Option<u32>,
    /// The signal that it is stopped by.
    pub stopped: Option<i32>,
    /// Whether its parent can still wait for that stop.
    pub stop_untold: bool,
}

/// Makes all processes and threads.
#[derive(Debug)]
pub struct MakeProcesses {
    /// Parents before their children.
    pub births: Vec<Birth>,
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
        restoring.start_root(root.id, self.outer_session)?;
        for birth in &self.births {
            self.family(restoring, birth)?;
        }
        self.groups(restoring)?;
        restoring.end_leader()?;
        for birth in &self.births {
            for (index, &thread) in birth.threads.iter().enumerate().skip(1) {
                let made = restoring.puppet(birth.id)?.spawn_thread(thread, index)?;
                restoring.puppets.insert(thread, made);
            }
        }
        for birth in &self.births {
            let Some(status) = birth.zombie else { continue };
            let Some(mut puppet) = restoring.puppets.remove(&birth.id) else { continue };
            puppet.end(status)?;
            restoring.zombies.insert(birth.id, puppet.tid);
            if let (Some(parent), signal @ 1..) = (birth.parent, birth.exit_signal) {
                take_signal(restoring, parent, signal)?;
            }
        }
        self.births.iter().try_for_each(|birth| stop(restoring, birth))
    }
}

impl MakeProcesses {
    /// Lets a process found its session and make its children, each in its time.
    fn family(&self, restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
        let children = || self.births.iter().filter(|child| child.parent == Some(birth.id));
        let memory = self.early.get(&birth.id);
        if let Some(memory) = memory {
            build::build(restoring, memory)?;
        }
        for child in children().filter(|child| child.before_parents_session) {
            spawn(restoring, birth.id, child)?;
        }
        if birth.founds_session {
            let mut batch = Batch::new();
            batch.must("founding a session", libc::SYS_setsid, []);
            restoring.run(birth.id, &batch)?;
            // Before the children are made, which inherit it.
            take_controlling(restoring, birth.id)?;
        }
        for child in children().filter(|child| !child.before_parents_session) {
            spawn(restoring, birth.id, child)?;
        }
        Ok(())
    }

    /// Founds and joins process groups, founders first.
    fn groups(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        for founding in [true, false] {
            for birth in &self.births {
                let Some(group) = birth.joins_group.filter(|&group| (group == birth.id.0) == founding) else {
                    continue;
                };
                let mut batch = Batch::new();
                batch.must("joining a process group", libc::SYS_setpgid, [0.into(), group.into()]);
                restoring.run(birth.id, &batch)?;
            }
        }
        Ok(())
    }
}

fn spawn(restoring: &mut Restoring<'_>, parent: TaskId, child: &Birth) -> Result<()> {
    let made = restoring.puppet(parent)?.spawn(child.id, child.exit_signal, 0)?;
    restoring.puppets.insert(child.id, made);
    Ok(())
}

/// Stops a process that was stopped by a signal. Its puppets go on serving; the stop holds them when they are released.
/// The signal that its parent gets of this is taken away with those of all other puppets.
fn stop(restoring: &mut Restoring<'_>, birth: &Birth) -> Result<()> {
    let Some(signal) = birth.stopped else { return Ok(()) };
    let batch = restoring.puppet(birth.id)?.stop_process(signal)?;
    for &thread in birth.threads.iter().skip(1) {
        restoring.puppet(thread)?.stop()?;
    }
    for &thread in &birth.threads {
        restoring.puppet(thread)?.resume()?;
    }
    restoring.puppet(birth.id)?.receive(&batch)?;
    let (Some(parent), false) = (birth.parent, birth.stop_untold) else { return Ok(()) };
    let mut batch = Batch::new();
    let information = batch.data(&[0; SIGINFO_LENGTH]);
    let options = (libc::WSTOPPED | libc::WNOHANG).into();
    let arguments = [libc::P_PID.into(), birth.id.0.into(), information.into(), options, 0.into()];
    batch.must("waiting for the stop of a child", libc::SYS_waitid, arguments);
    restoring.run(parent, &batch).map(drop)
}

/// Takes the signal of a puppet's end away from its parent: the original had it long ago.
fn take_signal(restoring: &mut Restoring<'_>, parent: TaskId, signal: u32) -> Result<()> {
    let mut batch = Batch::new();
    let set = batch.words(&[1 << (signal - 1)]);
    let now = batch.words(&[0, 0]);
    batch.call("taking a signal", libc::SYS_rt_sigtimedwait, [set.into(), 0.into(), now.into(), 8.into()]);
    restoring.run(parent, &batch).map(drop)
}

/// Sets what a process sets about itself in `/proc`, if it is not so already.
#[derive(Debug)]
pub struct SetValue {
    /// The process.
    pub process: TaskId,
    /// The file of `/proc/<pid>`.
    pub file: &'static str,
    /// What the kernel shows then.
    pub shown: String,
    /// What is written.
    pub written: String,
}

impl Action for SetValue {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let path = crate::proc::read::path(restoring.system_id(self.process)?, self.file);
        if fs::read_to_string(&path).unwrap_or_default().trim() == self.shown {
            return Ok(());
        }
        fs::write(&path, &self.written).map_err(|error| {
            Error::system(code::TASK_RESTORE, format!("setting {} to {}", self.file, self.shown), error)
                .about(Subject { task: Some(self.process.0), ..Subject::default() })
        })
    }
}
