//! An option of a socket: a part of the records of sockets. It is no record by itself.

use serde::{Deserialize, Serialize};

/// An option of `setsockopt(2)` with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_SOCKET`, `IPPROTO_TCP` …
    pub level: u32,
    /// `SO_REUSEADDR` …
    pub name: u32,
    /// Its value, as the kernel gave it.
    pub value: Vec<u8>,
}

impl SocketOption {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        if self.value.len() > 64 {
            return Err(format!(
                "option {} of level {} has {} bytes",
                self.name,
                self.level,
                self.value.len()
            ));
        }
        Ok(())
    }
}
