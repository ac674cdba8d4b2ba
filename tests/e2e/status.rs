//! Stops, goings-on and ends of children, as their parent is told.

use std::fs;
use std::sync::atomic::Ordering;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, skip};
use crate::shapes::{Post, counters, new_group, wait_for_state};
use crate::stage::kernel::fork;
use crate::stage::{Stage, verify};
use crate::tree::ask_all;

pub(crate) const TOPIC: Topic = Topic {
    name: "status",
    fixtures: &[("stop-signals", stop_signals), ("continued", continued), ("core", core_zombie)],
    cases: &[
        ("every_stop_signal", || two_rounds("stop-signals")),
        ("going_on_that_the_parent_has_not_seen", || two_rounds("continued")),
        ("zombie_that_dumped_core", zombie_that_dumped_core),
    ],
};

/// Whether a child has stopped or gone on, as its parent is told, once: the status.
fn told(child: i32, options: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is a valid place.
    let mut wait = || unsafe { libc::waitpid(child, &raw mut status, options | libc::WNOHANG) };
    let is_told = [wait(), wait()] == [child, 0];
    is_told.then_some(status)
}

/// Children that were stopped by each signal that does so, of every second of which the parent was told. A further one
/// waits in each.
fn stop_signals(stage: Stage) {
    const SIGNALS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let stops = counters();
    let children: Vec<(i32, i32, bool)> = SIGNALS
        .into_iter()
        .flat_map(|signal| [(signal, false), (signal, true)])
        .enumerate()
        .map(|(number, (signal, is_told))| {
            let child = fork(move || {
                new_group(0);
                loop {
                    stops[number].fetch_add(1, Ordering::SeqCst);
                    // SAFETY: plain integers.
                    unsafe { libc::raise(signal) };
                }
            });
            (child, signal, is_told)
        })
        .collect();
    let stop_all = move |children: &[(i32, i32, bool)], count: u64| {
        for (number, &(child, signal, is_told)) in children.iter().enumerate() {
            while stops[number].load(Ordering::SeqCst) < count {
                std::thread::yield_now();
            }
            wait_for_state(child, "T");
            if is_told {
                let status = told(child, libc::WUNTRACED).expect("a stop to be told of");
                assert_eq!(libc::WSTOPSIG(status), signal);
            }
            // It waits until the process goes on, and is forgotten then.
            // SAFETY: plain integers.
            unsafe { libc::kill(child, libc::SIGTTIN) };
        }
    };
    stop_all(&children, 1);
    stage.serve(move |number| {
        for &(child, signal, was_told) in &children {
            let text = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let waiting = text.lines().find_map(|line| line.strip_prefix("ShdPnd:\t"));
            let waiting = waiting.and_then(|set| u64::from_str_radix(set, 16).ok());
            verify!(waiting == Some(1 << (libc::SIGTTIN - 1)), "signals {waiting:x?} wait in {child}");
            let by = told(child, libc::WUNTRACED).map(|status| libc::WSTOPSIG(status));
            verify!(by == (!was_told).then_some(signal), "stopped by {by:?}, not {signal}; told: {was_told}");
            // SAFETY: plain integers.
            unsafe { libc::kill(child, libc::SIGCONT) };
        }
        stop_all(&children, u64::from(number) + 1);
        Ok(())
    });
}

/// A child that was stopped and has gone on, of which its parent has not been told.
fn continued(stage: Stage) {
    let post = Post::new();
    let child = fork(|| post.serve());
    let go_on = move || {
        // SAFETY: plain integers.
        unsafe { libc::kill(child, libc::SIGSTOP) };
        wait_for_state(child, "T");
        // SAFETY: plain integers.
        unsafe { libc::kill(child, libc::SIGCONT) };
    };
    go_on();
    stage.serve(move |_| {
        ask_all(&[post.ask], &[post.answer])?;
        verify!(told(child, libc::WUNTRACED).is_none(), "a stop is told that is over");
        let status = told(child, libc::WCONTINUED);
        verify!(status.is_some_and(|status| libc::WIFCONTINUED(status)), "going on is told as {status:?}");
        go_on();
        Ok(())
    });
}

/// A zombie whose status says that it has dumped core, which no restore can bring about: the report says so.
fn zombie_that_dumped_core() -> Outcome {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.starts_with('|') || pattern.starts_with('/') || pattern.trim().is_empty() {
        return skip("a core pattern of a file in the current directory");
    }
    let mut case = Case::new()?;
    let root = case.start("core", &[])?;
    case.ask()?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let pid_file = case.path("restored.pid");
    let arguments = ["restore", text(&image), "--detach", "--pid-file", text(&pid_file)];
    let ran = case.vckpt(&arguments)?.good()?;
    ensure!(ran.stderr.contains("had dumped core"), "not told: {}", ran.describe());
    let root = ran.stdout.trim().parse()?;
    case.ask()?;
    case.finish(root)
}

fn core_zombie(stage: Stage) {
    let child = fork(|| {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limit is a valid one; the signal ends this process.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
            libc::raise(libc::SIGQUIT)
        }
    });
    wait_for_state(child, "Z");
    stage.serve(move |number| {
        // SAFETY: a zeroed siginfo is a valid place.
        let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        // SAFETY: a valid place.
        unsafe { libc::waitid(libc::P_PID, child as u32, &raw mut information, flags) };
        let expected = if number == 1 { libc::CLD_DUMPED } else { libc::CLD_KILLED };
        // SAFETY: for a child, this is its status.
        let signal = unsafe { information.si_status() };
        verify!(
            (information.si_code, signal) == (expected, libc::SIGQUIT),
            "{} {signal}",
            information.si_code
        );
        Ok(())
    });
}
