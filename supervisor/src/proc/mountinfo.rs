//! `/proc/<pid>/mountinfo`: the mounts of a namespace. Bytes in, values out; nothing is read here.
//!
//! Documented in proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its ID.
    pub id: u64,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub point: PathBuf,
}

/// The mounts, in the order of the text; lines that are none are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok();
    let id = number(words.next()?)?;
    let device = std::str::from_utf8(words.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let point = PathBuf::from(OsString::from_vec(unescape(words.nth(1)?)));
    Some(Mount { id, device, point })
}

/// Blanks and backslashes are written as `\040`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = behind.get(3..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = behind;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_with_odd_names() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\nnonsense\n22 27 0:21 / /a\\134b rw - proc proc rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0], Mount { id: 36, device: (98, 0), point: "/mnt 2".into() });
        assert_eq!(mounts[1], Mount { id: 22, device: (0, 21), point: "/a\\b".into() });
    }

    #[test]
    fn nonsense_is_no_panic() {
        for text in [&b""[..], b"1", b"1 2 3", b"1 2 3:4 / \\04", b"1 2 3:4 / \\999 x"] {
            let _ = parse(text);
        }
    }
}
