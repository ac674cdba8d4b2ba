//! BPF maps: made by `bpf(2)`.
//!
//! - **Saved**: arrays, hash tables, tables that forget what was used least, and tries of prefixes, with name and
//!   content; that they are frozen.
//! - **Refused**: all other maps, and programs and links of BPF.
//! - **Not saved**: descriptions of their types (BTF); that they are pinned in a file system.
//! - **Kernel**: `CAP_BPF` (5.8).

use super::opened::{Opened, Walk};
use super::{all, restore};
use crate::error::{Error, Problems, Result, code};
use crate::plan::{Action, Plan, Stage};
use crate::proc::fdinfo::{BpfInfo, Detail};
use crate::records::Records;
use crate::restoring::Restoring;
use crate::sys::bpf::{self, Shape};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use vckpt_image_format::record::bpf_map::BpfMap;
use vckpt_image_format::{Image, Text};

/// `BPF_MAP_TYPE_HASH`, `_ARRAY`, `_LRU_HASH`, `_LPM_TRIE`.
const KEPT: &[u32] = &[1, 2, 9, 11];

/// Whether it is a BPF map.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.is_anonymous("bpf-map")
}

/// Gives a record for each map.
///
/// # Errors
/// Maps that can't be kept.
pub fn observe(_walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut maps: BTreeMap<u32, Vec<&Opened>> = BTreeMap::new();
    for opened in opened {
        if let Detail::Bpf(info) = opened.info.detail {
            maps.entry(info.id).or_default().push(opened);
        } else {
            problems.push(opened.refuse(code::PROC, "the kernel does not tell the state of a BPF map"));
        }
    }
    for descriptions in maps.into_values() {
        if let Some(record) = descriptions.first().and_then(|first| problems.take(look(first, &descriptions)))
        {
            records.push(record);
        }
    }
    problems.finish()
}

fn look(first: &Opened, descriptions: &[&Opened]) -> Result<BpfMap> {
    let Detail::Bpf(info) = first.info.detail else {
        return Err(first.refuse(code::PROC, "the kernel does not tell the state of a BPF map"));
    };
    if !KEPT.contains(&info.map_type) {
        let what = format!("a BPF map of type {}, which can't be kept", info.map_type);
        return Err(first.refuse(code::DESCRIPTOR_KIND, what));
    }
    let failed = |errno: Errno| first.failed("reading a BPF map", errno);
    Ok(BpfMap {
        descriptions: descriptions.iter().map(|opened| opened.description.clone()).collect(),
        map_type: info.map_type,
        key_size: info.key_size,
        value_size: info.value_size,
        maximum: info.maximum,
        flags: info.flags,
        name: Text(bpf::name(first.file.as_fd()).map_err(failed)?),
        frozen: info.frozen,
        entries: entries(first, &info).map_err(failed)?,
    })
}

/// All keys, each followed by its value. Programs of the kernel may change the map meanwhile.
fn entries(map: &Opened, info: &BpfInfo) -> std::result::Result<Vec<u8>, Errno> {
    let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (key_size, value_size) = (size(info.key_size), size(info.value_size));
    let mut entries = Vec::new();
    let mut key: Option<Vec<u8>> = None;
    for _ in 0..info.maximum {
        let Some(next) = bpf::next_key(map.file.as_fd(), key.as_deref(), key_size)? else { break };
        if let Some(value) = bpf::value(map.file.as_fd(), &next, value_size)? {
            entries.extend_from_slice(&next);
            entries.extend_from_slice(&value);
        }
        key = Some(next);
    }
    Ok(entries)
}

/// Adds a step for each.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for record in all::<BpfMap>(image)? {
        plan.action(Stage::Descriptors, MakeMap(record));
    }
    Ok(())
}

/// Makes a map with its content.
#[derive(Debug)]
struct MakeMap(BpfMap);

impl Action for MakeMap {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let failed = |errno: Errno| {
            let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::DESCRIPTOR_RESTORE };
            Error::system(code, "making a BPF map", errno)
        };
        let BpfMap { map_type, key_size, value_size, maximum, flags, .. } = self.0;
        let shape = Shape { map_type, key_size, value_size, maximum, flags };
        let made = bpf::create(shape, &self.0.name.0).map_err(failed)?;
        let key_size = usize::try_from(key_size).unwrap_or(usize::MAX);
        let pair = key_size.saturating_add(usize::try_from(value_size).unwrap_or(usize::MAX));
        for entry in self.0.entries.chunks_exact(pair) {
            let Some((key, value)) = entry.split_at_checked(key_size) else { continue };
            bpf::set(made.as_fd(), key, value).map_err(failed)?;
        }
        if self.0.frozen {
            bpf::freeze(made.as_fd()).map_err(failed)?;
        }
        // A map can't be opened again without a path: several descriptions of one become one.
        for description in &self.0.descriptions {
            let copy = made.try_clone().map_err(|error| {
                Error::system(code::DESCRIPTOR_RESTORE, "copying a descriptor of a BPF map", error)
            })?;
            restore::keep(restoring, description, copy)?;
        }
        Ok(())
    }
}
