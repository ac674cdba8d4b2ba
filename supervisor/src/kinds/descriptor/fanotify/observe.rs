//! Looking at fanotify groups.

use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::kinds::descriptor::watched::Finder;
use crate::proc::fdinfo::{Detail, FanotifyLine, FanotifyOn};
use crate::records::Records;
use vckpt_image_format::record::fanotify::{Fanotify, Mark, Scope};

/// `FAN_CLASS_CONTENT` and `FAN_CLASS_PRE_CONTENT`: who may be asked for permission.
const ASKED: u32 = 0x4 | 0x8;

/// Gives a record for each group.
///
/// # Errors
/// Marks on what is not found; groups that are asked for permission.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let finder = Finder::new(walk);
    for group in opened {
        let Detail::Fanotify(info) = &group.info.detail else {
            problems.push(group.refuse(code::PROC, "the kernel does not tell the state of fanotify"));
            continue;
        };
        let waiting = rustix::io::ioctl_fionread(&group.file)
            .map_err(|errno| group.failed("asking for the events of fanotify", errno))?;
        if waiting > 0 && info.flags & ASKED != 0 {
            problems.push(
                group
                    .refuse(code::DESCRIPTOR_KIND, "fanotify with events that may ask for permission")
                    .hint("try again when the program has answered them"),
            );
        } else if waiting > 0 {
            let line = format!("{}: events of fanotify that were not read are lost", group.subject);
            records.degraded.push(line);
        }
        let marks = info.marks.iter().filter_map(|line| problems.take(mark(&finder, group, line))).collect();
        records.push(Fanotify {
            description: group.description.clone(),
            flags: info.flags,
            event_flags: info.event_flags,
            marks,
        });
    }
    problems.finish()
}

fn mark(finder: &Finder<'_>, group: &Opened, line: &FanotifyLine) -> Result<Mark> {
    let (scope, watched) = match &line.on {
        FanotifyOn::Inode { device, inode, handle } => (Scope::Inode, finder.inode(*device, *inode, handle)),
        FanotifyOn::Mount(id) => (Scope::Mount, finder.mount(*id)),
        FanotifyOn::FileSystem(device) => (Scope::FileSystem, finder.file_system(*device)),
    };
    let Some(watched) = watched else {
        return Err(group
            .refuse(code::DESCRIPTOR_KIND, "fanotify has a mark on something that can't be found")
            .hint(
                "the mark may be in another mount namespace, or on a file system that is not mounted here",
            ));
    };
    Ok(Mark { scope, watched, flags: line.flags, mask: line.mask, ignored: line.ignored })
}
