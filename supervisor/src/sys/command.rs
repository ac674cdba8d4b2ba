//! Starting programs that are to find the signals as they would without us.

use nix::sys::signal::SigSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the program of a command begin without a blocked signal, whatever the caller has blocked.
pub fn without_blocked_signals(command: &mut Command) -> &mut Command {
    let unblock = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe functions may be called: sigemptyset and pthread_sigmask are.
    unsafe { command.pre_exec(unblock) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn no_signal_is_blocked() {
        let mut set = SigSet::empty();
        set.add(Signal::SIGUSR1);
        set.thread_block().unwrap();
        let blocked = |command: &mut Command| {
            let output = command.args(["SigBlk", "/proc/self/status"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().split_whitespace().nth(1).map(str::to_owned)
        };
        assert_ne!(blocked(&mut Command::new("grep")).unwrap(), "0".repeat(16));
        let mut command = Command::new("grep");
        assert_eq!(blocked(without_blocked_signals(&mut command)).unwrap(), "0".repeat(16));
        set.thread_unblock().unwrap();
    }
}
