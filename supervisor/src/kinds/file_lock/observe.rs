//! Looking at locks, as the walk through all descriptors has seen them.

use crate::error::{Problems, Result, code};
use crate::frozen::Frozen;
use crate::kinds::descriptor::observe::SeenLock;
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::proc::locks::{LockLine, LockSort};
use crate::records::Records;
use std::collections::HashSet;
use vckpt_image_format::record::file_locking::{FileLocking, Holder};

/// Nothing: the walk through all descriptors hands over the locks that it sees.
///
/// # Errors
/// None.
pub fn nothing(_frozen: &mut Frozen, _records: &mut Records) -> Result<()> {
    Ok(())
}

/// Gives a record for each lock. A POSIX lock shows at every descriptor that its process has of the file, the others at
/// every descriptor of their description.
///
/// # Errors
/// Leases that are being broken.
pub fn observe(walk: &Walk<'_>, seen: &[SeenLock], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut known = HashSet::new();
    for lock in seen {
        let Some(opened) = walk.find(lock.holder.process, lock.holder.number) else { continue };
        let LockLine { sort, exclusive, breaking, start, end } = lock.line;
        // What only travels in a socket is nobody's.
        let process =
            walk.frozen.processes.get(lock.holder.process).map_or(walk.frozen.root, |holder| holder.id);
        let (holder, is_new) = match sort {
            LockSort::Lease if breaking => {
                problems.push(
                    opened
                        .refuse(code::DESCRIPTOR_KIND, "a lease on a file that is being broken")
                        .hint("somebody waits for the file: try again when the program has given it up"),
                );
                continue;
            }
            LockSort::Lease => {
                (Holder::Lease(process), known.insert((lock.description.0.into(), (0, 0), 3, start, end)))
            }
            LockSort::Posix => {
                if !fits(opened, exclusive) {
                    continue;
                }
                let key = (lock.holder.process as u64, opened.inode(), 0, start, end);
                (Holder::Process(process), known.insert(key))
            }
            LockSort::WholeFile => {
                (Holder::WholeFile, known.insert((lock.description.0.into(), (0, 0), 1, start, end)))
            }
            LockSort::Description => {
                (Holder::Description, known.insert((lock.description.0.into(), (0, 0), 2, start, end)))
            }
        };
        if is_new {
            records.push(FileLocking { holder, description: lock.description, exclusive, start, end });
        }
    }
    problems.finish()
}

/// Whether a record lock can be taken through it.
fn fits(opened: &Opened, exclusive: bool) -> bool {
    if exclusive { opened.description.writes() } else { opened.description.reads() }
}
