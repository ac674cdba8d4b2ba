//! Freezing a tree and looking at it: what dumps and checks have in common.

use crate::error::{Problems, Result, Subject};
use crate::freeze::{self, Backlog};
use crate::frozen::Frozen;
use crate::kinds::KINDS;
use crate::records::Records;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracing::debug;

/// How long it is tried again when all that stands in the way is a state that passes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the same connection may be found waiting until there is no hope any more.
const HOPE: u32 = 8;
/// How long the tree goes on at least before it is frozen again.
const MOMENT: Duration = Duration::from_millis(5);

/// What is to be looked at in which way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Whether mapped files (programs, libraries) are stored too.
    pub embed_files: bool,
    /// Whether TCP connections with peers outside of the tree are kept as if the peer had closed them.
    pub close_connections: bool,
    /// Whether unix sockets with peers outside of the tree are kept as if the peer had closed them.
    pub close_external: bool,
}

/// A tree that stands still, and what was seen of it.
#[derive(Debug)]
pub(crate) struct Look {
    /// The tree.
    pub frozen: Frozen,
    /// What every kind has found, or everything that stands in the way.
    pub records: Result<Records>,
    /// Since when it stands still, or is being stopped.
    pub since: Instant,
}

/// Freezes a tree and asks every kind what there is. If all that stands in the way is a state that passes, such as a
/// connection that waits to be accepted, the tree goes on and is frozen again. `members` becomes the root and all living
/// processes.
///
/// # Errors
/// If it can't be frozen, or let go on to be frozen again.
pub(crate) fn look(root: i32, timeout: Duration, wanted: Wanted, members: &mut Vec<i32>) -> Result<Look> {
    let begin = Instant::now();
    let mut backlog = Backlog::default();
    let mut seen: HashMap<u64, u32> = HashMap::new();
    loop {
        let since = Instant::now();
        members.clear();
        members.push(root);
        let mut frozen = freeze::freeze(root, timeout, &backlog)?;
        members.extend(frozen.living().map(|process| process.pid));
        debug!(processes = frozen.processes.len(), elapsed = ?since.elapsed(), "frozen");
        let mut records = Records::default();
        records.embed_files = wanted.embed_files;
        records.close_connections = wanted.close_connections;
        records.close_external = wanted.close_external;
        let observed = observe(&mut frozen, &mut records);
        debug!(records = records.records.len(), elapsed = ?since.elapsed(), "observed");
        let passes = observed.as_ref().is_err_and(|error| error.passes());
        let old = std::mem::take(&mut seen);
        seen.extend(
            records.backlog.clients().map(|client| (client, old.get(&client).map_or(1, |times| times + 1))),
        );
        let is_hopeless = seen.values().any(|&times| times >= HOPE) || begin.elapsed() > PATIENCE;
        if !passes || is_hopeless {
            return Ok(Look { frozen, records: observed.map(|()| records), since });
        }
        backlog = std::mem::take(&mut records.backlog);
        // What it holds is let go before the tree.
        drop(records);
        frozen.release()?;
        std::thread::sleep(since.elapsed().max(MOMENT));
    }
}

/// Asks every kind what there is; all problems at once.
fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    problems.take(freeze::inject(frozen));
    if problems.is_empty() {
        for kind in KINDS {
            let begin = Instant::now();
            let result = (kind.observe)(frozen, records);
            problems.take(result.map_err(|error| error.about(Subject::default())));
            debug!(kind = kind.name, elapsed = ?begin.elapsed(), "observed");
        }
    }
    problems.finish()
}
