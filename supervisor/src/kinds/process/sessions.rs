//! Processes in a session that their parent has never been in: they were children of another process there, which has ended,
//! and were given to a reaper. They come into the world the same way again.

use super::make::Birth;
use super::plan::outside;
use crate::error::{Error, Problems, Result, Subject, code};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::process::Process;

/// How an adopted process comes into the world: a process is made that makes it and ends, so that it becomes a child of
/// its parent, who is a reaper as long as that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoption {
    /// The process.
    pub child: TaskId,
    /// Who makes the one that ends.
    pub from: TaskId,
    /// The ID of that one.
    pub temporary: TaskId,
    /// Whether that one founds the session.
    pub founds: bool,
}

/// All adoptions, in their order.
///
/// # Errors
/// [`code::SESSION_SHAPE`] for sessions of which no order of births is known.
pub(super) fn adoptions(births: &[Birth], all: &[Process]) -> Result<Vec<Adoption>> {
    let mut tree = Tree::new(births, all);
    tree.grow(births.first().map(Birth::id));
    let mut adoptions = Vec::new();
    while let Some(adoption) = tree.next() {
        adoptions.push(adoption);
        tree.pending.retain(|birth| birth.id() != adoption.child);
        tree.grow(Some(adoption.child));
    }
    let mut problems = Problems::new();
    for birth in tree.pending {
        let command = tree.processes.get(&birth.id()).map(|process| process.command.to_string());
        let subject = Subject::task(birth.id().0, command.unwrap_or_default());
        let what = "it is in a session that nobody from whom it could descend was in";
        problems.push(Error::new(code::SESSION_SHAPE, what).about(subject));
    }
    problems.finish()?;
    Ok(adoptions)
}

/// What is made so far.
struct Tree<'image> {
    /// Who needs no adoption, by parent.
    children: BTreeMap<TaskId, Vec<TaskId>>,
    /// Those whose puppet is where that of an adopted one is to be.
    in_first_area: BTreeSet<TaskId>,
    processes: BTreeMap<TaskId, &'image Process>,
    /// The session of the root, if it is led from outside.
    outside: Option<u32>,
    made: BTreeSet<TaskId>,
    /// Those to be adopted.
    pending: Vec<&'image Birth>,
    /// The next ID that nobody has.
    unused: u32,
}

impl<'image> Tree<'image> {
    fn new(births: &'image [Birth], all: &'image [Process]) -> Self {
        let ids = all.iter().flat_map(|process| {
            let tasks = process.tasks().into_iter().map(|task| task.0);
            tasks.chain([process.id.0, process.process_group, process.session])
        });
        let mut children: BTreeMap<TaskId, Vec<TaskId>> = BTreeMap::new();
        for birth in births.iter().filter(|birth| !birth.adopted) {
            if let Some(parent) = birth.parent {
                children.entry(parent).or_default().push(birth.id());
            }
        }
        let in_first_area = births.iter().filter(|birth| birth.leader.slot == 0).map(Birth::id).collect();
        Self {
            children,
            in_first_area,
            processes: all.iter().map(|process| (process.id, process)).collect(),
            outside: outside(all),
            made: BTreeSet::new(),
            pending: births.iter().filter(|birth| birth.adopted).collect(),
            unused: ids.max().unwrap_or(0).saturating_add(1),
        }
    }

    /// A process is made, and all of its descendants that need no adoption.
    fn grow(&mut self, first: Option<TaskId>) {
        let mut queue: VecDeque<TaskId> = first.into_iter().collect();
        while let Some(id) = queue.pop_front() {
            self.made.insert(id);
            queue.extend(self.children.get(&id).into_iter().flatten());
        }
    }

    /// The next adoption that can be made.
    fn next(&mut self) -> Option<Adoption> {
        let found =
            self.pending.iter().find_map(|birth| {
                let parent = birth.parent.filter(|parent| self.made.contains(parent))?;
                let session = self.processes.get(&birth.id())?.session;
                let from = self.member(session, parent);
                // Without a member it is one whose leader has ended.
                let founds = from.is_none();
                let is_free = !self.processes.contains_key(&TaskId(session)) && self.outside != Some(session);
                (!founds || is_free && !self.exists(session) && self.in_first_area.contains(&parent))
                    .then_some((birth.id(), from.unwrap_or(parent), founds, session))
            });
        let (child, from, founds, session) = found?;
        let temporary = if founds { session } else { self.unused };
        self.unused += u32::from(!founds);
        Some(Adoption { child, from, temporary: TaskId(temporary), founds })
    }

    /// A process that is made, in this session, and below this one.
    fn member(&self, session: u32, above: TaskId) -> Option<TaskId> {
        let is_member =
            |id: &&TaskId| self.processes.get(id).is_some_and(|process| process.session == session);
        let mut members = self.made.iter().filter(is_member);
        members.find(|&&id| self.is_below(id, above) && self.in_first_area.contains(&id)).copied()
    }

    fn exists(&self, session: u32) -> bool {
        self.made.iter().any(|id| self.processes.get(id).is_some_and(|process| process.session == session))
    }

    fn is_below(&self, id: TaskId, above: TaskId) -> bool {
        let parent = |id: &TaskId| self.processes.get(id).and_then(|process| process.parent);
        std::iter::successors(Some(id), parent).any(|ancestor| ancestor == above)
    }
}

/// The IDs that are needed for a moment, beside those of the processes.
pub(super) fn temporary(adoptions: &[Adoption]) -> impl Iterator<Item = TaskId> {
    adoptions.iter().map(|adoption| adoption.temporary)
}
