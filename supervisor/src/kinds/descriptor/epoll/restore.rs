//! Making epoll sets again, and adding what they watch.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore, tables};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex};
use rustix::event::epoll::CreateFlags;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::descriptor_table::DescriptorTable;
use vckpt_image_format::record::epoll::{Epoll, EpollTarget};
use vckpt_image_format::{DescriptionId, Image, TaskId};

/// Bits that say how an entry behaves, not for what it waits.
const MODES: u32 =
    (libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE).cast_unsigned();
const EDGE: u32 = libc::EPOLLET.cast_unsigned();
/// Events that are taken by one call, and bytes of one (`struct epoll_event` is packed on x86-64).
const AT_ONCE: usize = 1024;
const EVENT_LENGTH: usize = 12;
const ONE_SHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();

/// Adds a step for each set: an empty one.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for set in all::<Epoll>(image)? {
        plan.action(Stage::Descriptors, MakeEpoll(set));
    }
    Ok(())
}

/// Adds the steps that add the entries, for when all descriptors are in their places.
///
/// # Errors
/// As [`tables`].
pub fn plan_targets(image: &Image, plan: &mut Plan) -> Result<()> {
    let sets = all::<Epoll>(image)?;
    if sets.iter().all(|set| set.targets.is_empty()) {
        return Ok(());
    }
    let tables = tables(image)?;
    for set in sets {
        let found = tables
            .iter()
            .find_map(|(process, table)| Some((process.id, table, number_of(table, set.description.id)?)));
        let Some((process, table, number)) = found else { continue };
        // Those that are disabled come first: see `disabled`.
        let (disabled, enabled): (Vec<_>, Vec<_>) = set.targets.into_iter().partition(is_disabled);
        for target in disabled.into_iter().chain(enabled) {
            let has = description_of(table, target.number);
            let stands = if has == Some(target.description) {
                Stands::There
            } else if has.is_some() {
                Stands::Another
            } else {
                Stands::Nothing
            };
            plan.action(Stage::Descriptors, AddTarget { process, set: number, target, stands });
        }
    }
    Ok(())
}

/// Adds the calls that take from sets what was told already, for when nothing more can become ready.
///
/// # Errors
/// As [`tables`].
pub fn plan_quiet(image: &Image, plan: &mut Plan) -> Result<()> {
    let mut sets = all::<Epoll>(image)?;
    sets.retain(|set| set.quiet && set.targets.iter().any(|target| target.events & EDGE != 0));
    if sets.is_empty() {
        return Ok(());
    }
    let tables = tables(image)?;
    for set in sets {
        let found = tables
            .iter()
            .find_map(|(process, table)| Some((process.id, number_of(table, set.description.id)?)));
        let Some((process, number)) = found else { continue };
        // What is not taken by one call comes first in the next.
        for _ in set.targets.chunks(AT_ONCE) {
            let mut batch = Batch::new();
            let events = batch.room(AT_ONCE * EVENT_LENGTH);
            let none = Argument::value(0);
            let arguments = [number.into(), events.into(), AT_ONCE.into(), none, none, 8_u64.into()];
            batch.must("taking what an epoll set has told", libc::SYS_epoll_pwait, arguments);
            plan.batch(Stage::Timers, process, "quieting an epoll set", batch);
        }
    }
    Ok(())
}

fn number_of(table: &DescriptorTable, description: DescriptionId) -> Option<u32> {
    table.descriptors.iter().find(|found| found.description == description).map(|found| found.number)
}

fn description_of(table: &DescriptorTable, number: u32) -> Option<DescriptionId> {
    table.descriptors.iter().find(|found| found.number == number).map(|found| found.description)
}

/// A one-shot entry that has fired: it waits for nothing.
fn is_disabled(target: &EpollTarget) -> bool {
    target.events & ONE_SHOT != 0 && target.events & !MODES == 0
}

/// Makes an epoll set.
#[derive(Debug)]
struct MakeEpoll(Epoll);

impl Action for MakeEpoll {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let made = rustix::event::epoll::create(CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "making an epoll set", errno))?;
        restore::keep(restoring, &self.0.description, made)
    }
}

/// What the number of an entry leads to in the process that adds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// What is to be watched.
    There,
    /// Something else.
    Another,
    /// Nothing.
    Nothing,
}

/// Adds an entry to a set.
#[derive(Debug)]
struct AddTarget {
    process: TaskId,
    /// The number of the set in this process.
    set: u32,
    target: EpollTarget,
    stands: Stands,
}

impl Action for AddTarget {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let fired = self.run(restoring, |batch| self.add(batch))?;
        if fired == Some(false) {
            // Nothing was there to fire for: it is left without anything to wait for but errors.
            self.run(restoring, |batch| {
                self.control(batch, libc::EPOLL_CTL_MOD, self.target.events);
                None
            })?;
        }
        Ok(())
    }
}

impl AddTarget {
    /// Makes calls in the process while the number leads to what is watched; what the call that `add` names has given.
    fn run(
        &self,
        restoring: &mut Restoring<'_>,
        add: impl FnOnce(&mut Batch) -> Option<CallIndex>,
    ) -> Result<Option<bool>> {
        let mut batch = Batch::new();
        let wait = match self.stands {
            Stands::There => add(&mut batch),
            Stands::Another | Stands::Nothing => {
                let Some(wanted) = restoring.descriptions.get(&self.target.description) else {
                    return Err(Error::new(
                        code::INTERNAL,
                        "an epoll set watches something that was not made",
                    ));
                };
                let wanted = batch.descriptor(wanted.as_raw_fd());
                self.borrow(&mut batch, wanted, add)
            }
        };
        let outcome = restoring.run(self.process, &batch).map_err(|error| {
            Error::new(code::DESCRIPTOR_RESTORE, "adding a descriptor to an epoll set")
                .because(error)
                .about(Subject::task(self.process.0, "task").descriptor(self.target.number.cast_signed()))
        })?;
        Ok(wait.map(|wait| outcome.get(wait).is_ok_and(|count| count > 0)))
    }

    /// Gives the number to what is to be watched for as long as it takes to add it. If the number was free, the
    /// descriptor may have arrived there already.
    fn borrow(
        &self,
        batch: &mut Batch,
        wanted: Argument,
        add: impl FnOnce(&mut Batch) -> Option<CallIndex>,
    ) -> Option<CallIndex> {
        let number = Argument::from(self.target.number);
        // Numbers above this are nobody's in a puppet but the stub's.
        let out_of_the_way = self.target.number.max(self.set) + 1;
        let move_away = |batch: &mut Batch, from: Argument| {
            batch.must(
                "moving a descriptor",
                libc::SYS_fcntl,
                [from, libc::F_DUPFD_CLOEXEC.into(), out_of_the_way.into()],
            )
        };
        let moved = move_away(batch, wanted);
        batch.must("closing a descriptor that was moved", libc::SYS_close, [wanted]);
        let saved = (self.stands == Stands::Another).then(|| {
            let flags =
                batch.must("looking at a descriptor", libc::SYS_fcntl, [number, libc::F_GETFD.into()]);
            (move_away(batch, number), flags)
        });
        batch.must("borrowing a number", libc::SYS_dup3, [moved.into(), number, 0_u64.into()]);
        let wait = add(batch);
        if let Some((saved, flags)) = saved {
            batch.must("giving a number back", libc::SYS_dup3, [saved.into(), number, 0_u64.into()]);
            batch.must(
                "setting close-on-exec",
                libc::SYS_fcntl,
                [number, libc::F_SETFD.into(), flags.into()],
            );
            batch.must("closing a descriptor", libc::SYS_close, [saved.into()]);
        } else {
            batch.must("closing a borrowed number", libc::SYS_close, [number]);
        }
        batch.must("closing a descriptor", libc::SYS_close, [moved.into()]);
        wait
    }

    /// Adds it. An entry that is to have fired already is made to fire now, while the set has no other that could, and
    /// its event is thrown away: the call that does that is returned.
    fn add(&self, batch: &mut Batch) -> Option<CallIndex> {
        if !is_disabled(&self.target) {
            self.control(batch, libc::EPOLL_CTL_ADD, self.target.events);
            return None;
        }
        let anything = (libc::EPOLLIN | libc::EPOLLOUT).cast_unsigned();
        self.control(batch, libc::EPOLL_CTL_ADD, self.target.events | anything);
        let event = batch.room(12);
        let none = Argument::value(0);
        let arguments = [self.set.into(), event.into(), 1_u64.into(), none, none, 8_u64.into()];
        Some(batch.must("disabling a one-shot entry", libc::SYS_epoll_pwait, arguments))
    }

    fn control(&self, batch: &mut Batch, operation: i32, events: u32) {
        // struct epoll_event is packed on x86-64: events, then data.
        let event = [&events.to_le_bytes()[..], &self.target.data.to_le_bytes()].concat();
        let event = batch.data(&event);
        batch.must(
            "adding to an epoll set",
            libc::SYS_epoll_ctl,
            [self.set.into(), operation.into(), self.target.number.into(), event.into()],
        );
    }
}
