//! Alarms that go off: POSIX timers of every clock and kind, who gets their signals and what these tell, signals of
//! several timers in their order, and the three interval timers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::harness::case::{Case, all_left_running, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure};
use crate::stage::kernel::{block, check, clock, fork, monotonic, pipe, put, signal_set, take, timespec};
use crate::stage::{Stage, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "alarms",
    fixtures: &[
        ("every-clock", every_clock),
        ("expiries", expiries),
        ("overruns", overruns),
        ("one-signal", one_signal),
        ("interval-expiries", interval_expiries),
        ("unknown-thread", unknown_thread),
        ("uncounted", uncounted),
    ],
    cases: &[
        ("timers_of_every_clock", || two_rounds("every-clock")),
        ("expiries_reach_whom_they_are_for", || two_rounds("expiries")),
        ("expiries_that_were_missed", || two_rounds("overruns")),
        ("timers_of_one_signal_in_order", || two_rounds("one-signal")),
        ("interval_timers_expire", || two_rounds("interval-expiries")),
        ("left_running", || {
            all_left_running(&[
                "every-clock",
                "expiries",
                "overruns",
                "one-signal",
                "interval-expiries",
                "uncounted",
            ])
        }),
        ("processor_time_of_an_unknown_thread", processor_time_of_an_unknown_thread),
        ("expiries_that_cannot_be_counted_are_reported", expiries_that_cannot_be_counted_are_reported),
    ],
};

/// `struct sigevent` as the kernel has it: value, signal, kind, thread.
#[derive(Debug, Clone, Copy)]
struct Event {
    value: u64,
    signal: i32,
    kind: i32,
    thread: i32,
}

/// To the process, to nobody, to one thread.
const SIGNAL: i32 = libc::SIGEV_SIGNAL;
const NONE: i32 = libc::SIGEV_NONE;
const THREAD_ID: i32 = 4;

/// Makes a timer; the kernel's ID, or its refusal.
fn create(clock: i32, event: Event) -> Result<i32, i32> {
    let mut room = [0_u8; 64];
    room[..8].copy_from_slice(&event.value.to_ne_bytes());
    for (place, word) in [(8, event.signal), (12, event.kind), (16, event.thread)] {
        room[place..place + 4].copy_from_slice(&word.to_ne_bytes());
    }
    let mut id = -1_i32;
    // SAFETY: room for the kernel's structure, and a valid place.
    let result = unsafe { libc::syscall(libc::SYS_timer_create, clock, room.as_ptr(), &raw mut id) };
    check(result).map(|_| id).map_err(|error| error.raw_os_error().unwrap_or(0))
}

fn set(id: i32, flags: i32, value: Duration, interval: Duration) {
    let timer = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
    // SAFETY: a valid structure.
    check(unsafe { libc::syscall(libc::SYS_timer_settime, id, flags, &raw const timer, 0) }).unwrap();
}

/// (left, interval) of a timer.
fn get(id: i32) -> (Duration, Duration) {
    let zero = timespec(Duration::ZERO);
    let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: a valid place.
    check(unsafe { libc::syscall(libc::SYS_timer_gettime, id, &raw mut now) }).unwrap();
    let time = |time: libc::timespec| Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
    (time(now.it_value), time(now.it_interval))
}

/// Waits until a timer that expires once has done so: its signal waits then.
fn wait_for_expiry(id: i32) {
    while get(id).0 != Duration::ZERO {
        std::thread::yield_now();
    }
}

/// What a signal of a timer tells: signal, code, timer, overrun, value.
type Expiry = (i32, i32, i32, i32, u64);

/// The next of these signals, within a time.
fn next(signals: &[i32], patience: Duration) -> Option<Expiry> {
    let (set, limit) = (signal_set(signals), timespec(patience));
    // SAFETY: valid places; the words are those of the kernel's structure.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        let number = libc::sigtimedwait(&raw const set, &raw mut information, &raw const limit);
        let words = (&raw const information).cast::<i32>();
        let value = words.add(6).cast::<u64>().read_unaligned();
        (number > 0).then(|| (number, information.si_code, words.add(4).read(), words.add(5).read(), value))
    }
}

/// What the kernel lists of the timers of this process.
fn list() -> String {
    std::fs::read_to_string("/proc/self/timers").unwrap()
}

/// The clock of the processor time of a process, or of a thread of this one.
fn clock_of(task: i32, of_thread: bool) -> i32 {
    !task << 3 | 2 | if of_thread { 4 } else { 0 }
}

/// `CLOCK_REALTIME_ALARM`, `CLOCK_BOOTTIME_ALARM`, `CLOCK_TAI`.
const ALARMS: [i32; 2] = [8, 9];
const TAI: i32 = 11;

/// A timer on each clock that the kernel lets have, each set differently.
fn every_clock(stage: Stage) {
    let (ready, quiet) = (pipe(0), pipe(0));
    thread(move || {
        // SAFETY: plain integers.
        put(ready[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
        take(quiet[0], 1)
    });
    let other = i32::from_ne_bytes(take(ready[0], 4).unwrap().try_into().unwrap());
    let child = fork(|| i32::from(take(quiet[0], 1).is_err()));
    let own = std::process::id() as i32;
    let to = |kind: i32, thread: i32| Event { value: 0xfeed_0000_0000_0001, signal: 50, kind, thread };
    let seconds = Duration::from_secs;
    let mut timers = Vec::new();
    let mut make = |clock_id: i32, event: Event, absolute: bool, interval: u64| {
        let id = match create(clock_id, event) {
            Ok(id) => id,
            // Without the right to wake the machine, or without a clock that does.
            Err(_) if ALARMS.contains(&clock_id) => return,
            Err(errno) => panic!("clock {clock_id}: errno {errno}"),
        };
        let rest = seconds(1000 + 100 * timers.len() as u64);
        let begin = if absolute { clock(clock_id) } else { Duration::ZERO };
        let flags = if absolute { libc::TIMER_ABSTIME } else { 0 };
        set(id, flags, begin + rest, seconds(interval));
        timers.push((id, rest, seconds(interval)));
    };
    let [realtime_alarm, boot_alarm] = ALARMS;
    for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, TAI] {
        make(clock, to(SIGNAL, 0), false, 3);
        make(clock, to(THREAD_ID, other), true, 0);
        make(clock, to(NONE, 0), true, 2);
    }
    make(realtime_alarm, to(SIGNAL, 0), true, 1);
    make(boot_alarm, to(THREAD_ID, own), false, 0);
    make(libc::CLOCK_PROCESS_CPUTIME_ID, to(SIGNAL, 0), false, 7);
    make(libc::CLOCK_PROCESS_CPUTIME_ID, to(THREAD_ID, other), true, 0);
    make(libc::CLOCK_THREAD_CPUTIME_ID, to(THREAD_ID, own), false, 0);
    make(clock_of(own, false), to(NONE, 0), false, 0);
    make(clock_of(other, true), to(SIGNAL, 0), false, 9);
    make(clock_of(child, false), to(SIGNAL, 0), false, 11);
    let (listed, started) = (list(), Instant::now());
    stage.serve(move |_| {
        verify!(list() == listed, "the timers were\n{listed}and became\n{}", list());
        for &(id, value, interval) in &timers {
            let (rest, again) = get(id);
            verify!(again == interval, "interval of timer {id}: {again:?}, not {interval:?}");
            // Clocks of processor time tick slower; those of time may be adjusted.
            let gone = value.checked_sub(rest).unwrap_or(Duration::ZERO);
            let most = started.elapsed() + Duration::from_millis(200);
            let good = gone <= most && rest <= value + Duration::from_millis(20);
            verify!(good, "timer {id} had {value:?} and has {rest:?} left after {:?}", started.elapsed());
        }
        Ok(())
    });
}

static HEARD: Mutex<Vec<Expiry>> = Mutex::new(Vec::new());

/// Timers that expire once, before or after the dump as it comes, and must be heard of once, by whom they are for.
fn expiries(stage: Stage) {
    const TO_PROCESS: [i32; 4] = [41, 42, 43, 44];
    const TO_THREAD: [i32; 3] = [45, 46, 47];
    block(&[&TO_PROCESS[..], &TO_THREAD[..]].concat());
    let ready = pipe(0);
    thread(move || {
        // SAFETY: plain integers.
        put(ready[1], &unsafe { libc::gettid() }.to_ne_bytes()).unwrap();
        loop {
            if let Some(found) = next(&TO_THREAD, Duration::from_secs(3600)) {
                HEARD.lock().unwrap().push(found);
            }
        }
    });
    let other = i32::from_ne_bytes(take(ready[0], 4).unwrap().try_into().unwrap());
    let clocks =
        [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_PROCESS_CPUTIME_ID];
    let value = |signal: i32| 0xabc0_0000_0000_0000 + signal as u64;
    let make = |clock: i32, signal: i32, kind: i32, thread: i32| {
        create(clock, Event { value: value(signal), signal, kind, thread }).unwrap()
    };
    let own: Vec<i32> =
        clocks.iter().zip(TO_PROCESS).map(|(&clock, signal)| make(clock, signal, SIGNAL, 0)).collect();
    let others: Vec<i32> =
        clocks.iter().zip(TO_THREAD).map(|(&clock, signal)| make(clock, signal, THREAD_ID, other)).collect();
    let silent = make(libc::CLOCK_MONOTONIC, 0, NONE, 0);
    let times = [0, 40, 80];
    let start = {
        let (own, others) = (own.clone(), others.clone());
        move || {
            let rest = times.into_iter().cycle().map(|millis| Duration::from_millis(1 + millis));
            own.iter()
                .chain(&others)
                .chain([&silent])
                .zip(rest)
                .for_each(|(&id, rest)| set(id, 0, rest, Duration::ZERO));
        }
    };
    start();
    // A thread that waits for signals lets them in.
    stage.serve_except(&["pending", "thread "], move |_| {
        let begin = Instant::now();
        for (&id, signal) in own.iter().zip(TO_PROCESS) {
            let mut found = None;
            // One of them counts processor time.
            while found.is_none() {
                found = next(&[signal], Duration::ZERO);
                verify!(begin.elapsed() < Duration::from_secs(10), "timer {id} does not expire");
            }
            let expected = Some((signal, libc::SI_TIMER, id, 0, value(signal)));
            verify!(found == expected, "timer {id}: {found:x?}, not {expected:x?}");
        }
        while HEARD.lock().unwrap().len() < others.len() {
            verify!(
                begin.elapsed() < Duration::from_secs(10),
                "the thread heard {:?}",
                HEARD.lock().unwrap()
            );
            std::thread::yield_now();
        }
        let mut heard = std::mem::take(&mut *HEARD.lock().unwrap());
        heard.sort_unstable();
        let expected: Vec<_> = others
            .iter()
            .zip(TO_THREAD)
            .map(|(&id, signal)| (signal, libc::SI_TIMER, id, 0, value(signal)))
            .collect();
        verify!(heard == expected, "the thread heard {heard:x?}, not {expected:x?}");
        wait_for_expiry(silent);
        let more = next(&TO_PROCESS, Duration::ZERO);
        verify!(more.is_none(), "a timer expires twice: {more:x?}");
        start();
        Ok(())
    });
}

/// Periodic timers whose signals nobody takes until after the restore: every expiry is counted, and no more.
fn overruns(stage: Stage) {
    const PERIOD: Duration = Duration::from_millis(2);
    const SIGNALS: [i32; 4] = [51, 52, 53, libc::SIGUSR1];
    block(&SIGNALS);
    let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME, TAI];
    let timers: Vec<(i32, i32)> = clocks
        .into_iter()
        .zip(SIGNALS)
        .map(|(clock, signal)| {
            let event = Event { value: 7, signal, kind: SIGNAL, thread: 0 };
            (create(clock, event).unwrap(), signal)
        })
        .collect();
    let start = {
        let timers = timers.clone();
        move || {
            let begin = monotonic();
            timers.iter().for_each(|&(id, _)| set(id, 0, PERIOD, PERIOD));
            // So many of them are there for sure before the dump.
            while monotonic() < begin + 20 * PERIOD {
                std::thread::yield_now();
            }
            begin
        }
    };
    let mut begin = start();
    stage.serve_except(&["pending"], move |_| {
        for &(id, signal) in &timers {
            let found = next(&[signal], Duration::ZERO);
            let Some((_, code, timer, overrun, value)) = found else {
                return Err(format!("the signal of timer {id} is lost"));
            };
            verify!((code, timer, value) == (libc::SI_TIMER, id, 7), "timer {id}: {code} {timer} {value}");
            // SAFETY: plain integers.
            let told = unsafe { libc::syscall(libc::SYS_timer_getoverrun, id) };
            verify!(told == i64::from(overrun), "timer {id}: overrun {told}, in the signal {overrun}");
            let most = ((monotonic() - begin).as_micros() / PERIOD.as_micros()) as i64 + 1;
            verify!(
                (20..=most).contains(&(told + 1)),
                "timer {id} expired {} times, not 20 to {most}",
                told + 1
            );
            set(id, 0, Duration::ZERO, Duration::ZERO);
            let more = next(&[signal], Duration::ZERO);
            verify!(more.is_none() || most > 0, "timer {id}: {more:?}");
        }
        begin = start();
        Ok(())
    });
}

/// Signals of several timers and of a sender, all the same: they are taken in the order in which they came.
fn one_signal(stage: Stage) {
    const NUMBER: i32 = 48;
    block(&[NUMBER]);
    let timers = [0, 1, 2, 3].map(|value| {
        create(libc::CLOCK_MONOTONIC, Event { value, signal: NUMBER, kind: SIGNAL, thread: 0 }).unwrap()
    });
    // What comes is a timer, by its place, or another signal, by its value.
    let order: [Result<usize, usize>; 7] = [Ok(2), Err(70), Ok(0), Ok(3), Err(71), Err(72), Ok(1)];
    let fill = move || {
        for entry in order {
            match entry {
                Ok(place) => {
                    set(timers[place], 0, Duration::from_nanos(1), Duration::ZERO);
                    wait_for_expiry(timers[place]);
                }
                Err(value) => {
                    let value = libc::sigval { sival_ptr: value as *mut _ };
                    // SAFETY: plain integers.
                    check(unsafe { libc::sigqueue(libc::getpid(), NUMBER, value) }).unwrap();
                }
            }
        }
    };
    fill();
    stage.serve(move |number| {
        let found: Vec<(i32, u64)> = std::iter::from_fn(|| next(&[NUMBER], Duration::ZERO))
            .map(|(_, code, _, _, value)| (code, value))
            .collect();
        let expected: Vec<(i32, u64)> = order
            .iter()
            .map(|entry| match entry {
                Ok(place) => (libc::SI_TIMER, *place as u64),
                Err(value) => (libc::SI_QUEUE, *value as u64),
            })
            .collect();
        verify!(found == expected, "question {number}: {found:?}, not {expected:?}");
        fill();
        Ok(())
    });
}

/// Each interval timer sends its signals, before and after.
fn interval_expiries(stage: Stage) {
    const TIMERS: [(i32, i32); 3] = [
        (libc::ITIMER_REAL, libc::SIGALRM),
        (libc::ITIMER_VIRTUAL, libc::SIGVTALRM),
        (libc::ITIMER_PROF, libc::SIGPROF),
    ];
    block(&TIMERS.map(|(_, signal)| signal));
    for (which, _) in TIMERS {
        let time = |micros| libc::timeval { tv_sec: 0, tv_usec: micros };
        let timer = libc::itimerval { it_interval: time(10_000), it_value: time(20_000) };
        // SAFETY: a valid structure, no old value wanted.
        check(unsafe { libc::syscall(libc::SYS_setitimer, which, &raw const timer, 0) }).unwrap();
    }
    stage.serve_except(&["pending"], move |_| {
        for (which, signal) in TIMERS {
            let begin = Instant::now();
            // The first may have come before.
            for count in 0..3 {
                let mut found = None;
                while found.is_none() {
                    verify!(
                        begin.elapsed() < Duration::from_secs(10),
                        "timer {which}: signal {count} does not come"
                    );
                    found = next(&[signal], Duration::ZERO);
                }
                let code = found.map(|(_, code, ..)| code);
                verify!(code == Some(0x80), "timer {which}: code {code:?}");
            }
        }
        Ok(())
    });
}

/// A timer that counts the processor time of one of two threads, which can't be told apart.
fn unknown_thread(stage: Stage) {
    let quiet = pipe(0);
    thread(move || take(quiet[0], 1));
    let event = Event { value: 0, signal: 50, kind: SIGNAL, thread: 0 };
    create(libc::CLOCK_THREAD_CPUTIME_ID, event).unwrap();
    stage.serve(|_| Ok(()));
}

fn processor_time_of_an_unknown_thread() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("unknown-thread", &[])?;
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("timer 0"), "the timer is not named: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}

/// Whether a signal waits.
fn waits(signal: i32) -> bool {
    let mut set = signal_set(&[]);
    // SAFETY: a valid place.
    unsafe { libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, signal) == 1 }
}

/// Two periodic timers of one signal, and one that counts processor time: their signals wait.
fn uncounted(stage: Stage) {
    const NUMBERS: [i32; 2] = [54, 55];
    const PERIOD: Duration = Duration::from_millis(2);
    block(&NUMBERS);
    let clocks =
        [(libc::CLOCK_MONOTONIC, 54), (libc::CLOCK_BOOTTIME, 54), (libc::CLOCK_PROCESS_CPUTIME_ID, 55)];
    let timers = clocks.map(|(clock, signal)| {
        let event = Event { value: clock as u64, signal, kind: SIGNAL, thread: 0 };
        create(clock, event).unwrap()
    });
    let fill = move || {
        for id in timers {
            set(id, 0, PERIOD, PERIOD);
            // It expires for the first time; of the signals of two, one may hide the other one.
            let begin = monotonic();
            while monotonic() < begin + 2 * PERIOD || id == timers[2] && !waits(NUMBERS[1]) {
                std::thread::yield_now();
            }
        }
    };
    fill();
    stage.serve_except(&["pending"], move |_| {
        // Whose signal was taken goes on, and may come again before another one is taken.
        let mut values = std::collections::BTreeSet::new();
        while let Some((.., value)) = next(&NUMBERS, Duration::ZERO) {
            values.insert(value);
            if values.len() == 3 {
                break;
            }
        }
        verify!(values == [1, 2, 7].into(), "signals of the clocks {values:?}");
        for id in timers {
            set(id, 0, Duration::ZERO, Duration::ZERO);
        }
        while next(&NUMBERS, Duration::ZERO).is_some() {}
        fill();
        Ok(())
    });
}

fn expiries_that_cannot_be_counted_are_reported() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("uncounted", &[])?;
    case.ask()?;
    if !case.is_control() {
        let image = case.path("uncounted.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?.good()?;
        for timer in 0..3 {
            let words = format!("how often timer {timer} has expired");
            ensure!(ran.stderr.contains(&words), "{words:?} is not said: {}", ran.describe());
        }
        root = case.restore(&image)?;
        case.ask()?;
    }
    case.finish(root)
}
