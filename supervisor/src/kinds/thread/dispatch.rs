//! System calls that are dispatched to the program itself (syscall user dispatch, prctl(2)): a thread says by a byte, its
//! selector, whether its calls are made or handed to its handler of `SIGSYS`; only those of some code are always made.
//!
//! As long as the selector lets calls be made, those of a stub are made too, and so are those on its way home. A thread
//! that stands still while it does not let them is refused: without the dispatch a stub could work, but if this program
//! were killed, the thread would go on without it.

use crate::error::{Error, Result, code};
use crate::sys::{process, ptrace};
use crate::tracee::Stopped;
use vckpt_image_format::record::lightweight_process::{Dispatch, LightweightProcess};

/// `SYSCALL_DISPATCH_FILTER_ALLOW`.
const ALLOW: u8 = 0;

/// How the calls of a stopped thread are dispatched, if they are.
///
/// # Errors
/// [`code::TASK_STATE`] if those of a stub would be.
pub fn observe(tid: i32) -> Result<Option<Dispatch>> {
    let Ok(Some([selector, start, length])) = ptrace::dispatch(tid) else { return Ok(None) };
    let mut byte = [u8::MAX];
    let is_read = selector != 0 && process::read_memory(tid, selector, &mut byte) == Ok(1);
    if !is_read || byte != [ALLOW] {
        let what = "its system calls are dispatched to its own handler (syscall user dispatch)";
        return Err(Error::new(code::TASK_STATE, what).because("so would be those of a stub"));
    }
    Ok(Some(Dispatch { selector, start, length }))
}

/// Lets the calls of a thread be dispatched again: the last that is done to it.
///
/// # Errors
/// [`code::TASK_RESTORE`].
pub(super) fn restore(stopped: &Stopped, thread: &LightweightProcess) -> Result<()> {
    let Some(Dispatch { selector, start, length }) = thread.dispatch else { return Ok(()) };
    ptrace::set_dispatch(stopped.tid(), [selector, start, length]).map_err(|errno| {
        Error::system(code::TASK_RESTORE, "dispatching system calls (syscall user dispatch)", errno)
    })
}
