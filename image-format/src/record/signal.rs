//! Signal (kind 3): what a process does on each signal, and for each thread its mask, its alternate stack, and the
//! signals that wait for it.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use serde::{Deserialize, Serialize};

/// The signals of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The process.
    pub process: TaskId,
    /// The actions that are not the default, by number of the signal.
    pub actions: Vec<Action>,
    /// The signals that wait for any thread, in the order of the queue.
    pub pending: Vec<Pending>,
    /// What each thread has, the leader first.
    pub threads: Vec<ThreadSignals>,
}

/// What happens on a signal: the kernel's `struct sigaction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// The signal.
    pub signal: u32,
    /// The handler's address, or `SIG_DFL` (0) or `SIG_IGN` (1).
    pub handler: u64,
    /// `SA_…`.
    pub flags: u64,
    /// Address of the code that returns from the handler.
    pub restorer: u64,
    /// The signals that are blocked during the handler; bit 0 is signal 1.
    pub mask: u64,
}

/// What each thread has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSignals {
    /// The thread.
    pub thread: TaskId,
    /// The blocked signals; bit 0 is signal 1.
    pub mask: u64,
    /// The alternate stack.
    pub alternate_stack: Option<AlternateStack>,
    /// The signals that wait for this thread alone, in the order of the queue.
    pub pending: Vec<Pending>,
}

/// An alternate stack. Whether the thread is on it follows from its stack pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlternateStack {
    /// Its lowest address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// `SS_AUTODISARM` or 0.
    pub flags: u32,
}

/// A signal that waits to be delivered: a `siginfo_t` without the zero bytes at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending(Vec<u8>);

/// Size of a `siginfo_t`.
pub const SIGINFO_LENGTH: usize = 128;
/// Smallest alternate stack: `MINSIGSTKSZ`.
const SMALLEST_STACK: u64 = 2048;
/// Number of signals; the highest is this one.
pub const SIGNAL_COUNT: u32 = 64;

impl Pending {
    /// From a `siginfo_t`.
    #[must_use]
    pub fn new(information: &[u8; SIGINFO_LENGTH]) -> Self {
        let length = information.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        Self(information[..length].to_vec())
    }

    /// As a `siginfo_t`.
    #[must_use]
    pub fn information(&self) -> [u8; SIGINFO_LENGTH] {
        let mut information = [0; SIGINFO_LENGTH];
        for (to, from) in information.iter_mut().zip(&self.0) {
            *to = *from;
        }
        information
    }

    /// `si_signo`.
    #[must_use]
    pub fn signal(&self) -> u32 {
        self.word(0)
    }

    /// `si_code`.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.word(8).cast_signed()
    }

    /// For `SI_TIMER`: `si_timerid`.
    #[must_use]
    pub fn timer(&self) -> u32 {
        self.word(16)
    }

    fn word(&self, offset: usize) -> u32 {
        let byte = |index: usize| u32::from(self.0.get(offset + index).copied().unwrap_or(0));
        byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
    }
}

impl Record for Signal {
    const KIND: Kind = Kind::Signal;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("signals of process {}", self.process)
    }

    fn refers(&self) -> Vec<Identity> {
        let threads = self.threads.iter().map(|thread| Identity::from(thread.thread));
        std::iter::once(self.process.into()).chain(threads).collect()
    }

    fn check(&self) -> Result<(), String> {
        let mut last = 0;
        for action in &self.actions {
            if action.signal <= last || action.signal > SIGNAL_COUNT {
                return Err(format!("the action of signal {} is out of order or range", action.signal));
            }
            last = action.signal;
        }
        let stacks = self.threads.iter().filter_map(|thread| thread.alternate_stack);
        if let Some(stack) = stacks.into_iter().find(|stack| stack.size < SMALLEST_STACK) {
            return Err(format!("an alternate stack of {} bytes is too small", stack.size));
        }
        let pending = self.pending.iter().chain(self.threads.iter().flat_map(|thread| &thread.pending));
        for pending in pending {
            if pending.0.len() > SIGINFO_LENGTH || pending.signal() == 0 || pending.signal() > SIGNAL_COUNT {
                return Err(format!("waiting signal {} is none", pending.signal()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_signal_keeps_its_information() {
        let mut information = [0; SIGINFO_LENGTH];
        information[0] = 34;
        information[8..12].copy_from_slice(&(-2i32).to_le_bytes());
        information[16] = 7;
        information[31] = 0xff;
        let pending = Pending::new(&information);
        assert_eq!(pending.information(), information);
        assert_eq!((pending.signal(), pending.code(), pending.timer()), (34, -2, 7));
        assert_eq!(Pending::new(&[0; SIGINFO_LENGTH]).signal(), 0);
    }

    #[test]
    fn nonsense_is_refused() {
        let action = |signal| Action { signal, handler: 1, flags: 0, restorer: 0, mask: 0 };
        let record =
            |actions| Signal { process: TaskId(5), actions, pending: Vec::new(), threads: Vec::new() };
        assert_eq!(record(vec![action(1), action(64)]).check(), Ok(()));
        assert!(record(vec![action(65)]).check().is_err());
        assert!(record(vec![action(2), action(2)]).check().is_err());
        let waiting = Signal { pending: vec![Pending(vec![65])], ..record(Vec::new()) };
        assert!(waiting.check().is_err());
    }
}
