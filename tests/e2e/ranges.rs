//! Attributes of ranges of memory: growing, guarded, locked, advised, named, placed, keyed, sealed, at the ends of what
//! there is, and very many.

use std::fs;
use std::io::Error;

use crate::harness::case::{two_rounds, two_rounds_with};
use crate::harness::{Outcome, Topic, skip};
use crate::stage::kernel::{check, fork, map, pipe, put, take, wait};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "ranges",
    fixtures: &[
        ("growing", growing),
        ("deep_stack", deep_stack),
        ("guarded", guarded),
        ("guarded_relatives", guarded_relatives),
        ("locked", locked),
        ("advised", advised),
        ("named", named),
        ("placed", placed),
        ("keyed", keyed),
        ("droppable", droppable),
        ("countless", countless),
        ("ends", ends),
        ("sealed", sealed),
    ],
    cases: &[
        ("growing_down", || two_rounds("growing")),
        ("stack_near_its_limit", || two_rounds("deep_stack")),
        ("guard_regions", || with_guards("guarded")),
        ("guard_regions_of_relatives", || with_guards("guarded_relatives")),
        ("locked", || two_rounds_with("locked", &["2"])),
        ("locked_on_fault", || two_rounds_with("locked", &["6"])),
        ("advised", || two_rounds("advised")),
        ("named", with_names),
        ("placed", || two_rounds("placed")),
        ("keyed_and_execute_only", with_keys),
        ("droppable", with_droppable),
        ("countless", || two_rounds("countless")),
        ("ends_of_the_space", || two_rounds("ends")),
        ("sealed", with_seals),
    ],
};

const PAGE: usize = 4096;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_WRITE;
const OWN: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;
const DROPPABLE: i32 = 0x08;
const SYS_MSEAL: i64 = 462;

fn at(place: *mut u8, page: usize) -> *mut u8 {
    place.wrapping_add(page * PAGE)
}

/// Writes a number into the first word of a page.
fn mark(place: *mut u8, value: u64) {
    // SAFETY: callers pass pages that they have mapped writable.
    unsafe { place.cast::<u64>().write_volatile(value) };
}

fn seen(place: *const u8) -> u64 {
    // SAFETY: callers pass pages that can be read.
    unsafe { place.cast::<u64>().read_volatile() }
}

fn advise(place: *mut u8, length: usize, advice: i32) -> bool {
    // SAFETY: callers own the range.
    unsafe { libc::madvise(place.cast(), length, advice) == 0 }
}

fn protect(place: *mut u8, length: usize, protection: i32) {
    // SAFETY: callers own the range.
    check(unsafe { libc::mprotect(place.cast(), length, protection) }).unwrap();
}

/// Whether the kernel can read a byte there for us: with no more rights than we have.
fn readable(place: *const u8) -> bool {
    let ends = pipe(0);
    // SAFETY: the kernel checks the address.
    let written = unsafe { libc::write(ends[1], place.cast(), 1) };
    for end in ends {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(end) };
    }
    written == 1
}

/// What smaps says of the mapping at an address, without the counters.
fn described(place: *const u8) -> String {
    let text = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let (mut found, mut inside) = (String::new(), false);
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.map(|(start, end)| [start, end].map(|text| usize::from_str_radix(text, 16)));
        if let Some([Ok(start), Ok(end)]) = range {
            inside = (start..end).contains(&place.addr());
            if inside {
                found.push_str(&line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
            }
        } else if inside && (line.starts_with("VmFlags") || line.starts_with("ProtectionKey")) {
            found.push_str(&format!(" {}", line.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// Fails unless smaps says the same of each of these places as before.
fn unchanged(before: &[(usize, String)]) -> Verdict {
    for (place, text) in before {
        let now = described(*place as *const u8);
        verify!(now == *text, "{place:#x} was {text}\nand is {now}");
    }
    Ok(())
}

fn descriptions(places: &[*mut u8]) -> Vec<(usize, String)> {
    places.iter().map(|&place| (place as usize, described(place))).collect()
}

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

fn with_guards(fixture: &str) -> Outcome {
    let page = map(PAGE, READ | WRITE, OWN, -1);
    let known = advise(page, PAGE, GUARD_INSTALL);
    // SAFETY: the page was mapped above.
    unsafe { libc::munmap(page.cast(), PAGE) };
    if known { two_rounds(fixture) } else { skip("guard regions (Linux 6.13)") }
}

fn guarded(stage: Stage) {
    const PAGES: usize = 64;
    let guards = [0, 3, 4, 5, 17, 63];
    let place = map(PAGES * PAGE, READ | WRITE, OWN, -1);
    let file = fs::File::options().read(true).write(true).create_new(true).open(stage.path("file")).unwrap();
    file.set_len(16 * PAGE as u64).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let over_file = map(16 * PAGE, READ | WRITE, libc::MAP_PRIVATE, number);
    let none = map(4 * PAGE, READ | WRITE, OWN, -1);
    for page in 0..PAGES {
        mark(at(place, page), page as u64 + 1);
    }
    mark(at(over_file, 2), 5);
    for page in guards {
        assert!(advise(at(place, page), PAGE, GUARD_INSTALL));
    }
    assert!(advise(at(none, 1), PAGE, GUARD_INSTALL));
    protect(none, 4 * PAGE, libc::PROT_NONE);
    // Those upon files came later than the others.
    let file_guarded = advise(at(over_file, 8), PAGE, GUARD_INSTALL);
    let (place, over_file, none) = (place as usize, over_file as usize, none as usize);
    stage.serve(move |_| {
        let (place, over_file, none) = (place as *mut u8, over_file as *mut u8, none as *mut u8);
        for page in 0..PAGES {
            let guard = guards.contains(&page);
            verify!(readable(at(place, page)) != guard, "page {page} has a guard: {}", !guard);
            verify!(guard || seen(at(place, page)) == page as u64 + 1, "page {page} has lost its content");
        }
        verify!(seen(at(over_file, 2)) == 5, "a page over a file");
        verify!(readable(at(over_file, 8)) != file_guarded, "the guard over a file");
        protect(none, 4 * PAGE, READ);
        verify!(readable(none) && !readable(at(none, 1)), "the guard under PROT_NONE");
        protect(none, 4 * PAGE, libc::PROT_NONE);
        Ok(())
    });
}

/// A child that has another guard than its parent, in memory that they share by copy-on-write.
fn guarded_relatives(stage: Stage) {
    let place = map(8 * PAGE, READ | WRITE, OWN, -1) as usize;
    let page = move |number| at(place as *mut u8, number);
    for number in 0..8 {
        mark(page(number), number as u64 + 1);
    }
    assert!(advise(page(1), PAGE, GUARD_INSTALL));
    assert!(advise(page(2), PAGE, GUARD_INSTALL));
    let (ask, answer) = (pipe(0), pipe(0));
    let guards = move || (0..8).map(|number| u8::from(!readable(page(number)))).collect::<Vec<u8>>();
    fork(move || {
        assert!(advise(page(2), PAGE, GUARD_REMOVE));
        assert!(advise(page(5), PAGE, GUARD_INSTALL));
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            let good = seen(page(2)) == 0 && seen(page(3)) == 4 && seen(page(0)) == 1;
            let mut seen = guards();
            seen.push(u8::from(good));
            if put(answer[1], &seen).is_err() {
                return 1;
            }
        }
        0
    });
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], 9).map_err(|error| error.to_string())?;
        verify!(child == [0, 1, 0, 0, 0, 1, 0, 0, 1], "guards and content of the child: {child:?}");
        let own = guards();
        verify!(own == [0, 1, 1, 0, 0, 0, 0, 0], "guards of the parent: {own:?}");
        verify!(seen(page(5)) == 6, "the parent lost what the child has guarded");
        Ok(())
    });
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

fn new_key(rights: u64) -> i64 {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, rights) }
}

fn free_key(key: i64) -> i64 {
    // SAFETY: a plain number.
    unsafe { libc::syscall(libc::SYS_pkey_free, key) }
}

fn give_key(place: *mut u8, key: i64) {
    // SAFETY: the page is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, place, PAGE, READ | WRITE, key) };
    assert_eq!(result, 0, "pkey_mprotect: {}", Error::last_os_error());
}

fn with_keys() -> Outcome {
    let key = new_key(0);
    if key < 0 {
        return skip("memory protection keys");
    }
    free_key(key);
    two_rounds("keyed")
}

/// Keys with and without access, one that is free again between them, and code that can only be executed.
fn keyed(stage: Stage) {
    let place = map(8 * PAGE, READ | WRITE, OWN, -1);
    for page in 0..8 {
        mark(at(place, page), 100 + page as u64);
    }
    let (open, free, closed) = (new_key(0), new_key(0), new_key(1));
    give_key(at(place, 1), open);
    give_key(at(place, 3), closed);
    let code = at(place, 6);
    // SAFETY: the page is ours: mov eax, 42; ret.
    unsafe { code.copy_from(b"\xb8\x2a\0\0\0\xc3".as_ptr(), 6) };
    protect(code, PAGE, libc::PROT_EXEC);
    free_key(free);
    let before = descriptions(&[at(place, 1), at(place, 3), code]);
    let hidden = !readable(code);
    let place = place as usize;
    stage.serve(move |_| {
        unchanged(&before)?;
        let page = |number| at(place as *mut u8, number);
        verify!(seen(page(1)) == 101 && readable(page(1)), "memory with an open key");
        verify!(!readable(page(3)), "memory with a closed key can be read");
        give_key(page(3), open);
        verify!(seen(page(3)) == 103, "the content of memory with a closed key");
        give_key(page(3), closed);
        verify!(readable(code_at(place)) != hidden, "memory that can only be executed can be read");
        // SAFETY: the page has a function of this type.
        let call: extern "C" fn() -> i32 = unsafe { std::mem::transmute(code_at(place)) };
        verify!(call() == 42, "code that can only be executed");
        let next = new_key(0);
        free_key(next);
        verify!(next == free, "the next key is {next} instead of {free}");
        Ok(())
    });
}

fn code_at(place: usize) -> *const u8 {
    at(place as *mut u8, 6)
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
