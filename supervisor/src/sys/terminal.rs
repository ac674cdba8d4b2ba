//! Terminals: modes and sizes as ioctl_tty(2) takes and gives them.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCPKT: u64 = 0x5420;
const TIOCGPTPEER: u64 = 0x5441;

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

/// Asks for a number by one of the requests that give one.
fn number_of(terminal: BorrowedFd<'_>, request: u64) -> Result<u32> {
    let mut number = 0_u32;
    // SAFETY: the pointer leads to a live 32-bit variable, which is what these requests write.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), request, &raw mut number) };
    Errno::result(result).map(|_| number)
}

/// Sets a switch by one of the requests that take one.
fn set_switch(terminal: BorrowedFd<'_>, request: u64, on: bool) -> Result<()> {
    let number = i32::from(on);
    // SAFETY: the pointer leads to a live 32-bit variable, which is what these requests read.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), request, &raw const number) };
    Errno::result(result).map(drop)
}

/// The number of the slave behind a master.
///
/// # Errors
/// See ioctl_tty(2), here and below.
pub fn number(master: BorrowedFd<'_>) -> Result<u32> {
    number_of(master, TIOCGPTN)
}

/// Whether a master is in packet mode.
///
/// # Errors
/// See [`number`].
pub fn is_in_packet_mode(master: BorrowedFd<'_>) -> Result<bool> {
    number_of(master, TIOCGPKT).map(|on| on != 0)
}

/// Sets packet mode of a master.
///
/// # Errors
/// See [`number`].
pub fn set_packet_mode(master: BorrowedFd<'_>, on: bool) -> Result<()> {
    set_switch(master, TIOCPKT, on)
}

/// Whether the slave behind a master is locked.
///
/// # Errors
/// See [`number`].
pub fn is_locked(master: BorrowedFd<'_>) -> Result<bool> {
    number_of(master, TIOCGPTLCK).map(|on| on != 0)
}

/// Locks or unlocks the slave behind a master.
///
/// # Errors
/// See [`number`].
pub fn set_locked(master: BorrowedFd<'_>, on: bool) -> Result<()> {
    set_switch(master, TIOCSPTLCK, on)
}

/// Opens the slave behind a master.
///
/// # Errors
/// See [`number`].
pub fn open_slave(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    // SAFETY: this request takes plain flags.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags | libc::O_CLOEXEC) };
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
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
