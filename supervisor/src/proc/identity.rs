//! The identity lines of `/proc/<pid>/status`: names and numbers of a task in its own namespaces.

/// What a task is called where it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its ID in each PID namespace, from that of the reader to its own.
    pub ids: Vec<i32>,
    /// Its process group in its own namespace (0: led from outside).
    pub process_group: i32,
    /// Its session in its own namespace (0: led from outside).
    pub session: i32,
    /// The process that traces it, 0 for none.
    pub tracer: i32,
    /// The mode of seccomp: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
}

impl Identity {
    /// The ID that the task itself knows.
    #[must_use]
    pub fn innermost(&self) -> i32 {
        self.ids.last().copied().unwrap_or(0)
    }
}

/// The value of a line such as `NSpid:\t7\t1`.
#[must_use]
pub fn field<'text>(status: &'text [u8], name: &str) -> Option<&'text str> {
    status.split(|&byte| byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        std::str::from_utf8(rest).ok().map(str::trim)
    })
}

/// Parses the file; none if a line is missing.
#[must_use]
pub fn parse(status: &[u8]) -> Option<Identity> {
    let numbers = |name: &str| -> Option<Vec<i32>> {
        field(status, name)?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
    };
    Some(Identity {
        ids: numbers("NSpid").filter(|ids| !ids.is_empty())?,
        process_group: *numbers("NSpgid")?.last()?,
        session: *numbers("NSsid")?.last()?,
        tracer: field(status, "TracerPid")?.parse().ok()?,
        seccomp: field(status, "Seccomp").and_then(|mode| mode.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_number_counts() {
        let text = b"Name:\tsh\nTracerPid:\t0\nNSpid:\t811\t7\nNSpgid:\t811\t7\nNSsid:\t0\t0\nSeccomp:\t2\n";
        let identity = parse(text).unwrap();
        assert_eq!(identity.ids, [811, 7]);
        assert_eq!((identity.innermost(), identity.process_group, identity.session), (7, 7, 0));
        assert_eq!(identity.seccomp, 2);
    }
}
