//! `/proc/<pid>/stat`: one line about a task (proc_pid_stat(5)).

/// What is used of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// `comm`, raw.
    pub command: Vec<u8>,
    /// One letter: `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I` …
    pub state: u8,
    /// Parent process.
    pub parent: i32,
    /// Process group.
    pub process_group: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal, 0 for none.
    pub terminal: i32,
    /// Foreground process group of the terminal, -1 for none.
    pub foreground_group: i32,
    /// `PF_…` flags of the kernel.
    pub flags: u32,
    /// Number of threads.
    pub threads: i64,
    /// When it was started, in clock ticks since boot.
    pub start_time: u64,
    /// Start and end of the code, start of the stack.
    pub code: (u64, u64),
    /// Start of the stack.
    pub stack: u64,
    /// Start and end of the data.
    pub data: (u64, u64),
    /// Start of the heap.
    pub heap: u64,
    /// Start and end of the arguments.
    pub arguments: (u64, u64),
    /// Start and end of the environment.
    pub environment: (u64, u64),
    /// Signal that the end sends to the parent.
    pub exit_signal: i32,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

/// `PF_KTHREAD`: a thread of the kernel.
pub const FLAG_KERNEL_THREAD: u32 = 0x0020_0000;
/// `PF_IO_WORKER` and `PF_USER_WORKER`: a thread of the kernel within a process, which works for an io_uring, for
/// example.
pub const FLAG_WORKER: u32 = 0x10 | 0x4000;
/// `PF_EXITING`: it is on its way to its end, and may have given up its memory.
pub const FLAG_EXITING: u32 = 0x4;

/// Parses the line; none if it is not as expected.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Stat> {
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let command = line.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    // The first of these is field 3 of the manual page.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let signed = |number: usize| field(number)?.parse::<i32>().ok();
    let address = |number: usize| field(number)?.parse::<u64>().ok();
    Some(Stat {
        command,
        state: *field(3)?.as_bytes().first()?,
        parent: signed(4)?,
        process_group: signed(5)?,
        session: signed(6)?,
        terminal: signed(7)?,
        foreground_group: signed(8)?,
        flags: field(9)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_time: address(22)?,
        code: (address(26)?, address(27)?),
        stack: address(28)?,
        exit_signal: signed(38)?,
        data: (address(45)?, address(46)?),
        heap: address(47)?,
        arguments: (address(48)?, address(49)?),
        environment: (address(50)?, address(51)?),
        exit_code: signed(52)?,
    })
}

/// The processor that the task last ran on.
#[must_use]
pub fn processor(line: &[u8]) -> Option<i32> {
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces() {
        let line = b"7 (a) (b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 3 0 99 1000 10 18446744073709551615 \
            4096 8192 140000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 16384 20480 24576 28672 28680 28680 28690 256\n";
        let stat = parse(line).unwrap();
        assert_eq!(stat.command, b"a) (b");
        assert_eq!((stat.parent, stat.threads, stat.start_time), (1, 3, 99));
        assert_eq!((stat.code, stat.stack, stat.heap), ((4096, 8192), 140_000, 24576));
        assert_eq!((stat.exit_signal, stat.exit_code), (17, 256));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 (x) S 1 2"), None);
    }
}
