//! Trees of processes that live, and the memories that descend from one another in them.

use super::Finding;
use super::memory::Memories;
use super::tree::{Families, Tree};
use crate::record::mmap_memory::{MmapMemory, PageOwner, PageRun, PageSource};
use crate::record::process::{Living, Process};
use crate::record::process_map::ProcessMap;
use crate::{DescriptorTableId, FileSystemContextId, MemoryId, TaskId, Text};

/// A process that lives.
fn process(id: u32, parent: Option<u32>, memory: u32, threads: &[u32]) -> Process {
    Process {
        id: TaskId(id),
        parent: parent.map(TaskId),
        process_group: 1,
        session: 1,
        command: Text::from("worker"),
        parent_thread: None,
        exit_signal: 17,
        living: Some(Living {
            memory: MemoryId(memory),
            descriptor_table: DescriptorTableId(0),
            file_system_context: FileSystemContextId(0),
            threads: threads.iter().map(|&thread| TaskId(thread)).collect(),
            ended_leader: None,
            handlers_of: None,
            dumpable: 1,
            child_subreaper: false,
            oom_score_adjustment: 0,
            core_dump_filter: None,
            deny_write_execute: 0,
            memory_barriers: 0,
            permitted_components: 0,
            huge_pages_disabled: 0,
        }),
    }
}

/// Checks a tree with root 1 and these threads, given as thread and process.
fn tree(processes: Vec<Process>, threads: &[(u32, u32)]) -> Result<Families, Finding> {
    let mut tree = Tree::new(TaskId(1), threads.len());
    let count = processes.len();
    for (record, process) in processes.into_iter().enumerate() {
        tree.process(record, process)?;
    }
    for (record, &(thread, process)) in threads.iter().enumerate() {
        tree.thread(count + record, TaskId(thread), TaskId(process))?;
    }
    tree.finish()
}

/// Like [`tree`], of processes that have one thread each: identity, parent and memory.
fn simple(processes: &[(u32, u32, u32)]) -> Result<Families, Finding> {
    let parent = |parent: u32| (parent != 0).then_some(parent);
    let members = processes.iter().map(|&(id, above, memory)| process(id, parent(above), memory, &[id]));
    let threads: Vec<_> = processes.iter().map(|&(id, ..)| (id, id)).collect();
    tree(members.collect(), &threads)
}

#[test]
fn trees() {
    simple(&[(1, 0, 0)]).unwrap();
    simple(&[(3, 2, 2), (2, 1, 1), (1, 0, 0), (4, 1, 3)]).unwrap();
    let long: Vec<_> = (1..5000).map(|id| (id, id - 1, id)).collect();
    simple(&long).unwrap();
    let backwards: Vec<_> = (1..5000).rev().map(|id| (id, id - 1, id)).collect();
    simple(&backwards).unwrap();
}

#[test]
fn what_is_no_tree() {
    let why = |processes: &[(u32, u32, u32)]| simple(processes).unwrap_err().why;
    assert_eq!(why(&[(1, 0, 0), (2, 3, 1), (3, 2, 2)]), "it is its own ancestor, or a descendant of such");
    assert_eq!(why(&[(1, 0, 0), (2, 2, 1)]), "it is its own ancestor, or a descendant of such");
    assert_eq!(
        why(&[(1, 0, 0), (4, 3, 1), (2, 3, 2), (3, 2, 3)]),
        "it is its own ancestor, or a descendant of such"
    );
    assert_eq!(why(&[(1, 0, 0), (2, 0, 1)]), "it has no parent, but the root is process 1");
    assert_eq!(why(&[(1, 2, 0), (2, 1, 1)]), "it is the root, but has the parent 2");
    assert_eq!(why(&[(2, 1, 0)]), "there is no process 1, which is the root");
    assert_eq!(why(&[(1, 0, 0), (2, 9, 1)]), "its parent 9 is no process");
    assert_eq!(why(&[(1, 0, 0), (1, 0, 0)]), "thread 1 is named a second time");
}

#[test]
fn a_thread_is_no_parent() {
    let processes = vec![process(1, None, 0, &[1, 5]), process(2, Some(5), 1, &[2])];
    assert_eq!(tree(processes, &[(1, 1), (5, 1), (2, 2)]).unwrap_err().why, "its parent 5 is no process");
}

#[test]
fn threads() {
    let two = || vec![process(1, None, 0, &[1, 5]), process(2, Some(1), 1, &[2])];
    tree(two(), &[(5, 1), (1, 1), (2, 2)]).unwrap();
    let why = |threads: &[(u32, u32)]| tree(two(), threads).unwrap_err();
    assert_eq!(why(&[(1, 1), (2, 2)]), Finding::new(1, "there are fewer records of threads than threads"));
    let absent = "process 1 does not have it, or has it already";
    assert_eq!(why(&[(1, 1), (5, 1), (2, 2), (6, 1)]), Finding::new(5, absent));
    assert_eq!(why(&[(1, 1), (5, 1), (5, 1)]), Finding::new(4, absent));
    assert_eq!(why(&[(1, 1), (5, 2), (2, 2)]).why, "it is a thread of process 1 instead");
    // Too few, and one that is no thread of the tree.
    let mut tree = Tree::new(TaskId(1), 9);
    tree.process(0, process(1, None, 0, &[1, 5])).unwrap();
    tree.thread(1, TaskId(1), TaskId(1)).unwrap();
    assert_eq!(tree.finish().unwrap_err(), Finding::new(0, "there is no record of its thread 5"));
}

#[test]
fn memories_descend_from_that_of_the_first_process() {
    // 3 shares the memory of its parent 2; 4 and 5 were copied from it.
    let families = simple(&[(5, 2, 9), (4, 3, 8), (3, 2, 7), (2, 1, 7), (1, 0, 6)]).unwrap();
    let parent = |memory| families[&MemoryId(memory)].map(|parent| parent.0);
    assert_eq!([parent(6), parent(7), parent(8), parent(9)], [None, Some(6), Some(7), Some(7)]);
}

#[test]
fn memories_never_descend_in_a_circle() {
    // 1 and 3 share a memory, and 2 between them has another: 2 descends from 1, not 3 from 2.
    let families = simple(&[(1, 0, 0), (2, 1, 1), (3, 2, 0)]).unwrap();
    assert_eq!(families[&MemoryId(0)], None);
    assert_eq!(families[&MemoryId(1)], Some(MemoryId(0)));
}

#[test]
fn pages_of_the_parent_are_mapped_there() {
    let mut memories = Memories::new(simple(&[(1, 0, 0), (2, 1, 1)]).unwrap());
    let map = |memory, end| -> ProcessMap {
        let mut map = crate::tests::map(memory, true, &[(0x1000, 0x3000)]);
        map.mappings[0].end = end;
        map
    };
    memories.map(0, &map(0, 0x3000)).unwrap();
    memories.map(1, &map(1, 0x4000)).unwrap();
    let mut pages = |address, count| {
        let run = PageRun { address, count, source: PageSource::Parent };
        memories.pages(2, &MmapMemory { owner: PageOwner::Memory(MemoryId(1)), runs: vec![run] }, |_| None)
    };
    pages(0x1000, 1).unwrap();
    let why = pages(0x2000, 2).unwrap_err().why;
    assert_eq!(why, "run of 2 pages at 0x2000: the memory of the parent, 0, has no mapping there");
}
