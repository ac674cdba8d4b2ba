//! Real work that is interrupted: python with threads, a shell pipeline, a parallel build, perl that forks.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::case::Case;
use crate::harness::process::{alive, reap, spawn, tree, until};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, fail, need_ordinary_user};

pub(crate) const TOPIC: Topic = Topic {
    name: "workloads",
    fixtures: &[],
    cases: &[
        ("python_threads_and_memory", || python(Case::new()?, 200)),
        ("python_of_an_ordinary_user", python_of_an_ordinary_user),
        ("shell_pipeline", shell_pipeline),
        ("parallel_build", parallel_build),
        ("perl_forks_and_reaps", perl),
    ],
};

const LIMIT: Duration = Duration::from_secs(60);

/// Eight threads, a queue between them, and memory that is checked over and over; a line a lap.
const PYTHON: &str = r"
import hashlib, queue, random, sys, threading, time
size = int(sys.argv[1])
blocks = [random.Random(number).randbytes(1 << 20) for number in range(size)]
digests = [hashlib.sha256(block).digest() for block in blocks]
work, done = queue.Queue(16), queue.Queue(16)
local = threading.local()
def worker(number):
    local.number = number
    while True:
        index = work.get()
        good = hashlib.sha256(blocks[index]).digest() == digests[index] and local.number == number
        done.put((index, good))
for number in range(8):
    threading.Thread(target=worker, args=(number,), daemon=True).start()
def feed():
    while True:
        for index in range(size):
            work.put(index)
threading.Thread(target=feed, daemon=True).start()
checked = [0] * size
lap = 0
with open('laps', 'w', buffering=1) as out:
    while True:
        index, good = done.get()
        if not good:
            out.write('BAD block %d\n' % index)
        checked[index] += 1
        if min(checked) > lap:
            lap += 1
            out.write('lap %d\n' % lap)
        time.sleep(0)
";

/// Waits until a file of lines has grown past what it had, with no line that begins with `BAD`.
pub(crate) fn grows(path: &Path, what: &str, root: i32) -> Outcome {
    let count = || fs::read_to_string(path).unwrap_or_default().lines().count();
    let before = count();
    until(&format!("{what} to go on"), LIMIT, || {
        reap();
        if !alive(root) {
            return Some(fail(format!("{what} has ended")));
        }
        (count() > before + 1).then_some(Ok(()))
    })??;
    let text = fs::read_to_string(path)?;
    let bad = text.lines().find(|line| line.starts_with("BAD"));
    ensure!(bad.is_none(), "{what} says {bad:?}");
    Ok(())
}

fn python(mut case: Case, mebibytes: u32) -> Outcome {
    let program = need_program("python3")?;
    let mut command = case.command(&program, "python")?;
    let mut root = spawn(command.args(["-c", PYTHON, &mebibytes.to_string()]))?;
    let laps = case.path("laps");
    let start = grows(&laps, "python", root);
    ensure!(start.is_ok(), "{start:?}\n{}", case.output("python"));
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        grows(&laps, "python", root)?;
    }
    // Laps are counted without a gap.
    let text = fs::read_to_string(&laps)?;
    for (number, line) in text.lines().enumerate() {
        ensure!(line == format!("lap {}", number + 1), "line {number} of the laps is {line:?}");
    }
    case.finish(root)
}

fn python_of_an_ordinary_user() -> Outcome {
    if crate::harness::is_root() {
        return python(Case::new_as_ordinary_user()?, 20);
    }
    need_ordinary_user()?;
    python(Case::new()?, 20)
}

/// A loop that prints numbers, a `sed -u` that marks them, a `tee` that writes them down.
const PIPELINE: &str = "i=0; while [ ! -e stop ]; do echo line $i; i=$((i+1)); done | sed -u 's/line/marked/' | tee lines > /dev/null";

fn shell_pipeline() -> Outcome {
    let bash = need_program("bash")?;
    let mut case = Case::new()?;
    let mut root = spawn(case.command(&bash, "pipeline")?.args(["-c", PIPELINE]))?;
    let lines = case.path("lines");
    until("the first lines", LIMIT, || lines.exists().then_some(()))?;
    grows(&lines, "the pipeline", root)?;
    for _ in 0..2 {
        ensure!(tree(root).len() == 4, "the pipeline has {} processes", tree(root).len());
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        grows(&lines, "the pipeline", root)?;
    }
    fs::write(case.path("stop"), "")?;
    until("the pipeline to end", LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    for (number, line) in fs::read_to_string(&lines)?.lines().enumerate() {
        ensure!(line == format!("marked {number}"), "line {number} is {line:?}");
    }
    case.finish_empty()
}

/// Runs the build and writes down how it ended, so that the status can be seen from outside.
const BUILD: &str = "make -j2 all > build.log 2>&1; echo $? > status.draft; mv status.draft status; exit 7";

fn parallel_build() -> Outcome {
    let (bash, _, _) = (need_program("bash")?, need_program("make")?, need_program("gcc")?);
    let mut case = Case::new()?;
    let count = 60;
    for number in 0..count {
        let functions: String = (0..120)
            .map(|inner| format!("int f_{number}_{inner}(int *a, int n) {{ int s = {inner}; for (int i = 0; i < n; i++) {{ s += a[i] * {inner}; if (s & 1) s ^= a[i] << 3; }} return printf(\"%d\", s); }}\n"))
            .collect();
        fs::write(case.path(&format!("part{number}.c")), format!("#include <stdio.h>\n{functions}"))?;
    }
    let objects: String = (0..count).map(|number| format!("part{number}.o ")).collect();
    let rule = "%.o: %.c\n\tgcc -O2 -pipe -c -o $@.draft $< && mv $@.draft $@\n";
    fs::write(case.path("Makefile"), format!("all: {objects}\n{rule}"))?;
    let made =
        |case: &Case| (0..count).filter(|number| case.path(&format!("part{number}.o")).exists()).count();
    let mut root = spawn(case.command(&bash, "build")?.args(["-c", BUILD]))?;
    for round in 1..=2_usize {
        // In the middle, and at a moment when a compiler is at work.
        until("the middle of the build", LIMIT, || {
            reap();
            (made(&case) >= 15 * round && tree(root).len() >= 4).then_some(())
        })?;
        let image = case.dump(root)?;
        let then = made(&case);
        ensure!(then < count, "the build was over before it was dumped");
        root = case.restore(&image)?;
        fs::remove_file(image)?;
    }
    let status = case.path("status");
    until("the build to end", Duration::from_secs(240), || {
        reap();
        status.exists().then_some(())
    })?;
    let log = fs::read_to_string(case.path("build.log"))?;
    ensure!(fs::read_to_string(&status)?.trim() == "0", "make ended with an error:\n{log}");
    ensure!(made(&case) == count, "{} of {count} objects are there", made(&case));
    until("the wrapper to end", LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    case.finish_empty()
}

/// Forks children that end with known statuses, and checks each; a line a hundred.
const PERL: &str = r#"
use strict; use IO::Handle;
open(my $out, '>', 'laps') or die; $out->autoflush(1);
my $lap = 0;
while (1) {
    for my $number (1 .. 100) {
        my $pid = fork(); die "fork: $!" unless defined $pid;
        if ($pid == 0) { select(undef, undef, undef, 0.001); exit($number); }
        my $found = waitpid($pid, 0);
        print $out "BAD pid $found, not $pid: $!\n" if $found != $pid;
        print $out "BAD status $?, not $number\n" if $? != $number << 8;
    }
    $lap++; print $out "lap $lap\n";
}
"#;

fn perl() -> Outcome {
    let program = need_program("perl")?;
    let mut case = Case::new()?;
    let mut root = spawn(case.command(&program, "perl")?.args(["-e", PERL]))?;
    let laps = case.path("laps");
    grows(&laps, "perl", root)?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        grows(&laps, "perl", root)?;
    }
    case.finish(root)
}
