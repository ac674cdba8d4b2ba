//! Snapshot (kind 10): the image itself: when and where it was made, and of what.

use super::{Kind, Record};
use crate::id::{Identity, TaskId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// The first record of every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The root of the dumped tree.
    pub root: TaskId,
    /// Name of the root's program (`comm`).
    pub command: Text,
    /// Version of the program that wrote the image.
    pub writer: String,
    /// `CLOCK_REALTIME` at the freeze, in nanoseconds since 1970.
    pub realtime: i64,
    /// `CLOCK_MONOTONIC` at the freeze as the application saw it, in nanoseconds.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME` at the freeze as the application saw it, in nanoseconds.
    pub boottime: i64,
    /// Whether the application was in another time namespace than who made the image.
    pub time_namespace: bool,
    /// `/proc/sys/kernel/random/boot_id` of the host.
    pub boot_id: String,
    /// Bits of the extended processor state that the host has enabled (XCR0).
    pub xstate_features: u64,
    /// What programs may do on its processor: names as in `/proc/cpuinfo`.
    pub processor_features: Vec<String>,
    /// Size of the extended processor state, in bytes.
    pub xstate_size: u32,
    /// Effective user ID of who made the image.
    pub dumped_by: u32,
    /// What could not be kept exactly; empty: everything was.
    pub degraded: Vec<String>,
}

impl Record for Snapshot {
    const KIND: Kind = Kind::Snapshot;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("snapshot of {} ({})", self.command, self.root)
    }

    fn refers(&self) -> Vec<Identity> {
        vec![self.root.into()]
    }
}
