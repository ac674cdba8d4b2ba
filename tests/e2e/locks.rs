//! File locks of three kinds: held after a restore, as another process finds out, and given up with their owner.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "locks",
    fixtures: &[("locks", locks)],
    cases: &[("flock_posix_ofd", || two_rounds("locks"))],
};

/// A record lock for `fcntl`.
fn record(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// Tries the lock; true if it was got (and is given back).
fn free(file: &File, command: i32, kind: i32, start: i64, length: i64) -> bool {
    let lock = record(kind, start, length);
    // SAFETY: a valid lock structure.
    let got = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } == 0;
    let unlock = record(libc::F_UNLCK, start, length);
    unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const unlock) };
    got
}

fn locks(stage: Stage) {
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).open(stage.path(name)).unwrap()
    };
    let names = ["flock", "flock-shared", "posix", "ofd"];
    let held = names.map(open);
    let (ask, answer) = (pipe(0), pipe(0));
    let paths = names.map(|name| stage.path(name));
    // The other process opens the files anew each time and tries conflicting locks.
    fork(move || {
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            let [flock, shared, posix, ofd] =
                paths.each_ref().map(|path| File::options().read(true).write(true).open(path).unwrap());
            // SAFETY: our own descriptors.
            let try_flock =
                |file: &File, kind: i32| unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) == 0 };
            let found = [
                try_flock(&flock, libc::LOCK_SH),
                try_flock(&shared, libc::LOCK_SH),
                try_flock(&shared, libc::LOCK_EX),
                free(&posix, libc::F_SETLK, libc::F_RDLCK, 10, 5),
                free(&posix, libc::F_SETLK, libc::F_RDLCK, 30, 5),
                free(&posix, libc::F_SETLK, libc::F_WRLCK, 30, 5),
                free(&posix, libc::F_SETLK, libc::F_WRLCK, 15, 15),
                free(&ofd, libc::F_OFD_SETLK, libc::F_RDLCK, 1_000_000, 1),
                free(&ofd, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 100),
            ];
            put(answer[1], &found.map(u8::from)).unwrap();
        }
        0
    });
    let [flock, shared, posix, ofd] = &held;
    let set = |file: &File, command: i32, lock: libc::flock| {
        check(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) }).unwrap();
    };
    check(unsafe { libc::flock(flock.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    check(unsafe { libc::flock(shared.as_raw_fd(), libc::LOCK_SH) }).unwrap();
    set(posix, libc::F_SETLK, record(libc::F_WRLCK, 10, 5));
    set(posix, libc::F_SETLK, record(libc::F_RDLCK, 30, 10));
    set(ofd, libc::F_OFD_SETLK, record(libc::F_WRLCK, 100, 0));
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let found = take(answer[0], 16).map_err(|error| error.to_string())?;
        let expected = [0, 1, 0, 0, 1, 0, 1, 0, 1];
        verify!(found == expected, "locks that another process gets: {found:?}, expected {expected:?}");
        // One's own locks are no hindrance.
        let own = record(libc::F_WRLCK, 10, 5);
        let result = unsafe { libc::fcntl(held[2].as_raw_fd(), libc::F_SETLK, &raw const own) };
        verify!(result == 0, "the owner cannot set its own lock again");
        Ok(())
    });
}
