//! Making segments again.

use super::system_v::{AttachSystemV, RemoveSystemV};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::memory::fill;
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::process;
use crate::sys::shared_memory::{Window, secret};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::mmap_memory::{PageOwner, PageRun};
use vckpt_image_format::record::shared_segment::{Origin, SharedSegment};
use vckpt_image_format::{Record, SegmentId};

/// `F_SEAL_EXEC`.
const SEAL_EXEC: u32 = 0x20;

/// Adds a step for each segment.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let segments = crate::image::all::<SharedSegment>(image)?;
    if segments.is_empty() {
        return Ok(());
    }
    let mut all_runs = fill::runs(image)?;
    for segment in segments {
        let runs = all_runs.remove(&PageOwner::Segment(segment.id)).unwrap_or_default();
        match &segment.origin {
            Origin::SystemV(shared) => {
                if shared.removed {
                    plan.action(Stage::TaskState, RemoveSystemV { segment: segment.id });
                }
                let (shared, SharedSegment { id: segment, size, .. }) = (*shared, segment);
                plan.action(Stage::SharedObjects, AttachSystemV { segment, shared, size, runs });
                continue;
            }
            Origin::Memfd { seals, .. } if *seals != 0 => {
                plan.action(Stage::Timers, Seal { id: segment.id, seals: *seals });
            }
            Origin::Memfd { .. } | Origin::Anonymous | Origin::Secret => {}
        }
        plan.action(Stage::SharedObjects, MakeSegment { segment, runs });
    }
    Ok(())
}

/// Makes a segment that is a file, and fills it.
#[derive(Debug)]
struct MakeSegment {
    segment: SharedSegment,
    runs: Vec<PageRun>,
}

impl Action for MakeSegment {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let SharedSegment { id, size, huge_page, .. } = self.segment;
        let file = self.make().map_err(|error| {
            let error = Error::system(code::MAPPING, "making a shared segment", error)
                .about(Subject::path(self.segment.name()));
            if huge_page == 0 {
                error
            } else {
                error.hint("reserve huge pages of this size, see vm.nr_hugepages")
            }
        })?;
        match self.segment.origin {
            // Nothing was stored of it, and it could not be written.
            Origin::Secret => {}
            _ if huge_page != 0 => {
                let window = Window::map(file.as_fd(), size).map_err(|errno| {
                    Error::system(code::MAPPING, "mapping a segment of huge pages", errno)
                })?;
                fill::window(restoring.image, &self.runs, &window)?;
            }
            Origin::Anonymous | Origin::Memfd { .. } | Origin::SystemV(_) => {
                fill::file(restoring.image, &self.runs, &file, size)?;
            }
        }
        restoring.segments.insert(id, file.into());
        Ok(())
    }
}

impl MakeSegment {
    fn make(&self) -> std::io::Result<File> {
        let SharedSegment { size, huge_page, .. } = self.segment;
        let name = match &self.segment.origin {
            Origin::Secret => return Ok(secret(size)?.into()),
            Origin::Memfd { name, .. } => CString::new(name.0.clone()).unwrap_or_default(),
            Origin::Anonymous | Origin::SystemV(_) => {
                if let Some(file) = process::shared_anonymous(size, huge_page)? {
                    return Ok(file);
                }
                CString::from(c"vckpt-shared-anonymous")
            }
        };
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // This seal comes with the permissions of a file that is not to be run.
        let never_runs = matches!(self.segment.origin, Origin::Memfd { seals, .. } if seals & SEAL_EXEC != 0);
        flags.set(MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL), never_runs);
        if huge_page != 0 {
            let size = u32::from(huge_page) << libc::MFD_HUGE_SHIFT;
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(size);
        }
        let file = File::from(memfd_create(name.as_c_str(), flags)?);
        file.set_len(size)?;
        Ok(file)
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
