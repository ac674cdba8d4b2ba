//! Running the calls of one request: find the arguments, make the call, keep the result.
//!
//! No call has a meaning here except those of [`operation`].
#![allow(unsafe_code, reason = "runs system calls that the supervisor wrote")]

use crate::protocol::{Call, NOT_RUN, Request, STOP_ON_ERROR, argument, epitaph, operation};
use crate::serve::Ending;
use crate::serve::area::{Area, data_offset};
use crate::serve::message::Descriptors;
use crate::sys::error::{EINVAL, ENOSYS};
use crate::sys::{self, error_of, number};

/// How to go on after a batch.
pub(super) enum Outcome {
    /// Answer it.
    Answer,
    /// This is a new process that was born in the batch: serve its own socket, if that came into its place.
    Born(Result<(), Ending>),
    /// Close the socket and wait for ever.
    Park,
    /// Answer it, then be the init of a namespace.
    Init {
        /// The child whose end decides how the init ends.
        root: u64,
    },
}

/// What one call came to.
enum Step {
    Result(i64),
    Leave(Outcome),
}

/// Runs the calls of a request and keeps the result of every one.
pub(super) fn run(area: Area, request: &Request, descriptors: &Descriptors, entry: u64) -> Outcome {
    let call_count = request.call_count as usize;
    let batch = Batch { area, request, descriptors, entry };
    let mut done = 0;
    let mut outcome = Outcome::Answer;
    // Calls that lack some of their descriptors must not run with what is there.
    if descriptors.truncated() {
        descriptors.close();
    } else {
        while done < call_count {
            let Some(call) = area.call(done) else { break };
            match batch.step(&call, done) {
                Step::Result(result) => {
                    area.set_result(done, result);
                    done += 1;
                    if call.flags & STOP_ON_ERROR != 0 && error_of(result).is_some() {
                        break;
                    }
                }
                Step::Leave(Outcome::Born(socket)) => return Outcome::Born(socket),
                Step::Leave(other) => {
                    area.set_result(done, 0);
                    done += 1;
                    outcome = other;
                    break;
                }
            }
        }
    }
    for index in done..call_count {
        area.set_result(index, NOT_RUN);
    }
    outcome
}

struct Batch<'a> {
    area: Area,
    request: &'a Request,
    descriptors: &'a Descriptors,
    entry: u64,
}

impl Batch<'_> {
    fn step(&self, call: &Call, index: usize) -> Step {
        let Some(arguments) = self.resolve(call, index) else { return Step::Result(failure(EINVAL)) };
        match call.number {
            operation::SPAWN => self.spawn(arguments),
            operation::SPAWN_THREAD => Step::Result(self.spawn_thread(arguments)),
            operation::PARK => Step::Leave(Outcome::Park),
            operation::INIT => {
                let [root, ..] = arguments;
                Step::Leave(Outcome::Init { root })
            }
            operation::TILES => {
                sys::use_tiles();
                Step::Result(0)
            }
            number => {
                // SAFETY: the supervisor wrote this call, and holds the other end of the socket: serving it means
                // giving it the power over this process. All memory that a batch is meant to write is outside what
                // the stub keeps in references, and the calls themselves are read anew and checked one by one.
                Step::Result(unsafe { sys::call(number, arguments) })
            }
        }
    }

    /// The values of a call's arguments; nothing if one refers to what is not there.
    fn resolve(&self, call: &Call, index: usize) -> Option<[u64; 6]> {
        if call.flags & !STOP_ON_ERROR != 0 || call.reserved != 0 {
            return None;
        }
        let mut values = [0; 6];
        for ((value, &given), &kind) in values.iter_mut().zip(&call.arguments).zip(&call.kinds) {
            *value = match kind {
                argument::VALUE => given,
                argument::RESULT => self.earlier_result(given, index)?,
                argument::DESCRIPTOR => {
                    sys::descriptor_argument(self.descriptors.get(usize::try_from(given).ok()?)?)
                }
                argument::DATA => self.data_address(given)?,
                _ => return None,
            };
        }
        Some(values)
    }

    fn earlier_result(&self, given: u64, index: usize) -> Option<u64> {
        let earlier = usize::try_from(given).ok()?;
        if earlier >= index {
            return None;
        }
        self.area.result(earlier).map(i64::cast_unsigned)
    }

    fn data_address(&self, offset: u64) -> Option<u64> {
        if offset > u64::from(self.request.data_length) {
            return None;
        }
        let start = data_offset(self.request.call_count as usize)?;
        self.area.buffer_address().checked_add(start as u64)?.checked_add(offset)
    }

    /// [`operation::SPAWN`].
    fn spawn(&self, arguments: [u64; 6]) -> Step {
        const SHARED_DESCRIPTORS: u64 = 0x400;
        let [clone_arguments, length, given, wanted, ..] = arguments;
        let (Some(given), Some(wanted)) = (descriptor(given), descriptor(wanted)) else {
            return Step::Result(failure(EINVAL));
        };
        // SAFETY: the supervisor asks for a process with a copy of this memory, so both go on from here, each with
        // its own stack frames.
        let result = unsafe { sys::call(number::CLONE3, [clone_arguments, length, 0, 0, 0, 0]) };
        if error_of(result).is_some() {
            sys::close(given);
            return Step::Result(result);
        }
        let flags = core::ptr::with_exposed_provenance::<u64>(usize::try_from(clone_arguments).unwrap_or(0));
        // SAFETY: the kernel has just read `clone_args` from this address, and its first field is the flags.
        let flags = unsafe { flags.read_unaligned() };
        let shared = flags & SHARED_DESCRIPTORS != 0;
        if result != 0 {
            if !shared {
                sys::close(given);
            }
            return Step::Result(result);
        }
        let old = self.area.socket();
        self.area.set_born();
        self.area.set_socket(given);
        Step::Leave(Outcome::Born(if shared { Ok(()) } else { self.take_socket(old, given, wanted) }))
    }

    /// In a new process: leaves the parent's socket and gives its own the number it is to have.
    fn take_socket(&self, old: i32, given: i32, wanted: i32) -> Result<(), Ending> {
        sys::close(old);
        if given == wanted {
            return Ok(());
        }
        if let Some(error) = error_of(sys::duplicate(given, wanted)) {
            return Err(Ending { epitaph: epitaph::NO_SOCKET, detail: error });
        }
        sys::close(given);
        self.area.set_socket(wanted);
        Ok(())
    }

    /// [`operation::SPAWN_THREAD`].
    fn spawn_thread(&self, arguments: [u64; 6]) -> i64 {
        let [clone_arguments, length, boot, ..] = arguments;
        if self.entry == 0 {
            return failure(ENOSYS);
        }
        // SAFETY: the entry is the stub's own; clone arguments and boot page are the supervisor's, who made an area
        // for the new task.
        unsafe { sys::clone_at(clone_arguments, length, boot, self.entry) }
    }
}

/// A negative error, as the kernel would return it.
fn failure(error: u64) -> i64 {
    error.cast_signed().wrapping_neg()
}

/// An argument that has to be a descriptor.
fn descriptor(argument: u64) -> Option<i32> {
    i32::try_from(argument).ok()
}
