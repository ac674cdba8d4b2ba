//! Threads on small stacks within other memory, as languages with stacks of their own have them: nothing around such a
//! stack may change, neither in the image nor in a program that goes on, nor if a dump is killed.

use std::arch::asm;
use std::fs;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::process::{signal, wait_exit};
use crate::harness::{Outcome, Topic, short_or_long};
use crate::kills::{outside, same_again};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "small_stacks",
    fixtures: &[("small-stacks", small_stacks)],
    cases: &[
        ("restored", || two_rounds("small-stacks")),
        ("leave_running", leave_running),
        ("killed_dumps", killed_dumps),
    ],
};

const THREADS: usize = 3;
/// Bytes of memory around each stack.
const SLOT: usize = 32 * 1024;
/// Where in it the stack is, its length, and how much of that is left below the stack pointer.
const OFFSET: usize = 16 * 1024;
const STACK: usize = 1024;
const BELOW: usize = 512;
static WORDS: [AtomicU32; THREADS] = [const { AtomicU32::new(0) }; THREADS];
static RESULTS: [AtomicI64; THREADS] = [const { AtomicI64::new(i64::MAX) }; THREADS];

/// The byte that belongs at an offset.
fn canary(offset: usize) -> u8 {
    (offset.wrapping_mul(31) >> 3) as u8 | 1
}

/// Waits on a futex, for ever or for a second, with the stack pointer at `stack`.
fn wait_on(stack: *mut u8, word: &AtomicU32, seen: u32, limit: Option<&libc::timespec>) -> i64 {
    let mut result = libc::SYS_futex;
    // SAFETY: the stack is not used by anything but the kernel's knowledge of it, and comes back before the end.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {stack}",
            "syscall",
            "mov rsp, r12",
            stack = in(reg) stack,
            inout("rax") result,
            in("rdi") word.as_ptr(),
            in("rsi") libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            in("rdx") u64::from(seen),
            in("r10") limit.map_or(std::ptr::null(), std::ptr::from_ref),
            out("r12") _,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

fn untouched(memory: &[u8]) -> Verdict {
    for (offset, &byte) in memory.iter().enumerate() {
        // Within the stacks, that many bytes below the stack pointer are the kernel's and ours to use.
        let in_stack = (OFFSET..OFFSET + STACK).contains(&(offset % SLOT));
        verify!(in_stack || byte == canary(offset), "the byte at {offset:#x} has become {byte:#x}");
    }
    Ok(())
}

fn small_stacks(stage: Stage) {
    // Between other mappings of the same kind, as a heap is.
    let memory: &'static mut [u8] = Box::leak((0..SLOT * THREADS).map(canary).collect());
    let start = memory.as_mut_ptr() as usize;
    for number in 0..THREADS {
        let stack = start + number * SLOT + OFFSET + BELOW;
        thread(move || {
            let limit = libc::timespec { tv_sec: 1, tv_nsec: 0 };
            loop {
                let seen = WORDS[number].load(Ordering::SeqCst);
                let limit = (number == 0).then_some(&limit);
                let result = wait_on(stack as *mut u8, &WORDS[number], seen, limit);
                if result != -i64::from(libc::ETIMEDOUT) {
                    RESULTS[number].store(result, Ordering::SeqCst);
                }
            }
        });
    }
    let memory: &'static [u8] = memory;
    // Killed dumps leave frames of theirs mapped: they could lie on none of these stacks.
    let ignored: &[&str] = if stage.arguments.is_empty() { &[] } else { &["memory map"] };
    stage.serve_except(ignored, move |_| {
        untouched(memory)?;
        for (number, word) in WORDS.iter().enumerate() {
            let early = RESULTS[number].swap(i64::MAX, Ordering::SeqCst);
            verify!(early == i64::MAX, "the wait of thread {number} ended early with {early}");
            word.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            let mut woken = 0;
            while RESULTS[number].load(Ordering::SeqCst) == i64::MAX {
                // Once only: the next would end the wait that follows.
                if woken == 0 {
                    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
                    // SAFETY: the word is static.
                    woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1) };
                }
                verify!(start.elapsed() < Duration::from_secs(10), "thread {number} can't be woken");
                std::thread::yield_now();
            }
            let result = RESULTS[number].swap(i64::MAX, Ordering::SeqCst);
            // Between two waits it sees the new number at once.
            verify!(
                matches!(result, 0) || result == -i64::from(libc::EAGAIN),
                "the wait ended with {result}"
            );
        }
        untouched(memory)
    });
}

fn leave_running() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("small-stacks", &[])?;
    for _ in 0..5 {
        let image = case.dump_with(root, &["--leave-running"])?;
        fs::remove_file(image)?;
        case.ask()?;
    }
    case.finish(root)
}

fn killed_dumps() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("small-stacks", &["killed"])?;
    let image = case.path("killed.vckpt");
    let pid = root.to_string();
    let arguments = ["dump", &pid, "-o", text(&image), "--leave-running"];
    let took = case.vckpt(&arguments)?.good()?.took;
    let mut calm = outside(root)?;
    calm.remove("maps");
    for number in 0..short_or_long(30, 300) {
        let _ = fs::remove_file(&image);
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        // Spread evenly over the time that a dump takes; the moment itself is what is tested.
        std::thread::sleep(took.mul_f64(f64::from(number * 7 % 31) / 31.0));
        signal(supervisor, libc::SIGKILL)?;
        wait_exit(supervisor, Duration::from_secs(10))?;
        for file in files {
            let _ = fs::remove_file(file);
        }
        same_again(root, &calm, &format!("kill {number}"))?;
        if number % 5 == 4 {
            case.ask()?;
        }
    }
    case.ask()?;
    for entry in fs::read_dir(&case.folder)?.flatten() {
        if entry.file_name().to_string_lossy().contains("killed.vckpt") {
            fs::remove_file(entry.path())?;
        }
    }
    case.finish(root)
}
