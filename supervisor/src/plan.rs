//! The plan of a restore: ordered steps, made from the image alone. Making it is pure: no system call.
//!
//! [`act`](crate::act) carries it out and takes no decision.

use crate::error::Result;
use crate::restoring::Restoring;
use crate::stub::batch::Batch;
use std::fmt;
use std::net::IpAddr;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::connection::{Address, Connection, ConnectionState};

/// The only global order of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Namespaces are made and entered.
    Namespaces,
    /// Objects that several tasks share are made by this program: segments, nameless files, pipes, sockets. There
    /// are no puppets yet.
    SharedObjects,
    /// Processes and threads are made: empty puppets. A process whose memory a child shares by copy-on-write gets its
    /// memory before the child is made.
    Tasks,
    /// Descriptors are put into the tables; current directories.
    Descriptors,
    /// Memory is mapped and filled.
    Memory,
    /// State of each task that needs no right and takes none: signals, robust lists, names, scheduling.
    TaskState,
    /// Limits, credentials, sandboxes: what takes rights away.
    Credentials,
    /// What starts to run by itself: timers.
    Timers,
    /// Registers; then all run.
    Release,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Stage; 9] = [
        Stage::Namespaces,
        Stage::SharedObjects,
        Stage::Tasks,
        Stage::Descriptors,
        Stage::Memory,
        Stage::TaskState,
        Stage::Credentials,
        Stage::Timers,
        Stage::Release,
    ];
}

/// Something that acting does, other than a batch of system calls in a puppet.
pub trait Action: fmt::Debug {
    /// Does it.
    ///
    /// # Errors
    /// Why it could not be done; the whole restore is then undone.
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()>;

    /// Whether the next step, if that overlaps too, may be taken while puppets still do what this one has
    /// [begun](Restoring::begin). So it needs nothing of what other steps like it do, and touches no memory or descriptor
    /// table that another one of them does.
    fn overlaps(&self) -> bool {
        false
    }
}

/// One step.
#[derive(Debug)]
pub enum Step {
    /// System calls that a puppet makes.
    Batch {
        /// The thread whose puppet makes them.
        thread: TaskId,
        /// What for.
        purpose: &'static str,
        /// The calls; each may fail only if it was added so.
        batch: Batch,
    },
    /// Anything else.
    Action(Box<dyn Action>),
}

/// The steps of all stages. Within a stage they keep the order in which they were added; batches for different
/// threads that follow one another run at the same time.
#[derive(Debug, Default)]
pub struct Plan {
    steps: Vec<(Stage, Step)>,
    /// Addresses of the image, and what they are to become.
    addresses: Vec<(IpAddr, IpAddr)>,
}

impl Plan {
    /// No steps yet; sockets at the first address of a pair get the second.
    #[must_use]
    pub fn new(addresses: &[(IpAddr, IpAddr)]) -> Self {
        Self { steps: Vec::new(), addresses: addresses.to_vec() }
    }

    /// Gives a socket the addresses that it is to have.
    pub fn map(&self, connection: &mut Connection) {
        if let Some(local) = &mut connection.local {
            self.map_address(local);
        }
        // Peers within the tree move with it.
        if let ConnectionState::Paired { peer, .. } | ConnectionState::Unaccepted { peer, .. } =
            &mut connection.state
        {
            self.map_address(peer);
        }
    }

    /// Changes an address to what it is to be.
    pub fn map_address(&self, address: &mut Address) {
        if let Address::Internet(address) = address
            && let Some((_, new)) = self.addresses.iter().find(|(old, _)| *old == address.ip())
        {
            address.set_ip(*new);
        }
    }

    /// Adds calls for a thread. Batches for the same thread that follow one another travel together.
    pub fn batch(&mut self, stage: Stage, thread: TaskId, purpose: &'static str, batch: Batch) {
        if !batch.is_empty() {
            self.steps.push((stage, Step::Batch { thread, purpose, batch }));
        }
    }

    /// Adds an action.
    pub fn action(&mut self, stage: Stage, action: impl Action + 'static) {
        self.steps.push((stage, Step::Action(Box::new(action))));
    }

    /// The steps of a stage, in order.
    pub fn steps(&self, stage: Stage) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |(of, _)| *of == stage).map(|(_, step)| step)
    }

    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}
