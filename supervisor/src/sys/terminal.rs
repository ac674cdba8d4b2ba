//! Terminals: modes and sizes as ioctl_tty(2) takes and gives them.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGDEV: u64 = 0x8004_5432;

/// `struct termios2`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_line`.
    pub discipline: u8,
    /// `c_cc`.
    pub characters: [u8; 19],
    /// `c_ispeed`.
    pub input_speed: u32,
    /// `c_ospeed`.
    pub output_speed: u32,
}

/// The modes of a terminal.
///
/// # Errors
/// See ioctl_tty(2): `ENOTTY` if it is no terminal.
pub fn modes(terminal: BorrowedFd<'_>) -> Result<Modes> {
    let mut modes = Modes::default();
    // SAFETY: the pointer leads to a live structure with the layout of termios2.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), TCGETS2, &raw mut modes) };
    Errno::result(result).map(|_| modes)
}

/// Sets the modes of a terminal at once.
///
/// # Errors
/// See ioctl_tty(2).
pub fn set_modes(terminal: BorrowedFd<'_>, modes: &Modes) -> Result<()> {
    // SAFETY: the pointer leads to a live structure with the layout of termios2, which the kernel only reads.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), TCSETS2, &raw const *modes) };
    Errno::result(result).map(drop)
}

/// Major and minor number of the terminal, also for one that was opened as `/dev/tty`.
///
/// # Errors
/// See ioctl_tty(2).
pub fn device(terminal: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let mut device = 0_u32;
    // SAFETY: the pointer leads to a live 32-bit variable.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), TIOCGDEV, &raw mut device) };
    Errno::result(result)?;
    Ok(((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00)))
}
