//! `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` of a restored tree: they never go back. Where those of the host are behind the
//! image's (another boot, another host), the tree gets a time namespace (time_namespaces(7)), in which they go on from
//! where they were. So does one that was in a time namespace of its own.

use crate::error::{Error, Result, code};
use crate::stub::batch::Batch;
use crate::stub::puppet::Puppet;
use nix::time::{ClockId, clock_gettime};
use vckpt_image_format::record::snapshot::Snapshot;

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// The clocks from which a restored tree goes on, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    monotonic: i64,
    boottime: i64,
}

/// A clock as this program sees it, in nanoseconds.
pub(crate) fn now(id: ClockId) -> i64 {
    clock_gettime(id).map_or(0, |time| time.tv_sec() * SECOND + time.tv_nsec())
}

/// The clocks that the tree of an image needs; none: those of the host.
pub(crate) fn needed(snapshot: &Snapshot) -> Option<Clocks> {
    let Snapshot { monotonic, boottime, time_namespace, .. } = *snapshot;
    let is_behind = now(ClockId::CLOCK_MONOTONIC) < monotonic || now(ClockId::CLOCK_BOOTTIME) < boottime;
    (time_namespace || is_behind).then_some(Clocks { monotonic, boottime })
}

impl Clocks {
    /// Makes a time namespace for all children that a puppet will have.
    ///
    /// # Errors
    /// [`code::PRIVILEGE`] or [`code::HOST_FEATURE`] with the kernel's reason.
    pub(crate) fn give(self, puppet: &mut Puppet) -> Result<()> {
        let mut batch = Batch::new();
        let time = libc::CLONE_NEWTIME.into();
        batch.must("making a time namespace", libc::SYS_unshare, [time]);
        puppet.run(&batch).map_err(|error| {
            Error::new(code::HOST_FEATURE, "making a time namespace")
                .because(error.why.as_deref().unwrap_or("refused"))
        })?;
        let (monotonic, boottime) = own_offsets();
        let offset = |wanted: i64, id: ClockId, own: i64| split(wanted - (now(id) - own));
        let monotonic = offset(self.monotonic, ClockId::CLOCK_MONOTONIC, monotonic);
        let boottime = offset(self.boottime, ClockId::CLOCK_BOOTTIME, boottime);
        let text =
            format!("monotonic {} {}\nboottime {} {}\n", monotonic.0, monotonic.1, boottime.0, boottime.1);
        std::fs::write(crate::proc::read::path(puppet.tid, "timens_offsets"), text)
            .map_err(|error| Error::system(code::PRIVILEGE, "setting the clocks of a time namespace", error))
    }
}

/// Seconds and nanoseconds, of which the latter are never negative.
fn split(time: i64) -> (i64, i64) {
    (time.div_euclid(SECOND), time.rem_euclid(SECOND))
}

/// How far the clocks that this program sees are ahead of those of the host, in nanoseconds.
fn own_offsets() -> (i64, i64) {
    let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    (offset(&text, "monotonic"), offset(&text, "boottime"))
}

fn offset(text: &str, name: &str) -> i64 {
    let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| {
        let number = |index: usize| fields.get(index)?.parse::<i64>().ok();
        number(1)?.checked_mul(SECOND)?.checked_add(number(2)?)
    });
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_split() {
        let text = "monotonic          -5  250000000\nboottime            7          1\n";
        assert_eq!(offset(text, "monotonic"), -4_750_000_000);
        assert_eq!(offset(text, "boottime"), 7_000_000_001);
        assert_eq!(offset("", "boottime"), 0);
        assert_eq!(split(-4_750_000_000), (-5, 250_000_000));
    }
}
