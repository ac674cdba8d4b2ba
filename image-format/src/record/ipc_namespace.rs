//! IPC namespace (kind 96): that the application lives in one of its own; see ipc_namespaces(7).

use super::{Kind, Record};
use serde::{Deserialize, Serialize};

/// An IPC namespace. What is in it has records of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcNamespace {
    /// Its inode number when it was dumped, by which `ipc:[…]` names it.
    pub inode: u64,
}

impl Record for IpcNamespace {
    const KIND: Kind = Kind::IpcNamespace;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("ipc:[{}]", self.inode)
    }
}
