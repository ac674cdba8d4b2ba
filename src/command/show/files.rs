//! The descriptors, as `lsof` shows them.

use super::view::View;
use crate::table::{Align, Table};
use serde::Serialize;
use std::collections::HashMap;
use vckpt_image_format::record::bpf_map::BpfMap;
use vckpt_image_format::record::connection::{Address, Connection};
use vckpt_image_format::record::description::Description;
use vckpt_image_format::record::epoll::Epoll;
use vckpt_image_format::record::event_descriptor::EventDescriptor;
use vckpt_image_format::record::fanotify::Fanotify;
use vckpt_image_format::record::file::{File, Target};
use vckpt_image_format::record::inotify::Inotify;
use vckpt_image_format::record::io_uring::IoUring;
use vckpt_image_format::record::nameless_file::{NamelessFile, Sort};
use vckpt_image_format::record::namespace_descriptor::NamespaceDescriptor;
use vckpt_image_format::record::packet_socket::PacketSocket;
use vckpt_image_format::record::pipe::{Pipe, Reach};
use vckpt_image_format::record::posix_message_queue::PosixMessageQueue;
use vckpt_image_format::record::process::{Living, Process};
use vckpt_image_format::record::process_descriptor::ProcessDescriptor;
use vckpt_image_format::record::pseudo_terminal::PseudoTerminal;
use vckpt_image_format::record::signal_descriptor::SignalDescriptor;
use vckpt_image_format::record::terminal::Terminal;
use vckpt_image_format::record::timer_descriptor::TimerDescriptor;
use vckpt_image_format::record::unix_socket::UnixSocket;
use vckpt_image_format::{DescriptionId, FormatError, Image, NamelessFileId, Record};

/// A line of lsof.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    command: String,
    pub(crate) pid: u32,
    /// `cwd`, `rtd`, `txt`, or the number with `r`, `w` or `u`.
    pub(crate) descriptor: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// A size, or an offset with `0t` in front of it.
    size_or_offset: String,
    pub(crate) name: String,
}

/// What is behind a descriptor.
#[derive(Debug, Clone)]
struct Opened {
    flags: u32,
    kind: &'static str,
    size_or_offset: String,
    name: String,
}

/// All descriptors of all processes.
pub(crate) fn rows(view: &View) -> Vec<Row> {
    // After opening, nothing of this can fail: what can't be decoded was refused then.
    let opened = opened(&view.image).unwrap_or_default();
    let living = view.processes.iter().filter_map(|process| Some((process, process.living.as_ref()?)));
    living.flat_map(|(process, living)| of_process(view, &opened, process, living)).collect()
}

fn of_process(
    view: &View,
    opened: &HashMap<DescriptionId, Opened>,
    process: &Process,
    living: &Living,
) -> Vec<Row> {
    let row = |descriptor: &str, kind, size_or_offset, name| Row {
        command: process.command.to_string(),
        pid: process.id.0,
        descriptor: descriptor.to_owned(),
        kind,
        size_or_offset,
        name,
    };
    let mut rows = Vec::new();
    for context in view.directories.iter().filter(|record| record.context == living.file_system_context) {
        let gone = if context.nameless.is_some() { " (deleted)" } else { "" };
        rows.push(row("cwd", "DIR", String::new(), format!("{}{gone}", context.directory)));
        rows.push(row("rtd", "DIR", String::new(), context.root.to_string()));
    }
    if let Some(layout) = view.spaces.get(&living.memory).and_then(|space| space.layout.as_ref()) {
        let executable = &layout.executable;
        rows.push(row("txt", "REG", executable.size.to_string(), executable.path.to_string()));
    }
    let table = view.tables.iter().find(|table| table.id == living.descriptor_table);
    for descriptor in table.into_iter().flat_map(|table| &table.descriptors) {
        let number = descriptor.number;
        rows.push(match opened.get(&descriptor.description) {
            Some(what) => {
                let mode = mode(what.flags);
                row(&format!("{number}{mode}"), what.kind, what.size_or_offset.clone(), what.name.clone())
            }
            None => row(
                &number.to_string(),
                "unknown",
                String::new(),
                format!("description {}", descriptor.description),
            ),
        });
    }
    rows
}

/// The letter of the access mode.
const fn mode(flags: u32) -> &'static str {
    match flags & Description::ACCESS_MODE {
        0 => "r",
        1 => "w",
        _ => "u",
    }
}

/// What every description is, in a word and its name.
pub(super) fn names(view: &View) -> HashMap<DescriptionId, String> {
    let opened = opened(&view.image).unwrap_or_default();
    opened.into_iter().map(|(id, opened)| (id, format!("{} {}", opened.kind, opened.name))).collect()
}

/// All open file descriptions of an image.
fn opened(image: &Image) -> Result<HashMap<DescriptionId, Opened>, FormatError> {
    let mut known = HashMap::new();
    let mut add = |description: &Description, kind, size_or_offset: String, name: String| {
        known.insert(description.id, Opened { flags: description.flags, kind, size_or_offset, name });
    };
    let sorts: HashMap<NamelessFileId, Sort> =
        image.all::<NamelessFile>()?.into_iter().map(|file| (file.id, file.sort)).collect();
    for file in image.all::<File>()? {
        let offset = format!("0t{}", file.position);
        let (kind, name) = match file.target {
            Target::Regular { .. } => ("REG", file.path.to_string()),
            Target::Nameless(id) => {
                let kind = match sorts.get(&id) {
                    Some(Sort::Directory) => "DIR",
                    Some(Sort::Fifo) => "FIFO",
                    Some(Sort::Socket) => "SOCK",
                    Some(Sort::SymbolicLink(_)) => "LINK",
                    Some(Sort::Regular) | None => "REG",
                };
                (kind, format!("{} (deleted)", file.path))
            }
            Target::Segment(_) => ("REG", file.path.to_string()),
            Target::Directory => ("DIR", file.path.to_string()),
            Target::CharacterDevice { .. } => ("CHR", file.path.to_string()),
            Target::PathOnly { .. } => ("PATH", file.path.to_string()),
            Target::OfEndedTask => ("REG", format!("{} (ended)", file.path)),
        };
        add(&file.description, kind, offset, name);
    }
    for pipe in image.all::<Pipe>()? {
        let mut name =
            pipe.path.as_ref().map_or_else(|| format!("pipe:[{}]", pipe.inode), ToString::to_string);
        if pipe.nameless.is_some() {
            name.push_str(" (deleted)");
        }
        if pipe.reach == Reach::Outside {
            name.push_str(" (from outside)");
        }
        pipe.ends.iter().for_each(|end| add(end, "FIFO", "0t0".to_owned(), name.clone()));
    }
    for terminal in image.all::<Terminal>()? {
        for opened in &terminal.descriptions {
            add(&opened.description, "CHR", "0t0".to_owned(), terminal.path.to_string());
        }
    }
    for record in image.all::<ProcessDescriptor>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for record in image.all::<Inotify>()? {
        let lost = if record.lost { ", events lost" } else { "" };
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}{lost}]", record.name()));
    }
    for record in image.all::<Fanotify>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for record in image.all::<IoUring>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for record in image.all::<PacketSocket>()? {
        add(&record.description, "pack", "0t0".to_owned(), record.name());
    }
    for record in image.all::<NamespaceDescriptor>()? {
        add(&record.description, "REG", "0t0".to_owned(), record.name());
    }
    for map in image.all::<BpfMap>()? {
        let name = format!("[{}]", map.name());
        map.descriptions.iter().for_each(|opened| add(opened, "a_inode", "0".to_owned(), name.clone()));
    }
    for queue in image.all::<PosixMessageQueue>()? {
        let gone = if queue.unlinked { " (deleted)" } else { "" };
        let name = format!("{}{gone}, {} messages", queue.name, queue.messages.len());
        queue.descriptions.iter().for_each(|opened| {
            add(&opened.description, "PSXMQ", "0t0".to_owned(), name.clone());
        });
    }
    for pair in image.all::<PseudoTerminal>()? {
        let gone = if pair.master.is_none() { " (hung up)" } else { "" };
        for slave in &pair.slaves {
            add(&slave.description, "CHR", "0t0".to_owned(), format!("/dev/pts/{}{gone}", pair.number));
        }
        if let (Some(master), Some(state)) = (&pair.master, &pair.state) {
            let waits = state.output.len();
            let name = format!("/dev/ptmx of /dev/pts/{}, {waits} bytes wait", pair.number);
            add(master, "CHR", "0t0".to_owned(), name);
        }
    }
    for record in image.all::<EventDescriptor>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for record in image.all::<Epoll>()? {
        let numbers: Vec<String> = record.targets.iter().map(|target| target.number.to_string()).collect();
        add(&record.description, "a_inode", "0".to_owned(), format!("[eventpoll:{}]", numbers.join(",")));
    }
    for record in image.all::<SignalDescriptor>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for record in image.all::<TimerDescriptor>()? {
        add(&record.description, "a_inode", "0".to_owned(), format!("[{}]", record.name()));
    }
    for socket in image.all::<UnixSocket>()? {
        add(
            &socket.description,
            "unix",
            "0t0".to_owned(),
            format!("{} type={:?}", socket.name(), socket.socket_type),
        );
    }
    for socket in image.all::<Connection>()? {
        let kind = match socket.local {
            Some(Address::Internet(address)) if address.is_ipv6() => "IPv6",
            Some(Address::Internet(_)) => "IPv4",
            Some(Address::Netlink { .. }) => "netlink",
            None => "sock",
        };
        add(&socket.description, kind, "0t0".to_owned(), socket.name());
    }
    Ok(known)
}

/// The rows as a table.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("COMMAND", Left),
        ("PID", Right),
        ("FD", Right),
        ("TYPE", Left),
        ("SIZE/OFF", Right),
        ("NAME", Left),
    ]);
    for row in rows {
        table.row([
            row.command.clone(),
            row.pid.to_string(),
            row.descriptor.clone(),
            row.kind.to_owned(),
            row.size_or_offset.clone(),
            row.name.clone(),
        ]);
    }
    table.lines()
}
