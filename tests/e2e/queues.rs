//! Queues of signals: hundreds that wait for a process and for each of its threads, every byte of what they tell, and
//! more than the limit lets in.

use std::collections::BTreeMap;

use crate::harness::Topic;
use crate::harness::case::{all_left_running, two_rounds};
use crate::stage::kernel::{block, check, pipe, put, take};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "queues",
    fixtures: &[("hundreds", hundreds), ("beyond-limit", beyond_limit)],
    cases: &[
        ("hundreds_with_all_details", || two_rounds("hundreds")),
        ("beyond_the_limit", || two_rounds("beyond-limit")),
        ("left_running", || all_left_running(&["hundreds", "beyond-limit"])),
    ],
};

/// What the kernel keeps of a `siginfo_t`.
type Information = [u8; 48];

/// All signals that the C library leaves to programs.
fn all_signals() -> Vec<i32> {
    (1..32).chain(34..65).collect()
}

/// A signal with this code; what it tells is different for each `seed`.
fn information(signal: i32, code: i32, seed: u32) -> Information {
    let mut bytes = [0; 48];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(seed % 7).to_ne_bytes());
    bytes[8..12].copy_from_slice(&code.to_ne_bytes());
    for (place, byte) in (16_u32..).zip(&mut bytes[16..]) {
        *byte = (seed.wrapping_mul(31) + place) as u8;
    }
    if code == libc::SI_TIMER {
        // A number that the kernel keeps for itself.
        bytes[32..36].fill(0);
    }
    bytes
}

/// Queues a signal as it is, for this process or for this thread alone.
fn queue(for_thread: bool, entry: &Information) -> std::io::Result<i64> {
    let mut room = [0_u8; 128];
    room[..48].copy_from_slice(entry);
    let signal = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
    // SAFETY: the room is that of a siginfo_t.
    unsafe {
        let own = libc::getpid();
        if for_thread {
            let tid = libc::syscall(libc::SYS_gettid);
            check(libc::syscall(libc::SYS_rt_tgsigqueueinfo, own, tid, signal, room.as_ptr()))
        } else {
            check(libc::syscall(libc::SYS_rt_sigqueueinfo, own, signal, room.as_ptr()))
        }
    }
}

/// Takes one that waits.
fn next(signal: i32) -> Result<Information, String> {
    let (set, at_once) = (1_u64 << (signal - 1), [0_u64; 2]);
    let mut room = [0_u8; 128];
    // SAFETY: valid places of the kernel's own sizes.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, room.as_mut_ptr(), at_once.as_ptr(), 8)
    };
    check(result).map_err(|error| format!("signal {signal}: {error}"))?;
    Ok(room[..48].try_into().expect("a part of it"))
}

/// The set of signals that wait, from `/proc`.
fn waiting(name: &str) -> u64 {
    // SAFETY: plain integers.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// A queue that is filled, checked, and filled again.
struct Queue {
    for_thread: bool,
    /// How many there are of its real-time signal.
    many: u32,
    real_time: i32,
    /// Told of by the entries, so that those of other queues are different.
    seed: u32,
    entries: Vec<Information>,
}

impl Queue {
    fn new(for_thread: bool, real_time: i32, many: u32, seed: u32) -> Self {
        Self { for_thread, many, real_time, seed, entries: Vec::new() }
    }

    /// Going on and stopping cannot wait at the same time: one of them, by turns.
    fn fill(&mut self, with_stops: bool) {
        let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let codes = [libc::SI_USER, 0x80, libc::SI_QUEUE, libc::SI_TKILL, -3, -60, 1, 2];
        let mut seed = self.seed;
        let mut next = |signal: i32, code: i32| {
            seed += 1;
            information(signal, code, seed)
        };
        self.entries.clear();
        for signal in 1..32 {
            let is_out = if with_stops { signal == libc::SIGCONT } else { stops.contains(&signal) };
            if !is_out && ![libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
                self.entries.push(next(signal, codes[signal as usize % codes.len()]));
            }
        }
        for number in 0..self.many {
            let code = [libc::SI_QUEUE, -60, libc::SI_TIMER, -3, libc::SI_QUEUE][number as usize % 5];
            self.entries.push(next(self.real_time, code));
            if number % 10 == 0 {
                self.entries.push(next(64 - (number / 10 % 5) as i32, libc::SI_QUEUE));
            }
        }
        for entry in &self.entries {
            queue(self.for_thread, entry).unwrap();
        }
    }

    /// Takes what waits, those of each signal in their order.
    fn check(&self) -> Verdict {
        let mut by_signal: BTreeMap<i32, Vec<&Information>> = BTreeMap::new();
        for entry in &self.entries {
            let signal = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
            by_signal.entry(signal).or_default().push(entry);
        }
        for (signal, entries) in by_signal {
            for (number, entry) in entries.into_iter().enumerate() {
                let found = next(signal)?;
                verify!(found == *entry, "signal {signal}, number {number}: {entry:x?} became {found:x?}");
            }
        }
        let name = if self.for_thread { "SigPnd:" } else { "ShdPnd:" };
        verify!(waiting(name) == 0, "{name} {:x}", waiting(name));
        Ok(())
    }
}

/// A thread with a queue of its own, which does as it is told.
struct Worker {
    orders: [i32; 2],
    answers: [i32; 2],
}

impl Worker {
    fn start(many: u32, seed: u32) -> Self {
        let (orders, answers) = (pipe(0), pipe(0));
        thread(move || {
            let mut queue = Queue::new(true, 40, many, seed);
            while let Ok(order) = take(orders[0], 1) {
                let verdict = match order.as_slice() {
                    b"c" => queue.check(),
                    order => {
                        queue.fill(order == b"s");
                        Ok(())
                    }
                };
                put(answers[1], verdict.err().unwrap_or_else(|| "ok".to_owned()).as_bytes()).unwrap();
            }
        });
        Self { orders, answers }
    }

    fn tell(&self, order: &[u8]) -> Verdict {
        put(self.orders[1], order).map_err(|error| error.to_string())?;
        let answer = take(self.answers[0], 4096).map_err(|error| error.to_string())?;
        verify!(answer == b"ok", "a thread: {}", String::from_utf8_lossy(&answer));
        Ok(())
    }
}

/// Three threads with a queue each, and that of the process, all with the same signals.
fn hundreds(stage: Stage) {
    block(&all_signals());
    let workers = [Worker::start(300, 50_000), Worker::start(40, 70_000)];
    let mut own = [Queue::new(true, 40, 5, 1000), Queue::new(false, 40, 500, 10_000)];
    let fill = |own: &mut [Queue; 2], with_stops: bool| -> Verdict {
        own.iter_mut().for_each(|queue| queue.fill(with_stops));
        workers.iter().try_for_each(|worker| worker.tell(if with_stops { b"s" } else { b"f" }))
    };
    fill(&mut own, false).unwrap();
    stage.serve_except(&["pending"], |number| {
        // Threads take what is their own first; what is left is that of the process.
        workers.iter().try_for_each(|worker| worker.tell(b"c"))?;
        own.iter().try_for_each(Queue::check)?;
        fill(&mut own, number % 2 == 1)
    });
}

/// How many signals may wait.
fn limit(most: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place, which is then a valid limit: the hard one stays.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit)).unwrap();
        limit.rlim_cur = most.min(limit.rlim_max);
        check(libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit)).unwrap();
    }
}

/// Makes a timer that never runs.
fn timer() -> i32 {
    let mut id = 0;
    // SAFETY: the kernel's own defaults, and a valid place.
    check(unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut id) }).unwrap();
    id
}

/// More signals and timers than the limit allows, since it was set later. Of a signal for which there was no room only
/// the number is left.
fn beyond_limit(stage: Stage) {
    block(&all_signals());
    let timers = [timer(), timer(), timer()];
    let mut entries = Vec::new();
    let fill = |entries: &mut Vec<Information>, seed: u32| {
        limit(u64::MAX);
        *entries = (0..100).map(|number| information(45, libc::SI_QUEUE, seed * 100 + number)).collect();
        for entry in &*entries {
            queue(false, entry).unwrap();
        }
        limit(0);
        queue(true, &information(libc::SIGUSR1, libc::SI_QUEUE, 1)).unwrap();
        queue(false, &information(libc::SIGUSR2, libc::SI_QUEUE, 1)).unwrap();
    };
    fill(&mut entries, 0);
    stage.serve(|number| {
        for entry in &entries {
            let found = next(45)?;
            verify!(found == *entry, "{entry:x?} became {found:x?}");
        }
        let refused = queue(false, &information(45, libc::SI_QUEUE, 1));
        let refused = refused.err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EAGAIN), "a signal beyond the limit: {refused:?}");
        for (name, signal) in [("SigPnd:", libc::SIGUSR1), ("ShdPnd:", libc::SIGUSR2)] {
            verify!(waiting(name) == 1 << (signal - 1), "{name} {:x}", waiting(name));
            let mut bare = [0; 48];
            bare[..4].copy_from_slice(&signal.to_ne_bytes());
            let found = next(signal)?;
            verify!(found == bare, "a signal without information became {found:x?}");
        }
        let mut setting = [0_u64; 4];
        for id in timers {
            // SAFETY: a valid place.
            let found = check(unsafe { libc::syscall(libc::SYS_timer_gettime, id, setting.as_mut_ptr()) });
            found.map_err(|error| format!("timer {id}: {error}"))?;
        }
        fill(&mut entries, number);
        Ok(())
    });
}
