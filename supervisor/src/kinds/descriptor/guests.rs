//! Descriptions that no table has, since they only travel in sockets, and that only a process can set up which has them
//! under a number: the root has them as guests, above its own, until that is done.

use super::all;
use crate::error::Result;
use crate::plan::{Plan, Stage};
use crate::stub::batch::Batch;
use std::collections::{BTreeSet, HashSet};
use vckpt_image_format::record::descriptor_table::{Descriptor, DescriptorTable};
use vckpt_image_format::record::epoll::Epoll;
use vckpt_image_format::record::fanotify::Fanotify;
use vckpt_image_format::record::inotify::{Inotify, Watched};
use vckpt_image_format::record::process::Process;
use vckpt_image_format::record::timer_descriptor::TimerDescriptor;
use vckpt_image_format::{DescriptionId, Image};

/// Adds the guests to the first table.
///
/// # Errors
/// As [`all`].
pub(super) fn add(image: &Image, tables: &mut [(Process, DescriptorTable)]) -> Result<()> {
    let guests = find(image, tables)?;
    let Some((_, table)) = tables.first_mut() else { return Ok(()) };
    let above = table.descriptors.last().map_or(0, |last| last.number.saturating_add(1));
    table.descriptors.extend((above..).zip(guests).map(|(number, description)| Descriptor {
        number,
        close_on_exec: true,
        description,
    }));
    Ok(())
}

/// Adds the calls that close them, behind all that needs them.
///
/// # Errors
/// As [`super::tables`].
pub(super) fn plan_leave(image: &Image, plan: &mut Plan) -> Result<()> {
    let (with, without) = (super::tables(image)?, super::own_tables(image)?);
    let (Some((process, with)), Some((_, without))) = (with.first(), without.first()) else { return Ok(()) };
    let mut batch = Batch::new();
    for guest in with.descriptors.iter().skip(without.descriptors.len()) {
        batch.must("closing a descriptor", libc::SYS_close, [guest.number.into()]);
    }
    plan.batch(Stage::Timers, process.id, "closing what only travels", batch);
    Ok(())
}

/// The descriptions that have to be in a table, and are in none.
fn find(image: &Image, tables: &[(Process, DescriptorTable)]) -> Result<BTreeSet<DescriptionId>> {
    let mut found = BTreeSet::new();
    for set in all::<Epoll>(image)? {
        found.insert(set.description.id);
        found.extend(set.targets.iter().map(|target| target.description));
    }
    let watched = |watched: &Watched| match watched {
        Watched::Description(id) => Some(*id),
        Watched::Path(_) => None,
    };
    for instance in all::<Inotify>(image)? {
        found.insert(instance.description.id);
        found.extend(instance.watches.iter().filter_map(|watch| watched(&watch.watched)));
    }
    for group in all::<Fanotify>(image)? {
        found.insert(group.description.id);
        found.extend(group.marks.iter().filter_map(|mark| watched(&mark.watched)));
    }
    found.extend(all::<TimerDescriptor>(image)?.iter().map(|timer| timer.description.id));
    let tables = tables.iter().flat_map(|(_, table)| &table.descriptors);
    let there: HashSet<DescriptionId> = tables.map(|descriptor| descriptor.description).collect();
    found.retain(|id| !there.contains(id));
    Ok(found)
}
