//! Who is at the other end of a unix socket: credentials of peers and of messages; peers outside of the tree.

use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::harness::case::{Case, text as path_text, two_rounds, two_rounds_with};
use crate::harness::{Outcome, Topic, ensure, is_root, need_root};
use crate::stage::kernel::{check, fork, put, take};
use crate::stage::messages::{Received, pair, receive, send, set_option};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "peers",
    fixtures: &[
        ("signed", signed),
        ("peer-credentials", peer_credentials),
        ("signed-log", signed_log),
        ("ended-sender", ended_sender),
        ("log-writer", log_writer),
        ("outside-stream", outside_stream),
        ("outside-pair", outside_pair),
    ],
    cases: &[
        ("credentials_in_a_stream", || two_rounds_with("signed", &["1"])),
        ("credentials_in_datagrams", || two_rounds_with("signed", &["2"])),
        ("credentials_in_packets", || two_rounds_with("signed", &["5"])),
        ("credentials_in_datagrams_to_a_path", || two_rounds("signed-log")),
        ("credentials_of_a_sender_that_has_ended", sender_ended),
        ("credentials_of_other_users", other_users),
        ("credentials_of_the_peer", || two_rounds("peer-credentials")),
        ("credentials_of_peers_of_other_users", peers_of_other_users),
        ("a_log_outside_is_written_on", log_outside),
        ("a_log_outside_that_is_gone", log_gone),
        ("a_stream_to_the_outside", stream_outside),
        ("datagrams_to_a_nameless_peer_outside", pair_outside),
        ("connections_from_outside_that_wait", waiting_from_outside),
    ],
};

const SO_PASSPIDFD: i32 = 76;
const SO_PEERPIDFD: i32 = 77;

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn own_credentials() -> [u32; 3] {
    // SAFETY: these have no arguments and can't fail.
    unsafe { [libc::getpid().cast_unsigned(), libc::getuid(), libc::getgid()] }
}

/// Becomes another user with groups of its own; nothing for an ordinary user.
fn become_other(user: u32) {
    if !is_root() {
        return;
    }
    // SAFETY: plain numbers, and a live list.
    unsafe {
        check(libc::setgroups(2, [user + 1, user + 2].as_ptr())).unwrap();
        check(libc::setresgid(user, user, user)).unwrap();
        check(libc::setresuid(user, user, user)).unwrap();
    }
}

/// The process that a pidfd stands for.
fn process_of(pidfd: &OwnedFd) -> u32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pid.and_then(|pid| pid.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

/// Messages of this process and of a child that tell who has sent them, with descriptors and without. With a second
/// argument the child is another user.
fn signed(stage: Stage) {
    let socket_type: i32 = stage.arguments[0].parse().unwrap();
    let [one, two] = pair(socket_type);
    set_option(&two, libc::SO_PASSCRED, 1).unwrap();
    let has_pidfds = set_option(&two, SO_PASSPIDFD, 1).is_ok();
    let [go, told] = pair(libc::SOCK_STREAM);
    let user = stage.arguments.get(1).map(|_| 1234);
    let senders = one.try_clone().unwrap();
    let child = fork(move || {
        user.into_iter().for_each(become_other);
        while take(told.as_raw_fd(), 1).is_ok_and(|word| word == b"g") {
            send(&senders, b"child", &[], None).unwrap();
            send(&senders, b"with", &[told.as_raw_fd()], None).unwrap();
            put(told.as_raw_fd(), b"d").unwrap();
        }
        1
    });
    let load = move || {
        send(&one, b"mine", &[], None).unwrap();
        put(go.as_raw_fd(), b"g").unwrap();
        assert_eq!(take(go.as_raw_fd(), 1).unwrap(), b"d");
        send(&one, b"last", &[], Some(own_credentials())).unwrap();
    };
    load();
    stage.serve(move |_| {
        let [_, own_user, own_group] = own_credentials();
        let of_child = match user.filter(|_| is_root()) {
            Some(user) => [child.cast_unsigned(), user, user],
            None => [child.cast_unsigned(), own_user, own_group],
        };
        let wanted: [(&[u8], [u32; 3], usize); 4] = [
            (b"mine", own_credentials(), 0),
            (b"child", of_child, 0),
            (b"with", of_child, 1),
            (b"last", own_credentials(), 0),
        ];
        for (bytes, credentials, count) in wanted {
            let message = receive(&two, 5).map_err(text)?;
            signed_by(&message, bytes, credentials, has_pidfds)?;
            verify!(message.descriptors.len() == count, "{count} descriptors: {message:?}");
        }
        load();
        Ok(())
    });
}

fn signed_by(message: &Received, bytes: &[u8], credentials: [u32; 3], has_pidfd: bool) -> Verdict {
    let Received { bytes: has, credentials: found, pidfd, .. } = message;
    verify!(has == bytes, "{:?} came, not {:?}", has.escape_ascii(), bytes.escape_ascii());
    verify!(*found == Some(credentials), "{:?}: {found:?}, not {credentials:?}", bytes.escape_ascii());
    let process = pidfd.as_ref().map(process_of);
    verify!(!has_pidfd || process == Some(credentials[0]), "the pidfd of {credentials:?}: {process:?}");
    Ok(())
}

fn other_users() -> Outcome {
    need_root()?;
    two_rounds_with("signed", &["5", "other"])?;
    two_rounds_with("signed", &["2", "other"])
}

/// As a service does that collects log messages: datagrams of several processes to a path, some from sockets with names.
fn signed_log(stage: Stage) {
    let path = stage.path("log");
    let log = UnixDatagram::bind(&path).unwrap();
    let log = OwnedFd::from(log);
    set_option(&log, libc::SO_PASSCRED, 1).unwrap();
    let [go, told] = pair(libc::SOCK_STREAM);
    let name = stage.path("writer");
    let (to, from) = (path.clone(), name.clone());
    let child = fork(move || {
        let writer = UnixDatagram::bind(&from).unwrap();
        while take(told.as_raw_fd(), 1).is_ok_and(|word| word == b"g") {
            writer.send_to(b"child", &to).unwrap();
            put(told.as_raw_fd(), b"d").unwrap();
        }
        1
    });
    let load = move || {
        UnixDatagram::unbound().unwrap().send_to(b"mine", &path).unwrap();
        put(go.as_raw_fd(), b"g").unwrap();
        assert_eq!(take(go.as_raw_fd(), 1).unwrap(), b"d");
    };
    load();
    stage.serve(move |_| {
        let [_, user, group] = own_credentials();
        signed_by(&receive(&log, 10).map_err(text)?, b"mine", own_credentials(), false)?;
        // Its name is looked at, then it is received.
        let log_by_name = UnixDatagram::from(log.try_clone().map_err(text)?);
        let sender = peek_sender(&log_by_name)?;
        verify!(sender.as_deref() == Some(&*name), "the message is from {sender:?}");
        let message = receive(&log, 10).map_err(text)?;
        signed_by(&message, b"child", [child.cast_unsigned(), user, group], false)?;
        load();
        Ok(())
    });
}

/// The name of the socket that has sent the next message.
fn peek_sender(socket: &UnixDatagram) -> Result<Option<std::path::PathBuf>, String> {
    let mut address = [0_u8; 128];
    let mut length = 128_u32;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the places are live and have these lengths.
    let count = unsafe {
        let place = address.as_mut_ptr().cast();
        libc::recvfrom(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags, place, &raw mut length)
    };
    check(count).map_err(text)?;
    let path = address.get(2..length as usize).unwrap_or_default().split(|&byte| byte == 0).next();
    let path = path.filter(|path| !path.is_empty());
    Ok(path.map(|path| std::str::from_utf8(path).unwrap_or_default().into()))
}

/// Messages of a child that has ended since.
fn ended_sender(stage: Stage) {
    let [one, two] = pair(libc::SOCK_SEQPACKET);
    set_option(&two, libc::SO_PASSCRED, 1).unwrap();
    let child = fork(|| i32::from(send(&one, b"last words", &[one.as_raw_fd()], None).is_err()));
    assert_eq!(crate::stage::kernel::wait(child).unwrap(), 0);
    stage.serve_except(&["fd "], move |number| {
        if number == 1 {
            return Ok(());
        }
        let message = receive(&two, 100).map_err(text)?;
        verify!(message.bytes == b"last words" && message.descriptors.len() == 1, "{message:?}");
        Ok(())
    });
}

fn sender_ended() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("ended-sender", &[])?;
    case.ask()?;
    let image = case.dump(root)?;
    let ran = case.vckpt(&["restore", path_text(&image), "--detach"])?.good()?;
    let line = "1 messages have lost their sender's credentials";
    ensure!(ran.stderr.contains(line), "{}", ran.describe());
    let root = ran.stdout.trim().parse()?;
    case.ask()?;
    case.finish(root)
}

/// `SO_PEERCRED`, `SO_PEERGROUPS` and the process of `SO_PEERPIDFD`.
fn peer(socket: &impl std::os::fd::AsRawFd) -> ([u32; 3], Vec<u32>, u32) {
    let get = |name: i32, room: usize| {
        let mut value = vec![0_u32; room];
        let mut length = u32::try_from(room * 4).unwrap();
        let place = value.as_mut_ptr().cast();
        // SAFETY: a live place of this length.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut length) };
        value.truncate(if result < 0 { 0 } else { length as usize / 4 });
        value
    };
    let credentials = get(libc::SO_PEERCRED, 3).try_into().unwrap();
    // SAFETY: a descriptor that nobody else knows.
    let pidfd =
        get(SO_PEERPIDFD, 1).first().map(|number| unsafe { OwnedFd::from_raw_fd(number.cast_signed()) });
    (credentials, get(libc::SO_PEERGROUPS, 64), pidfd.as_ref().map_or(0, process_of))
}

/// Pairs, listeners, and both ends of connections, made by this process and by a child, which is another user if there
/// is an argument.
fn peer_credentials(stage: Stage) {
    let user = stage.arguments.first().map(|_| 1234);
    let path = stage.path("listener");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let [to_parent, to_child] = pair(libc::SOCK_STREAM);
    let childs_name = stage.path("of-the-child");
    let childs_listener = UnixListener::bind(&childs_name).unwrap();
    let listens = childs_listener.as_raw_fd();
    let connect_to = path.clone();
    let child = fork(move || {
        user.into_iter().for_each(become_other);
        let [one, other] = pair(libc::SOCK_SEQPACKET);
        let stream = UnixStream::connect(&connect_to).unwrap();
        // Listening once more makes it this process that listens.
        // SAFETY: plain numbers.
        unsafe { libc::listen(listens, 5) };
        let all = [&one, &other].map(|end| end.as_raw_fd());
        send(&to_child, b"made", &[all[0], all[1], stream.as_raw_fd()], None).unwrap();
        drop((one, other));
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    });
    let mut polled = libc::pollfd { fd: to_parent.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut polled, 1, 20_000) };
    let made = receive(&to_parent, 10).unwrap().descriptors;
    let accepted = listener.accept().unwrap().0;
    let own = pair(libc::SOCK_STREAM);
    let mine = UnixStream::connect(&path).unwrap();
    let mine_accepted = listener.accept().unwrap().0;
    let at_childs = UnixStream::connect(&childs_name).unwrap();
    let at_childs_accepted = childs_listener.accept().unwrap().0;
    let [widow, husband] = pair(libc::SOCK_STREAM);
    drop(husband);
    let waiting = UnixStream::connect(&path).unwrap();
    let collect = move || {
        let mut all = vec![peer(&listener), peer(&childs_listener), peer(&accepted), peer(&mine)];
        all.extend([&mine_accepted, &at_childs, &at_childs_accepted, &waiting].map(peer));
        all.extend(made.iter().chain(&own).chain([&widow]).map(peer));
        all
    };
    let before = collect();
    let mine = own_credentials()[0];
    assert_eq!(before[0].0[0], mine);
    assert_eq!(before[1].0[0], child.cast_unsigned());
    assert_eq!(before[2].0[0], child.cast_unsigned());
    assert_eq!(before[8].0[0], child.cast_unsigned());
    stage.serve(move |_| {
        let mut now = collect();
        let mut before = before.clone();
        if !is_root() {
            // An ordinary user is restored in a user namespace, which may not set groups.
            now.iter_mut().chain(&mut before).for_each(|(_, groups, _)| groups.clear());
        }
        for (number, (now, before)) in now.iter().zip(before).enumerate() {
            verify!(*now == before, "socket {number} tells {now:?}, not {before:?}");
        }
        Ok(())
    });
}

fn peers_of_other_users() -> Outcome {
    need_root()?;
    two_rounds_with("peer-credentials", &["other"])
}

/// A datagram socket that is connected with one outside, as for log messages.
fn log_writer(stage: Stage) {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(stage.path("log")).unwrap();
    let gone = stage.path("gone");
    stage.serve(move |number| {
        let sent = socket.send(format!("line {number}").as_bytes());
        let sent = sent.map(drop).map_err(|error| format!("{:?}", error.kind()));
        let wanted = if gone.exists() { Err("ConnectionRefused".to_owned()) } else { Ok(()) };
        verify!(sent == wanted, "sending gives {sent:?}");
        Ok(())
    });
}

fn bind_log(case: &Case) -> Outcome<UnixDatagram> {
    let _ = fs::remove_file(case.path("log"));
    let log = UnixDatagram::bind(case.path("log"))?;
    log.set_nonblocking(true)?;
    Ok(log)
}

/// The service that receives goes on while the program is away; then another one has taken its place.
fn log_outside() -> Outcome {
    let mut case = Case::new()?;
    let mut log = bind_log(&case)?;
    let mut root = case.start("log-writer", &[])?;
    case.ask()?;
    let mut line = [0; 20];
    log.recv(&mut line)?;
    ensure!(line.starts_with(b"line 1"), "line 1: {line:?}");
    for number in 2..4 {
        let image = case.dump(root)?;
        if number == 3 {
            log = bind_log(&case)?;
        }
        root = case.restore(&image)?;
        case.ask()?;
        log.recv(&mut line)?;
        ensure!(line.starts_with(format!("line {number}").as_bytes()), "line {number}: {line:?}");
    }
    case.finish(root)
}

/// If nobody receives any more, the restore is refused before anything is made; with `--external close` the program
/// finds its peer closed.
fn log_gone() -> Outcome {
    let mut case = Case::new()?;
    let log = bind_log(&case)?;
    let root = case.start("log-writer", &[])?;
    let image = case.dump(root)?;
    drop(log);
    let ran = case.vckpt(&["restore", path_text(&image), "--detach"])?;
    ran.refused(&[5])?;
    ensure!(ran.stderr.contains("VC-NET-004") && ran.stderr.contains("/log"), "{}", ran.describe());
    let log = bind_log(&case)?;
    let root = case.restore(&image)?;
    case.ask()?;
    let closing = case.dump_with(root, &["--external", "close"])?;
    drop(log);
    let ran = case.vckpt(&["restore", path_text(&closing), "--detach"])?.good()?;
    ensure!(ran.stderr.contains("finds its peer closed"), "{}", ran.describe());
    let root: i32 = ran.stdout.trim().parse()?;
    fs::write(case.path("gone"), "")?;
    case.ask()?;
    case.finish(root)
}

/// A stream whose other end is the harness, with data that waits.
fn outside_stream(stage: Stage) {
    let stream = OwnedFd::from(UnixStream::connect(stage.path("server")).unwrap());
    let mut is_open = true;
    let folder = stage.folder.clone();
    stage.serve(move |_| {
        if !folder.join("closed").exists() {
            put(stream.as_raw_fd(), b"still there").map_err(text)?;
            return Ok(());
        }
        if std::mem::take(&mut is_open) {
            let last = take(stream.as_raw_fd(), 100).map_err(text)?;
            verify!(last == b"last words", "what waited became {last:?}");
        }
        verify!(take(stream.as_raw_fd(), 100).map_err(text)?.is_empty(), "the stream does not end");
        let error = send(&stream, b"x", &[], None).map_err(|error| error.raw_os_error());
        verify!(error == Err(Some(libc::EPIPE)), "sending gives {error:?}");
        Ok(())
    });
}

/// It is refused by name, unless it is given up: then the program finds it closed, behind what waited.
fn stream_outside() -> Outcome {
    let mut case = Case::new()?;
    let listener = UnixListener::bind(case.path("server"))?;
    let mut root = case.start("outside-stream", &[])?;
    let server = listener.accept()?.0;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", path_text(&image)])?;
    ran.refused(&[3])?;
    let names = ["VC-NET-001", "/server", "outside", "--external close"];
    ensure!(names.iter().all(|name| ran.stderr.contains(name)), "{}", ran.describe());
    case.ask()?;
    put(server.as_raw_fd(), b"last words")?;
    fs::write(case.path("closed"), "")?;
    for round in 0..2 {
        let image = case.dump_with(root, if round == 0 { &["--external", "close"] } else { &[] })?;
        let ran = case.vckpt(&["show", path_text(&image)])?.good()?;
        ensure!(round > 0 || ran.stdout.contains("finds it closed"), "{}", ran.describe());
        root = case.restore(&image)?;
        case.ask()?;
    }
    case.finish(root)
}

/// A datagram socket whose nameless other end is in a process outside.
fn outside_pair(stage: Stage) {
    // SAFETY: the harness has left it there.
    let socket = unsafe { OwnedFd::from_raw_fd(200) };
    stage.serve(move |number| {
        let error = send(&socket, b"x", &[], None).map_err(|error| error.raw_os_error());
        // Whoever has been refused once is not connected any more.
        let wanted = if number == 1 { libc::ECONNREFUSED } else { libc::ENOTCONN };
        verify!(error == Err(Some(wanted)), "sending gives {error:?}");
        Ok(())
    });
}

fn pair_outside() -> Outcome {
    let mut case = Case::new()?;
    let [one, other] = pair(libc::SOCK_DGRAM);
    let mut command = case.fixture("outside-pair", &[])?;
    let number = other.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            check(libc::dup2(number, 200)).map(drop)
        });
    }
    let mut root = crate::harness::process::spawn(&mut command)?;
    case.wait_ready("outside-pair", root)?;
    drop(other);
    let image = case.path("refused.vckpt");
    case.vckpt(&["dump", &root.to_string(), "-o", path_text(&image)])?.refused(&[3])?;
    for options in [&["--external", "close"][..], &[]] {
        let image = case.dump_with(root, options)?;
        root = case.restore(&image)?;
        case.ask()?;
    }
    drop(one);
    case.finish(root)
}

/// A connection of the harness that waits at a listener of the tree.
fn waiting_from_outside() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("listeners", &[])?;
    let client = UnixStream::connect(case.path("socket"))?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", path_text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("wait to be accepted"), "{}", ran.describe());
    let image = case.dump_with(root, &["--external", "close"])?;
    drop(client);
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}
