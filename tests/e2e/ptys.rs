//! Pseudo-terminals with both ends in the tree: modes, sizes, what waits in both directions, ends that are closed,
//! packet mode, sessions with jobs.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic};
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "ptys",
    fixtures: &[("pty-data", pty_data), ("pty-closed", pty_closed), ("pty-session", pty_session)],
    cases: &[
        ("modes_sizes_and_waiting_data", || two_rounds("pty-data")),
        ("left_running_nothing_is_taken", left_running),
        ("closed_ends", || two_rounds("pty-closed")),
        ("session_with_jobs", || two_rounds("pty-session")),
    ],
};

/// Turns an I/O error into the text of a verification.
fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// A master, and the number of its slave.
fn master(flags: i32) -> (i32, i32) {
    // SAFETY: a path that ends with NUL; then our own descriptor and a valid place.
    unsafe {
        let master = check(libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY | flags)).unwrap();
        check(libc::unlockpt(master)).unwrap();
        let mut number = 0_i32;
        check(libc::ioctl(master, libc::TIOCGPTN, &raw mut number)).unwrap();
        (master, number)
    }
}

/// Opens a slave by its name.
fn slave(number: i32, flags: i32) -> i32 {
    let path = std::ffi::CString::new(format!("/dev/pts/{number}")).unwrap();
    // SAFETY: a path that ends with NUL.
    check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | flags) }).unwrap()
}

/// The modes of a terminal.
fn modes(terminal: i32) -> libc::termios {
    // SAFETY: an all-zero termios is one, and a valid place.
    unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        check(libc::tcgetattr(terminal, &raw mut modes)).unwrap();
        modes
    }
}

fn set_modes(terminal: i32, modes: &libc::termios) {
    // SAFETY: a valid structure.
    check(unsafe { libc::tcsetattr(terminal, libc::TCSANOW, modes) }).unwrap();
}

/// All modes as text, to be compared.
fn described(terminal: i32) -> String {
    let modes = modes(terminal);
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    let mut packets = 0_i32;
    // SAFETY: valid places; the second is refused by slaves.
    unsafe {
        check(libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size)).unwrap();
        libc::ioctl(terminal, 0x8004_5438, &raw mut packets);
    }
    format!(
        "{:x} {:x} {:x} {:x} {:?} {} {} {} {} {packets}",
        modes.c_iflag,
        modes.c_oflag,
        modes.c_cflag,
        modes.c_lflag,
        modes.c_cc,
        size.ws_row,
        size.ws_col,
        size.ws_xpixel,
        size.ws_ypixel
    )
}

/// Waits until there are as many bytes to be read: what is written goes through a queue of the kernel's.
fn arrive(terminal: i32, wanted: i32) {
    let mut found = 0_i32;
    while found < wanted {
        // SAFETY: a valid place.
        check(unsafe { libc::ioctl(terminal, libc::FIONREAD, &raw mut found) }).unwrap();
        std::thread::yield_now();
    }
}

fn pty_data(stage: Stage) {
    // Lines, echoed; the second is typed half.
    let (cooked, number) = master(libc::O_NONBLOCK);
    let lines = slave(number, libc::O_NONBLOCK);
    let size = libc::winsize { ws_row: 33, ws_col: 101, ws_xpixel: 7, ws_ypixel: 9 };
    // SAFETY: a valid structure.
    check(unsafe { libc::ioctl(cooked, libc::TIOCSWINSZ, &raw const size) }).unwrap();
    let mut changed = modes(lines);
    changed.c_cc[libc::VERASE] = b'#';
    changed.c_cc[libc::VINTR] = b'%';
    set_modes(lines, &changed);
    // Bytes, with much on the way.
    let (plain, other) = master(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let bytes = [slave(other, libc::O_NONBLOCK), slave(other, libc::O_NONBLOCK)];
    let mut raw = modes(bytes[0]);
    // SAFETY: a valid structure.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    set_modes(bytes[0], &raw);
    // In packets.
    let (packets, third) = master(libc::O_NONBLOCK);
    let packed = slave(third, 0);
    let on = 1_i32;
    // SAFETY: a valid place.
    check(unsafe { libc::ioctl(packets, libc::TIOCPKT, &raw const on) }).unwrap();
    let every: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let load = {
        let every = every.clone();
        move || {
            put(cooked, b"first line\nhalf").unwrap();
            // The echo comes from a queue of the kernel's, too.
            arrive(cooked, 16);
            put(lines, b"output\n").unwrap();
            put(plain, &every).unwrap();
            put(bytes[1], &every).unwrap();
            put(packed, b"in a packet").unwrap();
            arrive(cooked, 24);
            arrive(lines, 11);
            arrive(plain, 3000);
            arrive(bytes[0], 3000);
            arrive(packets, 11);
        }
    };
    load();
    let all = [cooked, lines, plain, bytes[0], packets, packed];
    let before = all.map(described);
    stage.serve(move |_| {
        verify!(all.map(described) == before, "modes: {before:?} became {:?}", all.map(described));
        let found = take(lines, 4000).map_err(words)?;
        verify!(found == b"first line\n", "the line is {:?}", String::from_utf8_lossy(&found));
        let none = take(lines, 4000).err().and_then(|error| error.raw_os_error());
        verify!(none == Some(libc::EAGAIN), "half a line can be read: {none:?}");
        // The last character is erased, and the line ended.
        put(cooked, b"#\n").map_err(words)?;
        arrive(lines, 4);
        let found = take(lines, 4000).map_err(words)?;
        verify!(found == b"hal\n", "the other line is {:?}", String::from_utf8_lossy(&found));
        let wanted = b"first line\r\nhalfoutput\r\n\x08 \x08\r\n";
        arrive(cooked, wanted.len() as i32);
        let found = take(cooked, 4000).map_err(words)?;
        verify!(found == wanted, "the output is {:?}", String::from_utf8_lossy(&found));
        for end in [plain, bytes[0]] {
            let found = take(end, 4000).map_err(words)?;
            verify!(found == every, "{} bytes came through, or others", found.len());
        }
        let found = take(packets, 100).map_err(words)?;
        verify!(found == b"\0in a packet", "the packet is {:?}", String::from_utf8_lossy(&found));
        load();
        Ok(())
    });
}

/// What waits is taken to be looked at, and is there again when the program goes on.
fn left_running() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("pty-data", &[])?;
    for _ in 0..3 {
        case.dump_with(root, &["--leave-running", "--force"])?;
        case.ask()?;
    }
    case.finish(root)
}

fn pty_closed(stage: Stage) {
    let (first, number) = master(0);
    let widowed = slave(number, libc::O_NONBLOCK);
    // SAFETY: our own descriptor.
    unsafe { libc::close(first) };
    let (abandoned, number) = master(libc::O_NONBLOCK);
    let closed = slave(number, 0);
    put(closed, b"last words").unwrap();
    arrive(abandoned, 10);
    unsafe { libc::close(closed) };
    let (fresh, number) = master(libc::O_NONBLOCK);
    let poll = |end: i32| {
        let mut polled = libc::pollfd { fd: end, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut polled, 1, 0) };
        polled.revents
    };
    let before = [widowed, abandoned, fresh].map(poll);
    // SAFETY: a path that ends with NUL.
    let locked = check(unsafe { libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY) }).unwrap();
    let mut reads = 0;
    stage.serve(move |round| {
        let end = take(widowed, 8).map_err(words)?;
        verify!(end.is_empty(), "a terminal that was hung up gives {end:?}");
        let error = put(widowed, b"x").err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::EIO), "writing to a terminal that was hung up: {error:?}");
        if round < 3 {
            let now = [widowed, abandoned, fresh].map(poll);
            verify!(now == before, "{before:x?} became {now:x?}");
        } else if round == 3 {
            let found = take(abandoned, 100).map_err(words)?;
            verify!(found == b"last words", "the last words: {:?}", String::from_utf8_lossy(&found));
            let end = take(abandoned, 100).err().and_then(|error| error.raw_os_error());
            verify!(end == Some(libc::EIO), "behind the last words: {end:?}");
            // Nobody has ever opened the slave of this one.
            let none = take(fresh, 8).err().and_then(|error| error.raw_os_error());
            verify!(none == Some(libc::EAGAIN), "a fresh master gives {none:?}");
            let opened = slave(number, 0);
            put(opened, b"now").map_err(words)?;
            arrive(fresh, 3);
            verify!(take(fresh, 8).map_err(words)? == b"now", "a slave that is opened late");
            reads += 1;
        }
        let mut lock = 0_i32;
        // SAFETY: a valid place.
        check(unsafe { libc::ioctl(locked, 0x8004_5439, &raw mut lock) }).map_err(words)?;
        verify!(lock == 1, "the lock is gone");
        verify!(reads < 2, "read twice");
        Ok(())
    });
}

/// Signals that the foreground job of the session got.
static INTERRUPTS: AtomicI32 = AtomicI32::new(0);

extern "C" fn interrupted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTS.fetch_add(1, Ordering::SeqCst);
}

/// A session with a leader and a job in the foreground, on a terminal whose master two processes share.
fn pty_session(stage: Stage) {
    let (master, number) = master(0);
    let answers = pipe(0);
    let asks = pipe(0);
    let told = [answers[1], asks[0]];
    let leader = fork(move || {
        // SAFETY: our own descriptors and processes, here and below.
        unsafe {
            libc::setsid();
            libc::close(master);
        }
        let path = std::ffi::CString::new(format!("/dev/pts/{number}")).unwrap();
        let terminal = check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) }).unwrap();
        let current = check(unsafe { libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR) }).unwrap();
        crate::stage::kernel::block(&[libc::SIGTTOU]);
        let job = fork(|| {
            unsafe { libc::setpgid(0, 0) };
            crate::stage::kernel::handle(libc::SIGINT, interrupted, libc::SA_RESTART, &[]);
            while unsafe { libc::tcgetpgrp(terminal) } != unsafe { libc::getpgrp() } {
                std::thread::yield_now();
            }
            if put(told[0], b"+").is_err() {
                return 1;
            }
            loop {
                // A line from the terminal, the answer into the pipe.
                let Ok(line) = take(current, 100) else { return 2 };
                let facts = format!(
                    "{} {} {} {}",
                    String::from_utf8_lossy(&line).trim(),
                    unsafe { libc::tcgetpgrp(current) == libc::getpgrp() },
                    unsafe { libc::tcgetsid(terminal) == libc::getsid(0) },
                    INTERRUPTS.load(Ordering::SeqCst)
                );
                if put(told[0], facts.as_bytes()).is_err() {
                    return 3;
                }
            }
        });
        unsafe { libc::setpgid(job, job) };
        check(unsafe { libc::tcsetpgrp(terminal, job) }).unwrap();
        while let Ok([_]) = take(told[1], 1).as_deref() {
            // Only a session's own terminal can be opened by this name.
            let good = fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/tty")
                .is_ok_and(|tty| unsafe { libc::tcgetpgrp(tty.as_raw_fd()) == job });
            if put(told[0], if good { b"good" } else { b"bad!" }).is_err() {
                return 4;
            }
        }
        5
    });
    assert!(leader > 0);
    // The other process with the master.
    fork(|| {
        loop {
            unsafe { libc::pause() };
        }
    });
    for end in told {
        unsafe { libc::close(end) };
    }
    assert_eq!(take(answers[0], 1).unwrap(), b"+");
    let mut interrupts = 0;
    stage.serve(move |round| {
        put(asks[1], b"?").map_err(words)?;
        let found = take(answers[0], 100).map_err(words)?;
        verify!(found == b"good", "the leader says {:?}", String::from_utf8_lossy(&found));
        for _ in 0..2 {
            put(master, format!("line {round}\n").as_bytes()).map_err(words)?;
            let found = String::from_utf8_lossy(&take(answers[0], 100).map_err(words)?).into_owned();
            let wanted = format!("line {round} true true {interrupts}");
            verify!(found == wanted, "the job says {found:?}, not {wanted:?}");
            // Ctrl-C for the next line.
            put(master, b"\x03").map_err(words)?;
            interrupts += 1;
        }
        Ok(())
    });
}
