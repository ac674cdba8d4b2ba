//! Making pairs again.

use super::{quiet, raw};
use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::terminal::restore::set_modes;
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use crate::sys::{process, terminal};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::Winsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use vckpt_image_format::record::pseudo_terminal::{PairState, PseudoTerminal};
use vckpt_image_format::{Image, TaskId};

/// Most masters that are opened to get to the number that a pair had.
const MOST_MASTERS: u32 = 256;
const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;

/// Adds the steps for each pair: it is there before its session is founded.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for pair in all::<PseudoTerminal>(image)? {
        if let Some(PairState { session: Some(session), foreground: Some(group), .. }) = pair.state {
            plan.action(Stage::Timers, GiveForeground { session, group });
        }
        plan.action(Stage::SharedObjects, MakePair(pair.clone()));
        plan.action(Stage::Descriptors, OpenPair(pair));
    }
    Ok(())
}

fn failed(what: &str, errno: impl Into<std::io::Error>) -> Box<Error> {
    Error::system(code::DESCRIPTOR_RESTORE, what, errno).about(Subject::path("/dev/ptmx"))
}

/// A pair while its descriptions are made.
#[derive(Debug)]
pub struct MadePair {
    /// The master, until its description has it.
    pub master: Option<OwnedFd>,
    /// The slave, if it was ever opened.
    pub slave: Option<OwnedFd>,
}

/// Makes a pair with what waited in it.
#[derive(Debug)]
struct MakePair(PseudoTerminal);

impl Action for MakePair {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let master = self.open_master(restoring)?;
        let open = || terminal::open_slave(master.as_fd(), libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK);
        terminal::set_locked(master.as_fd(), false).map_err(|errno| failed("unlocking a slave", errno))?;
        let Some(state) = &self.0.state else {
            let slave = Some(open().map_err(|errno| failed("opening a slave", errno))?);
            restoring.pairs.insert(self.0.id, MadePair { master: Some(master), slave });
            return Ok(());
        };
        let mut slave = None;
        if state.abandoned || !self.0.slaves.is_empty() {
            let opened = open().map_err(|errno| failed("opening a slave", errno))?;
            fill(&master, &opened, state)?;
            slave = (!state.abandoned).then_some(opened);
        }
        set_modes(&master, &state.modes)?;
        let (rows, columns, width, height) = state.window;
        let window = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: width, ws_ypixel: height };
        rustix::termios::tcsetwinsize(&master, window)
            .map_err(|errno| failed("setting the size of a terminal", errno))?;
        terminal::set_packet_mode(master.as_fd(), state.packets)
            .map_err(|errno| failed("setting packet mode", errno))?;
        terminal::set_locked(master.as_fd(), state.locked)
            .map_err(|errno| failed("locking a slave", errno))?;
        if let (Some(session), Some(slave)) = (state.session, &slave) {
            let copy = slave.try_clone().map_err(|error| failed("copying a descriptor", error))?;
            restoring.session_terminals.insert(session, copy);
        }
        restoring.pairs.insert(self.0.id, MadePair { master: Some(master), slave });
        Ok(())
    }
}

impl MakePair {
    /// A master with the old number, if that is free.
    fn open_master(&self, restoring: &mut Restoring<'_>) -> Result<OwnedFd> {
        let wanted = self.0.number;
        let mut others = Vec::new();
        let flags = (libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK).cast_unsigned();
        // The kernel gives the lowest number that is free: those below are taken for a moment.
        for _ in 0..MOST_MASTERS {
            let master = restore::open(Path::new("/dev/ptmx"), flags)
                .map_err(|errno| failed("making a pseudo-terminal", errno))?;
            let number = terminal::number(master.as_fd())
                .map_err(|errno| failed("asking for the number of a pseudo-terminal", errno))?;
            if number == wanted {
                return Ok(master);
            }
            others.push((number, master));
            if number > wanted {
                break;
            }
        }
        let lowest = others.into_iter().min_by_key(|(number, _)| *number);
        let Some((number, master)) = lowest else {
            return Err(Error::new(code::INTERNAL, "no pseudo-terminal was made"));
        };
        if self.0.master.is_some() {
            restoring.degraded.push(format!("/dev/pts/{wanted}: it is taken; it is /dev/pts/{number} now"));
        }
        Ok(master)
    }
}

/// Writes what waited: from the slave with nothing changed on the way, then from the master with lines kept as lines.
fn fill(master: &OwnedFd, slave: &OwnedFd, state: &PairState) -> Result<()> {
    let write = |to: &OwnedFd, bytes: &[u8]| -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = rustix::io::write(to, rest).map_err(|errno| failed("filling a terminal", errno))?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    };
    set_modes(master, &raw(&state.modes))?;
    write(slave, &state.output)?;
    set_modes(master, &quiet(&state.modes))?;
    write(master, &state.input)?;
    // It is on its way through a queue of the kernel's: asking waits for that, so that it is not taken in other modes.
    let mut polled = [PollFd::new(slave, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map(drop)
        .map_err(|errno| failed("filling a terminal", errno))
}

/// Gives a pair's descriptions away.
#[derive(Debug)]
struct OpenPair(PseudoTerminal);

impl Action for OpenPair {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(mut pair) = restoring.pairs.remove(&self.0.id) else {
            return Err(Error::new(code::INTERNAL, "a pseudo-terminal that was not made"));
        };
        for opened in &self.0.slaves {
            let Some(slave) = &pair.slave else {
                return Err(Error::new(code::IMAGE_BAD, "a slave that nobody has opened is open"));
            };
            // Without waiting, whatever the flags say.
            let flags = opened.description.flags | libc::O_NONBLOCK.cast_unsigned();
            let session = self.0.state.as_ref().and_then(|state| state.session);
            let made = match session.filter(|_| opened.controlling) {
                Some(session) => open_controlling(restoring, session, flags)?,
                None => restore::open_again(slave.as_fd(), flags)
                    .map_err(|errno| failed("opening a slave", errno))?,
            };
            if self.0.state.is_some() {
                restore::keep(restoring, &opened.description, made)?;
            } else {
                // Once it is hung up, nothing can be set but its flags.
                restoring.descriptions.insert(opened.description.id, made);
            }
        }
        match &self.0.master {
            Some(description) => {
                let Some(master) = pair.master.take() else { return Ok(()) };
                restore::keep(restoring, description, master)
            }
            None => {
                drop(pair);
                for opened in &self.0.slaves {
                    let Some(made) = restoring.descriptions.get(&opened.description.id) else { continue };
                    // Flags that can't be set on it any more it may keep.
                    let _ = crate::sys::file::set_status_flags(made.as_fd(), opened.description.flags);
                }
                Ok(())
            }
        }
    }
}

/// Opens `/dev/tty` in a process whose controlling terminal it is.
fn open_controlling(restoring: &mut Restoring<'_>, session: TaskId, flags: u32) -> Result<OwnedFd> {
    let mut batch = Batch::new();
    let path = batch.data(b"/dev/tty\0");
    let opened = batch.must(
        "opening the controlling terminal",
        libc::SYS_openat,
        [libc::AT_FDCWD.into(), path.into(), flags.into(), 0.into()],
    );
    let number = restoring.run(session, &batch)?.get(opened).unwrap_or_default();
    let number = i32::try_from(number).unwrap_or(-1);
    let pid = restoring.system_id(session)?;
    let made = process::pidfd_open(pid).and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), number));
    let mut batch = Batch::new();
    batch.must("closing a descriptor", libc::SYS_close, [number.into()]);
    restoring.run(session, &batch)?;
    made.map_err(|errno: Errno| failed("fetching a terminal", errno))
}

/// Makes a terminal the controlling one of the session that a process has just founded.
///
/// # Errors
/// The kernel's reason.
pub fn take_controlling(restoring: &mut Restoring<'_>, session: TaskId) -> Result<()> {
    let Some(slave) = restoring.session_terminals.get(&session).map(AsRawFd::as_raw_fd) else {
        return Ok(());
    };
    let mut batch = Batch::new();
    let slave = batch.descriptor(slave);
    batch.must("taking a controlling terminal", libc::SYS_ioctl, [slave, TIOCSCTTY.into(), 0.into()]);
    batch.must("closing a descriptor", libc::SYS_close, [slave]);
    restoring.run(session, &batch).map(drop)
}

/// Puts a group into the foreground of a terminal of the tree.
#[derive(Debug)]
struct GiveForeground {
    session: TaskId,
    group: u32,
}

impl Action for GiveForeground {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(slave) = restoring.session_terminals.remove(&self.session) else { return Ok(()) };
        let mut batch = Batch::new();
        let group = batch.data(&self.group.to_le_bytes());
        let slave_there = batch.descriptor(slave.as_raw_fd());
        let arguments = [slave_there, TIOCSPGRP.into(), group.into()];
        batch.must("choosing the foreground group of a terminal", libc::SYS_ioctl, arguments);
        batch.must("closing a descriptor", libc::SYS_close, [slave_there]);
        restoring.run(self.session, &batch).map(drop)
    }
}
