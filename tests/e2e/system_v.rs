//! System V shared memory.

use std::fs;
use std::io::Error;

use crate::harness::case::{Case, text};
use crate::harness::{Outcome, Topic, ensure, is_root, need_root};
use crate::stage::kernel::check;
use crate::stage::shared::{Echo, can_be_writable, mark, seen};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "system_v",
    fixtures: &[("system_v", system_v)],
    cases: &[("segments", two_rounds_of_system_v), ("segment_taken_by_others", system_v_taken)],
};

const PAGE: usize = 4096;
const READ: i32 = libc::PROT_READ;

/// A new segment; with the key 0 one without a key.
fn segment(key: i32, size: usize) -> i32 {
    // SAFETY: plain numbers.
    check(unsafe { libc::shmget(key, size, libc::IPC_CREAT | libc::IPC_EXCL | 0o640) }).unwrap()
}

fn attach(id: i32, flags: i32) -> usize {
    // SAFETY: the kernel chooses the place.
    let place = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    assert_ne!(place, libc::MAP_FAILED, "shmat: {}", Error::last_os_error());
    place as usize
}

fn status(id: i32) -> Result<libc::shmid_ds, String> {
    // SAFETY: zeros are a valid value.
    let mut status: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the answer.
    let result = unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut status) };
    if result < 0 { Err(format!("segment {id}: {}", Error::last_os_error())) } else { Ok(status) }
}

fn remove(id: i32) {
    // SAFETY: the operation reads nothing.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

/// Removes the segment that a fixture has left.
struct Cleaner(std::path::PathBuf);

impl Drop for Cleaner {
    fn drop(&mut self) {
        if let Some(id) = fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok()) {
            remove(id);
        }
    }
}

/// Segments: one that stays, at two places, with an odd size; one that was removed, which only root can make again.
fn system_v(stage: Stage) {
    let key = (0x7643_0000 | (std::process::id() & 0xffff)).cast_signed();
    let id = segment(key, 2 * PAGE + 5);
    stage.publish("segment", &id.to_string());
    let (first, second) = (attach(id, 0), attach(id, libc::SHM_RDONLY));
    mark(first, 40);
    mark(first + 2 * PAGE, 41);
    // A part of it with another protection.
    // SAFETY: the page is ours.
    check(unsafe { libc::mprotect((first + PAGE) as *mut _, PAGE, READ) }).unwrap();
    let echo = Echo::start(move || first);
    let private = is_root().then(|| {
        let id = segment(libc::IPC_PRIVATE, PAGE);
        let place = attach(id, 0);
        mark(place, 50);
        remove(id);
        (id, place)
    });
    let mut value = 40;
    let before = status(id).unwrap();
    stage.serve(move |_| {
        verify!(echo.ask()? == value, "the child sees another value");
        value += 1;
        verify!(
            seen(first) == value && seen(second) == value,
            "both places: {}, {}",
            seen(first),
            seen(second)
        );
        verify!(seen(first + 2 * PAGE) == 41, "the last page");
        verify!(seen(first + PAGE) == 0, "a page that nobody has written has {}", seen(first + PAGE));
        verify!(!can_be_writable(second), "the place that can only be read");
        let now = status(id)?;
        let facts = |status: &libc::shmid_ds| {
            let rights = &status.shm_perm;
            (status.shm_segsz, status.shm_nattch, rights.__key, rights.mode, rights.uid, rights.gid)
        };
        verify!(facts(&now) == facts(&before), "{:?} has become {:?}", facts(&before), facts(&now));
        if let Some((id, place)) = private {
            verify!(seen(place) == 50, "the content of the one that was removed");
            let now = status(id)?;
            verify!(now.shm_nattch == 1 && now.shm_perm.mode & 0o1000 != 0, "the one that was removed");
        }
        // SAFETY: the kernel chooses the place.
        let again = attach(id, 0);
        let value_there = seen(again);
        // SAFETY: the place was attached above.
        unsafe { libc::shmdt(again as *const _) };
        verify!(value_there == value, "attached again it has {value_there}");
        Ok(())
    });
}

fn two_rounds_of_system_v() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("system_v", &[])?;
    let cleaner = Cleaner(case.path("segment"));
    case.ask()?;
    if case.is_control() {
        drop(cleaner);
        return case.finish(root);
    }
    // What is written to it meanwhile is not what the program had.
    let image = case.dump(root)?;
    let place = attach(fs::read_to_string(&cleaner.0)?.trim().parse()?, 0);
    for page in 0..3 {
        mark(place + page * PAGE, 99);
    }
    // SAFETY: the place was attached above.
    check(unsafe { libc::shmdt(place as *const _) })?;
    root = case.restore(&image)?;
    case.ask()?;
    if is_root() {
        // Then it has to be made again.
        let image = case.dump(root)?;
        remove(fs::read_to_string(&cleaner.0)?.trim().parse()?);
        root = case.restore(&image)?;
        case.ask()?;
    } else {
        root = case.round(root)?;
    }
    // It goes with the folder otherwise, in which its ID stands.
    drop(cleaner);
    case.finish(root)
}

/// A segment that others use by now is not touched.
fn system_v_taken() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("system_v", &[])?;
    let cleaner = Cleaner(case.path("segment"));
    case.ask()?;
    if case.is_control() {
        drop(cleaner);
        return case.finish(root);
    }
    let image = case.dump(root)?;
    let id: i32 = fs::read_to_string(&cleaner.0)?.trim().parse()?;
    // Something about it has changed since.
    let mut changed = status(id).map_err(crate::harness::Stop::Failed)?;
    changed.shm_perm.uid = 65534;
    // SAFETY: a valid structure of the kind that the operation reads.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut changed) })?;
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?;
    ran.refused(&[5])?;
    ensure!(ran.stderr.contains("System V") && ran.stderr.contains("VC-MEM-005"), "{}", ran.describe());
    ensure!(status(id).is_ok(), "a restore that failed has removed the segment");
    drop(cleaner);
    case.finish_empty()
}
