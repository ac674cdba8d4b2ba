//! Holding TCP connections as they were observed, until the tree has ended or goes on.
//!
//! Packets of connections with a peer outside are dropped by a table of our own in the firewall of the network
//! namespace. Up to the end of the tree that table belongs to this program, so it goes if this program is killed; for the
//! time between dump and restore there is a second one, which the restore removes. No such connection, no table.
//!
//! When the tree is ended, its connections are closed without a word to the peer: in repair mode, or, of connections
//! within the tree and without rights, by a reset. A [`Guard`] sets both back if this program dies before.

use super::repair;
use crate::error::{Error, Result, code};
use crate::kinds::descriptor::socket::SOCKET;
use crate::sys::guard::{Guard, Reset};
use crate::sys::netfilter::{self, Firewall};
use crate::sys::socket;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const LINGER: u32 = libc::SO_LINGER.cast_unsigned();
const REUSE: u32 = libc::SO_REUSEADDR.cast_unsigned();

/// Connections that are held.
#[derive(Debug)]
pub struct Hold {
    /// The number of the lock; part of the name of the table.
    pub lock: u64,
    outside: Vec<netfilter::Connection>,
    sockets: Vec<OwnedFd>,
    repairs: bool,
    firewall: Option<Firewall>,
    guard: Option<Guard>,
    kept: bool,
}

/// The name of the table between dump and restore.
#[must_use]
pub fn table(lock: u64) -> String {
    format!("vckpt-{lock:016x}")
}

/// The name of the table during the dump.
fn passing_table(lock: u64) -> String {
    format!("vckpt-dump-{lock:016x}")
}

impl Hold {
    /// Holds connections: all their sockets in the tree, and own and peer's address of those that lead outside.
    ///
    /// # Errors
    /// [`code::PRIVILEGE`], [`code::HOST_FEATURE`].
    pub fn new(sockets: &[BorrowedFd<'_>], outside: Vec<netfilter::Connection>) -> Result<Self> {
        let failed = |errno| Error::system(code::HOST_FEATURE, "holding TCP connections", errno);
        let repairs = repair::is_permitted();
        let mut resets = Vec::new();
        let mut copies = Vec::new();
        for file in sockets {
            let options: &[u32] = if repairs { &[REUSE] } else { &[LINGER] };
            let copy = || file.try_clone_to_owned().map_err(|_| failed(Errno::last()));
            if repairs {
                let (level, name) = repair::MODE;
                resets.push(Reset { socket: copy()?, level, name, value: repair::OFF_SILENTLY.to_vec() });
            }
            for &name in options {
                let value = socket::option(*file, SOCKET, name).map_err(failed)?;
                resets.push(Reset { socket: copy()?, level: SOCKET, name, value });
            }
            copies.push(copy()?);
        }
        let guard = Guard::start(&resets).map_err(failed)?;
        let lock = number().map_err(failed)?;
        let mut hold =
            Self { lock, outside, sockets: copies, repairs, firewall: None, guard: Some(guard), kept: false };
        if !hold.outside.is_empty() {
            hold.firewall = Some(hold.close_off()?);
        }
        Ok(hold)
    }

    /// Keeps the packets of the connections away as long as this program lives.
    fn close_off(&self) -> Result<Firewall> {
        let failed = |errno| {
            let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::HOST_FEATURE };
            Error::system(code, "keeping the packets of TCP connections away by nf_tables", errno)
        };
        let firewall = Firewall::new().map_err(failed)?;
        firewall.drop_packets(&passing_table(self.lock), &self.outside, true).map_err(failed)?;
        Ok(firewall)
    }

    /// Ends a tree without a word to the peers of its connections, which stay closed off afterwards.
    ///
    /// # Errors
    /// As the end itself; [`code::HOST_FEATURE`] if the connections can't be closed off.
    pub fn end(hold: Option<Self>, end: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(mut hold) = hold else { return end() };
        hold.keep().map_err(|errno| {
            Error::system(
                code::HOST_FEATURE,
                "preparing TCP connections for the end of their programs",
                errno,
            )
        })?;
        end()?;
        if let Some(guard) = hold.guard.take() {
            guard.done();
        }
        // The table stays from here on.
        hold.kept = false;
        Ok(())
    }

    fn keep(&mut self) -> std::result::Result<(), Errno> {
        if let Some(firewall) = &self.firewall {
            firewall.drop_packets(&table(self.lock), &self.outside, false)?;
            self.kept = true;
        }
        for file in &self.sockets {
            if self.repairs {
                // One that has ended meanwhile needs nothing.
                let _ = repair::enter(file.as_fd());
            } else {
                socket::set_option(file.as_fd(), SOCKET, LINGER, &[1_u32, 0].map(u32::to_ne_bytes).concat())?;
            }
        }
        Ok(())
    }
}

impl Drop for Hold {
    /// Lets the connections go on.
    fn drop(&mut self) {
        // Options first: what comes in shall find them as they were.
        self.guard = None;
        if let Some(firewall) = &self.firewall {
            let _ = firewall.remove(&passing_table(self.lock));
            if self.kept {
                let _ = firewall.remove(&table(self.lock));
            }
        }
    }
}

/// A number that nobody else has.
fn number() -> std::result::Result<u64, Errno> {
    use std::io::Read;
    let mut bytes = [0; 8];
    let mut random = std::fs::File::open("/dev/urandom").map_err(|_| Errno::last())?;
    random.read_exact(&mut bytes).map_err(|_| Errno::last())?;
    Ok(u64::from_ne_bytes(bytes))
}
