//! `/proc/<pid>/status` and `/proc/<pid>/task/<tid>/status`: who a task is, and what it may do.
//!
//! Only the lines that some kind needs are taken. IDs are as the reader's user namespace has them.

use crate::error::{Error, Result, code};
use std::collections::HashMap;

/// What `status` says of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// `Uid`: real, effective, saved, file system.
    pub user: [u32; 4],
    /// `Gid`: real, effective, saved, file system.
    pub group: [u32; 4],
    /// `Groups`: the supplementary ones, in ascending order.
    pub groups: Vec<u32>,
    /// `CapInh`.
    pub inheritable: u64,
    /// `CapPrm`.
    pub permitted: u64,
    /// `CapEff`.
    pub effective: u64,
    /// `CapBnd`.
    pub bounding: u64,
    /// `CapAmb`.
    pub ambient: u64,
    /// `NoNewPrivs`.
    pub no_new_privileges: bool,
}

/// Takes `status` apart.
///
/// # Errors
/// [`code::PROC`], naming the line that is missing or is not as `proc_pid_status(5)` has it.
pub fn parse(text: &[u8]) -> Result<Status> {
    let text = String::from_utf8_lossy(text);
    let lines = Lines(text.lines().filter_map(|line| line.split_once(':')).collect());
    Ok(Status {
        user: lines.identities("Uid")?,
        group: lines.identities("Gid")?,
        groups: lines.numbers("Groups")?,
        inheritable: lines.set("CapInh")?,
        permitted: lines.set("CapPrm")?,
        effective: lines.set("CapEff")?,
        bounding: lines.set("CapBnd")?,
        ambient: lines.set("CapAmb")?,
        no_new_privileges: lines.numbers("NoNewPrivs")? == [1],
    })
}

/// The signals that wait for a task alone, and for any thread of its process; bit 0 is signal 1.
///
/// # Errors
/// As [`parse`].
pub fn waiting_signals(text: &[u8]) -> Result<(u64, u64)> {
    let text = String::from_utf8_lossy(text);
    let lines = Lines(text.lines().filter_map(|line| line.split_once(':')).collect());
    Ok((lines.set("SigPnd")?, lines.set("ShdPnd")?))
}

struct Lines<'text>(HashMap<&'text str, &'text str>);

impl Lines<'_> {
    fn value(&self, name: &str) -> Result<&str> {
        let value = self.0.get(name).copied();
        value.ok_or_else(|| Error::new(code::PROC, format!("the status of a task has no line {name}")))
    }

    fn numbers(&self, name: &str) -> Result<Vec<u32>> {
        let numbers: Result<Vec<u32>, _> = self.value(name)?.split_whitespace().map(str::parse).collect();
        numbers.map_err(|_| self.strange(name))
    }

    fn identities(&self, name: &str) -> Result<[u32; 4]> {
        self.numbers(name)?.try_into().map_err(|_| self.strange(name))
    }

    fn set(&self, name: &str) -> Result<u64> {
        u64::from_str_radix(self.value(name)?.trim(), 16).map_err(|_| self.strange(name))
    }

    fn strange(&self, name: &str) -> Box<Error> {
        let value = self.0.get(name).copied().unwrap_or_default();
        Error::new(code::PROC, format!("the status of a task has the strange line {name}:{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "Name:\tng:inx\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t71\nUid:\t33\t0\t33\t0\n\
        Gid:\t34\t34\t34\t34\nFDSize:\t64\nGroups:\t4 24 4294967294 \nCapInh:\t0000000000000000\n\
        CapPrm:\t000001fffeffffff\nCapEff:\t0000000000003000\nCapBnd:\t000001fffeffffff\n\
        CapAmb:\t0000000000001000\nNoNewPrivs:\t1\nSeccomp:\t0\n";

    #[test]
    fn a_status_is_taken_apart() {
        let expected = Status {
            user: [33, 0, 33, 0],
            group: [34; 4],
            groups: vec![4, 24, 4_294_967_294],
            inheritable: 0,
            permitted: 0x1ff_feff_ffff,
            effective: 0x3000,
            bounding: 0x1ff_feff_ffff,
            ambient: 0x1000,
            no_new_privileges: true,
        };
        assert_eq!(parse(SAMPLE.as_bytes()), Ok(expected));
    }

    #[test]
    fn no_groups_are_an_empty_list() {
        let text = SAMPLE.replace("4 24 4294967294 ", "");
        assert_eq!(parse(text.as_bytes()).map(|status| status.groups), Ok(Vec::new()));
    }

    #[test]
    fn what_is_missing_or_strange_is_named() {
        let missing = parse(SAMPLE.replace("CapBnd", "CapBound").as_bytes()).unwrap_err();
        assert_eq!(missing.what, "the status of a task has no line CapBnd");
        let strange = parse(SAMPLE.replace("33\t0\t33\t0", "33\t0\t33").as_bytes()).unwrap_err();
        assert_eq!(strange.what, "the status of a task has the strange line Uid:\t33\t0\t33");
    }
}
