//! Looking at inotify instances.

use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::watched::Finder;
use crate::proc::fdinfo::{Detail, InotifyLine};
use crate::records::Records;
use vckpt_image_format::record::inotify::{Inotify, Watch};

/// What a watch keeps of what it was added with: all events, `IN_EXCL_UNLINK`, `IN_ONESHOT`.
const KEPT: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

/// Gives a record for each instance.
///
/// # Errors
/// Watches on what is not found.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let finder = Finder::new(walk);
    for instance in opened {
        let mut watches = Vec::new();
        for line in lines(instance) {
            watches.extend(problems.take(watch(&finder, instance, line)));
        }
        watches.sort_by_key(|watch| watch.number);
        let lost = rustix::io::ioctl_fionread(&instance.file)
            .map_err(|errno| instance.failed("asking for the events of an inotify instance", errno))?
            > 0;
        if lost {
            records.degraded.push(format!(
                "{}: events of inotify that were not read are lost: the program is told so by IN_Q_OVERFLOW",
                instance.subject
            ));
        }
        records.push(Inotify { description: instance.description.clone(), watches, lost });
    }
    problems.finish()
}

fn lines(instance: &Opened) -> &[InotifyLine] {
    if let Detail::Inotify(lines) = &instance.info.detail { lines } else { &[] }
}

fn watch(finder: &Finder<'_>, instance: &Opened, line: &InotifyLine) -> Result<Watch> {
    let InotifyLine { watch: number, inode, device, mask, handle } = line;
    let Some(watched) = finder.inode(*device, *inode, handle) else {
        let what = format!("inotify watches a file that can't be found (watch {number}, inode {inode})");
        return Err(instance
            .refuse(code::DESCRIPTOR_KIND, what)
            .hint("run vckpt as root, which can ask the kernel for the file"));
    };
    Ok(Watch { number: *number, mask: mask & KEPT, watched })
}
