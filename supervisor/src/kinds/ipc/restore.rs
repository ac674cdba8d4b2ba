//! Making an IPC namespace again, with what was in it: by calls that the root makes.

use super::{SET, SET_ALL, STATUS_LENGTH, tunables};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::all;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Batch, CallIndex};
use vckpt_image_format::record::ipc_namespace::{IpcNamespace, Tunable};
use vckpt_image_format::record::message_queue::{Access, MessageQueue};
use vckpt_image_format::record::semaphore::Semaphore;
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::{Image, TaskId};

/// Adds the namespace, and a step for each object.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let namespaces = all::<IpcNamespace>(image)?;
    let Some(namespace) = namespaces.into_iter().next() else { return Ok(()) };
    let Snapshot { root, .. } = crate::image::one(image)?;
    plan.action(Stage::Namespaces, OwnNamespace);
    plan.action(Stage::Descriptors, SetTunables { root, tunables: namespace.tunables });
    for queue in all::<MessageQueue>(image)? {
        plan.action(Stage::Descriptors, MakeQueue { root, queue });
    }
    for set in all::<Semaphore>(image)? {
        plan.action(Stage::Descriptors, MakeSet { root, set });
    }
    Ok(())
}

/// Lets the root begin in a namespace of its own.
#[derive(Debug)]
struct OwnNamespace;

impl Action for OwnNamespace {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        restoring.root_namespaces |= libc::CLONE_NEWIPC.cast_unsigned();
        Ok(())
    }
}

/// Sets the limits of the namespace.
#[derive(Debug)]
struct SetTunables {
    root: TaskId,
    tunables: Vec<Tunable>,
}

impl Action for SetTunables {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let found = tunables::read(|batch| restoring.run(self.root, batch))?;
        if found.is_empty() && !self.tunables.is_empty() {
            let line = "the limits of the IPC namespace can't be set: the tree has no /proc";
            restoring.degraded.push(line.to_owned());
        }
        let batch = tunables::write(&self.tunables, &found);
        restoring.run(self.root, &batch).map(drop)
    }
}

/// Makes a message queue.
#[derive(Debug)]
struct MakeQueue {
    root: TaskId,
    queue: MessageQueue,
}

impl Action for MakeQueue {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let access = &self.queue.access;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
        make(restoring, self.root, access, b"/proc/sys/kernel/msg_next_id\0", |batch| {
            let arguments = [access.key.into(), flags.into()];
            batch.must("making a message queue", libc::SYS_msgget, arguments)
        })?;
        // Before it is filled: it may have more room than others.
        let mut batch = Batch::new();
        let status = batch.data(&status(access, self.queue.capacity));
        let arguments = [access.id.into(), SET.into(), status.into()];
        batch.must("setting the owner of a message queue", libc::SYS_msgctl, arguments);
        restoring.run(self.root, &batch)?;
        for message in &self.queue.messages {
            let mut batch = Batch::new();
            let bytes = [&message.message_type.to_le_bytes()[..], &message.data].concat();
            let bytes = batch.data(&bytes);
            let length = message.data.len();
            let arguments = [access.id.into(), bytes.into(), length.into(), libc::IPC_NOWAIT.into()];
            batch.must("filling a message queue", libc::SYS_msgsnd, arguments);
            restoring.run(self.root, &batch)?;
        }
        Ok(())
    }
}

/// Makes a semaphore set.
#[derive(Debug)]
struct MakeSet {
    root: TaskId,
    set: Semaphore,
}

impl Action for MakeSet {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let access = &self.set.access;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
        make(restoring, self.root, access, b"/proc/sys/kernel/sem_next_id\0", |batch| {
            let arguments = [access.key.into(), self.set.values.len().into(), flags.into()];
            batch.must("making a semaphore set", libc::SYS_semget, arguments)
        })?;
        let mut batch = Batch::new();
        let values: Vec<u8> = self.set.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let values = batch.data(&values);
        let arguments = [access.id.into(), 0.into(), SET_ALL.into(), values.into()];
        batch.must("setting the values of semaphores", libc::SYS_semctl, arguments);
        let status = batch.data(&status(access, 0));
        let arguments = [access.id.into(), 0.into(), SET.into(), status.into()];
        batch.must("setting the owner of a semaphore set", libc::SYS_semctl, arguments);
        restoring.run(self.root, &batch).map(drop)
    }
}

/// Makes an object with the ID that it had.
fn make(
    restoring: &mut Restoring<'_>,
    root: TaskId,
    access: &Access,
    next_id: &[u8],
    make: impl FnOnce(&mut Batch) -> CallIndex,
) -> Result<()> {
    let mut batch = Batch::new();
    let path = batch.data(next_id);
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC).into();
    let arguments = [libc::AT_FDCWD.into(), path.into(), flags, 0.into()];
    let file = batch.must("choosing the ID of an IPC object", libc::SYS_openat, arguments);
    let text = access.id.to_string();
    let id = batch.data(text.as_bytes());
    let arguments = [file.into(), id.into(), text.len().into()];
    batch.must("choosing the ID of an IPC object", libc::SYS_write, arguments);
    batch.must("closing a file", libc::SYS_close, [file.into()]);
    let made = make(&mut batch);
    let made = restoring.run(root, &batch)?.get(made).unwrap_or_default();
    if made != u64::from(access.id) {
        let what = format!("IPC object {} would have the ID {made}", access.id);
        return Err(Error::new(code::DESCRIPTOR_RESTORE, what).about(Subject::task(root.0, "task")));
    }
    Ok(())
}

/// What `IPC_SET` takes: owner, permissions, and of a queue its capacity.
fn status(access: &Access, capacity: u64) -> Vec<u8> {
    let mut status = vec![0; STATUS_LENGTH];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = status.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(4, &access.user.to_le_bytes());
    put(8, &access.group.to_le_bytes());
    put(20, &access.mode.to_le_bytes());
    put(88, &capacity.to_le_bytes());
    status
}
