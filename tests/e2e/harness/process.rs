//! Processes as the harness sees them: start, reap, wait with a deadline, walk the tree, end by PID.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Outcome, fail};

/// Statuses of reaped children that nobody has asked for yet.
static REAPED: Mutex<BTreeMap<i32, i32>> = Mutex::new(BTreeMap::new());

/// Makes orphans of our descendants our children.
pub(crate) fn become_subreaper() {
    // SAFETY: the call takes plain integers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    assert_eq!(result, 0, "PR_SET_CHILD_SUBREAPER");
}

/// Keeps what whoever started us left open from the programs that we start.
pub(crate) fn keep_descriptors_private() {
    // SAFETY: the call takes plain integers and closes nothing.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    assert_eq!(result, 0, "close_range");
}

/// Starts a command and returns its PID; its end is found by [`wait_exit`].
pub(crate) fn spawn(command: &mut Command) -> Outcome<i32> {
    let child = command.spawn().map_err(|error| {
        super::Stop::Failed(format!("cannot start {}: {error}", command.get_program().display()))
    })?;
    let pid = i32::try_from(child.id())?;
    REAPED.lock().unwrap().remove(&pid);
    Ok(pid)
}

/// Collects every child that has ended.
pub(crate) fn reap() {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for an int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return;
        }
        REAPED.lock().unwrap().insert(pid, status);
    }
}

/// The status of a child that has ended, once.
pub(crate) fn take_status(pid: i32) -> Option<ExitStatus> {
    reap();
    REAPED.lock().unwrap().remove(&pid).map(ExitStatus::from_raw)
}

/// Forgets a status of somebody who had the PID of this living process before it.
pub(crate) fn forget_status(pid: i32) {
    REAPED.lock().unwrap().remove(&pid);
}

/// Polls `condition` until it gives a value or the deadline passes.
pub(crate) fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Outcome<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            return fail(format!("waited {limit:?} in vain: {what}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a child to end.
pub(crate) fn wait_exit(pid: i32, limit: Duration) -> Outcome<ExitStatus> {
    until(&format!("end of process {pid}"), limit, || take_status(pid))
}

/// Waits until no process, not even a zombie, has this PID.
pub(crate) fn wait_gone(pid: i32, limit: Duration) -> Outcome {
    until(&format!("process {pid} ({}) to be gone", describe(pid)), limit, || {
        reap();
        (!fs::exists(format!("/proc/{pid}")).unwrap_or(true)).then_some(())
    })
}

/// The state letter of a process (`R`, `S`, `T`, `Z`…), if it exists.
pub(crate) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// True when the process exists and runs: a leader that has exited may leave threads behind.
pub(crate) fn alive(pid: i32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state(pid).is_some_and(|state| state != 'Z' && state != 'X' || threads() > 1)
}

/// Command line of a process, for messages.
pub(crate) fn describe(pid: i32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace('\0', " ");
    if text.is_empty() { fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default() } else { text }
}

/// Children of a process, of all its threads.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    found
}

/// A process and all its descendants, parents first.
pub(crate) fn tree(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// Sends a signal to one process that a case has started.
pub(crate) fn signal(pid: i32, number: i32) -> Outcome {
    assert!(pid > 1, "signal {number} to {pid}");
    // SAFETY: kill takes plain integers.
    if unsafe { libc::kill(pid, number) } != 0 {
        return fail(format!("kill({pid}, {number}): {}", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Ends every descendant of the harness, by PID, and reaps it. Gives what was still there.
pub(crate) fn end_all_children() -> Vec<String> {
    let own = i32::try_from(std::process::id()).expect("PIDs are positive ints");
    let mut found = Vec::new();
    let start = Instant::now();
    loop {
        reap();
        let left: Vec<i32> = tree(own).split_off(1);
        if left.is_empty() || start.elapsed() > Duration::from_secs(10) {
            return found;
        }
        for pid in left {
            if alive(pid) {
                let line = format!("{pid} {}", describe(pid));
                if !found.contains(&line) {
                    found.push(line);
                }
                let _ = signal(pid, libc::SIGKILL);
                // SAFETY: ptrace-stopped or not, killing is by PID of a descendant of ours.
                let _ = unsafe { libc::kill(pid, libc::SIGCONT) };
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
