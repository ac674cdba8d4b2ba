//! `vckpt run`: commands that are interrupted and carried on.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{self, signal, spawn, until, wait_exit};
use crate::harness::{Outcome, Topic, ensure, short_or_long};
use crate::stage::Stage;
use crate::stage::kernel::{fork, handle, pipe, put, take, wait};

pub(crate) const TOPIC: Topic = Topic {
    name: "runs",
    fixtures: &[("steps", steps)],
    cases: &[
        ("every_step_is_done_once", every_step_once),
        ("it_ends_as_the_command_does", ends),
        ("an_image_that_is_renewed", renewed),
        ("signals_are_handed_on", signals),
        ("what_cannot_be_dumped_gets_the_signal", not_dumped),
        ("the_signal_may_be_passed_on", passed),
        ("a_damaged_image_stays", damaged),
        ("ending_while_it_is_dumped", while_dumped),
        ("one_image_for_one_run", twice),
        ("told_to_end_twice", told_twice),
        ("a_command_that_is_not_there", not_there),
    ],
};

const LIMIT: Duration = Duration::from_secs(60);
/// The exit code that says: run me again.
const AGAIN: i32 = 75;

static TOLD: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TOLD.store(true, Ordering::SeqCst);
}

/// A job of so many steps, each of which takes so many milliseconds and is noted in a file; a child gives the time. It
/// ends with the status or by the signal that it is told; it notes `SIGUSR1` too.
fn steps(stage: Stage) {
    let number =
        |place: usize| stage.arguments.get(place).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let (count, pause, status) = (number(0), number(1), number(2));
    let word = stage.arguments.get(3).map(String::as_str);
    handle(libc::SIGUSR1, on_signal, libc::SA_RESTART, &[]);
    if word == Some("traced") {
        let child = fork(|| {
            // SAFETY: plain integers; the child stops itself.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            0
        });
        wait(child).unwrap();
    }
    let tick = pipe(libc::O_CLOEXEC);
    fork(|| {
        // SAFETY: plain integers; with its parent the child ends too.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            std::thread::sleep(Duration::from_millis(pause));
            if put(tick[1], b"t").is_err() {
                return 0;
            }
        }
    });
    let mut file = fs::File::options().create(true).append(true).open(stage.path("steps")).unwrap();
    for step in 1..=count {
        take(tick[0], 1).unwrap();
        writeln!(file, "{step}").unwrap();
        println!("step {step}");
        if TOLD.swap(false, Ordering::SeqCst) {
            fs::write(stage.path("told"), format!("{step}")).unwrap();
        }
    }
    // SAFETY: plain integers.
    unsafe {
        if word == Some("killed") {
            libc::raise(libc::SIGKILL);
        }
        libc::_exit(i32::try_from(status).unwrap_or(1));
    }
}

/// Starts `vckpt run` with these options, and a job with these arguments.
fn start(case: &Case, options: &[&str], job: &[&str]) -> Outcome<i32> {
    let mut command = case.command(&case.vckpt, "run")?;
    command.args(["run", "--image", text(&case.path("job.vckpt"))]).args(options).arg("--");
    command.arg(&case.fixtures).args(["fixture", "steps"]).arg(&case.folder).args(job);
    spawn(&mut command)
}

/// The steps that were done.
fn done(case: &Case) -> Vec<u64> {
    let text = fs::read_to_string(case.path("steps")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits for so many steps more: so `vckpt run` is ready for signals, which go on from the first one.
fn wait_for_steps(case: &Case, more: usize) -> Outcome {
    let count = done(case).len() + more;
    until(&format!("{count} steps"), LIMIT, || (done(case).len() >= count).then_some(()))
}

fn ended(case: &Case, pid: i32, code: i32) -> Outcome {
    let status: ExitStatus = wait_exit(pid, LIMIT)?;
    ensure!(status.code() == Some(code), "it ended with {status} instead of {code}: {}", case.output("run"));
    Ok(())
}

fn every_step_once() -> Outcome {
    let mut case = Case::new()?;
    let image = case.path("job.vckpt");
    for part in 1..=3 {
        let pid = start(&case, &[], &["80", "10", "7"])?;
        if part == 3 {
            ended(&case, pid, 7)?;
            break;
        }
        wait_for_steps(&case, 15)?;
        signal(pid, libc::SIGTERM)?;
        ended(&case, pid, AGAIN)?;
        ensure!(image.is_file(), "there is no image: {}", case.output("run"));
        // Nobody is left who works.
        let before = done(&case).len();
        std::thread::sleep(Duration::from_millis(50));
        ensure!(done(&case).len() == before, "steps are done although it has ended");
    }
    ensure!(done(&case) == (1..=80).collect::<Vec<_>>(), "the steps are {:?}", done(&case));
    ensure!(!image.exists(), "the image is still there");
    let lines = case.output("run").lines().filter(|line| line.starts_with("step ")).count();
    ensure!(lines == 80, "{lines} lines: {}", case.output("run"));
    case.finish_empty()
}

fn ends() -> Outcome {
    for (job, code) in [(&["2", "1", "5"][..], 5), (&["2", "1", "0", "killed"], 128 + libc::SIGKILL)] {
        let mut case = Case::new()?;
        let pid = start(&case, &[], job)?;
        ended(&case, pid, code)?;
        ensure!(done(&case) == [1, 2], "the steps are {:?}", done(&case));
        ensure!(!case.path("job.vckpt").exists(), "there is an image");
        case.finish_empty()?;
    }
    Ok(())
}

/// The machine fails without a word.
fn renewed() -> Outcome {
    let mut case = Case::new()?;
    let image = case.path("job.vckpt");
    let pid = start(&case, &["--every", "0.2"], &["400", "10", "3"])?;
    let written = |image: &Path| fs::metadata(image).and_then(|found| found.modified()).ok();
    let first = until("an image", LIMIT, || written(&image))?;
    until("another image", LIMIT, || written(&image).filter(|&at| at != first))?;
    let members = process::tree(pid);
    for pid in members.into_iter().filter(|&pid| process::alive(pid)) {
        // With its parent the child may have ended already.
        let _ = signal(pid, libc::SIGKILL);
    }
    wait_exit(pid, LIMIT)?;
    until("the end of the job", LIMIT, || {
        process::reap();
        process::children(i32::try_from(std::process::id()).ok()?).is_empty().then_some(())
    })?;
    let before = done(&case);
    ensure!(before.len() > 10 && before.len() < 400, "{} steps were done", before.len());
    let pid = start(&case, &[], &["400", "10", "3"])?;
    ended(&case, pid, 3)?;
    let after = done(&case);
    let again = after.get(before.len()).copied().unwrap_or(0);
    ensure!(again > 1 && again as usize <= before.len() + 1, "it went on with step {again}: {after:?}");
    ensure!(after[before.len()..] == (again..=400).collect::<Vec<_>>()[..], "the steps are {after:?}");
    ensure!(!image.exists(), "the image is still there");
    case.finish_empty()
}

fn signals() -> Outcome {
    let mut case = Case::new()?;
    for part in [1, 2] {
        let pid = start(&case, &[], &["1000", "5", "0"])?;
        wait_for_steps(&case, 20)?;
        signal(pid, libc::SIGUSR1)?;
        let told = case.path("told");
        until("the signal", LIMIT, || told.exists().then_some(()))?;
        fs::remove_file(told)?;
        signal(pid, if part == 1 { libc::SIGTERM } else { libc::SIGINT })?;
        ended(&case, pid, if part == 1 { AGAIN } else { 128 + libc::SIGINT })?;
    }
    // It was killed, so that its work is not done.
    ensure!(case.path("job.vckpt").is_file(), "the image is gone");
    case.finish_empty()
}

/// The command ends at the very moment at which its image is renewed, or this program is told to end.
fn while_dumped() -> Outcome {
    for _ in 0..short_or_long(3, 20) {
        let mut case = Case::new()?;
        let pid = start(&case, &["--every", "0.001"], &["30", "1", "9"])?;
        ended(&case, pid, 9)?;
        ensure!(!case.path("job.vckpt").exists(), "the image is still there");
        ensure!(done(&case) == (1..=30).collect::<Vec<_>>(), "the steps are {:?}", done(&case));
        case.finish_empty()?;
    }
    Ok(())
}

/// Two runs with one image would do the work twice.
fn twice() -> Outcome {
    let mut case = Case::new()?;
    let pid = start(&case, &[], &["1000", "5", "0"])?;
    wait_for_steps(&case, 5)?;
    let ran = case.vckpt(&["run", "--image", "job.vckpt", "--", "true"])?;
    ensure!(ran.status.code() == Some(7), "not 7: {}", ran.describe());
    ensure!(ran.stderr.contains("another vckpt run has this image"), "not named: {}", ran.describe());
    signal(pid, libc::SIGTERM)?;
    ended(&case, pid, AGAIN)?;
    let ran = case.vckpt(&["run", "--image", "missing/job.vckpt", "--", "true"])?;
    ensure!(ran.status.code() == Some(7), "not 7: {}", ran.describe());
    ensure!(!case.path("job.vckpt.lock").exists(), "the lock is still there");
    case.finish_empty()
}

/// Told to end twice, as some do that end whole groups, and to end while it can't be dumped.
fn told_twice() -> Outcome {
    let mut case = Case::new()?;
    let pid = start(&case, &[], &["1000", "5", "0"])?;
    wait_for_steps(&case, 5)?;
    signal(pid, libc::SIGTERM)?;
    signal(pid, libc::SIGTERM)?;
    ended(&case, pid, AGAIN)?;
    let pid = start(&case, &["--on-term", "pass", "--every", "0.05"], &["1000", "5", "0"])?;
    wait_for_steps(&case, 20)?;
    signal(pid, libc::SIGTERM)?;
    // It was told to end, and an image is there.
    ended(&case, pid, AGAIN)?;
    ensure!(case.path("job.vckpt").is_file(), "the image is gone");
    case.finish_empty()
}

fn not_dumped() -> Outcome {
    let mut case = Case::new()?;
    let pid = start(&case, &[], &["1000", "5", "0", "traced"])?;
    wait_for_steps(&case, 5)?;
    signal(pid, libc::SIGTERM)?;
    ended(&case, pid, 128 + libc::SIGTERM)?;
    let said = case.output("run");
    for word in ["is traced by another one of the tree", "SIGTERM is handed on to the command"] {
        ensure!(said.contains(word), "it does not say {word}: {said}");
    }
    ensure!(!case.path("job.vckpt").exists(), "there is an image");
    case.finish_empty()
}

fn passed() -> Outcome {
    let mut case = Case::new()?;
    let pid = start(&case, &["--on-term", "pass"], &["1000", "5", "0"])?;
    wait_for_steps(&case, 5)?;
    signal(pid, libc::SIGTERM)?;
    ended(&case, pid, 128 + libc::SIGTERM)?;
    ensure!(!case.path("job.vckpt").exists(), "there is an image");
    case.finish_empty()
}

fn damaged() -> Outcome {
    let mut case = Case::new()?;
    let image = case.path("job.vckpt");
    fs::write(&image, "no image")?;
    let pid = start(&case, &[], &["5", "1", "0"])?;
    ended(&case, pid, 6)?;
    ensure!(done(&case).is_empty(), "the job was started: {:?}", done(&case));
    ensure!(fs::read_to_string(&image)? == "no image", "the image is not what it was");
    case.finish_empty()
}

fn not_there() -> Outcome {
    let mut case = Case::new()?;
    let ran = case.vckpt(&["run", "--image", "none.vckpt", "--", "/no/such/program", "x"])?;
    ensure!(ran.status.code() == Some(127), "not 127: {}", ran.describe());
    ensure!(ran.stderr.contains("/no/such/program"), "it is not named: {}", ran.describe());
    case.finish_empty()
}
