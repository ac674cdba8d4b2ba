//! Short sleeps as short as they are asked for.

use nix::sys::prctl;

/// While it lives, the kernel ends the sleeps of this thread without delay (`PR_SET_TIMERSLACK`). It must not live when
/// a process is made that outlives us: that would inherit it.
#[derive(Debug)]
#[must_use]
pub struct PreciseSleeps {
    before: Option<u64>,
}

impl PreciseSleeps {
    /// From now on.
    pub fn begin() -> Self {
        let before = prctl::get_timerslack().ok().and_then(|slack| u64::try_from(slack).ok());
        // Without it sleeps are longer, and nothing else.
        let _ = prctl::set_timerslack(1);
        Self { before }
    }
}

impl Drop for PreciseSleeps {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = prctl::set_timerslack(before);
        }
    }
}
