//! Contexts of asynchronous input and output, with events that were not fetched yet.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd as _;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, skip};
use crate::stage::kernel::{fork, pipe, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "aio",
    fixtures: &[("requests", requests), ("under_way", under_way), ("inherited", inherited)],
    cases: &[
        ("events_wait", || with_contexts(|| two_rounds("requests"))),
        ("events_that_come_meanwhile", || with_contexts(|| two_rounds("under_way"))),
        ("ring_of_a_parent_is_refused", || with_contexts(ring_of_a_parent)),
    ],
};

/// A request (`struct iocb`), as words.
type Request = [u64; 8];

/// A context with the numbers of the requests whose events wait in it.
struct Context {
    id: usize,
    file: File,
    waiting: VecDeque<u64>,
    next: u64,
}

impl Context {
    fn new(events: u32, file: File) -> Result<Self, Error> {
        let mut id = 0_usize;
        // SAFETY: a valid place for the ID.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut id) };
        if result < 0 {
            Err(Error::last_os_error())
        } else {
            Ok(Self { id, file, waiting: VecDeque::new(), next: 1 })
        }
    }

    /// Submits a read of as many bytes as its number tells; false if there is no room.
    fn submit(&mut self) -> bool {
        static mut BUFFER: [u8; 4096] = [0; 4096];
        let buffer = (&raw mut BUFFER).addr() as u64;
        let length = self.next % 100;
        let file = u64::from(self.file.as_raw_fd().cast_unsigned());
        let request: Request = [self.next, 0, file << 32, buffer, length, 0, 0, 0];
        let pointers = [&raw const request];
        // SAFETY: the request and the buffer live until the call returns; reads of such files are done by then.
        let done = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1_i64, pointers.as_ptr()) };
        if done == 1 {
            self.waiting.push_back(self.next);
            self.next += 1;
        }
        done == 1
    }

    /// Fetches as many events, which must be the next ones.
    fn fetch(&mut self, count: usize) -> Result<(), String> {
        let mut events = vec![[0_u64; 4]; count];
        let count = count as i64;
        // SAFETY: there is room for as many events, and none is waited for.
        let got = unsafe {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::syscall(libc::SYS_io_getevents, self.id, 0_i64, count, events.as_mut_ptr(), &raw const time)
        };
        verify!(got == count, "{got} events instead of {count}: {}", Error::last_os_error());
        for event in events {
            let expected = self.waiting.pop_front().unwrap_or(0);
            verify!(
                event[0] == expected && event[2] == expected % 100,
                "an event of request {} with {} bytes instead of {expected}",
                event[0],
                event[2]
            );
        }
        Ok(())
    }
}

/// A timer that fires a little later, and a request that waits for it: the event comes while the program stands still,
/// or before.
fn timed(context: &Context, timer: i32) -> Result<(), String> {
    let time = libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 },
    };
    // SAFETY: a valid time.
    let set = unsafe { libc::timerfd_settime(timer, 0, &raw const time, std::ptr::null_mut()) };
    // IOCB_CMD_POLL for POLLIN.
    let request: Request = [77, 0, 5 | u64::from(timer.cast_unsigned()) << 32, 1, 0, 0, 0, 0];
    let pointers = [&raw const request];
    // SAFETY: the kernel reads the request before the call returns.
    let done = unsafe { libc::syscall(libc::SYS_io_submit, context.id, 1_i64, pointers.as_ptr()) };
    verify!(set == 0 && done == 1, "the request for a timer: {}", Error::last_os_error());
    Ok(())
}

/// Each answer is the start of a new request, which is under way when the dump begins.
fn under_way(stage: Stage) {
    let context = Context::new(10, File::open("/dev/null").unwrap()).unwrap();
    // SAFETY: plain numbers.
    let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
    timed(&context, timer).unwrap();
    stage.serve(move |_| {
        let mut event = [0_u64; 4];
        let limit = libc::timespec { tv_sec: 5, tv_nsec: 0 };
        // SAFETY: there is room for one event.
        let got = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context.id,
                1_i64,
                1_i64,
                event.as_mut_ptr(),
                &raw const limit,
            )
        };
        verify!(got == 1 && event[0] == 77, "{got} events, of request {}", event[0]);
        timed(&context, timer)
    });
}

fn with_contexts(case: fn() -> Outcome) -> Outcome {
    let file = File::open("/proc/self/exe")?;
    match Context::new(1, file) {
        Ok(context) => {
            // SAFETY: the context is ours.
            unsafe { libc::syscall(libc::SYS_io_destroy, context.id) };
            case()
        }
        Err(_) => skip("asynchronous I/O (CONFIG_AIO), or room for it (fs.aio-max-nr)"),
    }
}

fn requests(stage: Stage) {
    let file = || {
        std::fs::write(stage.path("file"), [7; 4096]).unwrap();
        File::open(stage.path("file")).unwrap()
    };
    let mut small = Context::new(100, file()).unwrap();
    let mut large = Context::new(2000, file()).unwrap();
    let untouched = Context::new(10, file()).unwrap();
    for _ in 0..5 {
        assert!(small.submit());
    }
    small.fetch(2).unwrap();
    // Round and round, so that the end of the ring lies between the events that wait.
    for _ in 0..6000 {
        assert!(large.submit());
        large.fetch(1).unwrap();
    }
    for _ in 0..1500 {
        assert!(large.submit());
    }
    stage.serve(move |_| {
        let _ = &untouched;
        for context in [&mut small, &mut large] {
            let waiting = context.waiting.len();
            context.fetch(waiting)?;
            let mut room = 0;
            while context.submit() {
                room += 1;
            }
            verify!(room >= 100, "there is room for {room} requests only");
            context.fetch(room - 3)?;
        }
        // Again over the end.
        for _ in 0..1500 {
            verify!(large.submit(), "no room in the large one");
        }
        Ok(())
    });
}

/// A child that has the ring of its parent, but not the context.
fn inherited(stage: Stage) {
    let context = Context::new(10, File::open("/dev/null").unwrap()).unwrap();
    let ask = pipe(0);
    fork(move || take(ask[0], 1).map_or(1, |_| 0));
    stage.serve(move |_| {
        verify!(context.id != 0, "no context");
        Ok(())
    });
}

fn ring_of_a_parent() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("inherited", &[])?;
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&case.path("image.vckpt"))])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("asynchronous I/O of another process"), "{}", ran.describe());
    case.ask()?;
    case.finish(root)
}
