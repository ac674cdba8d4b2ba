//! Terminals that somebody else provides: a job that was started from a shell. See tty(4) and pty(7).
//!
//! - **Saved**: which descriptors lead to a terminal, its modes, its window size, and who was in the foreground.
//! - **Restored** onto the terminal on which the restore runs: its standard input, output or error, else `/dev/tty`. It
//!   gets the modes of the old one. Its window size is its own: the program learns of it as of any other change.
//! - **Refused**: both ends of a pseudo-terminal in the tree; a terminal that was hung up.
//! - **Not saved**: what was typed and not read yet.

pub mod observe;
pub mod restore;

use super::opened::Opened;

/// Major numbers of terminals: virtual consoles, serial lines, and the slave ends of pseudo-terminals.
const VIRTUAL_OR_SERIAL: u32 = 4;
const CONSOLE_OR_CURRENT: u32 = 5;
const FIRST_SLAVE: u32 = 136;
const LAST_SLAVE: u32 = 143;

/// Whether it is a terminal; not the master end of one, which is minor 2 of `CONSOLE_OR_CURRENT`.
#[must_use]
pub fn claims(opened: &Opened) -> bool {
    opened.file_type() == libc::S_IFCHR
        && match opened.device() {
            (VIRTUAL_OR_SERIAL | FIRST_SLAVE..=LAST_SLAVE, _) => true,
            (CONSOLE_OR_CURRENT, minor) => minor != 2,
            _ => false,
        }
}

/// Whether it was opened as `/dev/tty`.
#[must_use]
pub fn is_controlling(opened: &Opened) -> bool {
    opened.device() == (CONSOLE_OR_CURRENT, 0)
}
