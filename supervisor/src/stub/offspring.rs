//! Finding what a puppet has made: the ID by which this program sees a task that the application knows by another one.

use crate::error::{Error, Result, Subject, code};
use crate::proc::{identity, read};
use vckpt_image_format::TaskId;

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offspring {
    /// A child process.
    Child,
    /// A thread.
    Thread,
}

/// How far behind the newest one the next is looked for before all are listed.
const NEAR: i32 = 8;

/// The ID by which this program sees a child or thread of the process `parent` that has the virtual ID; `newest` is the
/// ID of the one that was made before it.
///
/// # Errors
/// [`code::TARGET_DIED`] if there is none; as [`read::file`].
pub fn find(parent: i32, sort: Offspring, id: TaskId, newest: i32) -> Result<i32> {
    let wanted = id.0.cast_signed();
    // In the same namespace it has that very ID; in another one the kernel gives IDs here in ascending order.
    let likely = std::iter::once(wanted).chain((1..=NEAR).map(|distance| newest.saturating_add(distance)));
    for tid in likely {
        if is(tid, parent, sort, wanted) {
            return Ok(tid);
        }
    }
    let (newer, older): (Vec<i32>, Vec<i32>) = all(parent, sort)?.into_iter().partition(|&tid| tid > newest);
    let found = newer.into_iter().chain(older).find(|&tid| is(tid, parent, sort, wanted));
    found.ok_or_else(|| {
        Error::new(code::TARGET_DIED, "a new puppet ended at once")
            .about(Subject { task: Some(id.0), ..Subject::default() })
    })
}

/// Whether a task is a child or thread of `parent`, and knows itself by the ID `wanted`.
fn is(tid: i32, parent: i32, sort: Offspring, wanted: i32) -> bool {
    let Ok(status) = read::file(tid, "status") else { return false };
    let relation = match sort {
        Offspring::Child => "PPid",
        Offspring::Thread => "Tgid",
    };
    identity::field(&status, relation).and_then(|number| number.parse().ok()) == Some(parent)
        && identity::parse(&status).is_some_and(|identity| identity.innermost() == wanted)
}

/// All children or threads of a process.
fn all(parent: i32, sort: Offspring) -> Result<Vec<i32>> {
    let threads = read::numbers(parent, "task")?;
    if sort == Offspring::Thread {
        return Ok(threads);
    }
    let mut children = Vec::new();
    for tid in threads {
        let text = read::file(parent, &format!("task/{tid}/children"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        children.extend(text.split_ascii_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    Ok(children)
}
