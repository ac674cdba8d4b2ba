//! Pipes and FIFOs: data on the way, capacity, packets, ends that are closed, readers that come later.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "pipes",
    fixtures: &[("pipes", pipes), ("fifo", fifo), ("chain", chain)],
    cases: &[
        ("data_capacity_packets", || two_rounds("pipes")),
        ("fifo", || two_rounds("fifo")),
        ("chain_of_processes", || two_rounds("chain")),
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
