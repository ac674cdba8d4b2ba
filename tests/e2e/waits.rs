//! Calls that wait with a time limit: each must return its normal result after its normal time, whatever happens.
//!
//! One thread for each call waits again and again. EINTR is a failure, so is a wait that is short by more than a
//! millisecond or long by more than 100 ms; the time during which the program was away as an image or may have stood
//! still for a dump is allowed on top (the harness notes it in `outages`), and the time for which its thread was ready
//! and got no processor.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::case::{Case, text};
use crate::harness::{Outcome, Topic, ensure, short_or_long};
use crate::stage::kernel::{block, clock, fork, monotonic, pipe, signal_set, timespec, wait};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "waits",
    fixtures: &[("waits", waits)],
    cases: &[
        ("leave_running", leave_running),
        ("dump_and_restore", dump_and_restore),
        ("refused_dump", refused_dump),
    ],
};

static PROBLEMS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WAITS: [AtomicU64; 12] = [const { AtomicU64::new(0) }; 12];
const LATE: Duration = Duration::from_millis(100);

/// A wait: its name, the errno that a normal end gives (0 for none), its length, and the call itself.
type Wait = (&'static str, i32, u64, fn(Duration) -> i64);

const CALLS: [Wait; 12] = [
    ("nanosleep", 0, 150, nanosleep),
    ("clock_nanosleep, absolute", 0, 170, clock_nanosleep_absolute),
    ("poll", 0, 130, poll),
    ("ppoll", 0, 135, ppoll),
    ("epoll_wait", 0, 140, epoll_wait),
    ("select", 0, 160, select),
    ("futex, relative", libc::ETIMEDOUT, 150, futex_relative),
    ("futex, absolute", libc::ETIMEDOUT, 155, futex_absolute),
    ("sigtimedwait", libc::EAGAIN, 145, sigtimedwait),
    ("recv with SO_RCVTIMEO", libc::EAGAIN, 155, receive),
    ("clock_nanosleep, relative, boot time", 0, 165, clock_nanosleep_relative),
    ("epoll_pwait2", 0, 125, epoll_pwait2),
];

fn nanosleep(time: Duration) -> i64 {
    let time = timespec(time);
    // SAFETY: the request is a valid timespec and no remainder is asked for.
    i64::from(unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) })
}

fn clock_nanosleep_absolute(time: Duration) -> i64 {
    let deadline = timespec(monotonic() + time);
    let flags = libc::TIMER_ABSTIME;
    // SAFETY: as for nanosleep; the raw call is used because it sets errno.
    unsafe { libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, flags, &raw const deadline, 0) }
}

fn clock_nanosleep_relative(time: Duration) -> i64 {
    let time = timespec(time);
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_BOOTTIME, 0, &raw const time, 0) }
}

thread_local! {
    /// An empty pipe whose writing end stays open.
    static EMPTY: [i32; 2] = pipe(libc::O_CLOEXEC);
    /// An epoll set that watches it.
    static SET: i32 = {
        // SAFETY: plain integers, then a valid event structure.
        let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        assert_eq!(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, EMPTY.with(|ends| ends[0]), &raw mut event) }, 0);
        set
    };
    /// A datagram socket on which nothing arrives.
    static SILENT: i32 = {
        // SAFETY: plain integers, then a valid timeval.
        let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        let limit = libc::timeval { tv_sec: 0, tv_usec: 155_000 };
        let size = size_of::<libc::timeval>() as u32;
        let value = (&raw const limit).cast();
        assert_eq!(unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, value, size) }, 0);
        socket
    };
}

fn poll(time: Duration) -> i64 {
    let mut watched = libc::pollfd { fd: EMPTY.with(|ends| ends[0]), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    i64::from(unsafe { libc::poll(&raw mut watched, 1, time.as_millis() as i32) })
}

fn ppoll(time: Duration) -> i64 {
    let mut watched = libc::pollfd { fd: EMPTY.with(|ends| ends[0]), events: libc::POLLIN, revents: 0 };
    // The mask that the thread has anyway: the facts are collected now in the call and now between two calls.
    let (time, mask) = (timespec(time), signal_set(&[libc::SIGUSR1]));
    // SAFETY: one valid pollfd, time and mask.
    i64::from(unsafe { libc::ppoll(&raw mut watched, 1, &raw const time, &raw const mask) })
}

fn epoll_wait(time: Duration) -> i64 {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    // SAFETY: room for four events.
    i64::from(unsafe {
        libc::epoll_wait(SET.with(|set| *set), events.as_mut_ptr(), 4, time.as_millis() as i32)
    })
}

fn epoll_pwait2(time: Duration) -> i64 {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    let time = timespec(time);
    let set = SET.with(|set| *set);
    // SAFETY: room for four events, a valid time, no mask.
    unsafe { libc::syscall(libc::SYS_epoll_pwait2, set, events.as_mut_ptr(), 4, &raw const time, 0, 8) }
}

fn select(time: Duration) -> i64 {
    let end = EMPTY.with(|ends| ends[0]);
    // SAFETY: an all-zero fd_set is the empty set and `end` is a small descriptor.
    let mut set: libc::fd_set = unsafe { std::mem::zeroed() };
    unsafe { libc::FD_SET(end, &raw mut set) };
    let mut time = libc::timeval { tv_sec: 0, tv_usec: time.as_micros() as i64 };
    let none = std::ptr::null_mut();
    // SAFETY: valid set and time.
    i64::from(unsafe { libc::select(end + 1, &raw mut set, none, none, &raw mut time) })
}

fn futex_relative(time: Duration) -> i64 {
    let word = AtomicU32::new(5);
    let time = timespec(time);
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word lives throughout the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 5, &raw const time) }
}

fn futex_absolute(time: Duration) -> i64 {
    let word = AtomicU32::new(5);
    let deadline = timespec(monotonic() + time);
    let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word lives throughout the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 5, &raw const deadline, 0, u32::MAX) }
}

fn sigtimedwait(time: Duration) -> i64 {
    let (set, time) = (signal_set(&[libc::SIGUSR1]), timespec(time));
    // SAFETY: valid set and time; no siginfo is asked for.
    i64::from(unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time) })
}

fn receive(_: Duration) -> i64 {
    let mut buffer = [0_u8; 8];
    // SAFETY: room for eight bytes.
    unsafe { libc::recv(SILENT.with(|socket| *socket), buffer.as_mut_ptr().cast(), 8, 0) as i64 }
}

/// The time of the last tick, by which the kernel counts time-outs of sockets.
fn tick() -> Duration {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

/// How much of a span of time the program was away. Waits for the note of an outage that has only begun.
fn away(outages: &PathBuf, from: Duration, to: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let text = fs::read_to_string(outages).unwrap_or_default();
        let times =
            text.lines().filter_map(|line| line.split_once(' ')?.1.parse().ok()).map(Duration::from_nanos);
        let times: Vec<Duration> = times.collect();
        let open = times.len() % 2 == 1;
        if open && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        return times.chunks_exact(2).map(|span| span[1].min(to).saturating_sub(span[0].max(from))).sum();
    }
}

/// How long this thread has waited for a processor, and processors for the machine that has them.
fn busy() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal: in hundredths of a second.
    let stolen = text.split_whitespace().nth(8).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_nanos(waited) + Duration::from_millis(stolen * 10)
}

fn watch(number: usize, outages: &PathBuf) {
    let (name, normal, milliseconds, call) = CALLS[number];
    let wanted = Duration::from_millis(milliseconds);
    loop {
        let (from, from_tick, busy_before) = (monotonic(), tick(), busy());
        let result = call(wanted);
        let errno = if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        let (to, to_tick) = (monotonic(), tick());
        let took = to.saturating_sub(from);
        let complain = |what: String| PROBLEMS.lock().unwrap().push(format!("{name} of {wanted:?}: {what}"));
        if errno != normal || result > 0 {
            complain(format!("result {result}, {}", std::io::Error::from_raw_os_error(errno)));
        }
        // The kernel counts this one by ticks, which come late when the processor that counts them is taken away.
        let by_ticks = std::ptr::fn_addr_eq(call, receive as fn(Duration) -> i64)
            && to_tick.saturating_sub(from_tick) >= wanted;
        if took + Duration::from_millis(1) < wanted && !by_ticks {
            complain(format!("took only {took:?}, of which {:?} away", away(outages, from, to)));
        }
        if took > wanted + LATE {
            let away = away(outages, from, to);
            // A task that was restored counts from nothing.
            let busy = busy().checked_sub(busy_before).unwrap_or_else(busy);
            if took > wanted + LATE + away + busy {
                complain(format!("took {took:?}, of which {away:?} away and {busy:?} without a processor"));
            }
        }
        WAITS[number].fetch_add(1, Ordering::SeqCst);
    }
}

/// A child that its parent traces, and that so stands still for ever.
fn traced_child() {
    let child = fork(|| {
        // SAFETY: plain integers; the child stops itself.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        0
    });
    wait(child).unwrap();
}

fn waits(stage: Stage) {
    if stage.arguments.iter().any(|argument| argument == "traced-child") {
        traced_child();
    }
    block(&[libc::SIGUSR1]);
    for number in 0..CALLS.len() {
        let outages = stage.path("outages");
        thread(move || watch(number, &outages));
    }
    let count = |number: usize| WAITS[number].load(Ordering::SeqCst);
    while (0..CALLS.len()).any(|number| count(number) == 0) {
        std::thread::sleep(Duration::from_millis(1));
    }
    stage.serve(|_| {
        // Each call has to end twice more: the one that was interrupted, and one after it.
        let before: Vec<u64> = (0..CALLS.len()).map(count).collect();
        let start = Instant::now();
        for (number, call) in CALLS.iter().enumerate() {
            while count(number) < before[number] + 2 {
                verify!(start.elapsed() < Duration::from_secs(10), "{} never returns", call.0);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let problems = std::mem::take(&mut *PROBLEMS.lock().unwrap());
        verify!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    });
}

fn leave_running() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("waits", &[])?;
    for number in 1..=short_or_long(20, 200) {
        let image = case.standing_still(|case| case.dump_with(root, &["--leave-running"]))?;
        fs::remove_file(image)?;
        if number % 10 == 0 {
            case.ask()?;
        }
    }
    case.ask()?;
    // What a call that was interrupted before has become can be restored.
    for _ in 0..2 {
        let image = case.standing_still(|case| case.dump_with(root, &["--leave-running"]))?;
        fs::remove_file(image)?;
        root = case.round(root)?;
    }
    case.finish(root)
}

fn dump_and_restore() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("waits", &[])?;
    for _ in 0..short_or_long(5, 50) {
        root = case.round(root)?;
    }
    case.finish(root)
}

/// A dump that is given up halfway: what had been stopped by then must not notice either.
fn refused_dump() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("waits", &["traced-child"])?;
    let image = case.path("refused.vckpt");
    for number in 1..=short_or_long(20, 200) {
        let ran = case.standing_still(|case| case.vckpt(&["dump", &root.to_string(), "-o", text(&image)]))?;
        ran.refused(&[3])?;
        ensure!(
            ran.stderr.contains("is traced by another one of the tree"),
            "not by name: {}",
            ran.describe()
        );
        if number % 10 == 0 {
            case.ask()?;
        }
    }
    case.finish(root)
}
