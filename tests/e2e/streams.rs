//! TCP connections that go on: with both ends in the tree, and with a peer outside that notices nothing but a pause.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::case::{Case, text, two_rounds, two_rounds_with};
use crate::harness::process::{spawn, until, wait_exit};
use crate::harness::{Outcome, Topic, ensure, fail, need_ordinary_user, need_root};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "streams",
    fixtures: &[
        ("pairs", pairs),
        ("halves", halves),
        ("backlog", backlog),
        ("served", served),
        ("closing", closing),
        ("half", half),
    ],
    cases: &[
        ("both_ends_inside", || two_rounds("pairs")),
        ("both_ends_with_full_buffers", full_buffers),
        ("half_closed", || two_rounds("halves")),
        ("not_accepted_yet", || two_rounds("backlog")),
        ("peer_outside", || outside("127.0.0.1:0")),
        ("peer_outside_of_ipv6", || outside("[::1]:0")),
        ("half_closed_to_outside", half_closed_outside),
        ("peer_outside_goes_on_when_left_running", left_running),
        ("peer_outside_is_refused_without_rights", refused),
        ("peer_outside_is_closed_on_demand", closed_on_demand),
    ],
};

const LIMIT: Duration = Duration::from_secs(20);

fn told(error: std::io::Error) -> String {
    error.to_string()
}

/// The byte at a place of a stream.
fn byte(place: u64) -> u8 {
    (place % 251) as u8
}

fn pattern(from: u64, length: usize) -> Vec<u8> {
    (from..).take(length).map(byte).collect()
}

fn set(socket: &TcpStream, name: i32, value: i32) {
    let place = (&raw const value).cast();
    // SAFETY: a valid value of four bytes.
    assert_eq!(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, 4) }, 0);
}

/// What the ends have agreed upon: options, scales of windows.
fn agreed(socket: &TcpStream) -> Vec<u8> {
    let mut info = [0_u8; 64];
    let mut length = 64_u32;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: room for 64 bytes.
    unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, info.as_mut_ptr().cast(), &raw mut length) };
    info[5..7].to_vec()
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    read: u64,
}

impl Flow {
    /// Sends a number of bytes, or as many as there is room for.
    fn load(&mut self, from: &mut TcpStream, most: usize) {
        from.set_nonblocking(true).unwrap();
        let mut left = most;
        while left > 0 {
            match from.write(&pattern(self.sent, left.min(64 << 10))) {
                Ok(count) => {
                    self.sent += count as u64;
                    left -= count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        from.set_nonblocking(false).unwrap();
    }

    /// Reads everything that was sent, and nothing else.
    fn drain(&mut self, to: &mut TcpStream) -> Verdict {
        let mut bytes = vec![0; (self.sent - self.read) as usize];
        to.read_exact(&mut bytes).map_err(told)?;
        verify!(bytes == pattern(self.read, bytes.len()), "other bytes than were sent");
        self.read = self.sent;
        to.set_nonblocking(true).map_err(told)?;
        let more = to.read(&mut [0; 1]).map_err(|error| error.kind());
        to.set_nonblocking(false).map_err(told)?;
        verify!(more == Err(ErrorKind::WouldBlock), "more bytes than were sent: {more:?}");
        Ok(())
    }
}

fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (client, server)
}

/// Connections within the tree; `full` fills all buffers.
fn pairs(stage: Stage) {
    let is_full = !stage.arguments.is_empty();
    let most = if is_full { 700_000 } else { 20_000 };
    let mut listeners: Vec<TcpListener> =
        ["127.0.0.1:0", "[::1]:0", "[::]:0"].iter().filter_map(|at| TcpListener::bind(at).ok()).collect();
    let mut ends: Vec<_> =
        listeners.iter().flat_map(|listener| [connect(listener), connect(listener)]).collect();
    // One end of IPv4, the other of IPv6; and one whose listener is gone.
    if let Some(any) = listeners.get(2) {
        let client = TcpStream::connect(("127.0.0.1", any.local_addr().unwrap().port())).unwrap();
        ends.push((client, any.accept().unwrap().0));
    }
    listeners.remove(0);
    for (client, server) in &ends {
        client.set_nodelay(true).unwrap();
        server.set_ttl(17).unwrap();
        // Little room to receive, so that the most waits to be sent.
        for end in [client, server].into_iter().filter(|_| is_full) {
            set(end, libc::SO_RCVBUF, 150_000);
        }
    }
    let names = |ends: &[(TcpStream, TcpStream)]| {
        let name = |end: &TcpStream| (end.local_addr().unwrap(), end.peer_addr().unwrap());
        ends.iter().map(|(one, other)| (name(one), name(other))).collect::<Vec<_>>()
    };
    let before = names(&ends);
    let mut flows: Vec<(Flow, Flow)> = ends.iter().map(|_| Default::default()).collect();
    let load = move |ends: &mut [(TcpStream, TcpStream)], flows: &mut [(Flow, Flow)]| {
        for ((client, server), (up, down)) in ends.iter_mut().zip(flows) {
            up.load(client, most);
            down.load(server, most.saturating_sub(7));
        }
    };
    load(&mut ends, &mut flows);
    stage.serve(move |_| {
        let now = names(&ends);
        verify!(now == before, "the addresses {before:?} became {now:?}");
        for ((client, server), (up, down)) in ends.iter_mut().zip(&mut flows) {
            verify!(client.nodelay().map_err(told)?, "TCP_NODELAY is gone");
            verify!(server.ttl().map_err(told)? == 17, "IP_TTL is {:?}", server.ttl());
            up.drain(server)?;
            down.drain(client)?;
        }
        for listener in &listeners {
            let (mut client, mut server) = connect(listener);
            let mut flow = Flow::default();
            flow.load(&mut client, 10);
            flow.drain(&mut server)?;
        }
        load(&mut ends, &mut flows);
        Ok(())
    });
}

fn full_buffers() -> Outcome {
    need_root()?;
    two_rounds_with("pairs", &["full"])
}

/// A connection between two processes, of which one has ended its side: once with data left, once without.
fn halves(stage: Stage) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut one, mut other) = connect(&listener);
    let mut down = Flow::default();
    let mut up = Flow::default();
    up.load(&mut one, 5000);
    one.shutdown(Shutdown::Write).unwrap();
    down.load(&mut other, 3000);
    let (deaf, _speaker) = connect(&listener);
    deaf.shutdown(Shutdown::Read).unwrap();
    let mut at_first = true;
    stage.serve(move |number| {
        // Not before the first dump.
        if number > 1 && std::mem::take(&mut at_first) {
            let mut bytes = Vec::new();
            other.read_to_end(&mut bytes).map_err(told)?;
            verify!(bytes == pattern(0, 5000), "{} bytes before the end", bytes.len());
        }
        if number > 1 {
            verify!(other.read(&mut [0; 1]).map_err(told)? == 0, "no end");
        }
        down.drain(&mut one)?;
        down.load(&mut other, 3000);
        let more = one.write(b"x").map_err(|error| error.kind());
        verify!(more == Err(ErrorKind::BrokenPipe), "writing after the end gives {more:?}");
        verify!((&deaf).read(&mut [0; 1]).map_err(told)? == 0, "a shut down stream can be read");
        Ok(())
    });
}

/// Connections that nobody has accepted, one of them of another process.
fn backlog(stage: Stage) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let clients = || vec![TcpStream::connect(at).unwrap(), TcpStream::connect(at).unwrap()];
    let mut waiting = clients();
    stage.serve(move |_| {
        for mut client in waiting.drain(..) {
            let (mut server, from) = listener.accept().map_err(told)?;
            verify!(from == client.local_addr().map_err(told)?, "{from} was accepted");
            let mut flow = Flow::default();
            flow.load(&mut client, 100);
            flow.drain(&mut server)?;
        }
        waiting = clients();
        Ok(())
    });
}

/// What the harness sends for one verification: more than default buffers take.
const PORTION: usize = 1 << 20;

/// Serves one connection from outside.
fn served(stage: Stage) {
    let listener = TcpListener::bind(stage.arguments[0].as_str()).unwrap();
    stage.publish("listening", &listener.local_addr().unwrap().to_string());
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_nodelay(true).unwrap();
    let names = (connection.local_addr().unwrap(), connection.peer_addr().unwrap());
    let before = agreed(&connection);
    let mut flow = Flow::default();
    let portion: usize = stage.arguments[1].parse().unwrap();
    // The peer has said how much room it has when its first byte is here.
    connection.peek(&mut [0]).unwrap();
    flow.load(&mut connection, 6 * PORTION);
    stage.publish("sent", &flow.sent.to_string());
    let mut read = 0;
    let sent = stage.path("sent");
    stage.serve(move |_| {
        let now = (connection.local_addr().map_err(told)?, connection.peer_addr().map_err(told)?);
        verify!(now == names, "the addresses {names:?} became {now:?}");
        let after = agreed(&connection);
        verify!(after == before, "options and scales {before:?} became {after:?}");
        verify!(connection.nodelay().map_err(told)?, "TCP_NODELAY is gone");
        let mut bytes = vec![0; portion];
        connection.read_exact(&mut bytes).map_err(told)?;
        verify!(bytes == pattern(read, portion), "other bytes than were sent");
        read += portion as u64;
        flow.load(&mut connection, 6 * PORTION);
        std::fs::write(&sent, flow.sent.to_string()).map_err(told)
    });
}

/// A client in this process.
struct Client {
    stream: TcpStream,
    read: u64,
    writer: thread::JoinHandle<std::io::Result<()>>,
}

impl Client {
    /// Connects, and sends what all verifications need.
    fn new(case: &Case, portions: u64) -> Outcome<Self> {
        let path = case.path("listening");
        let at = until("the fixture to listen", LIMIT, || std::fs::read_to_string(&path).ok())?;
        let stream = TcpStream::connect(at.as_str())?;
        stream.set_read_timeout(Some(LIMIT))?;
        // Little room to receive, so that the fixture has something left to send.
        set(&stream, libc::SO_RCVBUF, 200_000);
        let mut writing = stream.try_clone()?;
        let writer = thread::spawn(move || {
            let portion = pattern(0, PORTION);
            (0..portions).try_for_each(|number| {
                let portion =
                    if number == 0 { portion.clone() } else { pattern(number * PORTION as u64, PORTION) };
                writing.write_all(&portion)
            })
        });
        Ok(Self { stream, read: 0, writer })
    }

    /// Reads all that the fixture says that it has sent.
    fn drain(&mut self, case: &Case) -> Outcome {
        let sent: u64 = std::fs::read_to_string(case.path("sent"))?.parse()?;
        let mut bytes = vec![0; usize::try_from(sent - self.read)?];
        self.stream.read_exact(&mut bytes)?;
        ensure!(bytes == pattern(self.read, bytes.len()), "the peer outside got other bytes than were sent");
        self.read = sent;
        Ok(())
    }
}

/// Starts the fixture and connects with it.
fn serving(case: &mut Case, at: &str, portions: u64) -> Outcome<(i32, Client)> {
    let root = spawn(&mut case.fixture("served", &[at, &PORTION.to_string()])?)?;
    let client = Client::new(case, portions)?;
    case.wait_ready("served", root)?;
    Ok((root, client))
}

/// The image tells of the connection and of its queues.
fn shows(case: &mut Case, image: &Path, client: &Client) -> Outcome {
    if case.is_control() {
        return Ok(());
    }
    let ran = case.vckpt(&["show", "--sockets", text(image)])?.good()?;
    let (peer, own) = (client.stream.local_addr()?.to_string(), client.stream.peer_addr()?.to_string());
    let line = ran.stdout.lines().find(|line| line.contains(&peer));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let [protocol, state, received, sent, local, to, holder] = words[..] else {
        return fail(format!("no such connection: {}", ran.describe()));
    };
    ensure!([protocol, state, local, to] == ["tcp", "ESTAB", &own, &peer], "{words:?}");
    ensure!(holder.starts_with("e2e") && holder.contains(",fd="), "{words:?}");
    // More than default buffers take was sent, and nobody has read it.
    let _: usize = received.parse()?;
    ensure!(sent.parse::<usize>()? > 100_000, "{words:?}");
    Ok(())
}

fn outside(at: &str) -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let (mut root, mut client) = serving(&mut case, at, 3)?;
    case.ask()?;
    for round in 0..2 {
        let image = case.dump(root)?;
        // Later the kernel has made the buffers smaller, and nothing may wait.
        if round == 0 {
            shows(&mut case, &image, &client)?;
        }
        root = case.restore(&image)?;
        // What waited to be sent at the dump, and nothing lost of it.
        client.drain(&case)?;
        case.ask()?;
    }
    client.drain(&case)?;
    ensure!(client.writer.join().is_ok_and(|result| result.is_ok()), "the peer outside can't write");
    drop(client.stream);
    case.finish(root)
}

/// After a dump that leaves the program running, and after one that fails, nothing is locked.
fn left_running() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let (root, mut client) = serving(&mut case, "127.0.0.1:0", 3)?;
    case.ask()?;
    let image = case.dump_with(root, &["--leave-running"])?;
    client.drain(&case)?;
    case.ask()?;
    if !case.is_control() {
        // An image that gets too large: an error with XFSZ ignored, else the end of vckpt itself.
        for trap in ["trap '' XFSZ;", ""] {
            let image = case.path("large.vckpt");
            let script = format!("{trap} ulimit -f 1; exec \"$0\" dump \"$1\" -o \"$2\"");
            let mut command = case.command(Path::new("/bin/sh"), "limited")?;
            command.arg("-c").arg(script).arg(&case.vckpt).arg(root.to_string()).arg(&image);
            let status = wait_exit(spawn(&mut command)?, LIMIT)?;
            ensure!(!status.success() && !image.exists(), "a dump that is too large succeeds");
            for entry in std::fs::read_dir(&case.folder)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.contains("large.vckpt") {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
    }
    client.drain(&case)?;
    case.ask()?;
    client.drain(&case)?;
    std::fs::remove_file(image)?;
    ensure!(client.writer.join().is_ok_and(|result| result.is_ok()), "the peer outside can't write");
    case.finish(root)
}

fn refused() -> Outcome {
    need_ordinary_user()?;
    let mut case = Case::new()?;
    let (root, mut client) = serving(&mut case, "127.0.0.1:0", 2)?;
    case.ask()?;
    if !case.is_control() {
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", "refused.vckpt"])?;
        ran.refused(&[4])?;
        ensure!(ran.stderr.contains("a TCP connection from 127.0.0.1:"), "no name: {}", ran.describe());
        ensure!(ran.stderr.contains("CAP_NET_ADMIN"), "no reason: {}", ran.describe());
    }
    client.drain(&case)?;
    case.ask()?;
    client.drain(&case)?;
    ensure!(client.writer.join().is_ok_and(|result| result.is_ok()), "the peer outside can't write");
    case.finish(root)
}

/// A client of somebody outside that has sent all it will: a number is read for each verification.
fn half(stage: Stage) {
    let mut connection = TcpStream::connect(stage.arguments[0].as_str()).unwrap();
    connection.write_all(&pattern(0, 5000)).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    stage.serve(move |number| {
        let mut byte = [0];
        connection.read_exact(&mut byte).map_err(told)?;
        verify!(u32::from(byte[0]) == number, "{} was read, not {number}", byte[0]);
        let more = connection.write(b"x").map_err(|error| error.kind());
        verify!(more == Err(ErrorKind::BrokenPipe), "writing after the end gives {more:?}");
        Ok(())
    });
}

/// The peer has the end already in the second round, and in the first it may be on the way.
fn half_closed_outside() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut root = spawn(&mut case.fixture("half", &[&listener.local_addr()?.to_string()])?)?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(LIMIT))?;
    case.wait_ready("half", root)?;
    peer.write_all(&[1])?;
    case.ask()?;
    for round in 2..=3 {
        let image = case.dump(root)?;
        peer.write_all(&[round])?;
        root = case.restore(&image)?;
        std::fs::remove_file(image)?;
        case.ask()?;
        if round == 2 {
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes)?;
            ensure!(bytes == pattern(0, 5000), "the peer outside got {} bytes before the end", bytes.len());
        }
    }
    case.finish(root)
}

/// A client of somebody outside, who sends a word.
fn closing(stage: Stage) {
    let mut connection = TcpStream::connect(stage.arguments[0].as_str()).unwrap();
    stage.serve(move |_| {
        let mut word = String::new();
        connection.read_to_string(&mut word).map_err(told)?;
        verify!(word == "the last word", "before the end came {word:?}");
        Ok(())
    });
}

/// With `--tcp close` the program finds the connection closed, after what had come.
fn closed_on_demand() -> Outcome {
    let mut case = Case::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?.to_string();
    let mut root = spawn(&mut case.fixture("closing", &[&at])?)?;
    let (mut peer, _) = listener.accept()?;
    peer.write_all(b"the last word")?;
    case.wait_ready("closing", root)?;
    if !case.is_control() {
        let image = case.dump_with(root, &["--tcp", "close"])?;
        root = case.restore(&image)?;
        case.ask()?;
        std::fs::remove_file(image)?;
    }
    case.finish(root)
}
