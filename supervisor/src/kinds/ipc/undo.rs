//! Changes of semaphores that the end of a process would undo: `SEM_UNDO` in semop(2). The kernel tells nobody of them, but
//! who has last changed a semaphore. Whoever holds a lock that its end would release is that one, since nobody else got it.

use crate::frozen::Frozen;
use crate::records::Records;
use crate::sys::process;
use std::fs;

/// Reports the sets of the namespace of this program that a process of the tree was the last to change.
pub(super) fn report(frozen: &Frozen, records: &mut Records) {
    let text = fs::read_to_string("/proc/sysvipc/sem").unwrap_or_default();
    for (id, count) in sets(&text) {
        // Sets that this user may not look at are none of his processes either.
        let changers: Vec<i32> =
            (0..count).filter_map(|number| process::last_to_change(id, number).ok()).collect();
        let found = frozen.processes.iter().find(|process| changers.contains(&process.pid));
        if let Some(process) = found {
            records.degraded.push(format!(
                "{}: it has changed semaphore set {id} of the host; what its end undoes (SEM_UNDO) can't be seen",
                process.subject()
            ));
        }
    }
}

/// ID and number of semaphores of the sets that were ever changed: a line for each behind the first (sysvipc(7)).
fn sets(text: &str) -> Vec<(i32, i32)> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let was_changed = *words.get(8)? != "0";
        was_changed.then_some((words.get(1)?.parse().ok()?, words.get(3)?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sets_are_understood() {
        let text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                    \x20        0          7   600          3     0     0     0     0 1700000000 1700000000\n\
                    \x20        0          8   600          1     0     0     0     0          0 1700000000\n";
        assert_eq!(super::sets(text), [(7, 3)]);
    }
}
