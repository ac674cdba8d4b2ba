//! Acting: carries a plan out, stage by stage. It takes no decision; what fails undoes everything.

use crate::error::{Error, Problems, Result, code};
use crate::plan::{Plan, Stage, Step};
use crate::progress::{Follow, Progress};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use tracing::debug;
use vckpt_image_format::TaskId;

/// Carries out all stages. `progress` is asked before each step whether to go on.
///
/// # Errors
/// The first step that failed, or [`code::CANCELLED`]. Dropping what is being restored then ends all puppets.
pub fn act(plan: &Plan, restoring: &mut Restoring<'_>, progress: &mut Follow<'_>) -> Result<()> {
    let total = plan.len() as u64;
    let mut done = 0;
    for stage in Stage::ALL {
        let mut waiting = Waiting::default();
        for step in plan.steps(stage) {
            if progress(Progress { phase: "restore", done, total }).is_break() {
                return Err(Error::new(code::CANCELLED, "the restore was interrupted"));
            }
            done += 1;
            match step {
                Step::Batch { thread, purpose, batch } => waiting.add(restoring, *thread, purpose, batch)?,
                Step::Action(action) => {
                    waiting.run(restoring)?;
                    if !action.overlaps() {
                        restoring.settle()?;
                    }
                    with_all_problems(action.act(restoring), restoring)?;
                }
            }
        }
        waiting.run(restoring)?;
        restoring.settle()?;
        restoring.enter(stage)?;
        debug!(?stage, "done");
    }
    Ok(())
}

/// If a step has failed, what puppets still do may fail too: it is told with it.
fn with_all_problems(result: Result<()>, restoring: &mut Restoring<'_>) -> Result<()> {
    let Err(error) = result else { return Ok(()) };
    let mut problems = Problems::new();
    problems.push(error);
    problems.take(restoring.settle());
    problems.finish()
}

/// Batches for several threads, to be run at the same time.
#[derive(Debug, Default)]
struct Waiting {
    batches: Vec<(TaskId, Vec<&'static str>, Batch)>,
}

impl Waiting {
    fn add(
        &mut self,
        restoring: &mut Restoring<'_>,
        thread: TaskId,
        purpose: &'static str,
        batch: &Batch,
    ) -> Result<()> {
        if let Some((_, purposes, waiting)) = self.batches.iter_mut().find(|(of, ..)| *of == thread) {
            if waiting.has_room_for(batch) {
                waiting.append(batch);
                purposes.push(purpose);
                return Ok(());
            }
            self.run(restoring)?;
        }
        self.batches.push((thread, vec![purpose], batch.clone()));
        Ok(())
    }

    fn run(&mut self, restoring: &mut Restoring<'_>) -> Result<()> {
        if self.batches.is_empty() {
            return Ok(());
        }
        restoring.settle()?;
        let batches = std::mem::take(&mut self.batches);
        for (thread, _, batch) in &batches {
            restoring.puppet(*thread)?.send(batch)?;
        }
        for (thread, purposes, batch) in &batches {
            let result = restoring.puppet(*thread)?.receive(batch);
            result.map_err(|error| explain(error, purposes))?;
        }
        Ok(())
    }
}

fn explain(mut error: Box<Error>, purposes: &[&'static str]) -> Box<Error> {
    error.what = format!("{} (restoring {})", error.what, purposes.join(", "));
    error
}
