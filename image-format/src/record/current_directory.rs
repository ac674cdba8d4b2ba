//! Current directory (kind 4): where the paths of a process begin, and its umask.

use super::{Kind, Record};
use crate::id::{FileSystemContextId, Identity, NamelessFileId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A file system context (`struct fs_struct`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentDirectory {
    /// Its identity.
    pub context: FileSystemContextId,
    /// The current directory; if its name is gone, the path that it had.
    pub directory: Text,
    /// The current directory, if its name is gone.
    pub nameless: Option<NamelessFileId>,
    /// The root directory.
    pub root: Text,
    /// The umask.
    pub umask: u32,
}

impl Record for CurrentDirectory {
    const KIND: Kind = Kind::CurrentDirectory;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        format!("current directory {}", self.directory)
    }

    fn defines(&self) -> Vec<Identity> {
        vec![self.context.into()]
    }

    fn refers(&self) -> Vec<Identity> {
        self.nameless.iter().map(|&id| id.into()).collect()
    }

    fn check(&self) -> Result<(), String> {
        for path in [&self.directory, &self.root] {
            if path.0.first() != Some(&b'/') || path.0.contains(&0) {
                return Err(format!("{path} is no absolute path"));
            }
        }
        if self.umask & !0o777 != 0 {
            return Err(format!("umask {:o} is out of range", self.umask));
        }
        Ok(())
    }
}
