//! io_uring: rings that a program shares with the kernel.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use crate::harness::case::{Case, two_rounds_with};
use crate::harness::{Outcome, Topic, skip};
use crate::stage::kernel::{pipe, put, take};
use crate::stage::uring::{self, NOP, POLL_ADD, READ, Request, Ring};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "io_uring",
    fixtures: &[("ring", ring), ("ring_uneven", uneven), ("ring_often", often)],
    cases: &[
        ("a_plain_ring", || rounds("ring", "plain")),
        ("a_ring_that_goes_on", || with_rings("plain", goes_on)),
        ("one_thread_submits", || rounds("ring", "single")),
        ("completions_wait_for_the_thread", || rounds("ring", "deferred")),
        ("cooperative", || rounds("ring", "cooperative")),
        ("without_an_array", || rounds("ring", "direct")),
        ("large_entries", || rounds("ring", "large")),
        ("more_completions_than_requests", || rounds("ring_uneven", "many")),
        ("fewer_completions_than_requests", || rounds("ring_uneven", "silent")),
        ("more_completions_for_the_thread", || rounds("ring_uneven", "deferred")),
        ("a_ring_that_has_turned_often", || rounds("ring_often", "deferred")),
        ("a_thread_of_the_kernel_takes_requests", || rounds("ring", "polled")),
    ],
};

/// Flags of the setup, by the name that a case gives.
fn flags(name: &str) -> u32 {
    use uring::{
        COOP_TASKRUN, CQE32, DEFER_TASKRUN, NO_SQARRAY, SINGLE_ISSUER, SQE128, SQPOLL, TASKRUN_FLAG,
    };
    match name {
        "single" => SINGLE_ISSUER,
        "deferred" => SINGLE_ISSUER | DEFER_TASKRUN,
        "cooperative" => COOP_TASKRUN | TASKRUN_FLAG,
        "direct" => NO_SQARRAY | SINGLE_ISSUER,
        "large" => SQE128 | CQE32,
        "polled" => SQPOLL,
        _ => 0,
    }
}

/// Runs a case if the kernel lets us have such rings.
fn with_rings(setup: &str, case: fn() -> Outcome) -> Outcome {
    match Ring::new(8, flags(setup)) {
        Ok(ring) => {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(ring.descriptor) };
            case()
        }
        Err(error) => skip(format!("io_uring ({setup}): {error}")),
    }
}

fn rounds(fixture: &str, setup: &str) -> Outcome {
    match Ring::new(8, flags(setup)) {
        Ok(ring) => {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(ring.descriptor) };
            two_rounds_with(fixture, &[setup])
        }
        Err(error) => skip(format!("io_uring ({setup}): {error}")),
    }
}

/// A ring that is used, with what must wait in it.
struct Used {
    ring: Ring,
    /// Data of the completions that wait.
    waiting: VecDeque<u64>,
    /// Data of the requests that are prepared and not submitted.
    prepared: VecDeque<u64>,
    next: u64,
    polled: bool,
}

impl Used {
    fn new(entries: u32, setup: &str) -> Self {
        let ring = Ring::new(entries, flags(setup)).unwrap();
        Self { ring, waiting: VecDeque::new(), prepared: VecDeque::new(), next: 1, polled: setup == "polled" }
    }

    fn prepare(&mut self) {
        self.ring.prepare(Request { operation: NOP, data: self.next, ..Request::default() });
        self.prepared.push_back(self.next);
        self.next += 1;
    }

    /// Submits what was prepared, and waits until it is done.
    fn submit(&mut self) -> Verdict {
        let count = u32::try_from(self.prepared.len()).unwrap_or(0);
        let before = self.ring.positions()[3];
        self.ring.publish();
        let taken = self.ring.enter(count, 0)?;
        verify!(taken == count, "{taken} requests were taken instead of {count}");
        while self.polled && self.ring.positions()[3] != before.wrapping_add(count) {
            std::hint::spin_loop();
        }
        self.waiting.append(&mut self.prepared);
        Ok(())
    }

    /// Takes the completions, which must be the next ones.
    fn take(&mut self, count: usize) -> Verdict {
        for _ in 0..count {
            let expected = self.waiting.pop_front();
            let found = self.ring.next().map(|(data, result, _)| (data, result));
            let wanted = expected.map(|data| (data, 0));
            verify!(found == wanted, "the completion {found:?} instead of {wanted:?}");
        }
        Ok(())
    }

    /// Leaves some completions, and where that can be, some requests.
    fn leave(&mut self) -> Verdict {
        for _ in 0..5 {
            self.prepare();
        }
        self.submit()?;
        self.take(2)?;
        if !self.polled {
            for _ in 0..3 {
                self.prepare();
            }
            self.ring.publish();
        }
        Ok(())
    }

    /// What must be as [`Used::leave`] has left it; then everything is used for a while.
    fn verify(&mut self) -> Verdict {
        let positions = self.ring.positions();
        let taken = self.ring.tail.wrapping_sub(u32::try_from(self.prepared.len()).unwrap_or(0));
        let given = self.ring.head.wrapping_add(u32::try_from(self.waiting.len()).unwrap_or(0));
        let expected = [taken, self.ring.tail, self.ring.head, given];
        verify!(positions == expected, "the ring is at {positions:?} instead of {expected:?}");
        self.submit()?;
        let all = self.waiting.len();
        self.take(all)?;
        verify!(self.ring.next().is_none(), "one completion too many");
        self.turn(if self.polled { 20 } else { 300 })?;
        self.leave()
    }

    /// Goes round and round.
    fn turn(&mut self, times: u32) -> Verdict {
        for _ in 0..times {
            for _ in 0..self.ring.entries() {
                self.prepare();
            }
            self.submit()?;
            let all = self.waiting.len();
            self.take(all)?;
        }
        Ok(())
    }

    /// Reads from a file.
    fn read(&mut self, file: &std::fs::File) -> Verdict {
        static mut BUFFER: [u8; 8] = [0; 8];
        let data = self.next;
        self.next += 1;
        let address = (&raw mut BUFFER).addr() as u64;
        self.ring.submit(Request {
            operation: READ,
            descriptor: file.as_raw_fd(),
            offset: 4,
            address,
            length: 8,
            data,
            ..Request::default()
        })?;
        let (found, result, _) = self.ring.wait()?;
        // SAFETY: the request is done.
        let bytes = unsafe { (&raw const BUFFER).read() };
        verify!(found == data && result == 8 && &bytes == b"efghijkl", "{found}: {result}, {bytes:?}");
        Ok(())
    }
}

fn ring(stage: Stage) {
    let setup = stage.arguments.first().cloned().unwrap_or_default();
    let path = stage.path("file");
    std::fs::File::create(&path).unwrap().write_all(b"abcdefghijklmnop").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let is_plain = ["plain", "large"].contains(&setup.as_str());
    let mut small = Used::new(8, if is_plain { &setup } else { "cooperative" });
    let mut large = Used::new(256, &setup);
    let untouched = Used::new(4, if is_plain { &setup } else { "plain" });
    small.turn(5).unwrap();
    large.turn(3).unwrap();
    large.read(&file).unwrap();
    small.leave().unwrap();
    large.leave().unwrap();
    let mut untouched = Some(untouched);
    let mut fresh = None;
    // The kernel's threads are threads of this process.
    let ignored: &[&str] = if setup == "polled" { &["thread ", "status Threads"] } else { &[] };
    stage.serve_except(ignored, move |_| {
        small.verify()?;
        large.verify()?;
        if let Some(ring) = untouched.take() {
            let positions = ring.ring.positions();
            verify!(positions == [0; 4], "a new ring is at {positions:?}");
            fresh = Some(ring);
        }
        // Everything is taken out, so that the next completion is that of the read.
        large.submit()?;
        let all = large.waiting.len();
        large.take(all)?;
        large.read(&file)?;
        large.leave()?;
        match &mut fresh {
            Some(ring) => ring.turn(1),
            None => Ok(()),
        }
    });
}

/// A dump that lets the program go on.
fn goes_on() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("ring", &["plain"])?;
    for _ in 0..3 {
        case.dump_with(root, &["--leave-running"])?;
        case.ask()?;
    }
    case.finish(root)
}

/// A ring with other numbers of completions than of requests: those of a poll that is told of again and again, or none.
fn uneven(stage: Stage) {
    /// `IOSQE_CQE_SKIP_SUCCESS`, and `IORING_POLL_ADD_MULTI` in the length.
    const SILENT: u8 = 64;
    let setup = stage.arguments.first().cloned().unwrap_or_default();
    let mut ring = Ring::new(8, flags(&setup)).unwrap();
    let ends = pipe(0);
    let mut turn = move || {
        if setup == "silent" {
            for data in 0..9 {
                ring.submit(Request { operation: NOP, flags: SILENT, data, ..Request::default() })?;
            }
        } else {
            let poll = Request {
                operation: POLL_ADD,
                descriptor: ends[0],
                operation_flags: 1,
                ..Request::default()
            };
            ring.submit(Request { length: 1, data: 5, ..poll })?;
            for _ in 0..30 {
                put(ends[1], b"!").map_err(|error| error.to_string())?;
                let (data, result, flags) = ring.wait()?;
                verify!((data, result, flags & 2) == (5, 1, 2), "polled: {data}: {result}, {flags:x}");
                take(ends[0], 1).map_err(|error| error.to_string())?;
            }
            // IORING_OP_POLL_REMOVE.
            ring.submit(Request { operation: 7, address: 5, data: 6, ..Request::default() })?;
            let mut found = [ring.wait()?.0, ring.wait()?.0];
            found.sort_unstable();
            verify!(found == [5, 6], "the end of a poll: {found:?}");
        }
        ring.submit(Request { operation: NOP, data: 7, ..Request::default() })?;
        let (data, ..) = ring.wait()?;
        verify!(data == 7, "the completion of {data}");
        let [taken, _, _, given] = ring.positions();
        verify!((taken < given) == (setup != "silent"), "{taken} requests, {given} completions");
        Ok(())
    };
    turn().unwrap();
    stage.serve(move |_| turn());
}

/// Small and large rings that have turned a million times.
fn often(stage: Stage) {
    let setup = stage.arguments.first().cloned().unwrap_or_default();
    let mut small = Used::new(8, &setup);
    let mut large = Used::new(1024, "plain");
    large.turn(200).unwrap();
    small.turn(10_000).unwrap();
    for used in [&mut small, &mut large] {
        used.leave().unwrap();
    }
    stage.serve(move |_| {
        small.verify()?;
        large.verify()
    });
}
