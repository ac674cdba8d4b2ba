//! TCP connections that are over: closed by the peer, reset, or known to be closed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text};
use crate::harness::programs::free_port;
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::check;
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "over",
    fixtures: &[("over", over), ("lonely", lonely)],
    cases: &[("connections_that_are_over", connections), ("address_of_somebody_else", address_taken)],
};

fn number(socket: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0_i32, 4_u32);
    let place = (&raw mut value).cast();
    // SAFETY: a valid place of four bytes.
    check(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, place, &raw mut length) }).unwrap();
    value
}

fn set(socket: i32, name: i32, value: &[i32]) {
    let length = (value.len() * 4) as u32;
    // SAFETY: a valid value of that length.
    check(unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, name, value.as_ptr().cast(), length) })
        .unwrap();
}

/// Waits until the kernel knows that the peer has gone.
fn wait_end(socket: &TcpStream) {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid structure.
    assert_eq!(unsafe { libc::poll(&raw mut polled, 1, 10_000) }, 1, "the end of a connection");
}

/// A connection whose peer has sent this and is gone: in order, or by a reset.
fn ended(listener: &TcpListener, data: &[u8], reset: bool) -> TcpStream {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.write_all(data).unwrap();
    while available(&server) < data.len() {
        std::thread::yield_now();
    }
    if reset {
        set(client.as_raw_fd(), libc::SO_LINGER, &[1, 0]);
    }
    drop(client);
    wait_end(&server);
    server
}

/// How many bytes wait.
fn available(socket: &TcpStream) -> usize {
    let mut count = 0_i32;
    // SAFETY: a valid place of four bytes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) }).unwrap();
    count as usize
}

struct Ended {
    long: TcpStream,
    empty: TcpStream,
    reset: TcpStream,
    known: TcpStream,
}

const LONG: usize = 100_000;

impl Ended {
    fn new(listener: &TcpListener) -> Self {
        let bytes: Vec<u8> = (0..LONG).map(|number| (number % 251) as u8).collect();
        let mut known = ended(listener, b"", true);
        assert!(known.read(&mut [0; 1]).is_err(), "a connection that was reset");
        Self {
            long: ended(listener, &bytes, false),
            empty: ended(listener, b"", false),
            reset: ended(listener, b"abc", true),
            known,
        }
    }

    fn verify(mut self, listener: &TcpListener) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let local = listener.local_addr().map_err(text)?;
        let reuse = number(listener.as_raw_fd(), libc::SO_REUSEADDR);
        for socket in [&self.long, &self.empty] {
            let own = socket.local_addr().map_err(text)?;
            verify!(own == local, "the own address {local} became {own}");
            verify!(number(socket.as_raw_fd(), libc::SO_REUSEADDR) == reuse, "SO_REUSEADDR");
            verify!(socket.peer_addr().is_ok(), "a connection that the peer closed has no peer");
        }
        let mut bytes = Vec::new();
        let count = self.long.read_to_end(&mut bytes).map_err(text)?;
        let good = bytes.iter().enumerate().all(|(place, &byte)| byte == (place % 251) as u8);
        verify!(count == LONG && good, "{count} of {LONG} bytes waited");
        verify!(self.empty.read(&mut [0; 9]).map_err(text)? == 0, "no end of file");
        self.empty.write_all(b"the first goes out").map_err(text)?;
        let begin = Instant::now();
        while self.empty.write(b"x").is_ok() {
            verify!(
                begin.elapsed() < Duration::from_secs(5),
                "writing to a peer that has closed never fails"
            );
        }
        let mut word = [0; 9];
        let count = self.reset.read(&mut word).map_err(text)?;
        verify!(&word[..count] == b"abc", "before the reset came {:?}", &word[..count]);
        let error = self.reset.read(&mut word).map_err(|error| error.kind());
        verify!(error == Err(ErrorKind::ConnectionReset), "a reset gives {error:?}");
        for closed in [&mut self.reset, &mut self.known] {
            verify!(closed.read(&mut word).map_err(text)? == 0, "no end of file after a reset");
            let error = closed.write(b"x").map_err(|error| error.kind());
            verify!(error == Err(ErrorKind::BrokenPipe), "writing after a reset gives {error:?}");
        }
        Ok(())
    }
}

fn over(stage: Stage) {
    let listeners: Vec<TcpListener> = ["127.0.0.1:0", "127.0.0.1:0", "[::]:0", "[::1]:0"]
        .iter()
        .filter_map(|address| TcpListener::bind(address).ok())
        .collect();
    // One that can't be bound while another socket has its address.
    set(listeners[1].as_raw_fd(), libc::SO_REUSEADDR, &[0]);
    let listeners = &listeners[..];
    let usable = || listeners.iter().filter(|listener| !listener.local_addr().unwrap().ip().is_unspecified());
    let load = || usable().map(Ended::new).collect::<Vec<_>>();
    let mut ended = load();
    stage.serve(move |_| {
        for (ended, listener) in ended.drain(..).zip(usable()) {
            ended.verify(listener)?;
        }
        ended = load();
        Ok(())
    });
}

fn connections() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("over", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}

/// Has a connection that is over at a port, where nobody listens any more.
fn lonely(stage: Stage) {
    let listener = TcpListener::bind(stage.arguments[0].as_str()).unwrap();
    let mut only = ended(&listener, b"the last", false);
    drop(listener);
    stage.serve(|_| {
        let mut bytes = String::new();
        only.read_to_string(&mut bytes).map_err(|error| error.to_string())?;
        verify!(bytes == "the last", "{bytes:?} waited");
        Ok(())
    });
}

/// Somebody else listens at the address of a connection that is over.
fn address_taken() -> Outcome {
    let mut case = Case::new()?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut root = case.start("lonely", &[&address])?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    let taken = TcpListener::bind(&address)?;
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?.good()?;
    // With rights the address can be had beside a listener.
    let is_exact = ran.stderr.contains("fidelity: exact");
    let told = ran.stderr.lines().any(|line| {
        ["process ", "(e2e", "fd ", &address, "its own address is another now"]
            .iter()
            .all(|word| line.contains(word))
    });
    ensure!(told != is_exact && (told || need_root().is_ok()), "the address is another: {}", ran.describe());
    root = ran.stdout.trim().parse()?;
    case.ask()?;
    drop(taken);
    case.finish(root)
}
