//! A small image, and what is shown of it.

use super::view::View;
use super::{files, header, memory, processes, records};
use std::fs::File as StdFile;
use std::path::PathBuf;
use vckpt_image_format::record::credentials::{CapabilitySets, Credentials, Ids, ThreadCredentials};
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::record::description::Description;
use vckpt_image_format::record::descriptor_table::{Descriptor, DescriptorTable};
use vckpt_image_format::record::file::{File, Target};
use vckpt_image_format::record::lightweight_process::LightweightProcess;
use vckpt_image_format::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use vckpt_image_format::record::pipe::{Pipe, Reach};
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_map::{
    Layout, MappedFile, Mapping, ProcessMap, ProtectionKeys, Source, flag,
};
use vckpt_image_format::record::process_status::{ProcessStatus, State};
use vckpt_image_format::record::snapshot::Snapshot;
use vckpt_image_format::{
    DescriptionId, DescriptorTableId, FileSystemContextId, ImageWriter, MemoryId, PipeId, Record, TaskId,
};

type Writer = ImageWriter<StdFile>;

/// Processes 10 (with thread 11), its children 12 and 13, the last of which has ended.
fn image() -> View {
    // Tests run in parallel, each in a thread of its own.
    let name = format!("vckpt-show-{}-{:?}.vckpt", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    let mut writer = Writer::new(StdFile::create(&path).unwrap()).unwrap();
    add(
        &mut writer,
        &Snapshot {
            root: TaskId(10),
            command: "tool".into(),
            writer: "0.1.0".to_owned(),
            realtime: 0,
            monotonic: 0,
            boottime: 0,
            time_namespace: false,
            boot_id: String::new(),
            xstate_features: 0,
            processor_features: Vec::new(),
            xstate_size: 0,
            dumped_by: 0,
            degraded: vec!["one thing".to_owned()],
        },
    );
    process(&mut writer, 10, None, Some((0, &[10, 11])));
    process(&mut writer, 12, Some(10), Some((1, &[12])));
    process(&mut writer, 13, Some(10), None);
    add(
        &mut writer,
        &ProcessStatus {
            process: TaskId(12),
            state: State::Stopped { signal: 19 },
            stop_untold: false,
            continue_untold: false,
        },
    );
    add(
        &mut writer,
        &ProcessStatus {
            process: TaskId(13),
            state: State::Zombie {
                status: 0,
                user: Ids { real: 7, effective: 7, saved: 7, file_system: 7 },
                group: Ids::default(),
                capabilities: CapabilitySets::default(),
            },
            stop_untold: false,
            continue_untold: false,
        },
    );
    for (id, owner) in [(10, 10), (11, 10), (12, 12)] {
        thread(&mut writer, id, owner);
    }
    let user = Ids { real: 0, effective: 7, saved: 0, file_system: 7 };
    let threads = [10, 11].map(|thread| ThreadCredentials {
        thread: TaskId(thread),
        user,
        group: user,
        groups: Vec::new(),
        capabilities: CapabilitySets::default(),
        secure_bits: 0,
        no_new_privileges: false,
    });
    add(&mut writer, &Credentials { process: TaskId(10), threads: threads.into() });
    descriptors(&mut writer);
    let section = writer.begin_page_section().unwrap();
    let mut page = vec![0; 8192];
    page[..9].copy_from_slice(b"tool\0-x\0y");
    writer.pages(&page).unwrap();
    for memory in [0, 1] {
        address_space(&mut writer, memory);
        let stored = PageSource::Stored { section, page: 0 };
        let source = if memory == 0 { stored } else { PageSource::Parent };
        let runs = vec![PageRun { address: 0x2000, count: 2, source }];
        add(&mut writer, &MmapMemory { owner: PageOwner::Memory(MemoryId(memory)), runs });
    }
    writer.finish().unwrap();
    let view = View::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    View { path: PathBuf::from("tool.vckpt"), ..view }
}

fn add<R: Record>(writer: &mut Writer, record: &R) {
    writer.record(record).unwrap();
}

fn process(writer: &mut Writer, id: u32, parent: Option<u32>, living: Option<(u32, &[u32])>) {
    let living = living.map(|(memory, threads)| Living {
        memory: MemoryId(memory),
        descriptor_table: DescriptorTableId(0),
        file_system_context: FileSystemContextId(0),
        threads: threads.iter().copied().map(TaskId).collect(),
        ended_leader: None,
        handlers_of: None,
        dumpable: 1,
        child_subreaper: false,
        oom_score_adjustment: 0,
        core_dump_filter: Some(0x33),
        deny_write_execute: 0,
        memory_barriers: 0,
        permitted_components: 0,
        huge_pages_disabled: 0,
    });
    let parent = parent.map(TaskId);
    let command = "tool".into();
    let (id, process_group, session, exit_signal) = (TaskId(id), 10, 10, 17);
    add(
        writer,
        &Process { id, parent, parent_thread: None, process_group, session, command, exit_signal, living },
    );
}

fn thread(writer: &mut Writer, id: u32, process: u32) {
    let record = LightweightProcess {
        id: TaskId(id),
        process: TaskId(process),
        name: "tool".into(),
        registers: vec![0; 27],
        xstate: vec![0; 576],
        robust_list: (0, 0),
        clear_child_tid: 0,
        rseq: None,
        parent_death_signal: 0,
        time_stamp_counter: 1,
        speculation: [0; 3],
        personality: 0,
        identification_denied: false,
        memory_failure: 2,
        dispatch: None,
        wait: None,
        instructions: None,
    };
    add(writer, &record);
}

fn description(id: u32, flags: u32) -> Description {
    Description { id: DescriptionId(id), flags, owner: None, signal: 0 }
}

fn descriptors(writer: &mut Writer) {
    let context = FileSystemContextId(0);
    add(
        writer,
        &CurrentDirectory {
            context,
            directory: "/srv".into(),
            nameless: None,
            root: "/".into(),
            umask: 0o22,
        },
    );
    let path = "/srv/log".into();
    let target = Target::Regular { size: 99, modified: 0 };
    add(writer, &File { description: description(0, 0o102_001), path, target, position: 42 });
    let ends = vec![description(1, 0)];
    add(
        writer,
        &Pipe {
            id: PipeId(0),
            inode: 77,
            path: None,
            nameless: None,
            capacity: 4096,
            reach: Reach::Inside,
            ends,
        },
    );
    let descriptor = |number, description| Descriptor {
        number,
        close_on_exec: false,
        description: DescriptionId(description),
    };
    let descriptors = vec![descriptor(0, 1), descriptor(3, 0)];
    add(writer, &DescriptorTable { id: DescriptorTableId(0), descriptors });
}

fn address_space(writer: &mut Writer, memory: u32) {
    let file = MappedFile {
        path: "/bin/tool".into(),
        nameless: None,
        size: 9000,
        modified: 0,
        writable: false,
        embedded: false,
    };
    let layout = Layout {
        code: (0x1000, 0x2000),
        data: (0, 0),
        heap: (0, 0),
        stack: 0x4000,
        arguments: (0x2000, 0x2009),
        environment: (0, 0),
        auxiliary_vector: Vec::new(),
        executable: file.clone(),
        lock_future: 0,
        keys: ProtectionKeys::default(),
    };
    let mapping = |start, end, protection, source| Mapping {
        start,
        end,
        protection,
        shared: false,
        flags: 0,
        source,
        name: None,
        protection_key: 0,
        policy: None,
        huge_page: 0,
    };
    let stack = mapping(0x2000, 0x5000, 3, Source::Anonymous);
    let flags = flag::GROWS_DOWN | flag::LOCKED | flag::LOCKED_ON_FAULT;
    let mappings = vec![
        mapping(0x1000, 0x2000, 5, Source::File { file, offset: 0 }),
        Mapping { flags, protection_key: 2, ..stack },
    ];
    add(writer, &ProcessMap { memory: MemoryId(memory), layout: Some(layout), mappings });
}

#[test]
fn processes_are_a_tree() {
    let expected = [
        "PPID  PID  PGID  SID  STAT  UID  THREADS  COMMAND",
        "   -   10    10   10  Ssl     7        2  tool -x y",
        "  10   12    10   10  T       -        1   \\_ tool -x y",
        "  10   13    10   10  Z       7        0   \\_ [tool] <defunct>",
    ];
    assert_eq!(processes::lines(&processes::rows(&image())), expected);
}

#[test]
fn descriptors_are_as_lsof_shows_them() {
    let lines = files::lines(&files::rows(&image()));
    let expected = [
        "COMMAND  PID   FD  TYPE  SIZE/OFF  NAME",
        "tool      10  cwd  DIR             /srv",
        "tool      10  rtd  DIR             /",
        "tool      10  txt  REG       9000  /bin/tool",
        "tool      10   0r  FIFO       0t0  pipe:[77]",
        "tool      10   3w  REG       0t42  /srv/log",
    ];
    assert_eq!(lines[..6], expected);
}

#[test]
fn memory_is_as_pmap_shows_it() {
    let spaces = memory::spaces(&image());
    let expected = [
        "10: tool",
        "ADDRESS           KIB  STORED  WITH PARENT  MODE  MAPPING",
        "0000000000001000    4       0            0  r-xp  /bin/tool",
        "0000000000002000   12       8            0  rw-p  [stack] (grows down, locked on fault, key 2)",
        "total              16       8            0",
    ];
    assert_eq!(memory::lines(&spaces)[..5], expected);
    assert_eq!((spaces[1].stored, spaces[1].shared), (0, 8192));
}

#[test]
fn records_are_grouped_by_kind() {
    let rows = records::rows(&image());
    assert!(records::census(&rows).contains(&("lightweight process", 3)));
    let lines = records::lines(&rows);
    assert!(lines.iter().any(|line| line.starts_with("  20  Lightweight process      3")), "{lines:#?}");
    let lines = header::lines(&header::header(&image()));
    assert!(lines.contains(&"fidelity  1 item degraded".to_owned()), "{lines:#?}");
}
