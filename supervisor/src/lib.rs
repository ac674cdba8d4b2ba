//! Dumps and restores trees of Linux processes: the library behind `vckpt`.
//!
//! Start reading at [`dump`] and [`restore`]. The way of the data is: observe → record → store, and
//! load → plan → act. Nothing here prints, keeps global state, or assumes who its caller is.

pub mod check;
pub mod dump;
pub mod restore;

pub mod error;
pub mod progress;

pub mod freeze;
pub mod frozen;
pub mod kinds;
pub mod records;
pub mod store;

pub mod act;
mod clocks;
pub mod image;
mod look;
mod namespaces;
mod output;
mod parallel;
pub mod place;
pub mod plan;
pub mod restoring;

pub mod proc;
pub mod stub;
pub mod sys;
pub mod tracee;
pub mod undo;
pub mod waits;

pub use error::{Error, Result};
