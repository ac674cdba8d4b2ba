//! Tasks under ptrace, as types: a [`Running`] tracee can only be waited for, a [`Stopped`] one looked at and let go.
//!
//! Neither can be copied; each request that changes the state consumes the one and gives the other. The death of a
//! tracee is a value ([`Stop::Ended`]), not an error. Everything here belongs to the thread that attached.

pub mod gadgets;
mod haste;
pub mod restartable;
pub mod sigframe;
pub mod stack;
pub mod state;

pub use haste::Haste;
pub use state::{Running, Stop, Stopped, pause};
