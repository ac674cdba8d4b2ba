//! Attributes of ranges of memory: growing, locked, advised, named, placed, sealed, at the ends of what
//! there is, and very many.

use std::fs;
use std::io::Error;

use crate::harness::case::{two_rounds, two_rounds_with};
use crate::harness::{Outcome, Topic, skip};
use crate::stage::kernel::{check, fork, map, pipe, put, take, wait};
use crate::stage::memory::{
    OWN, PAGE, READ, WRITE, advise, at, described, descriptions, mark, protect, seen, unchanged,
};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "ranges",
    fixtures: &[
        ("growing", growing),
        ("deep_stack", deep_stack),
        ("locked", locked),
        ("advised", advised),
        ("named", named),
        ("placed", placed),
        ("droppable", droppable),
        ("countless", countless),
        ("ends", ends),
        ("sealed", sealed),
    ],
    cases: &[
        ("growing_down", || two_rounds("growing")),
        ("stack_near_its_limit", || two_rounds("deep_stack")),
        ("locked", || two_rounds_with("locked", &["2"])),
        ("locked_on_fault", || two_rounds_with("locked", &["6"])),
        ("advised", || two_rounds("advised")),
        ("named", with_names),
        ("placed", || two_rounds("placed")),
        ("droppable", with_droppable),
        ("countless", || two_rounds("countless")),
        ("ends_of_the_space", || two_rounds("ends")),
        ("sealed", with_seals),
    ],
};

const DROPPABLE: i32 = 0x08;
const SYS_MSEAL: i64 = 462;

fn growing(stage: Stage) {
    // Room below: more than the kernel's gap of 1 MiB in front of a stack.
    let room = 8 << 20;
    let low = map(room, READ | WRITE, OWN, -1);
    // SAFETY: the range was just mapped.
    check(unsafe { libc::munmap(low.cast(), room) }).unwrap();
    let top = low.wrapping_add(room - 4 * PAGE);
    let flags = OWN | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the place is free.
    let place = unsafe { libc::mmap(top.cast(), 4 * PAGE, READ | WRITE, flags, -1, 0) };
    assert_eq!(place, top.cast());
    let top = top as usize;
    mark(top as *mut u8, 1);
    mark((top - PAGE) as *mut u8, 2);
    let mut pages = 1;
    stage.serve_except(&["memory map"], move |_| {
        for page in 0..=pages {
            let value = seen((top - page * PAGE) as *const u8);
            verify!(value == page as u64 + 1, "page {page} below the first has {value}");
        }
        // Not the next page only.
        for _ in 0..3 {
            pages += 1;
            mark((top - pages * PAGE) as *mut u8, pages as u64 + 1);
        }
        verify!(described((top - pages * PAGE) as *const u8).contains(" gd"), "it does not grow down");
        Ok(())
    });
}

/// Goes down until only so much is left of the stack, and serves there.
#[inline(never)]
fn dive(lowest: usize, stage: &Stage) {
    let space = [0_u8; 16 * 1024];
    if std::hint::black_box(&space).as_ptr().addr() > lowest {
        dive(lowest, stage);
    } else {
        stage.serve_except(&["memory map"], move |round| {
            // A little more each time.
            let deeper = sum(round * 8);
            verify!(deeper == u64::from(round * 8), "calls on the rest of the stack give {deeper}");
            Ok(())
        });
    }
    std::hint::black_box(&space);
}

#[inline(never)]
fn sum(levels: u32) -> u64 {
    let space = std::hint::black_box([1_u64; 512]);
    if levels == 0 { 0 } else { sum(levels - 1) + space[usize::from(levels > 1)] }
}

fn deep_stack(stage: Stage) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer.
    check(unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) }).unwrap();
    limit.rlim_cur = limit.rlim_max.min(4 << 20);
    // SAFETY: a valid limit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) }).unwrap();
    let here = std::hint::black_box(&limit) as *const libc::rlimit;
    // Collecting the facts needs some of what is left.
    dive(here.addr() - (limit.rlim_cur as usize) + (512 << 10), &stage);
}

fn locked(stage: Stage) {
    let future: i32 = stage.arguments[0].parse().unwrap();
    let [plain, fault, none] = [0; 3].map(|_| map(4 * PAGE, READ | WRITE, OWN, -1));
    mark(plain, 7);
    mark(none, 8);
    // SAFETY: the ranges are ours.
    unsafe {
        check(libc::mlock(plain.cast(), 4 * PAGE)).unwrap();
        check(libc::mlock2(fault.cast(), 4 * PAGE, libc::MLOCK_ONFAULT)).unwrap();
        check(libc::mlock(none.cast(), 4 * PAGE)).unwrap();
    }
    protect(none, 4 * PAGE, libc::PROT_NONE);
    // SAFETY: plain numbers.
    check(unsafe { libc::mlockall(future) }).unwrap();
    let before = descriptions(&[plain, fault, none]);
    assert!(before.iter().all(|(_, text)| text.contains(" lo")), "{before:?}");
    let plain = plain as usize;
    // The map changes with what is mapped meanwhile, which is locked.
    stage.serve_except(&["memory map"], move |_| {
        unchanged(&before)?;
        verify!(seen(plain as *const u8) == 7, "the content of locked memory");
        let new = map(2 * PAGE, READ | WRITE, OWN, -1);
        let text = described(new);
        // SAFETY: the range was just mapped.
        check(unsafe { libc::munmap(new.cast(), 2 * PAGE) }).map_err(|error| error.to_string())?;
        verify!(text.contains(" lo"), "new memory is not locked: {text}");
        verify!(text.contains(" lf") == (future & 4 != 0), "new memory is locked otherwise: {text}");
        Ok(())
    });
}

fn advised(stage: Stage) {
    let advices: &[&[i32]] = &[
        &[libc::MADV_DONTFORK],
        &[libc::MADV_WIPEONFORK],
        &[libc::MADV_DONTDUMP],
        &[libc::MADV_MERGEABLE],
        &[libc::MADV_HUGEPAGE],
        &[libc::MADV_NOHUGEPAGE],
        &[libc::MADV_RANDOM],
        &[libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE, libc::MADV_SEQUENTIAL],
    ];
    let mut places = Vec::new();
    for (number, advices) in advices.iter().enumerate() {
        let place = map(4 * PAGE, READ | WRITE, OWN, -1);
        // A hole keeps neighbours apart.
        protect(map(PAGE, READ, OWN, -1), PAGE, libc::PROT_NONE);
        mark(place, number as u64 + 1);
        for &advice in *advices {
            // Not every kernel has them all.
            let _ = advise(place, 4 * PAGE, advice);
        }
        places.push(place as usize);
    }
    let pointers: Vec<*mut u8> = places.iter().map(|&place| place as *mut u8).collect();
    let before = descriptions(&pointers);
    stage.serve(move |_| {
        unchanged(&before)?;
        for (number, &place) in places.iter().enumerate() {
            verify!(seen(place as *const u8) == number as u64 + 1, "the content of mapping {number}");
        }
        let (not_copied, wiped) = (places[0], places[1]);
        let child = fork(move || {
            let mut bytes = [0];
            // SAFETY: mincore tells only whether there is a mapping.
            let there = unsafe { libc::mincore(not_copied as *mut _, PAGE, bytes.as_mut_ptr()) } == 0;
            i32::from(there) | i32::from(seen(wiped as *const u8) != 0) << 1
        });
        let status = wait(child).map_err(|error| error.to_string())?;
        verify!(status == 0, "a child has what it must not have: {status:x}");
        Ok(())
    });
}

fn name_of(place: *mut u8, name: &std::ffi::CStr) -> std::io::Result<i32> {
    // SAFETY: the range is the caller's and the name ends with a NUL.
    check(unsafe { libc::prctl(0x5356_4d41, 0, place, PAGE, name.as_ptr()) })
}

fn with_names() -> Outcome {
    let page = map(PAGE, READ | WRITE, OWN, -1);
    let known = name_of(page, c"tried").is_ok();
    // SAFETY: the page was mapped above.
    unsafe { libc::munmap(page.cast(), PAGE) };
    if known { two_rounds("named") } else { skip("names of memory (CONFIG_ANON_VMA_NAME)") }
}

fn named(stage: Stage) {
    let place = map(3 * PAGE, READ | WRITE, OWN, -1);
    name_of(at(place, 1), c"a name of my own").unwrap();
    let before = descriptions(&[place, at(place, 1), at(place, 2)]);
    assert!(before[1].1.contains("a name of my own"));
    stage.serve(move |_| unchanged(&before));
}

/// The policy of an address, or of this thread, and its nodes.
fn policy(place: Option<*mut u8>) -> (i32, u64) {
    let (mut mode, mut nodes) = (0_i32, [0_u64; 16]);
    let (address, flags) = place.map_or((std::ptr::null_mut(), 0), |place| (place, 2));
    // SAFETY: the places have room for what the kernel writes.
    let result = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024, address, flags)
    };
    assert_eq!(result, 0, "get_mempolicy: {}", Error::last_os_error());
    (mode, nodes[0])
}

fn placed(stage: Stage) {
    const STATIC: i32 = 1 << 15;
    let place = map(8 * PAGE, READ | WRITE, OWN, -1);
    let nodes = 1_u64;
    // Prefer, bind, interleave; with static nodes.
    for (page, mode) in [(1, 1), (2, 2), (4, 3), (5, 2 | STATIC)] {
        // SAFETY: the range is ours, and the mask has the bits that are named.
        let result =
            unsafe { libc::syscall(libc::SYS_mbind, at(place, page), PAGE, mode, &raw const nodes, 64, 0) };
        assert_eq!(result, 0, "mbind: {}", Error::last_os_error());
    }
    // SAFETY: the mask has the bits that are named.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, 2, &raw const nodes, 64) };
    assert_eq!(result, 0);
    for page in 0..8 {
        mark(at(place, page), page as u64);
    }
    let place = place as usize;
    let all = move || (0..8).map(|page| policy(Some(at(place as *mut u8, page)))).collect::<Vec<_>>();
    let before = all();
    assert_eq!(before[2], (2, 1));
    stage.serve(move |_| {
        let now = all();
        verify!(now == before, "policies were {before:?} and are {now:?}");
        verify!(policy(None) == (2, 1), "the policy of the thread is {:?}", policy(None));
        verify!((0..8).all(|page| seen(at(place as *mut u8, page)) == page as u64), "contents");
        Ok(())
    });
}

fn with_droppable() -> Outcome {
    // SAFETY: a new mapping of the kernel's choice.
    let place = unsafe {
        libc::mmap(std::ptr::null_mut(), PAGE, READ | WRITE, DROPPABLE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if place == libc::MAP_FAILED {
        return skip("MAP_DROPPABLE (Linux 6.11)");
    }
    // SAFETY: the page was mapped above.
    unsafe { libc::munmap(place, PAGE) };
    two_rounds("droppable")
}

/// Its pages are there or zero, as if the kernel had dropped them.
fn droppable(stage: Stage) {
    let place = map(4 * PAGE, READ | WRITE, DROPPABLE | libc::MAP_ANONYMOUS, -1);
    mark(place, 77);
    let before = descriptions(&[place]);
    let place = place as usize;
    stage.serve(move |_| {
        unchanged(&before)?;
        let value = seen(place as *const u8);
        verify!(value == 77 || value == 0, "droppable memory has {value}");
        mark(place as *mut u8, 77);
        verify!(seen(place as *const u8) == 77, "droppable memory can't be written");
        Ok(())
    });
}

/// Very many mappings: neighbours differ in their protection.
fn countless(stage: Stage) {
    const PAGES: usize = 5000;
    let place = map(PAGES * PAGE, READ | WRITE, OWN, -1);
    for page in 0..PAGES {
        mark(at(place, page), page as u64 + 1);
    }
    for page in (0..PAGES).step_by(2) {
        protect(at(place, page), PAGE, READ);
    }
    let place = place as usize;
    stage.serve(move |_| {
        let wrong = (0..PAGES).find(|&page| seen(at(place as *mut u8, page)) != page as u64 + 1);
        verify!(wrong.is_none(), "page {wrong:?} has changed");
        Ok(())
    });
}

/// Pages at the lowest and the highest addresses.
fn ends(stage: Stage) {
    let lowest = fs::read_to_string("/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    let lowest = lowest.trim().parse::<usize>().unwrap_or(0).max(0x1_0000);
    let places = [lowest, 0x7fff_ffff_e000];
    for (number, place) in places.into_iter().enumerate() {
        let flags = OWN | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: only a free place is taken.
        let found = unsafe { libc::mmap(place as *mut _, PAGE, READ | WRITE, flags, -1, 0) };
        assert_eq!(found, place as *mut _, "{}", Error::last_os_error());
        mark(found.cast(), number as u64 + 9);
    }
    stage.serve(move |_| {
        for (number, place) in places.into_iter().enumerate() {
            verify!(seen(place as *const u8) == number as u64 + 9, "the page at {place:#x}");
        }
        Ok(())
    });
}

fn seal(place: *mut u8) -> i64 {
    // SAFETY: the page is the caller's.
    unsafe { libc::syscall(SYS_MSEAL, place, PAGE, 0) }
}

fn with_seals() -> Outcome {
    // SAFETY: with no length the call only tells whether it is known.
    let known = unsafe { libc::syscall(SYS_MSEAL, 0, 0, 0) } == 0;
    if known { two_rounds("sealed") } else { skip("mseal (Linux 6.10)") }
}

fn sealed(stage: Stage) {
    let place = map(3 * PAGE, READ | WRITE, OWN, -1);
    mark(at(place, 1), 3);
    protect(at(place, 1), PAGE, READ);
    assert_eq!(seal(at(place, 1)), 0);
    // A child has them too, in memory that it shares with its parent.
    let (ask, answer) = (pipe(0), pipe(0));
    let place = place as usize;
    let is_sealed = move || {
        let page = at(place as *mut u8, 1);
        // SAFETY: the page is ours, and must not go away.
        let gone = unsafe { libc::munmap(page.cast(), PAGE) } == 0;
        // SAFETY: as above.
        let changed = unsafe { libc::mprotect(page.cast(), PAGE, READ | WRITE) } == 0;
        !gone && !changed && seen(page) == 3
    };
    fork(move || {
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            if put(answer[1], &[u8::from(is_sealed())]).is_err() {
                return 1;
            }
        }
        0
    });
    stage.serve(move |_| {
        verify!(is_sealed(), "the page is not sealed, or has changed");
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], 1).map_err(|error| error.to_string())?;
        verify!(child == [1], "the page of the child is not sealed, or has changed");
        Ok(())
    });
}
