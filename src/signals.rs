//! Signals: while something is under way they end this program in order; once it is the parent of a restored tree,
//! they are handed on to it.
//!
//! All of them are blocked and taken by a thread of their own, so that none is lost between the two.

use crate::failure::{Failure, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
const HANDED_ON: [Signal; 5] =
    [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCONT, Signal::SIGWINCH, Signal::SIGTSTP];

/// What is to be said when a signal ends this program.
type LastWords = Box<dyn Fn() + Send>;

/// What a signal does now.
enum Mode {
    /// It ends this program.
    End(LastWords),
    /// It is noted, for the main thread to undo what it has done; the second one ends this program.
    Cancel(Option<Signal>),
    /// It waits for the main thread to take it.
    Queue(Vec<Signal>),
    /// It is for the root of a restored tree.
    HandOn(OwnedFd),
    /// The main thread is told.
    Tell(Box<dyn Fn(Signal) + Send>),
    /// A restored tree has ended, and this program is about to.
    Over,
}

/// Takes the signals of this program.
pub(crate) struct Signals(Arc<Mutex<Mode>>);

impl std::fmt::Debug for Signals {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Signals")
    }
}

impl Signals {
    /// From now on a signal ends this program with 128 + its number, after `last_words`. Must be called before any
    /// thread is started.
    pub(crate) fn end_with(last_words: impl Fn() + Send + 'static) -> Result<Self> {
        Self::take(&ENDING, Mode::End(Box::new(last_words)))
    }

    /// From now on a signal is noted: see [`cancelled`](Self::cancelled). For a program that will become a parent: see
    /// [`hand_on`](Self::hand_on). As for [`end_with`](Self::end_with), before any thread is started.
    pub(crate) fn cancel_or_hand_on() -> Result<Self> {
        Self::take(&[&ENDING[..], &HANDED_ON[..]].concat(), Mode::Cancel(None))
    }

    /// From now on signals wait to be [told](Self::tell). As for [`end_with`](Self::end_with), before any thread is
    /// started.
    pub(crate) fn queue() -> Result<Self> {
        Self::take(&[&ENDING[..], &HANDED_ON[..]].concat(), Mode::Queue(Vec::new()))
    }

    /// The number of the signal by which what is under way is to be ended.
    pub(crate) fn cancelled(&self) -> Option<i32> {
        match &*lock(&self.0) {
            Mode::Cancel(signal) => signal.map(|signal| signal as i32),
            Mode::Queue(signals) => {
                signals.iter().find(|signal| ENDING.contains(signal)).map(|&signal| signal as i32)
            }
            Mode::End(_) | Mode::HandOn(_) | Mode::Tell(_) | Mode::Over => None,
        }
    }

    /// From now on signals go to this process, beginning with one that came too late to end its restore.
    pub(crate) fn hand_on(&self, pid: i32) -> Result<()> {
        let to =
            Pid::from_raw(pid).ok_or_else(|| Failure::message("the restored process has no process ID"))?;
        let descriptor = pidfd_open(to, PidfdFlags::empty()).map_err(std::io::Error::from)?;
        let mut mode = lock(&self.0);
        let late = match *mode {
            Mode::Cancel(signal) => signal,
            Mode::End(_) | Mode::Queue(_) | Mode::HandOn(_) | Mode::Tell(_) | Mode::Over => None,
        };
        *mode = Mode::HandOn(descriptor);
        if let Some(signal) = late {
            answer(signal, &mut mode);
        }
        Ok(())
    }

    /// From now on this is called for every signal, beginning with those that wait.
    pub(crate) fn tell(&self, tell: impl Fn(Signal) + Send + 'static) {
        let mut mode = lock(&self.0);
        if let Mode::Queue(signals) = &*mode {
            signals.iter().copied().for_each(&tell);
        }
        *mode = Mode::Tell(Box::new(tell));
    }

    /// From now on signals do nothing: the program is about to end.
    pub(crate) fn over(&self) {
        *lock(&self.0) = Mode::Over;
    }

    fn take(signals: &[Signal], mode: Mode) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().map_err(std::io::Error::from)?;
        let mode = Arc::new(Mutex::new(mode));
        let shared = Arc::clone(&mode);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while let Ok(signal) = set.wait() {
                answer(signal, &mut lock(&shared));
            }
        })?;
        Ok(Self(mode))
    }
}

fn lock(mode: &Mutex<Mode>) -> MutexGuard<'_, Mode> {
    mode.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(signal: Signal, mode: &mut Mode) {
    match mode {
        Mode::End(_) | Mode::Cancel(_) if !ENDING.contains(&signal) => {}
        Mode::Cancel(Some(_)) => end(signal),
        Mode::Cancel(noted) => *noted = Some(signal),
        Mode::End(last_words) => {
            last_words();
            end(signal);
        }
        Mode::HandOn(descriptor) => {
            if let Some(same) = rustix::process::Signal::from_named_raw(signal as i32) {
                // A tree that is gone needs no signal; that it is gone is what the main thread waits for.
                let _ = pidfd_send_signal(descriptor.as_fd(), same);
            }
            if signal == Signal::SIGTSTP {
                // The shell waits for this program to stop, too.
                let _ = raise(Signal::SIGSTOP);
            }
        }
        Mode::Queue(signals) => signals.push(signal),
        Mode::Tell(tell) => tell(signal),
        Mode::Over => {}
    }
}

#[expect(
    clippy::exit,
    reason = "the main thread is within the library, and a library call can't be cut short"
)]
fn end(signal: Signal) -> ! {
    std::process::exit(128 + signal as i32)
}
