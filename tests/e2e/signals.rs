//! Signals: handlers with flags and masks, pending ones with their details in order, alternate stacks.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::harness::case::{Case, two_rounds};
use crate::harness::process::until;
use crate::harness::{Outcome, Topic};
use crate::stage::kernel::{block, check, fork, handle, signal_set, wait};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "signals",
    fixtures: &[("pending", pending), ("handlers", handlers), ("in-handler", in_handler)],
    cases: &[
        ("pending_with_details", || two_rounds("pending")),
        ("handlers", || two_rounds("handlers")),
        ("inside_a_handler", inside_a_handler),
    ],
};

const REAL_TIME: i32 = 40;

/// Queues a signal with a value to this process, or to this thread alone.
fn queue(number: i32, value: usize, thread: bool) {
    // SAFETY: plain integers and a siginfo in the kernel's layout: sigval follows pid and uid.
    unsafe {
        let own = libc::getpid();
        if thread {
            let mut information: libc::siginfo_t = std::mem::zeroed();
            information.si_signo = number;
            information.si_code = libc::SI_QUEUE;
            (&raw mut information).cast::<usize>().add(3).write(value);
            let tid = libc::syscall(libc::SYS_gettid);
            check(libc::syscall(libc::SYS_rt_tgsigqueueinfo, own, tid, number, &raw const information))
                .unwrap();
        } else {
            check(libc::sigqueue(own, number, libc::sigval { sival_ptr: value as *mut _ })).unwrap();
        }
    }
}

/// Takes a pending signal: (number, code, sender, value).
fn next(numbers: &[i32]) -> Result<(i32, i32, i32, usize), String> {
    let set = signal_set(numbers);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid places.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        let number = check(libc::sigtimedwait(&raw const set, &raw mut information, &raw const at_once));
        let number = number.map_err(|error| format!("no signal of {numbers:?}: {error}"))?;
        Ok((number, information.si_code, information.si_pid(), information.si_value().sival_ptr as usize))
    }
}

fn load() -> i32 {
    for value in 0..5 {
        queue(REAL_TIME, 1000 + value, false);
    }
    queue(REAL_TIME + 1, 7, true);
    queue(REAL_TIME + 1, 8, true);
    queue(libc::SIGUSR2, 9, false);
    // A plain kill from another process, and a child that has ended: SIGCHLD is pending.
    // SAFETY: plain integers.
    let child = fork(|| unsafe { libc::kill(libc::getppid(), libc::SIGUSR1) });
    wait(child).unwrap();
    child
}

fn pending(stage: Stage) {
    let all = [REAL_TIME, REAL_TIME + 1, libc::SIGUSR1, libc::SIGUSR2, libc::SIGCHLD, libc::SIGHUP];
    block(&all);
    let mut child = load();
    stage.serve(move |_| {
        let own = unsafe { libc::getpid() };
        for value in 0..5 {
            let found = next(&[REAL_TIME])?;
            verify!(
                found == (REAL_TIME, libc::SI_QUEUE, own, 1000 + value),
                "real-time signal {value}: {found:?}"
            );
        }
        for value in 7..9 {
            let (number, code, _, found) = next(&[REAL_TIME + 1])?;
            let good = (number, code, found) == (REAL_TIME + 1, libc::SI_QUEUE, value);
            verify!(good, "thread's signal {value}: {number} {code} {found}");
        }
        let found = next(&[libc::SIGUSR2])?;
        verify!(found == (libc::SIGUSR2, libc::SI_QUEUE, own, 9), "SIGUSR2: {found:?}");
        let (number, code, sender, _) = next(&[libc::SIGUSR1])?;
        let good = (number, code, sender) == (libc::SIGUSR1, libc::SI_USER, child);
        verify!(good, "SIGUSR1 of {child}: {number} {code} {sender}");
        let (number, code, sender, _) = next(&[libc::SIGCHLD])?;
        let good = (number, code, sender) == (libc::SIGCHLD, libc::CLD_EXITED, child);
        verify!(good, "SIGCHLD of {child}: {number} {code} {sender}");
        let more = next(&all);
        verify!(more.is_err(), "a signal that nobody sent: {more:?}");
        child = load();
        Ok(())
    });
}

static SEEN: AtomicI64 = AtomicI64::new(0);
static VALUE: AtomicUsize = AtomicUsize::new(0);
static PLACE: AtomicUsize = AtomicUsize::new(0);
static MASK: AtomicI64 = AtomicI64::new(0);

extern "C" fn note(number: i32, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let here = 0_u8;
    PLACE.store(&raw const here as usize, Ordering::SeqCst);
    // SAFETY: the kernel passes a valid siginfo; the mask is read into a valid place.
    unsafe {
        VALUE.store((*information).si_value().sival_ptr as usize, Ordering::SeqCst);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        MASK.store((&raw const mask).cast::<i64>().read(), Ordering::SeqCst);
    }
    SEEN.fetch_add(i64::from(number), Ordering::SeqCst);
}

fn handlers(stage: Stage) {
    let stack: &'static mut [u8] = Box::leak(vec![0; 65536].into_boxed_slice());
    let range = stack.as_ptr_range();
    let range = range.start as usize..range.end as usize;
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is leaked and serves this thread alone.
    check(unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) }).unwrap();
    handle(libc::SIGUSR1, note, libc::SA_ONSTACK | libc::SA_RESTART, &[libc::SIGHUP, REAL_TIME]);
    handle(libc::SIGUSR2, note, libc::SA_NODEFER, &[]);
    // SAFETY: no handler code.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    handle(REAL_TIME, note, libc::SA_RESETHAND, &[]);
    block(&[libc::SIGWINCH]);
    stage.serve(move |_| -> Verdict {
        SEEN.store(0, Ordering::SeqCst);
        let bit = |number: i32| 1_i64 << (number - 1);
        queue(libc::SIGUSR1, 77, false);
        verify!(SEEN.load(Ordering::SeqCst) == 10, "the handler of SIGUSR1 did not run");
        verify!(VALUE.load(Ordering::SeqCst) == 77, "the handler got value {}", VALUE.load(Ordering::SeqCst));
        let place = PLACE.load(Ordering::SeqCst);
        verify!(
            range.contains(&place),
            "the handler ran at {place:x}, not on the alternate stack {range:x?}"
        );
        let expected: i64 = [libc::SIGUSR1, libc::SIGHUP, REAL_TIME, libc::SIGWINCH].map(bit).iter().sum();
        let mask = MASK.load(Ordering::SeqCst);
        verify!(mask == expected, "the mask in the handler was {mask:x}, not {expected:x}");
        queue(libc::SIGUSR2, 78, false);
        let place = PLACE.load(Ordering::SeqCst);
        verify!(!range.contains(&place), "the second handler ran on the alternate stack");
        let mask = MASK.load(Ordering::SeqCst);
        verify!(mask == bit(libc::SIGWINCH), "the mask in the second handler was {mask:x}");
        // SAFETY: ignored signals to ourselves.
        unsafe { libc::raise(libc::SIGHUP) };
        unsafe { libc::raise(libc::SIGTERM) };
        queue(REAL_TIME, 79, false);
        verify!(VALUE.load(Ordering::SeqCst) == 79, "the handler that is used once did not run");
        let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
        unsafe { libc::sigaction(REAL_TIME, std::ptr::null(), &raw mut now) };
        verify!(now.sa_sigaction == libc::SIG_DFL, "the handler that is used once is still there");
        handle(REAL_TIME, note, libc::SA_RESETHAND, &[]);
        Ok(())
    });
}

/// Frozen while a handler runs on the alternate stack: it must return to where the program was.
fn in_handler(stage: Stage) {
    static STAGE: std::sync::OnceLock<Stage> = std::sync::OnceLock::new();
    extern "C" fn serve(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // The signal is a synchronous one that this thread raises itself, so any call is safe here.
        let Some(stage) = STAGE.get() else { return };
        stage.serve(|round| {
            let mut now: libc::stack_t = unsafe { std::mem::zeroed() };
            unsafe { libc::sigaltstack(std::ptr::null(), &raw mut now) };
            verify!(
                now.ss_flags & libc::SS_ONSTACK != 0,
                "round {round}: not on the alternate stack any more"
            );
            if round == 3 {
                // The last answer comes from after the handler.
                std::fs::write(stage.path("stop"), "").map_err(|error| error.to_string())?;
            }
            Ok(())
        });
    }
    let size = 1 << 20;
    let stack: &'static mut [u8] = Box::leak(vec![0; size].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: size };
    // SAFETY: the stack is leaked.
    check(unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) }).unwrap();
    handle(libc::SIGUSR1, serve, libc::SA_ONSTACK, &[]);
    assert!(STAGE.set(stage).is_ok());
    let local = std::hint::black_box([0x5a_u8; 256]);
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(libc::SIGUSR1) };
    assert_eq!(std::hint::black_box(local), [0x5a; 256], "the frame below the handler");
    STAGE.get().expect("set above").publish("returned", "");
    // Stays until the harness ends it.
    loop {
        std::thread::park();
    }
}

fn inside_a_handler() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("in-handler", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    let returned = case.path("returned");
    until("the handler to return", std::time::Duration::from_secs(10), || returned.exists().then_some(()))?;
    case.finish(root)
}
