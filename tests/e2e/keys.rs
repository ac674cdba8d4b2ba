//! Memory protection keys, and code that can only be executed.

use std::io::Error;

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, skip};
use crate::stage::kernel::{fork, map, pipe, put, take};
use crate::stage::memory::{
    OWN, PAGE, READ, WRITE, at, descriptions, mark, protect, readable, seen, unchanged,
};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "keys",
    fixtures: &[("keyed", keyed), ("keyed_relatives", keyed_relatives)],
    cases: &[
        ("and_execute_only", || with_keys(|| two_rounds("keyed"))),
        ("other_than_a_relatives", || with_keys(|| two_rounds("keyed_relatives"))),
        ("left_running", || with_keys(keys_are_left_alone)),
    ],
};

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

fn with_keys(case: fn() -> Outcome) -> Outcome {
    let key = new_key(0);
    if key < 0 {
        return skip("memory protection keys");
    }
    free_key(key);
    case()
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
    let mut last = rights();
    stage.serve(move |_| {
        unchanged(&before)?;
        verify!(rights() == last, "rights of the keys were {last:x} and are {:x}", rights());
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
        last = rights();
        Ok(())
    });
}

/// What this thread may do with the memory of each key (`rdpkru`).
fn rights() -> u32 {
    let rights: u32;
    // SAFETY: the processor has keys; the instruction only reads a register.
    unsafe {
        std::arch::asm!("rdpkru", in("ecx") 0, out("eax") rights, out("edx") _, options(nomem, nostack))
    };
    rights
}

/// A child that has other keys than its parent for memory that they share by copy-on-write.
fn keyed_relatives(stage: Stage) {
    let place = map(8 * PAGE, READ | WRITE, OWN, -1) as usize;
    let page = move |number| at(place as *mut u8, number);
    for number in 0..8 {
        mark(page(number), number as u64 + 1);
    }
    let closed = new_key(1);
    give_key(page(1), closed);
    give_key(page(2), closed);
    let seen = move || (0..8).map(|number| u8::from(readable(page(number)))).collect::<Vec<u8>>();
    let (ask, answer) = (pipe(0), pipe(0));
    fork(move || {
        give_key(page(2), 0);
        mark(page(2), 30);
        let other = new_key(1);
        give_key(page(5), other);
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            if put(answer[1], &seen()).is_err() {
                return 1;
            }
        }
        0
    });
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], 8).map_err(|error| error.to_string())?;
        verify!(child == [1, 0, 1, 1, 1, 0, 1, 1], "what the child may read: {child:?}");
        let own = seen();
        verify!(own == [1, 0, 0, 1, 1, 1, 1, 1], "what the parent may read: {own:?}");
        give_key(page(2), 0);
        verify!(self::seen(page(2)) == 3, "the content of the parent under a closed key");
        give_key(page(2), closed);
        Ok(())
    });
}

/// A dump that leaves the program running leaves its keys as they were.
fn keys_are_left_alone() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("keyed", &[])?;
    case.ask()?;
    case.dump_with(root, &["--leave-running"])?;
    case.ask()?;
    case.finish(root)
}

fn code_at(place: usize) -> *const u8 {
    at(place as *mut u8, 6)
}
