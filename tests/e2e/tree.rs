//! Process trees: parents, sessions, groups, zombies, stopped children, waiting for children after a restore.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::case::{Case, two_rounds};
use crate::harness::process::{spawn, wait_exit};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic};
use crate::stage::kernel::{check, fork, pipe, put, take, wait};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "tree",
    fixtures: &[
        ("family", family),
        ("zombies", zombies),
        ("stopped", stopped),
        ("stop-untold", stop_untold),
        ("orphans", orphans),
    ],
    cases: &[
        ("sessions_and_groups", || two_rounds("family")),
        ("zombies", || two_rounds("zombies")),
        ("stopped_child", || two_rounds("stopped")),
        ("stop_that_the_parent_has_not_seen", || two_rounds("stop-untold")),
        ("subreaper_and_orphans", || two_rounds("orphans")),
        ("session_of_an_ended_leader", session_of_an_ended_leader),
    ],
};

/// A program that a script started in the background, before the script, which led the session, ended: the session
/// and the group keep their numbers.
fn session_of_an_ended_leader() -> Outcome {
    let mut case = Case::new()?;
    let pid_file = case.path("family.pid");
    let mut script = case.command(&need_program("bash")?, "family")?;
    // A program that is started in the background of a script ignores these two signals; that is not the point here.
    script.args(["-c", "trap - INT QUIT; \"$@\" & echo $! > \"$0\""]).arg(&pid_file);
    let fixture = case.fixture("family", &[])?;
    let script = spawn(script.arg(fixture.get_program()).args(fixture.get_args()))?;
    wait_exit(script, Duration::from_secs(10))?;
    let mut root = fs::read_to_string(&pid_file)?.trim().parse()?;
    case.wait_ready("family", root)?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}

/// Identity of the calling process.
pub(crate) fn identity() -> [i32; 4] {
    // SAFETY: getters without pointers.
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgid(0), libc::getsid(0)] }
}

/// A member of the tree: answers each byte on one pipe with its identity on another, then a child's answer.
pub(crate) fn member(ask: i32, answer: i32) -> i32 {
    loop {
        match take(ask, 1) {
            Ok(bytes) if bytes.is_empty() => return 0,
            Ok(_) => {}
            Err(error) => {
                eprintln!("a member was interrupted: {error}");
                return 1;
            }
        }
        let bytes: Vec<u8> = identity().iter().flat_map(|id| id.to_ne_bytes()).collect();
        if put(answer, &bytes).is_err() {
            return 1;
        }
    }
}

pub(crate) fn ask_all(asks: &[[i32; 2]], answers: &[[i32; 2]]) -> Result<Vec<[i32; 4]>, String> {
    let mut all = Vec::new();
    for (ask, answer) in asks.iter().zip(answers) {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let bytes = take(answer[0], 16).map_err(|error| error.to_string())?;
        let words =
            bytes.chunks_exact(4).map(|chunk| i32::from_ne_bytes(chunk.try_into().expect("four bytes")));
        all.push(words.collect::<Vec<i32>>().try_into().map_err(|_| "a short answer")?);
    }
    Ok(all)
}

fn family(stage: Stage) {
    let asks: Vec<[i32; 2]> = (0..5).map(|_| pipe(0)).collect();
    let answers: Vec<[i32; 2]> = (0..5).map(|_| pipe(0)).collect();
    let pair = |number: usize| (asks[number][0], answers[number][1]);
    // 0: a plain child. 1: leader of its own group. 2: same group as 1. 3: leader of a session, whose
    // child 4 is in a group of its own.
    fork(|| member(pair(0).0, pair(0).1));
    let leader = fork(|| {
        // SAFETY: plain integers.
        unsafe { libc::setpgid(0, 0) };
        member(pair(1).0, pair(1).1)
    });
    // SAFETY: plain integers; done on both sides, as shells do.
    unsafe { libc::setpgid(leader, leader) };
    fork(move || {
        // SAFETY: plain integers.
        unsafe { libc::setpgid(0, leader) };
        member(pair(2).0, pair(2).1)
    });
    fork(|| {
        // SAFETY: plain integers.
        unsafe { libc::setsid() };
        fork(|| {
            // SAFETY: plain integers.
            unsafe { libc::setpgid(0, 0) };
            member(pair(4).0, pair(4).1)
        });
        member(pair(3).0, pair(3).1)
    });
    let before = ask_all(&asks, &answers).expect("the family answers");
    assert_eq!(before[2][2], before[1][0], "member 2 is in the group of member 1");
    assert_eq!(before[3][3], before[3][0], "member 3 leads a session");
    assert_eq!(before[4][1], before[3][0], "member 4 is a child of member 3");
    stage.serve(move |_| {
        let now = ask_all(&asks, &answers)?;
        verify!(now == before, "pid, parent, group, session: {before:?} became {now:?}");
        Ok(())
    });
}

fn zombies(stage: Stage) {
    // SAFETY: a fork in a process of one thread, then plain calls.
    let die = |number: i32| fork(move || unsafe { libc::raise(number) });
    let mut made = Vec::new();
    let mut make = move || {
        made.clear();
        made.extend([
            (fork(|| 0), 0),
            (fork(|| 37), 37 << 8),
            (die(libc::SIGTERM), 15),
            (die(libc::SIGKILL), 9),
        ]);
        for &(pid, _) in &made {
            let stat = format!("/proc/{pid}/stat");
            while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        made.clone()
    };
    let mut expected = make();
    stage.serve(move |_| {
        for (pid, status) in &expected {
            // SAFETY: a zeroed siginfo is a valid place.
            let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
            let looked = unsafe { libc::waitid(libc::P_PID, *pid as u32, &raw mut information, flags) };
            verify!(looked == 0, "waitid({pid}): {}", std::io::Error::last_os_error());
            verify!(information.si_signo == libc::SIGCHLD, "child {pid} is no zombie");
            let found = wait(*pid).map_err(|error| format!("zombie {pid}: {error}"))?;
            verify!(found == *status, "zombie {pid}: status {found:#x}, not {status:#x}");
        }
        verify!(wait(-1).is_err(), "there is one child too many");
        expected = make();
        Ok(())
    });
}

/// A stopped child stays stopped, and goes on when it is told to.
fn stopped(stage: Stage) {
    let (ask, answer) = (pipe(0), pipe(0));
    let child = fork(|| member(ask[0], answer[1]));
    let stop = move || {
        let mut status = 0;
        // SAFETY: `status` is a valid place.
        unsafe {
            libc::kill(child, libc::SIGSTOP);
            check(libc::waitpid(child, &raw mut status, libc::WUNTRACED)).unwrap();
        }
        assert!(libc::WIFSTOPPED(status));
    };
    stop();
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        // The parent has already been told of the stop: it must not be told again.
        let mut status = 0;
        // SAFETY: `status` is a valid place.
        let told = unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
        verify!(told == 0, "waitpid reports {told}, status {status:#x}");
        // SAFETY: a valid pollfd; half of a tenth of a second is enough for a running child to answer.
        let mut watched = libc::pollfd { fd: answer[0], events: libc::POLLIN, revents: 0 };
        verify!(unsafe { libc::poll(&raw mut watched, 1, 50) } == 0, "the stopped child runs");
        // SAFETY: plain integers.
        unsafe { libc::kill(child, libc::SIGCONT) };
        let bytes = take(answer[0], 16).map_err(|error| error.to_string())?;
        verify!(bytes.len() == 16, "a short answer of the child that was stopped");
        // SAFETY: `status` is a valid place.
        let told = unsafe { libc::waitpid(child, &raw mut status, libc::WCONTINUED) };
        verify!(
            told == child && libc::WIFCONTINUED(status),
            "waitpid for the continued child: {told} {status:#x}"
        );
        stop();
        Ok(())
    });
}

/// A child stopped as by a key at the terminal, of which the parent has not been told: it must be, once.
fn stop_untold(stage: Stage) {
    let child = fork(|| {
        // SAFETY: plain integers.
        unsafe { libc::setpgid(0, 0) };
        loop {
            // SAFETY: as above.
            unsafe { libc::raise(libc::SIGTSTP) };
        }
    });
    let stops = move || {
        let stat = format!("/proc/{child}/stat");
        while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") T ")) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    stops();
    stage.serve(move |_| {
        let mut status = 0;
        // SAFETY: `status` is a valid place.
        let mut wait = || unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
        let told = [wait(), wait()];
        verify!(told == [child, 0], "waitpid reports {told:?} for {child}");
        let by = libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status));
        verify!(by == Some(libc::SIGTSTP), "stopped by {by:?}");
        // SAFETY: plain integers.
        unsafe { libc::kill(child, libc::SIGCONT) };
        // It takes a moment until the child runs.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        stops();
        Ok(())
    });
}

/// A subreaper inside the tree gets the orphans, before and after a restore.
fn orphans(stage: Stage) {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).unwrap();
    let (ask, answer) = (pipe(0), pipe(0));
    let last = pipe(0);
    // The middle child dies when it is told to; its own child is then an orphan.
    let middle = fork(|| {
        fork(|| member(ask[0], answer[1]));
        i32::from(take(last[0], 1).is_err())
    });
    let mut orphaned = false;
    stage.serve(move |_| {
        if !orphaned {
            put(last[1], b"!").map_err(|error| error.to_string())?;
            let status = wait(middle).map_err(|error| error.to_string())?;
            verify!(status == 0, "the middle child ended with {status:#x}");
            orphaned = true;
        }
        let own = identity()[0];
        let start = Instant::now();
        loop {
            let parent = ask_all(&[ask], &[answer])?[0][1];
            if parent == own {
                return Ok(());
            }
            verify!(start.elapsed() < Duration::from_secs(5), "the orphan's parent is {parent}, not {own}");
        }
    });
}
