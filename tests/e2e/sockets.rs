//! Sockets: unix pairs with data on the way, descriptors in messages excepted; listening TCP and unix sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text as path_text, two_rounds};
use crate::harness::{Outcome, Topic, ensure};
use crate::stage::kernel::{check, fork, map, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "sockets",
    fixtures: &[
        ("unix-pairs", unix_pairs),
        ("listeners", listeners),
        ("between", between),
        ("unix-backlog", unix_backlog),
        ("callers", callers),
    ],
    cases: &[
        ("unix_pairs_with_data", || two_rounds("unix-pairs")),
        ("listening_tcp_and_unix", || two_rounds("listeners")),
        ("unix_not_accepted_yet", || two_rounds("unix-backlog")),
        ("between_processes", || two_rounds("between")),
        ("connections_that_wait_for_a_moment", || two_rounds("callers")),
        ("connections_that_wait_for_ever", never_accepted),
    ],
};

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn option(socket: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0_i32, 4_u32);
    let place = (&raw mut value).cast();
    // SAFETY: a valid place of four bytes.
    unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, place, &raw mut length) };
    value
}

fn unix_pairs(stage: Stage) {
    let (mut one, mut two) = UnixStream::pair().unwrap();
    let (first, second) = UnixDatagram::pair().unwrap();
    let mut packet = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, packet.as_mut_ptr()) }).unwrap();
    let (mut half_one, mut half_two) = UnixStream::pair().unwrap();
    half_one.write_all(b"before the end").unwrap();
    half_one.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut widow, husband) = UnixStream::pair().unwrap();
    drop(husband);
    let size = 300_000_i32;
    // SAFETY: a valid value of four bytes.
    unsafe {
        libc::setsockopt(one.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const size).cast(), 4)
    };
    one.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
    two.set_nonblocking(true).unwrap();
    let options = |socket: i32| {
        [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_TYPE, libc::SO_PASSCRED].map(|name| option(socket, name))
    };
    let before = [one.as_raw_fd(), two.as_raw_fd(), packet[0]].map(options);
    let load = |one: &mut UnixStream, two: &mut UnixStream| {
        one.write_all(&[1; 100_000]).unwrap();
        two.write_all(b"the other way").unwrap();
        for message in ["a", "", "a longer message"] {
            first.send(message.as_bytes()).unwrap();
        }
        put(packet[0], b"packet one").unwrap();
        put(packet[0], b"packet two").unwrap();
    };
    load(&mut one, &mut two);
    let mut at_first = true;
    stage.serve(|_| {
        let now = [one.as_raw_fd(), two.as_raw_fd(), packet[0]].map(options);
        verify!(now == before, "socket options: {before:?} became {now:?}");
        verify!(one.read_timeout().map_err(text)? == Some(Duration::from_secs(7)), "the receive time limit");
        let mut bytes = vec![0; 100_000];
        two.read_exact(&mut bytes).map_err(text)?;
        verify!(bytes.iter().all(|&byte| byte == 1), "data of the stream");
        let more = two.read(&mut bytes).err().map(|error| error.kind());
        verify!(more == Some(std::io::ErrorKind::WouldBlock), "more data than was sent: {more:?}");
        let mut other = [0; 13];
        one.read_exact(&mut other).map_err(text)?;
        verify!(&other == b"the other way", "data of the other direction");
        for message in ["a", "", "a longer message"] {
            let count = second.recv(&mut bytes).map_err(text)?;
            verify!(&bytes[..count] == message.as_bytes(), "a datagram of {count} bytes, not {message:?}");
        }
        verify!(take(packet[1], 100).map_err(text)? == b"packet one", "the first packet");
        verify!(take(packet[1], 100).map_err(text)? == b"packet two", "the second packet");
        if std::mem::take(&mut at_first) {
            let mut last = String::new();
            half_two.read_to_string(&mut last).map_err(text)?;
            verify!(last == "before the end", "the half-closed stream held {last:?}");
        }
        verify!(half_two.read(&mut bytes).map_err(text)? == 0, "the half-closed stream does not end");
        half_two.write_all(b"x").map_err(text)?;
        half_one.read_exact(&mut bytes[..1]).map_err(text)?;
        verify!(widow.read(&mut bytes).map_err(text)? == 0, "a stream whose peer is closed does not end");
        load(&mut one, &mut two);
        Ok(())
    });
}

/// One connection: sends a word, expects it back from the server.
fn echo(
    mut client: impl std::io::Read + std::io::Write,
    mut server: impl std::io::Read + std::io::Write,
) -> Result<(), String> {
    client.write_all(b"hello").map_err(text)?;
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).map_err(text)?;
    server.write_all(&bytes).map_err(text)?;
    client.read_exact(&mut bytes).map_err(text)?;
    verify!(&bytes == b"hello", "the echo is {bytes:?}");
    Ok(())
}

fn listeners(stage: Stage) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let six = TcpListener::bind("[::1]:0").ok();
    let path = stage.path("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let name = format!("vckpt-test-{}", std::process::id());
    let abstract_address =
        <std::os::unix::net::SocketAddr as SocketAddrExt>::from_abstract_name(&name).unwrap();
    let hidden = UnixListener::bind_addr(&abstract_address).unwrap();
    // SAFETY: the call takes plain integers.
    let audit =
        check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT) }).unwrap();
    let names = [libc::SO_REUSEADDR, libc::SO_ACCEPTCONN, libc::SO_KEEPALIVE];
    let options = names.map(|name| option(tcp.as_raw_fd(), name));
    stage.serve(|_| {
        verify!(tcp.local_addr().map_err(text)? == address, "the address is {:?}", tcp.local_addr());
        let now = names.map(|name| option(tcp.as_raw_fd(), name));
        verify!(now == options, "socket options: {options:?} became {now:?}");
        let protocol = option(audit, libc::SO_PROTOCOL);
        verify!(protocol == libc::NETLINK_AUDIT, "a netlink socket has protocol {protocol}");
        echo(TcpStream::connect(address).map_err(text)?, tcp.accept().map_err(text)?.0)?;
        if let Some(six) = &six {
            let address = six.local_addr().map_err(text)?;
            echo(TcpStream::connect(address).map_err(text)?, six.accept().map_err(text)?.0)?;
        }
        echo(UnixStream::connect(&path).map_err(text)?, unix.accept().map_err(text)?.0)?;
        let client = UnixStream::connect_addr(&abstract_address).map_err(text)?;
        echo(client, hidden.accept().map_err(text)?.0)?;
        Ok(())
    });
}

/// Connections that nobody has accepted, at a path and at an abstract name, in order.
fn unix_backlog(stage: Stage) {
    let unix = UnixListener::bind(stage.path("backlog")).unwrap();
    let name = format!("vckpt-backlog-{}", std::process::id());
    let abstract_address =
        <std::os::unix::net::SocketAddr as SocketAddrExt>::from_abstract_name(&name).unwrap();
    let listeners = [unix, UnixListener::bind_addr(&abstract_address).unwrap()];
    let clients = || {
        let connect = |listener: &UnixListener| {
            [0, 1, 2].map(|_| UnixStream::connect_addr(&listener.local_addr().unwrap()).unwrap())
        };
        listeners.iter().map(connect).collect::<Vec<_>>()
    };
    let mut waiting = clients();
    stage.serve(|_| {
        for (listener, clients) in listeners.iter().zip(&mut waiting) {
            for (number, client) in clients.iter_mut().enumerate() {
                let server = listener.accept().map_err(text)?.0;
                client.write_all(&[number as u8]).map_err(text)?;
                let mut byte = [9];
                (&server).read_exact(&mut byte).map_err(text)?;
                verify!(byte == [number as u8], "number {} was accepted as number {number}", byte[0]);
            }
        }
        waiting.clear();
        waiting = clients();
        Ok(())
    });
}

/// A stream whose ends are in two processes, with data on the way in both directions.
fn between(stage: Stage) {
    let (mut mine, mut theirs) = UnixStream::pair().unwrap();
    fork(|| {
        let mut bytes = [0; 8];
        // Reads a number ahead of the answer, so that data is always on the way.
        while theirs.read_exact(&mut bytes).is_ok() {
            let value = u64::from_ne_bytes(bytes) + 1;
            if theirs.write_all(&value.to_ne_bytes()).is_err() {
                return 1;
            }
        }
        0
    });
    for number in 0..50_u64 {
        mine.write_all(&number.to_ne_bytes()).unwrap();
    }
    let mut next = 0_u64;
    stage.serve(move |_| {
        for _ in 0..500 {
            let mut bytes = [0; 8];
            mine.read_exact(&mut bytes).map_err(text)?;
            let value = u64::from_ne_bytes(bytes);
            verify!(value == next + 1, "{value} came back, not {}", next + 1);
            mine.write_all(&(next + 50).to_ne_bytes()).map_err(text)?;
            next += 1;
        }
        Ok(())
    });
}

/// Three processes that connect, send a number and get it back, over and over, and one that accepts them: at most moments
/// a connection waits, with what was sent through it. With an argument nobody accepts.
fn callers(stage: Stage) {
    let path = stage.path("calls");
    let listener = UnixListener::bind(&path).unwrap();
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = map(4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1) as usize;
    // SAFETY: mapped for as long as the program runs, and only used atomically.
    let calls = move || unsafe { &*(shared as *const [AtomicU32; 3]) };
    if stage.arguments.is_empty() {
        let listener = listener.try_clone().unwrap();
        fork(move || {
            let mut number = [0];
            while let Ok((mut stream, _)) = listener.accept() {
                if stream.read_exact(&mut number).is_err() || stream.write_all(&number).is_err() {
                    return 1;
                }
                calls()[usize::from(number[0])].fetch_add(1, Ordering::SeqCst);
            }
            2
        });
    }
    for number in 0..3_u8 {
        let path = path.clone();
        fork(move || {
            let mut answer = [9];
            loop {
                let Ok(mut stream) = UnixStream::connect(&path) else { return 3 };
                if stream.write_all(&[number]).is_err() || stream.read_exact(&mut answer).is_err() {
                    return 4;
                }
                if answer != [number] {
                    return 5;
                }
            }
        });
    }
    let accepts = stage.arguments.is_empty();
    stage.serve(move |_| {
        let now = || calls().each_ref().map(|count| count.load(Ordering::SeqCst));
        let (before, begin) = (now(), Instant::now());
        while accepts && now().iter().zip(before).any(|(now, before)| *now < before + 50) {
            verify!(
                begin.elapsed() < Duration::from_secs(20),
                "calls go from {before:?} to {:?} only",
                now()
            );
        }
        let mut status = 0;
        // SAFETY: a valid place for a status.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        verify!(ended == 0, "process {ended} has ended with {status:#x}");
        Ok(())
    });
}

fn never_accepted() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("callers", &["nobody"])?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", path_text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("not accepted yet"), "{}", ran.describe());
    case.ask()?;
    case.finish(root)
}
