//! The sockets, as `ss -tanpx` shows them: state, what waits on both sides, both addresses, who has them; and which
//! descriptors travel in them.

use super::files;
use super::view::View;
use crate::table::{Align, Table};
use serde::Serialize;
use std::collections::HashMap;
use vckpt_image_format::record::connection::{Connection, ConnectionState, Ending};
use vckpt_image_format::record::data_queued::{DataQueued, Queue};
use vckpt_image_format::record::packet_socket::PacketSocket;
use vckpt_image_format::record::unix_socket::{SocketType, UnixSocket, UnixState};
use vckpt_image_format::{DescriptionId, FormatError, SocketId};

/// A line of ss.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) protocol: &'static str,
    pub(crate) state: &'static str,
    /// Bytes that were received and not read.
    pub(crate) received: u64,
    /// Bytes that were sent and not received, as far as the image has them with the sender.
    pub(crate) sent: u64,
    pub(crate) local: String,
    pub(crate) peer: String,
    /// `command,PID,fd` of all who have it.
    holders: Vec<String>,
    /// What the descriptors lead to that wait with the data.
    in_flight: Vec<String>,
}

/// All sockets of an image.
pub(crate) fn rows(view: &View) -> Vec<Row> {
    // After opening, nothing of this can fail: what can't be decoded was refused then.
    try_rows(view).unwrap_or_default()
}

fn try_rows(view: &View) -> Result<Vec<Row>, FormatError> {
    let mut queues: HashMap<Queue, u64> = HashMap::new();
    let mut travel: HashMap<Queue, Vec<String>> = HashMap::new();
    let names = files::names(view);
    for record in view.image.all::<DataQueued>()? {
        let descriptions = record.messages.iter().flat_map(|message| &message.descriptors);
        let found = descriptions.filter_map(|description| names.get(description).cloned());
        travel.entry(record.queue).or_default().extend(found);
        let bytes: usize = record.messages.iter().map(|message| message.data.len()).sum();
        *queues.entry(record.queue).or_default() += bytes as u64;
    }
    let waits = |queue: Queue| queues.get(&queue).copied().unwrap_or(0);
    let unix = view.image.all::<UnixSocket>()?;
    let mut rows = Vec::new();
    for socket in view.image.all::<Connection>()? {
        let text =
            |address: Option<_>| address.map_or_else(|| "*".to_owned(), |address| format!("{address}"));
        rows.push(Row {
            protocol: protocol(&socket),
            state: state(socket.state),
            received: waits(Queue::Socket(socket.id)),
            sent: waits(Queue::Sent(socket.id)),
            local: text(socket.local),
            peer: text(socket.peer()),
            holders: holders(view, socket.description.id),
            in_flight: Vec::new(),
        });
    }
    for socket in &unix {
        rows.push(Row {
            protocol: match socket.socket_type {
                SocketType::Stream => "u_str",
                SocketType::Datagram => "u_dgr",
                SocketType::SequencedPacket => "u_seq",
            },
            state: unix_state(&socket.state),
            received: waits(Queue::Socket(socket.id)),
            sent: 0,
            local: unix_name(socket),
            peer: unix_peer(&unix, socket),
            holders: holders(view, socket.description.id),
            in_flight: travel.remove(&Queue::Socket(socket.id)).unwrap_or_default(),
        });
    }
    for socket in view.image.all::<PacketSocket>()? {
        let interface = socket.interface.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
        rows.push(Row {
            protocol: if socket.socket_type == 3 { "p_raw" } else { "p_dgr" },
            state: "UNCONN",
            received: 0,
            sent: 0,
            local: format!("{:#06x}:{interface}", socket.protocol),
            peer: "*".to_owned(),
            holders: holders(view, socket.description.id),
            in_flight: Vec::new(),
        });
    }
    Ok(rows)
}

const fn protocol(socket: &Connection) -> &'static str {
    match (socket.family, socket.socket_type, socket.protocol) {
        (16, ..) => "nl",
        (_, 3, _) => "raw",
        (_, _, 6) => "tcp",
        (_, _, 17) => "udp",
        (_, _, 136) => "udplite",
        (_, _, 1 | 58) => "icmp",
        _ => "???",
    }
}

const fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Unconnected => "UNCONN",
        ConnectionState::Listening { .. } => "LISTEN",
        ConnectionState::FixedPeer { .. } | ConnectionState::Unaccepted { .. } => "ESTAB",
        ConnectionState::Paired { shut, .. } if shut & 2 != 0 => "FIN-WAIT-2",
        ConnectionState::Connecting { .. } => "SYN-SENT",
        ConnectionState::Established { stream, .. } if stream.ended && stream.shut & 2 != 0 => "LAST-ACK",
        ConnectionState::Established { stream, .. } if stream.ended => "CLOSE-WAIT",
        ConnectionState::Established { stream, .. } if stream.shut & 2 != 0 => "FIN-WAIT-2",
        ConnectionState::Paired { .. } | ConnectionState::Established { .. } => "ESTAB",
        ConnectionState::Over { ending: Ending::PeerClosed, .. } => "CLOSE-WAIT",
        ConnectionState::Over { .. } => "CLOSE",
    }
}

const fn unix_state(state: &UnixState) -> &'static str {
    match state {
        UnixState::Listening { .. } => "LISTEN",
        UnixState::Connected { .. } | UnixState::Unaccepted { .. } | UnixState::ConnectedOutside { .. } => {
            "ESTAB"
        }
        UnixState::Unconnected | UnixState::Orphaned => "UNCONN",
    }
}

fn unix_name(socket: &UnixSocket) -> String {
    let name = socket.address.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
    format!("{name} {}", socket.inode)
}

fn unix_peer(all: &[UnixSocket], socket: &UnixSocket) -> String {
    let find = |id: SocketId| all.iter().find(|other| other.id == id);
    match &socket.state {
        UnixState::Connected { peer } | UnixState::Unaccepted { listener: peer, .. } => {
            find(*peer).map_or_else(|| "*".to_owned(), unix_name)
        }
        UnixState::ConnectedOutside { address, .. } => address.to_string(),
        UnixState::Unconnected | UnixState::Listening { .. } | UnixState::Orphaned => "*".to_owned(),
    }
}

fn holders(view: &View, description: DescriptionId) -> Vec<String> {
    let mut found = Vec::new();
    for process in &view.processes {
        let Some(living) = &process.living else { continue };
        let table = view.tables.iter().find(|table| table.id == living.descriptor_table);
        let descriptors = table.into_iter().flat_map(|table| &table.descriptors);
        for descriptor in descriptors.filter(|descriptor| descriptor.description == description) {
            found.push(format!("{},{},fd={}", process.command, process.id, descriptor.number));
        }
    }
    found
}

/// The rows as a table.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("NETID", Left),
        ("STATE", Left),
        ("RECV-Q", Right),
        ("SEND-Q", Right),
        ("LOCAL", Left),
        ("PEER", Left),
        ("PROCESS", Left),
        ("IN FLIGHT", Left),
    ]);
    for row in rows {
        table.row([
            row.protocol.to_owned(),
            row.state.to_owned(),
            row.received.to_string(),
            row.sent.to_string(),
            row.local.clone(),
            row.peer.clone(),
            row.holders.join(" "),
            row.in_flight.join(", "),
        ]);
    }
    table.lines()
}
