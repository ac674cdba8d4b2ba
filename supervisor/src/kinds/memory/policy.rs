//! Where the pages of ranges are to be: the memory policies of `mbind(2)`.

use super::observe::Known;
use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess};
use crate::stub::batch::{Argument, Batch, Data, Outcome};
use vckpt_image_format::record::process_map::Source;
use vckpt_image_format::record::schedule_control::{MAXIMUM_MASK_WORDS, MemoryPolicy};

/// Ranges that are asked for at a time.
const SOME: usize = 512;
/// `MPOL_F_ADDR`.
const BY_ADDRESS: u32 = 2;
/// Room for a mask of nodes, in bytes.
const MASK_LENGTH: usize = MAXIMUM_MASK_WORDS * 8;

/// Asks for the policy of each mapping.
///
/// # Errors
/// If a stub can't be reached.
pub(super) fn observe(frozen: &mut Frozen, known: &mut [Known]) -> Result<()> {
    let mut problems = Problems::new();
    let most = known.iter().map(|known| known.mappings.len().div_ceil(SOME)).max().unwrap_or(0);
    for part in 0..most {
        // Both are in the order of the processes.
        let mut questions = known.iter().map(|known| (known.index, Question::ask(known, part))).peekable();
        let mut asked = Vec::new();
        let outcomes = frozen.run_in_some(|process| {
            let (_, question) = questions.next_if(|&(index, _)| index == process.index as usize)?;
            let (question, batch) = question?;
            asked.push(question);
            Some(batch)
        });
        for (question, outcome) in asked.into_iter().zip(outcomes.into_iter().flatten()) {
            let Some(outcome) = problems.take(outcome) else { continue };
            problems.take(question.answer(frozen, known, &outcome));
        }
    }
    problems.finish()
}

/// What is asked about a part of the mappings of a process.
struct Question {
    /// The place of the process.
    index: usize,
    /// Which mappings, and where their answers are.
    asked: Vec<(usize, Data)>,
}

impl Question {
    fn ask(known: &Known, part: usize) -> Option<(Self, Batch)> {
        let mappings = known.mappings.iter().enumerate().skip(part * SOME).take(SOME);
        let mut batch = Batch::new();
        let mut asked = Vec::new();
        for (place, mapping) in
            mappings.filter(|(_, mapping)| !matches!(mapping.source, Source::Kernel { .. }))
        {
            let mode = batch.room(8);
            let arguments = [mode.into(), 0.into(), 0.into(), mapping.start.into(), BY_ADDRESS.into()];
            batch.call("reading the memory policy", libc::SYS_get_mempolicy, arguments);
            asked.push((place, mode));
        }
        (!asked.is_empty()).then_some((Self { index: known.index, asked }, batch))
    }

    fn answer(&self, frozen: &mut Frozen, known: &mut [Known], outcome: &Outcome) -> Result<()> {
        let set = self.asked.iter().map(|&(place, mode)| (place, outcome.half_word(mode, 0)));
        for (place, mode) in set.filter(|&(_, mode)| mode != 0) {
            let Ok(known_place) = known.binary_search_by_key(&self.index, |known| known.index) else { break };
            let mapping = known.get_mut(known_place).and_then(|known| known.mappings.get_mut(place));
            if let (Some(mapping), Some(process)) = (mapping, frozen.processes.get_mut(self.index)) {
                mapping.policy = Some(MemoryPolicy { mode, nodes: nodes(process, mapping.start)? });
            }
        }
        Ok(())
    }
}

/// The nodes of the policy at an address, without the empty words at the end.
fn nodes(process: &mut FrozenProcess, address: u64) -> Result<Vec<u64>> {
    let mut batch = Batch::new();
    let (mode, nodes) = (batch.room(8), batch.room(MASK_LENGTH));
    // The kernel counts one bit more than it writes.
    let bits = Argument::from(MASK_LENGTH * 8);
    let arguments = [mode.into(), nodes.into(), bits, address.into(), BY_ADDRESS.into()];
    batch.must("reading the memory policy", libc::SYS_get_mempolicy, arguments);
    let outcome = process.run(&batch)?;
    let mut mask: Vec<u64> = (0..MAXIMUM_MASK_WORDS).map(|index| outcome.word(nodes, index)).collect();
    mask.truncate(mask.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1));
    Ok(mask)
}
