//! Which signals wait, and in which order: the queues as they were at the freeze, brought up to a later moment of which
//! only the set of the waiting signals is known.

use vckpt_image_format::TaskId;
use vckpt_image_format::record::alarm::{Alarm, Notify, Timer};
use vckpt_image_format::record::signal::{Pending, SIGINFO_LENGTH, SIGNAL_COUNT};

/// A `siginfo_t`.
type Information = [u8; SIGINFO_LENGTH];

/// `si_code` of a signal from a POSIX timer.
pub(crate) const SI_TIMER: i32 = -2;
/// `si_code` of a signal from the kernel.
const SI_KERNEL: i32 = 0x80;
/// The signals of the interval timers.
const INTERVAL_TIMER_SIGNALS: [i32; 3] = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF];
/// Where a `siginfo_t` of a timer has a number of the kernel that is nobody's business.
const SYS_PRIVATE: std::ops::Range<usize> = 32..36;

/// The queues of a process at the freeze, and what waits now.
#[derive(Debug)]
pub struct Queues {
    /// The queue of the process.
    pub shared: Vec<Information>,
    /// The signals that wait for the process now, also those of which nothing else is known; bit 0 is signal 1.
    pub shared_set: u64,
    /// The queues of its threads.
    pub threads: Vec<ThreadQueue>,
}

/// The queue of a thread.
#[derive(Debug)]
pub struct ThreadQueue {
    /// The thread.
    pub id: TaskId,
    /// What was in its queue.
    pub entries: Vec<Information>,
    /// The signals that wait now, for the thread or its process; bit 0 is signal 1.
    pub waiting: u64,
    /// Those that wait for the thread alone.
    pub set: u64,
}

/// The queues of a process at the moment at which its timers were read.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled {
    /// The queue of the process.
    pub shared: Vec<Pending>,
    /// The queues of its threads.
    pub threads: Vec<Vec<Pending>>,
}

impl Queues {
    /// The entries that still wait, and behind them those that came in since, or for which there was no room when they
    /// came. What is known of the latter is only which signal it is: if a timer sends it, it was the timer.
    #[must_use]
    pub fn settle(self, alarm: &Alarm) -> Settled {
        let anywhere = self.threads.iter().fold(0, |set, thread| set | thread.waiting);
        let complete = |entries: &[Information], waiting: u64, set: u64, receiver: Option<TaskId>| {
            let mut queue = keep(entries, waiting);
            let bare = set & waiting & !set_of(&queue);
            queue.extend(members(bare).map(|signal| made_up(signal, alarm, receiver)));
            queue
        };
        let shared = complete(&self.shared, anywhere, self.shared_set, None);
        let threads = self.threads.iter();
        let threads =
            threads.map(|thread| complete(&thread.entries, thread.waiting, thread.set, Some(thread.id)));
        Settled { threads: threads.collect(), shared }
    }
}

impl Settled {
    /// Every entry of every queue.
    pub fn entries(&self) -> impl Iterator<Item = &Pending> {
        self.shared.iter().chain(self.threads.iter().flatten())
    }
}

/// A signal's bit.
#[must_use]
pub fn bit(signal: u32) -> u64 {
    signal.checked_sub(1).and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or(0)
}

fn keep(entries: &[Information], waiting: u64) -> Vec<Pending> {
    let clean = |information: &Information| {
        let mut information = *information;
        if Pending::new(&information).code() == SI_TIMER {
            information[SYS_PRIVATE].fill(0);
        }
        Pending::new(&information)
    };
    entries.iter().map(clean).filter(|pending| bit(pending.signal()) & waiting != 0).collect()
}

fn set_of(queue: &[Pending]) -> u64 {
    queue.iter().fold(0, |set, pending| set | bit(pending.signal()))
}

fn members(set: u64) -> impl Iterator<Item = u32> {
    (1..=SIGNAL_COUNT).filter(move |&signal| set & bit(signal) != 0)
}

/// What the kernel would have queued for a signal that came in unseen.
fn made_up(signal: u32, alarm: &Alarm, thread: Option<TaskId>) -> Pending {
    let sends = |timer: &&Timer| {
        timer.signal == signal
            && match timer.notify {
                Notify::ThreadId(receiver) => thread == Some(receiver),
                Notify::Signal | Notify::Thread => thread.is_none(),
                Notify::None => false,
            }
    };
    let mut information = [0; SIGINFO_LENGTH];
    information[..4].copy_from_slice(&signal.to_le_bytes());
    if let Some(timer) = alarm.timers.iter().find(sends) {
        information[8..12].copy_from_slice(&SI_TIMER.to_le_bytes());
        information[16..20].copy_from_slice(&timer.id.to_le_bytes());
        information[24..32].copy_from_slice(&timer.value.to_le_bytes());
    } else if INTERVAL_TIMER_SIGNALS.contains(&signal.cast_signed()) {
        information[8..12].copy_from_slice(&SI_KERNEL.to_le_bytes());
    }
    Pending::new(&information)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::record::alarm::Setting;

    fn information(signal: u32, code: i32, word: u32) -> Information {
        let mut information = [0; SIGINFO_LENGTH];
        information[..4].copy_from_slice(&signal.to_le_bytes());
        information[8..12].copy_from_slice(&code.to_le_bytes());
        information[16..20].copy_from_slice(&word.to_le_bytes());
        information
    }

    fn alarm(timers: Vec<Timer>) -> Alarm {
        Alarm { process: TaskId(5), interval_timers: [Setting::default(); 3], timers }
    }

    fn timer(id: u32, signal: u32, notify: Notify) -> Timer {
        Timer {
            id,
            clock: 1,
            notify,
            signal,
            value: 9,
            setting: Setting::default(),
            overrun: 0,
            waiting: None,
        }
    }

    fn set(signals: &[u32]) -> u64 {
        signals.iter().fold(0, |set, &signal| set | bit(signal))
    }

    fn thread(id: u32, entries: Vec<Information>, waiting: &[u32], own: &[u32]) -> ThreadQueue {
        ThreadQueue { id: TaskId(id), entries, waiting: set(waiting), set: set(own) }
    }

    fn signals(queue: &[Pending]) -> Vec<(u32, i32, u32)> {
        queue.iter().map(|pending| (pending.signal(), pending.code(), pending.timer())).collect()
    }

    #[test]
    fn entries_keep_their_order_and_those_that_were_taken_are_left_out() {
        let shared = vec![information(34, -1, 1), information(10, 0, 2), information(34, -1, 3)];
        let private = vec![information(12, -6, 4)];
        let threads = vec![thread(5, private, &[34, 12], &[12]), thread(6, Vec::new(), &[34], &[])];
        let settled = Queues { shared, shared_set: set(&[34]), threads }.settle(&alarm(Vec::new()));
        assert_eq!(signals(&settled.shared), [(34, -1, 1), (34, -1, 3)]);
        assert_eq!(signals(&settled.threads[0]), [(12, -6, 4)]);
        assert_eq!(settled.threads[1], []);
    }

    #[test]
    fn what_came_in_since_is_told_from_the_timers() {
        let timers = vec![timer(3, 35, Notify::Signal), timer(4, 36, Notify::ThreadId(TaskId(6)))];
        let threads = vec![
            thread(5, Vec::new(), &[14, 35, 10], &[]),
            thread(6, Vec::new(), &[14, 35, 10, 36], &[36, 40]),
        ];
        let shared_set = set(&[14, 35, 10, 41]);
        let settled = Queues { shared: Vec::new(), shared_set, threads }.settle(&alarm(timers));
        assert_eq!(signals(&settled.shared), [(10, 0, 0), (14, SI_KERNEL, 0), (35, SI_TIMER, 3)]);
        assert_eq!(settled.threads[0], []);
        assert_eq!(signals(&settled.threads[1]), [(36, SI_TIMER, 4)]);
    }

    #[test]
    fn signals_of_which_only_the_number_is_left_wait_where_they_did() {
        let private = vec![information(12, -6, 4)];
        let threads = vec![thread(5, private, &[12, 10, 36], &[12, 10, 36])];
        let timers = vec![timer(4, 36, Notify::ThreadId(TaskId(5)))];
        let shared = vec![information(36, -1, 9)];
        let settled = Queues { shared, shared_set: set(&[36, 12]), threads }.settle(&alarm(timers));
        assert_eq!(signals(&settled.shared), [(36, -1, 9), (12, 0, 0)]);
        assert_eq!(signals(&settled.threads[0]), [(12, -6, 4), (10, 0, 0), (36, SI_TIMER, 4)]);
    }

    #[test]
    fn the_private_number_of_a_timer_signal_is_left_out() {
        let mut entry = information(34, SI_TIMER, 1);
        entry[SYS_PRIVATE].fill(7);
        let threads = vec![thread(5, Vec::new(), &[34], &[])];
        let queues = Queues { shared: vec![entry], shared_set: bit(34), threads };
        let settled = queues.settle(&alarm(Vec::new()));
        assert_eq!(settled.shared, [Pending::new(&information(34, SI_TIMER, 1))]);
    }

    #[test]
    fn bits_are_those_of_the_kernel() {
        assert_eq!((bit(1), bit(64), bit(0), bit(65)), (1, 1 << 63, 0, 0));
    }
}
