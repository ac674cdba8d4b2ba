//! Terminals. Those whose master the tree has itself are [pairs](pair); the others are provided by somebody else: a job
//! that was started from a shell. See tty(4) and pty(7). Of the latter:
//!
//! - **Saved**: which descriptors lead to a terminal, its modes, its window size, and who was in the foreground.
//! - **Restored** onto the terminal on which the restore runs: its standard input, output or error, else `/dev/tty`. It
//!   gets the modes of the old one. Its window size is its own: the program learns of it as of any other change.
//! - **Refused**: a terminal that was hung up and is no pseudo-terminal.
//! - **Not saved**: what was typed and not read yet.

pub mod observe;
pub mod pair;
pub mod restore;

use super::opened::Opened;

/// Major numbers of terminals: virtual consoles, serial lines, and the slave ends of pseudo-terminals.
const VIRTUAL_OR_SERIAL: u32 = 4;
const CONSOLE_OR_CURRENT: u32 = 5;
const FIRST_SLAVE: u32 = 136;
const LAST_SLAVE: u32 = 143;

/// Whether it is a terminal.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.file_type() == libc::S_IFCHR
        && matches!(opened.device(), (VIRTUAL_OR_SERIAL | CONSOLE_OR_CURRENT | FIRST_SLAVE..=LAST_SLAVE, _))
}

/// Whether it is the master of a pseudo-terminal: `/dev/ptmx`.
#[must_use]
pub fn is_master(opened: &Opened) -> bool {
    opened.device() == (CONSOLE_OR_CURRENT, 2)
}

/// Whether it is the slave of a pseudo-terminal.
#[must_use]
pub fn is_slave(opened: &Opened) -> bool {
    (FIRST_SLAVE..=LAST_SLAVE).contains(&opened.device().0)
}

/// Whether it was opened as `/dev/tty`.
#[must_use]
pub fn is_controlling(opened: &Opened) -> bool {
    opened.device() == (CONSOLE_OR_CURRENT, 0)
}
