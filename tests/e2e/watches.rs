//! Descriptors that watch: inotify, fanotify, epoll with its odder targets, timers of all clocks, BPF maps.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::kernel::{check, clock, fork, pipe, put, ready, take, timespec};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "watches",
    fixtures: &[
        ("inotify", inotify),
        ("inotify-queue", inotify_queue),
        ("odd-epoll", odd_epoll),
        ("all-clocks", all_clocks),
        ("counters", counters),
        ("user-faults", user_faults),
        ("fanotify", fanotify),
        ("bpf-maps", bpf_maps),
    ],
    cases: &[
        ("inotify", || two_rounds("inotify")),
        ("inotify_events_that_wait", inotify_events_that_wait),
        ("epoll_reported_edges_and_odd_targets", || two_rounds("odd-epoll")),
        ("timerfds_of_all_clocks", || two_rounds("all-clocks")),
        ("eventfd_and_signalfd_at_their_limits", || two_rounds("counters")),
        ("userfaultfd_is_refused", userfaultfd_is_refused),
        ("bpf_maps", || need_bpf().and_then(|()| two_rounds("bpf-maps"))),
        ("fanotify", || need_root().and_then(|()| two_rounds("fanotify"))),
    ],
};

/// Turns an I/O error into the text of a verification.
fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// A descriptor as a file.
fn file(number: i32) -> File {
    // SAFETY: the kernel has just given it to us.
    unsafe { File::from_raw_fd(check(number).unwrap()) }
}

/// Watches something; the number of the watch.
fn watch(instance: &File, path: &Path, mask: u32) -> i32 {
    let path = std::ffi::CString::new(text(path)).unwrap();
    // SAFETY: a path that ends with NUL.
    check(unsafe { libc::inotify_add_watch(instance.as_raw_fd(), path.as_ptr(), mask) }).unwrap()
}

/// All events that wait: number of the watch, mask, name.
fn events(instance: &File) -> Vec<(i32, u32, String)> {
    let bytes = take(instance.as_raw_fd(), 65536).unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = &bytes[..];
    while let Some((head, behind)) = rest.split_first_chunk::<16>() {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let (name, next) = behind.split_at(word(12) as usize);
        let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        found.push((word(0).cast_signed(), word(4), name));
        rest = next;
    }
    found
}

fn inotify(stage: Stage) {
    // SAFETY: plain integers.
    let instance = file(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) });
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    let [plain, first, old, gone] = ["plain", "first", "old", "gone"].map(|name| {
        fs::write(folder.join(name), "content").unwrap();
        folder.join(name)
    });
    let [second, new] = ["second", "new"].map(|name| folder.join(name));
    fs::hard_link(&first, &second).unwrap();
    let empty = stage.path("empty");
    fs::create_dir(&empty).unwrap();
    let removed_folder = File::open(&empty).unwrap();
    let passing = watch(&instance, &stage.folder, libc::IN_MOVED_FROM);
    let in_folder = watch(&instance, &folder, libc::IN_CREATE | libc::IN_DELETE | libc::IN_ONLYDIR);
    let on_plain = watch(&instance, &plain, libc::IN_ALL_EVENTS);
    let on_linked = watch(&instance, &first, libc::IN_MODIFY | libc::IN_EXCL_UNLINK);
    let on_moved = watch(&instance, &old, libc::IN_ATTRIB);
    let on_gone = watch(&instance, &gone, libc::IN_MODIFY);
    let on_empty = watch(&instance, &empty, libc::IN_DELETE_SELF | libc::IN_ATTRIB);
    let once = watch(&instance, &second, libc::IN_MODIFY | libc::IN_MASK_ADD);
    assert_eq!(once, on_linked, "two names of one file are one watch");
    // SAFETY: plain integers. A number in between is not used.
    check(unsafe { libc::inotify_rm_watch(instance.as_raw_fd(), passing) }).unwrap();
    fs::remove_file(&first).unwrap();
    fs::rename(&old, &new).unwrap();
    let kept = File::options().write(true).open(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    fs::remove_dir(&empty).unwrap();
    std::env::set_current_dir(&folder).unwrap();
    while !events(&instance).is_empty() {}
    let inode = fs::metadata(&new).unwrap().ino();
    stage.serve(move |_| {
        let before = events(&instance);
        verify!(before.is_empty(), "events of nothing: {before:x?}");
        fs::write(folder.join("fresh"), "").map_err(words)?;
        fs::remove_file(folder.join("fresh")).map_err(words)?;
        let found = events(&instance);
        let wanted = [
            (in_folder, libc::IN_CREATE, "fresh".to_owned()),
            (in_folder, libc::IN_DELETE, "fresh".to_owned()),
        ];
        verify!(found == wanted, "in the folder: {found:x?}, not {wanted:x?}");
        drop(File::open(&plain).map_err(words)?);
        let found = events(&instance);
        let wanted =
            [(on_plain, libc::IN_OPEN, String::new()), (on_plain, libc::IN_CLOSE_NOWRITE, String::new())];
        verify!(found == wanted, "on the file: {found:x?}, not {wanted:x?}");
        fs::write(&second, "changed").map_err(words)?;
        let found = events(&instance);
        verify!(
            found.first() == Some(&(on_linked, libc::IN_MODIFY, String::new())),
            "on the linked file: {found:x?}"
        );
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(words)?;
        let found = events(&instance);
        verify!(found == [(on_moved, libc::IN_ATTRIB, String::new())], "on the moved file: {found:x?}");
        verify!(fs::metadata(&new).map_err(words)?.ino() == inode, "the moved file is another one");
        kept.write_all_at(b"x", 0).map_err(words)?;
        let found = events(&instance);
        verify!(found == [(on_gone, libc::IN_MODIFY, String::new())], "on the removed file: {found:x?}");
        removed_folder.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(words)?;
        let found = events(&instance);
        verify!(
            found == [(on_empty, libc::IN_ATTRIB | libc::IN_ISDIR, String::new())],
            "on the removed folder: {found:x?}"
        );
        // The next watch has a new number.
        let next = watch(&instance, Path::new("/"), libc::IN_MOVE_SELF);
        verify!(next > on_empty, "a new watch has the number {next}");
        // SAFETY: plain integers.
        check(unsafe { libc::inotify_rm_watch(instance.as_raw_fd(), next) }).map_err(words)?;
        let found = events(&instance);
        verify!(found == [(next, libc::IN_IGNORED, String::new())], "the end of a watch: {found:x?}");
        Ok(())
    });
}

/// Has events that wait; after a restore there is the one that says that some were lost.
fn inotify_queue(stage: Stage) {
    // SAFETY: plain integers.
    let instance = file(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) });
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    let number = watch(&instance, &folder, libc::IN_CREATE);
    for name in ["one", "two"] {
        fs::write(folder.join(name), "").unwrap();
    }
    stage.serve(move |round| {
        if round == 1 {
            return Ok(());
        }
        let found = events(&instance);
        verify!(found == [(-1, libc::IN_Q_OVERFLOW, String::new())], "instead of what was lost: {found:x?}");
        fs::write(folder.join(format!("in {round}")), "").map_err(words)?;
        let found = events(&instance);
        verify!(found == [(number, libc::IN_CREATE, format!("in {round}"))], "a new event: {found:x?}");
        fs::write(folder.join(format!("after {round}")), "").map_err(words)
    });
}

fn inotify_events_that_wait() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("inotify-queue", &[])?;
    case.ask()?;
    if case.is_control() {
        return case.finish(root);
    }
    for round in 1..=2 {
        let image = case.path(&format!("image-{round}.vckpt"));
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?.good()?;
        ensure!(ran.stderr.contains("IN_Q_OVERFLOW"), "what is lost is not told: {}", ran.describe());
        root = case.restore(&image)?;
        case.ask()?;
    }
    case.finish(root)
}

fn odd_epoll(stage: Stage) {
    let control = |set: i32, descriptor: i32, events: i32, data: u64| {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: a valid event.
        check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, descriptor, &raw mut event) }).unwrap();
    };
    // SAFETY: plain integers, here and below.
    let [set, inner, outer] = [(); 3].map(|()| check(unsafe { libc::epoll_create1(0) }).unwrap());
    let [told, level, twice, elsewhere] = [(); 4].map(|()| pipe(libc::O_NONBLOCK));
    let (input, edge) = (libc::EPOLLIN, libc::EPOLLET);
    // An edge that was told and whose data still waits, in a set in a set.
    control(set, told[0], input | edge, 1);
    put(told[1], b"still here").unwrap();
    let timer = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK) }).unwrap();
    let soon = libc::itimerspec {
        it_interval: timespec(Duration::ZERO),
        it_value: timespec(Duration::from_nanos(1)),
    };
    check(unsafe { libc::timerfd_settime(timer, 0, &raw const soon, std::ptr::null_mut()) }).unwrap();
    let mut polled = libc::pollfd { fd: timer, events: libc::POLLIN, revents: 0 };
    check(unsafe { libc::poll(&raw mut polled, 1, -1) }).unwrap();
    control(set, timer, input | edge, 2);
    control(inner, level[0], input, 3);
    control(outer, inner, input | edge, 4);
    // One description under two numbers, and both numbers lead elsewhere by now.
    let copies = [(); 2].map(|()| check(unsafe { libc::dup(twice[0]) }).unwrap());
    control(set, copies[0], input, 5);
    control(set, copies[1], input, 6);
    check(unsafe { libc::dup2(level[0], copies[0]) }).unwrap();
    unsafe { libc::close(copies[1]) };
    // Only a child has this one still.
    control(set, elsewhere[0], input | libc::EPOLLEXCLUSIVE, 7);
    fork(|| {
        loop {
            unsafe { libc::pause() };
        }
    });
    unsafe { libc::close(elsewhere[0]) };
    assert_eq!(ready(set), [1, 2]);
    stage.serve(move |_| {
        let found = ready(set);
        verify!(found.is_empty(), "what was told is told again: {found:?}");
        verify!(ready(outer).is_empty(), "the set in a set is ready");
        put(twice[1], b"x").map_err(words)?;
        put(elsewhere[1], b"x").map_err(words)?;
        put(level[1], b"x").map_err(words)?;
        let found = ready(set);
        verify!(found == [5, 6, 7], "ready: {found:?}");
        verify!(ready(outer) == [4] && ready(inner) == [3], "the set in a set is not ready");
        for end in [twice[0], level[0]] {
            verify!(take(end, 9).map_err(words)? == b"x", "data of a watched pipe");
        }
        // The end that only the child has can't be read here: it is told as long as there is something.
        verify!(ready(set) == [7], "ready: {:?}", ready(set));
        put(told[1], b"!").map_err(words)?;
        let found = ready(set);
        verify!(found == [1, 7], "a new edge: {found:?}");
        // Nothing is ready at the next dump but what can't be taken away.
        let again = format!("/proc/self/fd/{}", elsewhere[1]);
        let reader = File::open(again).map_err(words)?;
        verify!(take(reader.as_raw_fd(), 9).map_err(words)? == b"x", "data of the pipe of a child");
        Ok(())
    });
}

fn all_clocks(stage: Stage) {
    const HOUR: u64 = 3600;
    // SAFETY: plain integers.
    let create = |clock: i32| check(unsafe { libc::timerfd_create(clock, libc::TFD_NONBLOCK) });
    let set = |descriptor: i32, flags: i32, value: Duration, interval: Duration| {
        let timer = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
        // SAFETY: a valid structure, no old value wanted.
        check(unsafe { libc::timerfd_settime(descriptor, flags, &raw const timer, std::ptr::null_mut()) })
            .unwrap();
    };
    let clocks = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM,
        libc::CLOCK_BOOTTIME_ALARM,
    ];
    let hour = Duration::from_secs(HOUR);
    let mut timers = Vec::new();
    for sort in clocks {
        // Only who may wake the machine has the alarms.
        let Ok(relative) = create(sort) else { continue };
        set(relative, 0, hour, Duration::from_secs(7));
        let absolute = create(sort).unwrap();
        let now = clock(match sort {
            libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
            sort => sort,
        });
        set(absolute, libc::TFD_TIMER_ABSTIME, now + hour, Duration::ZERO);
        timers.push((sort, relative, 7));
        timers.push((sort, absolute, 0));
    }
    assert!(timers.len() >= 6);
    let cancelled = create(libc::CLOCK_REALTIME).unwrap();
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    set(cancelled, flags, clock(libc::CLOCK_REALTIME) + hour, Duration::ZERO);
    let counted = create(libc::CLOCK_MONOTONIC).unwrap();
    set(counted, 0, Duration::from_nanos(1), Duration::from_nanos(1));
    let mut polled = libc::pollfd { fd: counted, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    check(unsafe { libc::poll(&raw mut polled, 1, -1) }).unwrap();
    let mut ticks = 0;
    stage.serve(move |round| {
        for &(sort, timer, interval) in &timers {
            let mut now = libc::itimerspec {
                it_interval: timespec(Duration::ZERO),
                it_value: timespec(Duration::ZERO),
            };
            // SAFETY: a valid place.
            check(unsafe { libc::timerfd_gettime(timer, &raw mut now) }).map_err(words)?;
            let left = now.it_value.tv_sec.unsigned_abs();
            verify!((HOUR - 100..=HOUR).contains(&left), "a timer of clock {sort} has {left} s left");
            verify!(now.it_interval.tv_sec == interval, "its interval is {} s", now.it_interval.tv_sec);
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{timer}")).map_err(words)?;
            verify!(info.contains(&format!("clockid: {sort}\n")), "a timer of clock {sort}: {info}");
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{cancelled}")).map_err(words)?;
        verify!(info.contains("settime flags: 03\n"), "the timer that ends with the clock: {info}");
        let bytes = take(counted, 8).map_err(words)?;
        let now = u64::from_ne_bytes(bytes.try_into().map_err(|_| "a short number")?);
        verify!(now > 0, "the timer that expires all the time has not");
        ticks += now;
        if round == 4 {
            verify!(ticks > 3, "ticks: {ticks}");
        }
        Ok(())
    });
}

/// Counters that are full, and a writer that waits for room; a signalfd whose mask was changed.
fn counters(stage: Stage) {
    // SAFETY: plain integers.
    let full = check(unsafe { libc::eventfd(0, 0) }).unwrap();
    put(full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let empty = check(unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK) }).unwrap();
    let writer = fork(move || {
        loop {
            if put(full, &5_u64.to_ne_bytes()).is_err() {
                return 1;
            }
        }
    });
    let call = || fs::read_to_string(format!("/proc/{writer}/syscall")).unwrap_or_default();
    while !call().starts_with("1 ") {
        std::thread::yield_now();
    }
    crate::stage::kernel::block(&[libc::SIGUSR1, libc::SIGUSR2]);
    let [one, both] =
        [&[libc::SIGUSR1][..], &[libc::SIGUSR1, libc::SIGUSR2]].map(crate::stage::kernel::signal_set);
    // SAFETY: valid sets.
    let signals = check(unsafe { libc::signalfd(-1, &raw const one, libc::SFD_NONBLOCK) }).unwrap();
    check(unsafe { libc::signalfd(signals, &raw const both, 0) }).unwrap();
    stage.serve(move |round| {
        let read = take(empty, 8).err().and_then(|error| error.raw_os_error());
        verify!(read == Some(libc::EAGAIN), "an empty semaphore gives {read:?}");
        // SAFETY: plain integers; both are blocked.
        unsafe { libc::raise(libc::SIGUSR2) };
        let bytes = take(signals, 128).map_err(words)?;
        verify!(bytes.len() == 128 && bytes[0] == 12, "the signalfd whose mask was changed: {bytes:?}");
        if round == 3 {
            let value = take(full, 8).map_err(words)?;
            verify!(value == (u64::MAX - 1).to_ne_bytes(), "the full counter holds {value:?}");
        }
        Ok(())
    });
}

/// Has a userfaultfd.
fn user_faults(stage: Stage) {
    // SAFETY: plain integers: for faults of user space only.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    if number < 0 {
        stage.publish("lacks", "");
    }
    stage.serve(|_| Ok(()));
}

fn userfaultfd_is_refused() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("user-faults", &[])?;
    if case.path("lacks").exists() {
        case.finish(root)?;
        return skip("userfaultfd");
    }
    let image = case.path("refused.vckpt");
    if !case.is_control() {
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("a userfaultfd"), "it is not named: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}

/// Marks on a file, on a folder with its children, and on a file that has lost its name.
fn fanotify(stage: Stage) {
    const OPEN: u64 = 0x20;
    const ON_CHILD: u64 = 0x0800_0000;
    // SAFETY: plain integers.
    let group = file(unsafe { libc::fanotify_init(0x3, libc::O_RDONLY as u32) });
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    let [plain, inner, gone] = ["plain", "folder/inner", "gone"].map(|name| {
        fs::write(stage.path(name), "content").unwrap();
        stage.path(name)
    });
    let kept = File::open(&gone).unwrap();
    let mark = |flags: u32, mask: u64, path: &Path| {
        let path = std::ffi::CString::new(text(path)).unwrap();
        // SAFETY: a path that ends with NUL.
        check(unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) })
            .unwrap();
    };
    mark(libc::FAN_MARK_ADD, OPEN, &plain);
    mark(libc::FAN_MARK_ADD, OPEN | ON_CHILD, &folder);
    mark(libc::FAN_MARK_ADD, OPEN, &gone);
    let ignored = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
    mark(ignored, 0x10, &plain);
    fs::remove_file(&gone).unwrap();
    // The path of the next event, which comes with a descriptor.
    let next = move || -> Result<String, String> {
        let bytes = take(group.as_raw_fd(), 24).map_err(words)?;
        let number = bytes[16..20].try_into().map(i32::from_ne_bytes).map_err(|_| "a short event")?;
        let opened = file(number);
        let path = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(words)?;
        Ok(path.display().to_string())
    };
    let group = group_number();
    let info = move || {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{group}")).unwrap_or_default();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("fanotify "))
            .map(|line| {
                line.split(' ')
                    .filter(|word| word.contains("mask:") || word.contains("flags:"))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        lines.sort();
        lines
    };
    let before = info();
    assert_eq!(before.len(), 4, "{before:?}");
    stage.serve(move |_| {
        verify!(info() == before, "{before:?} became {:?}", info());
        for path in [&plain, &inner] {
            drop(File::open(path).map_err(words)?);
            let found = next()?;
            verify!(found == text(path), "an event of {found}, not of {}", path.display());
        }
        drop(File::open(format!("/proc/self/fd/{}", kept.as_raw_fd())).map_err(words)?);
        let found = next()?;
        verify!(found.ends_with("(deleted)"), "an event of {found}, not of the removed file");
        let none = next();
        verify!(none.is_err(), "an event of nothing: {none:?}");
        Ok(())
    });
}

/// The number of the only fanotify group.
fn group_number() -> i32 {
    (3..64)
        .find(|number| {
            fs::read_link(format!("/proc/self/fd/{number}"))
                .is_ok_and(|link| link.to_string_lossy().contains("fanotify"))
        })
        .unwrap()
}

/// A call of `bpf(2)`.
fn bpf(command: i32, words: &[u32], pointers: [*const u8; 2]) -> std::io::Result<i64> {
    let mut attributes = [0_u32; 32];
    attributes[..words.len()].copy_from_slice(words);
    for (place, pointer) in [2, 4].into_iter().zip(pointers).filter(|(_, pointer)| !pointer.is_null()) {
        let address = pointer as u64;
        (attributes[place], attributes[place + 1]) = (address as u32, (address >> 32) as u32);
    }
    // SAFETY: the attributes live, and pointers lead to buffers that are as long as the map needs.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 128) })
}

/// Skips the case where maps can't be made.
fn need_bpf() -> Outcome {
    match bpf(0, &[1, 4, 8, 1], [std::ptr::null(); 2]) {
        Ok(number) => {
            drop(file(number as i32));
            Ok(())
        }
        Err(_) => skip("bpf"),
    }
}

fn bpf_maps(stage: Stage) {
    let none = std::ptr::null();
    let make = |words: &[u32]| file(bpf(0, words, [none; 2]).unwrap() as i32);
    // Type, sizes of key and value, entries, flags, inner map, node, and a name.
    let hash = make(&[1, 4, 12, 10, 0, 0, 0, u32::from_le_bytes(*b"name"), u32::from_le_bytes(*b"d\0\0\0")]);
    let array = make(&[2, 4, 8, 3]);
    let number = |map: &File| map.as_raw_fd() as u32;
    let set = move |map: u32, key: u32, value: &[u8; 16]| {
        bpf(2, &[map], [std::ptr::from_ref(&key).cast(), value.as_ptr()])
    };
    let get = move |map: u32, key: u32| {
        let mut value = [0_u8; 16];
        bpf(1, &[map], [std::ptr::from_ref(&key).cast(), value.as_mut_ptr()]).map(|_| value)
    };
    let [first, second] = [number(&hash), number(&array)];
    let padded = |byte: u8, length: usize| {
        let mut value = [0; 16];
        value[..length].fill(byte);
        value
    };
    for key in [7, 0xffff_ffff, 9] {
        set(first, key, &padded(key as u8, 12)).unwrap();
    }
    set(second, 2, &padded(5, 8)).unwrap();
    bpf(22, &[second], [none; 2]).unwrap();
    let info = move || {
        [first, second].map(|map| {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{map}")).unwrap_or_default();
            let kept = ["map_type", "key_size", "value_size", "max_entries", "map_flags", "frozen"];
            text.lines()
                .filter(|line| kept.iter().any(|kept| line.starts_with(kept)))
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    let before = info();
    stage.serve(move |_| {
        verify!(info() == before, "{before:?} became {:?}", info());
        for key in [7, 0xffff_ffff, 9] {
            let found = get(number(&hash), key).map_err(words)?;
            verify!(found[..12] == padded(key as u8, 12)[..12], "key {key} has {found:?}");
        }
        let missing = get(number(&hash), 8).err().and_then(|error| error.raw_os_error());
        verify!(missing == Some(libc::ENOENT), "a key that is not there: {missing:?}");
        let found = get(number(&array), 2).map_err(words)?;
        verify!(found[..8] == [5; 8], "the array has {found:?}");
        let frozen = set(number(&array), 1, &[0; 16]).err().and_then(|error| error.raw_os_error());
        verify!(frozen == Some(libc::EPERM), "a frozen map can be changed: {frozen:?}");
        Ok(())
    });
}
