//! System V segments: found or made again under their old IDs, filled, attached by the puppets, and removed if they were.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::memory::fill;
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::sys::shared_memory::{self, Status, Window};
use vckpt_image_format::SegmentId;
use vckpt_image_format::record::mmap_memory::PageRun;
use vckpt_image_format::record::shared_segment::SystemV;

/// Where the ID of the next segment is asked for.
const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";

/// A segment that puppets attach. Dropping it removes what was made, unless it was [kept](Held::keep).
#[derive(Debug)]
pub struct Held {
    /// Its ID.
    pub id: i32,
    /// Whether it was made by this restore.
    made: bool,
}

impl Held {
    /// Leaves it where it is: the restore has succeeded.
    pub fn keep(&mut self) {
        self.made = false;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.made {
            let _ = shared_memory::remove(self.id);
        }
    }
}

/// Finds or makes a segment, and fills it unless somebody uses it.
#[derive(Debug)]
pub(super) struct AttachSystemV {
    pub(super) segment: SegmentId,
    pub(super) shared: SystemV,
    pub(super) size: u64,
    pub(super) runs: Vec<PageRun>,
}

impl Action for AttachSystemV {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let held = self.hold(restoring).map_err(|error| error.about(self.subject()))?;
        restoring.system_v.insert(self.segment, held);
        Ok(())
    }
}

impl AttachSystemV {
    fn subject(&self) -> Subject {
        Subject::path(format!("System V shared memory, ID {}, key {:#x}", self.shared.id, self.shared.key))
    }

    fn hold(&self, restoring: &mut Restoring<'_>) -> Result<Held> {
        let taken = |why: String| Error::new(code::SEGMENT_TAKEN, "the segment can't be had").because(why);
        let id = i32::try_from(self.shared.id).map_err(|_| taken("there are no such IDs".to_owned()))?;
        let held = match shared_memory::status(id) {
            Ok(status) if !self.is_same(&status) => {
                return Err(taken("another segment has this ID".to_owned()));
            }
            Ok(status) if status.attached > 0 && status.changed != self.shared.changed => {
                return Err(taken("others have attached one that looks the same".to_owned()));
            }
            Ok(status) if status.attached > 0 => {
                restoring.degraded.push(format!(
                    "System V segment {id}: processes outside of the tree use it; its content is theirs"
                ));
                return Ok(Held { id, made: false });
            }
            Ok(_) => Held { id, made: false },
            Err(_) => self.make(restoring, id)?,
        };
        let window = Window::attach(id, self.size)
            .map_err(|errno| Error::system(code::MAPPING, "attaching a segment", errno))?;
        // What was found has something in it, where the image may have nothing.
        window.clear().map_err(|errno| Error::system(code::MAPPING, "clearing a segment", errno))?;
        fill::window(restoring.image, &self.runs, &window)?;
        Ok(held)
    }

    fn is_same(&self, status: &Status) -> bool {
        (status.key, status.size, status.owner) == (self.shared.key, self.size, self.shared.owner)
    }

    fn make(&self, restoring: &mut Restoring<'_>, id: i32) -> Result<Held> {
        std::fs::write(NEXT_ID, id.to_string())
            .map_err(|error| Error::system(code::PRIVILEGE, "choosing the ID of a segment", error))?;
        let made = shared_memory::create(self.shared.key, self.size, self.shared.mode);
        let made = made.map_err(|errno| Error::system(code::SEGMENT_TAKEN, "making a segment", errno))?;
        let held = Held { id: made, made: true };
        if made != id {
            return Err(Error::new(code::SEGMENT_TAKEN, "the segment can't have its ID")
                .because(format!("the kernel gave {made} instead")));
        }
        let failed = |errno| Error::system(code::PRIVILEGE, "setting up a segment", errno);
        shared_memory::set_owner(id, self.shared.owner, self.shared.mode).map_err(failed)?;
        if self.shared.locked {
            shared_memory::lock(id).map_err(failed)?;
        }
        let creator = shared_memory::status(id).map_err(failed)?.creator;
        if creator != self.shared.creator {
            restoring.degraded.push(format!("System V segment {id}: it has another creator"));
        }
        Ok(held)
    }
}

/// Removes a segment that was removed while it was attached, as soon as all have attached it again.
#[derive(Debug)]
pub(super) struct RemoveSystemV {
    pub(super) segment: SegmentId,
}

impl Action for RemoveSystemV {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(held) = restoring.system_v.get(&self.segment) else { return Ok(()) };
        shared_memory::remove(held.id)
            .map_err(|errno| Error::system(code::MAPPING, "removing a segment that is attached", errno))
    }
}
