//! Taking stock of a tree: who is who, and what can't be dumped at all.

use super::sharing;
use super::stop::{self, StoppedTree};
use crate::error::{Error, Problems, Result, Subject, code};
use crate::frozen::{Frozen, FrozenProcess, FrozenThread, Shares};
use crate::kinds::credentials;
use crate::kinds::memory::attributes;
use crate::kinds::sandbox;
use crate::kinds::thread::dispatch;
use crate::proc::identity::Identity;
use crate::proc::maps::MapLine;
use crate::proc::stat::Stat;
use crate::proc::{identity, maps, read, stat, status};
use crate::stub::agent::Agent;
use crate::sys::process;
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process::EndedLeader;
use vckpt_image_format::record::process_status::State;

/// Refuses what can be refused before anything is stopped.
///
/// # Errors
/// [`code::NO_PROCESS`], [`code::KERNEL_THREAD`], [`code::OWN_ANCESTOR`].
pub fn preflight(pid: i32) -> Result<()> {
    let subject = Subject { task: u32::try_from(pid).ok(), ..Subject::default() };
    let missing = || Error::new(code::NO_PROCESS, "no such process").about(subject.clone());
    let text = read::file(pid, "stat").map_err(|_| missing())?;
    let stat = stat::parse(&text).ok_or_else(missing)?;
    let subject = Subject::task(pid.cast_unsigned(), String::from_utf8_lossy(&stat.command));
    if stat.flags & stat::FLAG_KERNEL_THREAD != 0 {
        return Err(Error::new(code::KERNEL_THREAD, "this is a thread of the kernel").about(subject));
    }
    let mut ancestor = std::process::id().cast_signed();
    while ancestor > 0 {
        if ancestor == pid {
            return Err(Error::new(code::OWN_ANCESTOR, "vckpt runs under this process").about(subject));
        }
        let Some(stat) = read::file(ancestor, "stat").ok().as_deref().and_then(stat::parse) else { break };
        ancestor = stat.parent;
    }
    let status = read::file(pid, "status")?;
    let group = identity::field(&status, "Tgid").and_then(|number| number.parse::<i32>().ok());
    if group.is_some_and(|group| group != pid) {
        return Err(Error::new(code::NO_PROCESS, "this is a thread, not a process")
            .hint(format!("give the ID of its process, {}", group.unwrap_or(0)))
            .about(subject));
    }
    Ok(())
}

/// Makes a [`Frozen`] tree of tasks that stand still.
///
/// # Errors
/// Everything that can't be dumped, all at once.
pub(super) fn survey(root: i32, tree: StoppedTree) -> Result<Frozen> {
    let mut problems = Problems::new();
    let StoppedTree { tasks, zombies, parents, clocks, .. } = tree;
    let mut groups: BTreeMap<i32, Vec<Agent>> = BTreeMap::new();
    let mut stop_signals: BTreeMap<i32, i32> = BTreeMap::new();
    for (_, task) in tasks {
        let pid = task.pid;
        if let Some(signal) = task.stop_signal {
            stop_signals.insert(pid, signal);
        }
        if let Some(agent) = problems.take(task.prepare(&clocks)) {
            groups.entry(pid).or_default().push(agent);
        }
    }
    let mut processes: Vec<FrozenProcess> = Vec::new();
    let mut places: BTreeMap<i32, usize> = BTreeMap::new();
    let order = in_tree_order(root, &parents);
    // All that is only read is read side by side.
    let tasks: Vec<(i32, Vec<i32>)> = order
        .into_iter()
        .map(|pid| (pid, groups.get(&pid).into_iter().flatten().map(Agent::tid).collect()))
        .collect();
    let told = crate::parallel::map(&tasks, |(pid, threads)| Told::about(*pid, threads));
    for ((pid, _), told) in tasks.into_iter().zip(told) {
        let index = u32::try_from(processes.len()).unwrap_or(u32::MAX);
        let agents = groups.remove(&pid).unwrap_or_default();
        // It ended and was reaped while we looked: perhaps also one that was seen as a zombie, by a parent that was not
        // stopped yet. Now that all stand still nobody reaps any more.
        let is_gone = || match state_of(pid) {
            None | Some(b'X') => true,
            Some(b'Z') => false,
            Some(_) => !zombies.contains_key(&pid),
        };
        if agents.is_empty() && is_gone() {
            continue;
        }
        let parent = parents.get(&pid).copied().flatten();
        let process =
            told.and_then(|told| describe((index, pid), agents, stop_signals.get(&pid).copied(), told));
        let Some(mut process) = problems.take(process) else { continue };
        let parent = parent.and_then(|parent| places.get(&parent)).and_then(|&place| processes.get(place));
        process.parent = parent.map(|parent| parent.id);
        process.parent_thread = parent.and_then(|parent| parent_thread(parent, pid));
        refuse(&process, &mut problems);
        places.insert(pid, processes.len());
        processes.push(process);
    }
    problems.take(sharing::find(&mut processes));
    problems.finish()?;
    let Some(first) = processes.first() else {
        return Err(Error::new(code::TARGET_DIED, "the process ended while it was being stopped"));
    };
    Ok(Frozen { root: first.id, processes })
}

fn state_of(pid: i32) -> Option<u8> {
    stat::parse(&read::file(pid, "stat").ok()?).map(|stat| stat.state)
}

/// The processes, parents before their children, the children of a thread in the order in which it has got them: who
/// shares something with a sibling was made by one that was there before. The IDs may have begun anew meanwhile.
fn in_tree_order(root: i32, parents: &BTreeMap<i32, Option<i32>>) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (&child, &parent) in parents {
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(child);
        }
    }
    for (&parent, children) in children.iter_mut().filter(|(_, children)| children.len() > 1) {
        let listed = stop::children(parent);
        let places: HashMap<i32, usize> = listed.into_iter().zip(0..).collect();
        children.sort_by_key(|child| places.get(child).copied().unwrap_or(usize::MAX));
    }
    let mut order = vec![root];
    let mut next = 0;
    while let Some(pid) = order.get(next) {
        order.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    order
}

/// What `/proc` tells about a process.
struct Told {
    /// The thread by which it is looked at.
    view: i32,
    maps: Vec<MapLine>,
    stat: Stat,
    ended_leader: Option<EndedLeader>,
    identity: Identity,
    /// If it has ended.
    zombie: Option<State>,
    /// Its threads, in the order in which they were asked for.
    threads: Vec<ThreadTold>,
}

/// What `/proc` tells about a thread.
struct ThreadTold {
    identity: Identity,
    name: Vec<u8>,
}

impl Told {
    /// Reads what is told about a process with these threads; without any it has ended.
    ///
    /// # Errors
    /// As reading `/proc`; [`code::PROC`] for what is not understood.
    fn about(pid: i32, threads: &[i32]) -> Result<Self> {
        let unknown = |name: &str| unknown(pid, name);
        // The leader has the lowest ID but where IDs have begun anew.
        let view = threads.iter().copied().min_by_key(|&tid| (tid != pid, tid)).unwrap_or(pid);
        let (stat, ended_leader) = stat_of(pid, view)?.ok_or_else(|| unknown("stat"))?;
        let text = read::file(pid, "status")?;
        let identity = identity::parse(&text).ok_or_else(|| unknown("status"))?;
        let mut zombie = None;
        let mut maps = Vec::new();
        if threads.is_empty() {
            let who = status::parse(&text)?;
            let [user, group] = [who.user, who.group].map(credentials::ids);
            let status = stat.exit_code.cast_unsigned();
            zombie =
                Some(State::Zombie { status, user, group, capabilities: credentials::capabilities(&who) });
        } else {
            let smaps = read::file(view, "smaps")?;
            maps = maps::parse(&smaps).map_err(|line| self::unknown(view, "smaps").because(line))?;
        }
        let threads = crate::parallel::map(threads, |&tid| {
            let status = read::file(pid, &format!("task/{tid}/status"))?;
            let identity = identity::parse(&status).ok_or_else(|| unknown("task"))?;
            let mut name = read::file(pid, &format!("task/{tid}/comm"))?;
            name.truncate(name.strip_suffix(b"\n").unwrap_or(&name).len());
            Ok(ThreadTold { identity, name })
        });
        let threads = threads.into_iter().collect::<Result<_>>()?;
        Ok(Self { view, maps, stat, ended_leader, identity, zombie, threads })
    }
}

fn unknown(pid: i32, name: &str) -> Box<Error> {
    Error::new(code::PROC, "the kernel's text is not understood")
        .about(Subject::path(read::path(pid, name).display()))
}

fn describe(
    (index, pid): (u32, i32),
    agents: Vec<Agent>,
    stop_signal: Option<i32>,
    told: Told,
) -> Result<FrozenProcess> {
    let Told { view, maps, stat, ended_leader, identity, zombie, threads: told } = told;
    let subject = Subject::task(pid.cast_unsigned(), String::from_utf8_lossy(&stat.command));
    let pidfd = if view == pid { process::pidfd_open(pid) } else { process::thread_pidfd_open(view) };
    let pidfd = pidfd.map_err(|errno| {
        if errno == Errno::EINVAL && view != pid {
            return Error::new(code::TASK_STATE, "its first thread has ended while others run")
                .because("the kernel has no descriptors for threads (Linux 6.9)")
                .about(subject.clone());
        }
        Error::system(code::TARGET_DIED, "the process ended meanwhile", errno)
    })?;
    let state = match (zombie, stop_signal) {
        (Some(zombie), _) => zombie,
        (None, Some(signal)) => State::Stopped { signal: signal.cast_unsigned() },
        (None, None) => State::Running,
    };
    // What has ended has no memory any more.
    let memory = if agents.is_empty() { PathBuf::from("/dev/null") } else { read::path(view, "mem") };
    let memory = File::options().read(true).write(true).open(memory);
    let memory = memory.map_err(|error| read::failure(view, "mem", &error))?;
    let mut threads = Vec::with_capacity(agents.len());
    for (agent, ThreadTold { identity, name }) in agents.into_iter().zip(told) {
        let tid = agent.tid();
        let dispatch = dispatch::observe(tid).map_err(|error| error.about(subject.clone()))?;
        // Each thread may have filters of its own.
        let mut filters = Vec::new();
        if identity.seccomp != 0 {
            let found =
                agent.stopped().and_then(|stopped| sandbox::observe::suspend(stopped, identity.seccomp));
            filters = found.map_err(|error| error.about(subject.clone()))?;
        }
        threads.push(FrozenThread { id: task_id(identity.innermost()), tid, name, filters, dispatch, agent });
    }
    // The leader first; the others in the order of their IDs.
    threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
    Ok(FrozenProcess {
        index,
        id: task_id(identity.innermost()),
        pid,
        view,
        ended_leader,
        adopted: false,
        shares: Shares::none(index),
        parent: None,
        parent_thread: None,
        command: String::from_utf8_lossy(&stat.command).into_owned(),
        state,
        pidfd,
        memory,
        maps,
        stat,
        identity,
        threads,
    })
}

/// The line of a process, with the addresses of its memory, which an ended leader does not have any more; and what is left
/// of that leader.
fn stat_of(pid: i32, view: i32) -> Result<Option<(Stat, Option<EndedLeader>)>> {
    let Some(stat) = stat::parse(&read::file(pid, "stat")?) else { return Ok(None) };
    if view == pid {
        return Ok(Some((stat, None)));
    }
    let Some(shown) = stat::parse(&read::file(view, "stat")?) else { return Ok(None) };
    let status = stat.exit_code.cast_unsigned();
    let stat = Stat { command: stat.command, exit_signal: stat.exit_signal, ..shown };
    let text = read::file(pid, "status")?;
    let mask = identity::field(&text, "SigBlk").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    Ok(Some((stat, mask.map(|mask| EndedLeader { status, mask }))))
}

/// The thread of which a process is a child, if that is not the leader.
fn parent_thread(parent: &FrozenProcess, child: i32) -> Option<TaskId> {
    let others = parent.threads.iter().filter(|thread| thread.tid != parent.pid);
    let has = |thread: &&FrozenThread| {
        let children = read::file(parent.pid, &format!("task/{}/children", thread.tid)).unwrap_or_default();
        String::from_utf8_lossy(&children).split_ascii_whitespace().any(|word| word.parse() == Ok(child))
    };
    others.into_iter().find(has).map(|thread| thread.id)
}

fn task_id(id: i32) -> TaskId {
    TaskId(u32::try_from(id).unwrap_or(0))
}

/// What can't be dumped yet.
fn refuse(process: &FrozenProcess, problems: &mut Problems) {
    if process.threads.is_empty() {
        return;
    }
    // Where these are, not even a stub can be put without harm.
    for map in &process.maps {
        if let Some(meaning) = attributes::harmed_by_stub(&map.flags) {
            let error = Error::new(code::MAPPING, format!("it has {meaning}"));
            problems.push(error.about(process.subject().address(map.start)));
        }
    }
}
