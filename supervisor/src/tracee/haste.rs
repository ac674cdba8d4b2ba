//! Not keeping a tree that stands still waiting: neither by sleeps that are longer than they need to be, nor behind
//! others that want the processor.

use nix::sys::prctl;

/// While it lives, the kernel ends the sleeps of this thread without delay (`PR_SET_TIMERSLACK`), and, where we may, it
/// goes before other threads (nice(2)). It must not live when a process is made that outlives us: that would inherit it.
#[derive(Debug)]
#[must_use]
pub struct Haste {
    slack: Option<u64>,
    nice: Option<i32>,
}

/// The best nice value.
const FIRST: i32 = -20;

impl Haste {
    /// From now on.
    pub fn begin() -> Self {
        let slack = prctl::get_timerslack().ok().and_then(|slack| u64::try_from(slack).ok());
        // Without either the tree stands still for a bit longer, and nothing else.
        let _ = prctl::set_timerslack(1);
        let nice = rustix::process::getpriority_process(None).ok();
        let changed = rustix::process::setpriority_process(None, FIRST).is_ok();
        Self { slack, nice: nice.filter(|_| changed) }
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        if let Some(slack) = self.slack {
            let _ = prctl::set_timerslack(slack);
        }
        if let Some(nice) = self.nice {
            let _ = rustix::process::setpriority_process(None, nice);
        }
    }
}
