//! Pipe (kind 75): a pipe or FIFO, with the open file descriptions of its ends.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{Identity, NamelessFileId, PipeId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A pipe; what waits in it is in [`DataQueued`](super::data_queued::DataQueued) records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its identity.
    pub id: PipeId,
    /// Its inode number when it was dumped, by which `pipe:[…]` names it.
    pub inode: u64,
    /// The path of a FIFO; none for a pipe.
    pub path: Option<Text>,
    /// The file of a FIFO whose name is gone.
    pub nameless: Option<NamelessFileId>,
    /// `F_GETPIPE_SZ`.
    pub capacity: u32,
    /// Where its other side is.
    pub reach: Reach,
    /// Its ends: the access mode says which, `O_DIRECT` is packet mode. An end that is closed is not here.
    pub ends: Vec<Description>,
}

/// Where the side of a pipe is that has no end in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// Nowhere: both sides are in the image, or the other one is closed.
    Inside,
    /// In processes outside of the dumped tree. What waits in the pipe is in the image if the ends here read it. On the
    /// same boot it may still be found by its inode number.
    Outside,
}

impl Record for Pipe {
    const KIND: Kind = Kind::Pipe;
    const VERSION: u16 = 3;

    fn name(&self) -> String {
        match &self.path {
            Some(path) => format!("FIFO {path}"),
            None => format!("pipe:[{}]", self.inode),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        let ends = self.ends.iter().map(|end| Identity::from(end.id));
        std::iter::once(Identity::from(self.id)).chain(ends).collect()
    }

    fn refers(&self) -> Vec<Identity> {
        let nameless = self.nameless.iter().map(|&id| Identity::from(id));
        nameless.chain(self.ends.iter().flat_map(Description::refers)).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.ends.is_empty() {
            return Err("no end is open".to_owned());
        }
        if self.capacity > 1 << 30 {
            return Err(format!("capacity {} is out of range", self.capacity));
        }
        if self.path.as_ref().is_some_and(|path| path.is_empty() || path.0.contains(&0)) {
            return Err("the path is empty or has a NUL".to_owned());
        }
        if self.reach == Reach::Outside {
            let reads = self.ends.iter().any(Description::reads);
            let writes = self.ends.iter().any(Description::writes);
            if self.path.is_some() || (reads && writes) {
                return Err("a pipe that leads outside has both sides, or a path".to_owned());
            }
        }
        self.ends.iter().try_for_each(Description::check)
    }
}
