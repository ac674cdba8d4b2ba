//! Tasks that others hold: parents in `vfork(2)` until their child runs a program or ends, and tasks with a tracer.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::process::{alive, signal, until};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, short_or_long, skip};
use crate::stage::kernel::{check, fork, pipe, put, take, wait};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "held",
    fixtures: &[
        ("vfork", vfork),
        ("spawner", spawner),
        ("tracer", tracer),
        ("tracer-of-another", tracer_of_another),
    ],
    cases: &[
        ("vfork_child_that_runs_a_program_late", || vfork_child_late("run", "vm")),
        ("vfork_child_that_ends_late", || vfork_child_late("end", "vm")),
        ("vfork_child_with_memory_of_its_own", || vfork_child_late("end", "copy")),
        ("vfork_child_that_does_neither", vfork_child_that_does_neither),
        ("programs_started_all_the_time", || two_rounds("spawner")),
        ("tracer_in_the_tree", tracer_in_the_tree),
        ("tracer_outside", tracer_outside),
    ],
};

/// What a child in `vfork` waits for: paths that end with NUL, made before.
struct Order {
    go: std::ffi::CString,
    program: Option<std::ffi::CString>,
}

/// Waits until the file is there, then runs the program or ends.
extern "C" fn child_in_vfork(order: *mut libc::c_void) -> i32 {
    // SAFETY: the parent waits in `clone`, so what it lent is there; no memory but this stack is changed.
    unsafe {
        let order = &*order.cast::<Order>();
        while libc::access(order.go.as_ptr(), libc::F_OK) != 0 {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            libc::nanosleep(&raw const time, std::ptr::null_mut());
        }
        if let Some(program) = &order.program {
            let arguments = [program.as_ptr(), c"3600".as_ptr(), std::ptr::null()];
            libc::execv(program.as_ptr(), arguments.as_ptr());
        }
    }
    9
}

/// A thread that is in `vfork` until a file appears; another one answers.
fn vfork(stage: Stage) {
    static CHILD: AtomicU64 = AtomicU64::new(0);
    let words: Vec<&str> = stage.arguments.iter().map(String::as_str).collect();
    let program = words.get(2).map(|&path| std::ffi::CString::new(path).unwrap());
    let flags = libc::CLONE_VFORK | libc::SIGCHLD | if words[1] == "vm" { libc::CLONE_VM } else { 0 };
    let runs = program.is_some();
    let go = std::ffi::CString::new(stage.path("go").to_str().unwrap()).unwrap();
    let tid = pipe(0);
    thread(move || {
        // SAFETY: plain integers.
        put(tid[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
        let mut order = Order { go, program };
        let mut stack = vec![0_u128; 4096];
        // SAFETY: the child has a stack of its own, and what is lent lives until it is done with it.
        let child = unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            check(libc::clone(child_in_vfork, top.cast(), flags, (&raw mut order).cast())).unwrap()
        };
        CHILD.store(child as u64, Ordering::SeqCst);
        std::thread::park();
    });
    let tid = i32::from_ne_bytes(take(tid[0], 4).unwrap().try_into().unwrap());
    // It has a child when it is in `vfork`.
    let children = format!("/proc/self/task/{tid}/children");
    while fs::read_to_string(&children).unwrap().is_empty() {
        std::thread::yield_now();
    }
    stage.publish("child", fs::read_to_string(&children).unwrap().trim());
    stage.serve_except(&["memory map"], move |number| {
        if number == 1 {
            verify!(CHILD.load(Ordering::SeqCst) == 0, "vfork has returned too early");
            return Ok(());
        }
        let start = Instant::now();
        while CHILD.load(Ordering::SeqCst) == 0 {
            verify!(start.elapsed() < Duration::from_secs(10), "vfork does not return");
            std::thread::yield_now();
        }
        let child = CHILD.load(Ordering::SeqCst) as i32;
        if !runs {
            if number == 2 {
                let status = wait(child).map_err(|error| error.to_string())?;
                verify!(status == 9 << 8, "the child ended with {status:x}");
            }
            return Ok(());
        }
        let program = fs::read(format!("/proc/{child}/cmdline")).map_err(|error| error.to_string())?;
        let program = String::from_utf8_lossy(&program).replace('\0', " ");
        verify!(program.contains("sleep 3600"), "the child runs {program}");
        Ok(())
    });
}

/// A dump begins while a child is in `vfork`, which goes on when the parent is held by the dump.
fn vfork_child_late(what: &str, memory: &str) -> Outcome {
    let sleep = need_program("sleep")?;
    let mut case = Case::new()?;
    let words = [what, memory, text(&sleep)];
    let root = case.start("vfork", if what == "run" { &words } else { &words[..2] })?;
    case.ask()?;
    if case.is_control() {
        fs::write(case.path("go"), "")?;
        case.ask()?;
        return case.finish(root);
    }
    let child: i32 = fs::read_to_string(case.path("child"))?.parse()?;
    let image = case.path("late.vckpt");
    let pid = root.to_string();
    let arguments = ["dump", &pid, "-o", text(&image), "--freeze-timeout", "20"];
    let (dump, files) = case.start_vckpt(&arguments)?;
    let is_traced = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("TracerPid:\t") && !status.contains("TracerPid:\t0")
    };
    until("the dump to begin", Duration::from_secs(10), || {
        (is_traced(root) && is_traced(child)).then_some(())
    })?;
    fs::write(case.path("go"), "")?;
    case.ended(dump, files, &arguments)?.good()?;
    ensure!(!alive(root), "the root is there after the dump");
    let mut root = case.restore(&image)?;
    case.ask()?;
    root = case.round(root)?;
    case.finish(root)
}

/// The time runs out: the error says for whom the task waits.
fn vfork_child_that_does_neither() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("vfork", &["end", "vm"])?;
    case.ask()?;
    if !case.is_control() {
        let child = fs::read_to_string(case.path("child"))?;
        let image = case.path("never.vckpt");
        let pid = root.to_string();
        let ran = case.vckpt(&["dump", &pid, "-o", text(&image), "--freeze-timeout", "0.2"])?;
        ran.refused(&[8])?;
        ensure!(ran.stderr.contains("vfork") && ran.stderr.contains(&child), "not named: {}", ran.describe());
    }
    fs::write(case.path("go"), "")?;
    case.ask()?;
    case.finish(root)
}

/// Threads that start programs, one after the other.
fn spawner(stage: Stage) {
    static STARTED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    for count in &STARTED {
        thread(move || {
            loop {
                let status = std::process::Command::new("true").status();
                assert!(status.is_ok_and(|status| status.success()));
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    // Threads, descriptors and stacks come and go with each.
    stage.serve_except(&["thread ", "memory map", "status Threads", "fd ", "pending", "child "], |_| {
        let start = Instant::now();
        for count in &STARTED {
            let before = count.load(Ordering::SeqCst);
            while count.load(Ordering::SeqCst) < before + 5 {
                verify!(start.elapsed() < Duration::from_secs(20), "no programs are started any more");
                std::thread::yield_now();
            }
        }
        Ok(())
    });
}

/// Traces a child, and lets it run; or fails where that is forbidden.
fn trace(child: i32) -> std::io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, child, 0, 0) }).map(drop)
}

/// Traces a child; both answer.
fn tracer(stage: Stage) {
    let (ask, answer) = (pipe(0), pipe(0));
    let child = fork(|| crate::tree::member(ask[0], answer[1]));
    if trace(child).is_err() {
        return stage.publish("ready", "forbidden");
    }
    stage.publish("child", &child.to_string());
    stage.serve(move |_| {
        let identity = crate::tree::ask_all(&[ask], &[answer])?;
        verify!(identity[0][0] == child, "{identity:?} answers");
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let own = format!("TracerPid:\t{}\n", std::process::id());
        verify!(status.contains(&own), "the child is not traced any more: {status}");
        // SAFETY: plain integers: it goes on as soon as it has stopped.
        unsafe {
            check(libc::ptrace(libc::PTRACE_INTERRUPT, child, 0, 0)).map_err(|error| error.to_string())?;
            wait(child).map_err(|error| error.to_string())?;
            check(libc::ptrace(libc::PTRACE_CONT, child, 0, 0)).map_err(|error| error.to_string())?;
        }
        Ok(())
    });
}

fn tracer_in_the_tree() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("tracer", &[])?;
    if fs::read_to_string(case.path("ready"))? == "forbidden" {
        return skip("the right to trace a child");
    }
    case.ask()?;
    if !case.is_control() {
        let child = fs::read_to_string(case.path("child"))?;
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        let words = [format!("{root}"), child, "in the tree".to_owned(), "VC-PID-012".to_owned()];
        for word in words {
            ensure!(ran.stderr.contains(&word), "{word} is not said: {}", ran.describe());
        }
        case.ask()?;
        let ran = case.vckpt(&["check", &root.to_string()])?;
        ensure!(ran.stderr.contains("VC-PID-012"), "check does not say it: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}

/// Traces a child that is dumped alone.
fn tracer_of_another(stage: Stage) {
    let stage_of_child = Stage { folder: stage.folder.clone(), arguments: Vec::new() };
    let go = pipe(0);
    let child = fork(|| {
        take(go[0], 1).unwrap();
        stage_of_child.serve(|_| Ok(()));
        0
    });
    if trace(child).is_err() {
        return stage.publish("ready", "forbidden");
    }
    stage.publish("child", &child.to_string());
    put(go[1], b"!").unwrap();
    let _ = wait(child);
}

fn tracer_outside() -> Outcome {
    let mut case = Case::new()?;
    let tracer = case.start("tracer-of-another", &[])?;
    if fs::read_to_string(case.path("ready"))? == "forbidden" {
        return skip("the right to trace a child");
    }
    let root: i32 = fs::read_to_string(case.path("child"))?.parse()?;
    case.ask()?;
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        for _ in 0..short_or_long(1, 10) {
            let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
            ran.refused(&[3])?;
            let is_named = ran.stderr.contains("VC-PID-005") && ran.stderr.contains(&tracer.to_string());
            ensure!(is_named, "the tracer is not named: {}", ran.describe());
            case.ask()?;
        }
    }
    signal(root, libc::SIGKILL)?;
    case.finish(tracer)
}
