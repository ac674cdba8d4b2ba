//! A firewall table of our own that drops the packets of single TCP connections: nf_tables by netlink(7).
//!
//! Building requests is plain work on bytes; the messages travel by `sendto(2)` and `recv(2)`. All numbers are those of
//! `linux/netfilter/nf_tables.h`.

use super::socket;
use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const NETLINK_NETFILTER: u32 = 12;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The part of the kernel that nf_tables is, in the upper half of the type of a message.
const TABLES: u16 = 10;
const NEW_TABLE: u16 = TABLES << 8;
const DELETE_TABLE: u16 = TABLES << 8 | 2;
const NEW_CHAIN: u16 = TABLES << 8 | 3;
const NEW_RULE: u16 = TABLES << 8 | 6;
/// `NLM_F_REQUEST`, and with it `NLM_F_ACK`, `NLM_F_CREATE`, `NLM_F_APPEND`.
const REQUEST: u16 = 1;
const ANSWER: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NFPROTO_INET`: both versions.
const BOTH: u8 = 1;
/// The table goes when the socket that made it is closed.
const OWNED: u32 = 2;
const NESTED: u16 = 0x8000;
/// Before connection tracking sees a packet.
const PRIORITY: i32 = -450;
/// Hook, and its chain.
const INPUT: (u32, &str) = (1, "input");
const OUTPUT: (u32, &str) = (3, "output");
const ROOM: u32 = 8 << 20;

/// A connection whose packets are dropped: own address, address of the peer; both of the same version.
pub type Connection = (SocketAddr, SocketAddr);

/// A connection to the firewall of the network namespace of this program.
#[derive(Debug)]
pub struct Firewall(OwnedFd);

impl Firewall {
    /// Connects.
    ///
    /// # Errors
    /// See socket(2): `EPROTONOSUPPORT` if the kernel was built without it.
    pub fn new() -> Result<Self> {
        let protocol = NonZeroU32::new(NETLINK_NETFILTER).map(Protocol::from_raw);
        let made =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        made.map(Self).map_err(error_number)
    }

    /// Makes a table that drops all packets of these connections. One that is `owned` goes with this value.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`; `EEXIST`, `EOPNOTSUPP`.
    pub fn drop_packets(&self, table: &str, connections: &[Connection], owned: bool) -> Result<()> {
        let mut batch = Batch::new();
        let mut body = Attributes::default();
        body.text(1, table);
        body.number(2, if owned { OWNED } else { 0 });
        batch.add(NEW_TABLE, CREATE, BOTH, &body);
        for (hook, name) in [INPUT, OUTPUT] {
            let mut body = Attributes::default();
            body.text(1, table);
            body.text(3, name);
            body.nest(4, |hooked| {
                hooked.number(1, hook);
                hooked.number(2, PRIORITY.cast_unsigned());
            });
            body.text(7, "filter");
            batch.add(NEW_CHAIN, CREATE, BOTH, &body);
        }
        for (own, peer) in connections {
            batch.add(NEW_RULE, CREATE | APPEND, BOTH, &rule(table, INPUT.1, *peer, *own));
            batch.add(NEW_RULE, CREATE | APPEND, BOTH, &rule(table, OUTPUT.1, *own, *peer));
        }
        self.send(batch)
    }

    /// Removes a table.
    ///
    /// # Errors
    /// `ENOENT` if it is not there, `EPERM` without `CAP_NET_ADMIN`.
    pub fn remove(&self, table: &str) -> Result<()> {
        let mut batch = Batch::new();
        let mut body = Attributes::default();
        body.text(1, table);
        batch.add(DELETE_TABLE, 0, BOTH, &body);
        self.send(batch)
    }

    fn send(&self, batch: Batch) -> Result<()> {
        let (bytes, last) = batch.finish();
        // More rights, more room; what has none is told when it sends.
        let _ =
            socket::set_option(self.0.as_fd(), 1, libc::SO_SNDBUFFORCE.cast_unsigned(), &ROOM.to_ne_bytes());
        let mut kernel = [0_u8; 12];
        kernel[..2].copy_from_slice(&u16::try_from(libc::AF_NETLINK).unwrap_or_default().to_ne_bytes());
        socket::send(self.0.as_fd(), &bytes, &kernel)?;
        let mut answer = vec![0; 32 << 10];
        loop {
            let (count, _) = rustix::net::recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())
                .map_err(error_number)?;
            if let Some(result) = verdict(answer.get(..count).unwrap_or_default(), last)? {
                return result;
            }
        }
    }
}

/// What an answer says: nothing yet, or how the last message went. The first error is that of all.
fn verdict(mut answer: &[u8], last: u32) -> Result<Option<Result<()>>> {
    while !answer.is_empty() {
        let length = word(answer, 0).and_then(|length| usize::try_from(length).ok()).ok_or(Errno::EBADMSG)?;
        let kind = half(answer, 4).ok_or(Errno::EBADMSG)?;
        let number = word(answer, 8).ok_or(Errno::EBADMSG)?;
        if kind == NLMSG_ERROR {
            let error = word(answer, HEADER).ok_or(Errno::EBADMSG)?.cast_signed();
            if error != 0 {
                return Ok(Some(Err(Errno::from_raw(-error))));
            }
            if number == last {
                return Ok(Some(Ok(())));
            }
        }
        answer = answer.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn error_number(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// A rule that drops what goes from one address to another.
fn rule(table: &str, chain: &str, from: SocketAddr, to: SocketAddr) -> Attributes {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // Family, and where source and destination stand in the header.
    let (family, places) = if from.is_ipv4() { (2, [12, 16]) } else { (10, [8, 24]) };
    let mut body = Attributes::default();
    body.text(1, table);
    body.text(2, chain);
    body.nest(4, |expressions| {
        for (key, value) in [(15, family), (16, 6)] {
            expressions.expression("meta", |meta| {
                meta.number(1, 1);
                meta.number(2, key);
            });
            expressions.compare(&[value]);
        }
        for (place, address) in places.into_iter().zip([from, to]) {
            expressions.payload(1, place, &octets(address));
        }
        expressions.payload(2, 0, &from.port().to_be_bytes());
        expressions.payload(2, 2, &to.port().to_be_bytes());
        expressions.expression("immediate", |immediate| {
            immediate.number(1, 0);
            immediate.nest(2, |data| data.nest(2, |verdict| verdict.number(1, 0)));
        });
    });
    body
}

/// Attributes of a message, one behind the other.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nest(1, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
    }

    /// Goes on only if the register has this value.
    fn compare(&mut self, value: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(1, 1);
            compare.number(2, 0);
            compare.nest(3, |data| data.bytes(1, value));
        });
    }

    /// Goes on only if a header (1 of the network, 2 of the transport) has this value there.
    fn payload(&mut self, header: u32, offset: u32, value: &[u8]) {
        self.expression("payload", |payload| {
            payload.number(1, 1);
            payload.number(2, header);
            payload.number(3, offset);
            payload.number(4, u32::try_from(value.len()).unwrap_or_default());
        });
        self.compare(value);
    }
}

/// Messages that the kernel carries out all or none.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    number: u32,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), number: 0, last: 0 };
        batch.message(BATCH_BEGIN, 0, 0, TABLES, &[]);
        batch
    }

    fn add(&mut self, kind: u16, flags: u16, family: u8, body: &Attributes) {
        self.message(kind, flags, family, 0, &body.0);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
        self.last = self.bytes.len();
        self.number += 1;
        let length = u32::try_from(HEADER + 4 + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.number.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The bytes, and the number of the last message, which is answered.
    fn finish(mut self) -> (Vec<u8>, u32) {
        let answered = self.number;
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let set = half(flags, 0).unwrap_or_default() | ANSWER;
            flags.copy_from_slice(&set.to_ne_bytes());
        }
        self.message(BATCH_END, 0, 0, TABLES, &[]);
        (self.bytes, answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_and_go() {
        let Ok(firewall) = Firewall::new() else { return };
        let four = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        let six = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        let name = format!("vckpt-test-{}", std::process::id());
        match firewall.drop_packets(&name, &[four, six], true) {
            // Not root, or a kernel without it.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => return,
            other => other.unwrap(),
        }
        firewall.remove(&name).unwrap();
        assert_eq!(firewall.remove(&name), Err(Errno::ENOENT));
    }

    #[test]
    fn nonsense_is_no_panic() {
        for length in 0..64 {
            let _ = verdict(&vec![0xff; length], 1);
            let _ = verdict(&vec![0; length], 1);
        }
    }
}
