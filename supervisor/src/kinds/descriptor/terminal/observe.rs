//! Looking at terminals.

use super::{is_controlling, is_master, is_slave, pair};
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::proc::{read, stat};
use crate::records::Records;
use crate::sys::terminal;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use vckpt_image_format::record::terminal::{Modes, Terminal, TerminalDescription};
use vckpt_image_format::{TaskId, TerminalId};

/// Gives a record for each terminal.
///
/// # Errors
/// Terminals that were hung up and are no pseudo-terminals.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut terminals: BTreeMap<(u32, u32), Vec<&Opened>> = BTreeMap::new();
    let mut hung_up = Vec::new();
    for opened in opened {
        match terminal::device(opened.file.as_fd()) {
            Ok(device) => terminals.entry(device).or_default().push(opened),
            Err(Errno::EIO) if is_slave(opened) => hung_up.push(*opened),
            Err(errno) => problems.push(
                opened.refuse(code::DESCRIPTOR_KIND, "a terminal that was hung up").because(errno).hint(
                    "start the program without a terminal (setsid, output into a file), or keep it open",
                ),
            ),
        }
    }
    let mut ids = (0..).map(TerminalId);
    let mut next = || ids.next().unwrap_or(TerminalId(u32::MAX));
    for (device, descriptions) in terminals {
        let (masters, slaves): (Vec<&Opened>, Vec<&Opened>) =
            descriptions.iter().partition(|opened| is_master(opened));
        if let Some(master) = masters.first() {
            let pair = pair::observe::open_pair(walk, next(), device, master, &slaves);
            records.pairs.extend(problems.take(pair));
        } else if let Some(record) = problems.take(look(walk, next(), &descriptions)) {
            records.push(record);
        }
    }
    records.pairs.extend(hung_up.into_iter().map(|slave| pair::observe::hung_up(next(), slave)));
    problems.finish()
}

fn look(walk: &Walk<'_>, id: TerminalId, descriptions: &[&Opened]) -> Result<Terminal> {
    let Some(first) = descriptions.iter().find(|opened| !is_controlling(opened)).or(descriptions.first())
    else {
        return Err(crate::Error::new(code::INTERNAL, "a terminal without a descriptor"));
    };
    let failed = |errno| first.failed("looking at a terminal", errno);
    let modes = modes(first.file.as_fd()).map_err(failed)?;
    let window = rustix::termios::tcgetwinsize(&first.file)
        .map_err(|errno| first.failed("asking for the size of a terminal", errno))?;
    let (session, foreground) = users(walk, descriptions);
    Ok(Terminal {
        id,
        path: first.link.clone(),
        modes,
        window: (window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel),
        session,
        foreground,
        descriptions: descriptions
            .iter()
            .map(|opened| TerminalDescription {
                description: opened.description.clone(),
                controlling: is_controlling(opened),
            })
            .collect(),
    })
}

/// The modes of a terminal; of a master, those of its slave.
///
/// # Errors
/// See ioctl_tty(2).
pub fn modes(terminal: BorrowedFd<'_>) -> std::result::Result<Modes, Errno> {
    let modes = terminal::modes(terminal)?;
    Ok(Modes {
        input: modes.input,
        output: modes.output,
        control: modes.control,
        local: modes.local,
        discipline: modes.discipline,
        characters: modes.characters.to_vec(),
        speeds: (modes.input_speed, modes.output_speed),
    })
}

/// The leader of the session that has it as its controlling terminal, and the foreground group, as far as they are in
/// the tree. The terminal itself tells that only to members of the session; `/proc` tells it of each of them.
fn users(walk: &Walk<'_>, descriptions: &[&Opened]) -> (Option<TaskId>, Option<u32>) {
    let Some(device) = descriptions.iter().find_map(|opened| terminal::device(opened.file.as_fd()).ok())
    else {
        return (None, None);
    };
    let pids = descriptions.iter().flat_map(|opened| &opened.holders).map(|holder| holder.pid);
    let stats = pids.filter_map(|pid| stat::parse(&read::file(pid, "stat").ok()?));
    let Some(stat) = stats.into_iter().find(|stat| numbers(stat.terminal.cast_unsigned()) == device) else {
        return (None, None);
    };
    let foreground = walk.frozen.virtual_id(stat.foreground_group).map(|group| group.0);
    (walk.frozen.virtual_id(stat.session), foreground)
}

/// Major and minor number of a device as `/proc/<pid>/stat` has it.
#[must_use]
pub fn numbers(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}
