//! Alarms: the three interval timers and the POSIX timers of a process.
//!
//! # In Linux
//!
//! A process has `ITIMER_REAL`, `ITIMER_VIRTUAL` and `ITIMER_PROF` (`alarm(2)` is the first), and any number of POSIX
//! timers, each with an ID, a clock, and a signal for the process or for one thread. A periodic timer whose signal
//! waits to be delivered does not run: the kernel starts it again at the delivery, in step with the time of its first
//! expiry, and counts what it missed as its *overrun*.
//!
//! # What is saved
//!
//! `getitimer`, `timer_gettime`, `timer_getoverrun` in the process, and `/proc/<pid>/timers` for the rest. All times
//! are times that remain: time in which the application did not exist does not count, whatever the clock, since the
//! kernel does not tell whether a timer was set to a moment or to a span. How often a timer has expired while its
//! signal waits can't be asked for; [`overrun`] takes the signal, with which the kernel tells it, and makes the timer
//! expire again as it had.
//!
//! A restored timer whose signal waits expires anew before its process runs, so that the waiting signal is its own: then
//! the overrun goes on to be counted, and deleting the timer takes the signal with it, as it would have before. Among
//! other signals of the same number it does so at its place in the queue, so [`signal`](crate::kinds::signal) plans all
//! of this.
//!
//! # What is not
//!
//! Timers that count processor time go on with what remained, but from the processor time of the new task. How often
//! these have expired while their signal waits is not known, nor is it of timers of which another signal of the same
//! number waits, which the report says. Timers on the processor time of a task outside of the tree, of a thread that can't
//! be told from others, or on a device's clock are refused.
//!
//! # What it needs
//!
//! Linux 3.10 (`/proc/<pid>/timers`). IDs are chosen with `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15); before that,
//! timers are made and deleted until the ID comes.

pub mod create;
pub mod observe;
pub mod overrun;
pub mod restore;
pub mod time;
