//! The stub as seen from the supervisor: batches of system calls, how they travel, and who runs them.
//!
//! The stub itself and its protocol are in the package `vckpt-parasite`.

pub mod agent;
pub mod batch;
pub mod channel;
pub mod offspring;
pub mod puppet;
mod task_state;
