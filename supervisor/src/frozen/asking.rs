//! Questions to many threads at the same time, and looks at many processes side by side.
//!
//! All batches are sent before the first answer is taken, so that the stubs work side by side and nobody waits for one
//! of them alone.

use super::{Frozen, FrozenProcess, FrozenThread};
use crate::error::{Result, Subject};
use crate::kinds::sandbox::observe::permit;
use crate::stub::batch::{Batch, Outcome};
use std::borrow::Borrow;

/// Runs a batch in each thread, and checks that what must not fail did not. The outcomes are in the order of the
/// threads; all answers are taken, also behind a bad one.
pub fn run_side_by_side<'thread, B: Borrow<Batch>>(
    asked: impl IntoIterator<Item = (&'thread mut FrozenThread, B)>,
) -> Vec<Result<Outcome>> {
    let send = |(thread, batch): (&'thread mut FrozenThread, B)| {
        let sent = permit(&thread.filters, batch.borrow()).and_then(|()| thread.agent.send(batch.borrow()));
        (thread, batch, sent)
    };
    let sent: Vec<_> = asked.into_iter().map(send).collect();
    let receive = |(thread, batch, sent): (&mut FrozenThread, B, Result<()>)| {
        sent?;
        thread.agent.receive(batch.borrow())
    };
    sent.into_iter().map(receive).collect()
}

/// Runs a batch in all of several threads, as [`run_side_by_side`] does.
///
/// # Errors
/// If a stub can't be reached, or a call that must not fail did.
pub fn run_in_all(threads: &mut [FrozenThread], batch: &Batch) -> Result<Vec<Outcome>> {
    run_side_by_side(threads.iter_mut().map(|thread| (thread, batch))).into_iter().collect()
}

impl Frozen {
    /// Runs a batch in every thread of the tree. The outcomes are in the order of [`Frozen::living`]: for each process
    /// those of its threads, or what failed in one of them.
    pub fn run_in_threads(&mut self, batch: &Batch) -> Vec<Result<Vec<Outcome>>> {
        let threads = self.living().flat_map(|process| process.threads.iter_mut());
        let mut outcomes = run_side_by_side(threads.map(|thread| (thread, batch))).into_iter();
        self.living()
            .map(|process| {
                let own: Vec<_> = outcomes.by_ref().take(process.threads.len()).collect();
                own.into_iter().collect::<Result<_>>().map_err(|error| error.about(process.subject()))
            })
            .collect()
    }

    /// Runs a batch in every process: in its leader, or in another thread if that has ended. The outcomes are in the
    /// order of [`Frozen::living`].
    pub fn run_in_processes(&mut self, batch: &Batch) -> Vec<Result<Outcome>> {
        self.run_in_some(|_| Some(batch)).into_iter().flatten().collect()
    }

    /// Runs in processes the batches that they are given, as [`Frozen::run_in_processes`] does. Nothing for those that
    /// are given none.
    pub fn run_in_some<B: Borrow<Batch>>(
        &mut self,
        mut batch: impl FnMut(&FrozenProcess) -> Option<B>,
    ) -> Vec<Option<Result<Outcome>>> {
        let batches: Vec<Option<(Subject, B)>> =
            self.living().map(|process| Some((process.subject(), batch(process)?))).collect();
        let asked = self
            .living()
            .zip(&batches)
            .filter_map(|(process, batch)| Some((process.threads.first_mut()?, batch.as_ref()?.1.borrow())));
        let mut outcomes = run_side_by_side::<&Batch>(asked).into_iter();
        batches
            .iter()
            .map(|batch| {
                let (subject, _) = batch.as_ref()?;
                outcomes.next().map(|outcome| outcome.map_err(|error| error.about(subject.clone())))
            })
            .collect()
    }

    /// As [`Frozen::living`], to be looked at.
    fn seen_living(&self) -> impl Iterator<Item = &FrozenProcess> {
        self.processes.iter().filter(|process| !process.threads.is_empty())
    }

    /// Looks at every process that has not ended, side by side, in the order of [`Frozen::living`].
    pub fn map_processes<T: Send>(&self, look: impl Fn(&FrozenProcess) -> T + Sync) -> Vec<T> {
        crate::parallel::map(&self.seen_living().collect::<Vec<_>>(), |process| look(process))
    }

    /// Looks at every thread side by side; for each process what came of its threads, in the order of
    /// [`Frozen::living`].
    pub fn map_threads<T: Send>(
        &self,
        look: impl Fn(&FrozenProcess, &FrozenThread) -> T + Sync,
    ) -> Vec<Vec<T>> {
        let living = || self.processes.iter().filter(|process| !process.threads.is_empty());
        let threads: Vec<_> = living()
            .flat_map(|process| process.threads.iter().map(move |thread| (process, thread)))
            .collect();
        let mut found = crate::parallel::map(&threads, |(process, thread)| look(process, thread)).into_iter();
        self.seen_living().map(|process| found.by_ref().take(process.threads.len()).collect()).collect()
    }
}
