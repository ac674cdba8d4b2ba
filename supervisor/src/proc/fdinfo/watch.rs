//! Lines of `fdinfo` that tell what inotify and fanotify watch.

use super::{Detail, field};

/// A file handle, as name_to_handle_at(2) has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handle {
    /// Its type.
    pub kind: i32,
    /// Its bytes; none if the kernel does not tell.
    pub bytes: Vec<u8>,
}

/// What `fdinfo` says of a fanotify group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FanotifyInfo {
    /// The flags of `fanotify_init(2)`.
    pub flags: u32,
    /// The flags of the descriptors that come with events.
    pub event_flags: u32,
    /// Its marks.
    pub marks: Vec<FanotifyLine>,
}

/// A mark of a fanotify group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyLine {
    /// What it is on.
    pub on: FanotifyOn,
    /// Its flags.
    pub flags: u32,
    /// Its events.
    pub mask: u64,
    /// The events that are ignored.
    pub ignored: u64,
}

/// What a mark is on. Devices are as the kernel encodes them inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FanotifyOn {
    /// A file or directory.
    Inode {
        /// Its device.
        device: u64,
        /// Its inode number.
        inode: u64,
        /// Its file handle.
        handle: Handle,
    },
    /// A mount, by its ID.
    Mount(u64),
    /// A file system, by its device.
    FileSystem(u64),
}

/// A watch of an inotify instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyLine {
    /// Its number.
    pub watch: u32,
    /// Inode number of what is watched.
    pub inode: u64,
    /// Device of what is watched, as the kernel encodes it inside.
    pub device: u64,
    /// Its events.
    pub mask: u32,
    /// File handle of what is watched.
    pub handle: Handle,
}

/// `inotify wd:1 ino:7d23 sdev:800013 mask:800afce ignored_mask:0 …`.
pub(super) fn push_inotify(detail: &mut Detail, text: &str) {
    let number = |key| field(text, key).and_then(|value| u32::try_from(value).ok());
    let (Some(watch), Some(inode), Some(device), Some(mask)) =
        (number("wd:"), field(text, "ino:"), field(text, "sdev:"), number(" mask:"))
    else {
        return;
    };
    let line = InotifyLine { watch, inode, device, mask, handle: handle(text) };
    if let Detail::Inotify(lines) = detail {
        lines.push(line);
    } else {
        *detail = Detail::Inotify(vec![line]);
    }
}

/// `fanotify flags:0 event-flags:8000`, then a line a mark: `fanotify ino:… sdev:… mflags:0 mask:20 ignored_mask:0 …`.
pub(super) fn push_fanotify(detail: &mut Detail, text: &str) {
    let small = |key| field(text, key).and_then(|value| u32::try_from(value).ok());
    if !matches!(detail, Detail::Fanotify(_)) {
        *detail = Detail::Fanotify(FanotifyInfo::default());
    }
    let Detail::Fanotify(info) = detail else { return };
    if let (Some(flags), Some(event_flags)) = (small(" flags:"), small("event-flags:")) {
        (info.flags, info.event_flags) = (flags, event_flags);
        return;
    }
    let on = match (field(text, " ino:"), field(text, "sdev:"), field(text, "mnt_id:")) {
        (Some(inode), Some(device), _) => FanotifyOn::Inode { device, inode, handle: handle(text) },
        (_, _, Some(id)) => FanotifyOn::Mount(id),
        (_, Some(device), _) => FanotifyOn::FileSystem(device),
        _ => return,
    };
    let (Some(flags), Some(mask)) = (small("mflags:"), field(text, " mask:")) else { return };
    let ignored = field(text, "ignored_mask:").unwrap_or_default();
    info.marks.push(FanotifyLine { on, flags, mask, ignored });
}

/// `fhandle-bytes:8 fhandle-type:1 f_handle:dac19800488973a5`.
fn handle(text: &str) -> Handle {
    let kind = field(text, "fhandle-type:").and_then(|value| i32::try_from(value).ok()).unwrap_or_default();
    let digits = text.split_once("f_handle:").map_or("", |(_, rest)| rest.trim());
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Handle { kind, bytes: digits.as_bytes().chunks(2).map_while(byte).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn inotify() {
        let text = "inotify wd:1 ino:7d23 sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8\n";
        let Detail::Inotify(lines) = parse(text).detail else { panic!("no inotify") };
        let handle = Handle::default();
        let expected = InotifyLine { watch: 1, inode: 0x7d23, device: 0x80_0013, mask: 0x800_afce, handle };
        assert_eq!(lines, [expected]);
        let text = "inotify wd:2 ino:9 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:4 fhandle-type:1 f_handle:dac10048\n";
        let Detail::Inotify(lines) = parse(text).detail else { panic!("no inotify") };
        assert_eq!(lines[0].handle, Handle { kind: 1, bytes: vec![0xda, 0xc1, 0, 0x48] });
    }

    #[test]
    fn fanotify() {
        let text = "fanotify flags:4 event-flags:8000\n\
                    fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n\
                    fanotify ino:98c120 sdev:fe00000 mflags:40 mask:8000020 ignored_mask:2 fhandle-bytes:2 fhandle-type:1 f_handle:20c1\n\
                    fanotify mnt_id:1b mflags:0 mask:20 ignored_mask:0\n";
        let Detail::Fanotify(info) = parse(text).detail else { panic!("no fanotify") };
        assert_eq!((info.flags, info.event_flags, info.marks.len()), (4, 0x8000, 3));
        assert_eq!(info.marks[0].on, FanotifyOn::FileSystem(0xfe0_0000));
        assert_eq!((info.marks[1].flags, info.marks[1].mask, info.marks[1].ignored), (0x40, 0x800_0020, 2));
        assert_eq!(info.marks[2].on, FanotifyOn::Mount(0x1b));
    }
}
