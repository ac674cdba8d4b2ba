//! The rest of the life of a namespace's init: reap, and end as the root task did. No requests any more.

use crate::life::ORPHAN_STATUS;
use crate::sys::{self, error::EINTR, error_of};

/// Reaps children until none is left, then ends as the child with pid `root` ended.
pub(super) fn reap(root: u64) -> ! {
    let mut exit_status = u64::from(ORPHAN_STATUS);
    loop {
        let (child, status) = sys::wait_for_any_child();
        match error_of(child) {
            Some(EINTR) => {}
            Some(_) => sys::exit_group(exit_status),
            None if child.cast_unsigned() == root => exit_status = exit_status_of(status),
            None => {}
        }
    }
}

/// The exit status that tells of this wait status: a signal N is told as 128 + N, as an init can't end by a signal
/// of its own.
fn exit_status_of(status: u32) -> u64 {
    match status & 0x7f {
        0 => u64::from((status >> 8) & 0xff),
        signal => 128 + u64::from(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::exit_status_of;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(exit_status_of(0), 0);
        assert_eq!(exit_status_of(3 << 8), 3);
        assert_eq!(exit_status_of(9), 137);
        assert_eq!(exit_status_of(0x80 | 11), 139, "with a core dump");
    }
}
