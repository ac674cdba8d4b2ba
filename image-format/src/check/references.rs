//! Identities of all kinds: defined once, and wherever they are referred to.

use super::Finding;
use crate::id::Identity;
use crate::record::Examined;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Most identities of an image, so that a small image can't ask for much memory.
const MOST: usize = 4 * 1024 * 1024;

/// The identities so far, with the numbers of the records that name them.
#[derive(Debug, Default)]
pub(super) struct References {
    defined: HashMap<Identity, usize>,
    /// Referred to, but not defined so far.
    pending: HashMap<Identity, usize>,
}

impl References {
    /// Adds what a record says of itself.
    pub(super) fn add(&mut self, record: usize, examined: &Examined) -> Result<(), Finding> {
        if let Err(why) = &examined.check {
            return Err(Finding::new(record, why.as_str()));
        }
        for &identity in &examined.defines {
            self.pending.remove(&identity);
            match self.defined.entry(identity) {
                Entry::Occupied(_) => {
                    return Err(Finding::new(record, format!("{identity} is defined a second time")));
                }
                Entry::Vacant(vacant) => vacant.insert(record),
            };
        }
        for &identity in &examined.refers {
            if !self.defined.contains_key(&identity) {
                self.pending.entry(identity).or_insert(record);
            }
        }
        if self.defined.len() + self.pending.len() > MOST {
            return Err(Finding::new(record, format!("there are more than {MOST} identities up to here")));
        }
        Ok(())
    }

    /// Refuses what is referred to without being defined.
    pub(super) fn finish(self) -> Result<(), Finding> {
        // The first of them, so that the same image always gives the same message.
        match self.pending.into_iter().map(|(identity, record)| (record, identity)).min() {
            Some((record, identity)) => {
                Err(Finding::new(record, format!("it refers to {identity}, which is not in the image")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::References;
    use crate::id::{Identity, PipeId, SocketId};
    use crate::record::Examined;

    fn examined(defines: &[Identity], refers: &[Identity]) -> Examined {
        Examined { defines: defines.to_vec(), refers: refers.to_vec(), check: Ok(()) }
    }

    #[test]
    fn an_identity_may_be_referred_to_before_it_is_defined() {
        let mut references = References::default();
        references.add(0, &examined(&[], &[PipeId(1).into()])).unwrap();
        references.add(1, &examined(&[PipeId(1).into()], &[PipeId(1).into()])).unwrap();
        references.finish().unwrap();
    }

    #[test]
    fn the_spaces_of_identities_are_apart() {
        let mut references = References::default();
        references.add(0, &examined(&[PipeId(1).into()], &[])).unwrap();
        references.add(1, &examined(&[SocketId(1).into()], &[])).unwrap();
        references.add(2, &examined(&[], &[SocketId(2).into()])).unwrap();
        let finding = references.finish().unwrap_err();
        assert_eq!(finding.record, 2);
        assert_eq!(finding.why, "it refers to socket 2, which is not in the image");
    }

    #[test]
    fn what_is_defined_twice_is_refused() {
        let mut references = References::default();
        references.add(0, &examined(&[PipeId(1).into()], &[])).unwrap();
        let finding = references.add(5, &examined(&[PipeId(1).into()], &[])).unwrap_err();
        assert_eq!((finding.record, finding.why.as_str()), (5, "pipe 1 is defined a second time"));
    }

    #[test]
    fn a_record_that_makes_no_sense_is_refused() {
        let examined = Examined { defines: vec![], refers: vec![], check: Err("upside down".to_owned()) };
        assert_eq!(References::default().add(3, &examined).unwrap_err().why, "upside down");
    }
}
