//! Putting descriptions into descriptor tables, each under its number.
//!
//! A puppet starts with no descriptor but the stub's socket, whose number is above all wanted ones. Received
//! descriptors get the lowest free numbers in the order in which they were sent. So if they are sent in the order of
//! their wanted numbers, none arrives above the number that it is meant for; moved from the last to the first,
//! each finds its number free.

use super::{all, tables};
use crate::error::{Error, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use vckpt_image_format::record::descriptor_table::Descriptor;
use vckpt_image_format::record::io_uring::IoUring;
use vckpt_image_format::{DescriptionId, Image, TaskId};

/// Most descriptors that travel at once.
const PORTION: usize = 200;

/// Adds the steps that fill the tables.
///
/// # Errors
/// [`code::IMAGE_BAD`] if a table is missing.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    // These don't travel.
    let rings: BTreeSet<DescriptionId> =
        all::<IoUring>(image)?.into_iter().map(|ring| ring.description.id).collect();
    for (process, mut table) in tables(image)? {
        table.descriptors.retain(|descriptor| !rings.contains(&descriptor.description));
        let mut taken = Vec::new();
        for portion in table.descriptors.chunks(PORTION) {
            let arrivals = arrivals(&taken, portion.len());
            let moves = portion.iter().zip(arrivals);
            let moves = moves.map(|(&descriptor, arrives)| Move { descriptor, arrives }).collect();
            plan.action(Stage::Descriptors, PlaceDescriptors { process: process.id, moves });
            taken.extend(portion.iter().map(|descriptor| descriptor.number));
        }
    }
    Ok(())
}

/// The `count` lowest numbers that are not taken. `taken` is in ascending order.
fn arrivals(taken: &[u32], count: usize) -> Vec<u32> {
    let mut taken = taken.iter().copied().peekable();
    let free = (0..).filter(|number| taken.next_if_eq(number).is_none());
    free.take(count).collect()
}

/// A descriptor, and the number that it gets at first.
#[derive(Debug, Clone, Copy)]
struct Move {
    descriptor: Descriptor,
    arrives: u32,
}

/// Sends descriptions to a process and gives them their numbers.
#[derive(Debug)]
struct PlaceDescriptors {
    process: TaskId,
    moves: Vec<Move>,
}

impl Action for PlaceDescriptors {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let mut sent = Vec::with_capacity(self.moves.len());
        for Move { descriptor, .. } in &self.moves {
            let Some(description) = restoring.descriptions.get(&descriptor.description) else {
                let number = descriptor.number.cast_signed();
                return Err(Error::new(code::INTERNAL, "a descriptor leads to nothing that was made")
                    .about(Subject::task(self.process.0, "task").descriptor(number)));
            };
            sent.push(description.as_raw_fd());
        }
        restoring.begin(self.process, batch(&self.moves, &sent), |_, _| Ok(()))
    }

    fn overlaps(&self) -> bool {
        true
    }
}

/// The calls for descriptors that arrive in one message.
fn batch(moves: &[Move], sent: &[i32]) -> Batch {
    let mut batch = Batch::new();
    let arrived: Vec<Argument> = sent.iter().map(|&number| batch.descriptor(number)).collect();
    for (&Move { descriptor, arrives }, from) in moves.iter().zip(arrived).rev() {
        if arrives == descriptor.number {
            let flag = if descriptor.close_on_exec { libc::FD_CLOEXEC } else { 0 };
            batch.must(
                "setting close-on-exec of a descriptor",
                libc::SYS_fcntl,
                [descriptor.number.into(), libc::F_SETFD.into(), flag.into()],
            );
        } else {
            let flag = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            batch.must(
                "giving a descriptor its number",
                libc::SYS_dup3,
                [from, descriptor.number.into(), flag.into()],
            );
            batch.must("closing a descriptor that was moved", libc::SYS_close, [from]);
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest_free::random_tables;
    use std::collections::BTreeMap;

    /// Numbers without a crate for it: a few hundred tables from a fixed seed.
    mod proptest_free {
        pub(super) fn random_tables() -> impl Iterator<Item = Vec<u32>> {
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                u32::try_from(state >> 33).unwrap()
            };
            (0..300).map(move |_| {
                let count = next() % 600;
                let spread = 1 + next() % 40;
                let mut numbers: Vec<u32> = (0..count).map(|_| next() % (count * spread + 1)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                numbers
            })
        }
    }

    /// Carries out on a table what [`plan`] and [`batch`] would have a kernel do.
    fn place(numbers: &[u32]) -> BTreeMap<u32, u32> {
        let mut table: BTreeMap<u32, u32> = BTreeMap::new();
        let mut taken: Vec<u32> = Vec::new();
        for portion in numbers.chunks(PORTION) {
            let expected = arrivals(&taken, portion.len());
            let mut arrived = Vec::new();
            for &number in portion {
                let lowest = (0..).find(|free| !table.contains_key(free)).unwrap();
                table.insert(lowest, number);
                arrived.push(lowest);
            }
            assert_eq!(arrived, expected);
            for (&number, &arrives) in portion.iter().zip(&arrived).rev() {
                assert!(arrives <= number);
                if arrives != number {
                    let description = table.remove(&arrives).unwrap();
                    assert_eq!(description, number);
                    assert_eq!(table.insert(number, description), None, "{number} was overwritten");
                }
            }
            taken.extend(portion);
        }
        table
    }

    #[test]
    fn every_table_comes_out_right() {
        let fixed = [vec![], vec![0, 1, 2], vec![5], vec![0, 2, 4, 6], (100..900).collect()];
        for numbers in fixed.into_iter().chain(random_tables()) {
            let expected: BTreeMap<u32, u32> = numbers.iter().map(|&number| (number, number)).collect();
            assert_eq!(place(&numbers), expected);
        }
    }

    #[test]
    fn a_descriptor_in_its_place_is_not_moved() {
        let descriptor = |number| Descriptor { number, close_on_exec: true, description: DescriptionId(0) };
        let moves =
            [Move { descriptor: descriptor(0), arrives: 0 }, Move { descriptor: descriptor(9), arrives: 1 }];
        let batch = batch(&moves, &[10, 11]);
        let numbers: Vec<u64> = batch.calls.iter().map(|call| call.number).collect();
        let expected = [libc::SYS_dup3, libc::SYS_close, libc::SYS_fcntl];
        assert_eq!(numbers, expected.map(i64::cast_unsigned));
    }
}
