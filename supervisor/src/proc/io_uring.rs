//! What `/proc/<pid>/fdinfo/<n>` tells of an io_uring. Bytes in, values out; nothing is read here.
//!
//! The kernel tells less while somebody else works on the ring: see [`RingInfo::is_whole`].

/// What is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RingInfo {
    /// Requests that there is room for.
    pub submission_entries: u32,
    /// Completions that there is room for.
    pub completion_entries: u32,
    /// How many requests were taken, as the program sees it.
    pub submission_head: u32,
    /// How many requests the program has prepared.
    pub submission_tail: u32,
    /// How many requests were taken.
    pub taken: u32,
    /// How many completions the program has seen.
    pub completion_head: u32,
    /// How many completions were given.
    pub given: u32,
    /// The kernel's thread that takes requests, as whoever reads sees it.
    pub thread: Option<i32>,
    /// Registered files: what the link of a descriptor would say, by their places.
    pub files: Vec<Option<String>>,
    /// Registered buffers: address and length.
    pub buffers: Vec<(u64, u64)>,
    /// Whether credentials are registered.
    pub personalities: bool,
    /// What waits to be possible, by operation.
    pub polls: Vec<u32>,
    /// Completions that wait for room.
    pub overflown: u32,
    /// Whether the kernel looks busily at network devices.
    pub busy_polling: bool,
    /// Whether a completion was shown, and with 32 bytes.
    pub large_completions: Option<bool>,
    /// Whether all was told.
    pub is_whole: bool,
}

/// Understands the text.
#[must_use]
pub fn parse(text: &str) -> RingInfo {
    let mut info = RingInfo::default();
    let mut section = "";
    for line in text.lines() {
        if line.starts_with(char::is_whitespace) {
            item(&mut info, section, line.trim());
            continue;
        }
        let Some((key, rest)) = line.split_once(':') else { continue };
        let rest = rest.trim();
        let number = || rest.parse::<u32>().unwrap_or_default();
        let mask = || u32::from_str_radix(rest.trim_start_matches("0x"), 16).unwrap_or_default();
        section = key;
        match key {
            "SqMask" => info.submission_entries = mask().wrapping_add(1),
            "CqMask" => info.completion_entries = mask().wrapping_add(1),
            "SqHead" => info.submission_head = number(),
            "SqTail" => info.submission_tail = number(),
            "CachedSqHead" => info.taken = number(),
            "CqHead" => info.completion_head = number(),
            "CachedCqTail" => info.given = number(),
            "SqThread" => info.thread = rest.parse().ok().filter(|&thread| thread > 0),
            "UserFiles" => info.files = vec![None; usize::try_from(number()).unwrap_or(0).min(1 << 20)],
            "Personalities" => info.personalities = true,
            "CqOverflowList" => info.is_whole = true,
            "NAPI" => info.busy_polling = rest != "disabled",
            _ => {}
        }
    }
    info
}

fn item(info: &mut RingInfo, section: &str, line: &str) {
    match section {
        "CQEs" => info.large_completions = Some(line.contains("extra1:")),
        "UserFiles" => {
            let Some((index, name)) = line.split_once(": ") else { return };
            let place = index.parse().ok().and_then(|index: usize| info.files.get_mut(index));
            if let Some(place) = place.filter(|_| name != "<none>") {
                *place = Some(name.to_owned());
            }
        }
        "UserBufs" => {
            let value = line.split_once(": ").map_or("", |(_, value)| value);
            let range = value.split_once('/').and_then(|(address, length)| {
                let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
                Some((address, length.parse().ok()?))
            });
            info.buffers.push(range.unwrap_or_default());
        }
        "PollList" => {
            let operation =
                line.strip_prefix("op=").and_then(|rest| rest.split(',').next()?.parse::<u32>().ok());
            info.polls.extend(operation);
        }
        "CqOverflowList" => info.overflown += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_with_everything() {
        let text = "pos:\t0\nflags:\t02000002\nSqMask:\t0x7\nSqHead:\t9\nSqTail:\t10\nCachedSqHead:\t9\nCqMask:\t0xf\n\
            CqHead:\t7\nCqTail:\t8\nCachedCqTail:\t8\nSQEs:\t1\n    1: opcode:NOP, fd:0, flags:0\nCQEs:\t1\n    \
            7: user_data:1, res:0, flag:0\nSqThread:\t-1\nSqThreadCpu:\t-1\nUserFiles:\t2\n    0: <none>\n    \
            1: pipe:[7]\nUserBufs:\t1\n    0: 0x7f00/4096\nPollList:\n  op=22, task_works=0\nCqOverflowList:\n\
            NAPI:\tdisabled\n";
        let info = parse(text);
        assert_eq!((info.submission_entries, info.completion_entries), (8, 16));
        assert_eq!((info.submission_tail, info.taken, info.completion_head, info.given), (10, 9, 7, 8));
        assert_eq!(info.files, [None, Some("pipe:[7]".to_owned())]);
        assert_eq!((info.buffers, info.polls), (vec![(0x7f00, 4096)], vec![22]));
        assert_eq!((info.thread, info.overflown, info.large_completions), (None, 0, Some(false)));
        assert!(info.is_whole && !info.busy_polling && !info.personalities);
    }

    #[test]
    fn nonsense_is_no_panic() {
        for text in
            ["", ":", "UserFiles:\t4294967295\n  9: x", "UserBufs:\n  x", "PollList:\n  op=", "SqMask:\tx"]
        {
            assert!(!parse(text).is_whole);
        }
    }
}
