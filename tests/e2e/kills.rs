//! `vckpt dump --leave-running` killed at random moments: the program never notices, no half image passes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text};
use crate::harness::process::{children, signal, wait_exit};
use crate::harness::{Outcome, Topic, ensure, short_or_long};
use crate::stage::kernel::{block, pipe, put, take};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "kills",
    fixtures: &[("restless", restless)],
    cases: &[
        ("dump_killed_at_random", dump_killed_at_random),
        ("dump_killed_with_extended_states", dump_killed_with_extended_states),
        ("dump_killed_under_filters", dump_killed_under_filters),
        ("dump_interrupted", dump_interrupted),
        ("restore_interrupted", restore_interrupted),
    ],
};

static TURNS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Threads of every sort: computing, in quick calls, asleep, and handing bytes to each other.
fn restless(stage: Stage) {
    thread(|| {
        let mut state = 1_u64;
        loop {
            // The sequence is checked against its own inverse.
            let next = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let back = next.wrapping_sub(1).wrapping_mul(0xc097_ef87_329e_28a5);
            assert_eq!(back, state, "a register has changed");
            state = next;
            TURNS[0].fetch_add(1, Ordering::Relaxed);
        }
    });
    thread(|| {
        block(&[libc::SIGUSR2, 50]);
        // SAFETY: a getter.
        let own = unsafe { libc::syscall(libc::SYS_gettid) };
        loop {
            // SAFETY: a getter.
            assert_eq!(unsafe { libc::syscall(libc::SYS_gettid) }, own, "a call gives a wrong result");
            TURNS[1].fetch_add(1, Ordering::Relaxed);
        }
    });
    thread(|| {
        loop {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 3_000_000 };
            // SAFETY: a valid time.
            let result = unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
            assert_eq!(result, 0, "a sleep was interrupted: {}", std::io::Error::last_os_error());
            TURNS[2].fetch_add(1, Ordering::Relaxed);
        }
    });
    let ends = pipe(0);
    thread(move || {
        for number in 0_u64.. {
            put(ends[1], &number.to_ne_bytes()).expect("the write is not interrupted");
        }
    });
    thread(move || {
        for number in 0_u64.. {
            let bytes = take(ends[0], 8).expect("the read is not interrupted");
            assert_eq!(bytes, number.to_ne_bytes(), "the pipe gives a wrong number");
            TURNS[3].fetch_add(1, Ordering::Relaxed);
        }
    });
    stage.serve(|_| {
        let now = || TURNS.each_ref().map(|turns| turns.load(Ordering::Relaxed));
        let (before, start) = (now(), Instant::now());
        while now().iter().zip(before).any(|(now, before)| *now <= before) {
            verify!(
                start.elapsed() < Duration::from_secs(10),
                "a thread stands still: {before:?} {:?}",
                now()
            );
        }
        Ok(())
    });
}

/// What can be seen from outside: memory map, descriptors, and of each thread its mask, tracer and blocked signals.
pub(crate) fn outside(pid: i32) -> Outcome<BTreeMap<String, String>> {
    let mut seen = BTreeMap::new();
    // The heap grows by itself; everything else the program has mapped before.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let maps: Vec<&str> = maps.lines().filter(|line| !line.ends_with("[heap]")).collect();
    seen.insert("maps".to_owned(), maps.join("\n"));
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        // The stub's socket may go away while we look; whoever compares looks again.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        seen.insert(format!("fd {}", entry.file_name().display()), target.display().to_string());
    }
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let kept = ["Name", "TracerPid", "SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Seccomp"];
        let lines =
            status.lines().filter(|line| kept.iter().any(|name| line.split(':').next() == Some(name)));
        seen.insert(format!("task {}", task.file_name().display()), lines.collect::<Vec<_>>().join(" "));
    }
    Ok(seen)
}

/// Waits until the outside looks as before: the stub may need a moment to find its supervisor gone. The memory
/// map is compared if it is in `before`.
pub(crate) fn same_again(pid: i32, before: &BTreeMap<String, String>, what: &str) -> Outcome {
    let start = Instant::now();
    loop {
        let mut now = outside(pid)?;
        if !before.contains_key("maps") {
            now.remove("maps");
        }
        if now == *before {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(5) {
            let changed: Vec<String> = before
                .keys()
                .chain(now.keys())
                .filter(|name| before.get(*name) != now.get(*name))
                .map(|name| format!("{name}: {:?} became {:?}", before.get(name), now.get(name)))
                .collect();
            return crate::harness::fail(format!(
                "{what}: the program is left changed: {}",
                changed.join("\n")
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A sequence of numbers that differs from run to run, printed with each failure.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn dump_killed_at_random() -> Outcome {
    killed_at_random("restless", &[], short_or_long(40, 300))
}

/// The way home carries the extended state of the processor, with tiles where there are some.
fn dump_killed_with_extended_states() -> Outcome {
    let tiles: &[&str] = if crate::processor::has_tiles() { &["tiles"] } else { &[] };
    killed_at_random("extended", tiles, short_or_long(8, 200))
}

/// Filters are suspended during a dump, and count again when it is killed.
fn dump_killed_under_filters() -> Outcome {
    crate::harness::need_root()?;
    killed_at_random("filters", &[], short_or_long(12, 200))
}

fn killed_at_random(fixture: &str, arguments: &[&str], count: u32) -> Outcome {
    let mut case = Case::new()?;
    let root = case.start(fixture, arguments)?;
    case.ask()?;
    let calm = outside(root)?;
    let image = case.path("killed.vckpt");
    let pid = root.to_string();
    let arguments = ["dump", &pid, "-o", text(&image), "--leave-running"];
    let undisturbed = case.vckpt(&arguments)?.good()?;
    fs::remove_file(&image)?;
    same_again(root, &calm, "after a whole dump")?;
    let longest = u64::try_from(undisturbed.took.as_micros())?.max(1) * 5 / 4;
    let seed = std::env::var("VCKPT_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | longest);
    let mut state = seed | 1;
    let (mut whole, mut none) = (0, 0);
    for number in 0..count {
        let moment = Duration::from_micros(random(&mut state) % longest);
        let what = format!("kill {number} after {moment:?} (VCKPT_TEST_SEED={seed})");
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        // The moment itself is what is tested, so this is a pause and not a wait for something.
        std::thread::sleep(moment);
        // The supervisor is a zombie at worst, so its PID is still its own.
        signal(supervisor, libc::SIGKILL)?;
        wait_exit(supervisor, Duration::from_secs(10))?;
        for file in files {
            let _ = fs::remove_file(file);
        }
        same_again(root, &calm, &what)?;
        if image.exists() {
            case.vckpt(&["check", text(&image)])?.good()?;
            fs::remove_file(&image)?;
            whole += 1;
        } else {
            none += 1;
        }
        if number % 10 == 9 {
            case.ask()?;
        }
    }
    case.ask()?;
    ensure!(whole + none > 0, "nothing was tried");
    // The program can still be dumped and restored.
    for entry in fs::read_dir(&case.folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let draft = name.starts_with("killed") || name.contains("killed.vckpt");
        ensure!(!(draft && name.ends_with(".vckpt")), "a draft that looks like an image is left: {name}");
        if draft || name.contains(".tmp") || name.contains(".partial") {
            fs::remove_file(entry.path())?;
        }
    }
    let root = case.round(root)?;
    case.finish(root)
}

/// SIGINT and SIGTERM end a dump in order: code 130 (or 0, if it was quicker), nothing left, the target runs.
fn dump_interrupted() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("restless", &[])?;
    let calm = outside(root)?;
    let image = case.path("interrupted.vckpt");
    let pid = root.to_string();
    let arguments = ["dump", &pid, "-o", text(&image), "--leave-running"];
    let mut state = u64::from(std::process::id()) << 8 | 1;
    for number in 0..10 {
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        std::thread::sleep(Duration::from_micros(random(&mut state) % 10_000));
        signal(supervisor, if number % 2 == 0 { libc::SIGINT } else { libc::SIGTERM })?;
        let ran = case.ended(supervisor, files, &arguments)?;
        // A signal that comes before the program has its handler kills it: no code.
        let code = ran.status.code();
        ensure!(matches!(code, Some(0 | 130 | 143) | None), "{}", ran.describe());
        ensure!(code != Some(0) || image.exists(), "status 0 without an image");
        ensure!(code == Some(0) || !image.exists(), "an interrupted dump left an image: {}", ran.describe());
        let _ = fs::remove_file(&image);
        same_again(root, &calm, "an interrupted dump")?;
    }
    case.ask()?;
    case.finish(root)
}

/// SIGINT and SIGTERM during a restore: either it is complete, or nothing is left of it, neither processes nor the
/// names of sockets.
fn restore_interrupted() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("listeners", &[])?;
    let arguments = |image: &str| ["restore", image, "--detach"].map(str::to_owned);
    let mut state = u64::from(std::process::id()) << 9 | 1;
    let (mut complete, mut given_up) = (0, 0);
    for number in 0..short_or_long(16, 100) {
        let image = case.dump(root)?;
        let before = names(&case)?;
        let arguments = arguments(text(&image));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        std::thread::sleep(Duration::from_micros(random(&mut state) % 25_000));
        signal(supervisor, if number % 2 == 0 { libc::SIGINT } else { libc::SIGTERM })?;
        let ran = case.ended(supervisor, files, &arguments)?;
        let code = ran.status.code();
        ensure!(matches!(code, Some(0 | 130 | 143) | None), "{}", ran.describe());
        if code == Some(0) {
            complete += 1;
            root = ran.stdout.trim().parse()?;
        } else {
            given_up += 1;
            let after = names(&case)?;
            ensure!(before == after, "{before:?} became {after:?}: {}", ran.describe());
            let left = children(i32::try_from(std::process::id())?);
            ensure!(left.is_empty(), "processes are left: {left:?}: {}", ran.describe());
            root = case.restore(&image)?;
        }
        fs::remove_file(&image)?;
        case.ask()?;
    }
    ensure!(complete + given_up > 0, "nothing was tried");
    case.finish(root)
}

/// The names in the folder of a case, but for those that the harness itself makes.
fn names(case: &Case) -> Outcome<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(&case.folder)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with("vckpt"))
        .collect();
    names.sort();
    Ok(names)
}
