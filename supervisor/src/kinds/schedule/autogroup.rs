//! Autogroups: what a session has of the processors, against other sessions. See sched(7).

use crate::error::Result;
use crate::plan::Action;
use crate::proc::read;
use crate::restoring::Restoring;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};
use vckpt_image_format::TaskId;

/// The kernel lets ordinary users change one autogroup every tenth of a second, all users together.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(5);

/// The name and niceness of the autogroup of a process; none where it has none.
pub(super) fn read(pid: i32) -> Option<(String, i32)> {
    parse(&String::from_utf8_lossy(&read::file(pid, "autogroup").ok()?))
}

/// A line such as `/autogroup-27 nice 5`.
fn parse(text: &str) -> Option<(String, i32)> {
    let (name, nice) = text.trim().split_once(" nice ")?;
    Some((name.to_owned(), nice.parse().ok()?))
}

/// Gives the sessions of the tree their niceness, by any of their processes.
#[derive(Debug)]
pub(super) struct SetShares(pub(super) Vec<(TaskId, i32)>);

impl Action for SetShares {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let ours = read(std::process::id().cast_signed()).map(|(name, _)| name);
        let mut known = HashSet::new();
        for &(process, wanted) in &self.0 {
            let pid = restoring.system_id(process)?;
            let found = read(pid);
            let (name, nice) = found.unzip();
            if nice == Some(wanted) || nice.is_none() && wanted == 0 || !known.insert(name.clone()) {
                continue;
            }
            let why = if name.is_none() {
                "there are no autogroups here".to_owned()
            } else if name == ours {
                "it is in that of vckpt restore".to_owned()
            } else {
                match write(pid, wanted) {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            };
            let line =
                format!("process {process}: the autogroup of its session had the niceness {wanted}: {why}");
            restoring.degraded.push(line);
        }
        Ok(())
    }
}

fn write(pid: i32, nice: i32) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match std::fs::write(read::path(pid, "autogroup"), nice.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_niceness_are_read() {
        assert_eq!(parse("/autogroup-27 nice -5\n\n"), Some(("/autogroup-27".to_owned(), -5)));
        assert_eq!(parse("\n"), None);
    }
}
