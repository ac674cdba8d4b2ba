//! `vckpt show`: what is in an image, as `ps`, `lsof` and `pmap` would show it.
//!
//! Loading is in `view`; each table has a file of its own that turns the view into rows, which are printed as text or
//! as JSON.

pub(super) mod files;
mod header;
pub(super) mod memory;
pub(super) mod processes;
pub(super) mod records;
pub(super) mod signals;
pub(super) mod sockets;
#[cfg(test)]
mod tests;
pub(super) mod threads;
pub(super) mod view;

use crate::cli::Show;
use crate::failure::Result;
use crate::output::{Output, Tint};
use serde::Serialize;
use std::process::ExitCode;
use view::View;

/// Everything in JSON; what was not asked for is left out.
#[derive(Serialize)]
struct Json {
    image: header::Header,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Vec<processes::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<Vec<threads::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<files::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<Vec<sockets::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signals: Option<signals::Signals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Vec<memory::Space>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<records::Row>>,
}

/// Shows an image.
pub(super) fn run(arguments: &Show, output: &Output) -> Result<ExitCode> {
    let view = View::load(&arguments.image)?;
    let tasks = arguments.processes || arguments.threads || arguments.signals;
    let one = tasks || arguments.files || arguments.sockets;
    let all = !(one || arguments.memory || arguments.records);
    if output.json {
        output.object(&Json {
            image: header::header(&view),
            processes: (all || arguments.processes).then(|| processes::rows(&view)),
            threads: (all || arguments.threads).then(|| threads::rows(&view)),
            files: (all || arguments.files).then(|| files::rows(&view)),
            sockets: (all || arguments.sockets).then(|| sockets::rows(&view)),
            signals: (all || arguments.signals).then(|| signals::signals(&view)),
            memory: (all || arguments.memory).then(|| memory::spaces(&view)),
            records: (all || arguments.records).then(|| records::rows(&view)),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    output.lines(header::lines(&header::header(&view)))?;
    if all || arguments.processes {
        section("processes", processes::lines(&processes::rows(&view)), output)?;
    }
    if arguments.threads {
        section("threads", threads::lines(&threads::rows(&view)), output)?;
    }
    if all || arguments.files {
        section("descriptors", files::lines(&files::rows(&view)), output)?;
    }
    let rows = if all || arguments.sockets { sockets::rows(&view) } else { Vec::new() };
    if arguments.sockets || !rows.is_empty() {
        section("sockets", sockets::lines(&rows), output)?;
    }
    let signals =
        if all || arguments.signals { signals::signals(&view) } else { signals::Signals::default() };
    if arguments.signals || !signals.waiting.is_empty() {
        section("waiting signals", signals::waiting_lines(&signals.waiting), output)?;
    }
    if arguments.signals || !signals.timers.is_empty() {
        section("timers", signals::timer_lines(&signals.timers), output)?;
    }
    if all || arguments.memory {
        section("memory", memory::lines(&memory::spaces(&view)), output)?;
    }
    if arguments.records {
        section("records", records::lines(&records::rows(&view)), output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn section(title: &str, lines: Vec<String>, output: &Output) -> Result<()> {
    output.line("")?;
    output.line(output.tint(Tint::Strong, title))?;
    if lines.is_empty() {
        output.line("none")?;
    }
    Ok(output.lines(lines)?)
}
