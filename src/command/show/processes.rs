//! The tree of processes, as `ps axjf` shows it.

use super::view::View;
use crate::table::{Align, Table};
use serde::Serialize;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::process_status::State;

/// The word of `struct user_regs_struct` that has the number of the interrupted system call.
const ORIG_RAX: usize = 15;

/// A process.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) pid: u32,
    parent: Option<u32>,
    process_group: u32,
    session: u32,
    /// As in the column STAT of ps.
    state: String,
    /// The effective user of the leader.
    user: Option<u32>,
    pub(crate) threads: Vec<Thread>,
    pub(crate) command: String,
    /// The whole command line.
    pub(crate) command_line: String,
    /// What draws the tree in front of the command line.
    #[serde(skip)]
    pub(crate) branch: String,
}

/// A thread.
#[derive(Debug, Serialize)]
pub(crate) struct Thread {
    tid: u32,
    name: String,
}

/// All processes, every child below its parent.
pub(crate) fn rows(view: &View) -> Vec<Row> {
    let mut rows = Vec::new();
    // Depth first without recursion: an image may be deep. Each entry has the lines that pass to its left.
    let mut waiting: Vec<(&Process, String, String)> =
        children(view, None).rev().map(|root| (root, String::new(), String::new())).collect();
    while let Some((process, branch, passing)) = waiting.pop() {
        let mut last = true;
        for child in children(view, Some(process.id)).rev() {
            let below = format!("{passing}{}", if last { "    " } else { " |  " });
            waiting.push((child, format!(r"{passing} \_ "), below));
            last = false;
        }
        rows.push(row(view, process, branch));
    }
    rows
}

fn children(view: &View, parent: Option<TaskId>) -> impl DoubleEndedIterator<Item = &Process> {
    view.processes.iter().filter(move |process| process.parent == parent)
}

fn row(view: &View, process: &Process, branch: String) -> Row {
    let threads = process.living.iter().flat_map(|living| &living.threads);
    let name = |id: &TaskId| view.threads.get(id).map(|thread| thread.name.to_string()).unwrap_or_default();
    let command_line = match (&process.living, view.command_line(process)) {
        (None, _) => format!("[{}] <defunct>", process.command),
        (Some(_), Some(line)) => line,
        (Some(_), None) => format!("[{}]", process.command),
    };
    Row {
        pid: process.id.0,
        parent: process.parent.map(|parent| parent.0),
        process_group: process.process_group,
        session: process.session,
        state: state(view, process),
        user: user(view, process),
        threads: threads.map(|id| Thread { tid: id.0, name: name(id) }).collect(),
        command: process.command.to_string(),
        command_line,
        branch,
    }
}

fn user(view: &View, process: &Process) -> Option<u32> {
    if let Some(State::Zombie { user, .. }) = view.states.get(&process.id) {
        return Some(user.effective);
    }
    let credentials = view.credentials.iter().find(|record| record.process == process.id)?;
    credentials.threads.first().map(|leader| leader.user.effective)
}

/// The column STAT of ps, as far as an image knows it.
fn state(view: &View, process: &Process) -> String {
    let waits = |id: &TaskId| {
        let number = view.threads.get(id).and_then(|thread| thread.registers.get(ORIG_RAX));
        number.is_some_and(|&number| number != u64::MAX)
    };
    let mut state = match view.states.get(&process.id) {
        Some(State::Stopped { .. }) => "T",
        Some(State::Zombie { .. }) => "Z",
        Some(State::Running) | None if waits(&process.id) => "S",
        Some(State::Running) | None => "R",
    }
    .to_owned();
    if process.session == process.id.0 {
        state.push('s');
    }
    if process.living.as_ref().is_some_and(|living| living.threads.len() > 1) {
        state.push('l');
    }
    state
}

/// The rows as a table.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("PPID", Right),
        ("PID", Right),
        ("PGID", Right),
        ("SID", Right),
        ("STAT", Left),
        ("UID", Right),
        ("THREADS", Right),
        ("COMMAND", Left),
    ]);
    for row in rows {
        table.row([
            row.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string()),
            row.pid.to_string(),
            row.process_group.to_string(),
            row.session.to_string(),
            row.state.clone(),
            row.user.map_or_else(|| "-".to_owned(), |user| user.to_string()),
            row.threads.len().to_string(),
            format!("{}{}", row.branch, row.command_line),
        ]);
    }
    table.lines()
}
