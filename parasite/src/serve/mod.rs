//! The serve loop: receive a request, run its calls, answer, until there is no one left to serve.
//!
//! The same code in the stub and in the library. Not here: how a stub comes to its socket and how it leaves
//! ([`crate::life`]).

mod area;
mod batch;
mod init;
mod message;

pub use area::Area;

use crate::sys;
use batch::Outcome;
use message::Descriptors;

/// Why serving ended, as it is written into the boot page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// One of [`epitaph`](crate::protocol::epitaph).
    pub epitaph: u64,
    /// The number that explains it.
    pub detail: u64,
}

/// Serves the socket of this area until it ends, and writes the epitaph. `entry` is where further tasks of the stub
/// start; 0 if they can't.
///
/// The requests are programs with the power of this process. Whoever holds the other end of the socket is trusted
/// with everything but the form of a request, which is checked.
pub fn serve(area: Area, entry: u64) -> Ending {
    loop {
        if let Err(ending) = serve_one(area, entry) {
            area.write_epitaph(ending);
            return ending;
        }
    }
}

fn serve_one(area: Area, entry: u64) -> Result<(), Ending> {
    let mut descriptors = Descriptors::none();
    let request = message::receive(area, &mut descriptors)?;
    match batch::run(area, &request, &descriptors, entry) {
        Outcome::Answer => message::answer(area, &request, &descriptors),
        Outcome::Born(socket) => socket,
        Outcome::Park => {
            sys::close(area.socket());
            sys::stay();
        }
        Outcome::Init { root } => {
            message::answer(area, &request, &descriptors)?;
            sys::close(area.socket());
            init::reap(root);
        }
    }
}
