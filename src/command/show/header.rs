//! The summary of an image: what, when, where, how large, how exact.

use super::view::View;
use crate::command::fidelity;
use crate::output::plain;
use crate::units;
use serde::Serialize;

/// The summary.
#[derive(Debug, Serialize)]
pub(super) struct Header {
    path: String,
    root: u32,
    command: String,
    processes: usize,
    threads: usize,
    made: String,
    made_by: u32,
    writer: String,
    host: Option<String>,
    kernel: Option<String>,
    /// What programs may do on the processor.
    processor: Vec<String>,
    bytes: u64,
    stored_memory: u64,
    records: usize,
    degraded: Vec<String>,
}

/// The summary of an image.
pub(super) fn header(view: &View) -> Header {
    let platform = view.platform.as_ref();
    Header {
        path: view.path.display().to_string(),
        root: view.snapshot.root.0,
        command: view.snapshot.command.to_string(),
        processes: view.processes.len(),
        threads: view.threads.len(),
        made: units::moment(view.snapshot.realtime),
        made_by: view.snapshot.dumped_by,
        writer: view.snapshot.writer.clone(),
        host: platform.map(|platform| platform.node.to_string()),
        kernel: platform.map(|platform| format!("{} {}", platform.release, platform.machine)),
        processor: view.snapshot.processor_features.clone(),
        bytes: view.image.len(),
        stored_memory: view.image.page_sections().map(|section| section.pages.saturating_mul(4096)).sum(),
        records: view.image.frames().count(),
        degraded: view.snapshot.degraded.clone(),
    }
}

/// The summary as text.
pub(super) fn lines(header: &Header) -> Vec<String> {
    let processes = units::count(header.processes, "process", "processes");
    let threads = units::count(header.threads, "thread", "threads");
    let size = units::bytes(header.bytes);
    let stored = units::bytes(header.stored_memory);
    let mut lines = vec![
        format!("image     {}", header.path),
        format!("of        {} ({}), {processes}, {threads}", header.root, header.command),
        format!("made      {} by user {} with vckpt {}", header.made, header.made_by, plain(&header.writer)),
    ];
    if let (Some(host), Some(kernel)) = (&header.host, &header.kernel) {
        lines.push(format!("on        {host}, Linux {kernel}"));
    }
    lines.push(format!("size      {size}, of which memory {stored}; {} records", header.records));
    lines.push(fidelity(&header.degraded).replacen("fidelity:", "fidelity ", 1));
    lines.extend(header.degraded.iter().map(|item| format!("          {}", plain(item))));
    lines
}
