//! Giving an application the terminal on which it is restored.

use crate::error::{Error, Result, Subject, code};
use crate::kinds::descriptor::{all, restore};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::sys::terminal;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::process::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use vckpt_image_format::record::terminal::{Modes, Terminal};
use vckpt_image_format::{Image, TaskId};

/// Adds a step for each terminal.
///
/// # Errors
/// As [`all`].
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    for terminal in all::<Terminal>(image)? {
        if let Some(group) = terminal.foreground {
            plan.action(Stage::Timers, GiveForeground { group: TaskId(group) });
        }
        plan.action(Stage::Descriptors, OpenTerminal(terminal));
    }
    super::pair::restore::plan(image, plan)
}

/// Opens our terminal in the place of the old one.
#[derive(Debug)]
struct OpenTerminal(Terminal);

impl Action for OpenTerminal {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let path = own_terminal().ok_or_else(|| {
            Error::new(code::NO_TERMINAL, "the application uses a terminal, and the restore has none")
                .about(Subject::path(&self.0.path))
        })?;
        let about = |error: Box<Error>| error.about(Subject::path(path.display()));
        let failed = |errno: rustix::io::Errno| {
            Error::system(code::DESCRIPTOR_RESTORE, "opening the terminal", errno)
                .about(Subject::path(path.display()))
        };
        for opened in &self.0.descriptions {
            // Without waiting for a line; the flag is set as it was afterwards.
            let flags = opened.description.flags | libc::O_NONBLOCK.cast_unsigned();
            let made: OwnedFd = if opened.controlling {
                restore::open(Path::new("/dev/tty"), flags).or_else(|_| restore::open(&path, flags))
            } else {
                restore::open(&path, flags)
            }
            .map_err(failed)?;
            restore::keep(restoring, &opened.description, made).map_err(about)?;
        }
        let Some(any) = self.0.descriptions.first() else { return Ok(()) };
        let Some(any) = restoring.descriptions.get(&any.description.id) else { return Ok(()) };
        set_modes(any, &self.0.modes).map_err(about)
    }
}

/// Puts the group that was in the foreground into the foreground of our terminal, if we are there.
#[derive(Debug)]
struct GiveForeground {
    group: TaskId,
}

impl Action for GiveForeground {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let Some(own) = controlling_terminal() else { return Ok(()) };
        let us = rustix::process::getpgrp();
        if rustix::termios::tcgetpgrp(&own) != Ok(us) || !restoring.puppets.contains_key(&self.group) {
            return Ok(());
        }
        let leader = restoring.system_id(self.group)?;
        let Some(group) =
            Pid::from_raw(leader).and_then(|leader| rustix::process::getpgid(Some(leader)).ok())
        else {
            return Ok(());
        };
        // A group of another session can't be there; the application is then in a session of its own.
        match rustix::termios::tcsetpgrp(&own, group) {
            Ok(()) | Err(rustix::io::Errno::PERM) => Ok(()),
            Err(errno) => {
                Err(Error::system(code::DESCRIPTOR_RESTORE, "giving the terminal to the application", errno))
            }
        }
    }
}

/// Takes the foreground of our terminal back when the process group to which it was given has ended.
pub fn take_foreground_back() {
    let Some(own) = controlling_terminal() else { return };
    let us = rustix::process::getpgrp();
    let Ok(group) = rustix::termios::tcgetpgrp(&own) else { return };
    let has_ended = rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH);
    if group == us || !has_ended {
        return;
    }
    // Without this, who takes it from the background is stopped.
    let mut set = SigSet::empty();
    set.add(Signal::SIGTTOU);
    let Ok(before) = set.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
    // If it fails, whoever started us takes it back.
    let _ = rustix::termios::tcsetpgrp(&own, us);
    let _ = before.thread_set_mask();
}

fn controlling_terminal() -> Option<OwnedFd> {
    restore::open(Path::new("/dev/tty"), libc::O_RDWR.cast_unsigned()).ok()
}

/// The path of the terminal on which this program runs.
fn own_terminal() -> Option<PathBuf> {
    let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let found = standard.into_iter().find_map(|file| {
        let name = rustix::termios::ttyname(file, Vec::new()).ok()?;
        Some(PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(name.as_bytes()).into_owned())))
    });
    found.or_else(|| {
        let current = PathBuf::from("/dev/tty");
        restore::open(&current, libc::O_RDWR.cast_unsigned()).is_ok().then_some(current)
    })
}

/// Sets the modes of a terminal, if they differ; through a master those of its slave.
///
/// # Errors
/// See ioctl_tty(2).
pub fn set_modes(opened: &OwnedFd, modes: &Modes) -> Result<()> {
    let mut characters = [0; 19];
    for (to, from) in characters.iter_mut().zip(&modes.characters) {
        *to = *from;
    }
    let modes = terminal::Modes {
        input: modes.input,
        output: modes.output,
        control: modes.control,
        local: modes.local,
        discipline: modes.discipline,
        characters,
        input_speed: modes.speeds.0,
        output_speed: modes.speeds.1,
    };
    if terminal::modes(opened.as_fd()) == Ok(modes) {
        return Ok(());
    }
    terminal::set_modes(opened.as_fd(), &modes)
        .map_err(|errno| Error::system(code::DESCRIPTOR_RESTORE, "setting the modes of the terminal", errno))
}
