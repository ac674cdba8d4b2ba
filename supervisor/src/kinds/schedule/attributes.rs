//! `struct sched_attr` of `sched_setattr(2)`.

use crate::stub::batch::{Data, Outcome};
use vckpt_image_format::record::schedule_control::Attributes;

/// Its size, with the utilisation clamps (Linux 5.3).
pub(super) const LENGTH: usize = 56;

/// `SCHED_FLAG_KEEP_POLICY | SCHED_FLAG_KEEP_PARAMS`.
const KEEP_ALL: u64 = 0x08 | 0x10;
/// `SCHED_FLAG_UTIL_CLAMP_MIN | SCHED_FLAG_UTIL_CLAMP_MAX`.
const CLAMPS: u64 = 0x20 | 0x40;
/// `SCHED_CAPACITY_SCALE`: the highest utilisation.
const FULL: u32 = 1024;
/// `SCHED_FIFO`, `SCHED_RR`, `SCHED_DEADLINE`.
const REAL_TIME: [u32; 3] = [1, 2, 6];
/// `SCHED_DEADLINE`.
const DEADLINE: u32 = 6;

/// An answer of `sched_getattr`.
pub(super) fn read(outcome: &Outcome, data: Data) -> Attributes {
    Attributes {
        policy: outcome.half_word(data, 1),
        flags: outcome.word(data, 1),
        nice: outcome.half_word(data, 4).cast_signed(),
        priority: outcome.half_word(data, 5),
        runtime: outcome.word(data, 3),
        deadline: outcome.word(data, 4),
        period: outcome.word(data, 5),
        utilisation_minimum: outcome.half_word(data, 12),
        utilisation_maximum: outcome.half_word(data, 13),
    }
}

/// Policy and priorities, without the clamps.
pub(super) fn policy(attributes: &Attributes) -> [u8; LENGTH] {
    let deadline = is_deadline(attributes);
    let time = |time| if deadline { time } else { 0 };
    write(&Attributes {
        flags: attributes.flags & !(KEEP_ALL | CLAMPS),
        deadline: time(attributes.deadline),
        period: time(attributes.period),
        utilisation_minimum: 0,
        utilisation_maximum: 0,
        ..*attributes
    })
}

/// The clamps alone; none if they are the default.
pub(super) fn clamps(attributes: &Attributes) -> Option<[u8; LENGTH]> {
    let Attributes { utilisation_minimum, utilisation_maximum, .. } = *attributes;
    let default = utilisation_minimum == 0 && (utilisation_maximum == 0 || utilisation_maximum == FULL);
    let flags = KEEP_ALL | CLAMPS;
    let clamps = Attributes { flags, utilisation_minimum, utilisation_maximum, ..Attributes::default() };
    (!default && !is_real_time(attributes)).then(|| write(&clamps))
}

/// Whether the policy needs a privilege.
pub(super) fn is_real_time(attributes: &Attributes) -> bool {
    REAL_TIME.contains(&attributes.policy)
}

/// Whether it is a deadline.
pub(super) fn is_deadline(attributes: &Attributes) -> bool {
    attributes.policy == DEADLINE
}

/// Whether the policy has a niceness (`SCHED_OTHER`, `SCHED_BATCH`); others keep one that has no effect on them.
pub(super) fn has_niceness(attributes: &Attributes) -> bool {
    [0, 3].contains(&attributes.policy)
}

/// The name of a policy.
pub(super) fn policy_name(policy: u32) -> &'static str {
    const NAMES: [&str; 8] = [
        "SCHED_OTHER",
        "SCHED_FIFO",
        "SCHED_RR",
        "SCHED_BATCH",
        "an unknown policy",
        "SCHED_IDLE",
        "SCHED_DEADLINE",
        "SCHED_EXT",
    ];
    usize::try_from(policy).ok().and_then(|policy| NAMES.get(policy).copied()).unwrap_or("an unknown policy")
}

fn write(attributes: &Attributes) -> [u8; LENGTH] {
    let length = u32::try_from(LENGTH).unwrap_or(0).to_le_bytes();
    let mut bytes = [0; LENGTH];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0, &length);
    put(4, &attributes.policy.to_le_bytes());
    put(8, &attributes.flags.to_le_bytes());
    put(16, &attributes.nice.to_le_bytes());
    put(20, &attributes.priority.to_le_bytes());
    put(24, &attributes.runtime.to_le_bytes());
    put(32, &attributes.deadline.to_le_bytes());
    put(40, &attributes.period.to_le_bytes());
    put(48, &attributes.utilisation_minimum.to_le_bytes());
    put(52, &attributes.utilisation_maximum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::batch::Batch;

    const ATTRIBUTES: Attributes = Attributes {
        policy: 2,
        flags: 1,
        nice: -3,
        priority: 40,
        runtime: 5,
        deadline: 6,
        period: 7,
        utilisation_minimum: 8,
        utilisation_maximum: 9,
    };

    #[test]
    fn what_is_written_is_read() {
        let data = Batch::new().room(LENGTH);
        let outcome = Outcome { results: Vec::new(), data: write(&ATTRIBUTES).to_vec() };
        assert_eq!(read(&outcome, data), ATTRIBUTES);
    }

    #[test]
    fn only_deadlines_have_deadlines() {
        let of = |kind: u32| policy(&Attributes { policy: kind, ..ATTRIBUTES })[24..48].to_vec();
        assert_eq!(of(0), [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(DEADLINE)[8..16], 6_u64.to_le_bytes());
    }

    #[test]
    fn clamps_are_set_only_if_somebody_set_them() {
        let of = |utilisation_minimum, utilisation_maximum| {
            clamps(&Attributes { utilisation_minimum, utilisation_maximum, ..Attributes::default() })
        };
        assert_eq!((of(0, 0), of(0, 1024)), (None, None));
        assert_eq!(of(100, 1024).map(|bytes| bytes[8]), Some(0x78));
    }
}
