//! Pseudo-terminal (kind 94): a pair of a master and the slave behind it, whose master the application has or had; see
//! pty(7).

use super::description::Description;
use super::terminal::{Modes, TerminalDescription};
use super::{Kind, Record};
use crate::id::{Identity, TaskId, TerminalId};
use serde::{Deserialize, Serialize};

/// A pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PseudoTerminal {
    /// Its identity.
    pub id: TerminalId,
    /// Its number: that of `/dev/pts/<n>`.
    pub number: u32,
    /// The master; none if it was closed, and the slaves were hung up by that.
    pub master: Option<Description>,
    /// The slaves.
    pub slaves: Vec<TerminalDescription>,
    /// What is told of a pair whose master is open.
    pub state: Option<PairState>,
}

/// The state of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairState {
    /// Its modes.
    pub modes: Modes,
    /// Rows, columns, and width and height in pixels.
    pub window: (u16, u16, u16, u16),
    /// Whether the master is in packet mode.
    pub packets: bool,
    /// Whether the slave is locked.
    pub locked: bool,
    /// Whether the slave was opened, and all who had it have closed it.
    pub abandoned: bool,
    /// The leader of the session whose controlling terminal it is.
    pub session: Option<TaskId>,
    /// The foreground process group of that session.
    pub foreground: Option<u32>,
    /// What was written to the slave and not read from the master.
    #[serde(with = "crate::bytes")]
    pub output: Vec<u8>,
    /// What was written to the master and not read from the slave.
    #[serde(with = "crate::bytes")]
    pub input: Vec<u8>,
}

impl Record for PseudoTerminal {
    const KIND: Kind = Kind::PseudoTerminal;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        let ends = self.slaves.len();
        match self.master {
            Some(_) => format!("pseudo-terminal {} with {ends} slaves", self.number),
            None => format!("pseudo-terminal {} that was hung up", self.number),
        }
    }

    fn defines(&self) -> Vec<Identity> {
        let slaves = self.slaves.iter().map(|slave| Identity::from(slave.description.id));
        let master = self.master.iter().map(|master| Identity::from(master.id));
        std::iter::once(Identity::from(self.id)).chain(master).chain(slaves).collect()
    }

    fn refers(&self) -> Vec<Identity> {
        let session = self.state.iter().filter_map(|state| state.session).map(Identity::from);
        let slaves = self.slaves.iter().flat_map(|slave| slave.description.refers());
        session.chain(self.master.iter().flat_map(Description::refers)).chain(slaves).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.master.is_some() != self.state.is_some() {
            return Err("a pair has a state if and only if its master is open".to_owned());
        }
        if let Some(state) = &self.state
            && state.modes.characters.len() != 19
        {
            return Err(format!("{} control characters instead of 19", state.modes.characters.len()));
        }
        self.master.iter().try_for_each(Description::check)?;
        self.slaves.iter().try_for_each(|slave| slave.description.check())
    }
}
