//! `/proc`: parsers of its texts (bytes in, structures out), and one place that reads the files.
//!
//! The parsers refuse what they do not know: a checkpoint must not lose what it can't name.

pub mod fdinfo;
pub mod id_map;
pub mod identity;
pub mod io_uring;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod net;
pub mod read;
pub mod stat;
pub mod status;
pub mod timers;
