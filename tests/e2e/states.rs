//! TCP connections in states that do not last: being made, ended by the peer, ended by both, with urgent data.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use crate::harness::case::Case;
use crate::harness::process::{spawn, until};
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::check;
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "states",
    fixtures: &[("reader", reader), ("leaver", leaver), ("seeker", seeker), ("urged", urged), ("busy", busy)],
    cases: &[
        ("peer_has_ended", || {
            peer_has_ended("127.0.0.1:0")?;
            peer_has_ended("[::1]:0")
        }),
        ("both_have_ended", both_have_ended),
        ("still_being_made", still_being_made),
        ("urgent_data_is_refused", urgent),
        ("backlog_from_outside_is_closed_on_demand", backlog_closed),
    ],
};

const LIMIT: Duration = Duration::from_secs(20);

const ESTABLISHED: u8 = 1;
const CONNECTING: u8 = 2;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;

fn told(error: std::io::Error) -> String {
    error.to_string()
}

/// The state of a connection: the first byte of `struct tcp_info`.
fn state(socket: i32) -> u8 {
    let (mut info, mut length) = ([0_u8; 8], 8);
    let place = info.as_mut_ptr().cast();
    // SAFETY: a valid place of eight bytes.
    check(unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) })
        .unwrap();
    info[0]
}

/// A client of somebody outside who has sent something and his end; it goes on to send.
fn reader(stage: Stage) {
    let mut connection = TcpStream::connect(stage.arguments[0].as_str()).unwrap();
    stage.publish("connected", "");
    while state(connection.as_raw_fd()) != CLOSE_WAIT {
        std::thread::yield_now();
    }
    stage.serve(move |number| {
        let found = state(connection.as_raw_fd());
        verify!(found == CLOSE_WAIT, "the connection is in state {found}");
        let mut byte = [0];
        if number <= 3 {
            connection.read_exact(&mut byte).map_err(told)?;
            verify!(u32::from(byte[0]) == number, "{} was read, not {number}", byte[0]);
        } else {
            let count = connection.read(&mut byte).map_err(told)?;
            verify!(count == 0, "behind the end came {}", byte[0]);
        }
        connection.write_all(&[number as u8]).map_err(told)
    });
}

/// `CLOSE_WAIT`: the peer hears what is still said.
fn peer_has_ended(at: &str) -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let listener = TcpListener::bind(at)?;
    let mut root = spawn(&mut case.fixture("reader", &[&listener.local_addr()?.to_string()])?)?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(LIMIT))?;
    peer.write_all(&[1, 2, 3])?;
    peer.shutdown(Shutdown::Write)?;
    case.wait_ready("reader", root)?;
    case.ask()?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
        case.ask()?;
    }
    case.ask()?;
    let mut heard = [0; 4];
    peer.read_exact(&mut heard)?;
    ensure!(heard == [1, 2, 3, 4], "the peer heard {heard:?}");
    case.finish(root)
}

/// How much is on the way when both have ended.
const MUCH: usize = 3 << 20;

/// A client whose peer has ended and reads nothing, and who has ended too: much is still to be sent.
fn leaver(stage: Stage) {
    let mut connection = TcpStream::connect(stage.arguments[0].as_str()).unwrap();
    let much = i32::try_from(MUCH * 2).unwrap();
    let place = (&raw const much).cast();
    // SAFETY: a valid value of four bytes.
    check(unsafe {
        libc::setsockopt(connection.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, place, 4)
    })
    .unwrap();
    while state(connection.as_raw_fd()) != CLOSE_WAIT {
        std::thread::yield_now();
    }
    connection.write_all(&vec![7; MUCH]).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    stage.serve(move |number| {
        let found = state(connection.as_raw_fd());
        verify!(number > 2 || found == LAST_ACK, "the connection is in state {found}");
        let more = connection.write(b"x").map_err(|error| error.kind());
        verify!(more == Err(ErrorKind::BrokenPipe), "writing after the end gives {more:?}");
        let end = connection.read(&mut [0]).map_err(|error| error.kind());
        verify!(end == Ok(0), "reading after the end of the peer gives {end:?}");
        Ok(())
    });
}

/// `LAST_ACK`: what was on the way arrives, and the end behind it.
fn both_have_ended() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut root = spawn(&mut case.fixture("leaver", &[&listener.local_addr()?.to_string()])?)?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(LIMIT))?;
    peer.shutdown(Shutdown::Write)?;
    case.wait_ready("leaver", root)?;
    case.ask()?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
    }
    case.ask()?;
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard)?;
    ensure!(heard.len() == MUCH, "the peer heard {} bytes of {MUCH}", heard.len());
    case.ask()?;
    case.finish(root)
}

/// Begins to connect.
fn begin(to: SocketAddr) -> OwnedFd {
    // SAFETY: plain integers.
    let made = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) };
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: a valid address of 16 bytes.
    let result = unsafe { libc::connect(made, (&raw const address).cast(), 16) };
    assert!(result == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINPROGRESS));
    // SAFETY: a descriptor that was just made.
    unsafe { OwnedFd::from_raw_fd(made) }
}

/// A client whose server is busy: one connection is being made without waiting for it, and a thread waits for another.
fn seeker(stage: Stage) {
    let to: SocketAddr = stage.arguments[0].parse().unwrap();
    let connection = begin(to);
    let port = TcpStream::from(connection.try_clone().unwrap()).local_addr().unwrap().port();
    let waits = thread(move || TcpStream::connect(to).map(|connection| connection.peer_addr().unwrap()));
    let sought = format!(" 0100007F:{:04X} 02 ", to.port());
    while std::fs::read_to_string("/proc/self/net/tcp").unwrap().matches(&sought).count() < 2 {
        std::thread::yield_now();
    }
    let mut waits = Some(waits);
    stage.serve_except(&["fd", "thread"], move |number| {
        let found = state(connection.as_raw_fd());
        if number <= 3 {
            verify!(found == CONNECTING, "the connection is in state {found}");
            verify!(waits.as_ref().is_some_and(|waits| !waits.is_finished()), "the thread does not wait");
            return Ok(());
        }
        let mut polled = libc::pollfd { fd: connection.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid structure.
        let polls = unsafe { libc::poll(&raw mut polled, 1, 20_000) };
        verify!(polls == 1 && polled.revents == libc::POLLOUT, "polling gives {polls}, {}", polled.revents);
        let found = state(connection.as_raw_fd());
        verify!(found == ESTABLISHED, "the connection is in state {found} at last");
        let mut stream = TcpStream::from(connection.try_clone().map_err(told)?);
        let has = stream.local_addr().map_err(told)?.port();
        verify!(has == port, "the port {port} has become {has}");
        stream.write_all(b"hello").map_err(told)?;
        let other = waits.take().unwrap().join().unwrap().map_err(told)?;
        verify!(other == to, "the thread is connected with {other}");
        Ok(())
    });
}

/// `SYN_SENT`: the server takes no more connections until the end.
fn still_being_made() -> Outcome {
    let mut case = Case::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // SAFETY: plain integers.
    check(unsafe { libc::listen(listener.as_raw_fd(), 0) })?;
    let full = TcpStream::connect(listener.local_addr()?)?;
    let mut root = spawn(&mut case.fixture("seeker", &[&listener.local_addr()?.to_string()])?)?;
    case.wait_ready("seeker", root)?;
    case.ask()?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
        case.ask()?;
    }
    // SAFETY: plain integers.
    check(unsafe { libc::listen(listener.as_raw_fd(), 5) })?;
    drop(full);
    case.ask()?;
    let mut words = Vec::new();
    for _ in 0..3 {
        let (mut peer, _) = listener.accept()?;
        peer.set_read_timeout(Some(LIMIT))?;
        let mut word = vec![0; 5];
        if peer.read_exact(&mut word).is_ok() {
            words.push(word);
        }
    }
    ensure!(words == [b"hello"], "the server heard {words:?}");
    case.finish(root)
}

/// A client that gets a byte out of order, and does not read it at first.
fn urged(stage: Stage) {
    let mut connection = TcpStream::connect(stage.arguments[0].as_str()).unwrap();
    let mut byte = [0_u8];
    let place = byte.as_mut_ptr().cast();
    // SAFETY: a valid place of one byte.
    while unsafe { libc::recv(connection.as_raw_fd(), place, 1, libc::MSG_OOB | libc::MSG_PEEK) } != 1 {
        std::thread::yield_now();
    }
    stage.serve(move |number| {
        if number == 1 {
            let mut word = [0; 6];
            // SAFETY: a valid place of one byte.
            let count =
                unsafe { libc::recv(connection.as_raw_fd(), word.as_mut_ptr().cast(), 1, libc::MSG_OOB) };
            verify!(count == 1 && word[0] == b'!', "urgent data: {count}, {}", word[0]);
            connection.read_exact(&mut word).map_err(told)?;
            verify!(&word == b"calmly", "the other data: {word:?}");
        }
        Ok(())
    });
}

fn urgent() -> Outcome {
    let mut case = Case::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let root = spawn(&mut case.fixture("urged", &[&listener.local_addr()?.to_string()])?)?;
    let (mut peer, _) = listener.accept()?;
    peer.write_all(b"cal")?;
    // SAFETY: one byte.
    check(unsafe { libc::send(peer.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) })?;
    peer.write_all(b"mly")?;
    case.wait_ready("urged", root)?;
    if !case.is_control() {
        // Without rights there is another reason if it is not to be closed.
        let all = [&[][..], &["--tcp", "close"]];
        for close in all.into_iter().skip(usize::from(need_root().is_err())) {
            let words = [&["dump"][..], close].concat();
            let ran = case.vckpt(&[&words[..], &[&root.to_string(), "-o", "urged.vckpt"]].concat())?;
            ran.refused(&[3])?;
            ensure!(ran.stderr.contains("urgent data"), "no reason: {}", ran.describe());
        }
    }
    case.ask()?;
    let image = case.dump_with(root, &["--tcp", "close"])?;
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}

/// A server that accepts nobody for now.
fn busy(stage: Stage) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    stage.publish("listening", &listener.local_addr().unwrap().to_string());
    while !stage.path("came").exists() {
        std::thread::yield_now();
    }
    stage.serve(move |_| {
        let accepted = listener.accept().map_err(|error| error.kind());
        verify!(accepted.is_err_and(|kind| kind == ErrorKind::WouldBlock), "somebody was accepted");
        Ok(())
    });
}

/// Who waits in the backlog finds the connection closed, if that is what is wanted.
fn backlog_closed() -> Outcome {
    let mut case = Case::new()?;
    let mut root = spawn(&mut case.fixture("busy", &[])?)?;
    let path = case.path("listening");
    let at = until("the fixture to listen", LIMIT, || std::fs::read_to_string(&path).ok())?;
    if case.is_control() {
        std::fs::write(case.path("came"), "")?;
        case.wait_ready("busy", root)?;
        return case.finish(root);
    }
    for round in 0..2 {
        let mut client = TcpStream::connect(at.as_str())?;
        client.set_read_timeout(Some(LIMIT))?;
        client.write_all(b"is anybody there?")?;
        if round == 0 {
            std::fs::write(case.path("came"), "")?;
            case.wait_ready("busy", root)?;
        }
        let image = case.dump_with(root, &["--tcp", "close"])?;
        let end = client.read(&mut [0]).map_err(|error| error.kind());
        ensure!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "the client gets {end:?}");
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
        case.ask()?;
    }
    case.finish(root)
}
