//! IPC namespace (kind 96): that the application lives in one of its own; see ipc_namespaces(7).

use super::{Kind, Record};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// An IPC namespace. What is in it has records of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcNamespace {
    /// Its inode number when it was dumped, by which `ipc:[…]` names it.
    pub inode: u64,
    /// Its limits: the files of `/proc/sys` that are its own, below `kernel/` and `fs/mqueue/`, and what is in them.
    pub tunables: Vec<Tunable>,
}

/// A limit of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunable {
    /// The path of its file below `/proc/sys`, such as `kernel/msgmax`.
    pub name: Text,
    /// What is in that file, without the newline.
    pub value: Text,
}

impl Record for IpcNamespace {
    const KIND: Kind = Kind::IpcNamespace;
    const VERSION: u16 = 2;

    fn name(&self) -> String {
        format!("ipc:[{}]", self.inode)
    }

    fn check(&self) -> Result<(), String> {
        let is_bad = |name: &&Tunable| {
            let bytes = &name.name.0;
            let is_inside = bytes.starts_with(b"kernel/") || bytes.starts_with(b"fs/mqueue/");
            !is_inside || bytes.contains(&0) || bytes.split(|&byte| byte == b'/').any(|part| part == b"..")
        };
        match self.tunables.iter().find(is_bad) {
            Some(bad) => Err(format!("{} is no limit of an IPC namespace", bad.name)),
            None => Ok(()),
        }
    }
}
