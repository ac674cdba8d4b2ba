//! Many tasks: threads that make threads all the time, daemons that are born and orphaned all the time, and a thousand
//! processes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::Topic;
use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, ensure, short_or_long};
use crate::shapes::counters;
use crate::stage::kernel::{check, fork, pipe, put, take, wait};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "crowds",
    fixtures: &[("bomb", bomb), ("daemons", daemons), ("thousand", thousand)],
    cases: &[
        ("threads_that_make_threads", threads_that_make_threads),
        ("daemons_all_the_time", || two_rounds("daemons")),
        ("a_thousand_processes", a_thousand_processes),
    ],
};

const ORDER: Ordering = Ordering::SeqCst;

static BORN: AtomicU64 = AtomicU64::new(0);
static ALIVE: AtomicU64 = AtomicU64::new(0);
/// Each thread leaves its generation here, in memory that is its successor's too.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// How many threads there are at any time.
const LINES: u64 = 8;

/// A thread that makes the next one of its line and ends.
fn next_of_line(line: u64, generation: u64, before: u64) {
    ALIVE.fetch_add(1, ORDER);
    let local = std::hint::black_box([generation; 64]);
    if before + 1 != generation && generation != 0 {
        WRONG.fetch_add(1, ORDER);
    }
    // Some hundreds a second, not as many as the processor can make.
    std::thread::sleep(Duration::from_millis(5 + line % 3));
    std::thread::spawn(move || next_of_line(line, generation + 1, generation));
    if std::hint::black_box(local) != [generation; 64] {
        WRONG.fetch_add(1, ORDER);
    }
    BORN.fetch_add(1, ORDER);
    ALIVE.fetch_sub(1, ORDER);
}

/// Lines of threads, of which each lives for a few milliseconds, more than a thousand in a second.
fn bomb(stage: Stage) {
    for line in 0..LINES {
        std::thread::spawn(move || next_of_line(line, 0, 0));
    }
    stage.serve_except(&["thread ", "memory map", "status Threads"], |_| {
        let start = Instant::now();
        let before = BORN.load(ORDER);
        while BORN.load(ORDER) < before + 10 * LINES {
            verify!(start.elapsed() < Duration::from_secs(20), "only {} are born", BORN.load(ORDER) - before);
            std::thread::yield_now();
        }
        verify!(WRONG.load(ORDER) == 0, "{} threads have lost what they had", WRONG.load(ORDER));
        let alive = ALIVE.load(ORDER);
        verify!((1..=2 * LINES).contains(&alive), "{alive} threads of {LINES} lines");
        Ok(())
    });
}

/// Checked, dumped and left running, then dumped and restored twice.
fn threads_that_make_threads() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("bomb", &[])?;
    case.ask()?;
    if !case.is_control() {
        for _ in 0..short_or_long(3, 30) {
            case.vckpt(&["check", &root.to_string()])?.good()?;
            let image = case.dump_with(root, &["--leave-running"])?;
            std::fs::remove_file(image)?;
            case.ask()?;
        }
    }
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}

/// Processes that make daemons all the time: a child with a session of its own makes another one and ends; that one
/// makes a third one and ends too. This process gets all orphans and waits for them.
fn daemons(stage: Stage) {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).unwrap();
    let counters = counters();
    for place in 0..2 {
        fork(|| {
            loop {
                // No more orphans than are waited for, also when this process stands still.
                while counters[7].load(ORDER) > 8 + (counters[4].load(ORDER) + counters[5].load(ORDER)) / 2 {
                    std::thread::yield_now();
                }
                counters[7].fetch_add(1, ORDER);
                let first = fork(|| {
                    // SAFETY: plain integers.
                    unsafe { libc::setsid() };
                    fork(|| {
                        counters[place].fetch_add(1, ORDER);
                        // SAFETY: plain integers.
                        unsafe { libc::setpgid(0, 0) };
                        fork(|| {
                            counters[2 + place].fetch_add(1, ORDER);
                            7
                        });
                        8
                    });
                    0
                });
                if wait(first).ok() != Some(0) {
                    return 1;
                }
            }
        });
    }
    thread(move || {
        loop {
            match wait(-1) {
                Ok(status) if status == 7 << 8 => counters[4].fetch_add(1, ORDER),
                Ok(status) if status == 8 << 8 => counters[5].fetch_add(1, ORDER),
                _ => counters[6].fetch_add(1, ORDER),
            };
        }
    });
    stage.serve_except(&["child "], move |_| {
        let start = Instant::now();
        for (number, counter) in counters[..6].iter().enumerate() {
            let before = counter.load(ORDER);
            while counter.load(ORDER) < before + 5 {
                verify!(start.elapsed() < Duration::from_secs(20), "counter {number} does not go on");
                std::thread::yield_now();
            }
        }
        let wrong = counters[6].load(ORDER);
        verify!(wrong == 0, "{wrong} orphans ended in another way, or a wait was interrupted");
        Ok(())
    });
}

/// A tree of many small processes, half of it deep and half of it wide, which all answer.
fn thousand(stage: Stage) {
    let count: usize = stage.arguments[0].parse().unwrap();
    let (ask, answer) = (pipe(0), pipe(0));
    /// Says who it is each time a byte comes.
    fn member(ask: i32, answer: i32) -> i32 {
        loop {
            let mut round = 0_u8;
            // SAFETY: valid places; the answers are written at once.
            unsafe {
                if libc::read(ask, (&raw mut round).cast(), 1) != 1 {
                    return 1;
                }
                let ids = [libc::getpid(), libc::getppid(), libc::getpgid(0), libc::getsid(0)];
                if libc::write(answer, ids.as_ptr().cast(), size_of_val(&ids)) < 0 {
                    return 1;
                }
                // Until all have answered, so that each takes one byte.
                libc::raise(libc::SIGSTOP);
            }
        }
    }
    // Each of these is a parent of ten, and the child of the one before.
    fn line(left: usize, ask: i32, answer: i32) -> i32 {
        let here = left.min(11);
        for _ in 1..here {
            fork(|| member(ask, answer));
        }
        if left > here {
            fork(|| line(left - here, ask, answer));
        }
        member(ask, answer)
    }
    let deep = count / 2;
    fork(|| line(deep, ask[0], answer[1]));
    for _ in deep..count {
        fork(|| member(ask[0], answer[1]));
    }
    let all = move || -> Result<Vec<[i32; 4]>, String> {
        put(ask[1], &vec![b'?'; count]).map_err(|error| error.to_string())?;
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = take(answer[0], 16).map_err(|error| error.to_string())?;
            let words =
                bytes.chunks_exact(4).map(|word| i32::from_ne_bytes(word.try_into().expect("4 bytes")));
            let ids: [i32; 4] = words.collect::<Vec<_>>().try_into().map_err(|_| "a short answer")?;
            found.push(ids);
        }
        for [pid, ..] in &found {
            crate::shapes::wait_for_state(*pid, "T");
            // SAFETY: plain integers.
            unsafe { libc::kill(*pid, libc::SIGCONT) };
        }
        found.sort_unstable();
        Ok(found)
    };
    let before = all().expect("all answer");
    stage.serve(move |_| {
        let now = all()?;
        let other = before.iter().zip(&now).find(|(before, now)| before != now);
        verify!(now.len() == count && other.is_none(), "pid, parent, group, session: {other:?}");
        Ok(())
    });
}

fn a_thousand_processes() -> Outcome {
    let count = short_or_long(300, 1000).to_string();
    let mut case = Case::new()?;
    let mut root = case.start("thousand", &[&count])?;
    case.ask()?;
    let start = Instant::now();
    for _ in 0..2 {
        root = case.round(root)?;
    }
    ensure!(start.elapsed() < Duration::from_secs(60), "two rounds take {:?}", start.elapsed());
    case.finish(root)
}
