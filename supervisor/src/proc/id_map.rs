//! `/proc/<pid>/uid_map` and `gid_map`: which IDs a user namespace knows.

use crate::error::{Error, Result, code};

/// A range of IDs that a user namespace knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one as the namespace has it.
    pub inside: u32,
    /// The first one as the reader's namespace has it.
    pub outside: u32,
    /// How many follow one another.
    pub count: u32,
}

/// Takes a map apart; see `user_namespaces(7)`.
///
/// # Errors
/// [`code::PROC`] for a line that is no range.
pub fn parse(text: &[u8]) -> Result<Vec<Range>> {
    let text = String::from_utf8_lossy(text);
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Range { inside, outside, count })
    };
    let ranges = text.lines().map(|line| {
        range(line).ok_or_else(|| Error::new(code::PROC, format!("a map of IDs has the strange line {line}")))
    });
    ranges.collect()
}

/// What a namespace with this map has for an ID of the reader's; none if it does not know it.
#[must_use]
pub fn inside(map: &[Range], outside: u32) -> Option<u32> {
    let offset = |range: &Range| outside.checked_sub(range.outside).filter(|&offset| offset < range.count);
    map.iter().find_map(|range| range.inside.checked_add(offset(range)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated() {
        let map = parse(b"         0       1000          1\n         1     100000      65536\n").unwrap();
        assert_eq!([1000, 100_000, 165_535].map(|id| inside(&map, id)), [Some(0), Some(1), Some(65536)]);
        assert_eq!([0, 1001, 165_536].map(|id| inside(&map, id)), [None, None, None]);
        let everything = parse(b"         0          0 4294967295\n").unwrap();
        assert_eq!(inside(&everything, 4_294_967_294), Some(4_294_967_294));
    }

    #[test]
    fn what_is_strange_is_shown() {
        assert_eq!(parse(b"0 0\n").unwrap_err().what, "a map of IDs has the strange line 0 0");
    }
}
