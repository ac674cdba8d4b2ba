//! Restartable sequences (rseq): counters of processors that threads raise without locks. A thread that is stopped in the
//! middle, or goes on on another processor, has to begin anew, or a counter loses what another thread has added.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, skip};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "sequences",
    fixtures: &[("counters", counters)],
    cases: &[
        ("that_are_restored", || with_sequences(|| two_rounds("counters"))),
        ("that_are_left_running", || with_sequences(left_running)),
    ],
};

/// More than there are processors, so that threads are taken off them in the middle.
const THREADS: usize = 5;
/// Turns within a sequence: long, so that a dump finds threads in it.
const TURNS: u64 = 20_000;
const PROCESSORS: usize = 512;

/// A counter, alone in its line of the cache.
#[repr(align(64))]
struct Counter(AtomicU64);

static OF_PROCESSORS: [Counter; PROCESSORS] = [const { Counter(AtomicU64::new(0)) }; PROCESSORS];
static OF_THREADS: [Counter; THREADS] = [const { Counter(AtomicU64::new(0)) }; THREADS];
static PAUSE: AtomicBool = AtomicBool::new(false);
static PAUSED: AtomicU32 = AtomicU32::new(0);

/// The `struct rseq` that the C library has registered for this thread; none if it did not.
fn area() -> Option<*mut u8> {
    // SAFETY: the C library has these words, or it does not know the names.
    let word = |name: &std::ffi::CStr| unsafe {
        libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<isize>().as_ref().copied()
    };
    let offset = word(c"__rseq_offset")?;
    let size = word(c"__rseq_size")? as u32;
    let pointer: usize;
    // SAFETY: the first word of the thread's own block is its address.
    unsafe { std::arch::asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, readonly)) };
    (size != 0).then(|| pointer.wrapping_add_signed(offset) as *mut u8)
}

fn with_sequences(case: fn() -> Outcome) -> Outcome {
    if area().is_none() { skip("restartable sequences of the C library") } else { case() }
}

/// Raises the counter of the processor by one, unless something comes between; whether it did.
fn raise(area: *mut u8) -> bool {
    let mut done: u64;
    // SAFETY: the area is that of this thread; a number of a processor is below that of the counters; the sequence writes
    // only the counter, with its last instruction; the signature stands before the abort handler.
    unsafe {
        std::arch::asm!(
            ".pushsection .data.rel.ro.vckpt_sequence, \"aw\"",
            ".balign 32",
            "77:",
            ".long 0, 0",
            ".quad 71f, 72f - 71f, 74f",
            ".popsection",
            "xor {done:e}, {done:e}",
            "lea {word}, [rip + 77b]",
            "mov [{area} + 8], {word}",
            "71:",
            "mov {word:e}, [{area} + 4]",
            "shl {word}, 6",
            "add {word}, {counters}",
            "mov {value}, [{word}]",
            "add {value}, 1",
            "mov {turn}, {turns}",
            "73:",
            "sub {turn}, 1",
            "jnz 73b",
            "mov [{word}], {value}",
            "72:",
            "mov {done:e}, 1",
            "jmp 76f",
            // ud1 with the signature as its displacement.
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "74:",
            "76:",
            "mov qword ptr [{area} + 8], 0",
            done = out(reg) done,
            word = out(reg) _,
            value = out(reg) _,
            turn = out(reg) _,
            area = in(reg) area,
            counters = in(reg) OF_PROCESSORS.as_ptr(),
            turns = const TURNS,
        );
    }
    done == 1
}

fn count(own: &AtomicU64) {
    let area = area().unwrap();
    loop {
        if PAUSE.load(Ordering::SeqCst) {
            PAUSED.fetch_add(1, Ordering::SeqCst);
            while PAUSE.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            PAUSED.fetch_sub(1, Ordering::SeqCst);
        }
        if raise(area) {
            own.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn sum(counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| counter.0.load(Ordering::SeqCst)).sum()
}

fn counters(stage: Stage) {
    for own in &OF_THREADS {
        thread(|| count(&own.0));
    }
    stage.serve(|_| verify_counters());
}

/// All threads go on, and no counter has lost anything.
fn verify_counters() -> Verdict {
    let before: Vec<u64> = OF_THREADS.iter().map(|counter| counter.0.load(Ordering::SeqCst)).collect();
    let start = Instant::now();
    let moves = |(own, before): (&Counter, &u64)| own.0.load(Ordering::SeqCst) > *before + 20;
    while !OF_THREADS.iter().zip(&before).all(moves) {
        verify!(start.elapsed().as_secs() < 10, "a thread stands still: {before:?}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    PAUSE.store(true, Ordering::SeqCst);
    while PAUSED.load(Ordering::SeqCst) < THREADS as u32 {
        std::thread::yield_now();
    }
    let sums = (sum(&OF_PROCESSORS), sum(&OF_THREADS));
    PAUSE.store(false, Ordering::SeqCst);
    while PAUSED.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    verify!(sums.0 == sums.1, "the counters of processors say {}, the threads {}", sums.0, sums.1);
    Ok(())
}

fn left_running() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("counters", &[])?;
    for _ in 0..5 {
        case.dump_with(root, &["--leave-running"])?;
        case.ask()?;
    }
    case.finish(root)
}
