//! Connections that nobody has accepted yet. What was sent through them can be had only by accepting them, which is the
//! program's to do: who can do it is stopped last, when all the others stand still and can't connect any more.

use crate::tracee::pause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a program may take to accept what waits.
const PATIENCE: Duration = Duration::from_millis(100);

/// Connections that wait, the sockets in which they do, and the processes that can accept them.
#[derive(Debug, Default)]
pub struct Backlog {
    listeners: Vec<OwnedFd>,
    processes: HashSet<i32>,
    clients: HashSet<u64>,
}

impl Backlog {
    /// Adds a listening socket, and those who have it, by their IDs as this program sees them.
    pub fn add(&mut self, listener: OwnedFd, holders: impl IntoIterator<Item = i32>) {
        self.listeners.push(listener);
        self.processes.extend(holders);
    }

    /// Adds a socket whose connection waits, by its inode number.
    pub fn add_client(&mut self, inode: u64) {
        self.clients.insert(inode);
    }

    /// The sockets whose connections wait, by inode number; 0 if they are all outside of the tree.
    pub fn clients(&self) -> impl Iterator<Item = u64> {
        let outside = self.clients.is_empty().then_some(0);
        self.clients.iter().copied().chain(outside)
    }

    /// Whether nobody is to be stopped last.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Whether this process is to be stopped last.
    #[must_use]
    pub(super) fn is_for(&self, pid: i32) -> bool {
        self.processes.contains(&pid)
    }

    /// Waits until no connection waits any more, or as long as there is hope.
    pub(super) fn drain(&self) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && self.listeners.iter().any(has_connections) {
            pause(begin.elapsed());
        }
    }
}

fn has_connections(listener: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}
