//! What is found in rings of all kinds.

use super::*;

/// A ring of 4 requests and 8 completions without an array, in which these requests (operation, flags, data) were
/// taken, and these completions (data, flags) given.
fn ring(requests: &[(u8, u8, u8)], completions: &[(u8, u8)], polls: &[u32]) -> Result<Found> {
    let flags = IoUring::NO_ARRAY;
    let mut contents =
        Contents { rings: vec![0; IoUring::rings_length(flags, 4, 8)], entries: vec![0; 4 * 64] };
    for (number, &(operation, flags, data)) in requests.iter().enumerate() {
        let entry = &mut contents.entries[number % 4 * 64..][..64];
        entry.fill(0);
        (entry[0], entry[1], entry[32]) = (operation, flags, data);
    }
    for (number, &(data, flags)) in completions.iter().enumerate() {
        let completion = &mut contents.rings[64 + number % 8 * 16..][..16];
        completion.fill(0);
        (completion[0], completion[12]) = (data, flags);
    }
    let (taken, given) = (u32::try_from(requests.len()).unwrap(), u32::try_from(completions.len()).unwrap());
    let info = RingInfo {
        submission_entries: 4,
        completion_entries: 8,
        submission_head: taken,
        submission_tail: taken,
        taken,
        given,
        polls: polls.to_vec(),
        ..RingInfo::default()
    };
    find(&info, &contents, flags)
}

fn data(found: Result<Found>) -> Vec<u8> {
    found.unwrap().entries.chunks(64).map(|entry| entry[32]).collect()
}

const RECV: u8 = operation::RECV;

#[test]
fn what_has_a_completion_is_not_under_way() {
    assert!(data(ring(&[(0, 0, 1), (RECV, 0, 2)], &[(2, 0), (1, 0)], &[])).is_empty());
    assert!(data(ring(&[], &[], &[])).is_empty());
}

#[test]
fn what_has_none_is() {
    assert_eq!(data(ring(&[(RECV, 0, 1), (0, 0, 2), (RECV, 0, 3)], &[(2, 0)], &[27, 27])), [1, 3]);
}

#[test]
fn a_number_that_is_used_again_is_the_newest() {
    let found = ring(&[(RECV, 0, 7), (0, 0, 8), (RECV, 0, 7)], &[(7, 0), (8, 0)], &[27]).unwrap();
    assert_eq!(found.entries.len(), 64);
    assert_eq!(data(Ok(found)), [7]);
    // One that tells the program nothing must be of equal requests.
    assert!(ring(&[(RECV, 0, 0), (operation::ACCEPT, 0, 0)], &[(0, 0)], &[27]).is_err());
    assert_eq!(data(ring(&[(RECV, 0, 0), (RECV, 0, 0)], &[(0, 0)], &[27])), [0]);
    // Older completions may belong to older requests.
    let requests: Vec<_> = (0..9).map(|_| (RECV, 0, 7)).collect();
    let completions: Vec<_> = (0..8).map(|_| (7, 0)).collect();
    assert!(ring(&requests, &completions, &[27]).is_err());
}

#[test]
fn what_the_ring_does_not_hold_any_more_is_refused() {
    let mut requests = vec![(RECV, 0, 1)];
    requests.extend((2..7).map(|number| (0, 0, number)));
    let completions: Vec<_> = (2..7).map(|number| (number, 0)).collect();
    let error = ring(&requests, &completions, &[27]).unwrap_err();
    assert!(!error.passing && error.code == code::RING);
    // What is done by a worker is done soon.
    assert!(ring(&requests, &completions, &[]).unwrap_err().passing);
}

#[test]
fn what_the_kernel_says_must_agree() {
    assert!(ring(&[(RECV, 0, 1)], &[], &[]).is_err());
    assert!(ring(&[(RECV, 0, 1)], &[], &[13]).is_err());
    assert!(ring(&[(0, 0, 1)], &[(1, 0)], &[27]).is_err());
    // A read may be with a worker.
    assert_eq!(data(ring(&[(operation::READ, 0, 1)], &[], &[])), [1]);
}

#[test]
fn what_can_not_be_asked_for_again_is_refused() {
    assert!(ring(&[(18, 0, 1)], &[], &[]).unwrap_err().passing);
    assert!(!ring(&[(51, 0, 1)], &[], &[]).unwrap_err().passing);
    assert!(ring(&[(RECV, 4, 1)], &[], &[27]).is_err());
}

#[test]
fn several_completions_are_understood_while_all_is_in_sight() {
    assert_eq!(data(ring(&[(operation::POLL_ADD, 0, 1)], &[(1, 2), (1, 2)], &[6])), [1]);
    let mut requests = vec![(operation::POLL_ADD, 0, 1)];
    requests.extend((2..7).map(|number| (0, 0, number)));
    let mut completions = vec![(1, 2)];
    completions.extend((2..7).map(|number| (number, 0)));
    assert!(ring(&requests, &completions, &[6]).is_err());
    assert_eq!(ring(&requests, &completions, &[]).unwrap().degraded.len(), 1);
}
