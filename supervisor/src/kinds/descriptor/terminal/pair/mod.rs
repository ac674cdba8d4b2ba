//! Pseudo-terminals whose master the tree has, or that were hung up when it was closed; see pty(7).
//!
//! - **Saved**: number, modes, window size, packet mode, lock, whose controlling terminal it is with the foreground
//!   group, and what waits in both directions.
//! - **Number**: `/dev/pts/<n>` is the same if it is free; else the report tells the new one.
//! - **Not saved**: that output was stopped by `Ctrl-S`; a change of modes or flow that a master in packet mode was not
//!   told yet; an end of file that was typed and not read.
//! - **Kernel**: `TIOCGPTPEER` (4.13), `TIOCGPKT` and `TIOCGPTLCK` (3.8).
//!
//! What waits can't be looked at without taking it: it is taken and put back by calls that the process with the master
//! makes in one go, whatever becomes of this program meanwhile.

pub mod observe;
pub mod queue;
pub mod restore;

use vckpt_image_format::record::terminal::Modes;

/// What is typed is taken as it is, and nothing is answered.
const NOTHING: u32 = 0;

/// Modes in which all bytes pass as they are. Output that is stopped stays so.
#[must_use]
pub fn raw(modes: &Modes) -> Modes {
    let mut raw = quiet(modes);
    raw.local = NOTHING;
    raw
}

/// Modes in which lines stay lines, but no character has a meaning besides the end of a line.
#[must_use]
pub fn quiet(modes: &Modes) -> Modes {
    Modes {
        input: modes.input & libc::IXON,
        output: NOTHING,
        local: modes.local & libc::ICANON,
        characters: vec![0; modes.characters.len()],
        ..modes.clone()
    }
}
