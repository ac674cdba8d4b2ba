//! Guard regions, in memory of one's own and in memory that relatives share.

use std::fs;

use crate::harness::case::two_rounds;
use crate::harness::{Outcome, Topic, skip};
use crate::stage::kernel::{fork, map, pipe, put, take};
use crate::stage::memory::{OWN, PAGE, READ, WRITE, advise, at, mark, protect, readable, seen};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "guards",
    fixtures: &[("guarded", guarded), ("guarded_relatives", guarded_relatives)],
    cases: &[
        ("regions", || with_guards("guarded")),
        ("regions_of_relatives", || with_guards("guarded_relatives")),
    ],
};

const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

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
