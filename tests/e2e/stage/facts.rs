//! What a process can find out about itself: collected before and after, they must be the same.
//!
//! Left out on purpose: numbers that a restored process cannot keep (inode numbers of pipes and sockets,
//! device and inode of mappings, mount IDs), names of deleted files, the parent of the root, and the end of
//! the heap, since collecting needs memory itself.

use std::collections::BTreeMap;
use std::fs;

/// Facts by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts(BTreeMap<String, String>);

/// Lines of `/proc/self/status` that must stay.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "Kthread",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "THP_enabled",
    "untag_mask",
    "Threads",
];

/// Files of `/proc/self` whose bytes must stay.
const FILES: &[&str] =
    &["cmdline", "environ", "auxv", "comm", "personality", "oom_score_adj", "coredump_filter", "setgroups"];

/// Names of `/proc/self/stat` fields that must stay, by their number in proc(5).
const STAT: &[(usize, &str)] = &[
    (7, "tty"),
    (19, "nice"),
    (26, "start of code"),
    (27, "end of code"),
    (28, "start of stack"),
    (40, "real-time priority"),
    (41, "policy"),
    (45, "start of data"),
    (46, "end of data"),
    (47, "start of heap"),
    (48, "start of arguments"),
    (49, "end of arguments"),
    (50, "start of environment"),
    (51, "end of environment"),
];

impl Facts {
    /// All facts about this process.
    pub(crate) fn collect() -> Self {
        let mut facts = Self::default();
        facts.identity();
        facts.status();
        facts.threads();
        facts.calls();
        facts.descriptors();
        facts.0.insert("memory map".into(), memory_map());
        facts
    }

    /// Drops the facts whose names begin with one of these.
    pub(crate) fn forget(&mut self, prefixes: &[&str]) {
        self.0.retain(|name, _| !prefixes.iter().any(|prefix| name.starts_with(prefix)));
    }

    /// One line for each difference; of texts with many lines only the lines that differ.
    pub(crate) fn differences(&self, later: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let mut found = Vec::new();
        for name in names {
            let (before, after) = (self.0.get(name), later.0.get(name));
            if before != after {
                let [before, after] = [before, after].map(|text| text.map_or("(absent)", String::as_str));
                let only = |one: &str, other: &str| {
                    let other: Vec<&str> = other.lines().collect();
                    one.lines().filter(|line| !other.contains(line)).collect::<Vec<_>>().join("\n    ")
                };
                found.push(format!(
                    "{name} differs:\n  - {}\n  + {}",
                    only(before, after),
                    only(after, before)
                ));
            }
        }
        found
    }

    fn note(&mut self, name: impl Into<String>, value: impl ToString) {
        self.0.insert(name.into(), value.to_string());
    }

    fn identity(&mut self) {
        // SAFETY: these calls take plain integers and cannot fail for the caller itself.
        let ids = unsafe { [libc::getpid(), libc::getpgid(0), libc::getsid(0)] };
        self.note("pid, group, session", format!("{ids:?}"));
        for name in FILES {
            // An ordinary user is restored in a user namespace, which may not set groups.
            if *name == "setgroups" && is_ordinary_user() {
                continue;
            }
            let bytes = fs::read(format!("/proc/self/{name}")).unwrap_or_default();
            self.note(*name, String::from_utf8_lossy(&bytes).replace('\0', "\u{b7}"));
        }
        for name in ["exe", "cwd", "root"] {
            let target = fs::read_link(format!("/proc/self/{name}"));
            self.note(name, target.map_or_else(|error| error.to_string(), |path| path.display().to_string()));
        }
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        for (number, name) in STAT {
            self.note(*name, fields.get(number - 3).unwrap_or(&"?"));
        }
    }

    fn status(&mut self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for line in status.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            if STATUS.contains(&name) {
                self.note(format!("status {name}"), value.trim());
            }
            if matches!(name, "SigPnd" | "ShdPnd") {
                self.note(format!("pending {name}"), value.trim());
            }
        }
    }

    fn threads(&mut self) {
        for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let find = |wanted: &str| {
                let found = status.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
                found.map_or("", str::trim).to_owned()
            };
            let thread = find("NSpid").split_whitespace().last().unwrap_or("?").to_owned();
            let names = ["Name", "SigBlk", "Uid", "Gid", "CapEff", "Seccomp", "Cpus_allowed"];
            self.note(format!("thread {thread}"), names.map(find).join(" | "));
        }
    }

    fn calls(&mut self) {
        for resource in 0..16 {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: `limit` is a valid place for the answer.
            unsafe { libc::getrlimit(resource, &raw mut limit) };
            self.note(format!("limit {resource}"), format!("{} {}", limit.rlim_cur, limit.rlim_max));
        }
        for number in 1..=64 {
            // The kernel's own structure: handler, flags, restorer, mask; the C library hides two of its signals.
            let mut action = [0_u64; 4];
            // SAFETY: the place has the 32 bytes of the kernel's structure, and its mask 8 of them.
            unsafe { libc::syscall(libc::SYS_rt_sigaction, number, 0, action.as_mut_ptr(), 8) };
            if action != [0; 4] {
                self.note(format!("handler of {number}"), format!("{action:x?}"));
            }
        }
        let getters = [
            ("dumpable", libc::PR_GET_DUMPABLE),
            ("keep capabilities", libc::PR_GET_KEEPCAPS),
            ("securebits", libc::PR_GET_SECUREBITS),
            ("timer slack", libc::PR_GET_TIMERSLACK),
            ("no new privileges", libc::PR_GET_NO_NEW_PRIVS),
            ("huge pages off", libc::PR_GET_THP_DISABLE),
        ];
        for (name, option) in getters {
            // SAFETY: these options take no pointer.
            self.note(name, unsafe { libc::prctl(option, 0, 0, 0, 0) });
        }
        for (name, option) in [
            ("signal on parent's death", libc::PR_GET_PDEATHSIG),
            ("subreaper", libc::PR_GET_CHILD_SUBREAPER),
        ] {
            let mut value = 0_i32;
            // SAFETY: these options write one int to the place.
            unsafe { libc::prctl(option, &raw mut value, 0, 0, 0) };
            self.note(name, value);
        }
        // SAFETY: plain integers: of this process, its I/O priority.
        self.note("I/O priority", unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) });
        let (mut head, mut length) = (0_usize, 0_usize);
        // SAFETY: both places are valid.
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
        self.note("robust list", format!("{head:x} {length}"));
    }

    fn descriptors(&mut self) {
        let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
        let mut numbers: Vec<i32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        for number in numbers {
            // The descriptor of the folder itself is closed by now.
            let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
            let kept: Vec<&str> =
                info.lines().filter(|line| line.starts_with("pos:") || line.starts_with("flags:")).collect();
            let target = without_number(&target.display().to_string());
            self.note(format!("fd {number}"), format!("{target} {}", kept.join(" ")));
        }
    }
}

/// True unless this process belongs to root.
fn is_ordinary_user() -> bool {
    // SAFETY: getuid has no arguments and cannot fail.
    unsafe { libc::getuid() != 0 }
}

/// The name of an object without what a restored process cannot keep.
fn without_number(name: &str) -> String {
    // Only root may open shared memory that has no name; that of an ordinary user becomes a file in memory.
    let was_nameless = is_ordinary_user() && name.starts_with("/memfd:vckpt-shared-anonymous");
    if name.starts_with("/memfd:") && !was_nameless {
        return name.to_owned();
    }
    if name.ends_with(" (deleted)") {
        return "(deleted)".to_owned();
    }
    match name.split_once(":[") {
        Some((kind, _)) => format!("{kind}:[]"),
        None => name.to_owned(),
    }
}

/// A mapping of this process.
struct Mapping {
    start: u64,
    end: u64,
    protection: String,
    offset: u64,
    name: String,
    flags: String,
}

/// The memory map from `/proc/self/smaps`, with neighbours of one kind joined, as text.
pub(crate) fn memory_map() -> String {
    let mut mappings: Vec<Mapping> = Vec::new();
    let text = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let kept: Vec<&str> = flags
                .split_whitespace()
                .filter(|flag| !matches!(*flag, "sd" | "ac" | "mr" | "mw" | "me"))
                .collect();
            if let Some(last) = mappings.last_mut() {
                last.flags = kept.join(" ");
            }
            continue;
        }
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        let [range, protection, offset, _, _, name] = words[..] else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let number = |text| u64::from_str_radix(text, 16);
        let (Ok(start), Ok(end), Ok(offset)) = (number(start), number(end), number(offset)) else { continue };
        let name = without_number(name.trim());
        mappings.push(Mapping {
            start,
            end,
            protection: protection.into(),
            offset,
            name,
            flags: String::new(),
        });
    }
    let mut joined: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        if let Some(last) = joined.last_mut() {
            let file = mapping.name.starts_with('/') || mapping.name == "(deleted)";
            let follows = !file || last.offset + (last.end - last.start) == mapping.offset;
            let same = last.protection == mapping.protection && last.name == mapping.name;
            if last.end == mapping.start && follows && same && last.flags == mapping.flags {
                last.end = mapping.end;
                continue;
            }
        }
        joined.push(mapping);
    }
    let mut lines = String::new();
    for Mapping { start, end, protection, offset, name, flags } in joined {
        let file = name.starts_with('/');
        let end = if name == "[heap]" { "…".to_owned() } else { format!("{end:x}") };
        // The stack grows downwards as calls nest deeper.
        let start = if name == "[stack]" { "…".to_owned() } else { format!("{start:x}") };
        let offset = if file { format!(" @{offset:x}") } else { String::new() };
        lines.push_str(&format!("{start}-{end} {protection}{offset} {name} [{flags}]\n"));
    }
    lines
}
