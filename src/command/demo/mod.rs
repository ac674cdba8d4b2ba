//! `vckpt demo`: freezes a small bakery, brings it back, and proves that nothing was lost.

pub(super) mod bakery;
mod book;
mod stage;
mod story;

use super::milliseconds;
use super::show::view::View;
use crate::cli::Demo;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::signals::Signals;
use book::{Away, Proof};
use serde::Serialize;
use stage::Stage;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use story::Story;
use vckpt_supervisor::dump::{self, Afterwards};
use vckpt_supervisor::restore::{self, Pids, Source};

/// How long the bakery works before it is frozen.
const WORK: Duration = Duration::from_millis(800);
/// How long it is away at least, so that what a clock would lose or gain shows.
const REST: Duration = Duration::from_millis(500);
/// How long anything may take before the demonstration is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The result in JSON.
#[derive(Serialize)]
struct Json {
    proved: bool,
    proofs: Vec<Proof>,
    processes: usize,
    threads: usize,
    frozen_ms: f64,
    dump_ms: f64,
    restore_ms: f64,
    image_bytes: u64,
    kept: Option<PathBuf>,
}

/// Runs the demonstration; done only if everything was proved.
pub(super) fn run(arguments: &Demo, output: &Output) -> Result<ExitCode> {
    let stage = Arc::new(Stage::new(arguments.keep)?);
    let shared = Arc::clone(&stage);
    let _signals = Signals::end_with(move || shared.clear())?;
    let result = play(&stage, &Story::new(output));
    let notes = stage.notes();
    stage.clear();
    let json = result.map_err(|failure| match notes {
        Some(notes) => failure.context(format!("the bakery says: {notes}")),
        None => failure,
    })?;
    let code = if json.proved { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if output.json {
        output.object(&json)?;
    }
    Ok(code)
}

fn play(stage: &Stage, story: &Story<'_>) -> Result<Json> {
    let started = Instant::now();
    story.opening()?;
    let pid = stage.open()?;
    wait_for("the first sale", || Ok(!stage.book()?.entries.is_empty()))?;
    sleep(WORK.saturating_sub(started.elapsed()));

    let froze = stage::now();
    story.before_dump(pid, &stage.book()?, &stage.oven()?)?;
    let dumped = dump::dump(
        dump::Request {
            pid,
            output: dump::Output::File(stage.image()),
            afterwards: Afterwards::Kill,
            freeze_timeout: PATIENCE,
            embed_files: false,
            close_connections: false,
            close_external: false,
            force: false,
        },
        &mut |_| {},
    )?;
    let dump_ended = stage::now();
    let view = View::load(&stage.image())?;
    let members = story.caught(&dumped, &view)?;

    let gone = stage.reap(&members)?;
    let left = stage.book()?;
    sleep(REST);
    let still = stage.book()?.entries.len() == left.entries.len();
    story.away(gone, &left)?;

    let restore_began = stage::now();
    let source = Source::File(stage.image());
    let request = restore::Request { source, pids: Pids::Automatic, detach: false, addresses: Vec::new() };
    let restored = restore::restore(request, &mut |_| ControlFlow::Continue(()))?;
    stage.returned(restored.report.pid);
    let away = Away { at_least: restore_began - dump_ended, at_most: stage::now() - froze };
    story.back(&restored.report)?;
    let restore_time = restored.report.total;

    wait_for("the bread to be ready", || Ok(stage.oven()?.ready.is_some()))?;
    wait_for("sales after the restore", || Ok(stage.book()?.entries.len() > left.entries.len() + 100))?;
    let (oven, same_ids) = (stage.oven()?, stage.has_ids(&members, restored.report.namespace));
    stage.close()?;
    let ending = restored.wait()?;
    let book = stage.book()?;

    let mut proofs =
        vec![Proof::new(gone && still, "while frozen, no process was left and the book stood still")];
    proofs.push(same_ids);
    proofs.extend(book::proofs(&left, &book, &oven, away));
    let closed = book.closed && matches!(ending, restore::Ending::Exited(0));
    proofs.push(Proof::new(
        closed,
        "told to close, it sold what was left in the pipe and ended with exit code 0",
    ));
    let proved = proofs.iter().all(|proof| proof.passed);
    story.verdict(&proofs, started.elapsed(), stage.kept())?;
    Ok(Json {
        proved,
        proofs,
        processes: dumped.processes,
        threads: dumped.threads,
        frozen_ms: milliseconds(dumped.frozen),
        dump_ms: milliseconds(dumped.total),
        restore_ms: milliseconds(restore_time),
        image_bytes: dumped.image_bytes,
        kept: stage.kept().map(PathBuf::from),
    })
}

fn wait_for(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(Failure::message(format!("waited in vain for {what}")));
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
