//! Clearing what a puppet has, and moving the kernel's own mappings to their old place.

use super::MemoryPlan;
use crate::error::{Error, Result, code};
use crate::proc::maps::{self, MapLine};
use crate::proc::read;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use vckpt_image_format::record::process_map::{Mapping, Source};
use vckpt_parasite::protocol;

/// The lowest address that is cleared, and the first that user space does not have.
const USER: (u64, u64) = (0x1_0000, 0x7fff_ffff_f000);

/// Unmaps everything that is not needed, and moves the kernel's own mappings.
pub(super) fn clear(restoring: &mut Restoring<'_>, plan: &MemoryPlan) -> Result<()> {
    let puppet = restoring.puppet(plan.process)?;
    // The puppets of the other threads are there already.
    let area = (puppet.place.area, puppet.place.area_of(plan.areas));
    let there = maps::parse(&read::file(puppet.tid, "maps")?)
        .map_err(|line| Error::new(code::PROC, "the kernel's text is not understood").because(line))?;
    let wanted: Vec<&Mapping> = plan.mappings.iter().filter(|mapping| is_movable(mapping)).collect();
    let own: Vec<&MapLine> = there.iter().filter(|line| is_movable_line(&line.name)).collect();
    let moves = moves(&wanted, &own)?;
    // First out of everybody's way, then to the place where each belongs.
    let shelter = area.1 + 4 * protocol::AREA_LENGTH as u64;
    let mut batch = Batch::new();
    let mut keep = plan.kept.clone();
    keep.push(area);
    let base = own.first().map_or(0, |line| line.start);
    let moving = moves.iter().any(|(line, start)| line.start != *start);
    for (line, start) in &moves {
        keep.push(if moving {
            (shelter + line.start - base, shelter + line.end - base)
        } else {
            (*start, line.end)
        });
        if moving {
            move_mapping(&mut batch, line.start, line.end - line.start, shelter + line.start - base);
        }
    }
    keep.sort_unstable();
    let mut position = USER.0;
    for (start, end) in keep.into_iter().chain([(USER.1, USER.1)]) {
        if start > position {
            batch.must("clearing memory", libc::SYS_munmap, [position.into(), (start - position).into()]);
        }
        position = position.max(end);
    }
    if moving {
        for (line, start) in &moves {
            move_mapping(&mut batch, shelter + line.start - base, line.end - line.start, *start);
        }
    }
    restoring.begin(plan.process, batch, |_, _| Ok(()))
}

fn move_mapping(batch: &mut Batch, from: u64, length: u64, to: u64) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let arguments = [from.into(), length.into(), length.into(), flags.into(), to.into()];
    batch.must("moving the vdso", libc::SYS_mremap, arguments);
}

fn is_movable(mapping: &Mapping) -> bool {
    matches!(&mapping.source, Source::Kernel { name } if is_movable_line(name.as_bytes()))
}

fn is_movable_line(name: &[u8]) -> bool {
    name == b"[vdso]" || name.starts_with(b"[vvar")
}

/// Which of the kernel's mappings goes where. The image may lack them (the program has unmapped its own).
fn moves<'line>(wanted: &[&Mapping], own: &[&'line MapLine]) -> Result<Vec<(&'line MapLine, u64)>> {
    let mut moves = Vec::new();
    for mapping in wanted {
        let Source::Kernel { name } = &mapping.source else { continue };
        let line = own.iter().find(|line| line.name == name.as_bytes());
        match line {
            Some(line) if line.end - line.start == mapping.end - mapping.start => {
                moves.push((*line, mapping.start))
            }
            _ => {
                return Err(Error::new(
                    code::VDSO_DIFFERS,
                    "this kernel's vdso has another shape than the image's",
                )
                .because(format!("{name} of {} bytes", mapping.end - mapping.start)));
            }
        }
    }
    Ok(moves)
}
