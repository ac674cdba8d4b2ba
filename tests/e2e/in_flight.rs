//! Descriptors that travel in unix sockets: of which the program has the description too, and which only a queue has.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::harness::case::{Case, text as path_text, two_rounds, two_rounds_with};
use crate::harness::{Outcome, Topic, ensure, process};
use crate::stage::kernel::{check, fork, pipe, put, ready, take};
use crate::stage::messages::{option, pair, receive, same, send, set_option};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "in_flight",
    fixtures: &[
        ("travel", travel),
        ("cycles", cycles),
        ("travelling-events", events),
        ("borders", borders),
        ("many-at-once", many),
        ("closed-senders", closed_senders),
        ("between-two", between_two),
        ("not-accepted", not_accepted),
    ],
    cases: &[
        ("in_a_stream", || two_rounds_with("travel", &["1"])),
        ("in_datagrams", || two_rounds_with("travel", &["2"])),
        ("in_packets", || two_rounds_with("travel", &["5"])),
        ("sockets_in_circles", || two_rounds("cycles")),
        ("event_descriptors", || two_rounds("travelling-events")),
        ("as_many_as_a_message_holds", || two_rounds("many-at-once")),
        ("borders_in_a_stream", || two_rounds("borders")),
        ("senders_that_are_closed", || two_rounds("closed-senders")),
        ("between_processes", || two_rounds("between-two")),
        ("left_running_nothing_is_taken", left_running),
        ("killed_while_looking", killed),
        ("in_a_connection_not_accepted_yet", never_accepted),
    ],
};

/// Turns an I/O error into the text of a verification.
fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// A file, a pipe, sockets and an eventfd in the queue of a socket of the type that the argument says.
fn travel(stage: Stage) {
    let socket_type: i32 = stage.arguments[0].parse().unwrap();
    let [one, two] = pair(socket_type);
    let path = stage.path("file");
    std::fs::write(&path, "0123456789").unwrap();
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(3)).unwrap();
    let [reader, writer] = pipe(libc::O_CLOEXEC);
    // SAFETY: descriptors that nobody else knows.
    let (mut reader, writer) = unsafe { (Some(OwnedFd::from_raw_fd(reader)), OwnedFd::from_raw_fd(writer)) };
    let mut ends = Some(pair(libc::SOCK_STREAM));
    put(ends.as_ref().unwrap()[0].as_raw_fd(), b"in the inner socket").unwrap();
    put(writer.as_raw_fd(), b"in the pipe").unwrap();
    let mut load = move |reader: OwnedFd, ends: [OwnedFd; 2]| {
        send(&one, b"first", &[file.as_raw_fd()], None).unwrap();
        send(&one, b"plain", &[], None).unwrap();
        send(&one, b"pipe", &[reader.as_raw_fd()], None).unwrap();
        let number = unsafe { libc::eventfd(7, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let event = unsafe { OwnedFd::from_raw_fd(check(number).unwrap()) };
        send(&one, b"three", &[ends[0].as_raw_fd(), ends[1].as_raw_fd(), event.as_raw_fd()], None).unwrap();
        send(&one, b"last", &[], None).unwrap();
        let at = file.stream_position().unwrap();
        (file.as_raw_fd(), at)
    };
    let known = load(reader.take().unwrap(), ends.take().unwrap());
    let file = known.0;
    stage.serve(move |_| {
        let options = [libc::SO_PEEK_OFF, libc::SO_PASSCRED, libc::SO_OOBINLINE];
        let options = options.map(|name| option(&two, name));
        verify!(options == [-1, 0, 0], "options of the socket: {options:?}");
        let mut messages = Vec::new();
        for wanted in [&b"first"[..], b"plain", b"pipe", b"three", b"last"] {
            let message = receive(&two, wanted.len()).map_err(text)?;
            verify!(message.bytes == wanted, "{:?} came, not {wanted:?}", message.bytes);
            messages.push(message.descriptors);
        }
        let counts: Vec<usize> = messages.iter().map(Vec::len).collect();
        verify!(counts == [1, 0, 1, 3, 0], "numbers of descriptors: {counts:?}");
        verify!(receive(&two, 10).is_err(), "more waits than was sent");
        verify!(same(messages[0][0].as_raw_fd(), file), "the file is another description");
        let pipe = messages[2].pop().unwrap();
        let found = take(pipe.as_raw_fd(), 100).map_err(text)?;
        verify!(found == b"in the pipe", "the pipe held {found:?}");
        put(writer.as_raw_fd(), b"in the pipe").map_err(text)?;
        let event = messages[3].pop().unwrap();
        let count = take(event.as_raw_fd(), 8).map_err(text)?;
        verify!(count == 7_u64.to_ne_bytes(), "the eventfd counts {count:?}");
        let inner: [OwnedFd; 2] = std::mem::take(&mut messages[3]).try_into().unwrap();
        let found = take(inner[1].as_raw_fd(), 100).map_err(text)?;
        verify!(found == b"in the inner socket", "the inner socket held {found:?}");
        put(inner[0].as_raw_fd(), b"in the inner socket").map_err(text)?;
        load(pipe, inner);
        Ok(())
    });
}

/// A socket that waits in its own queue, two that wait in each other's, one that waits in one that waits, and a listener.
fn cycles(stage: Stage) {
    let [own, feeder] = pair(libc::SOCK_STREAM);
    let [one, to_one] = pair(libc::SOCK_SEQPACKET);
    let [two, to_two] = pair(libc::SOCK_DGRAM);
    let listener = UnixListener::bind(stage.path("travels")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let path = stage.path("travels");
    send(&feeder, b"myself", &[own.as_raw_fd()], None).unwrap();
    send(&to_one, b"two", &[two.as_raw_fd()], None).unwrap();
    send(&to_two, b"one", &[one.as_raw_fd()], None).unwrap();
    let [outer, to_outer] = pair(libc::SOCK_STREAM);
    let [inner, to_inner] = pair(libc::SOCK_STREAM);
    send(&to_inner, b"listener", &[listener.as_raw_fd()], None).unwrap();
    send(&to_outer, b"inner", &[inner.as_raw_fd()], None).unwrap();
    // The second can only be had from the first, and what it holds only from it.
    drop((two, inner, listener));
    stage.serve(move |_| {
        let message = receive(&own, 100).map_err(text)?;
        let itself =
            message.descriptors.first().is_some_and(|found| same(found.as_raw_fd(), own.as_raw_fd()));
        verify!(message.bytes == b"myself" && itself, "a socket in its own queue: {message:?}");
        send(&feeder, b"myself", &[own.as_raw_fd()], None).map_err(text)?;

        let mut message = receive(&one, 100).map_err(text)?;
        verify!(message.bytes == b"two" && message.descriptors.len() == 1, "the first circle: {message:?}");
        let two = message.descriptors.pop().unwrap();
        let message = receive(&two, 100).map_err(text)?;
        let closes =
            message.descriptors.first().is_some_and(|found| same(found.as_raw_fd(), one.as_raw_fd()));
        verify!(message.bytes == b"one" && closes, "the circle is not closed: {message:?}");
        send(&to_one, b"two", &[two.as_raw_fd()], None).map_err(text)?;
        send(&to_two, b"one", &[one.as_raw_fd()], None).map_err(text)?;

        let mut message = receive(&outer, 100).map_err(text)?;
        verify!(message.bytes == b"inner" && message.descriptors.len() == 1, "the outer: {message:?}");
        let inner = message.descriptors.pop().unwrap();
        let mut message = receive(&inner, 100).map_err(text)?;
        verify!(message.bytes == b"listener" && message.descriptors.len() == 1, "the inner: {message:?}");
        let listener = UnixListener::from(message.descriptors.pop().unwrap());
        let client = UnixStream::connect(&path).map_err(text)?;
        let server = listener.accept().map_err(text)?.0;
        put(client.as_raw_fd(), b"hello").map_err(text)?;
        verify!(take(server.as_raw_fd(), 10).map_err(text)? == b"hello", "the listener that travelled");
        send(&to_inner, b"listener", &[listener.as_raw_fd()], None).map_err(text)?;
        send(&to_outer, b"inner", &[inner.as_raw_fd()], None).map_err(text)?;
        Ok(())
    });
}

/// Sets, timers and watches that only a queue has.
fn events(stage: Stage) {
    let [one, two] = pair(libc::SOCK_STREAM);
    let [watched, feeder] = pair(libc::SOCK_STREAM);
    let own = |number: i32| unsafe { OwnedFd::from_raw_fd(check(number).unwrap()) };
    let path = stage.path("watched");
    std::fs::write(&path, "").unwrap();
    let make = {
        let (path, watched) = (std::ffi::CString::new(path.to_str().unwrap()).unwrap(), watched.as_raw_fd());
        move || {
            let set = own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
            let number = set.as_raw_fd();
            check(unsafe { libc::epoll_ctl(number, libc::EPOLL_CTL_ADD, watched, &raw mut event) }).unwrap();
            // One that the set alone knows, and the queue.
            let lonely = own(unsafe { libc::eventfd(1, libc::EFD_CLOEXEC) });
            event.u64 = 78;
            let added = lonely.as_raw_fd();
            check(unsafe { libc::epoll_ctl(number, libc::EPOLL_CTL_ADD, added, &raw mut event) }).unwrap();
            let timer = own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) });
            let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let value = libc::timespec { tv_sec: 1000, tv_nsec: 0 };
            let time = libc::itimerspec { it_interval: zero, it_value: value };
            check(unsafe {
                libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const time, std::ptr::null_mut())
            })
            .unwrap();
            let watches = own(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) });
            check(unsafe { libc::inotify_add_watch(watches.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY) })
                .unwrap();
            let locked = File::open(std::path::Path::new(path.to_str().unwrap())).unwrap();
            check(unsafe { libc::flock(locked.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).unwrap();
            let all = [&set, &lonely, &timer, &watches].map(|file| file.as_raw_fd());
            let all = [&all[..], &[locked.as_raw_fd()]].concat();
            send(&one, b"events", &all, None).unwrap();
        }
    };
    make();
    stage.serve(move |_| {
        let message = receive(&two, 100).map_err(text)?;
        let [set, lonely, timer, watches, locked] = &message.descriptors[..] else {
            return Err(format!("{} descriptors came", message.descriptors.len()));
        };
        verify!(ready(set.as_raw_fd()) == [78], "the set tells {:?}", ready(set.as_raw_fd()));
        put(feeder.as_raw_fd(), b"x").map_err(text)?;
        verify!(ready(set.as_raw_fd()) == [77, 78], "the set tells {:?}", ready(set.as_raw_fd()));
        // Nobody else has the other end, so it is taken where the set looks.
        take(lonely.as_raw_fd(), 8).map_err(text)?;
        verify!(ready(set.as_raw_fd()) == [77], "the set tells {:?}", ready(set.as_raw_fd()));
        let mut left: libc::itimerspec = unsafe { std::mem::zeroed() };
        check(unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &raw mut left) }).map_err(text)?;
        let seconds = left.it_value.tv_sec;
        verify!((900..=1000).contains(&seconds), "the timer has {seconds} s left");
        File::options().append(true).open(&path).unwrap().write_all(b"x").map_err(text)?;
        let event = take(watches.as_raw_fd(), 100).map_err(text)?;
        verify!(event.len() == 16, "the watch tells {event:?}");
        let other = File::open(&path).map_err(text)?;
        let result = unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        verify!(result < 0, "the file that travelled is not locked");
        check(unsafe { libc::flock(locked.as_raw_fd(), libc::LOCK_UN) }).map_err(text)?;
        let result = unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        verify!(result == 0, "the lock is another's than that of the file that travelled");
        drop((message, other));
        take(watched.as_raw_fd(), 10).map_err(text)?;
        make();
        Ok(())
    });
}

/// Bytes of a stream before, between and behind descriptors: read one by one they bring the descriptors with the right
/// byte.
fn borders(stage: Stage) {
    let [one, two] = pair(libc::SOCK_STREAM);
    let [reader, writer] = pipe(libc::O_CLOEXEC);
    set_option(&one, libc::SO_SNDBUF, 400_000).unwrap();
    let long = vec![b'l'; 100_001];
    let load = {
        let long = long.clone();
        move || {
            send(&one, b"abc", &[], None).unwrap();
            send(&one, b"de", &[reader], None).unwrap();
            send(&one, b"f", &[writer], None).unwrap();
            send(&one, b"gh", &[], None).unwrap();
            send(&one, &long, &[], None).unwrap();
            send(&one, &long, &[reader, writer], None).unwrap();
            send(&one, b"z", &[], None).unwrap();
        }
    };
    load();
    stage.serve(move |_| {
        for (byte, count) in [(b'a', 0), (b'b', 0), (b'c', 0), (b'd', 1), (b'e', 0), (b'f', 1), (b'g', 0)] {
            let message = receive(&two, 1).map_err(text)?;
            verify!(message.bytes == [byte], "{:?} came, not {:?}", message.bytes, char::from(byte));
            let found = message.descriptors.len();
            verify!(found == count, "{found} descriptors came with {:?}, not {count}", char::from(byte));
        }
        let (mut length, mut with) = (0, Vec::new());
        while length < 200_004 {
            let message = receive(&two, 1000).map_err(text)?;
            if !message.descriptors.is_empty() {
                with.push((length, message.descriptors.len()));
            }
            length += message.bytes.len();
        }
        verify!(length == 200_004, "{length} bytes came");
        // A read that reaches the bytes with which they came brings them.
        let [(at, 2)] = with[..] else { return Err(format!("descriptors came at {with:?}")) };
        verify!((99_003..=100_002).contains(&at), "descriptors came at {at}");
        load();
        Ok(())
    });
}

/// Messages with 253 descriptors, the most that the kernel allows, with and without credentials.
fn many(stage: Stage) {
    let [reader, writer] = pipe(libc::O_CLOEXEC);
    let all: Vec<i32> = (0..253).map(|number| if number % 3 == 0 { writer } else { reader }).collect();
    let pairs = [(1, 0), (5, 1), (2, 0), (1, 1)].map(|(socket_type, signed): (i32, i32)| {
        let [one, other] = pair(socket_type);
        set_option(&other, libc::SO_PASSCRED, signed).unwrap();
        send(&one, b"many", &all, None).unwrap();
        (one, other)
    });
    stage.serve(move |_| {
        for (one, other) in &pairs {
            let message = receive(other, 100).map_err(text)?;
            let found = message.descriptors.iter().zip(&all);
            let right = found.filter(|(found, wanted)| same(found.as_raw_fd(), **wanted)).count();
            let count = message.descriptors.len();
            verify!(
                (count, right) == (253, 253),
                "{count} descriptors came, {right} of them are the right ones"
            );
            drop(message);
            send(one, b"many", &all, None).map_err(text)?;
        }
        Ok(())
    });
}

/// What was sent before the sender was closed or shut down, descriptors and an empty packet among it.
fn closed_senders(stage: Stage) {
    let [reader, writer] = pipe(libc::O_CLOEXEC);
    let load = move || {
        let mut left = Vec::new();
        for (socket_type, is_closed) in
            [(1, true), (5, true), (2, true), (1, false), (5, false)] as [(i32, bool); 5]
        {
            let [receiver, sender] = pair(socket_type);
            send(&sender, b"one", &[reader], None).unwrap();
            if socket_type == libc::SOCK_SEQPACKET {
                send(&sender, b"", &[], None).unwrap();
            }
            send(&sender, b"two", &[writer, reader], None).unwrap();
            if !is_closed {
                check(unsafe { libc::shutdown(sender.as_raw_fd(), libc::SHUT_WR) }).unwrap();
            }
            left.push((receiver, (!is_closed).then_some(sender), socket_type));
        }
        left
    };
    let mut left = load();
    stage.serve_except(&["fd "], move |_| {
        for (receiver, sender, socket_type) in &left {
            let first = receive(receiver, 3).map_err(text)?;
            verify!(first.bytes == b"one" && first.descriptors.len() == 1, "{socket_type}: {first:?}");
            verify!(same(first.descriptors[0].as_raw_fd(), reader), "{socket_type}: another pipe");
            if *socket_type == libc::SOCK_SEQPACKET {
                let empty = receive(receiver, 3).map_err(text)?;
                verify!(empty.bytes.is_empty(), "{socket_type}: the empty packet became {empty:?}");
            }
            let second = receive(receiver, 3).map_err(text)?;
            verify!(second.bytes == b"two" && second.descriptors.len() == 2, "{socket_type}: {second:?}");
            let end = receive(receiver, 3);
            if *socket_type == libc::SOCK_DGRAM {
                verify!(end.is_err(), "{socket_type}: more came: {end:?}");
                let error = send(receiver, b"x", &[], None).map_err(|error| error.raw_os_error());
                verify!(error == Err(Some(libc::ECONNREFUSED)), "{socket_type}: sending gives {error:?}");
            } else {
                verify!(end.is_ok_and(|end| end.bytes.is_empty()), "{socket_type}: it does not end");
            }
            if let Some(sender) = sender {
                send(receiver, b"back", &[], None).map_err(text)?;
                verify!(receive(sender, 10).map_err(text)?.bytes == b"back", "{socket_type}: the other way");
            }
        }
        left = load();
        Ok(())
    });
}

/// A descriptor on its way from a child to its parent, which the child has closed.
fn between_two(stage: Stage) {
    let [mine, theirs] = pair(libc::SOCK_STREAM);
    let path = stage.path("made-by-the-child");
    let child = fork(|| {
        let mut number = 0_u8;
        loop {
            let mut file = File::options().create(true).append(true).read(true).open(&path).unwrap();
            file.write_all(&[b'0' + number]).unwrap();
            send(&theirs, &[number], &[file.as_raw_fd()], None).unwrap();
            drop(file);
            number += 1;
            let mut answer = [0];
            let mut from = File::from(theirs.try_clone().unwrap());
            if from.read_exact(&mut answer).is_err() || answer != [number] {
                return 1;
            }
        }
    });
    drop(theirs);
    let mut number = 0_u8;
    wait_for(&mine);
    stage.serve(move |_| {
        let mut message = receive(&mine, 10).map_err(text)?;
        verify!(message.bytes == [number] && message.descriptors.len() == 1, "{message:?} is not {number}");
        let mut file = File::from(message.descriptors.pop().unwrap());
        let mut whole = String::new();
        file.rewind().map_err(text)?;
        file.read_to_string(&mut whole).map_err(text)?;
        verify!(whole.ends_with(char::from(b'0' + number)), "the file holds {whole:?}");
        number += 1;
        put(mine.as_raw_fd(), &[number]).map_err(text)?;
        wait_for(&mine);
        let mut status = 0;
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        verify!(ended == 0, "the child has ended with {status:#x}");
        Ok(())
    });
}

/// Waits until something can be received.
fn wait_for(socket: &OwnedFd) {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    assert_eq!(unsafe { libc::poll(&raw mut polled, 1, 20_000) }, 1);
}

/// Dumps that leave the program running take nothing, and leave the options of its sockets.
fn left_running() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("travel", &["5"])?;
    for _ in 0..2 {
        let image = case.dump_with(root, &["--leave-running"])?;
        std::fs::remove_file(image)?;
    }
    case.ask()?;
    let image = case.dump_with(root, &["--leave-running"])?;
    if !case.is_control() {
        let ran = case.vckpt(&["show", "--sockets", path_text(&image)])?.good()?;
        let line = ran.stdout.lines().find(|line| line.contains("/file"));
        let parts = ["u_seq", "REG ", "FIFO pipe:[", "unix ", "a_inode [eventfd"];
        ensure!(line.is_some_and(|line| parts.iter().all(|part| line.contains(part))), "{}", ran.describe());
    }
    std::fs::remove_file(image)?;
    case.ask()?;
    case.finish(root)
}

/// Whenever a dump is killed, what it has changed in the sockets is set back.
fn killed() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("travel", &["1"])?;
    let image = case.path("killed.vckpt");
    let pid = root.to_string();
    let arguments = ["dump", &pid, "-o", path_text(&image), "--leave-running", "--force"];
    let whole = case.vckpt(&arguments)?.good()?.took;
    let own = std::process::id().cast_signed();
    for part in 0..12 {
        let (supervisor, files) = case.start_vckpt(&arguments)?;
        // The moment itself is what is tested, so this is a pause and not a wait for something.
        std::thread::sleep(whole * part / 12);
        process::signal(supervisor, libc::SIGKILL)?;
        process::wait_exit(supervisor, Duration::from_secs(10))?;
        files.iter().for_each(|file| drop(std::fs::remove_file(file)));
        process::until("what the dump has left to end", Duration::from_secs(10), || {
            process::reap();
            (process::children(own) == [root]).then_some(())
        })?;
        case.ask()?;
    }
    for entry in std::fs::read_dir(&case.folder)?.flatten() {
        // A draft may be left by a kill between the last byte and the name.
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("killed.vckpt") || name.starts_with("killed") && name.ends_with(".partial") {
            std::fs::remove_file(entry.path())?;
        }
    }
    case.finish(root)
}

/// A connection with a descriptor in it that nobody accepts until it is asked to.
fn not_accepted(stage: Stage) {
    let path = stage.path("listener");
    let listener = UnixListener::bind(&path).unwrap();
    let [reader, _writer] = pipe(libc::O_CLOEXEC);
    let client = OwnedFd::from(UnixStream::connect(&path).unwrap());
    send(&client, b"with", &[reader], None).unwrap();
    stage.serve_except(&["fd "], move |_| {
        let server = OwnedFd::from(listener.accept().map_err(text)?.0);
        let message = receive(&server, 10).map_err(text)?;
        verify!(message.bytes == b"with" && message.descriptors.len() == 1, "{message:?}");
        Ok(())
    });
}

fn never_accepted() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("not-accepted", &[])?;
    let image = case.path("refused.vckpt");
    let ran = case.vckpt(&["dump", &root.to_string(), "-o", path_text(&image)])?;
    ran.refused(&[3])?;
    ensure!(ran.stderr.contains("not accepted yet"), "{}", ran.describe());
    case.ask()?;
    case.finish(root)
}
