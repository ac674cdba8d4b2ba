//! Sandbox: system call filters.
//!
//! # In Linux
//!
//! A thread may have filters (seccomp(2)), programs that decide on each system call: it is made, fails, or ends the thread
//! or its process. Children and programs inherit them, and nobody can take them away. In strict mode there are four calls.
//!
//! # What is saved
//!
//! All filters of every thread, in their order, if root dumps: nobody else may read them. While a stub is in a thread, and
//! while a thread is restored, its filters are suspended (`PTRACE_O_SUSPEND_SECCOMP`).
//!
//! If this program is killed, the filters count again while the stub is on its way home. So a thread is only dumped if
//! its filters end it at none of the calls by which a stub comes and goes, and no kind has to ask something of it by a
//! call at which they would: [`filter`] runs them.
//!
//! # What is not
//!
//! Strict mode, filters that ask a supervisor (`SECCOMP_RET_USER_NOTIF`), and threads of ordinary users that have filters
//! are refused; so is a thread that has rules of Landlock, which nobody can see (`landlock` tells that there are some).
//!
//! Strict mode leaves four calls to a thread, none of which a stub could do without: if this program were killed while
//! the mode is suspended, the stub's next call would end the thread.
//!
//! # What it needs
//!
//! `CAP_SYS_ADMIN` in the first user namespace, and no filter upon this program; a kernel with `CONFIG_CHECKPOINT_RESTORE`.

pub mod filter;
mod landlock;
pub mod observe;
pub mod restore;
