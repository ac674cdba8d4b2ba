//! Threads with their rights and how they are scheduled, as `ps -eLo pid,tid,cls,rtprio,ni,…` shows them.

use super::view::View;
use crate::table::{Align, Table};
use serde::Serialize;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::credentials::{CapabilitySets, Ids, ThreadCredentials};
use vckpt_image_format::record::schedule_control::{ThreadSchedule, list};

/// A thread.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pid: u32,
    tid: u32,
    name: String,
    schedule: Option<Schedule>,
    rights: Option<Rights>,
    /// How many system call filters it has.
    filters: usize,
    /// Whether system calls are dispatched to its own handler.
    dispatches_calls: bool,
}

/// How a thread is scheduled.
#[derive(Debug, Serialize)]
struct Schedule {
    /// As in the column CLS of ps.
    class: &'static str,
    real_time_priority: Option<u32>,
    nice: i32,
    /// Runtime, deadline and period in nanoseconds.
    deadline: Option<[u64; 3]>,
    reset_on_fork: bool,
    /// None for all.
    processors: Option<String>,
    /// As ionice says it; none if it follows the niceness.
    disks: Option<String>,
    /// In nanoseconds.
    timer_slack: u64,
    /// The niceness of the autogroup of its session.
    autogroup: Option<i32>,
}

/// What a thread may do.
#[derive(Debug, Serialize)]
struct Rights {
    /// Real, effective, saved, for files.
    users: [u32; 4],
    /// Real, effective, saved, for files.
    groups: [u32; 4],
    supplementary_groups: Vec<u32>,
    /// As in `/proc/<pid>/status`.
    capabilities: Capabilities,
    secure_bits: u32,
    no_new_privileges: bool,
}

/// The sets in hexadecimal digits.
#[derive(Debug, Serialize)]
struct Capabilities {
    inheritable: String,
    permitted: String,
    effective: String,
    bounding: String,
    ambient: String,
}

/// All threads, in the order of the processes.
pub(crate) fn rows(view: &View) -> Vec<Row> {
    let threads = view.processes.iter().flat_map(|process| {
        let threads = process.living.iter().flat_map(|living| &living.threads);
        threads.map(move |&thread| (process.id, thread))
    });
    threads.map(|(process, thread)| row(view, process, thread)).collect()
}

fn row(view: &View, process: TaskId, thread: TaskId) -> Row {
    let record = view.threads.get(&thread);
    let scheduled = view.schedules.iter().find(|record| record.process == process);
    let schedule = scheduled.and_then(|record| {
        let thread = record.threads.iter().find(|one| one.thread == thread)?;
        Some(schedule(thread, record.autogroup))
    });
    let credentials = view.credentials.iter().find(|record| record.process == process);
    let rights = credentials.and_then(|record| record.threads.iter().find(|one| one.thread == thread));
    let sandbox = view.sandboxes.iter().flat_map(|sandbox| &sandbox.threads);
    Row {
        pid: process.0,
        tid: thread.0,
        name: record.map(|record| record.name.to_string()).unwrap_or_default(),
        schedule,
        rights: rights.map(self::rights),
        filters: sandbox.filter(|one| one.thread == thread).map(|one| one.filters.len()).sum(),
        dispatches_calls: record.is_some_and(|record| record.dispatch.is_some()),
    }
}

fn schedule(thread: &ThreadSchedule, autogroup: Option<i32>) -> Schedule {
    const RESET_ON_FORK: u64 = 1;
    let attributes = &thread.attributes;
    let class = match attributes.policy {
        0 => "TS",
        1 => "FF",
        2 => "RR",
        3 => "B",
        5 => "IDL",
        6 => "DLN",
        7 => "EXT",
        _ => "?",
    };
    Schedule {
        class,
        real_time_priority: [1, 2].contains(&attributes.policy).then_some(attributes.priority),
        nice: attributes.nice,
        deadline: (class == "DLN").then_some([attributes.runtime, attributes.deadline, attributes.period]),
        reset_on_fork: attributes.flags & RESET_ON_FORK != 0,
        processors: thread.affinity.as_deref().map(list),
        disks: disks(thread.io_priority),
        timer_slack: thread.timer_slack,
        autogroup,
    }
}

/// A priority of `ioprio_get(2)`.
fn disks(priority: u32) -> Option<String> {
    let level = priority & 7;
    match priority >> 13 {
        0 => None,
        1 => Some(format!("rt/{level}")),
        2 => Some(format!("be/{level}")),
        3 => Some("idle".to_owned()),
        _ => Some(format!("{priority:#x}")),
    }
}

fn rights(thread: &ThreadCredentials) -> Rights {
    let ids = |ids: Ids| [ids.real, ids.effective, ids.saved, ids.file_system];
    let digits = |set: u64| format!("{set:x}");
    let CapabilitySets { inheritable, permitted, effective, bounding, ambient } = thread.capabilities;
    Rights {
        users: ids(thread.user),
        groups: ids(thread.group),
        supplementary_groups: thread.groups.clone(),
        capabilities: Capabilities {
            inheritable: digits(inheritable),
            permitted: digits(permitted),
            effective: digits(effective),
            bounding: digits(bounding),
            ambient: digits(ambient),
        },
        secure_bits: thread.secure_bits,
        no_new_privileges: thread.no_new_privileges,
    }
}

/// The rows as a table.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("PID", Right),
        ("TID", Right),
        ("CLS", Left),
        ("RTPRIO", Right),
        ("NI", Right),
        ("CPUS", Left),
        ("IO", Left),
        ("UID", Right),
        ("GID", Right),
        ("CAPEFF", Right),
        ("NNP", Left),
        ("FILTERS", Right),
        ("NAME", Left),
    ]);
    for row in rows {
        let schedule = |cell: fn(&Schedule) -> Option<String>| row.schedule.as_ref().and_then(cell);
        let rights = |cell: fn(&Rights) -> Option<String>| row.rights.as_ref().and_then(cell);
        let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        table.row([
            row.pid.to_string(),
            row.tid.to_string(),
            or_none(schedule(|schedule| Some(schedule.class.to_owned()))),
            or_none(schedule(|schedule| schedule.real_time_priority.map(|priority| priority.to_string()))),
            or_none(schedule(|schedule| Some(schedule.nice.to_string()))),
            or_none(schedule(|schedule| schedule.processors.clone())),
            or_none(schedule(|schedule| schedule.disks.clone())),
            or_none(rights(|rights| rights.users.get(1).map(u32::to_string))),
            or_none(rights(|rights| rights.groups.get(1).map(u32::to_string))),
            or_none(rights(|rights| Some(rights.capabilities.effective.clone()))),
            or_none(rights(|rights| rights.no_new_privileges.then(|| "yes".to_owned()))),
            row.filters.to_string(),
            row.name.clone(),
        ]);
    }
    table.lines()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::record::schedule_control::Attributes;

    #[test]
    fn classes_and_priorities_are_as_ps_and_ionice_show_them() {
        let thread = ThreadSchedule {
            thread: TaskId(5),
            attributes: Attributes { policy: 2, priority: 7, flags: 1, nice: 3, ..Attributes::default() },
            affinity: Some(vec![0b1101]),
            io_priority: 2 << 13 | 6,
            timer_slack: 50_000,
            memory_policy: None,
        };
        let shown = schedule(&thread, Some(4));
        assert_eq!((shown.class, shown.real_time_priority, shown.nice), ("RR", Some(7), 3));
        assert_eq!(shown.processors.as_deref(), Some("0,2-3"));
        assert_eq!(shown.disks.as_deref(), Some("be/6"));
        assert!(shown.reset_on_fork && shown.deadline.is_none());
    }
}
