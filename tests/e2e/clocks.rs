//! Clocks that never go back: on another boot, and in a time namespace of the program's own.

use std::fs;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::spawn;
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::{check, clock, timespec};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "clocks",
    fixtures: &[("clocks", clocks)],
    cases: &[
        ("host_that_is_behind", host_that_is_behind),
        ("clocks_of_its_own", clocks_of_its_own),
        ("clocks_of_an_ordinary_user", clocks_of_an_ordinary_user),
    ],
};

/// Ahead of the clocks of this host.
const AHEAD: [&str; 2] = ["--monotonic=5000000", "--boottime=7000000"];

/// A restore where both clocks are at half of what they are here, as on a host that was started later.
fn host_that_is_behind() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("clocks", &[])?;
    case.ask()?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let back = |id| clock(id).as_secs() / 2;
    let unshare = need_program("unshare")?;
    let mut command = case.command(&unshare, "behind")?;
    let pid_file = case.path("behind.pid");
    command
        .arg("--time")
        .arg(format!("--monotonic=-{}", back(libc::CLOCK_MONOTONIC)))
        .arg(format!("--boottime=-{}", back(libc::CLOCK_BOOTTIME)))
        .arg(&case.vckpt)
        .args(["restore", text(&image), "--detach", "--pid-file", text(&pid_file)]);
    let pid = spawn(&mut command)?;
    crate::harness::process::wait_exit(pid, Duration::from_secs(30))?;
    ensure!(pid_file.exists(), "no restore: {}", case.output("behind"));
    let root = fs::read_to_string(&pid_file)?.trim().parse()?;
    case.ask()?;
    let root = case.round(root)?;
    case.finish(root)
}

fn clocks_of_its_own() -> Outcome {
    need_root()?;
    own(Case::new()?)
}

fn clocks_of_an_ordinary_user() -> Outcome {
    need_root()?;
    own(Case::new_as_ordinary_user()?)
}

/// A program in a time namespace, of which vckpt is not.
fn own(mut case: Case) -> Outcome {
    let unshare = need_program("unshare")?;
    let user = case.user.take();
    let mut command = case.command(&unshare, "clocks")?;
    command.arg("--time").args(AHEAD);
    if let Some(user) = user {
        std::os::unix::fs::chown(case.path("clocks.out"), Some(user), Some(user))?;
        command.arg(need_program("setpriv")?);
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
    }
    let fixture = case.fixture("clocks", &[])?;
    command.arg(fixture.get_program()).args(fixture.get_args());
    case.user = user;
    let mut root = spawn(&mut command)?;
    case.wait_ready("clocks", root)?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}

const CLOCKS: [i32; 2] = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME];
/// How far deadlines are away: none of the cases takes so long.
const FAR: Duration = Duration::from_secs(1000);

fn clocks(stage: Stage) {
    let deadlines = CLOCKS.map(|id| clock(id) + FAR);
    let timers = CLOCKS.map(|id| {
        let mut timer = 0_i32;
        let mut event = [0_u64; 8];
        // SIGEV_NONE, behind the value and the signal.
        event[1] = 1 << 32;
        // SAFETY: a sigevent of 64 bytes, and a place for the ID.
        check(unsafe { libc::syscall(libc::SYS_timer_create, id, event.as_ptr(), &raw mut timer) }).unwrap();
        timer
    });
    // SAFETY: plain numbers.
    let files = CLOCKS.map(|id| check(unsafe { libc::timerfd_create(id, 0) }).unwrap());
    for (place, &deadline) in deadlines.iter().enumerate() {
        let none = timespec(Duration::ZERO);
        let setting = libc::itimerspec { it_interval: none, it_value: timespec(deadline) };
        let absolute = libc::TIMER_ABSTIME;
        // SAFETY: a valid setting, and no place for the old one.
        unsafe {
            let timer = timers[place];
            check(libc::syscall(libc::SYS_timer_settime, timer, absolute, &raw const setting, 0)).unwrap();
            let none = std::ptr::null_mut();
            check(libc::timerfd_settime(files[place], 1, &raw const setting, none)).unwrap();
        }
    }
    // A thread that sleeps up to moments of a clock, and must not wake before.
    let (tell, hear) = std::sync::mpsc::channel();
    thread(move || {
        loop {
            let until = clock(libc::CLOCK_MONOTONIC) + Duration::from_millis(20);
            let time = timespec(until);
            // SAFETY: a valid time, and no place for what is left.
            let result = unsafe {
                let none = std::ptr::null_mut();
                libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const time, none)
            };
            let is_early = clock(libc::CLOCK_MONOTONIC) < until;
            if tell.send((result, is_early)).is_err() {
                return;
            }
        }
    });
    let mut last = CLOCKS.map(clock);
    stage.serve(move |_| {
        for (place, id) in CLOCKS.into_iter().enumerate() {
            let now = clock(id);
            verify!(now >= last[place], "clock {id} went back from {:?} to {now:?}", last[place]);
            verify!(now < last[place] + FAR / 10, "clock {id} jumped from {:?} to {now:?}", last[place]);
            last[place] = now;
            let mut setting = libc::itimerspec {
                it_interval: timespec(Duration::ZERO),
                it_value: timespec(Duration::ZERO),
            };
            let left =
                |setting: &libc::itimerspec| Duration::from_secs(setting.it_value.tv_sec.unsigned_abs());
            let expected = deadlines[place].saturating_sub(now);
            let is_good = |left: Duration| left + Duration::from_secs(3) > expected && left < expected;
            // SAFETY: a valid place.
            unsafe { libc::syscall(libc::SYS_timer_gettime, timers[place], &raw mut setting) };
            verify!(
                is_good(left(&setting)),
                "timer of clock {id}: {:?} instead of {expected:?}",
                left(&setting)
            );
            // SAFETY: a valid place.
            unsafe { libc::timerfd_gettime(files[place], &raw mut setting) };
            verify!(is_good(left(&setting)), "timerfd of clock {id}: {:?}, not {expected:?}", left(&setting));
        }
        // What was sent before, and two sleeps that began later.
        let sleeps: Vec<(i32, bool)> = hear.try_iter().collect();
        for (result, is_early) in sleeps.into_iter().chain(hear.iter().take(2)) {
            verify!(result == 0 && !is_early, "a sleep ended with {result}; too early: {is_early}");
        }
        Ok(())
    });
}
