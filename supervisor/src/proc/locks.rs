//! Lines of `/proc/locks` and of `lock:` in `/proc/<pid>/fdinfo/<n>`. Bytes in, values out; nothing is read here.
//!
//! Documented in proc_locks(5).

/// A lock on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockLine {
    /// Its sort.
    pub sort: LockSort,
    /// Whether it keeps out readers too.
    pub exclusive: bool,
    /// Whether it is a lease that its holder is to give up, because somebody else opens the file.
    pub breaking: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; none for all that follow.
    pub end: Option<u64>,
}

/// The sort of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockSort {
    /// `flock(2)`.
    WholeFile,
    /// `fcntl(F_SETLK)`.
    Posix,
    /// `fcntl(F_OFD_SETLK)`.
    Description,
    /// `fcntl(F_SETLEASE)` or a delegation.
    Lease,
}

/// Understands `1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF`; none for a line that is no held lock.
#[must_use]
pub fn parse_line(line: &str) -> Option<LockLine> {
    let mut words = line.split_whitespace();
    let number = words.next()?;
    if !number.ends_with(':') {
        return None;
    }
    let sort = match words.next()? {
        "FLOCK" => LockSort::WholeFile,
        "POSIX" => LockSort::Posix,
        "OFDLCK" => LockSort::Description,
        "LEASE" | "DELEG" => LockSort::Lease,
        _ => return None,
    };
    let breaking = words.next()? == "BREAKING";
    let exclusive = words.next()? == "WRITE";
    let start = words.nth(2)?.parse().ok()?;
    let end = words.next()?;
    Some(LockLine {
        sort,
        exclusive,
        breaking,
        start,
        end: if end == "EOF" { None } else { end.parse().ok() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sorts() {
        let line = |text| parse_line(text).expect("a lock");
        assert_eq!(
            line("1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF"),
            LockLine { sort: LockSort::WholeFile, exclusive: true, breaking: false, start: 0, end: None }
        );
        assert_eq!(
            line("2: POSIX  ADVISORY  READ  12 08:01:7 100 199"),
            LockLine { sort: LockSort::Posix, exclusive: false, breaking: false, start: 100, end: Some(199) }
        );
        assert_eq!(line("3: OFDLCK ADVISORY  READ  -1 08:01:7 0 9").sort, LockSort::Description);
        assert_eq!(line("4: LEASE  ACTIVE    READ 5 08:01:7 0 EOF").sort, LockSort::Lease);
        assert!(line("4: LEASE  BREAKING  READ 5 08:01:7 0 EOF").breaking);
    }

    #[test]
    fn waiters_and_nonsense_are_none() {
        for text in ["", "1:", "1: -> POSIX  ADVISORY  WRITE 5 08:01:7 0 9", "1: WHAT X WRITE 1 2 3 4", "x"] {
            assert_eq!(parse_line(text), None, "{text}");
        }
    }
}
