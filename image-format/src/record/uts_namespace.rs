//! UTS namespace (kind 99): the names of the host, if the application has its own; see uts_namespaces(7).

use super::{Kind, Record};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// Bytes of the longest name (`__NEW_UTS_LEN`).
const LONGEST: usize = 64;

/// A UTS namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UtsNamespace {
    /// Its inode number when it was dumped, by which `uts:[…]` names it.
    pub inode: u64,
    /// The name of the host (`sethostname(2)`).
    pub host_name: Text,
    /// The name of the NIS domain (`setdomainname(2)`).
    pub domain_name: Text,
}

impl Record for UtsNamespace {
    const KIND: Kind = Kind::UtsNamespace;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("uts:[{}] of the host {}", self.inode, self.host_name)
    }

    fn check(&self) -> Result<(), String> {
        let is_name = |name: &Text| name.0.len() <= LONGEST && !name.0.contains(&0);
        match [&self.host_name, &self.domain_name].into_iter().find(|name| !is_name(name)) {
            Some(bad) => Err(format!("{bad} is no name of a host or domain")),
            None => Ok(()),
        }
    }
}
