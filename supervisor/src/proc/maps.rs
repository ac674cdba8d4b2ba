//! `/proc/<pid>/smaps`: the mappings of a process with their flags (proc_pid_smaps(5)).
//!
//! A flag that is not known is an error: nothing may be lost because its name was new.

/// A mapping as the kernel prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLine {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `PROT_READ` 1, `PROT_WRITE` 2, `PROT_EXEC` 4.
    pub protection: u8,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device of the file, as `stat` gives it; 0 for none.
    pub device: u64,
    /// Inode of the file; 0 for none.
    pub inode: u64,
    /// Path or name, with octal escapes undone; ` (deleted)` taken off.
    pub name: Vec<u8>,
    /// Whether ` (deleted)` stood behind the path.
    pub deleted: bool,
    /// The two-letter words of `VmFlags`.
    pub flags: Vec<[u8; 2]>,
    /// The protection key, where the processor has such keys.
    pub protection_key: Option<u8>,
    /// The size of its pages in bytes; 0 if it was not told.
    pub page_size: u64,
}

impl MapLine {
    /// Whether a flag such as `gd` is set.
    #[must_use]
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
}

/// Parses `smaps`.
///
/// # Errors
/// The line that is not understood.
pub fn parse(text: &[u8]) -> Result<Vec<MapLine>, String> {
    let mut maps: Vec<MapLine> = Vec::new();
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix(b"VmFlags:") {
            let map = maps.last_mut().ok_or_else(|| unknown(line))?;
            for word in rest.split(|&byte| byte == b' ').filter(|word| !word.is_empty()) {
                map.flags.push(word.try_into().map_err(|_| unknown(line))?);
            }
        } else if let Some(rest) = line.strip_prefix(b"ProtectionKey:") {
            let map = maps.last_mut().ok_or_else(|| unknown(line))?;
            map.protection_key = Some(number(rest).ok_or_else(|| unknown(line))?);
        } else if let Some(rest) = line.strip_prefix(b"KernelPageSize:") {
            let map = maps.last_mut().ok_or_else(|| unknown(line))?;
            let kibibytes: u64 = number(rest).ok_or_else(|| unknown(line))?;
            map.page_size = kibibytes.saturating_mul(1024);
        } else if line.first().is_some_and(u8::is_ascii_uppercase) {
            // A counter such as `Rss:`.
        } else {
            maps.push(header(line).ok_or_else(|| unknown(line))?);
        }
    }
    Ok(maps)
}

fn unknown(line: &[u8]) -> String {
    format!("unknown line {:?}", String::from_utf8_lossy(line))
}

/// The number behind the name of a line.
fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.split_whitespace().next()?.parse().ok()
}

/// Parses a line of `maps`.
fn header(line: &[u8]) -> Option<MapLine> {
    let mut words = line.splitn(6, |&byte| byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let (start, end) = word()?.split_once('-')?;
    let protection = word()?.as_bytes();
    let offset = u64::from_str_radix(word()?, 16).ok()?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let name = words.next().unwrap_or_default().trim_ascii_start();
    let name = unescape(name);
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(stripped) => (stripped.to_vec(), true),
        None => (name, false),
    };
    let bit =
        |index: usize, letter: u8, bit: u8| if protection.get(index) == Some(&letter) { bit } else { 0 };
    Some(MapLine {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        protection: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
        shared: protection.get(3) == Some(&b's'),
        offset,
        device: libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        name,
        deleted,
        flags: Vec::new(),
        protection_key: None,
        page_size: 0,
    })
}

/// Undoes the escapes of the kernel's `seq_path`: newline as `\012`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = (byte == b'\\').then(|| tail.get(..3)).flatten().filter(|digits| *digits == b"012");
        if escaped.is_some() {
            plain.push(b'\n');
            rest = tail.get(3..).unwrap_or_default();
        } else {
            plain.push(byte);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_anonymous_memory() {
        let text =
            b"7f00-8f00 r-xp 00001000 fe:01 325843                     /lib/a b.so (deleted)\nRss: 4 kB\n\
            KernelPageSize:        4 kB\nProtectionKey:         3\n\
            VmFlags: rd ex mr mw me \n9000-a000 rw-s 00000000 00:00 0 \nVmFlags: rd wr sh gd \n";
        let maps = parse(text).unwrap();
        assert_eq!(
            (maps[0].start, maps[0].end, maps[0].protection, maps[0].shared),
            (0x7f00, 0x8f00, 5, false)
        );
        assert_eq!((maps[0].name.as_slice(), maps[0].deleted), (b"/lib/a b.so".as_slice(), true));
        assert_eq!((maps[0].page_size, maps[0].protection_key), (4096, Some(3)));
        assert_eq!(maps[0].device, libc::makedev(0xfe, 1));
        assert!(maps[1].shared && maps[1].has(b"gd") && maps[1].name.is_empty());
    }

    #[test]
    fn an_unknown_line_is_refused() {
        assert!(parse(b"what is this\n").is_err());
    }
}
