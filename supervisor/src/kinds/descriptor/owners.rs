//! Who gets the signals of a description (`F_SETOWN`, `F_SETSIG`), and that it sends any (`O_ASYNC`).
//!
//! The kernel keeps the number of the descriptor by which `O_ASYNC` was set, and tells it with each signal (`si_fd`); it
//! can't be asked for it. So a process of the tree sets the flag, by the lowest number that leads to the description:
//! one of the owner, if it has one.

use super::opened::Opened;
use super::restore::SETTABLE;
use super::tables;
use crate::error::Result;
use crate::frozen::Frozen;
use crate::plan::Action;
use crate::records::Records;
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use crate::sys::file;
use std::os::fd::AsFd;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::description::{Description, Owner};
use vckpt_image_format::record::descriptor_table::DescriptorTable;
use vckpt_image_format::record::process::Process;

/// `O_ASYNC`.
const ASYNC: u32 = libc::O_ASYNC.cast_unsigned();
/// `F_SETSIG` and `F_SETOWN_EX`.
const SET_SIGNAL: i32 = 10;
const SET_OWNER: i32 = 15;

/// Who gets the signals of a description; nobody if that is somebody outside of the tree, who won't be there.
///
/// # Errors
/// If the kernel does not tell.
pub(super) fn owner(frozen: &Frozen, opened: &Opened) -> Result<Option<Owner>> {
    let owner =
        file::owner(opened.file.as_fd()).map_err(|errno| opened.failed("asking for its owner", errno))?;
    if owner.id == 0 {
        return Ok(None);
    }
    if owner.sort == 2 {
        // A group may have outlived its leader.
        let member = frozen.processes.iter().find(|process| process.stat.process_group == owner.id);
        let group = member.and_then(|process| u32::try_from(process.identity.process_group).ok());
        return Ok(group.filter(|&group| group != 0).map(Owner::Group));
    }
    let task = frozen.virtual_id(owner.id);
    Ok(task.map(|task| if owner.sort == 0 { Owner::Thread(task) } else { Owner::Process(task) }))
}

/// Reports the descriptions whose signals go to somebody outside of the tree.
pub(super) fn report(all: &[Opened], records: &mut Records) {
    for opened in all.iter().filter(|opened| opened.description.owner.is_none() && !opened.is_path_only()) {
        if let Ok(file::Owner { id: id @ 1.., sort }) = file::owner(opened.file.as_fd()) {
            let sort = ["thread", "process"].get(usize::try_from(sort).unwrap_or(2)).unwrap_or(&"group");
            let subject = opened.subject.to_string();
            records
                .degraded
                .push(format!("{subject}: it sends its signals to {sort} {id} outside of the tree"));
        }
    }
}

/// Whether a description has anything of this.
pub(super) fn sends(description: &Description) -> bool {
    description.owner.is_some() || description.signal != 0 || description.flags & ASYNC != 0
}

/// Gives all descriptions that need one their owner and signal, and lets them send it.
#[derive(Debug)]
pub struct SetOwners;

impl Action for SetOwners {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let all = std::mem::take(&mut restoring.senders);
        if all.is_empty() {
            return Ok(());
        }
        let tables = tables(restoring.image)?;
        for description in &all {
            set(restoring, &tables, description)?;
        }
        Ok(())
    }
}

fn set(
    restoring: &mut Restoring<'_>,
    tables: &[(Process, DescriptorTable)],
    description: &Description,
) -> Result<()> {
    let Some((process, number)) = place(tables, description) else {
        let line =
            format!("description {}: no descriptor leads to it, so it sends no signals", description.id);
        restoring.degraded.push(line);
        return Ok(());
    };
    let mut batch = Batch::new();
    if let Some(owner) = description.owner
        && let Some(words) = words(restoring, owner)?
    {
        let owner = batch.data(&words.map(i32::to_le_bytes).concat());
        let arguments = [number.into(), SET_OWNER.into(), owner.into()];
        batch.must("setting who gets the signals of a file", libc::SYS_fcntl, arguments);
    }
    if description.signal != 0 {
        let arguments = [number.into(), SET_SIGNAL.into(), description.signal.into()];
        batch.must("setting the signal of a file", libc::SYS_fcntl, arguments);
    }
    if description.flags & ASYNC != 0 {
        let flags = Argument::from(description.flags & (SETTABLE | ASYNC));
        let arguments = [number.into(), libc::F_SETFL.into(), flags];
        batch.must("letting a file send signals", libc::SYS_fcntl, arguments);
    }
    restoring.run(process, &batch).map(drop)
}

/// A process and its number of a description.
fn place(tables: &[(Process, DescriptorTable)], description: &Description) -> Option<(TaskId, u32)> {
    let number = |table: &DescriptorTable| {
        let mut found = table.descriptors.iter().filter(|found| found.description == description.id);
        found.next().map(|found| found.number)
    };
    let is_owner = |process: &Process| match description.owner {
        Some(Owner::Thread(task) | Owner::Process(task)) => process.tasks().contains(&task),
        Some(Owner::Group(group)) => process.process_group == group,
        None => false,
    };
    let mut holders: Vec<(&Process, u32)> =
        tables.iter().filter_map(|(process, table)| Some((process, number(table)?))).collect();
    holders.sort_by_key(|(process, _)| !is_owner(process));
    holders.first().map(|(process, number)| (process.id, *number))
}

/// `struct f_owner_ex`; none for a group that can't be named here.
fn words(restoring: &mut Restoring<'_>, owner: Owner) -> Result<Option<[i32; 2]>> {
    Ok(Some(match owner {
        Owner::Thread(task) => [0, task.0.cast_signed()],
        Owner::Process(task) => [1, task.0.cast_signed()],
        Owner::Group(group) => {
            let Some(group) = group_here(restoring, group)? else { return Ok(None) };
            [2, group]
        }
    }))
}

/// The number of a group: another one if it is that of the root, and was led from outside.
fn group_here(restoring: &mut Restoring<'_>, group: u32) -> Result<Option<i32>> {
    let processes: Vec<Process> = super::all(restoring.image)?;
    if processes.iter().all(|process| process.process_group != group) {
        restoring.degraded.push(format!(
            "a file sends its signals to process group {group}, in which nobody of the tree is"
        ));
        return Ok(None);
    }
    let is_led = processes.iter().any(|process| process.id.0 == group);
    let Some(root) = processes.first().filter(|root| root.process_group == group && !is_led) else {
        return Ok(Some(group.cast_signed()));
    };
    let mut batch = Batch::new();
    let call = batch.must("asking for the process group", libc::SYS_getpgid, [Argument::value(0)]);
    let found = restoring.run(root.id, &batch)?.get(call).unwrap_or(0);
    let found = i32::try_from(found).ok().filter(|&group| group != 0);
    if found.is_none() {
        restoring
            .degraded
            .push(format!("a file sends its signals to process group {group}, which is not here"));
    }
    Ok(found)
}
