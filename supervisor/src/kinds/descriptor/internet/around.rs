//! What is looked at once for all sockets.

use super::reception::Groups;
use crate::error::{Result, code};
use crate::kinds::descriptor::opened::Opened;
use crate::proc::net::{self, Peer};
use crate::sys::socket;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vckpt_image_format::record::connection::Address;

/// How long packets may be on their way out.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// What all sockets have around them.
#[derive(Debug)]
pub(super) struct Around {
    /// The multicast groups of this host.
    pub(super) groups: Groups,
    /// Peers by inode number, read when the first connection is found that is being made.
    sought: OnceCell<HashMap<u64, Peer>>,
    /// Until when packets may be on their way out.
    deadline: Instant,
}

impl Around {
    /// Reads what all need.
    ///
    /// # Errors
    /// [`code::PROC`].
    pub(super) fn look() -> Result<Self> {
        let deadline = Instant::now() + UNDER_WAY;
        Ok(Self { groups: Groups::read()?, sought: OnceCell::new(), deadline })
    }

    /// With whom a connection is being made: getpeername(2) does not tell that yet.
    pub(super) fn sought(&self, opened: &Opened, local: Option<Address>) -> Result<Address> {
        let read = || {
            let text = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            let texts = [text("tcp"), text("tcp6")];
            texts.iter().flatten().flat_map(|text| net::peers(text)).collect()
        };
        let known: &HashMap<u64, Peer> = self.sought.get_or_init(read);
        let Some(&Peer { mut address, unsent }) = known.get(&opened.status.st_ino) else {
            let what = "a TCP connection that is being made, of which the kernel does not tell with whom";
            return Err(opened
                .refuse(code::SOCKET_STATE, what)
                .hint("try again when it is made or has failed"));
        };
        // The question counts as one.
        if unsent > 1 {
            let what =
                format!("a TCP connection to {address} that is being made, with data that was sent at once");
            let error =
                opened.refuse(code::SOCKET_STATE, what).because("the data can't be read (TCP Fast Open)");
            return Err(error.hint("try again when it is made or has failed"));
        }
        // The list has no scopes; both ends are on the same link.
        if let (SocketAddr::V6(peer), Some(Address::Internet(SocketAddr::V6(own)))) = (&mut address, local)
            && peer.ip().is_unicast_link_local()
        {
            peer.set_scope_id(own.scope_id());
        }
        Ok(Address::Internet(address))
    }

    /// Refuses a datagram that is being put together (`MSG_MORE`, `UDP_CORK`): the kernel does not give it out. What is
    /// on its way through a network interface counts as well, and has a moment for it.
    pub(super) fn refuse_unfinished(&self, opened: &Opened) -> Result<()> {
        while socket::unacknowledged(opened.file.as_fd()).is_ok_and(|bytes| bytes > 0) {
            if Instant::now() > self.deadline {
                let what = "a datagram that is being put together (MSG_MORE, UDP_CORK), or could not leave this host yet";
                let error = opened.refuse(code::SOCKET_STATE, what);
                return Err(error.hint("try again when it was sent"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
