//! How single threads are scheduled: every policy, priorities behind a policy, the autogroup of a session, and
//! processors that a host lacks; modes of the processor that each thread has by itself.

use std::path::Path;

use vckpt_image_format::record::schedule_control::ScheduleControl;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::image::rewrite;
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::Stage;
use crate::stage::asked::{Asked, verify_all};
use crate::stage::kernel::{check, fork, pipe, put, take, wait};

pub(crate) const TOPIC: Topic = Topic {
    name: "schedules",
    fixtures: &[
        ("policies", policies),
        ("modest-policies", modest_policies),
        ("deadline", deadline),
        ("clamps", clamps),
        ("thread-modes", thread_modes),
        ("sessions", sessions),
        ("pinned", pinned),
    ],
    cases: &[
        ("policies_of_threads", as_root_policies),
        ("policies_of_anybody", || two_rounds("modest-policies")),
        ("deadlines", as_root_deadline),
        ("clamps_of_utilisation", with_clamps),
        ("modes_of_threads", || two_rounds("thread-modes")),
        ("autogroups_of_sessions", with_autogroups),
        ("processors_that_do_not_exist", processors_that_do_not_exist),
    ],
};

fn as_root_policies() -> Outcome {
    need_root()?;
    two_rounds("policies")
}

fn as_root_deadline() -> Outcome {
    need_root()?;
    two_rounds("deadline")
}

/// `struct sched_attr` as words of 32 bits.
type Attributes = [u32; 14];

const OTHER: u32 = 0;
const FIFO: u32 = 1;
const ROUND_ROBIN: u32 = 2;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
const DEADLINE: u32 = 6;
const RESET_ON_FORK: u32 = 1;

fn set(attributes: Attributes) -> std::io::Result<()> {
    let attributes = [&[56], &attributes[1..]].concat();
    // SAFETY: the 56 bytes that it says it has.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0) }).map(drop)
}

fn policy(policy: u32, flags: u32, nice: i32, priority: u32) {
    let mut attributes = [0; 14];
    attributes[1] = policy;
    attributes[2] = flags;
    attributes[4] = nice.cast_unsigned();
    attributes[5] = priority;
    set(attributes).unwrap();
}

/// A niceness that anybody may have, if this program has been made nice.
fn as_nice_as_allowed(value: i32) -> i32 {
    // SAFETY: plain integers; it can't fail for the caller itself.
    value.max(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
}

fn nice(value: i32) {
    // SAFETY: plain integers: this thread alone.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as u32, value) }).unwrap();
}

/// All that the kernel says of the scheduling of the calling thread; what a child of it has.
fn schedule() -> String {
    let mut found = own_schedule();
    // A child may have less.
    let ends = pipe(0);
    let child = fork(|| i32::from(put(ends[1], own_schedule().as_bytes()).is_err()));
    found.push_str(" | ");
    found.push_str(&String::from_utf8_lossy(&take(ends[0], 1000).unwrap()));
    for end in ends {
        // SAFETY: a descriptor of our own.
        check(unsafe { libc::close(end) }).unwrap();
    }
    wait(child).unwrap();
    found
}

fn own_schedule() -> String {
    let mut attributes: Attributes = [0; 14];
    let mut processors = [0_u64; 16];
    // SAFETY: room for 56 and 128 bytes; plain integers.
    unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), 56, 0);
        libc::syscall(libc::SYS_sched_getaffinity, 0, 128, processors.as_mut_ptr());
        let nice = 20 - libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0);
        let disks = libc::syscall(libc::SYS_ioprio_get, 1, 0);
        let slack = libc::prctl(libc::PR_GET_TIMERSLACK);
        format!("{attributes:?} {:x} nice {nice} disks {disks:x} slack {slack}", processors[0])
    }
}

fn disks(class: u32, level: u32) {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, class << 13 | level) }).unwrap();
}

fn policies(stage: Stage) {
    let all = vec![
        Asked::thread("first in, first out", || policy(FIFO, 0, 0, 3), schedule),
        Asked::thread(
            "round robin over a niceness",
            || {
                nice(7);
                policy(ROUND_ROBIN, RESET_ON_FORK, 0, 5);
                disks(1, 2);
            },
            schedule,
        ),
        Asked::thread("a high priority", || policy(OTHER, RESET_ON_FORK, -5, 0), schedule),
        Asked::thread(
            "a batch",
            || {
                policy(BATCH, 0, 4, 0);
                disks(2, 7);
            },
            schedule,
        ),
        Asked::thread("idle with a high priority", || idle(-3), schedule),
        Asked::child("a child", || policy(ROUND_ROBIN, 0, 0, 1), schedule),
        Asked::thread("nothing special", || {}, schedule),
    ];
    stage.serve(move |_| verify_all(&all));
}

/// `SCHED_IDLE` over a niceness.
fn idle(value: i32) {
    nice(value);
    policy(IDLE, 0, value, 0);
    disks(3, 0);
}

fn modest_policies(stage: Stage) {
    let all = vec![
        Asked::thread("a batch", || policy(BATCH, RESET_ON_FORK, as_nice_as_allowed(2), 0), schedule),
        Asked::thread("idle", || idle(as_nice_as_allowed(9)), schedule),
        Asked::thread(
            "late",
            || {
                nice(as_nice_as_allowed(3));
                disks(2, 6);
                // SAFETY: plain integers.
                check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 7_000_000) }).unwrap();
            },
            schedule,
        ),
        Asked::thread("nothing special", || {}, schedule),
    ];
    stage.serve(move |_| verify_all(&all));
}

/// Two threads with deadlines, of which one may have children, and one that spins.
fn deadline(stage: Stage) {
    let with = |flags: u32, times: [u64; 3]| {
        let mut attributes: Attributes = [0; 14];
        attributes[1] = DEADLINE;
        attributes[2] = flags;
        for (index, time) in times.into_iter().enumerate() {
            attributes[6 + 2 * index] = time as u32;
            attributes[7 + 2 * index] = (time >> 32) as u32;
        }
        set(attributes).unwrap();
    };
    let all = vec![
        Asked::thread(
            "a deadline",
            move || with(RESET_ON_FORK, [2_000_000, 8_000_000, 10_000_000]),
            own_schedule,
        ),
        Asked::thread(
            "a deadline that takes what is left",
            move || with(2, [3_000_000, 20_000_000, 30_000_000]),
            own_schedule,
        ),
    ];
    crate::stage::thread(move || {
        with(0, [1_000_000, 5_000_000, 5_000_000]);
        loop {
            std::hint::spin_loop();
        }
    });
    stage.serve(move |_| verify_all(&all));
}

fn clamped(low: u32, high: u32) -> std::io::Result<()> {
    let mut attributes: Attributes = [0; 14];
    // Keeps policy and parameters, sets both clamps.
    attributes[2] = 0x78;
    attributes[12] = low;
    attributes[13] = high;
    set(attributes)
}

fn clamps(stage: Stage) {
    let all = vec![
        Asked::thread("clamped", || clamped(100, 900).unwrap(), own_schedule),
        Asked::thread("not clamped", || {}, own_schedule),
    ];
    stage.serve(move |_| verify_all(&all));
}

fn with_clamps() -> Outcome {
    // The kernel that lacks them refuses any clamps, also those that everybody has.
    if clamped(0, 1024).is_err() {
        return skip("clamps of utilisation (CONFIG_UCLAMP_TASK)");
    }
    two_rounds("clamps")
}

/// `ARCH_GET_CPUID` and `ARCH_SET_CPUID`.
const GET_CPUID: i32 = 0x1011;
const SET_CPUID: i32 = 0x1012;

fn modes() -> String {
    // SAFETY: plain integers; 0xffffffff asks for the personality.
    unsafe {
        let personality = libc::syscall(libc::SYS_personality, 0xffff_ffff_u32);
        let identification = libc::syscall(libc::SYS_arch_prctl, GET_CPUID, 0);
        let failing = libc::prctl(libc::PR_MCE_KILL_GET, 0, 0, 0, 0);
        format!("{personality:x} {identification} {failing}")
    }
}

/// What the threads of one process may have each by itself.
fn thread_modes(stage: Stage) {
    let all = vec![
        Asked::thread(
            "a personality",
            || {
                // SAFETY: ADDR_NO_RANDOMIZE and UNAME26 touch nothing but later programs and names.
                check(unsafe { libc::personality(0x0004_0000 | 0x0002_0000) }).unwrap();
            },
            modes,
        ),
        Asked::thread(
            "no identification of the processor",
            || {
                // SAFETY: plain integers; not every processor can do it.
                unsafe { libc::syscall(libc::SYS_arch_prctl, SET_CPUID, 0) };
            },
            modes,
        ),
        Asked::thread(
            "early end by failing memory",
            || {
                let set = libc::PR_MCE_KILL_SET;
                // SAFETY: plain integers.
                check(unsafe { libc::prctl(libc::PR_MCE_KILL, set, libc::PR_MCE_KILL_EARLY, 0, 0) }).unwrap();
            },
            modes,
        ),
        Asked::thread("nothing special", || {}, modes),
    ];
    stage.serve(move |_| verify_all(&all));
}

fn autogroup() -> String {
    let text = std::fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
    // The number is the kernel's.
    text.split_once(' ').map(|(_, nice)| nice.trim().to_owned()).unwrap_or_default()
}

fn own_session(share: &str) {
    // SAFETY: a child that leads no group yet.
    check(unsafe { libc::setsid() }).unwrap();
    write_autogroup(share);
}

fn write_autogroup(share: &str) {
    // An ordinary user may do so ten times a second, all processes together.
    while let Err(error) = std::fs::write("/proc/self/autogroup", share) {
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "autogroup: {error}");
        std::thread::yield_now();
    }
}

/// Sessions that the tree has made, with shares of the processor of their own.
fn sessions(stage: Stage) {
    write_autogroup("4");
    let all = vec![
        Asked::child("a session", || own_session("7"), autogroup),
        Asked::child("an ordinary session", || own_session("0"), autogroup),
        Asked::child("the same session", || {}, autogroup),
    ];
    stage.serve(move |_| {
        let own = autogroup();
        if own != "nice 4" {
            return Err(format!("the share of the session is {own}"));
        }
        verify_all(&all)
    });
}

fn with_autogroups() -> Outcome {
    if !Path::new("/proc/self/autogroup").exists() {
        return skip("autogroups (CONFIG_SCHED_AUTOGROUP)");
    }
    two_rounds("sessions")
}

/// A thread on one processor of many, and one on those that are not here.
fn pinned(stage: Stage) {
    let _keeps = Asked::thread(
        "pinned",
        || {
            let mask = [1_u64];
            // SAFETY: eight bytes of mask.
            check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, mask.as_ptr()) }).unwrap();
        },
        own_schedule,
    );
    // The child ends at once: only that it can be made is of interest.
    stage.serve_except(&["thread ", "status Cpus"], |_| match wait(fork(|| 0)) {
        Ok(0) => Ok(()),
        other => Err(format!("a child gave {other:?}")),
    });
}

/// An image of a host with 256 processors: threads run on those that exist, and the report names the others.
fn processors_that_do_not_exist() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("pinned", &[])?;
    case.ask()?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let changed = case.path("changed.vckpt");
    rewrite(&image, &changed, |mut record: ScheduleControl| {
        for thread in &mut record.threads {
            let pinned = thread.affinity == Some(vec![1]);
            // Those from 0 to 63, of which some are here; those from 128 to 191, of which none is.
            thread.affinity = Some(if pinned { vec![u64::MAX] } else { vec![0, 0, u64::MAX] });
        }
        record
    })?;
    let shown = case.vckpt(&["show", "--threads", text(&changed)])?.good()?;
    let is_shown = shown.stdout.contains(" 0-63 ") && shown.stdout.contains(" 128-191 ");
    ensure!(is_shown, "not shown: {}", shown.describe());
    let ran = case.vckpt(&["restore", text(&changed), "--detach"])?.good()?;
    let root: i32 = ran.stdout.trim().parse()?;
    ensure!(ran.stderr.contains("instead of 0-63"), "processors that are missing: {}", ran.describe());
    ensure!(ran.stderr.contains("none of its processors 128-191 exists"), "none here: {}", ran.describe());
    ensure!(ran.stderr.contains("2 items degraded"), "two lines: {}", ran.describe());
    case.ask()?;
    // As good as new: it can be dumped again.
    let root = case.round(root)?;
    case.finish(root)
}
