//! The mappings, as `pmap` shows them, with what the image stores of each.

use super::view::{PAGE, View, run_end};
use crate::output::plain;
use crate::table::{Align, Table};
use serde::Serialize;
use vckpt_image_format::record::mmap_memory::{PageOwner, PageSource};
use vckpt_image_format::record::process_map::{Mapping, Source, flag};
use vckpt_image_format::record::shared_segment::Origin;
use vckpt_image_format::{MemoryId, SegmentId};

/// An address space.
#[derive(Debug, Serialize)]
pub(crate) struct Space {
    /// The processes that have it.
    processes: Vec<u32>,
    command: String,
    /// Bytes of all mappings.
    pub(crate) size: u64,
    /// Bytes that are in the image.
    pub(crate) stored: u64,
    /// Bytes that are in the image with an ancestor.
    pub(crate) shared: u64,
    mappings: Vec<Row>,
}

/// A mapping.
#[derive(Debug, Serialize)]
struct Row {
    start: u64,
    end: u64,
    /// As in `/proc/<pid>/maps`.
    mode: String,
    stored: u64,
    shared: u64,
    name: String,
    /// What else is set.
    attributes: Vec<String>,
}

/// All address spaces, in the order of their first processes.
pub(crate) fn spaces(view: &View) -> Vec<Space> {
    let mut known: Vec<(MemoryId, Space)> = Vec::new();
    for process in &view.processes {
        let Some(living) = &process.living else { continue };
        if let Some((_, space)) = known.iter_mut().find(|(memory, _)| *memory == living.memory) {
            space.processes.push(process.id.0);
            continue;
        }
        let mappings = view.spaces.get(&living.memory).map_or(&[][..], |space| &space.mappings);
        let heap =
            view.spaces.get(&living.memory).and_then(|space| space.layout.as_ref()).map(|layout| layout.heap);
        let stack = view
            .spaces
            .get(&living.memory)
            .and_then(|space| space.layout.as_ref())
            .map(|layout| layout.stack);
        let rows: Vec<Row> =
            mappings.iter().map(|mapping| row(view, living.memory, mapping, heap, stack)).collect();
        let space = Space {
            processes: vec![process.id.0],
            command: process.command.to_string(),
            size: rows.iter().map(|row| row.end - row.start).fold(0, u64::saturating_add),
            stored: rows.iter().map(|row| row.stored).fold(0, u64::saturating_add),
            shared: rows.iter().map(|row| row.shared).fold(0, u64::saturating_add),
            mappings: rows,
        };
        known.push((living.memory, space));
    }
    known.into_iter().map(|(_, space)| space).collect()
}

fn row(
    view: &View,
    memory: MemoryId,
    mapping: &Mapping,
    heap: Option<(u64, u64)>,
    stack: Option<u64>,
) -> Row {
    let Mapping { start, end, .. } = *mapping;
    let (mut stored, mut shared) = bytes(view, PageOwner::Memory(memory), start, end);
    if let Source::Segment { segment, offset } = mapping.source {
        let part = bytes(view, PageOwner::Segment(segment), offset, offset.saturating_add(end - start));
        stored += part.0;
        shared += part.1;
    }
    let name = match &mapping.source {
        Source::File { file, .. } if file.embedded => format!("{} (embedded)", file.path),
        Source::File { file, .. } if file.nameless.is_some() => format!("{} (deleted)", file.path),
        Source::File { file, .. } => file.path.to_string(),
        Source::Segment { segment, .. } => segment_name(view, *segment),
        Source::Kernel { name } => plain(name),
        Source::Ring(ring) => format!("[ring of asynchronous I/O, {} events wait]", ring.events.len() / 32),
        Source::IoUring { offset: 0x1000_0000.., .. } => "[io_uring, requests]".to_owned(),
        Source::IoUring { .. } => "[io_uring, rings]".to_owned(),
        Source::Anonymous => match &mapping.name {
            Some(name) => format!("[anon:{name}]"),
            None if heap.is_some_and(|heap| start < heap.1 && end > heap.0) => "[heap]".to_owned(),
            None if stack.is_some_and(|stack| (start..end).contains(&stack)) => "[stack]".to_owned(),
            None => "[anon]".to_owned(),
        },
    };
    let mut attributes = attributes(mapping);
    let guards = guards(view, memory, start, end);
    if guards > 0 {
        attributes.push(format!("{} KiB guarded", guards / 1024));
    }
    Row { start, end, mode: mode(mapping), stored, shared, name, attributes }
}

fn segment_name(view: &View, id: SegmentId) -> String {
    match view.segments.get(&id).map(|segment| &segment.origin) {
        Some(Origin::Memfd { name, .. }) => format!("[shared segment {id}, memfd:{name}]"),
        Some(Origin::SystemV(shared)) => format!("[shared segment {id}, System V ID {}]", shared.id),
        Some(Origin::Secret) => format!("[shared segment {id}, secret]"),
        Some(Origin::Anonymous) | None => format!("[shared segment {id}]"),
    }
}

/// What is set of a mapping, in the words of the calls that set it.
fn attributes(mapping: &Mapping) -> Vec<String> {
    const WORDS: &[(u32, &str)] = &[
        (flag::GROWS_DOWN, "grows down"),
        (flag::LOCKED_ON_FAULT, "locked on fault"),
        (flag::LOCKED, "locked"),
        (flag::SEQUENTIAL_READ, "sequential"),
        (flag::RANDOM_READ, "random"),
        (flag::DO_NOT_COPY, "not forked"),
        (flag::NO_RESERVE, "not reserved"),
        (flag::DO_NOT_DUMP, "not dumped"),
        (flag::HUGE_PAGE, "huge"),
        (flag::NO_HUGE_PAGE, "never huge"),
        (flag::MERGEABLE, "mergeable"),
        (flag::WIPE_ON_FORK, "wiped on fork"),
        (flag::DROPPABLE, "droppable"),
        (flag::SEALED, "sealed"),
        (flag::READ_ONLY, "read-only"),
    ];
    // What is locked on fault is locked.
    let on_fault = if mapping.flags & flag::LOCKED_ON_FAULT == 0 { 0 } else { flag::LOCKED };
    let flags = mapping.flags & !on_fault;
    let set = WORDS.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| (*word).to_owned());
    let mut words: Vec<String> = set.collect();
    if mapping.huge_page != 0 {
        words.push(format!("pages of {} KiB", (1_u64 << mapping.huge_page.min(40)) / 1024));
    }
    if mapping.protection_key != 0 {
        words.push(format!("key {}", mapping.protection_key));
    }
    if let Some(policy) = &mapping.policy {
        words.push(format!("memory policy {}", policy.mode));
    }
    words
}

/// How many bytes from `start` to `end` are in guard regions.
fn guards(view: &View, memory: MemoryId, start: u64, end: u64) -> u64 {
    let runs = view.runs(PageOwner::Memory(memory), start, end).iter();
    let guards = runs.filter(|run| run.source == PageSource::Guard);
    guards.map(|run| run_end(run).min(end).saturating_sub(run.address.max(start))).sum()
}

/// How many bytes from `start` to `end` are stored with the owner, and how many with an ancestor.
fn bytes(view: &View, owner: PageOwner, start: u64, end: u64) -> (u64, u64) {
    let (mut stored, mut shared) = (0_u64, 0_u64);
    for run in view.runs(owner, start, end) {
        let part = run_end(run).min(end).saturating_sub(run.address.max(start));
        match run.source {
            PageSource::Stored { .. } => stored += part,
            PageSource::Parent => shared += part,
            PageSource::Zero | PageSource::Guard => {}
        }
    }
    (stored / PAGE * PAGE, shared / PAGE * PAGE)
}

fn mode(mapping: &Mapping) -> String {
    let bit = |bit: u8, letter: char| if mapping.protection & bit != 0 { letter } else { '-' };
    [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if mapping.shared { 's' } else { 'p' }].iter().collect()
}

/// Every mapping of every address space.
pub(super) fn lines(spaces: &[Space]) -> Vec<String> {
    let mut lines = Vec::new();
    for space in spaces {
        let processes: Vec<String> = space.processes.iter().map(u32::to_string).collect();
        lines.push(format!("{}: {}", processes.join(", "), space.command));
        let mut table = columns();
        for row in &space.mappings {
            let size = row.end - row.start;
            table.row([
                format!("{:016x}", row.start),
                kib(size),
                kib(row.stored),
                kib(row.shared),
                row.mode.clone(),
                described(row),
            ]);
        }
        table.row([
            "total".to_owned(),
            kib(space.size),
            kib(space.stored),
            kib(space.shared),
            String::new(),
            String::new(),
        ]);
        lines.extend(table.lines());
        lines.push(String::new());
    }
    lines.pop();
    lines
}

fn described(row: &Row) -> String {
    let attributes = row.attributes.join(", ");
    if attributes.is_empty() { row.name.clone() } else { format!("{} ({attributes})", row.name) }
}

fn columns() -> Table {
    use Align::{Left, Right};
    Table::new(&[
        ("ADDRESS", Left),
        ("KIB", Right),
        ("STORED", Right),
        ("WITH PARENT", Right),
        ("MODE", Left),
        ("MAPPING", Left),
    ])
}

fn kib(bytes: u64) -> String {
    (bytes / 1024).to_string()
}
