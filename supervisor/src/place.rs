//! Where puppets live while they are puppets: addresses and descriptor numbers that no restored process uses; and
//! whether the process IDs of an image are to be had here.

use crate::error::{Error, Result, code};
use crate::kinds::memory::plan::maps;
use crate::stub::puppet::Place;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::Path;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::process::Process;
use vckpt_parasite::protocol;

/// Finds a place for the puppets of an image, and makes room for as many descriptors as it needs.
///
/// # Errors
/// [`code::INJECT`] if there is none.
pub fn find(image: &Image) -> Result<Place> {
    let processes = crate::image::all::<Process>(image)?;
    let places = crate::kinds::process::family::places(&processes)?;
    let most_areas = places.areas().into_values().max().unwrap_or(1);
    let most_threads = places.most_sockets();
    let mut ranges: Vec<(u64, u64)> = maps(image)?
        .values()
        .flat_map(|(_, mappings)| mappings)
        .map(|mapping| (mapping.start, mapping.end))
        .collect();
    ranges.sort_unstable();
    // Areas of all threads, room to shelter the kernel's mappings, and a copy of the first area.
    let length = (protocol::AREA_LENGTH * (6 * (most_areas + 2))) as u64 + (1 << 20);
    let area = crate::freeze::free_range(ranges.into_iter(), length)
        .ok_or_else(|| Error::new(code::INJECT, "no addresses are free in all processes of the image"))?;
    let tables = crate::kinds::descriptor::tables(image)?;
    let descriptors = tables.iter().flat_map(|(_, table)| &table.descriptors);
    let highest = descriptors.map(|descriptor| descriptor.number).max();
    let socket = socket_number(highest.map_or(0, |highest| u64::from(highest) + 1), most_threads as u64);
    raise_limit(socket + most_threads as u64 + 16)?;
    let socket =
        i32::try_from(socket).map_err(|_| Error::new(code::INJECT, "descriptor numbers are too high"))?;
    Ok(Place { area, socket })
}

/// Descriptors that a puppet may have for a moment: those of mapped files.
pub const SPARE: u64 = 8;

/// The number of the first of the stubs' sockets, of which each thread has one: above all descriptors of the
/// application, which has `count` of them or fewer, and at the end of what the table has room for anyway. A table
/// grows by powers of two and never shrinks, and its size shows in `/proc/<pid>/status`.
fn socket_number(count: u64, threads: u64) -> u64 {
    let room = (count + SPARE + threads).next_power_of_two().max(64);
    room - threads
}

/// Lets this program, and puppets that inherit the limit, have as many descriptors.
///
/// # Errors
/// [`code::HOST_FEATURE`] if even the hard limit is lower.
pub fn raise_limit(needed: u64) -> Result<()> {
    let failure = |errno| Error::system(code::HOST_FEATURE, "raising the limit of open files", errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failure)?;
    let wanted = needed.max(soft).max(hard.min(1 << 20));
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).map_err(failure)?;
    }
    if needed > hard {
        return Err(Error::new(code::HOST_FEATURE, "the image needs more open files than the limit allows")
            .because(format!("{needed} instead of {hard}"))
            .hint("raise the hard limit with ulimit -Hn"));
    }
    Ok(())
}

/// Whether all process and thread IDs of an image are free here and may be chosen.
///
/// # Errors
/// [`code::IMAGE_BAD`].
pub fn can_have_same_ids(image: &Image) -> Result<bool> {
    if !may_choose_ids() {
        return Ok(false);
    }
    let processes = crate::image::all::<Process>(image)?;
    let ids = processes.iter().flat_map(|process| {
        let threads = process.living.iter().flat_map(|living| &living.threads);
        threads.copied().chain([process.id])
    });
    let most: u32 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(32768);
    let temporary = crate::kinds::process::family::adopted(&processes)?.1;
    for id in ids.chain(temporary) {
        if id.0 < 2 || id.0 >= most || Path::new(&format!("/proc/{id}")).exists() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether we have `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`.
fn may_choose_ids() -> bool {
    const CHECKPOINT_RESTORE: u32 = 40;
    const SYS_ADMIN: u32 = 21;
    let Ok(status) = std::fs::read("/proc/self/status") else { return false };
    let effective = crate::proc::identity::field(&status, "CapEff");
    let bits = effective.and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    bits & (1 << CHECKPOINT_RESTORE | 1 << SYS_ADMIN) != 0
}
