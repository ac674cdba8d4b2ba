//! Pipes and FIFOs: data on the way, capacity, packets, ends that are closed, readers that come later.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "pipes",
    fixtures: &[
        ("pipes", pipes),
        ("fifo", fifo),
        ("chain", chain),
        ("fifo-modes", fifo_modes),
        ("reopened", reopened),
        ("crossed", crossed),
    ],
    cases: &[
        ("data_capacity_packets", || two_rounds("pipes")),
        ("fifo", || two_rounds("fifo")),
        ("chain_of_processes", || two_rounds("chain")),
        ("fifos_of_all_modes", || two_rounds("fifo-modes")),
        ("reopened_ends_and_mixed_packets", || two_rounds("reopened")),
        ("ends_crossed_between_processes", || two_rounds("crossed")),
    ],
};

const GET_SIZE: i32 = libc::F_GETPIPE_SZ;

fn size_of_pipe(end: i32) -> i32 {
    // SAFETY: a getter on our own descriptor.
    unsafe { libc::fcntl(end, GET_SIZE) }
}

fn pipes(stage: Stage) {
    let plain = pipe(0);
    let small = pipe(libc::O_NONBLOCK);
    let large = pipe(libc::O_CLOEXEC);
    let packets = pipe(libc::O_DIRECT);
    let widowed = pipe(0);
    let unread = pipe(0);
    // SAFETY: our own descriptors.
    check(unsafe { libc::fcntl(small[0], libc::F_SETPIPE_SZ, 4096) }).unwrap();
    let huge = unsafe { libc::fcntl(large[0], libc::F_SETPIPE_SZ, 1 << 20) };
    let large_length = if huge > 0 { 900_000 } else { 60_000 };
    let load = move || {
        put(plain[1], b"some text on its way").unwrap();
        put(small[1], &[3; 4096]).unwrap();
        let bytes: Vec<u8> = (0..large_length).map(|number| (number % 251) as u8).collect();
        put(large[1], &bytes).unwrap();
        for packet in ["one", "two two", "three three three"] {
            put(packets[1], packet.as_bytes()).unwrap();
        }
    };
    load();
    put(widowed[1], b"last words").unwrap();
    // SAFETY: our own descriptors, not used again.
    unsafe { libc::close(widowed[1]) };
    unsafe { libc::close(unread[0]) };
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let sizes = [plain, small, large].map(|ends| size_of_pipe(ends[0]));
    let mut first = true;
    stage.serve(move |_| {
        let take = |end, room| take(end, room).map_err(|error| error.to_string());
        let now = [plain, small, large].map(|ends| size_of_pipe(ends[0]));
        verify!(now == sizes, "capacities: {sizes:?} became {now:?}");
        verify!(take(plain[0], 1000)? == b"some text on its way", "data of the plain pipe");
        let full = put(small[1], b"x").err().and_then(|error| error.raw_os_error());
        verify!(full == Some(libc::EAGAIN), "a full pipe without blocking gives {full:?}");
        verify!(take(small[0], 5000)? == [3; 4096], "data of the full pipe");
        let mut all = Vec::new();
        while all.len() < large_length {
            all.extend(take(large[0], 1 << 20)?);
        }
        verify!(
            all.iter().enumerate().all(|(number, &byte)| byte == (number % 251) as u8),
            "data of the large pipe"
        );
        for packet in ["one", "two two", "three three three"] {
            let found = take(packets[0], 100)?;
            verify!(found == packet.as_bytes(), "a packet is {:?}", String::from_utf8_lossy(&found));
        }
        if std::mem::take(&mut first) {
            verify!(take(widowed[0], 5)? == b"last ", "data of a pipe without a writer");
            verify!(take(widowed[0], 5)? == b"words", "more data of a pipe without a writer");
        }
        verify!(take(widowed[0], 5)?.is_empty(), "a pipe without a writer does not end");
        let broken = put(unread[1], b"x").err().and_then(|error| error.raw_os_error());
        verify!(broken == Some(libc::EPIPE), "a pipe without a reader gives {broken:?}");
        load();
        Ok(())
    });
}

fn fifo(stage: Stage) {
    let path = stage.path("fifo");
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends with NUL, here and below.
    check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }).unwrap();
    let reader = check(unsafe { libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK) }).unwrap();
    let writer = check(unsafe { libc::open(name.as_ptr(), libc::O_WRONLY) }).unwrap();
    put(writer, b"through the fifo").unwrap();
    stage.serve(move |_| {
        let found = take(reader, 100).map_err(|error| error.to_string())?;
        verify!(found == b"through the fifo", "the fifo held {:?}", String::from_utf8_lossy(&found));
        let empty = take(reader, 100).err().and_then(|error| error.raw_os_error());
        verify!(empty == Some(libc::EAGAIN), "the empty fifo gives {empty:?}");
        // Whoever opens it by name gets the same queue.
        let other =
            check(unsafe { libc::open(name.as_ptr(), libc::O_WRONLY) }).map_err(|error| error.to_string())?;
        put(other, b"through the fifo").map_err(|error| error.to_string())?;
        unsafe { libc::close(other) };
        Ok(())
    });
}

/// Five processes hand numbers on, each adding one; four numbers are always on the way.
fn chain(stage: Stage) {
    const LENGTH: usize = 5;
    let links: Vec<[i32; 2]> = (0..=LENGTH).map(|_| pipe(0)).collect();
    for number in 0..LENGTH {
        let (from, to) = (links[number][0], links[number + 1][1]);
        fork(move || {
            loop {
                let Ok(bytes) = take(from, 8) else { return 1 };
                let Ok(value) = bytes.try_into().map(u64::from_ne_bytes) else { return 0 };
                if put(to, &(value + 1).to_ne_bytes()).is_err() {
                    return 1;
                }
            }
        });
    }
    let mut sent = 0_u64;
    let mut expected = 0_u64;
    let (first, last) = (links[0][1], links[LENGTH][0]);
    stage.serve(move |_| {
        for _ in 0..1000 {
            while sent < expected + 4 {
                put(first, &sent.to_ne_bytes()).map_err(|error| error.to_string())?;
                sent += 1;
            }
            let bytes = take(last, 8).map_err(|error| error.to_string())?;
            let value = bytes.try_into().map(u64::from_ne_bytes).map_err(|_| "a short number")?;
            verify!(value == expected + LENGTH as u64, "{value} came out, not {}", expected + LENGTH as u64);
            expected += 1;
        }
        Ok(())
    });
}

/// FIFOs that are open for reading alone, for writing alone, and for both, with data and a capacity of their own.
fn fifo_modes(stage: Stage) {
    let open = |name: &CString, flags: i32| {
        // SAFETY: a path that ends with NUL, here and below.
        check(unsafe { libc::open(name.as_ptr(), flags | libc::O_CLOEXEC) }).unwrap()
    };
    let [both, full, orphaned, idle] = ["both", "full", "orphaned", "idle"].map(|name| {
        let name = CString::new(stage.path(name).as_os_str().as_bytes()).unwrap();
        check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }).unwrap();
        name
    });
    let twofold = open(&both, libc::O_RDWR | libc::O_NONBLOCK);
    check(unsafe { libc::fcntl(twofold, libc::F_SETPIPE_SZ, 1 << 18) }).unwrap();
    let capacity = size_of_pipe(twofold);
    // Full, with a reader that waits and a writer that does not.
    let reader = open(&full, libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = open(&full, libc::O_WRONLY | libc::O_NONBLOCK);
    check(unsafe { libc::fcntl(reader, libc::F_SETPIPE_SZ, 8192) }).unwrap();
    check(unsafe { libc::fcntl(reader, libc::F_SETFL, 0) }).unwrap();
    // The writer has gone; what it wrote has not.
    let left = open(&orphaned, libc::O_RDONLY | libc::O_NONBLOCK);
    let gone = open(&orphaned, libc::O_WRONLY);
    put(gone, b"left alone").unwrap();
    unsafe { libc::close(gone) };
    // Nobody has ever read.
    let first = open(&idle, libc::O_RDONLY | libc::O_NONBLOCK);
    let lonely = open(&idle, libc::O_WRONLY);
    unsafe { libc::close(first) };
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    put(twofold, b"for itself").unwrap();
    put(writer, &[8; 8192]).unwrap();
    stage.serve(move |round| {
        let read = |end, room| take(end, room).map_err(|error| error.to_string());
        verify!(read(twofold, 100)? == b"for itself", "the FIFO that is open for both");
        put(twofold, b"for itself").map_err(|error| error.to_string())?;
        let now = [twofold, writer].map(size_of_pipe);
        verify!(now == [capacity, 8192], "capacities of FIFOs: {now:?}");
        let refused = put(writer, b"x").err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EAGAIN), "a full FIFO gives {refused:?}");
        verify!(read(reader, 9000)? == [8; 8192], "data of the full FIFO");
        put(writer, &[8; 8192]).map_err(|error| error.to_string())?;
        if round < 3 {
            // It is read when it came back twice.
            let waiting = unsafe { libc::fcntl(left, libc::F_GETFL) };
            verify!(waiting & libc::O_NONBLOCK != 0, "flags of a FIFO: {waiting:o}");
        } else if round == 3 {
            verify!(read(left, 100)? == b"left alone", "what a writer that is gone has left");
        }
        if round == 3 {
            verify!(read(left, 100)?.is_empty(), "a FIFO without a writer does not end");
        }
        let broken = put(lonely, b"x").err().and_then(|error| error.raw_os_error());
        verify!(broken == Some(libc::EPIPE), "a FIFO without a reader gives {broken:?}");
        Ok(())
    });
}

/// Ends that were opened once more by `/proc`, and packets among plain data.
fn reopened(stage: Stage) {
    let ends = pipe(libc::O_NONBLOCK);
    let again = |end: i32, flags: i32| {
        let name = CString::new(format!("/proc/self/fd/{end}")).unwrap();
        // SAFETY: a path that ends with NUL, here and below.
        check(unsafe { libc::open(name.as_ptr(), flags) }).unwrap()
    };
    // The opened one has the lower number, and comes first.
    let spare = check(unsafe { libc::dup(ends[1]) }).unwrap();
    unsafe { libc::close(ends[1]) };
    let opened = again(spare, libc::O_WRONLY | libc::O_NONBLOCK);
    assert!(opened < spare, "{opened} {spare}");
    let both = again(spare, libc::O_RDWR | libc::O_NONBLOCK);
    let packets = pipe(libc::O_NONBLOCK);
    let load = move || {
        let mode = |flags: i32| check(unsafe { libc::fcntl(packets[1], libc::F_SETFL, flags) }).unwrap();
        mode(libc::O_DIRECT);
        put(packets[1], b"first").unwrap();
        put(packets[1], &[7; 4096]).unwrap();
        put(packets[1], b"").unwrap();
        put(packets[1], b"third").unwrap();
        mode(0);
        put(packets[1], b"plain ").unwrap();
        put(packets[1], b"data").unwrap();
    };
    load();
    let flags = move || {
        [ends[0], opened, spare, both, packets[0], packets[1]]
            .map(|end| unsafe { libc::fcntl(end, libc::F_GETFL) })
    };
    let before = flags();
    stage.serve(move |_| {
        let now = flags();
        verify!(now == before, "flags of ends: {before:?} became {now:?}");
        for end in [opened, spare, both] {
            put(end, &[end as u8]).map_err(|error| error.to_string())?;
        }
        let found = take(both, 9).map_err(|error| error.to_string())?;
        verify!(found == [opened as u8, spare as u8, both as u8], "through all ends came {found:?}");
        for wanted in [&b"first"[..], &[7; 4096], b"third", b"plain data"] {
            let found = take(packets[0], 5000).map_err(|error| error.to_string())?;
            verify!(found == wanted, "a packet of {} bytes, not of {}", found.len(), wanted.len());
        }
        load();
        Ok(())
    });
}

/// Two processes with the ends of two pipes crossed, one of which is known to a third process alone.
fn crossed(stage: Stage) {
    let [there, back, only] = [(); 3].map(|()| pipe(0));
    fork(move || {
        // SAFETY: our own descriptors.
        unsafe { libc::close(there[1]) };
        unsafe { libc::close(back[0]) };
        unsafe { libc::close(only[0]) };
        loop {
            let Ok(bytes) = take(there[0], 64) else { return 1 };
            if bytes.is_empty() || put(back[1], &bytes).is_err() || put(only[1], b"!").is_err() {
                return 0;
            }
        }
    });
    fork(move || {
        for end in [there[0], there[1], back[0], back[1], only[1]] {
            // SAFETY: our own descriptor.
            unsafe { libc::close(end) };
        }
        let mut count = 0_u32;
        loop {
            let Ok(bytes) = take(only[0], 1) else { return 1 };
            if bytes.is_empty() {
                return 0;
            }
            count += 1;
            std::hint::black_box(count);
        }
    });
    for end in [there[0], back[1], only[0], only[1]] {
        // SAFETY: our own descriptor.
        unsafe { libc::close(end) };
    }
    stage.serve(move |round| {
        let text = format!("round {round}");
        put(there[1], text.as_bytes()).map_err(|error| error.to_string())?;
        let found = take(back[0], 64).map_err(|error| error.to_string())?;
        verify!(found == text.as_bytes(), "{:?} came back", String::from_utf8_lossy(&found));
        Ok(())
    });
}
