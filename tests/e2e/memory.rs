//! Memory: contents and protections of every kind of mapping, sharing between processes, and its cost.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, ensure, process};
use crate::stage::kernel::{check, fork, map, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "memory",
    fixtures: &[
        ("mappings", mappings),
        ("growth", growth),
        ("shared", shared),
        ("sparse", sparse),
        ("forked", forked),
        ("preforked", preforked),
        ("diverged", diverged),
    ],
    cases: &[
        ("mappings", || two_rounds("mappings")),
        ("heap_and_stack_grow", || two_rounds("growth")),
        ("shared_by_parent_and_child", || two_rounds("shared")),
        ("zero_pages_cost_nothing", zero_pages_cost_nothing),
        ("copy_on_write_stays_shared", copy_on_write_stays_shared),
        ("fifty_children_cost_as_one", fifty_children_cost_as_one),
        ("a_child_keeps_its_own_zeros", || two_rounds("diverged")),
    ],
};

const PAGE: usize = 4096;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE;
const ANONYMOUS: i32 = libc::MAP_ANONYMOUS;

/// Fills memory with a sequence that depends on the seed.
fn fill(place: *mut u8, length: usize, seed: u64) {
    // SAFETY: callers pass memory that they have mapped writable.
    let words = unsafe { std::slice::from_raw_parts_mut(place.cast::<u64>(), length / 8) };
    let mut state = seed;
    for word in words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *word = state;
    }
}

/// The offset of the first byte that differs from what [`fill`] wrote.
fn first_wrong(place: *const u8, length: usize, seed: u64) -> Option<usize> {
    // SAFETY: callers pass memory that they have mapped readable.
    let words = unsafe { std::slice::from_raw_parts(place.cast::<u64>(), length / 8) };
    let mut state = seed;
    for (number, word) in words.iter().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if *word != state {
            return Some(number * 8);
        }
    }
    None
}

/// Makes a file with `pages` filled pages.
fn file(stage: &Stage, name: &str, pages: usize, seed: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(stage.path(name)).unwrap();
    let mut bytes = vec![0_u8; pages * PAGE];
    fill(bytes.as_mut_ptr(), bytes.len(), seed);
    put(file.as_raw_fd(), &bytes).unwrap();
    file
}

fn protect(place: *mut u8, length: usize, protection: i32) {
    // SAFETY: callers own the range and use it only as the protection allows.
    check(unsafe { libc::mprotect(place.cast(), length, protection) }).unwrap();
}

fn advise(place: *mut u8, length: usize, advice: i32) {
    // SAFETY: callers own the range.
    check(unsafe { libc::madvise(place.cast(), length, advice) }).unwrap();
}

fn mappings(stage: Stage) {
    let length = 16 * PAGE;
    let filled = |protection: i32, seed: u64| {
        let place = map(length, READ | WRITE, PRIVATE | ANONYMOUS, -1);
        fill(place, length, seed);
        protect(place, length, protection);
        place as usize
    };
    let mut readable: Vec<(usize, usize, u64)> = Vec::new();
    for (seed, protection) in
        [READ, READ | WRITE, READ | libc::PROT_EXEC, READ | WRITE | libc::PROT_EXEC].into_iter().enumerate()
    {
        readable.push((filled(protection, seed as u64), length, seed as u64));
    }
    // Contents below a protection of none are still there when they are looked at again.
    let hidden = filled(libc::PROT_NONE, 50);
    // A guard in the middle.
    let guarded = filled(READ | WRITE, 51);
    protect((guarded + 4 * PAGE) as *mut u8, PAGE, libc::PROT_NONE);
    // File mappings: private with some pages changed, shared, deleted, beyond the end, read-only.
    let plain = file(&stage, "mapped", 16, 60);
    let private = map(length, READ | WRITE, PRIVATE, plain.as_raw_fd());
    fill(private.wrapping_add(4 * PAGE), PAGE, 61);
    let common = map(length, READ | WRITE, libc::MAP_SHARED, plain.as_raw_fd());
    readable.push((map(length, READ, PRIVATE, plain.as_raw_fd()) as usize, length, 60));
    // Only root may open a file that has no name and that is mapped, but not open.
    if crate::harness::is_root() {
        let gone = file(&stage, "deleted", 16, 62);
        let deleted_private = map(length, READ | WRITE, PRIVATE, gone.as_raw_fd());
        let deleted_shared = map(length, READ | WRITE, libc::MAP_SHARED, gone.as_raw_fd());
        fs::remove_file(stage.path("deleted")).unwrap();
        readable.push((deleted_private as usize, length, 62));
        readable.push((deleted_shared as usize, length, 62));
    }
    // Flags that show in smaps: no dump, no fork, wipe on fork, huge pages, random access, grows down, no reserve.
    for (seed, advice) in [
        libc::MADV_DONTDUMP,
        libc::MADV_DONTFORK,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WIPEONFORK,
    ]
    .into_iter()
    .enumerate()
    {
        let seed = 70 + seed as u64;
        let place = filled(READ | WRITE, seed);
        if advice != libc::MADV_HUGEPAGE || Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            advise(place as *mut u8, length, advice);
        }
        readable.push((place, length, seed));
    }
    map(length, READ | WRITE, PRIVATE | ANONYMOUS | libc::MAP_NORESERVE, -1);
    map(length, READ | WRITE, PRIVATE | ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_STACK, -1);
    let locked = filled(READ | WRITE, 90);
    // SAFETY: the range is ours. A limit of zero makes this fail, then nothing is locked.
    unsafe { libc::mlock(locked as *const _, length) };
    readable.push((locked, length, 90));
    let mut writes = 0_u64;
    stage.serve(move |_| {
        for &(place, length, seed) in &readable {
            let wrong = first_wrong(place as *const u8, length, seed);
            verify!(wrong.is_none(), "mapping {seed} at {place:x}: wrong at offset {wrong:?}");
        }
        protect(hidden as *mut u8, length, READ);
        verify!(first_wrong(hidden as *const u8, length, 50).is_none(), "contents under PROT_NONE are lost");
        protect(hidden as *mut u8, length, libc::PROT_NONE);
        verify!(first_wrong(guarded as *const u8, 4 * PAGE, 51).is_none(), "contents below the guard");
        let own = first_wrong(private.wrapping_add(4 * PAGE), PAGE, 61);
        verify!(own.is_none(), "a changed page of a private file mapping");
        // What is written to a shared mapping must be in the file, and not in the private one.
        writes += 1;
        let seed = 1000 + writes;
        fill(common, PAGE, seed);
        let mut expected = vec![0_u8; PAGE];
        fill(expected.as_mut_ptr(), PAGE, seed);
        let bytes = fs::read(stage_path(&plain)).map_err(|error| error.to_string())?;
        verify!(bytes[..PAGE] == expected[..], "a write to a shared mapping is not in the file");
        fill(common, PAGE, 60);
        // MADV_DONTNEED gives zeros in anonymous memory.
        let place = readable[1].0 as *mut u8;
        advise(place, PAGE, libc::MADV_DONTNEED);
        // SAFETY: the page is mapped readable.
        let zeros = unsafe { std::slice::from_raw_parts(place, PAGE) }.iter().all(|&byte| byte == 0);
        verify!(zeros, "MADV_DONTNEED on anonymous memory does not give zeros");
        fill(place, length, 1);
        Ok(())
    });
}

/// The path of an open file.
fn stage_path(file: &File) -> std::path::PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

/// Uses some stack on every level.
#[inline(never)]
fn deep(levels: u32) -> u64 {
    let space = std::hint::black_box([u64::from(levels); 128]);
    if levels == 0 { space[0] } else { deep(levels - 1) + space[5] }
}

fn growth(stage: Stage) {
    let length = 64 << 20;
    let mut big = vec![0_u8; length];
    fill(big.as_mut_ptr(), length, 5);
    // SAFETY: sbrk with 0 only asks.
    let mut last = unsafe { libc::sbrk(0) } as usize;
    stage.serve(move |round| {
        verify!(first_wrong(big.as_ptr(), length, 5).is_none(), "64 MiB of memory have changed");
        // SAFETY: the C library takes this as memory of somebody else; only this code uses it.
        let grown = unsafe { libc::sbrk(1 << 20) } as usize;
        verify!(grown != usize::MAX, "the heap cannot grow: {}", std::io::Error::last_os_error());
        verify!(grown >= last, "the heap went from {last:x} back to {grown:x}");
        fill(grown as *mut u8, 1 << 20, u64::from(round));
        verify!(first_wrong(grown as *const u8, 1 << 20, u64::from(round)).is_none(), "the grown heap");
        last = grown;
        // About 1 MiB more stack each time.
        let levels = 1000 * round;
        let sum: u64 = (0..=u64::from(levels)).sum();
        verify!(deep(levels) == sum, "deep calls give a wrong sum");
        Ok(())
    });
}

fn shared(stage: Stage) {
    let length = 8 * PAGE;
    let anonymous = map(length, READ | WRITE, libc::MAP_SHARED | ANONYMOUS, -1) as usize;
    let (ask, answer) = (pipe(0), pipe(0));
    let child_only = map(length, READ | WRITE, PRIVATE | ANONYMOUS, -1) as usize;
    fill(child_only as *mut u8, length, 1);
    fork(move || {
        fill(child_only as *mut u8, PAGE, 2);
        loop {
            let Ok(bytes) = take(ask[0], 8) else { return 1 };
            let Ok(seed) = bytes.try_into().map(u64::from_ne_bytes) else { return 0 };
            // The child must see the parent's write, keep its own copy, and write the answer beside it.
            let good = first_wrong(anonymous as *const u8, PAGE, seed).is_none()
                && first_wrong(child_only as *const u8, PAGE, 2).is_none();
            fill((anonymous + PAGE) as *mut u8, PAGE, seed + 1);
            if put(answer[1], &[u8::from(good)]).is_err() {
                return 1;
            }
        }
    });
    stage.serve(move |round| {
        let seed = u64::from(round) * 10;
        fill(anonymous as *mut u8, PAGE, seed);
        put(ask[1], &seed.to_ne_bytes()).map_err(|error| error.to_string())?;
        let good = take(answer[0], 1).map_err(|error| error.to_string())?;
        verify!(good == [1], "the child does not see what the parent wrote");
        let wrong = first_wrong((anonymous + PAGE) as *const u8, PAGE, seed + 1);
        verify!(wrong.is_none(), "the parent does not see what the child wrote");
        verify!(
            first_wrong(child_only as *const u8, length, 1).is_none(),
            "the child wrote to private memory"
        );
        Ok(())
    });
}

/// 1 GiB of which 16 pages are used and 16 MiB are pages full of zeros.
fn sparse(stage: Stage) {
    let length = 1 << 30;
    let place = map(length, READ | WRITE, PRIVATE | ANONYMOUS | libc::MAP_NORESERVE, -1);
    advise(place, length, libc::MADV_NOHUGEPAGE);
    for page in 0..16 {
        fill(place.wrapping_add(page * (length / 16)), PAGE, page as u64);
    }
    let zeros = place.wrapping_add(length / 2 + (32 << 20));
    for page in 0..4096 {
        // SAFETY: inside the mapping; a written zero is a page that holds only zeros.
        unsafe { zeros.wrapping_add(page * PAGE).write_volatile(0) };
    }
    stage.serve(move |_| {
        for page in 0..16 {
            let wrong = first_wrong(place.wrapping_add(page * (length / 16)), PAGE, page as u64);
            verify!(wrong.is_none(), "page {page} of the sparse mapping");
        }
        Ok(())
    });
}

/// A field of a file in kibibytes, such as `Pss:` of smaps_rollup, of all processes of a tree.
fn kibibytes(root: i32, file: &str, field: &str) -> Outcome<u64> {
    let mut sum = 0;
    for pid in process::tree(root) {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
        sum += line.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(sum)
}

fn zero_pages_cost_nothing() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("sparse", &[])?;
    case.ask()?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        let size = fs::metadata(&image)?.len();
        ensure!(size < 12 << 20, "the image has {size} bytes, though only some pages are not zero");
        root = case.restore(&image)?;
        case.ask()?;
        let resident = kibibytes(root, "status", "RssAnon:")?;
        ensure!(
            resident < 24 << 10,
            "{resident} KiB of anonymous memory after the restore of a sparse program"
        );
    }
    case.finish(root)
}

/// A parent with 64 MiB and four children that have changed a sixteenth of it each.
fn forked(stage: Stage) {
    let length = 64 << 20;
    let place = map(length, READ | WRITE, PRIVATE | ANONYMOUS, -1) as usize;
    fill(place as *mut u8, length, 9);
    let (ask, answer) = (pipe(0), pipe(0));
    let part = length / 16;
    for number in 0..4_u64 {
        fork(move || {
            let own = place + number as usize * part;
            fill(own as *mut u8, part, 100 + number);
            put(answer[1], &[2]).unwrap();
            while let Ok([_]) = take(ask[0], 1).as_deref() {
                let good = first_wrong(own as *const u8, part, 100 + number).is_none();
                put(answer[1], &[u8::from(good)]).unwrap();
            }
            0
        });
    }
    for _ in 0..4 {
        assert_eq!(take(answer[0], 1).unwrap(), [2]);
    }
    stage.serve(move |_| {
        verify!(first_wrong(place as *const u8, length, 9).is_none(), "the parent's memory has changed");
        for _ in 0..4 {
            put(ask[1], b"?").map_err(|error| error.to_string())?;
            let good = take(answer[0], 1).map_err(|error| error.to_string())?;
            verify!(good == [1], "a child's memory has changed");
        }
        Ok(())
    });
}

fn copy_on_write_stays_shared() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("forked", &[])?;
    case.ask()?;
    let before = kibibytes(root, "smaps_rollup", "Pss:")?;
    for _ in 0..2 {
        let running = case.dump_with(root, &["--leave-running"])?;
        fs::remove_file(running)?;
        let after_dump = kibibytes(root, "smaps_rollup", "Pss:")?;
        ensure!(after_dump < before + (8 << 10), "the dump made the tree grow: {before} to {after_dump} KiB");
        let image = case.dump(root)?;
        let size = fs::metadata(&image)?.len() >> 10;
        // 64 MiB of the parent, 4 MiB of each of four children, and what the programs themselves need.
        ensure!(size < 100 << 10, "the image has {size} KiB: pages of parent and child are stored twice");
        root = case.restore(&image)?;
        case.ask()?;
        let after = kibibytes(root, "smaps_rollup", "Pss:")?;
        ensure!(after < before + (16 << 10), "the restored tree has {after} KiB, not about {before} KiB");
    }
    case.finish(root)
}

/// A server with as many MiB as its argument says and fifty children, each of which has changed one page of them.
fn preforked(stage: Stage) {
    let length = stage.arguments[0].parse::<usize>().unwrap() << 20;
    let place = map(length, READ | WRITE, PRIVATE | ANONYMOUS, -1) as usize;
    fill(place as *mut u8, length, 9);
    let (ask, answer) = (pipe(0), pipe(0));
    let page = move |number: u64| (place + (number as usize * 7 + 1) * PAGE) as *mut u8;
    for number in 0..CHILDREN {
        fork(move || {
            fill(page(number), PAGE, 100 + number);
            put(answer[1], &[2]).unwrap();
            while let Ok([_]) = take(ask[0], 1).as_deref() {
                let good = first_wrong(page(number), PAGE, 100 + number).is_none();
                put(answer[1], &[u8::from(good)]).unwrap();
            }
            0
        });
    }
    for _ in 0..CHILDREN {
        assert_eq!(take(answer[0], 1).unwrap(), [2]);
    }
    stage.serve(move |_| {
        verify!(first_wrong(place as *const u8, length, 9).is_none(), "the parent's memory has changed");
        for _ in 0..CHILDREN {
            put(ask[1], b"?").map_err(|error| error.to_string())?;
            let good = take(answer[0], 1).map_err(|error| error.to_string())?;
            verify!(good == [1], "a child's memory has changed");
        }
        Ok(())
    });
}

const CHILDREN: u64 = 50;

fn fifty_children_cost_as_one() -> Outcome {
    // Without root pages have to be compared by their content.
    let size: u64 = if crate::harness::is_root() { 64 } else { 8 };
    let mut case = Case::new()?;
    let mut root = case.start("preforked", &[&size.to_string()])?;
    case.ask()?;
    let before = kibibytes(root, "smaps_rollup", "Pss:")?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        let stored = fs::metadata(&image)?.len() >> 10;
        // What is shared, and for each child its records and the pages that it has changed.
        let most = (size << 10) + CHILDREN * 256;
        ensure!(case.is_control() || stored < most, "the image has {stored} KiB, more than {most}");
        root = case.restore(&image)?;
        case.ask()?;
        let after = kibibytes(root, "smaps_rollup", "Pss:")?;
        ensure!(after < before + (4 << 10), "the restored tree has {after} KiB, not about {before} KiB");
    }
    case.finish(root)
}

/// A parent and a child that share some pages by copy-on-write, while of others only the parent has something: the
/// child has never touched them, has given them back, or has written zeros over them.
fn diverged(stage: Stage) {
    const PAGES: usize = 16;
    let place = map(PAGES * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1) as usize;
    let page = move |number: usize| (place + number * PAGE) as *mut u8;
    for number in 0..8 {
        fill(page(number), PAGE, number as u64);
    }
    let (ask, answer) = (pipe(0), pipe(0));
    // SAFETY: the page is mapped; only this process and its copies touch it.
    let first = move |number: usize| unsafe { page(number).cast::<u64>().read_volatile() };
    fork(move || {
        // SAFETY: the pages are this process's own.
        unsafe { libc::madvise(page(4).cast(), PAGE, libc::MADV_DONTNEED) };
        // SAFETY: the page is this process's own.
        unsafe { page(5).write_bytes(0, PAGE) };
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            let seen: Vec<u8> = (0..PAGES).flat_map(|number| first(number).to_ne_bytes()).collect();
            if put(answer[1], &seen).is_err() {
                return 1;
            }
        }
        0
    });
    let own: Vec<u64> = (0..8).map(first).collect();
    // What the parent writes after the fork is not the child's.
    fill(page(2), PAGE, 102);
    for number in 8..12 {
        fill(page(number), PAGE, 100 + number as u64);
    }
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let seen = take(answer[0], PAGES * 8).map_err(|error| error.to_string())?;
        let words =
            seen.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
        for (number, word) in words.enumerate() {
            let expected = if matches!(number, 4 | 5) { 0 } else { own.get(number).copied().unwrap_or(0) };
            verify!(
                word == expected,
                "page {number} of the child begins with {word:#x} instead of {expected:#x}"
            );
        }
        verify!(first(8) != 0 && first(2) != own[2], "the parent lost what it wrote after the fork");
        Ok(())
    });
}
