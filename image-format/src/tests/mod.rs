//! Tests of the whole: images that are written, spoiled and opened. What they share is here.

mod consistency;
mod damage;
mod hostile;
mod repair;
mod round_trip;
mod specification;
mod unknown;

use crate::error::FormatError;
use crate::record::Record;
use crate::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use crate::record::process::Process;
use crate::record::process_map::{Layout, MappedFile, Mapping, ProcessMap, ProtectionKeys, Source};
use crate::record::process_status::{ProcessStatus, State};
use crate::record::shared_segment::{Origin, SharedSegment};
use crate::record::snapshot::Snapshot;
use crate::{Image, ImageWriter, MemoryId, PAGE_SIZE, SegmentId, TaskId, Text};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file with these bytes and without a name.
fn file(bytes: &[u8]) -> File {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("vckpt-format-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Opens these bytes as an image.
fn open(bytes: &[u8]) -> Result<Image, FormatError> {
    Image::open(file(bytes))
}

/// Opens these bytes as an image that must be refused, with a message of one line.
fn refused(bytes: &[u8]) -> FormatError {
    let error = open(bytes).expect_err("the image is bad");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// A whole page of one byte.
fn page(byte: u8) -> [u8; PAGE_SIZE] {
    [byte; PAGE_SIZE]
}

fn snapshot() -> Snapshot {
    Snapshot {
        root: TaskId(7),
        command: Text::from("counter"),
        writer: "0.1.0".to_owned(),
        realtime: 1_700_000_000_000_000_000,
        monotonic: 12_345,
        boottime: 23_456,
        time_namespace: false,
        boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
        xstate_features: 7,
        processor_features: vec!["avx".to_owned()],
        xstate_size: 832,
        dumped_by: 1000,
        degraded: Vec::new(),
    }
}

/// A process that has ended: one that lives would refer to records of many more kinds.
fn ended(id: u32, parent: Option<u32>) -> Process {
    Process {
        id: TaskId(id),
        parent: parent.map(TaskId),
        process_group: 7,
        session: 7,
        command: Text::from("counter"),
        parent_thread: None,
        exit_signal: 17,
        living: None,
    }
}

fn layout() -> Layout {
    Layout {
        code: (0x1000, 0x2000),
        data: (0x2000, 0x3000),
        heap: (0x4000, 0x5000),
        stack: 0x9000,
        arguments: (0x9100, 0x9200),
        environment: (0x9200, 0x9300),
        auxiliary_vector: vec![0; 16],
        executable: MappedFile {
            path: Text::from("/bin/counter"),
            nameless: None,
            embedded: false,
            size: 4096,
            modified: 0,
            writable: false,
        },
        lock_future: 0,
        keys: ProtectionKeys::default(),
    }
}

pub(crate) fn map(memory: u32, first: bool, ranges: &[(u64, u64)]) -> ProcessMap {
    let mapping = |&(start, end): &(u64, u64)| Mapping {
        start,
        end,
        protection: 3,
        shared: false,
        flags: 0,
        source: Source::Anonymous,
        name: None,
        protection_key: 0,
        policy: None,
        huge_page: 0,
    };
    ProcessMap {
        memory: MemoryId(memory),
        layout: first.then(layout),
        mappings: ranges.iter().map(mapping).collect(),
    }
}

fn pages(owner: PageOwner, runs: &[(u64, u64, PageSource)]) -> MmapMemory {
    let run = |&(address, count, source): &(u64, u64, PageSource)| PageRun { address, count, source };
    MmapMemory { owner, runs: runs.iter().map(run).collect() }
}

fn stored(section: u32, page: u64) -> PageSource {
    PageSource::Stored { section, page }
}

/// Writes an image of what `write` writes behind a snapshot.
fn written(write: impl FnOnce(&mut ImageWriter<Vec<u8>>)) -> Vec<u8> {
    let mut writer = ImageWriter::new(Vec::new()).unwrap();
    writer.record(&snapshot()).unwrap();
    write(&mut writer);
    writer.finish().unwrap()
}

/// An image of these records behind a snapshot and a root, and of a page section of `count` pages.
fn with<R: Record>(count: usize, records: &[R]) -> Vec<u8> {
    written(|writer| {
        writer.record(&ended(7, None)).unwrap();
        writer.begin_page_section().unwrap();
        writer.pages(&page(1).repeat(count)).unwrap();
        for record in records {
            writer.record(record).unwrap();
        }
    })
}

/// The state of a process that has ended with this status.
fn zombie(status: u32) -> State {
    let (user, group, capabilities) = Default::default();
    State::Zombie { status, user, group, capabilities }
}

/// A small image with a bit of everything.
fn sample() -> Vec<u8> {
    written(|writer| {
        writer.record(&ended(7, None)).unwrap();
        writer
            .record(&ProcessStatus {
                process: TaskId(7),
                state: zombie(256),
                stop_untold: false,
                continue_untold: false,
            })
            .unwrap();
        writer.record(&map(0, true, &[(0x1000, 0x3000), (0x3000, 0x5000)])).unwrap();
        assert_eq!(writer.begin_page_section().unwrap(), 0);
        writer.pages(&page(1)).unwrap();
        writer.pages(&page(2)).unwrap();
        let runs = [(0x1000, 1, stored(0, 1)), (0x2000, 2, PageSource::Zero)];
        writer.record(&pages(PageOwner::Memory(MemoryId(0)), &runs)).unwrap();
        let origin = Origin::Memfd { name: Text::from("ring"), seals: 0 };
        writer.record(&SharedSegment { id: SegmentId(0), size: 5000, origin, huge_page: 0 }).unwrap();
        writer.record(&pages(PageOwner::Segment(SegmentId(0)), &[(4096, 1, stored(0, 0))])).unwrap();
        assert_eq!(writer.begin_page_section().unwrap(), 1);
        assert_eq!(writer.begin_page_section().unwrap(), 2);
        writer.pages(&page(0)).unwrap();
    })
}
