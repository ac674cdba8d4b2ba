//! Dumps and restores trees of Linux processes: the library behind `vckpt`.

pub mod error;
pub mod freeze;
pub mod frozen;
pub mod kinds;
pub mod plan;
pub mod proc;
pub mod records;
pub mod restoring;
pub mod stub;
pub mod sys;
pub mod tracee;

pub use error::{Error, Result};
