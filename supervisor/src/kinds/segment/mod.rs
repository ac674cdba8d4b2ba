//! Shared segment (kind 68): memory that several mappings or descriptors share: shared anonymous memory, memfds.
//!
//! Saved: size, content, and for a memfd its name and seals. Anonymous memory is made by this program and opened
//! through `/proc/self/map_files`; without the right to do that it becomes a memfd, which differs in its name only. Not
//! here: System V and POSIX shared memory.

use crate::error::{Error, Result, Subject, code};
use crate::frozen::Frozen;
use crate::kinds::KindEntry;
use crate::kinds::memory::fill;
use crate::plan::{Action, Plan, Stage};
use crate::records::{FileContent, Inode, Records};
use crate::restoring::Restoring;
use crate::sys::process;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use vckpt_image_format::SegmentId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::PageOwner;
use vckpt_image_format::record::shared_segment::{Origin, SharedSegment};

/// The entry for the list of kinds.
pub const ENTRY: KindEntry = KindEntry { name: "segment", observe, plan };

/// Segments are seen by those who meet them: see [`observe_segment`].
fn observe(_frozen: &mut Frozen, _records: &mut Records) -> Result<()> {
    Ok(())
}

/// The identity of a segment that a mapping or descriptor leads to; adds its record and content the first time.
pub fn observe_segment(
    records: &mut Records,
    file: OwnedFd,
    inode: Inode,
    size: u64,
    origin: Origin,
) -> SegmentId {
    let (id, first) = records.segment(inode);
    if first {
        records.push(SharedSegment { id, size, origin });
        records.contents.push(FileContent { owner: PageOwner::Segment(id), file, size });
    }
    id
}

fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for segment in crate::image::all::<SharedSegment>(image)? {
        plan.action(Stage::SharedObjects, MakeSegment { segment });
    }
    for segment in crate::image::all::<SharedSegment>(image)? {
        if let Origin::Memfd { seals, .. } = segment.origin
            && seals != 0
        {
            plan.action(Stage::Timers, Seal { id: segment.id, seals });
        }
    }
    Ok(())
}

/// `F_SEAL_EXEC`.
const SEAL_EXEC: u32 = 0x20;

/// Makes a segment and fills it.
#[derive(Debug)]
struct MakeSegment {
    segment: SharedSegment,
}

impl Action for MakeSegment {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let name = match &self.segment.origin {
            Origin::Anonymous => CString::from(c"vckpt-shared-anonymous"),
            Origin::Memfd { name, .. } => CString::new(name.0.clone()).unwrap_or_default(),
        };
        // This seal comes with the permissions of a file that is not to be run.
        let never_runs = matches!(self.segment.origin, Origin::Memfd { seals, .. } if seals & SEAL_EXEC != 0);
        let failure = |error: std::io::Error| {
            Error::system(code::MAPPING, "making a shared segment", error)
                .about(Subject::path(name.to_string_lossy()))
        };
        let anonymous = match self.segment.origin {
            Origin::Anonymous => {
                process::shared_anonymous(self.segment.size).map_err(|errno| failure(errno.into()))?
            }
            Origin::Memfd { .. } => None,
        };
        let file = match anonymous {
            Some(file) => file,
            None => {
                let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
                flags.set(MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL), never_runs);
                let file =
                    File::from(memfd_create(name.as_c_str(), flags).map_err(|errno| failure(errno.into()))?);
                file.set_len(self.segment.size).map_err(failure)?;
                file
            }
        };
        fill::file(restoring.image, PageOwner::Segment(self.segment.id), &file, self.segment.size)?;
        restoring.segments.insert(self.segment.id, file.into());
        Ok(())
    }
}

/// Seals a memfd when nobody of ours writes to it any more.
#[derive(Debug)]
struct Seal {
    id: SegmentId,
    seals: u32,
}

impl Action for Seal {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(file) = restoring.segments.get(&self.id) else { return Ok(()) };
        let seals = nix::fcntl::SealFlag::from_bits_retain(self.seals.cast_signed());
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| Error::system(code::MAPPING, "sealing a memfd", errno))?;
        Ok(())
    }
}
