//! Process trees: parents, sessions, groups, zombies, stopped children, waiting for children after a restore.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::process::{spawn, wait_exit};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, skip};
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
        ("shapes", shapes),
        ("large", large),
        ("stop-signals", stop_signals),
        ("continued", continued),
        ("core", core_zombie),
        ("births", births),
    ],
    cases: &[
        ("sessions_and_groups", || two_rounds("family")),
        ("zombies", || two_rounds("zombies")),
        ("stopped_child", || two_rounds("stopped")),
        ("stop_that_the_parent_has_not_seen", || two_rounds("stop-untold")),
        ("subreaper_and_orphans", || two_rounds("orphans")),
        ("leaders_that_ended_or_left", || two_rounds("shapes")),
        ("every_stop_signal", || two_rounds("stop-signals")),
        ("going_on_that_the_parent_has_not_seen", || two_rounds("continued")),
        ("zombie_that_dumped_core", zombie_that_dumped_core),
        ("deep_and_wide", || two_rounds("large")),
        ("births_and_deaths_all_the_time", || two_rounds("births")),
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
fn identity() -> [i32; 4] {
    // SAFETY: getters without pointers.
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgid(0), libc::getsid(0)] }
}

/// A member of the tree: answers each byte on one pipe with its identity on another, then a child's answer.
fn member(ask: i32, answer: i32) -> i32 {
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

fn ask_all(asks: &[[i32; 2]], answers: &[[i32; 2]]) -> Result<Vec<[i32; 4]>, String> {
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

/// A member with its pipes, as [`member`] has them.
struct Post {
    ask: [i32; 2],
    answer: [i32; 2],
}

impl Post {
    fn new() -> Self {
        Self { ask: pipe(0), answer: pipe(0) }
    }

    fn serve(&self) -> i32 {
        member(self.ask[0], self.answer[1])
    }
}

fn ask_posts(posts: &[Post]) -> Result<Vec<[i32; 4]>, String> {
    let asks: Vec<[i32; 2]> = posts.iter().map(|post| post.ask).collect();
    let answers: Vec<[i32; 2]> = posts.iter().map(|post| post.answer).collect();
    ask_all(&asks, &answers)
}

fn wait_for_state(pid: i32, state: &str) {
    let stat = format!("/proc/{pid}/stat");
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(&format!(") {state} "))) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn new_session() {
    // SAFETY: plain integers.
    check(unsafe { libc::setsid() }).unwrap();
}

fn new_group(group: i32) {
    // SAFETY: plain integers.
    check(unsafe { libc::setpgid(0, group) }).unwrap();
}

/// Sessions and groups that no order of births by parents explains: this process gets all orphans.
fn shapes(stage: Stage) {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).unwrap();
    let posts: Vec<Post> = (0..12).map(|_| Post::new()).collect();
    let at = |number: usize| &posts[number];
    // A daemon, whose session has no leader any more; beside it a group without one, in that session; and one more
    // member of the session that is an orphan of its own.
    let daemon = fork(|| {
        new_session();
        fork(|| {
            fork(|| {
                new_group(0);
                fork(|| at(1).serve());
                fork(|| at(2).serve());
                0
            });
            fork(|| {
                fork(|| at(3).serve());
                0
            });
            at(0).serve()
        });
        0
    });
    wait(daemon).unwrap();
    // A session whose leader has ended, and was not waited for.
    let zombie = fork(|| {
        new_session();
        fork(|| at(4).serve());
        0
    });
    wait_for_state(zombie, "Z");
    // A group whose leader has gone to another one.
    let home = fork(|| {
        new_group(0);
        at(5).serve()
    });
    // SAFETY: plain integers; done on both sides, as shells do.
    unsafe { libc::setpgid(home, home) };
    fork(|| {
        new_group(0);
        fork(|| at(7).serve());
        new_group(home);
        at(6).serve()
    });
    // An orphan in the session of somebody else's child.
    fork(|| {
        fork(|| {
            new_session();
            let middle = fork(|| {
                fork(|| at(10).serve());
                0
            });
            wait(middle).unwrap();
            at(9).serve()
        });
        at(8).serve()
    });
    // A group in the session of this process whose leader has ended, and was not waited for.
    let leader = fork(|| {
        new_group(0);
        fork(|| at(11).serve());
        0
    });
    wait_for_state(leader, "Z");
    let own = std::process::id() as i32;
    let settled = |all: &[[i32; 4]]| [0, 1, 2, 3, 4, 10, 11].iter().all(|&number| all[number][1] == own);
    let mut before = ask_posts(&posts).expect("all answer");
    while !settled(&before) {
        before = ask_posts(&posts).expect("all answer");
    }
    let ids: Vec<i32> = before.iter().map(|identity| identity[0]).collect();
    assert_eq!((before[0][3], before[1][3], before[3][3]), (daemon, daemon, daemon));
    assert!(before[1][2] == before[2][2] && before[1][2] != daemon && !ids.contains(&before[1][2]));
    assert_eq!((before[4][3], before[10][3], before[11][2]), (zombie, ids[9], leader));
    assert_eq!((before[6][2], before[7][2]), (home, ids[6]));
    // The two that have ended and were not waited for are there too: until the end.
    stage.serve(move |_| {
        let now = ask_posts(&posts)?;
        verify!(now == before, "pid, parent, group, session: {before:?} became {now:?}");
        for ended in [zombie, leader] {
            let text = fs::read_to_string(format!("/proc/{ended}/stat")).unwrap_or_default();
            let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let group = ended.to_string();
            verify!(fields.first() == Some(&"Z") && fields.get(2) == Some(&group.as_str()), "{text}");
        }
        Ok(())
    });
}

/// A line of 10 generations, and 15 children of one parent.
fn large(stage: Stage) {
    let posts: Vec<Post> = (0..25).map(|_| Post::new()).collect();
    let at = |number: usize| &posts[number];
    fn line(posts: &[Post]) -> i32 {
        let Some((first, rest)) = posts.split_first() else { return 0 };
        if !rest.is_empty() {
            fork(|| line(rest));
        }
        first.serve()
    }
    fork(|| line(&posts[..10]));
    for number in 10..25 {
        fork(|| at(number).serve());
    }
    let before = ask_posts(&posts).expect("all answer");
    stage.serve(move |_| {
        let now = ask_posts(&posts)?;
        verify!(now == before, "{before:?} became {now:?}");
        Ok(())
    });
}

/// Counters that this process shares with its children.
fn counters() -> &'static [AtomicU64; 16] {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let shared = crate::stage::kernel::map(4096, protection, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    // SAFETY: the mapping is never unmapped, and zeros are valid there.
    unsafe { &*shared.cast::<[AtomicU64; 16]>() }
}

/// A child that has children all the time, and one that has threads.
fn births(stage: Stage) {
    let counters = counters();
    let order = Ordering::SeqCst;
    fork(|| {
        loop {
            let children = [fork(|| 3), fork(|| 4)];
            for (child, status) in children.into_iter().zip([3, 4]) {
                if wait(child).ok() != Some(status << 8) {
                    return 1;
                }
            }
            counters[0].fetch_add(1, order);
        }
    });
    fork(|| {
        loop {
            let threads = [0, 1, 2].map(|number| std::thread::spawn(move || number));
            let sum: i32 = threads.map(|thread| thread.join().unwrap_or(9)).iter().sum();
            if sum != 3 {
                return 1;
            }
            counters[1].fetch_add(1, order);
        }
    });
    stage.serve(move |_| {
        let start = Instant::now();
        for (number, counter) in counters[..2].iter().enumerate() {
            let before = counter.load(order);
            while counter.load(order) < before + 5 {
                verify!(start.elapsed() < Duration::from_secs(10), "child {number} does not go on");
                std::thread::yield_now();
            }
        }
        Ok(())
    });
}

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
