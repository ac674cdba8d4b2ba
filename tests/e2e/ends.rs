//! Ends and stops of processes as their relatives see them: reapers, signals on a parent's death, waits in progress,
//! zombies with every status.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{all_left_running, two_rounds};
use crate::harness::{Topic, is_root};
use crate::shapes::{Post, counters, new_group, wait_for_state};
use crate::stage::kernel::{block, check, fork, handle, pipe, put, signal_set, take, wait};
use crate::stage::{Stage, Verdict, thread, verify};
use crate::tree::ask_all;

pub(crate) const TOPIC: Topic = Topic {
    name: "ends",
    fixtures: &[
        ("reapers", reapers),
        ("deaths-of-parents", deaths_of_parents),
        ("stops-with-others", stops_with_others),
        ("waits-in-progress", waits_in_progress),
        ("all-zombies", all_zombies),
    ],
    cases: &[
        ("orphans_find_the_right_reaper", || two_rounds("reapers")),
        ("signals_on_the_death_of_a_parent", || two_rounds("deaths-of-parents")),
        ("stops_with_other_signals_pending", || two_rounds("stops-with-others")),
        ("waits_in_progress", || two_rounds("waits-in-progress")),
        ("zombies_of_every_status", || two_rounds("all-zombies")),
        ("left_running", || {
            all_left_running(&[
                "reapers",
                "deaths-of-parents",
                "stops-with-others",
                "waits-in-progress",
                "all-zombies",
            ])
        }),
    ],
};

const ORDER: Ordering = Ordering::SeqCst;
/// One for each question.
const QUESTIONS: usize = 3;

fn reaper(is: bool) {
    // SAFETY: plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, i32::from(is), 0, 0, 0) }).unwrap();
}

fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// A child that makes another one, which answers, and ends when it is told to.
fn middle(leaf: &Post, last: [i32; 2]) {
    fork(|| {
        fork(|| leaf.serve());
        i32::from(take(last[0], 1).is_err())
    });
}

/// A reaper since before it had children, one since after that, and one that is none any more: with each question a
/// parent ends below each of them.
fn reapers(stage: Stage) {
    reaper(true);
    let leaves: Vec<Vec<Post>> = (0..3).map(|_| (0..QUESTIONS).map(|_| Post::new()).collect()).collect();
    let lasts: Vec<Vec<[i32; 2]>> = (0..3).map(|_| (0..QUESTIONS).map(|_| pipe(0)).collect()).collect();
    let posts = [Post::new(), Post::new(), Post::new()];
    for (number, post) in posts.iter().enumerate() {
        fork(|| {
            if number != 1 {
                reaper(true);
            }
            for (leaf, last) in leaves[number].iter().zip(&lasts[number]) {
                middle(leaf, *last);
            }
            reaper(number != 2);
            post.serve()
        });
    }
    let pids: Vec<i32> = {
        let asks: Vec<[i32; 2]> = posts.iter().map(|post| post.ask).collect();
        let answers: Vec<[i32; 2]> = posts.iter().map(|post| post.answer).collect();
        ask_all(&asks, &answers).expect("they answer").iter().map(|identity| identity[0]).collect()
    };
    let own = std::process::id() as i32;
    let expected = [pids[0], pids[1], own];
    stage.serve_except(&["child "], move |number| {
        for question in 0..QUESTIONS {
            for (of, &reaper) in expected.iter().enumerate() {
                let leaf = &leaves[of][question];
                let parent = || Ok::<_, String>(ask_all(&[leaf.ask], &[leaf.answer])?[0][1]);
                if question + 1 > number as usize {
                    verify!(parent()? != reaper, "leaf {question} of {of} is an orphan too early");
                    continue;
                }
                if question + 1 == number as usize {
                    put(lasts[of][question][1], b"!").map_err(words)?;
                }
                let start = Instant::now();
                while parent()? != reaper {
                    let late = start.elapsed() > Duration::from_secs(10);
                    verify!(!late, "leaf {question} of {of} has parent {}, not {reaper}", parent()?);
                }
            }
        }
        Ok(())
    });
}

/// Children that want to hear of the death of their parent: one parent ends with each question.
fn deaths_of_parents(stage: Stage) {
    const SIGNAL: i32 = 45;
    reaper(true);
    let families: Vec<(i32, [[i32; 2]; 3])> = (0..QUESTIONS)
        .map(|_| {
            let (last, ask, answer) = (pipe(0), pipe(0), pipe(0));
            let parent = fork(|| {
                fork(|| {
                    block(&[SIGNAL]);
                    // SAFETY: plain integers.
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, SIGNAL) };
                    put(answer[1], b"r").unwrap();
                    // Says which signal it will get, which one waits, and from whom.
                    while take(ask[0], 1).is_ok_and(|bytes| bytes == b"?") {
                        let set = signal_set(&[SIGNAL]);
                        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                        let mut wanted = 0;
                        // SAFETY: valid places.
                        let text = unsafe {
                            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut wanted);
                            let mut information: libc::siginfo_t = std::mem::zeroed();
                            let found =
                                libc::sigtimedwait(&raw const set, &raw mut information, &raw const at_once);
                            format!("{wanted} {found} {}", information.si_pid())
                        };
                        put(answer[1], text.as_bytes()).unwrap();
                    }
                    0
                });
                i32::from(take(last[0], 1).is_err())
            });
            assert_eq!(take(answer[0], 1).unwrap(), b"r");
            (parent, [last, ask, answer])
        })
        .collect();
    stage.serve_except(&["child "], move |number| {
        for (question, &(parent, [last, ask, answer])) in families.iter().enumerate() {
            let ends = question + 1 == number as usize;
            if ends {
                put(last[1], b"!").map_err(words)?;
                wait(parent).map_err(words)?;
            }
            put(ask[1], b"?").map_err(words)?;
            let found = String::from_utf8_lossy(&take(answer[0], 100).map_err(words)?).into_owned();
            let expected =
                if ends { format!("{SIGNAL} {SIGNAL} {parent}") } else { format!("{SIGNAL} -1 0") };
            verify!(found == expected, "child {question} says {found}, not {expected}");
        }
        Ok(())
    });
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HANDLED.fetch_add(1, ORDER);
}

/// What `waitid` tells of a child, leaving it to be told again: (code, child, user, status).
fn told(child: i32, options: i32) -> (i32, i32, u32, i32) {
    // SAFETY: a zeroed siginfo is a valid place, and the fields are those of a child.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        let options = options | libc::WNOWAIT | libc::__WALL;
        libc::waitid(libc::P_PID, child as u32, &raw mut information, options);
        if information.si_signo == 0 {
            return (0, 0, 0, 0);
        }
        (information.si_code, information.si_pid(), information.si_uid(), information.si_status())
    }
}

/// Children stopped by each stop signal, in which all the other ones wait, and one with a handler: when they go on, only
/// that one has an effect.
fn stops_with_others(stage: Stage) {
    const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let handled = counters();
    // SAFETY: a getter.
    let user = unsafe { libc::getuid() };
    let children = STOPS.map(|stop| {
        let place = STOPS.iter().position(|&other| other == stop).unwrap();
        let child = fork(move || {
            new_group(0);
            handle(libc::SIGUSR1, count, 0, &[]);
            loop {
                // SAFETY: plain integers.
                unsafe { libc::raise(stop) };
                handled[place].store(HANDLED.load(ORDER), ORDER);
                handled[8 + place].fetch_add(1, ORDER);
            }
        });
        (child, stop, place)
    });
    let others = |stop: i32| STOPS.into_iter().filter(move |&other| other != stop && other != libc::SIGSTOP);
    let fill = move || {
        for (child, stop, _) in children {
            wait_for_state(child, "T");
            for signal in others(stop).chain([libc::SIGUSR1]) {
                // SAFETY: plain integers.
                check(unsafe { libc::kill(child, signal) }).unwrap();
            }
        }
    };
    fill();
    stage.serve(move |number| {
        for (child, stop, place) in children {
            let status = fs::read_to_string(format!("/proc/{child}/status")).map_err(words)?;
            let waits = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t"));
            let waits = waits.and_then(|set| u64::from_str_radix(set, 16).ok());
            let expected: u64 = others(stop).chain([libc::SIGUSR1]).map(|signal| 1 << (signal - 1)).sum();
            verify!(waits == Some(expected), "signals {waits:x?} wait in {child}, not {expected:x}");
            let found = told(child, libc::WSTOPPED | libc::WNOHANG);
            let expected = (libc::CLD_STOPPED, child, user, stop);
            verify!(found == expected, "told of {child}: {found:?}, not {expected:?}");
            // SAFETY: plain integers.
            check(unsafe { libc::kill(child, libc::SIGCONT) }).map_err(words)?;
            let found = told(child, libc::WCONTINUED | libc::WSTOPPED);
            // It may have stopped itself again, or be about to: the kernel looks for one after the other, so that for a
            // moment there may be neither.
            let good = [libc::CLD_CONTINUED, libc::CLD_STOPPED].contains(&found.0) && found.1 == child;
            verify!(good, "told of {child} that goes on: {found:?}");
            let start = Instant::now();
            while handled[8 + place].load(ORDER) < u64::from(number) {
                verify!(start.elapsed() < Duration::from_secs(10), "child {child} does not go on");
                std::thread::yield_now();
            }
            let times = handled[place].load(ORDER);
            verify!(times == u64::from(number), "child {child} has handled {times} signals, not {number}");
        }
        fill();
        Ok(())
    });
}

static EVENTS: std::sync::Mutex<Vec<(usize, [i32; 3])>> = std::sync::Mutex::new(Vec::new());

/// Threads that wait for a child to stop, to go on and to end, by its number, its group and its descriptor.
fn waits_in_progress(stage: Stage) {
    let post = Box::leak(Box::new([Post::new(), Post::new(), Post::new()]));
    let group = fork(|| {
        new_group(0);
        post[0].serve()
    });
    // SAFETY: plain integers; done on both sides, as shells do.
    unsafe { libc::setpgid(group, group) };
    let second = fork(|| {
        new_group(group);
        post[1].serve()
    });
    // SAFETY: plain integers.
    unsafe { libc::setpgid(second, group) };
    let third = fork(|| {
        new_group(0);
        post[2].serve()
    });
    // SAFETY: plain integers.
    unsafe { libc::setpgid(third, third) };
    // SAFETY: plain integers.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_pidfd_open, third, 0) }).unwrap() as u32;
    let waits = [
        (libc::P_PID, group as u32, libc::WSTOPPED | libc::WCONTINUED),
        (libc::P_PGID, group as u32, libc::WEXITED),
        (libc::P_PIDFD, descriptor, libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED),
        (libc::P_ALL, 0, libc::WCONTINUED),
    ];
    let tids: Vec<i32> = waits
        .into_iter()
        .enumerate()
        .map(|(number, (sort, id, options))| {
            let ready = pipe(0);
            thread(move || {
                // SAFETY: plain integers.
                put(ready[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
                loop {
                    // SAFETY: a zeroed siginfo is a valid place, and the fields are those of a child.
                    let found = unsafe {
                        let mut information: libc::siginfo_t = std::mem::zeroed();
                        match check(libc::waitid(sort, id, &raw mut information, options)) {
                            Ok(_) => [information.si_code, information.si_pid(), information.si_status()],
                            Err(error) => [-1, -1, error.raw_os_error().unwrap_or(0)],
                        }
                    };
                    EVENTS.lock().unwrap().push((number, found));
                    if found[0] == -1 {
                        return;
                    }
                }
            });
            i32::from_ne_bytes(take(ready[0], 4).unwrap().try_into().unwrap())
        })
        .collect();
    let all_wait = move || {
        for tid in &tids {
            let call = format!("/proc/self/task/{tid}/syscall");
            let prefix = format!("{} ", libc::SYS_waitid);
            while fs::read_to_string(&call).is_ok_and(|text| !text.starts_with(&prefix)) {
                std::thread::yield_now();
            }
        }
    };
    all_wait();
    stage.serve_except(&["thread ", "child ", "status Threads"], move |number| {
        verify!(EVENTS.lock().unwrap().is_empty(), "told of nothing: {:?}", EVENTS.lock().unwrap());
        let heard = |by: usize, event: [i32; 3]| -> Verdict {
            let start = Instant::now();
            loop {
                let mut events = EVENTS.lock().unwrap();
                if let Some(place) = events.iter().position(|found| *found == (by, event)) {
                    events.remove(place);
                    return Ok(());
                }
                verify!(start.elapsed() < Duration::from_secs(10), "wait {by}: no {event:?} in {events:?}");
                drop(events);
                std::thread::yield_now();
            }
        };
        for (child, by) in [(group, 0), (third, 2)] {
            // SAFETY: plain integers.
            unsafe { libc::kill(child, libc::SIGTSTP) };
            heard(by, [libc::CLD_STOPPED, child, libc::SIGTSTP])?;
            wait_for_state(child, "T");
            // SAFETY: plain integers.
            unsafe { libc::kill(child, libc::SIGCONT) };
            // Whoever comes first.
            let start = Instant::now();
            while !EVENTS.lock().unwrap().iter().any(|(_, event)| event[0] == libc::CLD_CONTINUED) {
                verify!(start.elapsed() < Duration::from_secs(10), "nobody is told that {child} goes on");
                std::thread::yield_now();
            }
            let events = std::mem::take(&mut *EVENTS.lock().unwrap());
            let good = |&(who, event): &(usize, [i32; 3])| {
                [by, 3].contains(&who) && event == [libc::CLD_CONTINUED, child, libc::SIGCONT]
            };
            verify!(events.len() == 1 && events.iter().all(good), "{child} goes on: {events:?}");
        }
        if number == 3 {
            put(post[1].ask[1], b"").map_err(words)?;
            // SAFETY: plain integers.
            unsafe { libc::kill(second, libc::SIGTERM) };
            heard(1, [libc::CLD_KILLED, second, libc::SIGTERM])?;
            // SAFETY: plain integers.
            unsafe { libc::kill(third, libc::SIGHUP) };
            heard(2, [libc::CLD_KILLED, third, libc::SIGHUP])?;
            heard(2, [-1, -1, libc::ECHILD])?;
            return Ok(());
        }
        all_wait();
        Ok(())
    });
}

/// What is left of a process that has ended: its line of `/proc`, and who it was.
fn remains(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // State, parent, group, session, terminal; exit signal; status.
    let kept = [0, 1, 2, 3, 4, 35, 49].map(|place| fields.get(place).copied().unwrap_or_default());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let users = status
        .lines()
        .filter(|line| line.starts_with("Uid") || line.starts_with("Gid") || line.starts_with("Name"));
    format!("{kept:?} {:?}", users.collect::<Vec<_>>())
}

/// Ended children that nobody has waited for: of each status, in a session or group of their own or not, with members that
/// go on, of another user, with another name, and with another signal on their end than the usual one.
fn all_zombies(stage: Stage) {
    let posts = Box::leak(Box::new([Post::new(), Post::new()]));
    reaper(true);
    // Nobody waits for a signal that nobody expects.
    block(&[libc::SIGUSR1]);
    let mut ended = Vec::new();
    let mut end = |status: i32, prepare: &dyn Fn() -> i32| {
        let child = fork(|| {
            prepare();
            let signal = status & 0x7f;
            if signal == 0 {
                return status >> 8;
            }
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            let none_blocked = signal_set(&[]);
            // SAFETY: plain integers and valid structures.
            unsafe {
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none_blocked, std::ptr::null_mut());
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
            77
        });
        ended.push((child, status));
    };
    for status in [0, 1, 127, 128, 255] {
        end(status << 8, &|| 0);
    }
    // All that end a process, without those whose core dumps a debugger might want.
    let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    for signal in
        (1..32).chain([34, 50, 64]).filter(|signal| !harmless.contains(signal) && !stops.contains(signal))
    {
        match signal % 3 {
            0 => end(signal, &|| 0),
            1 => end(signal, &|| {
                new_group(0);
                0
            }),
            // SAFETY: plain integers.
            _ => end(signal, &|| unsafe { libc::setsid() }),
        }
    }
    // With members that go on.
    end(9 << 8, &|| {
        // SAFETY: plain integers.
        unsafe { libc::setsid() };
        fork(|| posts[0].serve())
    });
    end(libc::SIGKILL, &|| {
        new_group(0);
        fork(|| posts[1].serve())
    });
    // SAFETY: a name that ends with NUL.
    end(3 << 8, &|| unsafe { libc::prctl(libc::PR_SET_NAME, c"late".as_ptr()) });
    if is_root() {
        // SAFETY: plain integers.
        end(4 << 8, &|| unsafe {
            libc::setresgid(65533, 65533, 65533) + libc::setresuid(65534, 65534, 65534)
        });
    }
    for exit_signal in [0, libc::SIGUSR1] {
        // SAFETY: as fork, with another signal on the end; the child ends at once.
        let child = unsafe { libc::syscall(libc::SYS_clone, exit_signal, 0, 0, 0, 0) } as i32;
        if child == 0 {
            // SAFETY: ends this child at once.
            unsafe { libc::_exit(5) };
        }
        ended.push((child, 5 << 8));
    }
    ended.iter().for_each(|&(child, _)| wait_for_state(child, "Z"));
    let before: Vec<String> = ended.iter().map(|&(child, _)| remains(child)).collect();
    let asks = [posts[0].ask, posts[1].ask];
    let answers = [posts[0].answer, posts[1].answer];
    let mut members = ask_all(&asks, &answers).expect("they answer");
    while members.iter().any(|member| member[1] != std::process::id() as i32) {
        members = ask_all(&asks, &answers).expect("they answer");
    }
    // SAFETY: a getter.
    let own = unsafe { libc::getuid() };
    stage.serve(move |number| {
        let now = ask_all(&asks, &answers)?;
        verify!(now == members, "members whose leader has ended: {members:?} became {now:?}");
        for (&(child, status), before) in ended.iter().zip(&before) {
            let now = remains(child);
            verify!(now == *before, "{child}, which ended with {status:x}: {before} became {now}");
            let signal = status & 0x7f;
            let (code, status_told) =
                if signal == 0 { (libc::CLD_EXITED, status >> 8) } else { (libc::CLD_KILLED, signal) };
            let user = if status == 4 << 8 { 65534 } else { own };
            let found = told(child, libc::WEXITED | libc::WNOHANG);
            let expected = (code, child, user, status_told);
            verify!(found == expected, "told of {child}: {found:?}, not {expected:?}");
            if number == 3 {
                let mut found = 0;
                // SAFETY: a valid place.
                check(unsafe { libc::waitpid(child, &raw mut found, libc::__WALL) }).map_err(words)?;
                verify!(found == status, "{child} ended with {found:x}, not {status:x}");
            }
        }
        Ok(())
    });
}
