//! States of unix sockets besides data: options, what was shut down, urgent bytes.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, put};
use crate::stage::messages::{pair, receive, send, set_option};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "unix_states",
    fixtures: &[
        ("unix-options", options),
        ("shut-down", shut_down),
        ("deaf", deaf),
        ("urgent-bytes", urgent),
    ],
    cases: &[
        ("options", || two_rounds("unix-options")),
        ("shut_down_with_data_left", || two_rounds("shut-down")),
        ("last_words_of_who_did_not_listen", || two_rounds("deaf")),
        ("urgent_bytes", || two_rounds("urgent-bytes")),
    ],
};

const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// An option as bytes.
fn option(socket: i32, name: i32) -> Vec<u8> {
    let mut value = [0_u8; 32];
    let mut length = 32_u32;
    let place = value.as_mut_ptr().cast();
    // SAFETY: a live place of this length.
    let result = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, place, &raw mut length) };
    if result < 0 { Vec::new() } else { value[..length as usize].to_vec() }
}

/// All options that a unix socket has, changed at one of each type.
fn options(stage: Stage) {
    let listener = OwnedFd::from(UnixListener::bind(stage.path("socket")).unwrap());
    let [stream, other] = pair(libc::SOCK_STREAM);
    let [packets, packets_peer] = pair(libc::SOCK_SEQPACKET);
    let datagrams = OwnedFd::from(UnixDatagram::bind(stage.path("datagrams")).unwrap());
    let numbers = [
        (libc::SO_PASSCRED, 1),
        (SO_PASSPIDFD, 1),
        (libc::SO_PASSSEC, 1),
        (libc::SO_KEEPALIVE, 1),
        (libc::SO_BROADCAST, 1),
        (libc::SO_OOBINLINE, 1),
        (libc::SO_RCVLOWAT, 5),
        (libc::SO_PRIORITY, 3),
        (libc::SO_TIMESTAMP, 1),
        (libc::SO_SNDBUF, 100_000),
        (libc::SO_RCVBUF, 50_000),
        (libc::SO_PEEK_OFF, 2),
    ];
    let sockets = [listener, stream, other, packets, packets_peer, datagrams];
    for socket in [0, 1, 3, 5].map(|index: usize| &sockets[index]) {
        // What a kernel or a type of socket does not know is left as it is.
        for (name, value) in numbers {
            let _ = set_option(socket, name, value);
        }
        let linger = libc::linger { l_onoff: 1, l_linger: 7 };
        let time = libc::timeval { tv_sec: 11, tv_usec: 500_000 };
        let number = socket.as_raw_fd();
        // SAFETY: live values of these lengths.
        unsafe {
            let place = (&raw const linger).cast();
            check(libc::setsockopt(number, libc::SOL_SOCKET, libc::SO_LINGER, place, 8)).unwrap();
            for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
                check(libc::setsockopt(number, libc::SOL_SOCKET, name, (&raw const time).cast(), 16))
                    .unwrap();
            }
        }
    }
    let _ = set_option(&sockets[2], SO_PASSRIGHTS, 0);
    let names = numbers.map(|(name, _)| name).into_iter();
    let names = names.chain([libc::SO_LINGER, libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, SO_PASSRIGHTS]);
    let names: Vec<i32> = names.chain([libc::SO_TYPE, libc::SO_ACCEPTCONN, libc::SO_DOMAIN]).collect();
    let collect = move || -> Vec<Vec<Vec<u8>>> {
        let of = |socket: &OwnedFd| names.iter().map(|&name| option(socket.as_raw_fd(), name)).collect();
        sockets.iter().map(of).collect()
    };
    let before = collect();
    stage.serve(move |_| {
        let now = collect();
        verify!(now == before, "options {before:?}\nbecame  {now:?}");
        Ok(())
    });
}

/// Sockets of which one side or both have shut something down, with data left.
fn shut_down(stage: Stage) {
    let types = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM];
    let make = move || {
        let all = types.iter().flat_map(|&kind| (0..4).map(move |how| (kind, how)));
        let all = all.map(|(kind, how)| {
            let [one, other] = pair(kind);
            send(&one, b"to the other", &[], None).unwrap();
            send(&other, b"to the one", &[], None).unwrap();
            let shut = |end: &OwnedFd, how| check(unsafe { libc::shutdown(end.as_raw_fd(), how) }).unwrap();
            match how {
                3 => {
                    shut(&one, libc::SHUT_WR);
                    shut(&other, libc::SHUT_WR);
                }
                how => {
                    shut(&one, how);
                }
            }
            (kind, how, one, other)
        });
        all.collect::<Vec<_>>()
    };
    // What a program of each kind sees.
    let look = |(kind, how, one, other): (i32, i32, OwnedFd, OwnedFd)| {
        let mut seen = vec![format!("type {kind}, how {how}")];
        for end in [&one, &other] {
            let mut polled = libc::pollfd {
                fd: end.as_raw_fd(),
                events: libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP,
                revents: 0,
            };
            // SAFETY: one entry.
            unsafe { libc::poll(&raw mut polled, 1, 0) };
            seen.push(format!("events {:#x}", polled.revents));
        }
        for _ in 0..2 {
            for end in [&one, &other] {
                let received = receive(end, 100).map(|message| message.bytes);
                seen.push(format!("{:?}", received.map_err(|error| error.raw_os_error())));
            }
        }
        for end in [&one, &other] {
            seen.push(format!("{:?}", send(end, b"more", &[], None).map_err(|error| error.raw_os_error())));
        }
        seen
    };
    let wanted: Vec<_> = make().into_iter().map(look).collect();
    let mut there = Some(make());
    stage.serve_except(&["fd "], move |_| {
        let found: Vec<_> = there.take().into_iter().flatten().map(look).collect();
        there = Some(make());
        for (found, wanted) in found.iter().zip(&wanted) {
            verify!(found == wanted, "{wanted:?}\nbecame {found:?}");
        }
        verify!(found.len() == wanted.len(), "{} sockets", found.len());
        Ok(())
    });
}

/// Whether what is received next is the urgent byte.
fn at_mark(socket: &OwnedFd) -> bool {
    let mut number = 0_i32;
    // SAFETY: a live int.
    unsafe { libc::ioctl(socket.as_raw_fd(), 0x8905, &raw mut number) };
    number != 0
}

/// All that can be received: with the mark before each piece, and the urgent byte.
fn drain(socket: &OwnedFd, urgent_first: bool) -> Vec<String> {
    let mut seen = Vec::new();
    let take_urgent = |seen: &mut Vec<String>| {
        let mut byte = [0_u8];
        let flags = libc::MSG_OOB | libc::MSG_DONTWAIT;
        // SAFETY: one byte is live.
        let count = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
        seen.push(format!("urgent {count} {}", byte.escape_ascii()));
    };
    if urgent_first {
        take_urgent(&mut seen);
    }
    while let Ok(message) = receive(socket, 100) {
        seen.push(format!("{} {}", message.bytes.escape_ascii(), at_mark(socket)));
        if message.bytes.is_empty() || seen.len() > 20 {
            break;
        }
    }
    seen
}

fn urgent(stage: Stage) {
    // Pieces; those that begin with ! are urgent.
    let queues: &[&[&str]] = &[
        &["abc", "!X", "def"],
        &["!X", "def"],
        &["abc", "!X"],
        &["!X"],
        &["abc", "!Y", "def", "!X", "ghi"],
        &["abc", "!longX", "def"],
    ];
    let make = move || -> Vec<(OwnedFd, OwnedFd, bool)> {
        let ways = [(false, false), (false, true), (true, false)];
        let all = queues.iter().flat_map(|queue| ways.map(|way| (queue, way)));
        let all = all.map(|(queue, (inline, urgent_first))| {
            let [one, other] = pair(libc::SOCK_STREAM);
            set_option(&one, libc::SO_OOBINLINE, inline.into()).unwrap();
            for piece in *queue {
                fill(&other, piece).unwrap();
            }
            (one, other, urgent_first)
        });
        all.collect()
    };
    let look = |(one, other, urgent_first): (OwnedFd, OwnedFd, bool)| {
        let seen = drain(&one, urgent_first);
        drop(other);
        seen
    };
    // A kernel without urgent bytes in unix sockets has nothing to keep.
    let [probe, _peer] = pair(libc::SOCK_STREAM);
    let has_urgent = fill(&probe, "!x").is_ok();
    let wanted: Vec<_> = if has_urgent { make().into_iter().map(look).collect() } else { Vec::new() };
    let mut there = has_urgent.then(make);
    stage.serve_except(&["fd "], move |_| {
        let found: Vec<_> = there.take().into_iter().flatten().map(look).collect();
        there = has_urgent.then(make);
        for (found, wanted) in found.iter().zip(&wanted) {
            verify!(found == wanted, "{wanted:?}\nbecame {found:?}");
        }
        verify!(found.len() == wanted.len(), "{} sockets", found.len());
        Ok(())
    });
}

fn fill(socket: &OwnedFd, piece: &str) -> Verdict {
    let Some(urgent) = piece.strip_prefix('!') else {
        return put(socket.as_raw_fd(), piece.as_bytes()).map_err(text);
    };
    // SAFETY: the bytes are live.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            urgent.as_ptr().cast(),
            urgent.len(),
            libc::MSG_OOB | libc::MSG_NOSIGNAL,
        )
    };
    check(sent).map(drop).map_err(text)
}

/// The peer has left without reading what it was sent, which the kernel tells once; what it said before is there.
fn deaf(stage: Stage) {
    let kinds = [libc::SOCK_SEQPACKET, libc::SOCK_STREAM];
    let make = move || {
        kinds.map(|kind| {
            let [own, peer] = pair(kind);
            put(own.as_raw_fd(), b"question").unwrap();
            put(peer.as_raw_fd(), b"reply").unwrap();
            own
        })
    };
    let mut ends = make();
    stage.serve_except(&["fd"], move |_| {
        for (kind, own) in kinds.iter().zip(&ends) {
            let mut bytes = [0_u8; 40];
            let mut take = || {
                // SAFETY: room for as many bytes.
                check(unsafe { libc::read(own.as_raw_fd(), bytes.as_mut_ptr().cast(), 40) })
            };
            let first = take();
            let told = first.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ECONNRESET));
            let count = if told { take() } else { first }.map_err(text)?;
            let found = &bytes[..count as usize];
            verify!(found == b"reply", "a socket of type {kind} has received {found:?}");
        }
        ends = make();
        Ok(())
    });
}
