//! Processes that are notified of messages in POSIX queues (`mq_notify`).

use std::fs;
use std::sync::Mutex;

use crate::harness::case::{Case, all_left_running, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure};
use crate::ipc::{open, own_name, receive, send, unlink, words};
use crate::stage::kernel::{block, check, handle};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "notices",
    fixtures: &[("notified", notified), ("notified-later", notified_later), ("notified-else", notified_else)],
    cases: &[
        ("of_messages", || two_rounds("notified")),
        ("left_running", || all_left_running(&["notified"])),
        ("of_a_message_that_came_meanwhile", meanwhile),
        ("of_which_the_signal_waits_already", || refused("signal", "the signal is in use otherwise")),
        ("by_a_thread", || refused("thread", "SIGEV_THREAD")),
        ("with_others_outside", outside),
    ],
};

const REAL_TIME: i32 = 37;

/// Asks for a notification of a queue by a signal with a value; without a signal it only is not notified any more.
fn notify(queue: i32, signal: Option<i32>, value: usize) {
    // SAFETY: a valid event.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = if signal.is_some() { libc::SIGEV_SIGNAL } else { libc::SIGEV_NONE };
        event.sigev_signo = signal.unwrap_or(0);
        event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
        check(libc::syscall(libc::SYS_mq_notify, queue, &raw const event)).unwrap();
    }
}

/// Whether this process is to be notified of a queue. Read by the descriptor itself: who closes another one of the queue
/// is not notified any more.
fn is_registered(queue: i32) -> bool {
    let mut text = [0_u8; 256];
    // SAFETY: room for as many bytes.
    let count = unsafe { libc::pread(queue, text.as_mut_ptr().cast(), text.len(), 0) };
    let text = String::from_utf8_lossy(&text[..usize::try_from(count).unwrap_or(0)]).into_owned();
    text.trim_end().ends_with(&format!("NOTIFY_PID:{}", std::process::id()))
}

/// Takes a signal that waits, and checks that it tells of a message, with this value.
fn take_notice(signal: i32, value: usize) -> Verdict {
    let set = crate::stage::kernel::signal_set(&[signal]);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid places.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        let result = libc::sigtimedwait(&raw const set, &raw mut information, &raw const at_once);
        check(result).map_err(|error| format!("signal {signal} did not come: {error}"))?;
        let found = information.si_value().sival_ptr.addr();
        verify!(
            information.si_code == libc::SI_MESGQ,
            "signal {signal} has the code {}",
            information.si_code
        );
        verify!(found == value, "signal {signal} has the value {found:#x} instead of {value:#x}");
    }
    Ok(())
}

/// A queue without a name.
fn queue(stage: &Stage, word: &str, flags: i32) -> i32 {
    let name = own_name(stage, word);
    let queue = open(&name, flags, Some((4, 64)));
    unlink(&name);
    queue
}

/// Is notified of an empty queue that it may only read by this descriptor, of one with messages, and of one without a
/// signal.
fn notified(stage: Stage) {
    block(&[REAL_TIME, libc::SIGUSR1]);
    let name = own_name(&stage, "empty");
    let (empty, sender) = (open(&name, libc::O_RDONLY, Some((4, 64))), open(&name, libc::O_WRONLY, None));
    unlink(&name);
    let (filled, silent) = (queue(&stage, "filled", libc::O_RDWR), queue(&stage, "silent", libc::O_RDWR));
    let mut value = 0x1122_3344_5566_7788;
    for text in ["one", "two"] {
        send(filled, text.as_bytes(), 3).unwrap();
    }
    notify(empty, Some(REAL_TIME), value);
    notify(filled, Some(libc::SIGUSR1), value / 3);
    notify(silent, None, 0);
    stage.serve(move |_| {
        for (name, queue) in [("empty", empty), ("filled", filled), ("silent", silent)] {
            verify!(is_registered(queue), "it is not to be notified of the {name} one");
        }
        send(sender, b"news", 1).map_err(words)?;
        take_notice(REAL_TIME, value)?;
        verify!(receive(empty, 64).map_err(words)?.0 == b"news", "another message");
        for text in ["one", "two"] {
            verify!(receive(filled, 64).map_err(words)? == (text.as_bytes().to_vec(), 3), "not {text}");
        }
        verify!(is_registered(filled), "it is notified of nothing");
        send(filled, b"one", 3).map_err(words)?;
        take_notice(libc::SIGUSR1, value / 3)?;
        send(filled, b"two", 3).map_err(words)?;
        send(silent, b"hush", 0).map_err(words)?;
        verify!(!is_registered(silent), "the silent one is still there");
        receive(silent, 64).map_err(words)?;
        value += 7;
        notify(empty, Some(REAL_TIME), value);
        notify(filled, Some(libc::SIGUSR1), value / 3);
        notify(silent, None, 0);
        Ok(())
    });
}

/// Code and value of the last notice.
static NOTICE: Mutex<Option<(i32, usize)>> = Mutex::new(None);

extern "C" fn on_notice(_: i32, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: what the kernel gives to a handler.
    let (code, value) = unsafe { ((*information).si_code, (*information).si_value().sival_ptr.addr()) };
    if let Ok(mut notice) = NOTICE.try_lock() {
        *notice = Some((code, value));
    }
}

/// Is notified of a queue with a name, to which others send.
fn notified_later(stage: Stage) {
    handle(REAL_TIME, on_notice, 0, &[]);
    let name = own_name(&stage, "later");
    let queue = open(&name, libc::O_RDWR, Some((4, 64)));
    fs::write(stage.path("name"), &name).unwrap();
    notify(queue, Some(REAL_TIME), 99);
    stage.serve(move |_| {
        let notice = NOTICE.lock().unwrap().take();
        verify!(notice == Some((libc::SI_MESGQ, 99)), "the notice is {notice:?}");
        verify!(!is_registered(queue), "it is to be notified once more");
        verify!(receive(queue, 64).map_err(words)?.0 == b"while away", "another message");
        notify(queue, Some(REAL_TIME), 99);
        Ok(())
    });
}

fn meanwhile() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("notified-later", &[])?;
    let name = fs::read_to_string(case.path("name"))?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        let queue = open(&name, libc::O_WRONLY, None);
        send(queue, b"while away", 0)?;
        // SAFETY: our own descriptor.
        unsafe { libc::close(queue) };
        root = case.restore(&image)?;
        case.ask()?;
    }
    unlink(&name);
    case.finish(root)
}

/// Is notified in a way that can't be kept.
fn notified_else(stage: Stage) {
    block(&[libc::SIGUSR1]);
    let name = own_name(&stage, "else");
    let queue = open(&name, libc::O_RDWR, Some((4, 64)));
    if stage.arguments.is_empty() {
        fs::write(stage.path("name"), &name).unwrap();
    } else {
        unlink(&name);
    }
    match stage.arguments.first().map(String::as_str) {
        Some("signal") => {
            notify(queue, Some(libc::SIGUSR1), 5);
            // SAFETY: a plain integer.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        Some("thread") => {
            static COOKIE: [u8; 32] = [7; 32];
            // SAFETY: plain integers, then a valid event with a cookie as long as the kernel wants it.
            unsafe {
                let socket = check(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)).unwrap();
                let mut event: libc::sigevent = std::mem::zeroed();
                (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_THREAD, socket);
                event.sigev_value.sival_ptr = COOKIE.as_ptr().cast_mut().cast();
                check(libc::syscall(libc::SYS_mq_notify, queue, &raw const event)).unwrap();
            }
        }
        _ => notify(queue, Some(libc::SIGUSR1), 6),
    }
    stage.serve(move |_| {
        verify!(is_registered(queue), "it is not to be notified any more");
        Ok(())
    });
}

fn refused(how: &str, words: &str) -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("notified-else", &[how])?;
    refusal(&mut case, root, words)?;
    case.finish(root)
}

/// Another process could wait for the message by which the value is found out.
fn outside() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("notified-else", &[])?;
    let queue = open(&fs::read_to_string(case.path("name"))?, libc::O_RDONLY, None);
    refusal(&mut case, root, "that others have open too")?;
    // SAFETY: our own descriptor.
    unsafe { libc::close(queue) };
    // Now it can.
    let name = fs::read_to_string(case.path("name"))?;
    let root = case.round(root)?;
    unlink(&name);
    case.finish(root)
}

fn refusal(case: &mut Case, root: i32, words: &str) -> Outcome {
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains(words), "it is not named: {}", ran.describe());
    }
    case.ask()
}
