//! `/proc/<pid>/fdinfo/<n>`: what the kernel tells of a descriptor. Bytes in, values out; nothing is read here.
//!
//! Documented in proc_pid_fdinfo(5) and the kernel's `Documentation/filesystems/proc.rst`, section 3.8.

mod watch;

use super::locks::LockLine;
pub use watch::{FanotifyInfo, FanotifyLine, FanotifyOn, Handle, InotifyLine};
use watch::{push_fanotify, push_inotify};

/// What `fdinfo` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// The file offset.
    pub position: u64,
    /// Access mode and status flags, with `O_CLOEXEC`.
    pub flags: u32,
    /// The inode number; 0 where the kernel does not tell (before 5.14).
    pub inode: u64,
    /// What only descriptors of its kind have.
    pub detail: Detail,
    /// Locks that are held through it.
    pub locks: Vec<LockLine>,
}

/// What only descriptors of some kind have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Detail {
    /// Nothing known.
    #[default]
    None,
    /// An eventfd.
    Event {
        /// Its counter.
        count: u64,
        /// Whether it is a semaphore; before 6.5 the kernel does not tell.
        semaphore: Option<bool>,
    },
    /// A signalfd with its mask.
    Signal {
        /// Bit `n - 1` for signal `n`.
        mask: u64,
    },
    /// A timerfd.
    Timer(TimerInfo),
    /// An epoll set.
    Epoll(Vec<EpollLine>),
    /// An inotify instance.
    Inotify(Vec<InotifyLine>),
    /// A fanotify group.
    Fanotify(FanotifyInfo),
    /// A BPF map.
    Bpf(BpfInfo),
    /// A pidfd.
    Process {
        /// Its process, as whoever reads sees it; -1 if it has ended and was waited for, 0 if it is not in sight.
        pid: i32,
    },
}

/// What `fdinfo` says of a timerfd. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimerInfo {
    /// Its clock.
    pub clock: u32,
    /// How often it expired since it was read.
    pub ticks: u64,
    /// Flags of `timerfd_settime(2)`.
    pub settime_flags: u32,
    /// What is left until it expires.
    pub remaining: u64,
    /// Its interval.
    pub interval: u64,
}

/// An entry of an epoll set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollLine {
    /// The number under which it was added.
    pub number: u32,
    /// Its events.
    pub events: u32,
    /// Its data.
    pub data: u64,
    /// Inode number of what is watched.
    pub inode: u64,
}

/// What `fdinfo` says of a BPF map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BpfInfo {
    /// Its type.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub maximum: u32,
    /// Its flags.
    pub flags: u32,
    /// Its ID.
    pub id: u32,
    /// Whether programs of user space may not change it any more.
    pub frozen: bool,
}

/// Understands the text; lines of unknown kind are left out.
#[must_use]
pub fn parse(text: &str) -> FdInfo {
    let mut info = FdInfo::default();
    let mut timer = TimerInfo::default();
    let (mut event, mut semaphore) = (None, None);
    let mut map = BpfInfo::default();
    for line in text.lines() {
        let (key, rest) = line.split_once(':').map_or((line, ""), |(key, rest)| (key, rest.trim()));
        match key {
            "pos" => info.position = rest.parse().unwrap_or_default(),
            "flags" => info.flags = octal(rest),
            "ino" => info.inode = rest.parse().unwrap_or_default(),
            "lock" => info.locks.extend(super::locks::parse_line(rest)),
            "eventfd-count" => event = Some(hexadecimal(rest)),
            "eventfd-semaphore" => semaphore = Some(rest == "1"),
            "map_type" => map.map_type = rest.parse().unwrap_or_default(),
            "key_size" => map.key_size = rest.parse().unwrap_or_default(),
            "value_size" => map.value_size = rest.parse().unwrap_or_default(),
            "max_entries" => map.maximum = rest.parse().unwrap_or_default(),
            "map_flags" => {
                map.flags = u32::try_from(hexadecimal(rest.trim_start_matches("0x"))).unwrap_or_default();
            }
            "map_id" => map.id = rest.parse().unwrap_or_default(),
            "frozen" => {
                map.frozen = rest != "0";
                info.detail = Detail::Bpf(map);
            }
            "Pid" => info.detail = Detail::Process { pid: rest.parse().unwrap_or_default() },
            "sigmask" => info.detail = Detail::Signal { mask: hexadecimal(rest) },
            "tfd" => push_epoll(&mut info.detail, rest),
            "clockid" => timer.clock = rest.parse().unwrap_or_default(),
            "ticks" => timer.ticks = rest.parse().unwrap_or_default(),
            "settime flags" => timer.settime_flags = octal(rest),
            "it_value" => timer.remaining = nanoseconds(rest),
            "it_interval" => {
                timer.interval = nanoseconds(rest);
                info.detail = Detail::Timer(timer);
            }
            _ if line.starts_with("inotify ") => push_inotify(&mut info.detail, line),
            _ if line.starts_with("fanotify ") => push_fanotify(&mut info.detail, line),
            _ => {}
        }
    }
    if let Some(count) = event {
        info.detail = Detail::Event { count, semaphore };
    }
    info
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).unwrap_or_default()
}

fn hexadecimal(text: &str) -> u64 {
    u64::from_str_radix(text.trim(), 16).unwrap_or_default()
}

/// `(seconds, nanoseconds)`.
fn nanoseconds(text: &str) -> u64 {
    let inner = text.trim_start_matches('(').trim_end_matches(')');
    let Some((seconds, nanoseconds)) = inner.split_once(',') else { return 0 };
    let seconds: u64 = seconds.trim().parse().unwrap_or_default();
    let nanoseconds: u64 = nanoseconds.trim().parse().unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// `       5 events:       19 data:                5  pos:0 ino:61ef sdev:7`.
fn push_epoll(detail: &mut Detail, rest: &str) {
    let number = rest.split_whitespace().next().and_then(|word| word.parse().ok());
    let (Some(number), Some(events), Some(data)) = (number, field(rest, "events:"), field(rest, "data:"))
    else {
        return;
    };
    let inode = field(rest, "ino:").unwrap_or_default();
    let line = EpollLine { number, events: u32::try_from(events).unwrap_or_default(), data, inode };
    if let Detail::Epoll(lines) = detail {
        lines.push(line);
    } else {
        *detail = Detail::Epoll(vec![line]);
    }
}

/// The hexadecimal number behind a key, with or without blanks between.
fn field(text: &str, key: &str) -> Option<u64> {
    let rest = &text[text.find(key)? + key.len()..];
    u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_file() {
        let info = parse("pos:\t123\nflags:\t02102002\nmnt_id:\t29\nino:\t77\n");
        assert_eq!(info, FdInfo { position: 123, flags: 0o210_2002, inode: 77, ..FdInfo::default() });
    }

    #[test]
    fn event_descriptor() {
        let info = parse(
            "pos:\t0\nflags:\t02\nino:\t9\neventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n",
        );
        assert_eq!(info.detail, Detail::Event { count: 31, semaphore: Some(true) });
    }

    #[test]
    fn signal_descriptor() {
        assert_eq!(parse("sigmask:\t0000000000000200\n").detail, Detail::Signal { mask: 0x200 });
    }

    #[test]
    fn timer_descriptor() {
        let text = "clockid: 1\nticks: 2\nsettime flags: 01\nit_value: (3, 500000000)\nit_interval: (0, 7)\n";
        let expected =
            TimerInfo { clock: 1, ticks: 2, settime_flags: 1, remaining: 3_500_000_000, interval: 7 };
        assert_eq!(parse(text).detail, Detail::Timer(expected));
    }

    #[test]
    fn epoll_set() {
        let text = "tfd:        5 events:       19 data: ffffffff00000005  pos:0 ino:61ef sdev:7\n\
                    tfd:       12 events: 40000000 data:                c  pos:0 ino:61f0 sdev:7\n";
        let Detail::Epoll(lines) = parse(text).detail else { panic!("no epoll set") };
        assert_eq!(
            lines[0],
            EpollLine { number: 5, events: 0x19, data: 0xffff_ffff_0000_0005, inode: 0x61ef }
        );
        assert_eq!(lines[1].events, 0x4000_0000);
        assert_eq!(lines[1].number, 12);
    }

    #[test]
    fn bpf_maps() {
        let text = "map_type:\t1\nkey_size:\t4\nvalue_size:\t8\nmax_entries:\t10\nmap_flags:\t0x81\nmap_extra:\t0x0\n\
                    memlock:\t1936\nmap_id:\t25\nfrozen:\t1\n";
        let expected = BpfInfo {
            map_type: 1,
            key_size: 4,
            value_size: 8,
            maximum: 10,
            flags: 0x81,
            id: 25,
            frozen: true,
        };
        assert_eq!(parse(text).detail, Detail::Bpf(expected));
    }

    #[test]
    fn process_descriptors() {
        let text = "pos:\t0\nflags:\t02000002\nPid:\t4711\nNSpid:\t4711\t5\n";
        assert_eq!(parse(text).detail, Detail::Process { pid: 4711 });
        assert_eq!(parse("Pid:\t-1\nNSpid:\t-1\n").detail, Detail::Process { pid: -1 });
    }

    #[test]
    fn locks_are_kept() {
        let info = parse("lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n");
        assert_eq!(info.locks.len(), 1);
    }

    #[test]
    fn nonsense_is_no_panic() {
        for text in
            ["", ":", "tfd:", "tfd: x events: y", "inotify wd:", "it_value: (", "lock:", "pos:\nflags:9"]
        {
            let _ = parse(text);
        }
    }
}
