//! Pipes whose other side is held outside of the dumped tree: by whoever reads a log, or by nobody any more.

use std::fs;
use std::io::{PipeReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{spawn, until, wait_exit};
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::{put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "outside",
    fixtures: &[("speaker", speaker), ("listener", listener), ("bereft", bereft)],
    cases: &[
        ("standard_output_to_a_reader", standard_output),
        ("standard_input_from_a_writer", standard_input),
        ("stray_descriptor", stray),
        ("pipe_of_somebody_else", of_somebody_else),
        ("leave_running", leave_running),
        ("other_side_gone", gone),
        ("standard_output_handed_on", handed_on),
    ],
};

/// The number of a descriptor that a program was given and knows nothing of.
const STRAY: RawFd = 251;
/// Another one, to read from.
const SOURCE: RawFd = 250;

// None of them compares the flags: what is opened by `/proc` has `O_LARGEFILE` besides, which means nothing.

/// Of an ordinary user who is restored in namespaces of its own, `setgroups` changes too.
const IGNORED: &[&str] = &["fd ", "setgroups"];

/// Writes a line for each question: into its standard output, and into a stray descriptor if it has one.
fn speaker(stage: Stage) {
    // SAFETY: a getter.
    let has_stray = unsafe { libc::fcntl(STRAY, libc::F_GETFD) } >= 0;
    stage.serve_except(IGNORED, move |number| {
        let line = format!("line {number}\n");
        put(1, line.as_bytes()).map_err(|error| format!("standard output: {error}"))?;
        if has_stray {
            put(STRAY, line.as_bytes()).map_err(|error| format!("the stray pipe: {error}"))?;
        }
        Ok(())
    });
}

/// Reads a line of its standard input for each question.
fn listener(stage: Stage) {
    stage.serve_except(&["fd "], |number| {
        let line = take(0, 7).map_err(|error| error.to_string())?;
        let expected = format!("line {number}\n");
        verify!(line == expected.as_bytes(), "read {:?}", String::from_utf8_lossy(&line));
        Ok(())
    });
}

/// Finds that the other sides of its pipes are gone, after what waited.
fn bereft(stage: Stage) {
    let mut first = true;
    stage.serve_except(&["fd "], move |_| {
        if std::mem::take(&mut first) {
            let waited = take(SOURCE, 100).map_err(|error| error.to_string())?;
            verify!(waited == b"waited", "{:?} waited", String::from_utf8_lossy(&waited));
        }
        let end = take(SOURCE, 100).map_err(|error| error.to_string())?;
        verify!(end.is_empty(), "{:?} instead of the end of file", String::from_utf8_lossy(&end));
        let written = put(STRAY, b"x").err().and_then(|error| error.raw_os_error());
        verify!(written == Some(libc::EPIPE), "writing gives {written:?} instead of EPIPE");
        Ok(())
    });
}

/// Gives a command a descriptor of ours under another number.
fn give(command: &mut Command, ours: RawFd, number: RawFd) {
    // SAFETY: dup2 is async-signal-safe; what it makes survives the exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(ours, number) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// The lines that a fixture writes for its first questions.
fn lines(questions: u32) -> String {
    (1..=questions).map(|number| format!("line {number}\n")).collect()
}

/// Reads exactly what is expected, and that nothing follows.
fn expect(reader: &mut PipeReader, expected: &str) -> Outcome {
    let mut found = vec![0; 1000];
    let count = reader.read(&mut found)?;
    let found = String::from_utf8_lossy(&found[..count]);
    ensure!(found == expected, "{found:?} came through the pipe, not {expected:?}");
    Ok(())
}

fn standard_output() -> Outcome {
    let mut case = Case::new()?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut root = spawn(case.fixture("speaker", &[])?.stdout(writer))?;
    case.wait_ready("speaker", root)?;
    case.ask()?;
    // What waits now must neither be lost nor come twice.
    root = case.round(root)?;
    root = case.round(root)?;
    expect(&mut reader, &lines(3))?;
    root = case.round(root)?;
    expect(&mut reader, "line 4\n")?;
    case.finish(root)
}

fn standard_input() -> Outcome {
    let mut case = Case::new()?;
    let (reader, mut writer) = std::io::pipe()?;
    let keep = reader.try_clone()?;
    let mut root = spawn(case.fixture("listener", &[])?.stdin(reader))?;
    case.wait_ready("listener", root)?;
    writer.write_all(lines(3).as_bytes())?;
    case.ask()?;
    root = case.round(root)?;
    root = case.round(root)?;
    writer.write_all(b"line 4\n")?;
    root = case.round(root)?;
    drop(keep);
    case.finish(root)
}

fn stray() -> Outcome {
    let mut case = Case::new()?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = case.fixture("speaker", &[])?;
    give(&mut command, writer.as_raw_fd(), STRAY);
    let mut root = spawn(&mut command)?;
    drop(writer);
    case.wait_ready("speaker", root)?;
    case.ask()?;
    root = case.round(root)?;
    root = case.round(root)?;
    expect(&mut reader, &lines(3))?;
    case.finish(root)
}

/// An ordinary user can't open a pipe that root has made, but has a descriptor of it as the program had.
fn of_somebody_else() -> Outcome {
    need_root()?;
    let mut case = Case::new_as_ordinary_user()?;
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = case.fixture("speaker", &[])?;
    give(&mut command, writer.as_raw_fd(), STRAY);
    let mut root = spawn(&mut command)?;
    case.wait_ready("speaker", root)?;
    case.ask()?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let mut command = case.command(&case.vckpt, "vckpt")?;
    give(&mut command, writer.as_raw_fd(), STRAY);
    let status = wait_exit(
        spawn(command.args(["restore", text(&image), "--detach", "--pid-file", "pid"]))?,
        Duration::from_secs(30),
    )?;
    ensure!(status.success() && !case.output("vckpt").contains("pipe:["), "{}", case.output("vckpt"));
    root = fs::read_to_string(case.path("pid"))?.trim().parse()?;
    case.ask()?;
    expect(&mut reader, &lines(2))?;
    case.finish(root)
}

fn leave_running() -> Outcome {
    let mut case = Case::new()?;
    let (mut reader, writer) = std::io::pipe()?;
    let root = spawn(case.fixture("speaker", &[])?.stdout(writer))?;
    case.wait_ready("speaker", root)?;
    case.ask()?;
    case.dump_with(root, &["--leave-running"])?;
    case.ask()?;
    expect(&mut reader, &lines(2))?;
    case.finish(root)
}

fn gone() -> Outcome {
    let mut case = Case::new()?;
    let (reader, stray) = std::io::pipe()?;
    let (source, mut writer) = std::io::pipe()?;
    writer.write_all(b"waited")?;
    let mut command = case.fixture("bereft", &[])?;
    give(&mut command, stray.as_raw_fd(), STRAY);
    give(&mut command, source.as_raw_fd(), SOURCE);
    let mut root = spawn(&mut command)?;
    drop((stray, source));
    case.wait_ready("bereft", root)?;
    let image = case.dump(root)?;
    drop((reader, writer));
    if case.is_control() {
        return case.finish(root);
    }
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?.good()?;
    root = ran.stdout.trim().parse()?;
    let told = |words: &[&str]| ran.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
    for words in [["fd 251", "pipe:[", "EPIPE"], ["fd 250", "pipe:[", "6 bytes"]] {
        ensure!(told(&words), "no line with {words:?}: {}", ran.describe());
    }
    let name = format!("process {root} (");
    ensure!(told(&[&name]) || ran.stderr.contains("namespace"), "no process is named: {}", ran.describe());
    ensure!(ran.stderr.contains("2 items degraded"), "the fidelity: {}", ran.describe());
    case.ask()?;
    root = case.round(root)?;
    case.finish(root)
}

fn handed_on() -> Outcome {
    let mut case = Case::new()?;
    let (reader, writer) = std::io::pipe()?;
    let root = spawn(case.fixture("speaker", &[])?.stdout(writer))?;
    case.wait_ready("speaker", root)?;
    case.ask()?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    drop(reader);
    let arguments = ["restore", text(&image)];
    let (parent, files) = case.start_vckpt(&arguments)?;
    case.ask()?;
    let output = until("the line in the output of vckpt", Duration::from_secs(10), || {
        fs::read_to_string(&files[0]).ok().filter(|text| !text.is_empty())
    })?;
    ensure!(output == "line 2\n", "the output of vckpt is {output:?}");
    fs::write(case.path("stop"), "")?;
    let ran = case.ended(parent, files, &arguments)?.good()?;
    ensure!(!ran.stderr.contains("degraded"), "{}", ran.describe());
    case.finish_empty()
}
