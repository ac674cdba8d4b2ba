//! Terminal (kind 70): a terminal that the application uses, and that somebody else provides.

use super::description::Description;
use super::{Kind, Record};
use crate::id::{Identity, TaskId, TerminalId};
use crate::text::Text;
use serde::{Deserialize, Serialize};

/// A terminal, with the open file descriptions that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its identity.
    pub id: TerminalId,
    /// Its path when it was dumped.
    pub path: Text,
    /// Its modes.
    pub modes: Modes,
    /// Rows, columns, and width and height in pixels.
    pub window: (u16, u16, u16, u16),
    /// The leader of its session, if it is in the image.
    pub session: Option<TaskId>,
    /// Its foreground process group, if its session is in the image.
    pub foreground: Option<u32>,
    /// Its descriptions.
    pub descriptions: Vec<TerminalDescription>,
}

/// A description of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalDescription {
    /// What every description has.
    pub description: Description,
    /// Whether it was opened as `/dev/tty`.
    pub controlling: bool,
}

/// `struct termios2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_line`.
    pub discipline: u8,
    /// `c_cc`.
    pub characters: Vec<u8>,
    /// `c_ispeed` and `c_ospeed`.
    pub speeds: (u32, u32),
}

impl Record for Terminal {
    const KIND: Kind = Kind::Terminal;
    const VERSION: u16 = 1;

    fn name(&self) -> String {
        format!("terminal {}", self.path)
    }

    fn defines(&self) -> Vec<Identity> {
        let descriptions = self.descriptions.iter().map(|opened| Identity::from(opened.description.id));
        std::iter::once(Identity::from(self.id)).chain(descriptions).collect()
    }

    fn refers(&self) -> Vec<Identity> {
        let session = self.session.iter().map(|&task| Identity::from(task));
        session.chain(self.descriptions.iter().flat_map(|opened| opened.description.refers())).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.modes.characters.len() != 19 {
            return Err(format!("{} control characters instead of 19", self.modes.characters.len()));
        }
        self.descriptions.iter().try_for_each(|opened| opened.description.check())
    }
}
