//! Looking at terminals.

use super::is_controlling;
use crate::error::{Problems, Result, code};
use crate::kinds::descriptor::opened::{Opened, Walk};
use crate::records::Records;
use crate::sys::terminal;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use vckpt_image_format::TerminalId;
use vckpt_image_format::record::terminal::{Modes, Terminal, TerminalDescription};

/// Gives a record for each terminal.
///
/// # Errors
/// Terminals that were hung up.
pub fn observe(walk: &Walk<'_>, opened: &[&Opened], records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let mut terminals: BTreeMap<(u32, u32), Vec<&Opened>> = BTreeMap::new();
    for opened in opened {
        match terminal::device(opened.file.as_fd()) {
            Ok(device) => terminals.entry(device).or_default().push(opened),
            Err(errno) => problems.push(
                opened
                    .refuse(code::DESCRIPTOR_KIND, "a terminal that was hung up")
                    .because(errno)
                    .hint("start the program without a terminal (setsid, output into a file), or keep it open"),
            ),
        }
    }
    for (number, descriptions) in terminals.into_values().enumerate() {
        let id = TerminalId(u32::try_from(number).unwrap_or(u32::MAX));
        if let Some(record) = problems.take(look(walk, id, &descriptions)) {
            records.push(record);
        }
    }
    problems.finish()
}

fn look(walk: &Walk<'_>, id: TerminalId, descriptions: &[&Opened]) -> Result<Terminal> {
    let Some(first) = descriptions.iter().find(|opened| !is_controlling(opened)).or(descriptions.first()) else {
        return Err(crate::Error::new(code::INTERNAL, "a terminal without a descriptor"));
    };
    let failed = |errno| first.failed("looking at a terminal", errno);
    let modes = terminal::modes(first.file.as_fd()).map_err(failed)?;
    let window = rustix::termios::tcgetwinsize(&first.file)
        .map_err(|errno| first.failed("asking for the size of a terminal", errno))?;
    // Both are refused to a process that has another controlling terminal, as this one may.
    let session = rustix::termios::tcgetsid(&first.file).ok();
    let foreground = rustix::termios::tcgetpgrp(&first.file).ok();
    let session = session.and_then(|leader| walk.frozen.virtual_id(leader.as_raw_nonzero().get()));
    let foreground = foreground.and_then(|group| walk.frozen.virtual_id(group.as_raw_nonzero().get()));
    Ok(Terminal {
        id,
        path: first.link.clone(),
        modes: Modes {
            input: modes.input,
            output: modes.output,
            control: modes.control,
            local: modes.local,
            discipline: modes.discipline,
            characters: modes.characters.to_vec(),
            speeds: (modes.input_speed, modes.output_speed),
        },
        window: (window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel),
        session,
        foreground: foreground.map(|group| group.0),
        descriptions: descriptions
            .iter()
            .map(|opened| TerminalDescription {
                description: opened.description.clone(),
                controlling: is_controlling(opened),
            })
            .collect(),
    })
}
