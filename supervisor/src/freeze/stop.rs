//! Stopping every task of a tree, until nothing new appears.

use super::backlog::Backlog;
use super::vfork;
use crate::error::{Error, Result, Subject, code};
use crate::proc::{read, stat};
use crate::stub::agent::Agent;
use crate::tracee::{Running, Stop, Stopped, pause};
use crate::waits::before::{Before, Clocks};
use crate::waits::{self, Moments, Seen};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A task that was found.
#[derive(Debug)]
pub(super) struct StoppedTask {
    /// The process it belongs to.
    pub pid: i32,
    /// It stands still.
    pub stopped: Stopped,
    /// The signal that its process is stopped by, if it is.
    pub stop_signal: Option<i32>,
    /// Whether its call would have ended with `EINTR`.
    interrupted: bool,
    /// When it came to its stop.
    moments: Moments,
    /// What was seen of it before.
    before: Option<Before>,
}

impl StoppedTask {
    /// Takes down its state.
    ///
    /// # Errors
    /// As [`Agent::prepare`].
    pub(super) fn prepare(self, clocks: &Clocks) -> Result<Agent> {
        let seen = Seen { interrupted: self.interrupted, before: self.before, clocks };
        Agent::prepare(self.stopped, self.pid, self.moments, seen)
    }
}

/// A tree that stands still.
#[derive(Debug, Default)]
pub(super) struct StoppedTree {
    /// The tasks by ID.
    pub tasks: BTreeMap<i32, StoppedTask>,
    /// Processes of the tree that have ended and were not waited for, with their parents.
    pub zombies: BTreeMap<i32, i32>,
    /// The parent of each process within the tree; the root has none.
    pub parents: BTreeMap<i32, Option<i32>>,
    /// What was seen of tasks before they were stopped.
    seen: BTreeMap<i32, Before>,
    /// Tasks that were let go on, each for one that waits for it in vfork(2).
    pub(super) freed: BTreeMap<i32, i32>,
    /// When tasks were asked to stop: from then on none waits any more.
    asked: BTreeMap<i32, i64>,
    /// The clocks by which that is understood.
    pub clocks: Clocks,
}

/// Tasks that were asked to stop, each with its process.
pub(super) type Moving = BTreeMap<i32, (i32, Running)>;

pub(super) const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// After this time a task that does not stop is looked at: it may wait for a child that borrows its memory.
const VFORK_SUSPICION: Duration = Duration::from_millis(2);

impl StoppedTree {
    /// Reads the clocks by which what was seen of the tasks is understood.
    fn read_clocks(&mut self) {
        let seen = self.tasks.iter().filter_map(|(&tid, task)| Some((tid, task.before.as_ref()?)));
        self.clocks = Clocks::read(seen);
    }
}

/// How long what still moves is waited for when a freeze has failed.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Stops a process and all its descendants.
///
/// # Errors
/// [`code::NOT_PERMITTED`], [`code::ALREADY_TRACED`], [`code::FREEZE_TIMEOUT`], [`code::TREE_UNSETTLED`].
pub(super) fn stop_tree(root: i32, deadline: Instant, backlog: &Backlog) -> Result<StoppedTree> {
    let mut tree = StoppedTree::default();
    let mut moving: Moving = BTreeMap::new();
    match stop_all(root, deadline, backlog, &mut tree, &mut moving) {
        Ok(()) => {
            tree.read_clocks();
            Ok(tree)
        }
        Err(error) => {
            let_go(tree, moving);
            Err(error)
        }
    }
}

/// Lets everything go on as before: also what was stopped in a call that the kernel would end with `EINTR`.
fn let_go(mut tree: StoppedTree, mut moving: Moving) {
    // Who stands still first: somebody may wait for it.
    let_tasks_go(&mut tree);
    let deadline = Instant::now() + LETTING_GO;
    while let Some((_, (pid, running))) = moving.pop_first() {
        // What was let go on meanwhile was not asked since.
        let _ = running.interrupt();
        if let Ok(stopped) = running.expect_interruption(deadline) {
            let _ = note_stop(&mut tree, pid, stopped, None);
        }
    }
    let_tasks_go(&mut tree);
}

fn let_tasks_go(tree: &mut StoppedTree) {
    tree.read_clocks();
    for task in std::mem::take(&mut tree.tasks).into_values() {
        // An agent that is dropped lets its thread go on with the rest of its wait.
        drop(task.prepare(&tree.clocks));
    }
}

fn stop_all(
    root: i32,
    deadline: Instant,
    backlog: &Backlog,
    tree: &mut StoppedTree,
    moving: &mut Moving,
) -> Result<()> {
    tree.parents.insert(root, None);
    let mut is_drained = backlog.is_empty();
    loop {
        let mut news = false;
        for pid in tree.parents.keys().copied().collect::<Vec<_>>() {
            if !is_drained && backlog.is_for(pid) {
                continue;
            }
            news |= attach_threads(pid, root, tree, moving)?;
        }
        settle(tree, moving, deadline)?;
        news |= find_children(tree);
        if !news && moving.is_empty() {
            if is_drained {
                break;
            }
            backlog.drain();
            is_drained = true;
        }
        if Instant::now() > deadline {
            return Err(Error::new(code::TREE_UNSETTLED, "new tasks kept appearing"));
        }
    }
    if !tree.tasks.values().any(|task| task.pid == root) {
        return Err(Error::new(code::TARGET_DIED, "the process ended while it was being stopped")
            .about(Subject { task: u32::try_from(root).ok(), ..Subject::default() }));
    }
    Ok(())
}

/// Begins to trace the threads of a process that are not traced yet; whether there were any.
fn attach_threads(pid: i32, root: i32, tree: &mut StoppedTree, moving: &mut Moving) -> Result<bool> {
    if tree.zombies.contains_key(&pid) {
        return Ok(false);
    }
    let threads = match read::numbers(pid, "task") {
        Ok(threads) => threads,
        Err(error) if error.code == code::TARGET_DIED && pid != root => return Ok(forget(pid, tree)),
        Err(error) => return Err(error),
    };
    let mut news = false;
    for tid in threads {
        if tree.tasks.contains_key(&tid) || moving.contains_key(&tid) || is_worker(pid, tid) {
            continue;
        }
        match Running::seize(tid, OPTIONS) {
            Ok(running) => {
                let before = Before::look(tid);
                tree.seen.extend(before.map(|before| (tid, before)));
                tree.asked.insert(tid, waits::now());
                // Ended between the two: the wait will tell.
                let _ = running.interrupt();
                moving.insert(tid, (pid, running));
                news = true;
            }
            Err(_) if ended(tid) => news |= note_zombie(pid, tid, root, tree)?,
            Err(_) if tracer(tid) == Some(std::process::id()) => {
                // A child that the kernel attached by itself before we saw its parent's event.
                moving.insert(tid, (pid, Running::attached(tid)));
                news = true;
            }
            Err(error) => return Err(explain(root, tid, error)),
        }
    }
    Ok(news)
}

/// Whether a thread is the kernel's, and never runs the program: it can't be stopped, and goes when what it works for
/// does.
fn is_worker(pid: i32, tid: i32) -> bool {
    let flags = || stat::parse(&read::file(tid, "stat").ok()?).map(|stat| stat.flags);
    pid != tid && flags().is_some_and(|flags| flags & stat::FLAG_WORKER != 0)
}

/// A process that is gone without a trace.
fn forget(pid: i32, tree: &mut StoppedTree) -> bool {
    tree.parents.remove(&pid);
    tree.zombies.remove(&pid);
    false
}

fn note_zombie(pid: i32, tid: i32, root: i32, tree: &mut StoppedTree) -> Result<bool> {
    if tid != pid || state(tid).is_none() {
        return Ok(false);
    }
    if read::numbers(pid, "task").is_ok_and(|threads| threads.into_iter().any(|tid| !ended(tid))) {
        // Only its leader has ended; the others are traced as those of any process.
        return Ok(false);
    }
    if pid == root {
        return Err(Error::new(code::NO_PROCESS, "the process has ended already")
            .about(Subject { task: u32::try_from(pid).ok(), ..Subject::default() }));
    }
    if tree.tasks.values().any(|task| task.pid == pid) {
        return Ok(false);
    }
    let parent = tree.parents.get(&pid).copied().flatten().unwrap_or(0);
    Ok(tree.zombies.insert(pid, parent).is_none())
}

fn state(tid: i32) -> Option<u8> {
    stat::parse(&read::file(tid, "stat").ok()?).map(|stat| stat.state)
}

/// Whether a task has ended, waited for or not.
fn ended(tid: i32) -> bool {
    matches!(state(tid), None | Some(b'Z' | b'X'))
}

fn tracer(tid: i32) -> Option<u32> {
    let status = read::file(tid, "status").ok()?;
    crate::proc::identity::field(&status, "TracerPid")?.parse().ok().filter(|&pid| pid != 0)
}

/// The error for a task that may not be traced.
fn explain(root: i32, tid: i32, error: Box<Error>) -> Box<Error> {
    let Some(tracer) = tracer(tid).map(u32::cast_signed) else { return error };
    let subject = Subject::task(tid.cast_unsigned(), command(tid));
    let who = format!("process {tracer} ({})", command(tracer));
    let mut ancestors = std::iter::successors(Some(tracer), |&pid| state_parent(pid));
    if ancestors.any(|pid| pid == root) {
        return Error::new(code::TRACED_WITHIN, "the task is traced by another one of the tree")
            .because(format!("{who} traces it, and is in the tree too"))
            .about(subject);
    }
    Error::new(code::ALREADY_TRACED, "the task is traced by another process")
        .because(format!("{who} traces it"))
        .about(subject)
}

/// The name of a task, for messages.
pub(super) fn command(tid: i32) -> String {
    let stat = read::file(tid, "stat").ok().as_deref().and_then(stat::parse);
    stat.map_or_else(|| "?".to_owned(), |stat| String::from_utf8_lossy(&stat.command).into_owned())
}

/// Waits until everything that moves stands still.
fn settle(tree: &mut StoppedTree, moving: &mut Moving, deadline: Instant) -> Result<()> {
    let begin = Instant::now();
    while !moving.is_empty() {
        let mut progress = false;
        for tid in moving.keys().copied().collect::<Vec<_>>() {
            let Some((pid, running)) = moving.remove(&tid) else { continue };
            match running.poll()? {
                Err(running) if begin.elapsed() > VFORK_SUSPICION && running.has_ended() => {
                    progress = true;
                    // If it has ended since the look above, its parent is to hear of it.
                    let _ = running.poll()?;
                }
                Err(running) => {
                    moving.insert(tid, (pid, running));
                }
                Ok(stop) => {
                    progress = true;
                    handle(pid, tid, stop, tree, moving)?;
                }
            }
        }
        let now = Instant::now();
        if now > deadline {
            return Err(vfork::too_late(tree, moving));
        }
        if !progress {
            if now - begin > VFORK_SUSPICION {
                vfork::free_borrowers(tree, moving)?;
            }
            pause(now - begin);
        }
    }
    Ok(())
}

fn handle(pid: i32, tid: i32, stop: Stop, tree: &mut StoppedTree, moving: &mut Moving) -> Result<()> {
    match stop {
        Stop::Interrupted(stopped, stop_signal) => {
            note_stop(tree, pid, stopped, stop_signal)?;
        }
        Stop::Ended(_) => {}
        Stop::Signal(stopped, signal) => {
            moving.insert(tid, (pid, stopped.resume(signal)?));
        }
        Stop::Call(stopped) => {
            moving.insert(tid, (pid, stopped.resume(0)?));
        }
        Stop::Event(stopped, event) => {
            let child = stopped.event_message()?;
            let born = matches!(
                event,
                libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE
            );
            if let (true, Ok(child)) = (born, i32::try_from(child)) {
                note_birth(pid, child, tree, moving);
            }
            // An interruption that was asked for before is still due; one more does no harm.
            let running = stopped.resume(0)?;
            let _ = running.interrupt();
            moving.insert(tid, (pid, running));
        }
    }
    Ok(())
}

/// A task stands still. If the kernel would end its call with `EINTR` only because of us, the call is at once marked to
/// be made again: we may be gone at any moment, and the program is not to see it.
fn note_stop(tree: &mut StoppedTree, pid: i32, stopped: Stopped, stop_signal: Option<i32>) -> Result<()> {
    let tid = stopped.tid();
    let before = tree.seen.remove(&tid);
    let moments = Moments::until_now(tree.asked.remove(&tid));
    let mut registers = stopped.registers()?;
    let interrupted = waits::is_interrupted(&registers);
    if interrupted {
        // Unless a handler runs, which is what the program would have seen without us.
        registers.rax = waits::RESTART_NO_HANDLER.cast_unsigned();
        stopped.set_registers(&registers)?;
    }
    tree.tasks.insert(tid, StoppedTask { pid, stopped, stop_signal, interrupted, moments, before });
    Ok(())
}

/// A task was born by one that we trace: the kernel has attached it for us.
fn note_birth(pid: i32, child: i32, tree: &mut StoppedTree, moving: &mut Moving) {
    if tree.tasks.contains_key(&child) || moving.contains_key(&child) {
        return;
    }
    let group = read::file(child, "status")
        .ok()
        .and_then(|status| crate::proc::identity::field(&status, "Tgid")?.parse::<i32>().ok())
        .unwrap_or(child);
    if group != pid {
        let parent = state_parent(group).unwrap_or(pid);
        tree.parents.entry(group).or_insert(Some(parent));
    }
    moving.insert(child, (group, Running::attached(child)));
}

fn state_parent(pid: i32) -> Option<i32> {
    stat::parse(&read::file(pid, "stat").ok()?).map(|stat| stat.parent)
}

/// Notes children of the tree's processes that are not known yet; whether there were any.
pub(super) fn find_children(tree: &mut StoppedTree) -> bool {
    let mut news = false;
    let ours = std::process::id().cast_signed();
    let known: Vec<i32> = tree.parents.keys().copied().collect();
    let found = crate::parallel::map(&known, |&pid| children(pid));
    for (pid, child) in
        known.into_iter().zip(found).flat_map(|(pid, all)| all.into_iter().map(move |child| (pid, child)))
    {
        if child != ours && !tree.parents.contains_key(&child) {
            tree.parents.insert(child, Some(pid));
            news = true;
        }
    }
    news
}

/// The children of all threads of a process; those of one thread in the order in which it has got them.
pub(super) fn children(pid: i32) -> Vec<i32> {
    let threads = read::numbers(pid, "task").unwrap_or_default();
    let of_thread = |&tid: &i32| {
        let text = read::file(pid, &format!("task/{tid}/children")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.split_ascii_whitespace().filter_map(|word| word.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    crate::parallel::map(&threads, of_thread).into_iter().flatten().collect()
}
