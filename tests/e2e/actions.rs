//! What happens on a signal after a restore: faults with their addresses, every flag of an action, alternate stacks that
//! disarm themselves.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, all_left_running, two_rounds};
use crate::harness::process::until;
use crate::harness::{Outcome, Topic};
use crate::shapes::{Post, new_group, wait_for_state};
use crate::stage::kernel::{block, check, fork, handle, map, pipe, put, take, wait};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "actions",
    fixtures: &[
        ("faults", faults),
        ("flags", flags),
        ("restarts", restarts),
        ("children-told", children_told),
        ("disarmed", disarmed),
    ],
    cases: &[
        ("faults_with_their_addresses", || two_rounds("faults")),
        ("nested_once_and_tagged", || two_rounds("flags")),
        ("calls_made_again_or_not", || two_rounds("restarts")),
        ("children_that_are_told_of_or_not", || two_rounds("children-told")),
        ("on_a_stack_that_disarms_itself", on_a_stack_that_disarms_itself),
        ("left_running", || all_left_running(&["faults", "flags", "restarts", "children-told"])),
    ],
};

const ORDER: Ordering = Ordering::SeqCst;

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static PLACE: AtomicUsize = AtomicUsize::new(0);
static TRAP: AtomicI64 = AtomicI64::new(0);
/// By how many bytes the program goes on behind the instruction.
static SKIP: AtomicI64 = AtomicI64::new(0);

/// Notes a fault; makes the page accessible if it is one, and else goes on behind the instruction.
extern "C" fn fault(number: i32, information: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let here = 0_u8;
    PLACE.store(&raw const here as usize, ORDER);
    SIGNAL.store(number, ORDER);
    // SAFETY: the kernel passes a valid siginfo and context.
    unsafe {
        CODE.store((*information).si_code, ORDER);
        ADDRESS.store((*information).si_addr() as usize, ORDER);
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        TRAP.store(registers[libc::REG_TRAPNO as usize], ORDER);
        registers[libc::REG_RIP as usize] += SKIP.load(ORDER);
        if number == libc::SIGSEGV && SKIP.load(ORDER) == 0 {
            let page = (*information).si_addr() as usize & !4095;
            libc::mprotect(page as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE);
        }
    }
}

/// An alternate stack; gives its range.
fn alternate_stack(size: usize, flags: i32) -> std::ops::Range<usize> {
    let stack: &'static mut [u8] = Box::leak(vec![0; size].into_boxed_slice());
    let range = stack.as_ptr_range();
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: flags, ss_size: size };
    // SAFETY: the stack is leaked and serves this thread alone.
    check(unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) }).unwrap();
    range.start as usize..range.end as usize
}

/// What the handler has noted: signal, code, address, number of the trap.
fn noted() -> (i32, i32, usize, i64) {
    (SIGNAL.swap(0, ORDER), CODE.swap(0, ORDER), ADDRESS.swap(0, ORDER), TRAP.swap(0, ORDER))
}

/// Each fault that a processor can bring about, in a handler on an alternate stack.
fn faults(stage: Stage) {
    let stack = alternate_stack(65536, 0);
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGTRAP, libc::SIGFPE, libc::SIGILL] {
        handle(signal, fault, libc::SA_ONSTACK, &[]);
    }
    let memory = map(3 * 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    let file = std::fs::File::create_new(stage.path("short")).unwrap();
    let file = std::os::fd::AsRawFd::as_raw_fd(&file);
    let beyond = map(8192, libc::PROT_READ, libc::MAP_SHARED, file) as usize;
    stage.serve(move |_| {
        SKIP.store(0, ORDER);
        let place = memory as usize + 4096 + 40;
        // SAFETY: a page of our own, which the handler makes writable.
        unsafe { (place as *mut u32).write_volatile(7) };
        let found = noted();
        verify!(found == (libc::SIGSEGV, 2, place, 14), "a write to a page that may be read: {found:x?}");
        let handled = PLACE.load(ORDER);
        verify!(stack.contains(&handled), "the handler ran at {handled:x}, not on {stack:x?}");
        // SAFETY: as before it was written.
        check(unsafe { libc::mprotect(memory.add(4096).cast(), 4096, libc::PROT_READ) }).unwrap();
        // SAFETY: the handler goes on behind each of these instructions, of which the length is known; no other
        // register is used.
        unsafe {
            std::arch::asm!("int3");
            let found = noted();
            verify!((found.0, found.1, found.3) == (libc::SIGTRAP, 0x80, 3), "int3: {found:x?}");
            SKIP.store(2, ORDER);
            let at: usize;
            std::arch::asm!("lea {at}, [rip]", "ud2", at = out(reg) at);
            let found = noted();
            verify!(found == (libc::SIGILL, 2, at, 6), "ud2 at {at:x}: {found:x?}");
            std::arch::asm!("xor ecx, ecx", "xor edx, edx", "mov eax, 1", "div ecx", out("ecx") _, out("edx") _, out("eax") _);
            let found = noted();
            verify!((found.0, found.1, found.3) == (libc::SIGFPE, 1, 0), "a division by zero: {found:x?}");
            std::arch::asm!("mov al, [rcx]", in("rcx") beyond + 4096 + 3, out("al") _);
            let found = noted();
            verify!(found == (libc::SIGBUS, 2, beyond + 4099, 14), "a read beyond a file: {found:x?}");
            std::arch::asm!("mov al, [rcx]", in("rcx") 40_usize, out("al") _);
            let found = noted();
            verify!(found == (libc::SIGSEGV, 1, 40, 14), "a read from nowhere: {found:x?}");
        }
        Ok(())
    });
}

static DEPTH: AtomicU64 = AtomicU64::new(0);
static DEEPEST: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Raises its own signal once more from inside.
extern "C" fn nested(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let depth = DEPTH.fetch_add(1, ORDER) + 1;
    DEEPEST.fetch_max(depth, ORDER);
    if RUNS.fetch_add(1, ORDER) == 0 {
        // SAFETY: a signal to ourselves.
        unsafe { libc::raise(number) };
    }
    DEPTH.fetch_sub(1, ORDER);
}

/// `SA_EXPOSE_TAGBITS`, a flag that changes nothing on this processor but is kept by the kernel.
const EXPOSE_TAGBITS: i32 = 0x800;

/// Handlers that may be interrupted by themselves or not, that serve once, and flags that only the kernel knows.
fn flags(stage: Stage) {
    const ONCE: i32 = 45;
    handle(libc::SIGUSR1, nested, libc::SA_NODEFER, &[]);
    handle(libc::SIGUSR2, nested, EXPOSE_TAGBITS | libc::SA_RESTART, &[]);
    let serve_once = || handle(ONCE, nested, libc::SA_RESETHAND | EXPOSE_TAGBITS, &[]);
    serve_once();
    let flags_of = |signal: i32| {
        let mut action = [0_u64; 4];
        // SAFETY: room for the kernel's structure.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8) };
        (action[0], action[1])
    };
    stage.serve(move |_| {
        for (signal, deepest) in [(libc::SIGUSR1, 2), (libc::SIGUSR2, 1)] {
            RUNS.store(0, ORDER);
            DEEPEST.store(0, ORDER);
            // SAFETY: a signal to ourselves.
            unsafe { libc::raise(signal) };
            let found = (RUNS.load(ORDER), DEEPEST.load(ORDER));
            verify!(found == (2, deepest), "signal {signal}: (runs, deepest) is {found:?}");
        }
        let (_, flags) = flags_of(libc::SIGUSR2);
        verify!(flags & EXPOSE_TAGBITS as u64 != 0, "the flag of tag bits is lost: {flags:x}");
        RUNS.store(1, ORDER);
        // SAFETY: a signal to ourselves.
        unsafe { libc::raise(ONCE) };
        let (handler, _) = flags_of(ONCE);
        verify!((RUNS.load(ORDER), handler) == (2, 0), "served once: {} {handler:x}", RUNS.load(ORDER));
        serve_once();
        Ok(())
    });
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HANDLED.fetch_add(1, ORDER);
}

/// Two threads that read from empty pipes: after a handler with `SA_RESTART` one reads on, after one without it the
/// other's read ends.
fn restarts(stage: Stage) {
    let again = libc::SIGUSR1;
    let not_again = libc::SIGUSR2;
    handle(again, count, libc::SA_RESTART, &[]);
    handle(not_again, count, 0, &[]);
    let readers = [again, not_again].map(|signal| {
        let (input, answers) = (pipe(0), pipe(0));
        let tid = pipe(0);
        thread(move || {
            block(&[if signal == again { not_again } else { again }]);
            // SAFETY: plain integers.
            put(tid[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
            loop {
                let result = take(input[0], 8);
                let text = result.map_or_else(|error| error.to_string(), |bytes| format!("{bytes:?}"));
                put(answers[1], text.as_bytes()).unwrap();
            }
        });
        let tid = i32::from_ne_bytes(take(tid[0], 4).unwrap().try_into().unwrap());
        (signal, tid, input, answers)
    });
    block(&[again, not_again]);
    // SAFETY: plain integers.
    let own = unsafe { libc::getpid() };
    stage.serve(move |_| {
        for (signal, tid, input, answers) in readers {
            let reads = format!("0 {:#x} ", input[0]);
            let call = format!("/proc/self/task/{tid}/syscall");
            let start = Instant::now();
            while !std::fs::read_to_string(&call).is_ok_and(|text| text.starts_with(&reads)) {
                verify!(start.elapsed() < Duration::from_secs(10), "thread {tid} does not read");
                std::thread::yield_now();
            }
            let before = HANDLED.load(ORDER);
            // SAFETY: plain integers.
            check(unsafe { libc::syscall(libc::SYS_tgkill, own, tid, signal) }).unwrap();
            while HANDLED.load(ORDER) == before {
                verify!(start.elapsed() < Duration::from_secs(10), "the handler of {signal} does not run");
                std::thread::yield_now();
            }
            let expected = if signal == again {
                put(input[1], b"x").map_err(|error| error.to_string())?;
                format!("{:?}", b"x")
            } else {
                std::io::Error::from_raw_os_error(libc::EINTR).to_string()
            };
            let found = take(answers[0], 100).map_err(|error| error.to_string())?;
            let found = String::from_utf8_lossy(&found);
            verify!(found == expected, "the read after signal {signal} gave {found}, not {expected}");
        }
        Ok(())
    });
}

static TOLD: AtomicU64 = AtomicU64::new(0);

extern "C" fn told(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TOLD.fetch_add(1, ORDER);
}

/// A program that does not want to hear of stops, and then has no use for the ends of its children either, of which one
/// had ended before.
fn children_told(stage: Stage) {
    handle(libc::SIGCHLD, told, libc::SA_NOCLDSTOP, &[]);
    let first = fork(|| 9);
    wait_for_state(first, "Z");
    handle(libc::SIGCHLD, told, libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT, &[]);
    let post = Post::new();
    let stopped = fork(|| {
        new_group(0);
        post.serve()
    });
    let mut children = vec![first];
    stage.serve(move |number| {
        // What was told of restores would be seen here.
        let before = TOLD.swap(0, ORDER);
        verify!(before == u64::from(number == 1), "{before} signals that nobody sent");
        // SAFETY: plain integers.
        unsafe { libc::kill(stopped, libc::SIGSTOP) };
        wait_for_state(stopped, "T");
        // SAFETY: plain integers.
        unsafe { libc::kill(stopped, libc::SIGCONT) };
        crate::tree::ask_all(&[post.ask], &[post.answer])?;
        verify!(TOLD.load(ORDER) == 0, "it is told of a stop");
        let end = fork(|| 0);
        let start = Instant::now();
        while TOLD.load(ORDER) == 0 || std::fs::exists(format!("/proc/{end}")).unwrap_or(true) {
            verify!(
                start.elapsed() < Duration::from_secs(10),
                "child {end}: {} times told",
                TOLD.load(ORDER)
            );
        }
        TOLD.store(0, ORDER);
        verify!(wait(end).is_err(), "there is something to be waited for of child {end}");
        if let (3, Some(first)) = (number, children.pop()) {
            let status = wait(first).map_err(|error| error.to_string())?;
            verify!(status == 9 << 8, "the first child ended with {status:x}");
        }
        Ok(())
    });
}

/// `SS_AUTODISARM`.
const AUTODISARM: i32 = i32::MIN;

fn current_stack() -> libc::stack_t {
    // SAFETY: a valid place.
    unsafe {
        let mut now: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &raw mut now);
        now
    }
}

/// Frozen in a handler on an alternate stack that was disarmed at its entry, and then armed with another one: both come
/// back, the first one when the handler returns.
fn disarmed(stage: Stage) {
    static STAGE: std::sync::OnceLock<Stage> = std::sync::OnceLock::new();
    static FIRST: std::sync::OnceLock<std::ops::Range<usize>> = std::sync::OnceLock::new();
    extern "C" fn serve(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // The signal is a synchronous one that this thread raises itself, so any call is safe here.
        let (Some(stage), Some(first)) = (STAGE.get(), FIRST.get()) else { return };
        assert_eq!(current_stack().ss_flags, libc::SS_DISABLE);
        let mut second = None;
        stage.serve(|round| -> Verdict {
            let here = 0_u8;
            verify!(first.contains(&(&raw const here as usize)), "not on the alternate stack any more");
            let now = current_stack();
            let expected = second.map_or((0, libc::SS_DISABLE), |start| (start, AUTODISARM));
            let found = (now.ss_sp as usize, now.ss_flags);
            verify!(found == expected, "round {round}: stack and flags are {found:x?}, not {expected:x?}");
            if round == 2 {
                second = Some(alternate_stack(65536, AUTODISARM).start);
            }
            if round == 3 {
                // The last answer comes from after the handler.
                std::fs::write(stage.path("stop"), "").map_err(|error| error.to_string())?;
            }
            Ok(())
        });
    }
    let first = FIRST.get_or_init(|| alternate_stack(1 << 20, AUTODISARM));
    handle(libc::SIGUSR1, serve, libc::SA_ONSTACK, &[]);
    assert!(STAGE.set(stage).is_ok());
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(libc::SIGUSR1) };
    let now = current_stack();
    assert_eq!((now.ss_sp as usize, now.ss_size, now.ss_flags), (first.start, 1 << 20, AUTODISARM));
    STAGE.get().expect("set above").publish("returned", "");
    // Stays until the harness ends it.
    loop {
        std::thread::park();
    }
}

fn on_a_stack_that_disarms_itself() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("disarmed", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    let returned = case.path("returned");
    until("the handler to return", Duration::from_secs(10), || returned.exists().then_some(()))?;
    case.finish(root)
}
