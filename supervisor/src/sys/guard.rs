//! A process that sets socket options back if this program dies: what was changed in a target for a moment must not
//! stay changed, not even when this program is killed.

use nix::errno::Errno;
use std::io::PipeWriter;
use std::os::fd::{AsRawFd, OwnedFd};

/// An option to be set back.
#[derive(Debug)]
pub struct Reset {
    /// The socket.
    pub socket: OwnedFd,
    /// The level of the option.
    pub level: u32,
    /// Its name.
    pub name: u32,
    /// Its value.
    pub value: Vec<u8>,
}

/// The process. When this value is dropped it sets the options back, unless it was told that all is
/// [done](Guard::done).
#[derive(Debug)]
pub struct Guard {
    pipe: Option<PipeWriter>,
    child: libc::pid_t,
}

impl Guard {
    /// Starts it.
    ///
    /// # Errors
    /// See fork(2).
    pub fn start(resets: &[Reset]) -> Result<Self, Errno> {
        let (reader, writer) = std::io::pipe().map_err(|_| Errno::last())?;
        // SAFETY: the child makes nothing but system calls with numbers and live memory, and ends by _exit.
        let child = Errno::result(unsafe { libc::fork() })?;
        if child == 0 {
            // SAFETY: a call without arguments.
            unsafe { libc::setsid() };
            drop(writer);
            // SAFETY: this is the process that was just forked.
            unsafe { watch(reader.as_raw_fd(), resets) }
        }
        Ok(Self { pipe: Some(writer), child })
    }

    /// Tells it that nothing is to be set back.
    pub fn done(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // If it is gone there is nothing to tell.
            let _ = std::io::Write::write_all(&mut pipe, b".");
        }
    }
}

/// Waits for the end of the pipe or a byte.
///
/// # Safety
/// To be called in a process that was just forked.
unsafe fn watch(pipe: i32, resets: &[Reset]) -> ! {
    let mut byte = 0_u8;
    loop {
        // SAFETY: one byte is live.
        let count = unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) };
        if count < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        for reset in resets.iter().filter(|_| count <= 0) {
            let length = libc::socklen_t::try_from(reset.value.len()).unwrap_or_default();
            let (level, name) = (reset.level.cast_signed(), reset.name.cast_signed());
            // SAFETY: the kernel reads no more than the length of the value.
            unsafe {
                libc::setsockopt(reset.socket.as_raw_fd(), level, name, reset.value.as_ptr().cast(), length)
            };
        }
        // SAFETY: a plain number.
        unsafe { libc::_exit(0) };
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        let mut status = 0;
        loop {
            // SAFETY: status is live.
            let waited = unsafe { libc::waitpid(self.child, &raw mut status, 0) };
            if waited >= 0 || Errno::last() != Errno::EINTR {
                return;
            }
        }
    }
}
