//! Signals of descriptors: who gets them, which ones, and what they tell.

use std::io::Write as _;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::net::UnixStream;

use crate::harness::case::{Case, all_left_running, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure};
use crate::shapes::new_group;
use crate::stage::kernel::{block, check, fork, pipe, put, signal_set, take};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "owners",
    fixtures: &[
        ("objects", objects),
        ("owners", owners),
        ("ended-group", ended_group),
        ("foreign-owner", foreign_owner),
    ],
    cases: &[
        ("signals_of_each_object", || two_rounds("objects")),
        ("threads_processes_and_groups", || two_rounds("owners")),
        ("group_that_outlived_its_leader", || two_rounds("ended-group")),
        ("owner_outside_is_reported", owner_outside_is_reported),
        ("left_running", || all_left_running(&["objects", "owners", "ended-group"])),
    ],
};

const SIGNAL: i32 = 50;
const SET_SIGNAL: i32 = 10;
const GET_SIGNAL: i32 = 11;
const SET_OWNER: i32 = 15;
const GET_OWNER: i32 = 16;
/// `struct f_owner_ex` begins with one of these.
const THREAD: i32 = 0;
const PROCESS: i32 = 1;
const GROUP: i32 = 2;

/// Lets a descriptor send this signal (0: the ordinary one, which tells less) to somebody.
fn send(descriptor: i32, owner: [i32; 2], signal: i32) {
    // SAFETY: plain integers, and a structure of the kernel's layout.
    unsafe {
        check(libc::fcntl(descriptor, SET_OWNER, owner.as_ptr())).unwrap();
        check(libc::fcntl(descriptor, SET_SIGNAL, signal)).unwrap();
        let flags = check(libc::fcntl(descriptor, libc::F_GETFL)).unwrap();
        check(libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_ASYNC)).unwrap();
    }
}

/// (owner, signal, whether it sends) as the kernel tells it.
fn settings(descriptor: i32) -> ([i32; 2], i32, bool) {
    let mut owner = [0; 2];
    // SAFETY: as above.
    unsafe {
        check(libc::fcntl(descriptor, GET_OWNER, owner.as_mut_ptr())).unwrap();
        let flags = check(libc::fcntl(descriptor, libc::F_GETFL)).unwrap();
        (owner, libc::fcntl(descriptor, GET_SIGNAL), flags & libc::O_ASYNC != 0)
    }
}

/// What waits of these signals: (number, code, descriptor, event).
fn told(signals: &[i32]) -> Vec<(i32, i32, i32, i64)> {
    let set = signal_set(signals);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut all = Vec::new();
    loop {
        // SAFETY: valid places; the band and the descriptor follow each other where the kernel has them.
        unsafe {
            let mut information: libc::siginfo_t = std::mem::zeroed();
            if libc::sigtimedwait(&raw const set, &raw mut information, &raw const at_once) < 0 {
                return all;
            }
            let words = (&raw const information).cast::<i64>();
            let descriptor = words.add(3).read() as i32;
            all.push((information.si_signo, information.si_code, descriptor, words.add(2).read()));
        }
    }
}

/// A readable descriptor: `POLL_IN` with its event.
fn readable(signal: i32, descriptor: i32) -> (i32, i32, i32, i64) {
    (signal, 1, descriptor, i64::from(libc::POLLIN | libc::POLLRDNORM))
}

/// A pipe, a unix socket, a UDP socket, a descriptor that has a copy with a lower number, one that sends the ordinary
/// signal, and one that would send if it was let: each is written to before and after a restore.
fn objects(stage: Stage) {
    block(&[SIGNAL, libc::SIGIO]);
    let own = [PROCESS, std::process::id() as i32];
    let [read, write] = pipe(0);
    let (one, other) = UnixStream::pair().unwrap();
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let sender = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let silent = pipe(0);
    let plain = pipe(0);
    let datagrams = socket.into_raw_fd();
    for descriptor in [read, one.as_raw_fd(), datagrams] {
        send(descriptor, own, SIGNAL);
    }
    send(plain[0], own, 0);
    send(silent[0], own, SIGNAL);
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(silent[0], libc::F_SETFL, 0) }).unwrap();
    let all = [read, one.as_raw_fd(), datagrams, plain[0], silent[0]];
    let before = all.map(settings);
    let one = one.as_raw_fd();
    let write_all = move || -> Verdict {
        put(write, b"x").map_err(|error| error.to_string())?;
        (&other).write_all(b"x").map_err(|error| error.to_string())?;
        sender.send_to(b"x", address).map_err(|error| error.to_string())?;
        put(plain[1], b"x").map_err(|error| error.to_string())?;
        put(silent[1], b"x").map_err(|error| error.to_string())
    };
    let expected = [readable(SIGNAL, read), readable(SIGNAL, one), readable(SIGNAL, datagrams)];
    write_all().unwrap();
    stage.serve(move |number| {
        verify!(all.map(settings) == before, "{before:?} became {:?}", all.map(settings));
        for time in ["before", "after"] {
            let found = told(&[SIGNAL]);
            verify!(found == expected, "written {time} question {number}: {found:?}, not {expected:?}");
            let found = told(&[libc::SIGIO]);
            let codes: Vec<(i32, i32)> = found.iter().map(|&(signal, code, _, _)| (signal, code)).collect();
            verify!(codes == [(libc::SIGIO, 0x80)], "the ordinary signal: {found:?}");
            for descriptor in all {
                let bytes = take(descriptor, 8).map_err(|error| error.to_string())?;
                verify!(bytes == b"x", "{bytes:?} from {descriptor}");
            }
            verify!(told(&[SIGNAL, libc::SIGIO]).is_empty(), "reading sends a signal");
            write_all()?;
        }
        Ok(())
    });
}

/// A listener for signals: answers each byte with what waits for it.
struct Listener {
    ask: [i32; 2],
    answer: [i32; 2],
}

impl Listener {
    fn new() -> Self {
        Self { ask: pipe(0), answer: pipe(0) }
    }

    fn serve(&self) -> i32 {
        // SAFETY: plain integers.
        put(self.answer[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
        while take(self.ask[0], 1).is_ok_and(|bytes| bytes == b"?") {
            put(self.answer[1], format!("{:?}", told(&[SIGNAL])).as_bytes()).unwrap();
        }
        0
    }

    /// Its ID, which it says first.
    fn tid(&self) -> i32 {
        i32::from_ne_bytes(take(self.answer[0], 4).unwrap().try_into().unwrap())
    }

    fn told(&self) -> Result<String, String> {
        put(self.ask[1], b"?").map_err(|error| error.to_string())?;
        let answer = take(self.answer[0], 4096).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Pipes whose signals go to another thread, to another process, and to a group of two, of which one is the leader.
fn owners(stage: Stage) {
    block(&[SIGNAL]);
    let listeners = [(); 4].map(|()| &*Box::leak(Box::new(Listener::new())));
    let process = fork(|| listeners[1].serve());
    let leader = fork(|| {
        new_group(0);
        listeners[2].serve()
    });
    assert_eq!(listeners[2].tid(), leader);
    fork(|| {
        new_group(leader);
        listeners[3].serve()
    });
    listeners[1].tid();
    listeners[3].tid();
    let listener = listeners[0];
    thread(|| listener.serve());
    let tid = listener.tid();
    let pipes = [(); 3].map(|()| pipe(0));
    for (pipe, owner) in pipes.into_iter().zip([[THREAD, tid], [PROCESS, process], [GROUP, leader]]) {
        send(pipe[0], owner, SIGNAL);
    }
    let before = pipes.map(|pipe| settings(pipe[0]));
    stage.serve(move |_| {
        let now = pipes.map(|pipe| settings(pipe[0]));
        verify!(now == before, "{before:?} became {now:?}");
        for pipe in pipes {
            put(pipe[1], b"x").map_err(|error| error.to_string())?;
        }
        for (listener, pipe) in listeners.into_iter().zip([0, 1, 2, 2]) {
            let expected = format!("{:?}", [readable(SIGNAL, pipes[pipe][0])]);
            let found = listener.told()?;
            verify!(found == expected, "the owner of pipe {pipe} was told {found}, not {expected}");
        }
        verify!(told(&[SIGNAL]).is_empty(), "the first thread is told too");
        for pipe in pipes {
            take(pipe[0], 8).map_err(|error| error.to_string())?;
        }
        Ok(())
    });
}

/// A pipe whose signals go to a group that has lost its leader.
fn ended_group(stage: Stage) {
    block(&[SIGNAL]);
    // So that the orphan stays in the tree.
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).unwrap();
    let listener = Listener::new();
    let leader = fork(|| {
        new_group(0);
        fork(|| listener.serve());
        0
    });
    crate::stage::kernel::wait(leader).unwrap();
    listener.tid();
    let ends = pipe(0);
    send(ends[0], [GROUP, leader], SIGNAL);
    stage.serve(move |_| {
        let now = settings(ends[0]);
        verify!(now == ([GROUP, leader], SIGNAL, true), "owner, signal, sends: {now:?}");
        put(ends[1], b"x").map_err(|error| error.to_string())?;
        let (found, expected) = (listener.told()?, format!("{:?}", [readable(SIGNAL, ends[0])]));
        verify!(found == expected, "the group was told {found}, not {expected}");
        take(ends[0], 8).map(drop).map_err(|error| error.to_string())
    });
}

/// A pipe whose signals would go to the process that has started this one.
fn foreign_owner(stage: Stage) {
    let ends = pipe(0);
    // SAFETY: as above. It is not told to send any: nobody there expects one.
    unsafe {
        check(libc::fcntl(ends[0], SET_OWNER, [PROCESS, libc::getppid()].as_ptr())).unwrap();
        check(libc::fcntl(ends[0], SET_SIGNAL, SIGNAL)).unwrap();
    }
    stage.serve(move |number| {
        let (owner, signal, _) = settings(ends[0]);
        verify!(signal == SIGNAL && (owner[1] == 0) == (number > 1), "owner {owner:?}, signal {signal}");
        Ok(())
    });
}

fn owner_outside_is_reported() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("foreign-owner", &[])?;
    case.ask()?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.path("owned.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?.good()?;
    let owner = format!("process {} outside of the tree", std::process::id());
    ensure!(ran.stderr.contains(&owner), "{owner:?} is not said: {}", ran.describe());
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}
