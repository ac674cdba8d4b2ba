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

/// The files below `/proc/sys` that are limits of an IPC namespace.
pub const TUNABLES: [&str; 13] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];

/// Bytes of the longest limit: `sem` has four numbers.
const LONGEST: usize = 100;

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
        // What is written there is written with all rights of whoever restores: these files, and numbers, nothing else.
        let is_number = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b' ' | b'\t');
        let is_good = |tunable: &Tunable| {
            let Tunable { name, value } = tunable;
            TUNABLES.iter().any(|known| known.as_bytes() == name.0)
                && value.0.len() <= LONGEST
                && value.0.iter().all(is_number)
        };
        match self.tunables.iter().find(|tunable| !is_good(tunable)) {
            Some(bad) => Err(format!("{} is no limit of an IPC namespace", bad.name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_are_limits() {
        let check = |name: &str, value: &str| {
            let tunable = Tunable { name: Text::from(name.as_bytes()), value: Text::from(value.as_bytes()) };
            IpcNamespace { inode: 1, tunables: vec![tunable] }.check()
        };
        assert_eq!(check("kernel/sem", "32000\t1024000000\t500\t32000"), Ok(()));
        for (name, value) in [
            ("kernel/core_pattern", "1"),
            ("kernel/sem/../core_pattern", "1"),
            ("kernel/msgmax", "|/bin/sh"),
            ("", ""),
        ] {
            assert!(check(name, value).is_err(), "{name} {value}");
        }
    }
}
