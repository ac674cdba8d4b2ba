//! Platform name (kind 12): the platform that the application believes in.

use super::{Kind, Record};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// What `uname(2)` says, and the vdso that the kernel gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformName {
    /// Host name.
    pub node: Text,
    /// NIS domain name.
    pub domain: Text,
    /// Kernel release.
    pub release: Text,
    /// Kernel build.
    pub version: Text,
    /// Hardware name.
    pub machine: Text,
}

impl Record for PlatformName {
    const KIND: Kind = Kind::PlatformName;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("{} {} on {}", self.machine, self.release, self.node)
    }
}
