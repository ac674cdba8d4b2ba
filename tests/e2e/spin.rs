//! A thread that never makes a system call: general, x87, SSE and AVX registers, flags and the direction of time.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::Topic;
use crate::harness::case::{Case, two_rounds};
use crate::harness::process;
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "spin",
    fixtures: &[("spin", spin), ("plain-counter", plain_counter)],
    cases: &[
        ("registers", || two_rounds("spin")),
        ("counter", || two_rounds("plain-counter")),
        ("leave_running", leave_running),
        ("leave_stopped", leave_stopped),
    ],
};

static TURNS: AtomicU64 = AtomicU64::new(0);
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Keeps known values in all kinds of registers over many loop turns and compares them at the end.
fn registers_survive(seed: u64) -> bool {
    let pattern = [seed, !seed, seed.rotate_left(17), seed ^ 0x0123_4567_89ab_cdef];
    let mut after = [[0_u64; 4]; 2];
    let mut general = [0_u64; 4];
    let real = 1.234_567_890_123_f64 * seed as f64;
    let mut real_after = 0.0_f64;
    let wide = std::arch::is_x86_feature_detected!("avx");
    // SAFETY: all clobbered registers are declared, and the pointers are to live arrays of the right size.
    unsafe {
        if wide {
            asm!("vmovdqu ymm6, [{pattern}]", "vmovdqu ymm15, [{pattern}]",
                 "fld qword ptr [{real}]",
                 "mov r8, {seed}", "mov r9, {seed}", "not r9", "mov r12, {seed}", "rol r12, 7", "lea r13, [{seed} + 3]",
                 "mov {count}, 20000000",
                 "2:", "sub {count}, 1", "jnz 2b",
                 "fstp qword ptr [{real_after}]",
                 "vmovdqu [{after}], ymm6", "vmovdqu [{after} + 32], ymm15",
                 "mov [{general}], r8", "mov [{general} + 8], r9", "mov [{general} + 16], r12",
                 "mov [{general} + 24], r13", "vzeroupper",
                 pattern = in(reg) pattern.as_ptr(), after = in(reg) after.as_mut_ptr(),
                 general = in(reg) general.as_mut_ptr(), real = in(reg) &raw const real,
                 real_after = in(reg) &raw mut real_after, seed = in(reg) seed, count = out(reg) _,
                 out("r8") _, out("r9") _, out("r12") _, out("r13") _,
                 out("xmm6") _, out("xmm15") _, out("st(0)") _);
        }
    }
    let expected = [seed, !seed, seed.rotate_left(7), seed.wrapping_add(3)];
    !wide || (after == [pattern; 2] && general == expected && real_after.to_bits() == real.to_bits())
}

fn spin(stage: Stage) {
    thread(|| {
        for seed in 1.. {
            if !registers_survive(seed) {
                BROKEN.store(true, Ordering::SeqCst);
            }
            TURNS.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut last = 0;
    stage.serve(move |_| {
        verify!(!BROKEN.load(Ordering::SeqCst), "a register has changed");
        goes_on(&mut last)
    });
}

/// Waits until the counter has moved; it must never be behind what was seen before.
fn goes_on(last: &mut u64) -> Verdict {
    let now = TURNS.load(Ordering::SeqCst);
    verify!(now >= *last, "the counter went from {last} back to {now}");
    let start = std::time::Instant::now();
    while TURNS.load(Ordering::SeqCst) <= now {
        verify!(start.elapsed().as_secs() < 10, "the counter stands at {now}");
        std::thread::yield_now();
    }
    *last = TURNS.load(Ordering::SeqCst);
    Ok(())
}

fn plain_counter(stage: Stage) {
    thread(|| {
        loop {
            TURNS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut last = 0;
    stage.serve(move |_| goes_on(&mut last));
}

fn leave_running() -> crate::harness::Outcome {
    let mut case = Case::new()?;
    let root = case.start("spin", &[])?;
    for _ in 0..5 {
        case.dump_with(root, &["--leave-running"])?;
        case.ask()?;
    }
    case.finish(root)
}

fn leave_stopped() -> crate::harness::Outcome {
    let mut case = Case::new()?;
    let root = case.start("plain-counter", &[])?;
    case.dump_with(root, &["--leave-stopped"])?;
    let state = process::state(root);
    crate::harness::ensure!(state == Some('T'), "the target is left in state {state:?}, not stopped");
    process::signal(root, libc::SIGCONT)?;
    case.ask()?;
    case.finish(root)
}
