//! Trees of unusual shapes: leaders that ended or left, orphans, long lines and many children, births all the time.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, fork, pipe, wait};
use crate::stage::{Stage, verify};
use crate::tree::{ask_all, member};

pub(crate) const TOPIC: Topic = Topic {
    name: "shapes",
    fixtures: &[("shapes", shapes), ("large", large), ("births", births)],
    cases: &[
        ("leaders_that_ended_or_left", || two_rounds("shapes")),
        ("deep_and_wide", || two_rounds("large")),
        ("births_and_deaths_all_the_time", || two_rounds("births")),
    ],
};

/// A member with its pipes, as [`member`] has them.
pub(crate) struct Post {
    pub(crate) ask: [i32; 2],
    pub(crate) answer: [i32; 2],
}

impl Post {
    pub(crate) fn new() -> Self {
        Self { ask: pipe(0), answer: pipe(0) }
    }

    pub(crate) fn serve(&self) -> i32 {
        member(self.ask[0], self.answer[1])
    }
}

fn ask_posts(posts: &[Post]) -> Result<Vec<[i32; 4]>, String> {
    let asks: Vec<[i32; 2]> = posts.iter().map(|post| post.ask).collect();
    let answers: Vec<[i32; 2]> = posts.iter().map(|post| post.answer).collect();
    ask_all(&asks, &answers)
}

pub(crate) fn wait_for_state(pid: i32, state: &str) {
    let stat = format!("/proc/{pid}/stat");
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(&format!(") {state} "))) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn new_session() {
    // SAFETY: plain integers.
    check(unsafe { libc::setsid() }).unwrap();
}

pub(crate) fn new_group(group: i32) {
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
pub(crate) fn counters() -> &'static [AtomicU64; 16] {
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
