//! Looking at pairs.

use crate::error::{Result, code};
use crate::kinds::descriptor::opened::{Holder, Opened, Walk};
use crate::kinds::descriptor::terminal::is_controlling;
use crate::kinds::descriptor::terminal::observe::{modes, numbers};
use crate::sys::terminal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use vckpt_image_format::record::pseudo_terminal::{PairState, PseudoTerminal};
use vckpt_image_format::record::terminal::TerminalDescription;
use vckpt_image_format::{TaskId, TerminalId};

/// A pair that is still to be asked for what waits in it.
#[derive(Debug)]
pub struct Pair {
    /// Its record, without what waits.
    pub record: PseudoTerminal,
    /// Who has the master.
    pub holder: Option<Holder>,
}

/// A pair whose master is open.
///
/// # Errors
/// What the kernel does not tell.
pub fn open_pair(
    walk: &Walk<'_>,
    id: TerminalId,
    device: (u32, u32),
    master: &Opened,
    slaves: &[&Opened],
) -> Result<Pair> {
    let failed = |errno: nix::errno::Errno| master.failed("looking at a pseudo-terminal", errno);
    if master.holders[0].process == Holder::NOBODY {
        let what = "a pseudo-terminal whose master only travels in a socket";
        let error = master.refuse(code::DESCRIPTOR_KIND, what).passing();
        return Err(error.hint("try again when the receiver has taken it"));
    }
    let file = master.file.as_fd();
    let window = rustix::termios::tcgetwinsize(&master.file)
        .map_err(|errno| master.failed("asking for the size of a terminal", errno))?;
    let (session, foreground) = users(walk, device);
    let state = PairState {
        modes: modes(file).map_err(failed)?,
        window: (window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel),
        packets: terminal::is_in_packet_mode(file).map_err(failed)?,
        locked: terminal::is_locked(file).map_err(failed)?,
        abandoned: slaves.is_empty() && is_abandoned(master)?,
        session,
        foreground,
        output: Vec::new(),
        input: Vec::new(),
    };
    let record = PseudoTerminal {
        id,
        number: terminal::number(file).map_err(failed)?,
        master: Some(master.description.clone()),
        slaves: slaves.iter().map(|slave| described(slave)).collect(),
        state: Some(state),
    };
    Ok(Pair { record, holder: master.holders.first().copied() })
}

/// A slave whose master was closed.
#[must_use]
pub fn hung_up(id: TerminalId, slave: &Opened) -> Pair {
    let (_, number) = slave.device();
    let record = PseudoTerminal { id, number, master: None, slaves: vec![described(slave)], state: None };
    Pair { record, holder: None }
}

fn described(slave: &Opened) -> TerminalDescription {
    TerminalDescription { description: slave.description.clone(), controlling: is_controlling(slave) }
}

/// Whether the slave was open and is closed.
fn is_abandoned(master: &Opened) -> Result<bool> {
    let mut polled = [PollFd::new(&master.file, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(|errno| master.failed("asking whether a terminal is closed", errno))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

/// The leader of the session that has it as its controlling terminal, and the foreground group.
fn users(walk: &Walk<'_>, device: (u32, u32)) -> (Option<TaskId>, Option<u32>) {
    let living = walk.frozen.processes.iter().filter(|process| !process.threads.is_empty());
    let mut stats = living.map(|process| &process.stat);
    let Some(stat) = stats.find(|stat| numbers(stat.terminal.cast_unsigned()) == device) else {
        return (None, None);
    };
    let foreground = walk.frozen.virtual_id(stat.foreground_group).map(|group| group.0);
    (walk.frozen.virtual_id(stat.session), foreground)
}
