//! What puppets do while this program goes on with others.
//!
//! A batch that is [begun](Restoring::begin) is answered before anything else is asked of the same puppet, since
//! [`Restoring::puppet`] settles it first; and before any step that does not say that it
//! [overlaps](crate::plan::Action::overlaps) with others of its kind.

use super::Restoring;
use crate::error::{Problems, Result};
use crate::stub::batch::{Batch, Outcome};
use std::collections::VecDeque;
use std::fmt;
use vckpt_image_format::TaskId;

/// So many puppets are busy at most, and so many descriptors are on their way to them: an ordinary user may not have any
/// number of these.
const MOST: usize = 32;
const DESCRIPTORS: usize = 500;

/// What is done with the answer.
type Then = Box<dyn for<'restoring, 'image> FnOnce(&'restoring mut Restoring<'image>, Outcome) -> Result<()>>;

/// A batch that was sent, and what is done with its answer.
struct Begun {
    thread: TaskId,
    batch: Batch,
    then: Then,
}

/// All that is under way, the oldest first.
#[derive(Default)]
pub(super) struct UnderWay(VecDeque<Begun>);

impl UnderWay {
    /// Whether nothing may be added that has so many descriptors.
    fn is_full(&self, more: usize) -> bool {
        let descriptors: usize = self.0.iter().map(|begun| begun.batch.descriptors.len()).sum();
        self.0.len() >= MOST || descriptors > 0 && descriptors + more > DESCRIPTORS
    }
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.0.iter().map(|begun| begun.thread)).finish()
    }
}

impl Restoring<'_> {
    /// Sends a batch to a thread's puppet, and does not wait for the answer.
    ///
    /// # Errors
    /// If the puppet can't be reached; what came of older ones.
    pub fn begin(
        &mut self,
        thread: TaskId,
        batch: Batch,
        then: impl for<'restoring, 'image> FnOnce(&'restoring mut Restoring<'image>, Outcome) -> Result<()>
        + 'static,
    ) -> Result<()> {
        while self.under_way.is_full(batch.descriptors.len())
            && let Some(oldest) = self.under_way.0.pop_front()
        {
            self.take_answer(oldest)?;
        }
        self.puppet(thread)?.send(&batch)?;
        self.under_way.0.push_back(Begun { thread, batch, then: Box::new(then) });
        Ok(())
    }

    /// Takes all answers.
    ///
    /// # Errors
    /// What came of them, all at once.
    pub fn settle(&mut self) -> Result<()> {
        let mut problems = Problems::new();
        while let Some(oldest) = self.under_way.0.pop_front() {
            problems.take(self.take_answer(oldest));
        }
        problems.finish()
    }

    /// Takes the answer of one thread's puppet, if it owes one.
    pub(super) fn settle_thread(&mut self, thread: TaskId) -> Result<()> {
        while let Some(place) = self.under_way.0.iter().position(|begun| begun.thread == thread)
            && let Some(begun) = self.under_way.0.remove(place)
        {
            self.take_answer(begun)?;
        }
        Ok(())
    }

    fn take_answer(&mut self, begun: Begun) -> Result<()> {
        let outcome = self.puppet(begun.thread)?.receive(&begun.batch)?;
        (begun.then)(self, outcome)
    }
}
