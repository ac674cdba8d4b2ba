//! Descriptors: the numbers by which processes know open files, and the open file descriptions behind them.
//!
//! A descriptor table (`files_struct`) maps numbers to open file descriptions (`struct file`), which have the access
//! mode, the status flags, the position and the owner of signals. `dup(2)`, `fork(2)` and `SCM_RIGHTS` make several
//! descriptors lead to one description; that sharing is kept.
//!
//! - **Saved**: tables ([`DescriptorTable`]), and by one of [`DESCRIPTOR_KINDS`] what each description leads to. A
//!   description that no kind claims is an error that names it.
//!   Descriptors that travel in sockets count too ([`unix`]).
//! - **Not saved**: with which credentials `F_SETOWN` was made; by which of several numbers `O_ASYNC` was set
//!   ([`owners`]); notifications of directories (`F_NOTIFY`), which can't be seen.
//! - **Kernel**: `pidfd_getfd(2)` (5.6); `kcmp(2)` to tell whether two descriptors lead to one description.
//!
//! At the restore every description is made once, by this program, and sent to all tables that have it
//! ([`place`]).

pub mod bpf;
pub mod epoll;
pub mod event;
pub mod fanotify;
pub mod file;
mod guests;
pub mod holders;
pub mod inotify;
pub mod internet;
pub mod io_uring;
pub mod message_queue;
pub mod namespace;
pub mod observe;
pub mod opened;
pub mod owners;
pub mod packet;
pub mod pipe;
pub mod place;
pub mod process;
pub mod restore;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod timer;
pub mod unix;
pub mod watched;

use crate::error::{Error, Result, code};
use crate::plan::{Plan, Stage};
use crate::records::Records;
use opened::{Opened, Walk};
use std::collections::BTreeSet;
use vckpt_image_format::record::descriptor_table::DescriptorTable;
use vckpt_image_format::record::process::Process;
use vckpt_image_format::{Image, Record};

/// A kind of descriptor.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorKind {
    /// Its name, as the folder's.
    pub name: &'static str,
    /// Whether a description is of this kind.
    pub claims: fn(&Opened) -> bool,
    /// Looks at all the descriptions that it claims, and gives records.
    pub observe: fn(&Walk<'_>, &[&Opened], &mut Records) -> Result<()>,
    /// Adds the steps that make the descriptions again.
    pub plan: fn(&Image, &mut Plan) -> Result<()>,
}

/// All kinds of descriptors; the first that claims a description has it.
pub const DESCRIPTOR_KINDS: &[DescriptorKind] = &[
    // Before files: also one that was opened with `O_PATH` has no path.
    DescriptorKind {
        name: "namespace",
        claims: namespace::claims,
        observe: namespace::observe,
        plan: namespace::plan,
    },
    // Before files: its name looks like a path.
    DescriptorKind {
        name: "message_queue",
        claims: message_queue::claims,
        observe: message_queue::observe::observe,
        plan: message_queue::restore::plan,
    },
    DescriptorKind {
        name: "file",
        claims: file::claims,
        observe: file::observe::observe,
        plan: file::restore::plan,
    },
    DescriptorKind {
        name: "pipe",
        claims: pipe::claims,
        observe: pipe::observe::observe,
        plan: pipe::restore::plan,
    },
    DescriptorKind {
        name: "process",
        claims: process::claims,
        observe: process::observe,
        plan: process::plan,
    },
    DescriptorKind { name: "bpf", claims: bpf::claims, observe: bpf::observe, plan: bpf::plan },
    DescriptorKind { name: "event", claims: event::claims, observe: event::observe, plan: event::plan },
    DescriptorKind { name: "signal", claims: signal::claims, observe: signal::observe, plan: signal::plan },
    DescriptorKind { name: "timer", claims: timer::claims, observe: timer::observe, plan: timer::plan },
    DescriptorKind {
        name: "epoll",
        claims: epoll::claims,
        observe: epoll::observe::observe,
        plan: epoll::restore::plan,
    },
    DescriptorKind {
        name: "unix",
        claims: unix::claims,
        observe: unix::observe::observe,
        plan: unix::restore::plan,
    },
    DescriptorKind {
        name: "internet",
        claims: internet::claims,
        observe: internet::observe::observe,
        plan: internet::restore::plan,
    },
    DescriptorKind {
        name: "packet",
        claims: packet::claims,
        observe: packet::observe::observe,
        plan: packet::restore::plan,
    },
    DescriptorKind {
        name: "inotify",
        claims: inotify::claims,
        observe: inotify::observe::observe,
        plan: inotify::restore::plan,
    },
    DescriptorKind {
        name: "fanotify",
        claims: fanotify::claims,
        observe: fanotify::observe::observe,
        plan: fanotify::restore::plan,
    },
    DescriptorKind {
        name: "io_uring",
        claims: io_uring::claims,
        observe: io_uring::observe::observe,
        plan: io_uring::restore::plan,
    },
    DescriptorKind {
        name: "terminal",
        claims: terminal::claims,
        observe: terminal::observe::observe,
        plan: terminal::restore::plan,
    },
];

/// Plans what all kinds of descriptors need, the tables, and what can only be done when these are complete.
///
/// # Errors
/// [`code::IMAGE_BAD`] if records don't fit together.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for kind in DESCRIPTOR_KINDS {
        (kind.plan)(image, plan)?;
    }
    unix::restore::plan_queues(image, plan)?;
    place::plan(image, plan)?;
    io_uring::plan_places(image, plan)?;
    epoll::restore::plan_targets(image, plan)?;
    epoll::restore::plan_quiet(image, plan)?;
    plan.action(Stage::Memory, owners::SetOwners);
    guests::plan_leave(image, plan)?;
    plan.action(Stage::Memory, restore::CloseCopies);
    Ok(())
}

/// All records of a kind.
///
/// # Errors
/// [`code::IMAGE_BAD`], which does not happen with an image that was verified.
pub fn all<R: Record>(image: &Image) -> Result<Vec<R>> {
    image.all::<R>().map_err(|error| {
        Error::new(code::IMAGE_BAD, "the image has records that can't be used").because(error)
    })
}

/// All tables, each with the first process that has it; with descriptions that only travel in sockets, as far as they
/// have to be in a table for a while.
///
/// # Errors
/// [`code::IMAGE_BAD`] if a table is missing.
pub fn tables(image: &Image) -> Result<Vec<(Process, DescriptorTable)>> {
    let mut tables = own_tables(image)?;
    guests::add(image, &mut tables)?;
    Ok(tables)
}

/// All tables as they were, each with the first process that has it.
///
/// # Errors
/// [`code::IMAGE_BAD`] if a table is missing.
pub fn own_tables(image: &Image) -> Result<Vec<(Process, DescriptorTable)>> {
    let tables = all::<DescriptorTable>(image)?;
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for process in all::<Process>(image)? {
        let Some(living) = &process.living else { continue };
        if !seen.insert(living.descriptor_table) {
            continue;
        }
        let Some(table) = tables.iter().find(|table| table.id == living.descriptor_table) else {
            return Err(Error::new(
                code::IMAGE_BAD,
                "a process has a descriptor table that is not in the image",
            ));
        };
        let table = table.clone();
        found.push((process, table));
    }
    Ok(found)
}
