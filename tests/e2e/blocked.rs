//! Calls that wait for ever: still waiting after a restore, and ended by the event, never by EINTR.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic};
use crate::stage::kernel::{block, check, fork, pipe, put, signal_set, take, wait};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "blocked",
    fixtures: &[("blocked", blocked), ("moving", moving), ("blocked-writer", blocked_writer)],
    cases: &[
        ("events_end_waits", || two_rounds("blocked")),
        ("after_leave_running", after_leave_running),
        ("splice_and_tee", || two_rounds("moving")),
        ("full_pipe", || two_rounds("blocked-writer")),
    ],
};

/// Calls that were interrupted once or twice before they are dumped for good.
fn after_leave_running() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("blocked", &[])?;
    for _ in 0..2 {
        let image = case.dump_with(root, &["--leave-running"])?;
        std::fs::remove_file(image)?;
    }
    let root = case.round(root)?;
    case.finish(root)
}

const NAMES: [&str; 6] = ["read", "poll", "epoll_wait", "sigwaitinfo", "futex", "waitpid"];
static DONE: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static PROBLEMS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Counts one good end of a wait, or notes what is wrong.
fn ended(number: usize, result: Result<bool, std::io::Error>) {
    match result {
        Ok(true) => {}
        Ok(false) => PROBLEMS.lock().unwrap().push(format!("{} gave a wrong result", NAMES[number])),
        Err(error) => PROBLEMS.lock().unwrap().push(format!("{}: {error}", NAMES[number])),
    }
    DONE[number].fetch_add(1, Ordering::SeqCst);
}

fn wait_by_poll(end: i32) -> std::io::Result<bool> {
    let mut watched = libc::pollfd { fd: end, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let count = check(unsafe { libc::poll(&raw mut watched, 1, -1) })?;
    Ok(count == 1 && take(end, 8)? == b"x")
}

fn wait_by_epoll(set: i32, end: i32) -> std::io::Result<bool> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event.
    let count = check(unsafe { libc::epoll_wait(set, &raw mut event, 1, -1) })?;
    Ok(count == 1 && { event.u64 } == 42 && take(end, 8)? == b"x")
}

fn wait_for_signal() -> std::io::Result<bool> {
    let set = signal_set(&[libc::SIGUSR1]);
    // SAFETY: a zeroed siginfo is a valid place.
    let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let number = check(unsafe { libc::sigwaitinfo(&raw const set, &raw mut information) })?;
    Ok(number == libc::SIGUSR1)
}

static WORD: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

fn wait_for_word(seen: u32) -> std::io::Result<bool> {
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is static.
    let result = unsafe { libc::syscall(libc::SYS_futex, WORD.as_ptr(), operation, seen, 0) };
    match check(result) {
        Ok(_) => Ok(WORD.load(Ordering::SeqCst) == seen + 1),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// A child that lives until a byte arrives and then ends with 9.
fn child_until_byte(end: i32) -> i32 {
    fork(|| if take(end, 1).is_ok_and(|bytes| bytes == b"x") { 9 } else { 1 })
}

fn blocked(stage: Stage) {
    block(&[libc::SIGUSR1]);
    let pipes: Vec<[i32; 2]> = (0..4).map(|_| pipe(0)).collect();
    let ends: Vec<i32> = pipes.iter().map(|ends| ends[0]).collect();
    // SAFETY: plain integers, then a valid event structure.
    let set = check(unsafe { libc::epoll_create1(0) }).unwrap();
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 42 };
    check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, ends[2], &raw mut event) }).unwrap();
    let child = child_until_byte(ends[3]);
    let (read_end, poll_end, epoll_end) = (ends[0], ends[1], ends[2]);
    thread(move || {
        loop {
            ended(0, take(read_end, 8).map(|bytes| bytes == b"x"))
        }
    });
    thread(move || {
        loop {
            ended(1, wait_by_poll(poll_end))
        }
    });
    thread(move || {
        loop {
            ended(2, wait_by_epoll(set, epoll_end))
        }
    });
    let waiter = thread(|| {
        loop {
            ended(3, wait_for_signal())
        }
    });
    thread(|| {
        loop {
            ended(4, wait_for_word(WORD.load(Ordering::SeqCst)))
        }
    });
    let (tell, hear) = std::sync::mpsc::channel();
    thread(move || {
        for child in hear {
            ended(5, wait(child).map(|status| libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 9));
        }
    });
    tell.send(child).unwrap();
    let signal_thread = std::os::unix::thread::JoinHandleExt::as_pthread_t(&waiter);
    stage.serve(move |_| {
        let counts = || DONE.iter().map(|done| done.load(Ordering::SeqCst)).collect::<Vec<u64>>();
        let before = counts();
        for ends in &pipes {
            put(ends[1], b"x").map_err(|error| error.to_string())?;
        }
        // SAFETY: the thread never ends.
        unsafe { libc::pthread_kill(signal_thread, libc::SIGUSR1) };
        WORD.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the word is static.
        unsafe {
            libc::syscall(libc::SYS_futex, WORD.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1)
        };
        let start = Instant::now();
        while counts().iter().zip(&before).any(|(now, before)| now <= before) {
            verify!(start.elapsed() < Duration::from_secs(10), "{NAMES:?}: {before:?} became {:?}", counts());
            std::thread::sleep(Duration::from_millis(1));
        }
        let more: Vec<u64> = counts().iter().zip(&before).map(|(now, before)| now - before).collect();
        verify!(more == [1; 6], "{NAMES:?}: waits that ended: {more:?}");
        let problems = std::mem::take(&mut *PROBLEMS.lock().unwrap());
        verify!(problems.is_empty(), "{}", problems.join("\n"));
        tell.send(child_until_byte(pipes[3][0])).map_err(|error| error.to_string())?;
        Ok(())
    });
}

/// A thread blocked in a write that is larger than the pipe: half of it is in the pipe already. When it is stopped
/// there, the kernel ends the call with what was written, as it does for any signal; the thread writes the rest.
fn blocked_writer(stage: Stage) {
    let ends = pipe(0);
    thread(move || {
        for round in 0_u8.. {
            let bytes = vec![round; 100_000];
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                // SAFETY: the pointer and length are those of the slice.
                match check(unsafe { libc::write(ends[1], rest.as_ptr().cast(), rest.len()) }) {
                    Ok(count) if count > 0 => rest = &rest[usize::try_from(count).unwrap()..],
                    result => {
                        PROBLEMS.lock().unwrap().push(format!("the write of round {round} gave {result:?}"));
                        return;
                    }
                }
            }
        }
    });
    let mut round = 0_u8;
    stage.serve(move |_| {
        let mut left = 100_000;
        while left > 0 {
            let bytes = take(ends[0], left).map_err(|error| error.to_string())?;
            verify!(bytes.iter().all(|&byte| byte == round), "bytes of another round after {left}");
            left -= bytes.len();
        }
        round += 1;
        let problems = std::mem::take(&mut *PROBLEMS.lock().unwrap());
        verify!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    });
}

/// Moves bytes from pipe to pipe, by a call that waits for them; a copy of them goes to a third one before.
fn moving(stage: Stage) {
    let [source, middle, copy, target] = [(); 4].map(|()| pipe(0));
    let (tell, hear) = std::sync::mpsc::channel();
    let ends = [source[0], middle[1], copy[1]];
    let failed = tell.clone();
    thread(move || {
        loop {
            let null = std::ptr::null_mut();
            // SAFETY: plain integers, and no offsets, since they are pipes.
            let copied = unsafe { libc::tee(ends[0], ends[2], 1 << 16, 0) };
            if copied < 0 {
                failed.send(format!("tee: {}", std::io::Error::last_os_error())).unwrap();
            }
            // SAFETY: as above.
            let moved = unsafe { libc::splice(ends[0], null, ends[1], null, 1 << 16, 0) };
            if moved < 0 {
                failed.send(format!("splice: {}", std::io::Error::last_os_error())).unwrap();
            }
        }
    });
    let (from, to) = (middle[0], target[1]);
    thread(move || {
        loop {
            let null = std::ptr::null_mut();
            // SAFETY: as above.
            let moved = unsafe { libc::splice(from, null, to, null, 5, 0) };
            if moved < 0 {
                tell.send(format!("splice: {}", std::io::Error::last_os_error())).unwrap();
            }
        }
    });
    stage.serve(move |number| {
        let text = format!("bytes of question {number}");
        put(source[1], text.as_bytes()).map_err(|error| error.to_string())?;
        for end in [copy[0], target[0]] {
            let mut found = Vec::new();
            while found.len() < text.len() {
                found.extend(take(end, text.len() - found.len()).map_err(|error| error.to_string())?);
            }
            verify!(found == text.as_bytes(), "arrived: {:?}", String::from_utf8_lossy(&found));
        }
        let problems: Vec<String> = hear.try_iter().collect();
        verify!(problems.is_empty(), "{}", problems.join(", "));
        Ok(())
    });
}
