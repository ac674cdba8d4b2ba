//! Where the pages of ranges are to be: the memory policies of `mbind(2)`.

use crate::error::Result;
use crate::frozen::FrozenProcess;
use crate::stub::batch::{Argument, Batch};
use vckpt_image_format::record::process_map::{Mapping, Source};
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
/// If the stub can't be reached.
pub(super) fn observe(process: &mut FrozenProcess, mappings: &mut [Mapping]) -> Result<()> {
    for some in mappings.chunks_mut(SOME) {
        let mut batch = Batch::new();
        let mut asked = Vec::new();
        for (index, mapping) in some.iter().enumerate() {
            if matches!(mapping.source, Source::Kernel { .. }) {
                continue;
            }
            let mode = batch.room(8);
            let arguments = [mode.into(), 0.into(), 0.into(), mapping.start.into(), BY_ADDRESS.into()];
            batch.call("reading the memory policy", libc::SYS_get_mempolicy, arguments);
            asked.push((index, mode));
        }
        let outcome = process.run(&batch)?;
        for (index, mode) in asked {
            let mode = outcome.half_word(mode, 0);
            if let (Some(mapping), true) = (some.get_mut(index), mode != 0) {
                mapping.policy = Some(MemoryPolicy { mode, nodes: nodes(process, mapping.start)? });
            }
        }
    }
    Ok(())
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
