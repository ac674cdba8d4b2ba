//! Finding what inotify and fanotify watch: the kernel tells inodes, not paths.
//!
//! First among what the tree has open, then by the file handle (with `CAP_DAC_READ_SEARCH`), then near the paths that
//! the tree uses. What is found must be the inode itself.

use super::opened::Walk;
use super::tables;
use crate::error::Result;
use crate::proc::fdinfo::Handle;
use crate::proc::mountinfo::{self, Mount};
use crate::proc::read;
use crate::restoring::Restoring;
use crate::sys::watch;
use rustix::fs::{OFlags, Stat};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use vckpt_image_format::record::inotify::Watched;
use vckpt_image_format::{DescriptionId, Image, TaskId, Text};

/// Most names that are looked at near the paths of the tree.
const MOST_NAMES: usize = 20_000;

/// A search among what a tree uses.
#[derive(Debug)]
pub struct Finder<'walk> {
    walk: &'walk Walk<'walk>,
    mounts: Vec<Mount>,
    /// The inodes near the paths of the tree, found when they are needed.
    near: OnceCell<HashMap<(u64, u64), PathBuf>>,
}

impl<'walk> Finder<'walk> {
    /// A search.
    #[must_use]
    pub fn new(walk: &'walk Walk<'walk>) -> Self {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        Self { walk, mounts: mountinfo::parse(&text), near: OnceCell::new() }
    }

    /// The way to an inode. `device` is encoded as the kernel does inside.
    #[must_use]
    pub fn inode(&self, device: u64, inode: u64, handle: &Handle) -> Option<Watched> {
        let key = (rustix::fs::makedev(major(device), minor(device)), inode);
        let opened = self.walk.opened.iter().find(|opened| opened.inode() == key);
        if let Some(opened) = opened {
            return Some(Watched::Description(opened.description.id));
        }
        let path = self.by_handle(device, key, handle).or_else(|| self.near().get(&key).cloned())?;
        Some(Watched::Path(Text::from(path)))
    }

    /// Something on a mount, by its ID.
    #[must_use]
    pub fn mount(&self, id: u64) -> Option<Watched> {
        let mount = self.mounts.iter().find(|mount| mount.id == id)?;
        Some(Watched::Path(Text::from(mount.point.clone())))
    }

    /// Something on a file system.
    #[must_use]
    pub fn file_system(&self, device: u64) -> Option<Watched> {
        let mount = self.mounts_of(device).next()?;
        Some(Watched::Path(Text::from(mount.point.clone())))
    }

    fn mounts_of(&self, device: u64) -> impl Iterator<Item = &Mount> {
        let device = (major(device), minor(device));
        self.mounts.iter().filter(move |mount| mount.device == device)
    }

    /// The path of what a file handle leads to.
    fn by_handle(&self, device: u64, key: (u64, u64), handle: &Handle) -> Option<PathBuf> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.mounts_of(device).find_map(|mount| {
            let place = rustix::fs::open(&mount.point, flags, rustix::fs::Mode::empty()).ok()?;
            let found = watch::open_by_handle(place.as_fd(), handle.kind, &handle.bytes).ok()?;
            let path = std::fs::read_link(super::restore::by_descriptor(found.as_fd())).ok()?;
            leads_to(&path, key).then_some(path)
        })
    }

    /// What lies in the directories that the tree uses, and in those above its files.
    fn near(&self) -> &HashMap<(u64, u64), PathBuf> {
        self.near.get_or_init(|| {
            let links = self.walk.opened.iter().map(|opened| opened.link.to_path());
            let pids = self.walk.frozen.processes.iter().map(|process| process.view);
            let current = pids.filter_map(|pid| read::link(pid, "cwd").ok()).map(PathBuf::from);
            let mut directories = BTreeSet::new();
            for path in links.chain(current).filter(|path| path.is_absolute()) {
                directories.extend(path.parent().map(Path::to_path_buf));
                directories.insert(path);
            }
            let mut found = HashMap::new();
            for directory in directories {
                let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
                for path in entries.map(|entry| entry.path()).chain([directory.clone()]) {
                    if found.len() > MOST_NAMES {
                        return found;
                    }
                    if let Ok(status) = rustix::fs::lstat(&path) {
                        found.entry((status.st_dev, status.st_ino)).or_insert(path);
                    }
                }
            }
            found
        })
    }
}

fn leads_to(path: &Path, key: (u64, u64)) -> bool {
    rustix::fs::lstat(path).is_ok_and(|Stat { st_dev, st_ino, .. }| (st_dev, st_ino) == key)
}

/// The kernel has 20 bits for the minor number.
fn major(device: u64) -> u32 {
    u32::try_from(device >> 20).unwrap_or(u32::MAX)
}

fn minor(device: u64) -> u32 {
    u32::try_from(device & 0xf_ffff).unwrap_or(u32::MAX)
}

/// Where the descriptions of an image are to be found when they are in their tables: process and number.
pub type Places = HashMap<DescriptionId, (TaskId, u32)>;

/// The places of all descriptions.
///
/// # Errors
/// As [`tables`].
pub fn places(image: &Image) -> Result<Places> {
    let mut places = Places::new();
    for (process, table) in tables(image)? {
        for descriptor in &table.descriptors {
            places.entry(descriptor.description).or_insert((process.id, descriptor.number));
        }
    }
    Ok(places)
}

/// The path by which this program reaches what is watched. None if nobody has the description, which does not happen
/// with what observing gave.
///
/// # Errors
/// If a task has no puppet.
pub fn path(restoring: &mut Restoring<'_>, places: &Places, watched: &Watched) -> Result<Option<PathBuf>> {
    match watched {
        Watched::Path(path) => Ok(Some(restoring.path(path.as_path()))),
        Watched::Description(id) => {
            let Some(&(process, number)) = places.get(id) else { return Ok(None) };
            Ok(Some(read::path(restoring.system_id(process)?, &format!("fd/{number}"))))
        }
    }
}
