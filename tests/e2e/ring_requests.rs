//! io_uring: requests that are under way, what is registered, rings that processes share, and what is refused.

use std::io::Read as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::harness::case::{Case, text, two_rounds, two_rounds_with};
use crate::harness::process::{alive, reap, spawn, until};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::kernel::{fork, pipe, put, take};
use crate::stage::uring::{
    self, ACCEPT, DEFER_TASKRUN, FIXED_FILE, NOP, POLL_ADD, READ, RECV, Request, Ring, SINGLE_ISSUER, TIMEOUT,
};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "io_uring_requests",
    fixtures: &[
        ("ring_of_two", ring_of_two),
        ("ring_registered", registered),
        ("ring_waits", waits),
        ("ring_refused", refused),
        ("ring_of_a_thread", of_a_thread),
    ],
    cases: &[
        ("a_ring_of_two_processes", || with_rings(|| two_rounds("ring_of_two"))),
        ("a_ring_of_a_second_thread", || with_rings(|| two_rounds("ring_of_a_thread"))),
        ("what_is_registered", || with_rings(|| two_rounds("ring_registered"))),
        ("requests_under_way", || with_rings(|| two_rounds_with("ring_waits", &["plain"]))),
        ("requests_of_one_thread_under_way", || with_rings(|| two_rounds_with("ring_waits", &["deferred"]))),
        ("requests_go_on", || with_rings(requests_go_on)),
        ("fio", || with_rings(fio)),
        ("what_can_not_be_kept", || with_rings(what_can_not_be_kept)),
    ],
};

/// How long a program may take.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs a case if the kernel lets us have rings as programs use them today.
fn with_rings(case: fn() -> Outcome) -> Outcome {
    match Ring::new(8, SINGLE_ISSUER | DEFER_TASKRUN) {
        Ok(ring) => {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(ring.descriptor) };
            case()
        }
        Err(error) => skip(format!("io_uring: {error}")),
    }
}

/// Submits a request that does nothing, by whoever has the ring, and takes its completion.
fn one(ring: &mut Ring, data: u64) -> Verdict {
    let [_, tail, head, _] = ring.positions();
    (ring.tail, ring.head) = (tail, head);
    ring.submit(Request { operation: NOP, data, ..Request::default() })?;
    let (found, ..) = ring.wait()?;
    verify!(found == data, "the completion of {found} instead of {data}");
    Ok(())
}

/// A ring that a child has inherited, and another that only the child still has open.
fn ring_of_two(stage: Stage) {
    let mut shared = Ring::new(8, 0).unwrap();
    let others = Ring::new(8, 0).unwrap();
    for data in 0..100 {
        one(&mut shared, data).unwrap();
    }
    let (ask, answer) = (pipe(0), pipe(0));
    let (mut childs, mut left) = (shared.clone(), others.clone());
    fork(move || {
        let mut next = 1000;
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            let done = one(&mut childs, next).and_then(|()| one(&mut left, next));
            next += 1;
            let word = done.map_or_else(|error| error, |()| "done".to_owned());
            if put(answer[1], word.as_bytes()).is_err() {
                return 1;
            }
        }
        0
    });
    // SAFETY: the descriptor is ours; the mapping stays.
    unsafe { libc::close(others.descriptor) };
    let mut next = 0;
    stage.serve(move |_| {
        for _ in 0..20 {
            next += 1;
            one(&mut shared, next)?;
            put(ask[1], b"?").map_err(|error| error.to_string())?;
            let word = take(answer[0], 100).map_err(|error| error.to_string())?;
            verify!(word == b"done", "the child says {}", String::from_utf8_lossy(&word));
        }
        // What the child has done there is seen here.
        let positions = others.positions();
        verify!(positions[0] > 0 && positions[0] == positions[3], "the child's ring is at {positions:?}");
        Ok(())
    });
}

/// A ring that only a second thread may use, and has registered.
fn of_a_thread(stage: Stage) {
    let (ask, answer) = (pipe(0), pipe(0));
    crate::stage::thread(move || {
        let mut ring = Ring::new(8, SINGLE_ISSUER | DEFER_TASKRUN).unwrap();
        let mut numbers = [2_u64, ring.descriptor as u64];
        ring.register(20, &mut numbers, 1).unwrap();
        ring.use_registered(2);
        let mut next = 0;
        loop {
            next += 1;
            let done = one(&mut ring, next).map_or_else(|error| error, |()| "done".to_owned());
            put(answer[1], done.as_bytes()).unwrap();
            take(ask[0], 1).unwrap();
        }
    });
    stage.serve(move |_| {
        let word = take(answer[0], 100).map_err(|error| error.to_string())?;
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        verify!(word == b"done", "the thread says {}", String::from_utf8_lossy(&word));
        Ok(())
    });
}

static mut BUFFER: [u8; 64] = [0; 64];

fn buffer(from: usize) -> u64 {
    (&raw mut BUFFER).addr() as u64 + from as u64
}

/// What requests have read.
fn read(from: usize, length: usize) -> Vec<u8> {
    // SAFETY: whoever asks has seen the completions of the requests that write there.
    let all = unsafe { (&raw const BUFFER).read() };
    all[from..from + length].to_vec()
}

fn registered(stage: Stage) {
    /// `IORING_OP_READ_FIXED`.
    const READ_FIXED: u8 = 4;
    std::fs::write(stage.path("file"), "abcdefghijklmnop").unwrap();
    let file = std::fs::File::open(stage.path("file")).unwrap().into_raw_fd();
    let (near, far) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(8, SINGLE_ISSUER).unwrap();
    let mut files = [file, -1, near.as_raw_fd()];
    ring.register(2, &mut files, 3).unwrap();
    let mut buffers = [[buffer(0), 16], [0, 0], [buffer(32), 8]];
    ring.register(0, &mut buffers, 3).unwrap();
    // SAFETY: plain numbers.
    let mut event = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    ring.register(4, &mut event, 1).unwrap();
    // Number 5, and which ring.
    let mut numbers = [5_u64, ring.descriptor as u64];
    ring.register(20, &mut numbers, 1).unwrap();
    ring.use_registered(5);
    stage.serve(move |_| {
        verify!(near.as_raw_fd() > 0, "no socket");
        let fixed = Request { flags: FIXED_FILE, ..Request::default() };
        // The last place of the table, and no buffer.
        put(far.as_raw_fd(), b"through a line").map_err(|error| error.to_string())?;
        ring.submit(Request {
            operation: READ,
            descriptor: 2,
            address: buffer(0),
            length: 14,
            data: 1,
            ..fixed
        })?;
        let (number, result, _) = ring.wait()?;
        verify!((number, result) == (1, 14) && read(0, 14) == b"through a line", "{number}: {result}");
        // The first place, and the last buffer.
        ring.submit(Request {
            operation: READ_FIXED,
            offset: 3,
            address: buffer(32),
            length: 8,
            buffer: 2,
            data: 2,
            ..fixed
        })?;
        let (number, result, _) = ring.wait()?;
        verify!((number, result) == (2, 8) && read(32, 8) == b"defghijk", "{number}: {result}");
        // A place that is free, of either.
        ring.submit(Request {
            operation: READ,
            descriptor: 1,
            address: buffer(0),
            length: 1,
            data: 3,
            ..fixed
        })?;
        let (number, result, _) = ring.wait()?;
        verify!((number, result) == (3, -libc::EBADF), "{number}: {result}");
        let told = take(event, 8).map_err(|error| format!("the eventfd: {error}"))?;
        verify!(told != [0; 8], "the eventfd was not told of completions");
        Ok(())
    });
}

/// Requests that wait, for everything that they can wait for.
struct Waiting {
    ring: Ring,
    polled: [i32; 2],
    read: [i32; 2],
    received: [UnixStream; 2],
    listener: UnixListener,
    address: std::path::PathBuf,
    /// How often it was asked for all.
    turn: u64,
    /// A time in the far future: `struct __kernel_timespec`.
    time: Box<[i64; 2]>,
}

impl Waiting {
    /// Asks for everything, each with a number that was not used before.
    fn submit(&mut self) -> Verdict {
        self.turn += 16;
        let all = [
            Request {
                operation: POLL_ADD,
                descriptor: self.polled[0],
                operation_flags: 1,
                data: 1,
                ..Request::default()
            },
            Request {
                operation: READ,
                descriptor: self.read[0],
                offset: u64::MAX,
                address: buffer(0),
                length: 5,
                data: 2,
                ..Request::default()
            },
            Request {
                operation: RECV,
                descriptor: self.received[0].as_raw_fd(),
                address: buffer(8),
                length: 7,
                data: 3,
                ..Request::default()
            },
            Request {
                operation: ACCEPT,
                descriptor: self.listener.as_raw_fd(),
                data: 4,
                ..Request::default()
            },
        ];
        all.into_iter().try_for_each(|mut request| {
            request.data += self.turn;
            self.ring.submit(request)
        })
    }

    /// The next completion, which must be of the newest requests: which, and what came of it.
    fn wait(&mut self) -> Result<(u64, i32), String> {
        let (data, result, _) = self.ring.wait()?;
        Ok((data.wrapping_sub(self.turn), result))
    }

    /// Lets all happen, one after another.
    fn happen(&mut self) -> Verdict {
        self.ring.enter(0, 0)?;
        let early = self.ring.next();
        verify!(early.is_none(), "a completion too early: {early:?}");
        put(self.polled[1], b"!").map_err(|error| error.to_string())?;
        let (data, result) = self.wait()?;
        verify!((data, result) == (1, 1), "polled: {data}: {result}");
        take(self.polled[0], 1).map_err(|error| error.to_string())?;
        put(self.read[1], b"hello").map_err(|error| error.to_string())?;
        let (data, result) = self.wait()?;
        verify!((data, result) == (2, 5) && read(0, 5) == b"hello", "read: {data}: {result}");
        put(self.received[1].as_raw_fd(), b"goodbye").map_err(|error| error.to_string())?;
        let (data, result) = self.wait()?;
        verify!((data, result) == (3, 7) && read(8, 7) == b"goodbye", "received: {data}: {result}");
        let mut client = UnixStream::connect(&self.address).map_err(|error| error.to_string())?;
        let (data, result) = self.wait()?;
        verify!(data == 4 && result >= 0, "accepted: {data}: {result}");
        // SAFETY: the descriptor that the kernel has just made.
        unsafe { libc::close(result) };
        let end = client.read(&mut [0]).map_err(|error| error.to_string())?;
        verify!(end == 0, "the connection is not the accepted one");
        Ok(())
    }
}

fn waits(stage: Stage) {
    let deferred = stage.arguments.first().is_some_and(|setup| setup == "deferred");
    let ring = Ring::new(8, if deferred { SINGLE_ISSUER | DEFER_TASKRUN } else { 0 }).unwrap();
    let address = stage.path("listener");
    let listener = UnixListener::bind(&address).unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let time = Box::new([1_i64 << 40, 0]);
    let mut waiting = Waiting {
        ring,
        polled: pipe(0),
        read: pipe(0),
        received: [one, other],
        listener,
        address,
        turn: 0,
        time,
    };
    // Round the ring a few times, and then requests of which some have been under way for long.
    for data in 0..21 {
        self::one(&mut waiting.ring, 100 + data).unwrap();
    }
    let time = waiting.time.as_ptr().addr() as u64;
    // An absolute time.
    let far = move |turn: u64| Request {
        operation: TIMEOUT,
        address: time,
        length: 1,
        operation_flags: 1,
        data: turn + 9,
        ..Request::default()
    };
    if deferred {
        waiting.ring.submit(far(16)).unwrap();
    }
    waiting.submit().unwrap();
    // The buffer is written behind the back of the program.
    stage.serve(move |_| {
        waiting.happen()?;
        if deferred {
            // Once more, so that the ring holds all that are under way.
            let turn = waiting.turn;
            let mut cancel =
                Request { operation: TIMEOUT + 1, address: turn + 9, data: turn + 10, ..Request::default() };
            cancel.descriptor = -1;
            waiting.ring.submit(cancel)?;
            let mut found = [waiting.ring.wait()?, waiting.ring.wait()?];
            found.sort_unstable();
            verify!(
                found.map(|(data, result, _)| (data - turn, result)) == [(9, -libc::ECANCELED), (10, 0)],
                "the time-out: {found:?}"
            );
            waiting.ring.submit(far(turn + 16))?;
        }
        waiting.submit()
    });
}

/// A dump that lets the program go on must not touch what is under way.
fn requests_go_on() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("ring_waits", &["deferred"])?;
    for _ in 0..3 {
        case.dump_with(root, &["--leave-running"])?;
        case.ask()?;
    }
    case.finish(root)
}

/// What is refused, and a word of the message.
const REFUSED: &[(&str, &str)] = &[
    ("disabled", "not enabled"),
    ("polled", "IOPOLL"),
    ("futex", "can't be kept: operation 51"),
    ("forgotten", "can't be seen"),
    ("buffers", "provided"),
    ("events", "eventfd"),
    ("closed", "no descriptor"),
    ("ended", "has ended"),
    ("gone", "closed by now"),
    ("own_memory", "NO_MMAP"),
    ("shared", "several processes"),
];

fn refused(stage: Stage) {
    use uring::NO_SQARRAY;
    let what = stage.arguments.first().cloned().unwrap_or_default();
    let flags = match what.as_str() {
        "disabled" => 1 << 6,
        "polled" => 1,
        "closed" => NO_SQARRAY,
        _ => 0,
    };
    let ring = || Ring::new(8, flags).unwrap();
    let word = Box::leak(Box::new(0_u32));
    let mut ring = if what == "ended" {
        std::thread::spawn(|| Ring::new(8, SINGLE_ISSUER).unwrap()).join().unwrap()
    } else {
        ring()
    };
    match what.as_str() {
        "futex" => {
            let address = (&raw mut *word).addr() as u64;
            // FUTEX_WAIT for any bit, of a word of 32 bits that only this process uses.
            let wait = Request { operation: 51, descriptor: 2 | 128, address, data: 1, ..Request::default() };
            let mut wait = wait;
            wait.offset = 0;
            ring.prepare(wait);
            ring.mask(u64::from(u32::MAX));
            ring.publish();
            assert_eq!(ring.enter(1, 0), Ok(1));
        }
        "forgotten" => {
            let ends = pipe(0);
            let poll = Request {
                operation: POLL_ADD,
                descriptor: ends[0],
                operation_flags: 1,
                ..Request::default()
            };
            ring.submit(poll).unwrap();
            for data in 1..20 {
                one(&mut ring, data).unwrap();
            }
        }
        "own_memory" => assert!(Ring::in_own_memory(8) >= 0, "{}", std::io::Error::last_os_error()),
        "gone" => {
            let ends = pipe(0);
            let read = Request {
                operation: READ,
                descriptor: ends[0],
                address: buffer(0),
                length: 1,
                ..Request::default()
            };
            ring.submit(read).unwrap();
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(ends[0]) };
        }
        "shared" => {
            let ends = pipe(0);
            let poll = Request {
                operation: POLL_ADD,
                descriptor: ends[0],
                operation_flags: 1,
                ..Request::default()
            };
            ring.submit(poll).unwrap();
            fork(move || take(ends[0], 1).map_or(1, |_| 0));
        }
        "buffers" => {
            // IORING_OP_PROVIDE_BUFFERS: two of 8 bytes, group 700.
            let provide =
                Request { operation: 31, descriptor: 2, address: buffer(0), length: 8, ..Request::default() };
            ring.prepare(Request { buffer: 700, ..provide });
            ring.publish();
            assert_eq!(ring.enter(1, 0), Ok(1));
            assert_eq!(ring.wait().map(|(_, result, _)| result), Ok(0));
        }
        "events" => {
            // SAFETY: plain numbers.
            let mut events = [0; 2].map(|_| unsafe { libc::eventfd(0, 0) });
            ring.register(4, &mut events[0], 1).unwrap();
        }
        "closed" => {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(ring.descriptor) };
        }
        _ => {}
    }
    stage.serve(move |_| {
        verify!(*word == 0 && ring.entries() == 8, "the ring has changed");
        Ok(())
    });
}

fn what_can_not_be_kept() -> Outcome {
    for (what, message) in REFUSED {
        let mut case = Case::new()?;
        let root = case.start("ring_refused", &[what])?;
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&case.path("image.vckpt"))])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains(message), "{what}: no {message:?}: {}", ran.describe());
        case.ask()?;
        case.finish(root)?;
    }
    Ok(())
}

/// fio writes a file through a ring, many requests at a time, and reads it again to see whether all is there.
fn fio() -> Outcome {
    let program = need_program("fio")?;
    // Its memory is a System V segment, which only root can make again.
    need_root()?;
    let mut case = Case::new()?;
    let mut command = case.command(&program, "fio")?;
    command.args([
        "--name=job",
        "--filename=data",
        "--size=4m",
        "--bs=4k",
        "--rw=randwrite",
        "--verify=crc32c",
    ]);
    command.args(["--ioengine=io_uring", "--iodepth=16", "--thread", "--rate_iops=700", "--output=report"]);
    let mut root = spawn(&mut command)?;
    let has_ring = |root: i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{root}/fd")).into_iter().flatten().flatten();
        let mut links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.any(|link| link.to_string_lossy().contains("io_uring"))
    };
    until("fio to have a ring", LIMIT, || has_ring(root).then_some(()))?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
    }
    until("fio to end", LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    let report = std::fs::read_to_string(case.path("report"))?;
    ensure!(report.contains("err= 0"), "fio has found mistakes: {report}");
    case.finish_empty()
}
