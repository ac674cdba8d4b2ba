//! POSIX message queues: messages with priorities, queues with and without a name, somebody who waits for a message; and
//! System V queues and semaphores.

use std::ffi::CString;
use std::fs;

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "ipc",
    fixtures: &[("queues", queues), ("named-queue", named_queue), ("system-v", system_v), ("locker", locker)],
    cases: &[
        ("posix_message_queues", || two_rounds("queues")),
        ("named_posix_message_queue", named),
        ("semaphores_of_the_host_are_reported", semaphores_of_the_host),
        ("system_v_in_a_namespace", || need_root().and_then(|()| two_rounds("system-v"))),
    ],
};

/// Turns an I/O error into the text of a verification.
pub(crate) fn words(error: std::io::Error) -> String {
    error.to_string()
}

/// Opens a queue; with limits it is made.
pub(crate) fn open(name: &str, flags: i32, limits: Option<(i64, i64)>) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a name that ends with NUL, and valid attributes.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = limits.unwrap_or_default();
        let make = if limits.is_some() { libc::O_CREAT | libc::O_EXCL } else { 0 };
        check(libc::mq_open(name.as_ptr(), flags | make, 0o620, &raw mut attributes)).unwrap()
    }
}

pub(crate) fn unlink(name: &str) {
    let name = CString::new(name).unwrap();
    // SAFETY: a name that ends with NUL.
    check(unsafe { libc::mq_unlink(name.as_ptr()) }).unwrap();
}

pub(crate) fn send(queue: i32, message: &[u8], priority: u32) -> std::io::Result<i32> {
    // SAFETY: pointer and length are those of a slice.
    check(unsafe { libc::mq_send(queue, message.as_ptr().cast(), message.len(), priority) })
}

/// The next message with its priority.
pub(crate) fn receive(queue: i32, room: usize) -> std::io::Result<(Vec<u8>, u32)> {
    let mut buffer = vec![0_u8; room];
    let mut priority = 0_u32;
    // SAFETY: room for as many bytes, and a valid place.
    let count =
        check(unsafe { libc::mq_receive(queue, buffer.as_mut_ptr().cast(), room, &raw mut priority) })?;
    buffer.truncate(count as usize);
    Ok((buffer, priority))
}

/// Limits, flags and number of messages.
fn attributes(queue: i32) -> (i64, i64, i64, i64) {
    // SAFETY: a valid place.
    unsafe {
        let mut found: libc::mq_attr = std::mem::zeroed();
        check(libc::mq_getattr(queue, &raw mut found)).unwrap();
        (found.mq_maxmsg, found.mq_msgsize, found.mq_flags, found.mq_curmsgs)
    }
}

/// A name that no other test has.
pub(crate) fn own_name(stage: &Stage, name: &str) -> String {
    format!("/{}-{name}", stage.folder.file_name().unwrap().to_string_lossy())
}

fn queues(stage: Stage) {
    let [mixed, full, waited] = ["mixed", "full", "waited"].map(|name| own_name(&stage, name));
    let both = open(&mixed, libc::O_RDWR | libc::O_NONBLOCK, Some((8, 100)));
    let reader = open(&mixed, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC, None);
    let writer = open(&mixed, libc::O_WRONLY, None);
    let small = open(&full, libc::O_RDWR | libc::O_NONBLOCK, Some((2, 1)));
    let answers = open(&waited, libc::O_RDWR, Some((1, 16)));
    for name in [&mixed, &full, &waited] {
        unlink(name);
    }
    let messages: [(&[u8], u32); 6] =
        [(b"low", 0), (b"high", 32767), (b"", 5), (b"low too", 0), (&[9; 100], 5), (b"high too", 32767)];
    let load = move || {
        for (message, priority) in messages {
            send(writer, message, priority).unwrap();
        }
        send(small, b"a", 1).unwrap();
        send(small, b"b", 1).unwrap();
    };
    load();
    // A child waits for a message, and tells what came.
    let told = pipe(0);
    let child = fork(move || {
        loop {
            let Ok((message, priority)) = receive(answers, 16) else { return 1 };
            if put(told[1], &[&message[..], &[priority as u8]].concat()).is_err() {
                return 2;
            }
        }
    });
    let call = || fs::read_to_string(format!("/proc/{child}/syscall")).unwrap_or_default();
    while !call().starts_with("243 ") {
        std::thread::yield_now();
    }
    let mode = |queue: i32| {
        // SAFETY: an all-zero stat is one, and a valid place.
        unsafe {
            let mut found: libc::stat = std::mem::zeroed();
            check(libc::fstat(queue, &raw mut found)).unwrap();
            (found.st_mode & 0o7777, found.st_nlink)
        }
    };
    let before = ([both, reader, writer, small, answers].map(attributes), mode(both));
    stage.serve(move |round| {
        let now = ([both, reader, writer, small, answers].map(attributes), mode(both));
        verify!(now == before, "attributes: {before:?} became {now:?}");
        for (message, priority) in [
            (&b"high"[..], 32767),
            (b"high too", 32767),
            (b"", 5),
            (&[9; 100], 5),
            (b"low", 0),
            (b"low too", 0),
        ] {
            let found = receive(reader, 100).map_err(words)?;
            verify!(found == (message.to_vec(), priority), "{found:?} instead of {message:?} ({priority})");
        }
        let empty = receive(both, 100).err().and_then(|error| error.raw_os_error());
        verify!(empty == Some(libc::EAGAIN), "an empty queue gives {empty:?}");
        let refused = send(reader, b"x", 0).err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EBADF), "sending into what is open for reading: {refused:?}");
        let refused = send(small, b"x", 0).err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EAGAIN), "a full queue gives {refused:?}");
        for wanted in [b"a", b"b"] {
            verify!(receive(small, 1).map_err(words)? == (wanted.to_vec(), 1), "the full queue");
        }
        let text = format!("round {round}");
        send(answers, text.as_bytes(), round).map_err(words)?;
        let found = take(told[0], 32).map_err(words)?;
        verify!(found == [text.as_bytes(), &[round as u8]].concat(), "the child got {found:?}");
        load();
        Ok(())
    });
}

/// A queue that keeps its name, which is told to the case.
fn named_queue(stage: Stage) {
    let name = own_name(&stage, "named");
    let queue = open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some((4, 16)));
    send(queue, b"kept", 3).unwrap();
    stage.publish("name", &name);
    stage.serve(move |_| {
        let found = receive(queue, 16).map_err(words)?;
        verify!(found == (b"kept".to_vec(), 3), "{found:?} was in the queue");
        let other = open(&name, libc::O_WRONLY, None);
        send(other, b"kept", 3).map_err(words)?;
        // SAFETY: our own descriptor.
        unsafe { libc::close(other) };
        Ok(())
    });
}

fn named() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("named-queue", &[])?;
    let name = fs::read_to_string(case.path("name"))?;
    case.ask()?;
    // Once it is still there, once it has gone meanwhile.
    for gone in [false, true] {
        let image = case.dump(root)?;
        if gone && !case.is_control() {
            unlink(&name);
        }
        root = case.restore(&image)?;
        case.ask()?;
    }
    unlink(&name);
    case.finish(root)
}

/// System V queues and semaphores in an IPC namespace of the program's own.
fn system_v(stage: Stage) {
    // SAFETY: plain integers, and below places and lengths of our own.
    unsafe { check(libc::unshare(libc::CLONE_NEWIPC)).unwrap() };
    // More than usual of everything.
    let limits = [
        ("kernel/msgmax", "9000"),
        ("kernel/msgmnb", "70000"),
        ("kernel/sem", "300\t32000\t33\t444"),
        ("kernel/shmmni", "99"),
        ("kernel/shm_rmid_forced", "1"),
        ("fs/mqueue/msg_default", "7"),
        ("fs/mqueue/queues_max", "555"),
    ];
    for (name, value) in limits {
        fs::write(format!("/proc/sys/{name}"), value).unwrap();
    }
    // Numbers are not those that a fresh namespace would give.
    let spent = unsafe { check(libc::msgget(libc::IPC_PRIVATE, 0o600)).unwrap() };
    let keyed = unsafe { check(libc::msgget(0x1234, libc::IPC_CREAT | 0o640)).unwrap() };
    let private = unsafe { check(libc::msgget(libc::IPC_PRIVATE, 0o600)).unwrap() };
    unsafe { check(libc::msgctl(spent, libc::IPC_RMID, std::ptr::null_mut())).unwrap() };
    let sets = [(0x77, 3), (libc::IPC_PRIVATE, 1)]
        .map(|(key, count)| unsafe { check(libc::semget(key, count, libc::IPC_CREAT | 0o600)).unwrap() });
    let set_values = move || unsafe {
        for (number, value) in [(0, 7), (1, 0), (2, 32767)] {
            check(libc::semctl(sets[0], number, libc::SETVAL, value)).unwrap();
        }
        check(libc::semctl(sets[1], 0, libc::SETVAL, 1)).unwrap();
    };
    set_values();
    let send = move |queue: i32, kind: i64, text: &[u8]| {
        let bytes = [&kind.to_ne_bytes()[..], text].concat();
        check(unsafe { libc::msgsnd(queue, bytes.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) }).unwrap();
    };
    let receive = move |queue: i32, kind: i64| -> Result<(i64, Vec<u8>), String> {
        let mut bytes = vec![0_u8; 8 + 9000];
        let count = unsafe { libc::msgrcv(queue, bytes.as_mut_ptr().cast(), 9000, kind, libc::IPC_NOWAIT) };
        let count = check(count).map_err(words)? as usize;
        let kind = i64::from_ne_bytes(bytes[..8].try_into().map_err(|_| "a short message")?);
        Ok((kind, bytes[8..8 + count].to_vec()))
    };
    let load = move || {
        send(keyed, 3, b"first");
        send(keyed, 1, b"second");
        send(keyed, i64::MAX, b"");
        send(keyed, 3, &[6; 4000]);
        // More than fits by default.
        (0..3).for_each(|_| send(keyed, 8, &[8; 8500]));
    };
    load();
    let status = move |queue: i32| unsafe {
        let mut found: libc::msqid_ds = std::mem::zeroed();
        check(libc::msgctl(queue, libc::IPC_STAT, &raw mut found)).unwrap();
        let access = found.msg_perm;
        (access.__key, access.uid, access.mode, found.msg_qnum, found.msg_qbytes)
    };
    unsafe {
        let mut changed: libc::msqid_ds = std::mem::zeroed();
        check(libc::msgctl(private, libc::IPC_STAT, &raw mut changed)).unwrap();
        (changed.msg_perm.uid, changed.msg_perm.mode, changed.msg_qbytes) = (65534, 0o666, 1000);
        check(libc::msgctl(private, libc::IPC_SET, &raw mut changed)).unwrap();
    }
    let before = [keyed, private].map(status);
    // A child waits for a message of its own type, which never comes to anybody else.
    let told = pipe(0);
    let child = fork(move || {
        let mut bytes = [0_u8; 40];
        loop {
            let count = unsafe { libc::msgrcv(private, bytes.as_mut_ptr().cast(), 32, 9, 0) };
            let interrupted = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
            if count < 0 && !interrupted {
                return 1;
            }
            if count >= 0 && put(told[1], &bytes[8..8 + count as usize]).is_err() {
                return 2;
            }
        }
    });
    let call = || fs::read_to_string(format!("/proc/{child}/syscall")).unwrap_or_default();
    while !call().starts_with("70 ") {
        std::thread::yield_now();
    }
    stage.serve(move |round| {
        let now = [keyed, private].map(status);
        verify!(now == before, "queues: {before:?} became {now:?}");
        // SAFETY: plain integers.
        let again = unsafe { (libc::msgget(0x1234, 0), libc::semget(0x77, 3, 0)) };
        verify!(again == (keyed, sets[0]), "the keys lead to {again:?}");
        for (name, value) in limits {
            let found = fs::read_to_string(format!("/proc/sys/{name}")).map_err(words)?;
            verify!(found.trim_end() == value, "{name} has become {found:?}");
        }
        for _ in 0..3 {
            verify!(receive(keyed, 8)? == (8, vec![8; 8500]), "a long message");
        }
        for (wanted, text) in [(3, &b"first"[..]), (3, &[6; 4000])] {
            verify!(receive(keyed, 3)? == (wanted, text.to_vec()), "the queue by type");
        }
        for (wanted, text) in [(1, &b"second"[..]), (i64::MAX, b"")] {
            verify!(receive(keyed, 0)? == (wanted, text.to_vec()), "the queue in order");
        }
        verify!(receive(keyed, 0).is_err(), "the queue is not empty");
        let value = |set: usize, number: i32| unsafe { libc::semctl(sets[set], number, libc::GETVAL) };
        let found = [value(0, 0), value(0, 1), value(0, 2), value(1, 0)];
        verify!(found == [7, 0, 32767, 1], "values of semaphores: {found:?}");
        let text = format!("round {round}");
        send(private, 9, text.as_bytes());
        let found = take(told[0], 40).map_err(words)?;
        verify!(found == text.as_bytes(), "the child got {:?}", String::from_utf8_lossy(&found));
        load();
        set_values();
        Ok(())
    });
}

/// Holds a lock of the host that its end would release.
fn locker(stage: Stage) {
    let set: i32 = stage.arguments[0].parse().unwrap();
    let mut change = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: libc::SEM_UNDO as i16 };
    // SAFETY: one valid change.
    check(unsafe { libc::semop(set, &raw mut change, 1) }).unwrap();
    stage.serve(|_| Ok(()));
}

/// A set of the host, which goes with this.
struct Set(i32);

impl Drop for Set {
    fn drop(&mut self) {
        // SAFETY: plain integers.
        unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) };
    }
}

/// What the end of a process would undo is not lost silently.
fn semaphores_of_the_host() -> Outcome {
    // SAFETY: plain integers.
    let set = Set(check(unsafe { libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) })?);
    check(unsafe { libc::semctl(set.0, 0, libc::SETVAL, 1) })?;
    let mut case = Case::new()?;
    let root = case.start("locker", &[&set.0.to_string()])?;
    if !case.is_control() {
        let ran =
            case.vckpt(&["dump", &root.to_string(), "--leave-running", "-o", "locker.vckpt"])?.good()?;
        let line = format!("it has changed semaphore set {} of the host", set.0);
        ensure!(ran.stderr.contains(&line), "nothing is said of it: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}
