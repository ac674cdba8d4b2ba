//! Processes that have ended and were not waited for: what is left of them.

use crate::error::Result;
use crate::kinds::credentials::{change, credentials};
use crate::proc::{read, status};
use crate::stub::batch::Batch;
use crate::stub::puppet::Puppet;
use vckpt_image_format::Text;
use vckpt_image_format::record::credentials::{CapabilitySets, Ids, ThreadCredentials};

/// Room for a name: `TASK_COMM_LEN`.
const NAME_LENGTH: usize = 16;

/// What is left of a process that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// The status that `wait(2)` gives.
    pub status: u32,
    /// Whose process it was, which `waitid(2)` tells.
    pub user: Ids,
    /// The groups of that user.
    pub group: Ids,
    /// What it was allowed to: whom it may hide its status from.
    pub capabilities: CapabilitySets,
    /// Its name.
    pub command: Text,
}

impl Remains {
    /// The credentials that a puppet should have, which has these.
    fn wanted(&self, has: ThreadCredentials) -> ThreadCredentials {
        let (had, can) = (self.capabilities, has.capabilities);
        let capabilities = CapabilitySets {
            inheritable: had.inheritable & can.inheritable,
            permitted: had.permitted & can.permitted,
            effective: had.effective & can.permitted,
            ..can
        };
        ThreadCredentials { user: self.user, group: self.group, capabilities, ..has }
    }

    /// Lets a puppet end as this process did. Gives what is not exact.
    ///
    /// # Errors
    /// If the puppet can't be reached.
    pub fn end(&self, puppet: &mut Puppet) -> Result<Vec<String>> {
        let mut degraded = Vec::new();
        let mut batch = Batch::new();
        let mut name = self.command.0.clone();
        name.resize(NAME_LENGTH, 0);
        let name = batch.data(&name);
        batch.call("naming", libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
        for change in change::changes(&current(puppet)?, &self.wanted(current(puppet)?)) {
            change.add(&mut batch);
        }
        // Nobody can do anything with these any more: if they can't be had, that is no reason to fail.
        let outcome = puppet.run(&batch);
        if outcome.is_err() || current(puppet)?.user != self.user {
            degraded
                .push(format!("process {}, which has ended, was one of user {}", puppet.id, self.user.real));
        }
        if puppet.end(self.status)? != self.status {
            degraded
                .push(format!("process {} had dumped core, which waiting for it does not tell", puppet.id));
        }
        Ok(degraded)
    }
}

/// The credentials that a puppet has.
fn current(puppet: &Puppet) -> Result<ThreadCredentials> {
    Ok(credentials(puppet.id, status::parse(&read::file(puppet.tid, "status")?)?, 0))
}
