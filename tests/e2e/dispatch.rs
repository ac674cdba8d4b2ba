//! System calls that a program has handed to itself (syscall user dispatch), as emulators do.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure};
use crate::stage::asked::{Asked, verify_all};
use crate::stage::kernel::{check, handle};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "dispatch",
    fixtures: &[("dispatched", dispatched), ("dispatching", dispatching)],
    cases: &[("of_threads", || two_rounds("dispatched")), ("that_is_refused", that_is_refused)],
};

/// `PR_SET_SYSCALL_USER_DISPATCH`, `PR_SYS_DISPATCH_ON`.
const SET_DISPATCH: i32 = 59;
const ON: u64 = 1;
/// What the selector says.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;
/// What the handler makes of a call.
const RESULT: i64 = 4242;

thread_local! {
    static SELECTOR: AtomicU8 = const { AtomicU8::new(ALLOW) };
    static SEEN: AtomicI64 = const { AtomicI64::new(0) };
}

/// Answers a call that was handed to the program, and lets those behind it be made.
extern "C" fn answer(_: i32, information: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SELECTOR.with(|selector| selector.store(ALLOW, Ordering::SeqCst));
    // SAFETY: the kernel gives valid pointers; of SIGSYS the number of the call is the seventh word of 32 bits.
    unsafe {
        let number = *information.cast::<i32>().add(6);
        SEEN.with(|seen| seen.store(number.into(), Ordering::SeqCst));
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] = RESULT;
    }
}

/// Hands the calls of this thread to its handler from now on, when the selector says so.
fn dispatch() {
    let selector = SELECTOR.with(AtomicU8::as_ptr);
    // SAFETY: no code is exempt; the selector lives as long as the thread.
    check(unsafe { libc::prctl(SET_DISPATCH, ON, 0_u64, 0_u64, selector) }).unwrap();
}

/// What comes of a call that is to be handed to the handler.
fn result() -> String {
    SEEN.with(|seen| seen.store(0, Ordering::SeqCst));
    let own = SELECTOR.with(AtomicU8::as_ptr);
    // SAFETY: a byte of this thread; a call without arguments right behind it.
    let result = unsafe {
        own.write_volatile(BLOCK);
        libc::syscall(libc::SYS_getppid)
    };
    let rest = SELECTOR.with(|selector| selector.swap(ALLOW, Ordering::SeqCst));
    let seen = SEEN.with(|seen| seen.load(Ordering::SeqCst));
    format!("{} {seen} {rest}", if result == RESULT { "answered" } else { "made" })
}

fn dispatched(stage: Stage) {
    handle(libc::SIGSYS, answer, 0, &[]);
    dispatch();
    let all =
        vec![Asked::thread("another", dispatch, result), Asked::thread("not dispatched", || {}, result)];
    let own = result();
    assert_eq!(own, format!("answered {} 0", libc::SYS_getppid));
    stage.serve(move |_| {
        let now = result();
        verify!(now == own, "{own} became {now}");
        verify_all(&all)
    });
}

/// Has a thread that hands every call to its handler, and makes none.
fn dispatching(stage: Stage) {
    handle(libc::SIGSYS, answer, 0, &[]);
    thread(|| {
        dispatch();
        SELECTOR.with(|selector| {
            selector.store(BLOCK, Ordering::SeqCst);
            READY.store(1, Ordering::SeqCst);
            loop {
                std::hint::spin_loop();
            }
        })
    });
    while READY.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    stage.serve(|_| Ok(()));
}

static READY: AtomicU8 = AtomicU8::new(0);

fn that_is_refused() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("dispatching", &[])?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("syscall user dispatch"), "not by name: {}", ran.describe());
    case.ask()?;
    case.finish(root)
}
