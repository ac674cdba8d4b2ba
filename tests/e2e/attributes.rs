//! What a process is rather than does: credentials, limits, schedule, personality, names, and the like.
//!
//! Most checks are the comparison of facts that every fixture makes; here are programs in unusual states.

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "attributes",
    fixtures: &[
        ("user", user),
        ("capabilities", capabilities),
        ("limits", limits),
        ("schedule", schedule),
        ("odd", odd),
        ("modes", modes),
        ("segmented", segmented),
    ],
    cases: &[
        ("user_and_groups", as_root_user),
        ("capabilities", as_root_capabilities),
        ("limits", || two_rounds("limits")),
        ("schedule", || two_rounds("schedule")),
        ("odd_attributes", || two_rounds("odd")),
        ("modes_of_processor_and_memory", || two_rounds("modes")),
        ("real_time", as_root_real_time),
        ("segments_of_its_own", segments_of_its_own),
    ],
};

fn as_root_user() -> Outcome {
    need_root()?;
    two_rounds("user")
}

fn as_root_capabilities() -> Outcome {
    need_root()?;
    two_rounds("capabilities")
}

fn as_root_real_time() -> Outcome {
    need_root()?;
    crate::harness::case::two_rounds_with("schedule", &["real-time"])
}

/// All twelve numbers and the groups.
fn ids() -> String {
    let mut all = [0_u32; 6];
    // SAFETY: places for three numbers each, room for 64 groups.
    unsafe {
        let [ruid, euid, suid, rgid, egid, sgid] = &mut all;
        libc::getresuid(ruid, euid, suid);
        libc::getresgid(rgid, egid, sgid);
        let mut groups = [0_u32; 64];
        let count = libc::getgroups(64, groups.as_mut_ptr());
        let filesystem = (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX));
        format!("{all:?} {:?} {filesystem:?}", &groups[..count.unsigned_abs() as usize])
    }
}

/// Real, effective and saved IDs all differ; the parent stays root, a child is fully somebody else.
fn user(stage: Stage) {
    let folder = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&stage.folder, folder).unwrap();
    let (ask, answer) = (pipe(0), pipe(0));
    fork(move || {
        // SAFETY: plain integers, and a list of two groups.
        unsafe {
            let groups = [4001_u32, 4002];
            check(libc::setgroups(2, groups.as_ptr())).unwrap();
            check(libc::setresgid(3001, 3001, 3001)).unwrap();
            check(libc::setresuid(2001, 2001, 2001)).unwrap();
        }
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            put(answer[1], ids().as_bytes()).unwrap();
        }
        0
    });
    // SAFETY: as above.
    unsafe {
        let groups = [5001_u32, 5002, 5003];
        check(libc::setgroups(3, groups.as_ptr())).unwrap();
        check(libc::setresgid(1001, 1002, 1003)).unwrap();
        check(libc::setresuid(1101, 1102, 0)).unwrap();
        // Without this a process that has changed its user cannot read its own facts.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    let own = ids();
    let both = move || {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        take(answer[0], 200).map_err(|error| error.to_string())
    };
    let child = both().unwrap();
    stage.serve(move |_| {
        verify!(ids() == own, "users and groups: {own} became {}", ids());
        let now = both()?;
        verify!(
            now == child,
            "of the child: {:?}",
            [&child, &now].map(|text| String::from_utf8_lossy(text).into_owned())
        );
        // The saved user still gives the way back, and out again.
        // SAFETY: plain integers.
        let back = unsafe { libc::seteuid(0) == 0 && libc::seteuid(1102) == 0 };
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
        verify!(back, "the saved user 0 cannot be taken up");
        Ok(())
    });
}

fn capabilities(stage: Stage) {
    // SAFETY: plain integers; the structures are in the kernel's layout, version 3.
    unsafe {
        // Drop from the bounding set: CAP_SYS_TIME, CAP_SYS_MODULE.
        libc::prctl(libc::PR_CAPBSET_DROP, 25, 0, 0, 0);
        libc::prctl(libc::PR_CAPBSET_DROP, 16, 0, 0, 0);
        // Keep only CAP_CHOWN, CAP_KILL, CAP_NET_BIND_SERVICE, CAP_SETPCAP, inheritable CAP_KILL and BIND.
        let header = [0x2008_0522_u32, 0];
        let (kept, inherited) = (1 << 0 | 1 << 5 | 1 << 8 | 1 << 10, 1 << 5 | 1 << 10);
        let data = [[kept, kept, inherited], [0, 0, 0_u32]];
        // Secure bits before SETPCAP is of no more use: no setuid fixup, no root.
        check(libc::prctl(libc::PR_SET_SECUREBITS, 0b101, 0, 0, 0)).unwrap();
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr())).unwrap();
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 10, 0, 0)).unwrap();
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)).unwrap();
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    stage.serve(|_| Ok(()));
}

fn limits(stage: Stage) {
    // Lower soft and hard limits; some below what is in use.
    let set = |resource: libc::__rlimit_resource_t, soft: u64, hard: u64| {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: valid places.
        unsafe {
            libc::getrlimit(resource, &raw mut old);
            let hard = hard.min(old.rlim_max);
            let new = libc::rlimit { rlim_cur: soft.min(hard), rlim_max: hard };
            check(libc::setrlimit(resource, &raw const new)).unwrap();
        }
    };
    // SAFETY: a descriptor of our own, above the limit that is set now.
    check(unsafe { libc::dup2(0, 300) }).unwrap();
    set(libc::RLIMIT_NOFILE, 100, 200);
    set(libc::RLIMIT_CORE, 0, 4096);
    set(libc::RLIMIT_STACK, 4 << 20, 16 << 20);
    set(libc::RLIMIT_AS, 1 << 36, 1 << 37);
    set(libc::RLIMIT_DATA, 1 << 35, 1 << 36);
    set(libc::RLIMIT_FSIZE, 1 << 30, 1 << 31);
    set(libc::RLIMIT_CPU, 5000, 6000);
    set(libc::RLIMIT_SIGPENDING, 77, 99);
    set(libc::RLIMIT_MSGQUEUE, 1000, 2000);
    set(libc::RLIMIT_NICE, 0, 0);
    set(libc::RLIMIT_MEMLOCK, 4096, 8192);
    stage.serve(|_| {
        // SAFETY: plain integers.
        let refused = unsafe { libc::dup2(0, 150) };
        verify!(refused == -1, "a descriptor above the limit could be made");
        verify!(unsafe { libc::fcntl(300, libc::F_GETFD) } >= 0, "the descriptor above the limit is gone");
        Ok(())
    });
}

/// Schedule of the calling thread: policy, priority, nice, flags, affinity, I/O priority, timer slack.
fn schedule_of_thread() -> String {
    // SAFETY: valid places of the right sizes.
    unsafe {
        let mut attributes = [0_u32; 14];
        libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), 56, 0);
        let mut cpus = [0_u64; 16];
        libc::syscall(libc::SYS_sched_getaffinity, 0, 128, cpus.as_mut_ptr());
        let priority = libc::syscall(libc::SYS_ioprio_get, 1, 0);
        format!("{attributes:?} {cpus:?} {priority} {}", libc::prctl(libc::PR_GET_TIMERSLACK))
    }
}

fn schedule(stage: Stage) {
    let real_time = stage.arguments.first().is_some_and(|word| word == "real-time");
    let one_cpu = |number: u64| {
        let mask = [1_u64 << number];
        // SAFETY: eight bytes of mask. It fails on a machine with one CPU, and then nothing changes.
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, mask.as_ptr()) };
    };
    // SAFETY: plain integers and a valid parameter structure, here and in the thread.
    unsafe {
        one_cpu(0);
        check(libc::setpriority(libc::PRIO_PROCESS, 0, 3)).unwrap();
        // Best effort, level 6.
        check(libc::syscall(libc::SYS_ioprio_set, 1, 0, 2 << 13 | 6)).unwrap();
        libc::prctl(libc::PR_SET_TIMERSLACK, 123_456);
    }
    let (tell, hear) = std::sync::mpsc::channel();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    thread(move || {
        unsafe {
            one_cpu(1);
            let (policy, priority) = if real_time { (libc::SCHED_RR, 7) } else { (libc::SCHED_BATCH, 0) };
            let parameter = libc::sched_param { sched_priority: priority };
            let policy = if real_time { policy | libc::SCHED_RESET_ON_FORK } else { policy };
            check(libc::sched_setscheduler(0, policy, &raw const parameter)).unwrap();
            // Idle class.
            check(libc::syscall(libc::SYS_ioprio_set, 1, 0, 3 << 13)).unwrap();
        }
        tell.send(schedule_of_thread()).unwrap();
        while asked.recv().is_ok() {
            tell.send(schedule_of_thread()).unwrap();
        }
    });
    let other = hear.recv().unwrap();
    let own = schedule_of_thread();
    stage.serve(move |_| {
        verify!(schedule_of_thread() == own, "schedule: {own} became {}", schedule_of_thread());
        ask.send(()).map_err(|error| error.to_string())?;
        let now = hear.recv().map_err(|error| error.to_string())?;
        verify!(now == other, "schedule of the thread: {other} became {now}");
        Ok(())
    });
}

fn odd(stage: Stage) {
    // SAFETY: plain integers and texts that end with NUL.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"odd) name (".as_ptr());
        check(libc::personality(0x0020_0000 | 0x0004_0000)).unwrap();
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_TIMERSLACK, 777);
    }
    std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
    std::fs::write("/proc/self/coredump_filter", "0x13").unwrap();
    let (ask, answer) = (pipe(0), pipe(0));
    // The child must be told of the death of its parent; its own name and score are others.
    fork(move || {
        // SAFETY: as above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0);
            libc::prctl(libc::PR_SET_NAME, c"child".as_ptr());
            // Huge pages only where they are asked for (PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18).
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 1 << 1, 0, 0);
        }
        std::fs::write("/proc/self/oom_score_adj", "500").unwrap();
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            let mut signal = 0_i32;
            // SAFETY: a valid place.
            unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal, 0, 0, 0) };
            let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
            // SAFETY: plain integers.
            let huge = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
            let text = format!("{signal} {}{}{huge}", read("comm"), read("oom_score_adj"));
            put(answer[1], text.as_bytes()).unwrap();
        }
        0
    });
    let child = move || -> Result<String, String> {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let found = take(answer[0], 100).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&found).into_owned())
    };
    let before = child().unwrap();
    assert!(before.starts_with("15 child\n500\n"), "the child says {before:?}");
    stage.serve(move |_| {
        let now = child()?;
        verify!(now == before, "the child said {before:?} and says {now:?}");
        Ok(())
    });
}

/// Time stamp counter, speculation, memory that may not be made executable, memory barriers.
fn mode_words() -> [i64; 7] {
    let mut counter = 0_i32;
    // SAFETY: plain integers, and a place for one.
    unsafe {
        libc::prctl(libc::PR_GET_TSC, &raw mut counter);
        let speculation = [0, 1, 2].map(|kind| i64::from(libc::prctl(52, kind, 0, 0, 0)));
        let denial = libc::prctl(libc::PR_GET_MDWE, 0, 0, 0, 0);
        let barriers = libc::syscall(libc::SYS_membarrier, 1 << 9, 0, 0);
        // The barrier of which this process is registered, and one of which it is not.
        let barrier = libc::syscall(libc::SYS_membarrier, 1 << 3, 0, 0);
        let [bypass, branches, flush] = speculation;
        [i64::from(counter), bypass, branches, flush, i64::from(denial), barriers, barrier]
    }
}

fn modes(stage: Stage) {
    // SAFETY: plain integers. Not every processor lets a task choose its speculation.
    unsafe {
        libc::prctl(53, 0, 4, 0, 0);
        libc::prctl(53, 1, 8, 0, 0);
        check(libc::syscall(libc::SYS_membarrier, 1 << 4, 0, 0)).unwrap();
        check(libc::syscall(libc::SYS_membarrier, 1 << 2, 0, 0)).unwrap();
    }
    let (ask, answer) = (pipe(0), pipe(0));
    // Its clock would need the counter, so it looks at none.
    fork(|| {
        // SAFETY: plain integers.
        unsafe {
            libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV);
            libc::prctl(libc::PR_SET_MDWE, libc::PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0);
        }
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            let bytes: Vec<u8> = mode_words().iter().flat_map(|word| word.to_ne_bytes()).collect();
            put(answer[1], &bytes).unwrap();
        }
        0
    });
    let all = move || {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], 100).map_err(|error| error.to_string())?;
        let child: Vec<i64> = child
            .chunks_exact(8)
            .map(|word| i64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        Ok::<_, String>((mode_words(), child))
    };
    let before = all().unwrap();
    assert_eq!((before.0[0], before.1[0], before.1[4]), (1, 2, 1));
    stage.serve(move |_| {
        let now = all()?;
        verify!(now == before, "{before:?} became {now:?}");
        Ok(())
    });
}

/// Has a segment in a table of its own.
fn segmented(stage: Stage) {
    // Entry 3; a base and a limit; 32 bits, usable.
    let description = [3_u32, 0x1000, 0xfff, 0x41];
    // SAFETY: the sixteen bytes of a description. Nobody uses the segment.
    check(unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, description.as_ptr(), 16) }).unwrap();
    stage.serve(|_| Ok(()));
}

fn segments_of_its_own() -> Outcome {
    // SAFETY: no room, no bytes: it tells whether the kernel has such tables.
    if unsafe { libc::syscall(libc::SYS_modify_ldt, 0, std::ptr::null::<u8>(), 0) } != 0 {
        return skip("modify_ldt(2)");
    }
    let mut case = Case::new()?;
    let root = case.start("segmented", &[])?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("segments of its own (modify_ldt)"), "not by name: {}", ran.describe());
    case.ask()?;
    case.finish(root)
}
