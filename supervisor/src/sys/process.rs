//! Processes: descriptors for them, comparing what they share, making them, and reaching into their memory.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// A descriptor for a process.
///
/// # Errors
/// See pidfd_open(2).
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    pidfd_open_with(pid, 0)
}

/// A descriptor for a process, or with `PIDFD_THREAD` for a thread.
///
/// # Errors
/// See pidfd_open(2).
pub fn pidfd_open_with(pid: i32, flags: u32) -> Result<OwnedFd> {
    // SAFETY: plain numbers; the kernel checks them.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    own(result)
}

/// A descriptor for a thread (Linux 6.9).
///
/// # Errors
/// See pidfd_open(2), `PIDFD_THREAD`.
pub fn thread_pidfd_open(tid: i32) -> Result<OwnedFd> {
    const THREAD: i32 = libc::O_EXCL;
    // SAFETY: plain numbers; the kernel checks them.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, THREAD) };
    own(result)
}

/// A copy of a descriptor of another process.
///
/// # Errors
/// See pidfd_getfd(2).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: plain numbers; the kernel checks them.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    own(result)
}

fn own(result: i64) -> Result<OwnedFd> {
    let number = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What `kcmp(2)` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Compare {
    /// Open file descriptions, by descriptor.
    File = 0,
    /// Address spaces.
    Memory = 1,
    /// Descriptor tables.
    Files = 2,
    /// File system contexts.
    FileSystem = 3,
    /// Signal handlers.
    SignalHandlers = 4,
    /// Input and output contexts.
    Io = 5,
    /// System V semaphore undo lists.
    SemaphoreUndo = 6,
}

/// The order of what two tasks have, by the kernel's secret sorting: equal if they share it. Not for [`Compare::File`].
///
/// # Errors
/// See kcmp(2).
pub fn order(kind: Compare, first: i32, second: i32) -> Result<std::cmp::Ordering> {
    ordered(kind, (first, 0), (second, 0))
}

/// The order of the open file descriptions of two descriptors, each of a task, by the kernel's secret sorting.
///
/// # Errors
/// See kcmp(2).
pub fn order_of_files(first: (i32, i32), second: (i32, i32)) -> Result<std::cmp::Ordering> {
    ordered(Compare::File, first, second)
}

fn ordered(kind: Compare, first: (i32, i32), second: (i32, i32)) -> Result<std::cmp::Ordering> {
    let indexes = (i64::from(first.1), i64::from(second.1));
    // SAFETY: plain numbers; the kernel checks them.
    let result =
        unsafe { libc::syscall(libc::SYS_kcmp, first.0, second.0, kind as i32, indexes.0, indexes.1) };
    Ok(match Errno::result(result)? {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        2 => std::cmp::Ordering::Greater,
        // Unequal, without an order.
        _ => return Err(Errno::EINVAL),
    })
}

/// The head of a thread's robust list and its length; 0 if none.
///
/// # Errors
/// See get_robust_list(2).
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let mut head = 0_u64;
    let mut length = 0_u64;
    // SAFETY: both pointers lead to live 64-bit variables, which is what the kernel writes.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut length) };
    Errno::result(result)?;
    Ok((head, length))
}

/// Reads another process's memory; the number of bytes that could be read.
///
/// # Errors
/// See process_vm_readv(2).
pub fn read_memory(pid: i32, address: u64, buffer: &mut [u8]) -> Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: pointer(address), iov_len: buffer.len() };
    // SAFETY: the local vector is the exclusively borrowed buffer; the remote one is only a number to us.
    let result = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(result).map(isize::cast_unsigned)
}

/// Reads several ranges of another process's memory into one buffer; the number of bytes that could be read.
///
/// # Errors
/// See process_vm_readv(2).
pub fn read_ranges(pid: i32, ranges: &[(u64, usize)], buffer: &mut [u8]) -> Result<usize> {
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .map(|&(address, length)| libc::iovec { iov_base: pointer(address), iov_len: length })
        .collect();
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the local vector is the exclusively borrowed buffer; the remote ones are only numbers to us.
    let result =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    Errno::result(result).map(isize::cast_unsigned)
}

/// Writes all of the bytes into another process's memory.
///
/// # Errors
/// See process_vm_writev(2); `EFAULT` if only a part could be written.
pub fn write_memory(pid: i32, address: u64, bytes: &[u8]) -> Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: pointer(address), iov_len: bytes.len() };
    // SAFETY: the local vector is a borrowed slice that the kernel only reads; the remote one is a number to us.
    let result = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let written = Errno::result(result)?.cast_unsigned();
    if written == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

fn pointer(address: u64) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(usize::MAX))
}

/// `struct clone_args` of clone3(2), for the calls that batches make.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneArguments {
    /// `CLONE_…`.
    pub flags: u64,
    /// Where to store a pidfd.
    pub pidfd: u64,
    /// Where to store the tid in the child.
    pub child_tid: u64,
    /// Where to store the tid in the parent.
    pub parent_tid: u64,
    /// The signal that the end of the child sends.
    pub exit_signal: u64,
    /// Lowest address of the stack.
    pub stack: u64,
    /// Its size in bytes.
    pub stack_size: u64,
    /// Thread-local storage.
    pub tls: u64,
    /// Address of the wanted IDs, one for each PID namespace, the innermost first.
    pub set_tid: u64,
    /// Their number.
    pub set_tid_size: u64,
    /// A control group.
    pub cgroup: u64,
}

impl CloneArguments {
    /// As 64-bit words, in the order of the structure.
    #[must_use]
    pub fn words(&self) -> [u64; 11] {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ]
    }
}

/// What the child of [`start_program`] begins with.
#[derive(Debug, Clone, Copy)]
pub struct Start<'start> {
    /// `CLONE_NEW…` flags.
    pub flags: u64,
    /// The IDs that it is to have, the innermost namespace first; none: as the kernel gives.
    pub pids: &'start [i32],
    /// A descriptor that it inherits, and the number that it has there.
    pub socket: (BorrowedFd<'start>, RawFd),
    /// The executable.
    pub program: BorrowedFd<'start>,
}

/// Makes a child that executes a program with no arguments and no environment, all signals blocked. In a new user
/// namespace it keeps all capabilities over the execution.
///
/// The child shares nothing with us but a copy of our pages, and makes only system calls: the state of locks and
/// allocators that it inherits does not matter.
///
/// # Errors
/// See clone3(2): `EEXIST` if an ID is taken, `EPERM` if it may not be chosen.
pub fn start_program(start: Start<'_>) -> Result<i32> {
    let arguments = CloneArguments {
        flags: start.flags,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        set_tid: if start.pids.is_empty() { 0 } else { start.pids.as_ptr().expose_provenance() as u64 },
        set_tid_size: start.pids.len() as u64,
        ..CloneArguments::default()
    };
    let words = arguments.words();
    // SAFETY: `words` has the layout of clone_args and outlives the call; without CLONE_VM the child has its own copy
    // of this stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, words.as_ptr(), size_of_val(&words)) };
    if Errno::result(result)? == 0 {
        child(start)
    }
    i32::try_from(result).map_err(|_| Errno::EOVERFLOW)
}

/// What the child of [`start_program`] does.
fn child(start: Start<'_>) -> ! {
    let all = u64::MAX;
    let empty = [std::ptr::null::<libc::c_char>()];
    let (socket, number) = (start.socket.0.as_raw_fd(), start.socket.1);
    let keep_capabilities = start.flags & libc::CLONE_NEWUSER.cast_unsigned() as u64 != 0;
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "the same argument holds for each of these calls"
    )]
    // SAFETY: raw system calls with pointers to live locals of the sizes that are passed along.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0_u64, 8_u64);
        libc::syscall(libc::SYS_dup3, socket, number, 0);
        if keep_capabilities {
            raise_ambient();
        }
        let program = start.program.as_raw_fd();
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            empty.as_ptr(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::syscall(libc::SYS_exit_group, 127);
    }
    // Only reached if the kernel does not know exit_group.
    #[expect(clippy::empty_loop, reason = "there is nothing else left to do")]
    loop {}
}

/// Makes every permitted capability inheritable and ambient, so that an execution keeps it.
fn raise_ambient() {
    // struct __user_cap_header_struct: version 3, this thread; struct __user_cap_data_struct, twice.
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "the same argument holds for each of these calls"
    )]
    // SAFETY: raw system calls with pointers to live locals of the sizes that version 3 has.
    unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        // Effective, permitted, inheritable; low words, then high words.
        sets[2] = sets[1];
        sets[5] = sets[4];
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        for capability in 0..64 {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                capability,
                0,
                0,
            );
        }
    }
}

/// Shared anonymous memory of this size, as a file: what `mmap(MAP_SHARED | MAP_ANONYMOUS)` makes; of huge pages if
/// the binary logarithm of their size is not 0. `None` where the right to open it is missing
/// (`CAP_CHECKPOINT_RESTORE`).
///
/// # Errors
/// See mmap(2).
pub fn shared_anonymous(size: u64, huge_page: u8) -> Result<Option<std::fs::File>> {
    let length = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let huge =
        if huge_page == 0 { 0 } else { libc::MAP_HUGETLB | i32::from(huge_page) << libc::MAP_HUGE_SHIFT };
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | huge;
    // SAFETY: a new mapping at an address of the kernel's choice; it is never dereferenced, and unmapped below.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let start = address.addr() as u64;
    let end = start + size.next_multiple_of(1 << huge_page.max(12));
    let path = format!("/proc/self/map_files/{start:x}-{end:x}");
    let file = std::fs::File::options().read(true).write(true).open(path);
    // SAFETY: the mapping was made above, and nobody else knows it.
    unsafe { libc::munmap(address, length) };
    Ok(file.ok())
}

/// Keeps every descriptor from 3 on, whoever opened it, from programs that this one starts.
///
/// # Errors
/// See close_range(2).
pub fn keep_descriptors_private() -> Result<()> {
    // SAFETY: plain numbers; nothing is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Sends a signal to a process through its descriptor.
///
/// # Errors
/// See pidfd_send_signal(2).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: plain numbers, and no siginfo.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    };
    Errno::result(result).map(drop)
}

/// The process that has last changed a semaphore of a System V set, in our PID namespace; 0 for none there.
///
/// # Errors
/// See semctl(2): `EACCES` without the right to read.
pub fn last_to_change(set: i32, semaphore: i32) -> Result<i32> {
    // SAFETY: plain numbers; this command takes no more arguments.
    Errno::result(unsafe { libc::semctl(set, semaphore, libc::GETPID) })
}
