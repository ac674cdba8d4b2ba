//! Looking at an IPC namespace, by calls that a process in it makes.

use super::{
    GET_ALL, MESSAGE_INFO, MESSAGE_STATUS, SEMAPHORE_INFO, SEMAPHORE_STATUS, SHARED_INFO, STATUS_LENGTH,
};
use super::{tunables, undo};
use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::proc::read;
use crate::records::Records;
use crate::stub::batch::{Batch, Data, Outcome};
use vckpt_image_format::record::ipc_namespace::IpcNamespace;
use vckpt_image_format::record::message_queue::{Access, MessageQueue, TypedMessage};
use vckpt_image_format::record::semaphore::Semaphore;

/// `MSG_COPY`: a message stays where it is, and is chosen by its place.
const COPY: i32 = 0o40000;
/// Bytes of the longest message that is looked at.
const LONGEST: u64 = 100 * 1024;
/// Places in `struct msqid64_ds` and `struct semid64_ds`, in words: bytes and number of messages, capacity; last operation,
/// semaphores.
const BYTES: usize = 9;
const MESSAGES: usize = 10;
const CAPACITY: usize = 11;
const OPERATED: usize = 6;
const SEMAPHORES: usize = 10;

/// Gives the records of a namespace that is not ours.
///
/// # Errors
/// All that this kind [refuses](super).
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let ours = std::process::id().cast_signed();
    let Some(process) = frozen.living().next() else { return problems.finish() };
    if read::link(process.view, "ns/ipc")? == read::link(ours, "ns/ipc")? {
        undo::report(frozen, records);
        return problems.finish();
    }
    let inode = rustix::fs::stat(read::path(process.view, "ns/ipc")).map_or(0, |found| found.st_ino);
    let found = problems.take(tunables::read(|batch| process.run(batch)));
    let is_known = found.as_ref().is_some_and(|found| !found.is_empty());
    if found.is_some() && !is_known {
        let line = "the limits of its IPC namespace can't be read: it has no /proc";
        records.degraded.push(format!("{}: {line}", process.subject()));
    }
    records.push(IpcNamespace { inode, tunables: found.unwrap_or_default() });
    problems.take(no_shared_memory(process));
    for index in indices(process, libc::SYS_msgctl, MESSAGE_INFO, &mut problems) {
        records_of(problems.take(queue(process, index)), records);
    }
    let mut operated_on = false;
    for index in indices(process, libc::SYS_semctl, SEMAPHORE_INFO, &mut problems) {
        if let Some(Some((set, operated))) = problems.take(set(process, index)) {
            operated_on |= operated;
            records.push(set);
        }
    }
    if operated_on {
        records.degraded.push(format!(
            "{}: changes of semaphores that its end would undo (SEM_UNDO) can't be seen: they are not undone",
            process.subject()
        ));
    }
    problems.finish()
}

fn records_of(queue: Option<Option<MessageQueue>>, records: &mut Records) {
    if let Some(Some(queue)) = queue {
        records.push(queue);
    }
}

fn no_shared_memory(process: &mut FrozenProcess) -> Result<()> {
    let mut batch = Batch::new();
    let room = batch.room(STATUS_LENGTH);
    batch.call("asking for shared memory", libc::SYS_shmctl, [0.into(), SHARED_INFO.into(), room.into()]);
    let outcome = process.run(&batch)?;
    // `struct shm_info` begins with the number of segments.
    if outcome.half_word(room, 0) == 0 {
        return Ok(());
    }
    Err(Error::new(code::MAPPING, "its IPC namespace has System V shared memory").about(process.subject()))
}

/// The indices that may be in use.
fn indices(process: &mut FrozenProcess, number: i64, info: i32, problems: &mut Problems) -> Vec<u32> {
    let mut batch = Batch::new();
    let room = batch.room(STATUS_LENGTH);
    let highest = if number == libc::SYS_semctl {
        batch.call("asking for semaphores", number, [0.into(), 0.into(), info.into(), room.into()])
    } else {
        batch.call("asking for message queues", number, [0.into(), info.into(), room.into()])
    };
    let highest = problems.take(process.run(&batch)).and_then(|outcome| outcome.get(highest).ok());
    highest.map_or_else(Vec::new, |highest| (0..=u32::try_from(highest).unwrap_or(0)).collect())
}

/// What `struct ipc64_perm` says at the beginning of a status, with the ID that the call gave.
fn access(outcome: &Outcome, status: Data, id: u64) -> Access {
    let word = |index| outcome.half_word(status, index);
    Access {
        key: word(0).cast_signed(),
        id: u32::try_from(id).unwrap_or(u32::MAX),
        user: word(1),
        group: word(2),
        mode: word(5) & 0o777,
    }
}

/// The queue with an index; none if there is none.
fn queue(process: &mut FrozenProcess, index: u32) -> Result<Option<MessageQueue>> {
    let mut batch = Batch::new();
    let status = batch.room(STATUS_LENGTH);
    let arguments = [index.into(), MESSAGE_STATUS.into(), status.into()];
    let id = batch.call("looking at a message queue", libc::SYS_msgctl, arguments);
    let outcome = process.run(&batch)?;
    let Ok(id) = outcome.get(id) else { return Ok(None) };
    let access = access(&outcome, status, id);
    let (bytes, count) = (outcome.word(status, BYTES), outcome.word(status, MESSAGES));
    let capacity = outcome.word(status, CAPACITY);
    let subject = process.subject();
    let mut messages = Vec::new();
    for place in 0..count {
        let room_for = usize::try_from(bytes.min(LONGEST)).unwrap_or_default();
        let mut batch = Batch::new();
        let room = batch.room(8 + room_for);
        let flags = COPY | libc::IPC_NOWAIT;
        let arguments = [access.id.into(), room.into(), room_for.into(), place.into(), flags.into()];
        let copied = batch.call("copying a message", libc::SYS_msgrcv, arguments);
        let outcome = process.run(&batch)?;
        let length = outcome.get(copied).map_err(|errno| {
            Error::system(code::TASK_STATE, format!("copying a message of queue {}", access.id), errno)
                .about(subject.clone())
                .hint("let the program receive its messages first")
        })?;
        let data = outcome.bytes(room).get(8..8 + usize::try_from(length).unwrap_or_default());
        messages.push(TypedMessage {
            message_type: outcome.word(room, 0).cast_signed(),
            data: data.unwrap_or_default().to_vec(),
        });
    }
    Ok(Some(MessageQueue { access, capacity, messages }))
}

/// The set with an index, and whether it was ever operated on; none if there is none.
fn set(process: &mut FrozenProcess, index: u32) -> Result<Option<(Semaphore, bool)>> {
    let mut batch = Batch::new();
    let status = batch.room(STATUS_LENGTH);
    let arguments = [index.into(), 0.into(), SEMAPHORE_STATUS.into(), status.into()];
    let id = batch.call("looking at a semaphore set", libc::SYS_semctl, arguments);
    let outcome = process.run(&batch)?;
    let Ok(id) = outcome.get(id) else { return Ok(None) };
    let access = access(&outcome, status, id);
    let operated = outcome.word(status, OPERATED) != 0;
    let count = usize::try_from(outcome.word(status, SEMAPHORES)).unwrap_or_default();
    let mut batch = Batch::new();
    let room = batch.room(count * 2);
    let arguments = [access.id.into(), 0.into(), GET_ALL.into(), room.into()];
    batch.must("asking for the values of semaphores", libc::SYS_semctl, arguments);
    let outcome = process.run(&batch)?;
    let values = outcome.bytes(room).chunks_exact(2);
    let values = values.filter_map(|bytes| bytes.try_into().ok().map(u16::from_le_bytes)).collect();
    Ok(Some((Semaphore { access, values }, operated)))
}
