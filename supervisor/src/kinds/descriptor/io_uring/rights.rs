//! The rights of the kernel's threads that work for rings.

use crate::error::{Error, Problems, Result, Subject, code};
use crate::kinds::credentials::credentials;
use crate::kinds::descriptor::all;
use crate::proc::{read, status};
use vckpt_image_format::record::credentials::{Credentials, ThreadCredentials};
use vckpt_image_format::record::io_uring::IoUring;
use vckpt_image_format::{Image, TaskId};

/// Looks whether the threads of the kernel that work for rings may do what they could: they keep the rights of whoever
/// makes the ring, which is this program.
///
/// # Errors
/// [`code::PRIVILEGE`] for each ring of somebody with fewer rights.
pub fn check(image: &Image) -> Result<()> {
    let mut problems = Problems::new();
    let all_threads: Vec<ThreadCredentials> =
        all::<Credentials>(image)?.into_iter().flat_map(|process| process.threads).collect();
    let ours = status::parse(&read::file(std::process::id().cast_signed(), "status")?)?;
    let ours = credentials(TaskId(0), ours, 0);
    for ring in all::<IoUring>(image)?.iter().filter(|ring| ring.flags & IoUring::POLLED != 0) {
        let Some(theirs) = all_threads.iter().find(|thread| thread.thread == ring.maker) else { continue };
        let has_less = ours.capabilities.effective & !theirs.capabilities.effective != 0;
        if ours.user.effective == 0 && (theirs.user.effective != 0 || has_less) {
            let what =
                "an io_uring with a thread of the kernel (IORING_SETUP_SQPOLL) of somebody with fewer rights";
            let error = Error::new(code::PRIVILEGE, what).because("the thread would keep those of vckpt");
            problems.push(
                error.about(Subject::task(ring.maker.0, "task")).hint("restore it as the user who owned it"),
            );
        }
    }
    problems.finish()
}
