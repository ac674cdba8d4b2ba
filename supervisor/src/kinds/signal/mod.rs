//! Signals: what a process does on each, which ones a thread blocks, and which ones wait to be delivered.
//!
//! # In Linux
//!
//! Actions belong to the process, masks and alternate stacks to the thread. A signal that can't be delivered yet waits
//! in one of two kinds of queues: that of the process (`kill`, interval timers), from which any thread may take it,
//! or that of one thread (`tgkill`, faults). Each entry has a `siginfo_t`; below `SIGRTMIN` a signal waits once at most.
//! If the user has no room for more entries, the kernel only keeps the bit of the signal and later delivers it without
//! information.
//!
//! # What is saved
//!
//! All actions that are not the default (`rt_sigaction`), masks (by ptrace), alternate stacks (`sigaltstack`), and both
//! kinds of queues in their order (by ptrace at the freeze; [`waiting`] brings that up to the moment at which the timers
//! are read); of signals for which there was no room, only the number is known. Alarms are observed here too, because both
//! must be seen at one moment: see [`observe`]; and restored, because both must be in the order of the queues.
//!
//! # What is not
//!
//! `SIGKILL` and `SIGSTOP` are never in an image: they end or stop the process before it could be dumped. What a
//! process learns from a `siginfo_t` about processes outside the image (`si_pid`) is kept as it is. Whether a thread is
//! on its alternate stack follows from its stack pointer. Masks are set at the release, with the registers.
//!
//! # What it needs
//!
//! Linux 3.10 (`PTRACE_PEEKSIGINFO`). A task can queue any signal for itself, so no privilege.

pub mod observe;
pub mod restore;
pub mod waiting;

/// The signals that no process can catch, block or ignore.
pub(crate) const UNCATCHABLE: [i32; 2] = [libc::SIGKILL, libc::SIGSTOP];
