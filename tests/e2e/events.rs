//! Event descriptors: epoll with its modes, eventfd, signalfd, timerfd.

use std::time::Duration;

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{block, check, pipe, put, ready, signal_set, take, timespec};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "events",
    fixtures: &[("epoll", epoll), ("eventfd", eventfd), ("signalfd", signalfd), ("timerfd", timerfd)],
    cases: &[
        ("epoll", || two_rounds("epoll")),
        ("eventfd", || two_rounds("eventfd")),
        ("signalfd", || two_rounds("signalfd")),
        ("timerfd", || two_rounds("timerfd")),
    ],
};

fn control(set: i32, operation: i32, descriptor: i32, events: i32, data: u64) -> std::io::Result<i32> {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    // SAFETY: a valid event.
    check(unsafe { libc::epoll_ctl(set, operation, descriptor, &raw mut event) })
}

fn epoll(stage: Stage) {
    // SAFETY: plain integers.
    let [set, outer] = [(); 2].map(|()| check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).unwrap());
    let [level, edge, once, moved] = [(); 4].map(|()| pipe(libc::O_NONBLOCK));
    let input = libc::EPOLLIN;
    control(set, libc::EPOLL_CTL_ADD, level[0], input, 0xdead_beef_0000_0001).unwrap();
    control(set, libc::EPOLL_CTL_ADD, edge[0], input | libc::EPOLLET, 2).unwrap();
    control(set, libc::EPOLL_CTL_ADD, once[0], input | libc::EPOLLONESHOT, 3).unwrap();
    // The number in the set is one that is not open any more; the description is, under another number.
    // SAFETY: our own descriptors.
    let old = check(unsafe { libc::dup(moved[0]) }).unwrap();
    control(set, libc::EPOLL_CTL_ADD, old, input, 4).unwrap();
    unsafe { libc::close(old) };
    control(outer, libc::EPOLL_CTL_ADD, set, input, 5).unwrap();
    // The one-shot entry has fired and is off.
    put(once[1], b"x").unwrap();
    assert_eq!(ready(set), [3]);
    let mut first = true;
    stage.serve(move |_| {
        let text = |error: std::io::Error| error.to_string();
        if std::mem::take(&mut first) {
            verify!(ready(set).is_empty(), "an entry that was off or idle is ready");
        } else {
            // Re-adding may report an edge once more, but nothing is in that pipe.
            verify!(ready(set).is_empty(), "an idle entry is ready after the restore");
        }
        verify!(ready(outer).is_empty(), "the set in a set is ready");
        put(level[1], b"x").map_err(text)?;
        put(edge[1], b"x").map_err(text)?;
        put(moved[1], b"x").map_err(text)?;
        verify!(ready(outer) == [5], "the set in a set is not ready");
        let found = ready(set);
        verify!(found == [2, 4, 0xdead_beef_0000_0001], "ready entries: {found:x?}");
        let found = ready(set);
        verify!(
            found == [4, 0xdead_beef_0000_0001],
            "ready entries, once more (2 is edge-triggered): {found:x?}"
        );
        let again = control(set, libc::EPOLL_CTL_ADD, level[0], input, 9)
            .err()
            .and_then(|error| error.raw_os_error());
        verify!(again == Some(libc::EEXIST), "an entry could be added twice: {again:?}");
        for end in [level[0], edge[0], moved[0]] {
            verify!(take(end, 4).map_err(text)? == b"x", "data of a watched pipe");
        }
        control(set, libc::EPOLL_CTL_MOD, once[0], input | libc::EPOLLONESHOT, 3).map_err(text)?;
        verify!(ready(set) == [3], "the one-shot entry does not fire when it is armed again");
        Ok(())
    });
}

fn eventfd(stage: Stage) {
    // SAFETY: plain integers.
    let plain = check(unsafe { libc::eventfd(41, libc::EFD_NONBLOCK) }).unwrap();
    let semaphore = check(unsafe { libc::eventfd(3, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) }).unwrap();
    put(plain, &1_u64.to_ne_bytes()).unwrap();
    stage.serve(move |_| {
        let read = |end| take(end, 8).map_err(|error| error.to_string());
        verify!(read(plain)? == 42_u64.to_ne_bytes(), "the counter of the plain eventfd");
        let empty = take(plain, 8).err().and_then(|error| error.raw_os_error());
        verify!(empty == Some(libc::EAGAIN), "the empty eventfd gives {empty:?}");
        for _ in 0..3 {
            verify!(read(semaphore)? == 1_u64.to_ne_bytes(), "the semaphore eventfd");
        }
        put(plain, &42_u64.to_ne_bytes()).map_err(|error| error.to_string())?;
        put(semaphore, &3_u64.to_ne_bytes()).map_err(|error| error.to_string())
    });
}

fn signalfd(stage: Stage) {
    block(&[libc::SIGUSR1, libc::SIGUSR2, 45]);
    let set = signal_set(&[libc::SIGUSR1, 45]);
    // SAFETY: a valid set.
    let descriptor = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK) }).unwrap();
    let load = || {
        // SAFETY: signals to ourselves, all blocked.
        unsafe {
            libc::raise(libc::SIGUSR1);
            libc::raise(libc::SIGUSR2);
            libc::sigqueue(libc::getpid(), 45, libc::sigval { sival_ptr: 99 as *mut _ });
        }
    };
    load();
    stage.serve(move |_| {
        let bytes = take(descriptor, 4 * 128).map_err(|error| error.to_string())?;
        verify!(bytes.len() == 256, "{} bytes of signals, not those of two", bytes.len());
        let number =
            |start: usize| u32::from_ne_bytes(bytes[start..start + 4].try_into().expect("four bytes"));
        verify!([number(0), number(128)] == [10, 45], "signals {} and {}", number(0), number(128));
        // ssi_int of the second.
        verify!(number(128 + 44) == 99, "the value is {}", number(128 + 44));
        let set = signal_set(&[libc::SIGUSR2]);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: valid places.
        let other = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) };
        verify!(other == libc::SIGUSR2, "the signal that the descriptor does not cover: {other}");
        load();
        Ok(())
    });
}

fn timerfd(stage: Stage) {
    let create = |clock: i32| check(unsafe { libc::timerfd_create(clock, libc::TFD_NONBLOCK) }).unwrap();
    let set = |descriptor: i32, flags: i32, value: Duration, interval: Duration| {
        let timer = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
        // SAFETY: a valid structure, no old value wanted.
        check(unsafe { libc::timerfd_settime(descriptor, flags, &raw const timer, std::ptr::null_mut()) })
            .unwrap();
    };
    let get = |descriptor: i32| {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
        // SAFETY: a valid place.
        check(unsafe { libc::timerfd_gettime(descriptor, &raw mut now) }).unwrap();
        (now.it_value.tv_sec, now.it_interval.tv_sec, now.it_value.tv_nsec + now.it_interval.tv_nsec)
    };
    let seconds = Duration::from_secs;
    let long = create(libc::CLOCK_MONOTONIC);
    set(long, 0, seconds(1000), seconds(9));
    let real = create(libc::CLOCK_REALTIME);
    set(
        real,
        libc::TFD_TIMER_ABSTIME,
        crate::stage::kernel::clock(libc::CLOCK_REALTIME) + seconds(2000),
        seconds(0),
    );
    let idle = create(libc::CLOCK_BOOTTIME);
    let fast = create(libc::CLOCK_MONOTONIC);
    set(fast, 0, Duration::from_millis(10), Duration::from_millis(10));
    // Fired once and not read.
    let fired = create(libc::CLOCK_MONOTONIC);
    set(fired, 0, Duration::from_nanos(1), Duration::ZERO);
    let mut first = true;
    stage.serve(move |_| {
        let (left, interval, _) = get(long);
        verify!(
            (900..=1000).contains(&left) && interval == 9,
            "the long timer has {left} s left, interval {interval}"
        );
        let (left, interval, _) = get(real);
        verify!(
            (1900..=2000).contains(&left) && interval == 0,
            "the absolute timer: {left} s left, interval {interval}"
        );
        verify!(get(idle) == (0, 0, 0), "the idle timer runs: {:?}", get(idle));
        let mut watched = libc::pollfd { fd: fast, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let ticks = unsafe { libc::poll(&raw mut watched, 1, 5000) };
        verify!(ticks == 1 && take(fast, 8).is_ok(), "the fast timer does not tick");
        if std::mem::take(&mut first) {
            let count = take(fired, 8).map_err(|error| format!("the timer that had fired: {error}"))?;
            verify!(count == 1_u64.to_ne_bytes(), "the timer that had fired gives {count:?}");
        } else {
            verify!(take(fired, 8).is_err(), "the timer that had fired and was read fires again");
        }
        Ok(())
    });
}
