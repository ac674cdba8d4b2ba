//! Descriptors that stand for something else than data: files of `/proc`, processes, namespaces, sealed memory files;
//! numbers far up; leases, and locks that somebody waits for.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::process::{alive, signal, spawn, wait_exit};
use crate::harness::{Outcome, Topic, ensure, fail, need_root};
use crate::stage::kernel::{check, fork, pipe, put, take, wait};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "handles",
    fixtures: &[
        ("proc-files", proc_files),
        ("pidfds", pidfds),
        ("namespaces", namespaces),
        ("sealed", sealed),
        ("far-numbers", far_numbers),
        ("leases", leases),
        ("lease-breaks", lease_breaks),
        ("lock-waiters", lock_waiters),
        ("read-only", read_only),
    ],
    cases: &[
        ("files_of_proc", || two_rounds("proc-files")),
        ("pidfds", || two_rounds("pidfds")),
        ("namespaces", || two_rounds("namespaces")),
        ("sealed_memory_files", || two_rounds("sealed")),
        ("numbers_at_the_limit", || two_rounds("far-numbers")),
        ("leases", || two_rounds("leases")),
        ("lease_that_is_being_broken", broken_lease),
        ("locks_over_fork_and_waiters", || two_rounds("lock-waiters")),
        ("read_only_file_system", read_only_file_system),
    ],
};

const LIMIT: Duration = Duration::from_secs(20);

/// Turns an I/O error into the text of a verification.
fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// A descriptor as a file.
fn file(number: impl TryInto<i32>) -> File {
    let number = check(number.try_into().ok().unwrap()).unwrap();
    // SAFETY: the kernel has just given it to us.
    unsafe { File::from_raw_fd(number) }
}

/// A child that stays until it is asked to end, by the end of this pipe.
fn stayer() -> i32 {
    // SAFETY: the child makes plain calls only.
    fork(|| {
        loop {
            unsafe { libc::pause() };
        }
    })
}

/// Ends a child.
fn end(child: i32) {
    // SAFETY: plain integers; our own child.
    check(unsafe { libc::kill(child, libc::SIGKILL) }).unwrap();
    wait(child).unwrap();
}

fn proc_files(stage: Stage) {
    let child = stayer();
    let dead = stayer();
    let open = |path: String| File::open(path).unwrap();
    let mut own = open("/proc/self/status".into());
    let maps = open("/proc/self/maps".into());
    let folder = open("/proc/self/fdinfo".into());
    let thread = open("/proc/thread-self/comm".into());
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let of_child = open(format!("/proc/{child}/stat"));
    let of_dead = open(format!("/proc/{dead}/stat"));
    let dead_folder = open(format!("/proc/{dead}"));
    let host = open("/proc/sys/kernel/ostype".into());
    end(dead);
    let value = Box::new(4711_u64);
    // Of dead processes there is only what any dead process has, not the number in the name.
    let names = [&of_dead, &dead_folder].map(|file| format!("fd {}", file.as_raw_fd()));
    stage.serve_except(&names.each_ref().map(String::as_str), move |round| {
        let mut status = String::new();
        own.read_to_string(&mut status).map_err(words)?;
        own.seek(SeekFrom::Start(0)).map_err(words)?;
        // SAFETY: no arguments.
        let pid = unsafe { libc::getpid() };
        let line = status.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap_or_default().trim();
        verify!(line == pid.to_string(), "the own status is that of {line}, not of {pid}");
        let mut bytes = [0; 4096];
        let count = maps.read_at(&mut bytes, 0).map_err(words)?;
        let first = String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned();
        let now = fs::read_to_string("/proc/self/maps").map_err(words)?;
        verify!(now.starts_with(&first) && !first.is_empty(), "the own maps begin with {first:?}");
        let inside = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd())).map_err(words)?.count();
        verify!(inside > 8, "the folder of descriptors has {inside} entries");
        let count = thread.read_at(&mut bytes, 0).map_err(words)?;
        let name = fs::read("/proc/thread-self/comm").map_err(words)?;
        verify!(bytes[..count] == name, "the name of the thread");
        memory
            .write_all_at(&u64::from(round).to_ne_bytes(), std::ptr::from_ref(&*value) as u64)
            .map_err(words)?;
        // SAFETY: a live box.
        let found = unsafe { std::ptr::from_ref(&*value).read_volatile() };
        verify!(found == u64::from(round), "the own memory, written by /proc/self/mem, holds {found}");
        let count = of_child.read_at(&mut bytes, 0).map_err(words)?;
        let stat = String::from_utf8_lossy(&bytes[..count]).into_owned();
        verify!(stat.starts_with(&format!("{child} (")), "the child's stat is {stat:?}");
        let error = of_dead.read_at(&mut bytes, 0).err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::ESRCH), "the stat of a dead process gives {error:?}");
        let gone = format!("/proc/self/fd/{}/stat", dead_folder.as_raw_fd());
        verify!(File::open(gone).is_err(), "the folder of a dead process has a stat");
        let count = host.read_at(&mut bytes, 0).map_err(words)?;
        verify!(bytes[..count] == *b"Linux\n", "the name of the system");
        Ok(())
    });
}

/// Sends nothing: tells whether the process of a pidfd is there.
fn there(pidfd: &File) -> Option<i32> {
    // SAFETY: plain integers, no details.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, 0, 0) };
    if result == 0 { None } else { std::io::Error::last_os_error().raw_os_error() }
}

/// Whether a pidfd tells the end of its process.
fn tells_end(pidfd: &File) -> bool {
    let mut polled = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let count = unsafe { libc::poll(&raw mut polled, 1, 0) };
    count == 1 && polled.revents & libc::POLLIN != 0
}

fn pidfds(stage: Stage) {
    // SAFETY: plain integers.
    let open = |pid: i32, flags: u32| file(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) });
    let own = open(unsafe { libc::getpid() }, libc::PIDFD_NONBLOCK);
    let [child, zombie, dead] = [(); 3].map(|()| stayer());
    let [of_child, again, of_zombie, of_dead] = [child, child, zombie, dead].map(|pid| open(pid, 0));
    end(dead);
    // SAFETY: plain integers, and room for what is told.
    unsafe {
        check(libc::kill(zombie, libc::SIGKILL)).unwrap();
        let mut told: libc::siginfo_t = std::mem::zeroed();
        check(libc::waitid(libc::P_PID, zombie as u32, &raw mut told, libc::WEXITED | libc::WNOWAIT))
            .unwrap();
    }
    let set = file(unsafe { libc::epoll_create1(0) });
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
    check(unsafe {
        libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, of_child.as_raw_fd(), &raw mut event)
    })
    .unwrap();
    let mut told = false;
    let mut opened = Some(of_child);
    stage.serve(move |round| {
        verify!(there(&own).is_none() && !tells_end(&own), "the own pidfd: {:?}", there(&own));
        // SAFETY: a getter.
        let flags = unsafe { libc::fcntl(own.as_raw_fd(), libc::F_GETFL) };
        verify!(flags & libc::O_NONBLOCK != 0, "the flags of the own pidfd: {flags:o}");
        let gone = there(&of_dead);
        verify!(gone == Some(libc::ESRCH), "the pidfd of a dead process says {gone:?}");
        verify!(tells_end(&of_dead), "the pidfd of a dead process does not tell its end");
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        // SAFETY: room for two events.
        let ready = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), 2, 0) };
        if !told {
            verify!(tells_end(&of_zombie), "the pidfd of a zombie does not tell its end");
            verify!(there(&again).is_none() && !tells_end(&again) && ready == 0, "the child's pidfd");
        }
        if round == 3 && !told {
            told = true;
            wait(zombie).map_err(words)?;
            // SAFETY: plain integers; a signal to our own child.
            let result =
                unsafe { libc::syscall(libc::SYS_pidfd_send_signal, again.as_raw_fd(), libc::SIGKILL, 0, 0) };
            verify!(result == 0, "a signal by pidfd: {}", std::io::Error::last_os_error());
            let status = wait(child).map_err(words)?;
            verify!(libc::WTERMSIG(status) == libc::SIGKILL, "the child's end: {status:x}");
            // SAFETY: as above.
            let ready = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), 2, 0) };
            verify!(ready == 1, "the set does not tell the child's end");
            opened.take();
        }
        Ok(())
    });
}

fn namespaces(stage: Stage) {
    let child = stayer();
    let names = ["net", "uts", "ipc", "mnt", "pid", "user", "cgroup", "time", "pid_for_children"];
    let opened = names.map(|name| File::open(format!("/proc/self/ns/{name}")).unwrap());
    let of_child = File::open(format!("/proc/{child}/ns/net")).unwrap();
    // Kept alive by a mount point of its own elsewhere, this is how a namespace is passed on: by path only.
    let path_only = {
        let path = CString::new("/proc/self/ns/uts").unwrap();
        // SAFETY: a path that ends with NUL.
        file(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })
    };
    stage.serve(move |_| {
        for (name, opened) in names.iter().zip(&opened).chain([(&"net", &of_child), (&"uts", &path_only)]) {
            let found = opened.metadata().map_err(words)?;
            let now = fs::metadata(format!("/proc/self/ns/{name}")).map_err(words)?;
            verify!(
                (found.dev(), found.ino()) == (now.dev(), now.ino()),
                "the {name} namespace is another one"
            );
        }
        Ok(())
    });
}

fn sealed(stage: Stage) {
    let create = |name: &std::ffi::CStr, flags: u32| {
        // SAFETY: a name that ends with NUL.
        file(unsafe { libc::memfd_create(name.as_ptr(), flags) })
    };
    let mut closed = create(c"closed for ever", libc::MFD_ALLOW_SEALING);
    closed.write_all(b"nobody changes this").unwrap();
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(closed.as_raw_fd(), libc::F_ADD_SEALS, seals) }).unwrap();
    let open = create(c"open", libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC);
    let unsealable = create(c"", 0);
    let not_run = create(c"not to be run", libc::MFD_NOEXEC_SEAL);
    let all = [&closed, &open, &unsealable, &not_run].map(|file| file.as_raw_fd());
    // SAFETY: a getter.
    let has = move || all.map(|number| unsafe { libc::fcntl(number, libc::F_GET_SEALS) });
    let before = has();
    let mode = |file: &File| file.metadata().map_or(0, |found| found.mode() & 0o7777);
    let modes = [&closed, &open, &unsealable, &not_run].map(mode);
    let reader = File::open(format!("/proc/self/fd/{}", closed.as_raw_fd())).unwrap();
    stage.serve(move |_| {
        verify!(has() == before, "seals: {before:x?} became {:x?}", has());
        let now = [&closed, &open, &unsealable, &not_run].map(mode);
        verify!(now == modes, "modes: {modes:?} became {now:?}");
        let error = closed.write_all(b"!").err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::EPERM), "a sealed file can be written: {error:?}");
        let mut bytes = [0; 19];
        reader.read_exact_at(&mut bytes, 0).map_err(words)?;
        verify!(&bytes == b"nobody changes this", "a sealed file holds {bytes:?}");
        Ok(())
    });
}

/// The highest numbers that the limit allows.
fn far_numbers(stage: Stage) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }).unwrap();
    // Room for more would only cost time.
    limit.rlim_max = limit.rlim_max.min(4096);
    limit.rlim_cur = limit.rlim_max;
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).unwrap();
    let ends = pipe(libc::O_CLOEXEC);
    let last = limit.rlim_cur as i32 - 1;
    // SAFETY: our own descriptors.
    for number in [last, last - 1, last - 3, 1000] {
        check(unsafe { libc::dup3(ends[1], number, if number == last { libc::O_CLOEXEC } else { 0 }) })
            .unwrap();
    }
    unsafe { libc::close(ends[1]) };
    stage.serve(move |_| {
        for number in [last, last - 1, last - 3, 1000] {
            put(number, &number.to_ne_bytes()).map_err(words)?;
            let found = take(ends[0], 4).map_err(words)?;
            verify!(found == number.to_ne_bytes(), "descriptor {number} gave {found:?}");
        }
        // SAFETY: a getter.
        let flags = [last, last - 1].map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) });
        verify!(flags == [libc::FD_CLOEXEC, 0], "close-on-exec: {flags:?}");
        let beyond = check(unsafe { libc::dup2(ends[0], last + 1) });
        verify!(beyond.is_err(), "the limit is another one");
        Ok(())
    });
}

/// The lease that a description has.
fn lease(file: &File) -> i32 {
    // SAFETY: a getter.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) }
}

/// Asks for a lease.
fn take_lease(file: &File, sort: i32) {
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, sort) }).unwrap();
}

/// Leases of both sorts; somebody who opens such a file gets `EWOULDBLOCK`, and the holder a signal.
fn leases(stage: Stage) {
    let [read, write] = ["read", "write"].map(|name| stage.path(name));
    fs::write(&read, "leased").unwrap();
    fs::write(&write, "leased").unwrap();
    crate::stage::kernel::block(&[libc::SIGIO, libc::SIGUSR1]);
    let reader = File::open(&read).unwrap();
    let writer = File::options().read(true).write(true).open(&write).unwrap();
    // SAFETY: plain integers.
    check(unsafe {
        libc::fcntl(writer.as_raw_fd(), 10 /* F_SETSIG */, libc::SIGUSR1)
    })
    .unwrap();
    take_lease(&reader, libc::F_RDLCK);
    take_lease(&writer, libc::F_WRLCK);
    stage.serve(move |round| {
        verify!(lease(&reader) == libc::F_RDLCK, "the lease for reading is {}", lease(&reader));
        verify!(lease(&writer) == libc::F_WRLCK, "the lease for writing is {}", lease(&writer));
        if round != 3 {
            return Ok(());
        }
        for (path, held, number, options) in [
            (&read, &reader, libc::SIGIO, File::options().write(true).clone()),
            (&write, &writer, libc::SIGUSR1, File::options().read(true).clone()),
        ] {
            let mut options = options;
            let refused = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK)
                .open(path)
                .err()
                .and_then(|error| error.raw_os_error());
            verify!(refused == Some(libc::EWOULDBLOCK), "a leased file is opened: {refused:?}");
            let set = crate::stage::kernel::signal_set(&[libc::SIGIO, libc::SIGUSR1]);
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: valid places.
            let told = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) };
            verify!(told == number, "the holder is told by {told}");
            // SAFETY: plain integers.
            check(unsafe { libc::fcntl(held.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })
                .map_err(words)?;
            verify!(options.open(path).is_ok(), "the file that was leased can't be opened");
            take_lease(held, if number == libc::SIGIO { libc::F_RDLCK } else { libc::F_WRLCK });
        }
        Ok(())
    });
}

/// Holds a lease that a child wants to break.
fn lease_breaks(stage: Stage) {
    let path = stage.path("leased");
    fs::write(&path, "").unwrap();
    crate::stage::kernel::block(&[libc::SIGIO]);
    let held = File::options().read(true).write(true).open(&path).unwrap();
    take_lease(&held, libc::F_WRLCK);
    let mut other = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(other.read(true), libc::O_NONBLOCK);
    assert!(other.open(&path).is_err());
    stage.serve_except(&["pending"], move |_| {
        verify!(lease(&held) == libc::F_RDLCK, "the lease that is being broken is {}", lease(&held));
        Ok(())
    });
}

fn broken_lease() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("lease-breaks", &[])?;
    case.ask()?;
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("being broken"), "the lease is not named: {}", ran.describe());
        ensure!(!image.exists(), "a refused dump left an image: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}

/// A lock that came over a fork, and two processes that wait for locks.
fn lock_waiters(stage: Stage) {
    let open = |name: &str| {
        File::options().read(true).write(true).create(true).truncate(false).open(stage.path(name)).unwrap()
    };
    let [shared, posix, whole] = ["shared", "posix", "whole"].map(open);
    // SAFETY: our own descriptors, here and below.
    check(unsafe { libc::flock(shared.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    check(unsafe { libc::flock(whole.as_raw_fd(), libc::LOCK_EX) }).unwrap();
    let record = |kind: i32| libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    let lock = record(libc::F_WRLCK);
    check(unsafe { libc::fcntl(posix.as_raw_fd(), libc::F_SETLK, &raw const lock) }).unwrap();
    let holder = stayer();
    let told = pipe(0);
    let path = stage.path("whole");
    let waiters = [0, 1].map(|which| {
        // Not another descriptor: closing that would give the lock up.
        let posix = posix.as_raw_fd();
        let path = path.clone();
        fork(move || {
            // An unlocked description of its own; a POSIX lock is the process's anyway.
            let result = if which == 0 {
                let lock = record(libc::F_WRLCK);
                unsafe { libc::fcntl(posix, libc::F_SETLKW, &raw const lock) }
            } else {
                let own = File::open(path).unwrap();
                unsafe { libc::flock(own.as_raw_fd(), libc::LOCK_EX) }
            };
            let text = [which, u8::try_from(result).unwrap_or(9)];
            if put(told[1], &text).is_err() {
                return 1;
            }
            loop {
                unsafe { libc::pause() };
            }
        })
    });
    // Both wait in the kernel before anybody looks.
    for pid in waiters {
        let call = || fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        while !call().starts_with("72 ") && !call().starts_with("73 ") {
            std::thread::yield_now();
        }
    }
    let own = open("shared");
    stage.serve(move |round| {
        let free = |file: &File| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 };
        if round == 1 {
            verify!(!free(&own), "a lock that a child has too is free");
        }
        let mut polled = libc::pollfd { fd: told[0], events: libc::POLLIN, revents: 0 };
        let count = unsafe { libc::poll(&raw mut polled, 1, 0) };
        verify!(round > 3 || count == 0, "somebody who waits for a lock has it");
        if round == 2 {
            // The lock is held by the child alone.
            drop(shared.try_clone());
            verify!(!free(&own), "the lock that came over a fork is free");
        }
        if round == 3 {
            let unlock = record(libc::F_UNLCK);
            unsafe { libc::fcntl(posix.as_raw_fd(), libc::F_SETLK, &raw const unlock) };
            unsafe { libc::flock(whole.as_raw_fd(), libc::LOCK_UN) };
            let mut found = [take(told[0], 2).map_err(words)?, take(told[0], 2).map_err(words)?];
            found.sort();
            verify!(found == [[0, 0], [1, 0]], "who waited for locks got {found:?}");
            verify!(holder > 0, "the child");
        }
        Ok(())
    });
}

/// Files on a file system that was made read-only after they were opened, one of them removed before.
fn read_only(stage: Stage) {
    let folder = stage.path("mount");
    let named = File::open(folder.join("named")).unwrap();
    let removed = File::open(folder.join("removed")).unwrap();
    let opened = File::open(&folder).unwrap();
    fs::remove_file(stage.path("below/removed")).unwrap();
    stage.serve(move |_| {
        let mut bytes = [0; 5];
        for file in [&named, &removed] {
            file.read_exact_at(&mut bytes, 0).map_err(words)?;
            verify!(&bytes == b"there", "a file of a read-only file system holds {bytes:?}");
        }
        let refused = fs::write(folder.join("new"), "").err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EROFS), "writing to a read-only file system: {refused:?}");
        let there = opened.metadata().map_err(words)?.ino() == fs::metadata(&folder).map_err(words)?.ino();
        verify!(there, "the folder is another one");
        Ok(())
    });
}

/// A process that keeps a mount namespace with a read-only view of a folder; everything of the case runs in it.
fn read_only_file_system() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    for folder in ["below", "mount"] {
        fs::create_dir(case.path(folder))?;
    }
    fs::write(case.path("below/named"), "there")?;
    fs::write(case.path("below/removed"), "there")?;
    let [below, mount] =
        ["below", "mount"].map(|name| CString::new(text(&case.path(name))).unwrap_or_default());
    let mut keeper = case.command("/bin/sleep".as_ref(), "keeper")?;
    keeper.arg("1000");
    // SAFETY: system calls only, with strings that were made before the fork.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut keeper, move || {
            let none = std::ptr::null();
            let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            let good = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
                && libc::mount(below.as_ptr(), mount.as_ptr(), none, libc::MS_BIND, none.cast()) == 0
                && libc::mount(none, mount.as_ptr(), none, read_only, none.cast()) == 0;
            if good { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let keeper = spawn(&mut keeper)?;
    let nsenter = crate::harness::programs::need_program("nsenter")?;
    for (name, field) in [("enter-vckpt", true), ("enter-fixtures", false)] {
        let program = if field { &mut case.vckpt } else { &mut case.fixtures };
        let script = format!(
            "#!/bin/sh\nexec '{}' --mount=/proc/{keeper}/ns/mnt --wdns=\"$PWD\" '{}' \"$@\"\n",
            text(&nsenter),
            text(program)
        );
        let path = case.folder.join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        *program = path;
    }
    let mut root = case.start("read-only", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    if !alive(keeper) {
        return fail("the keeper of the mount namespace has ended");
    }
    signal(keeper, libc::SIGKILL)?;
    wait_exit(keeper, LIMIT)?;
    case.finish(root)
}
