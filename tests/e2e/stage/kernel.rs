//! Small conveniences over system calls for the fixtures.

use std::io;
use std::time::Duration;

/// Turns a result of the C library into one that carries errno.
pub(crate) fn check<T: PartialOrd + Default>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks; the child runs `body` and ends with the status that it gives, with no unwinding in between.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: fixtures that fork have one thread, or their children make plain calls only.
    let pid = check(unsafe { libc::fork() }).unwrap();
    if pid == 0 {
        let status = body();
        // SAFETY: ends this child at once, as intended.
        unsafe { libc::_exit(status) };
    }
    pid
}

/// Waits for a child by a plain, blocking `waitpid`; EINTR is an error here.
pub(crate) fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    Ok(status)
}

/// A pipe as two descriptors (read, write).
pub(crate) fn pipe(flags: i32) -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) }).unwrap();
    ends
}

/// Reads up to `buffer.len()` bytes.
pub(crate) fn read(descriptor: i32, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a slice.
    let count = check(unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), buffer.len()) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Reads one message or what is there and gives it as bytes.
pub(crate) fn take(descriptor: i32, room: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; room];
    let count = read(descriptor, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// Writes all bytes in one call.
pub(crate) fn put(descriptor: i32, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a slice.
    let count = check(unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) })?;
    if usize::try_from(count).is_ok_and(|count| count == bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::other(format!("wrote {count} of {} bytes", bytes.len())))
    }
}

/// A time on a clock.
pub(crate) fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for a timespec.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) }).unwrap();
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The monotonic clock.
pub(crate) fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// A duration as the kernel wants it.
pub(crate) fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) }
}

/// `PROT_READ` and `PROT_WRITE`.
pub(crate) const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// New memory from the kernel; fails loudly.
pub(crate) fn map(length: usize, protection: i32, flags: i32, descriptor: i32) -> *mut u8 {
    map_at(length, protection, flags, descriptor, 0)
}

/// New memory from the kernel, from an offset of a file on; fails loudly.
pub(crate) fn map_at(length: usize, protection: i32, flags: i32, descriptor: i32, offset: i64) -> *mut u8 {
    // SAFETY: the kernel chooses the place, so no existing memory is touched.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, offset) };
    assert_ne!(place, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    place.cast()
}

/// The signals in a set, as numbers.
pub(crate) fn members(set: &libc::sigset_t) -> Vec<i32> {
    // SAFETY: the set is a valid one and the numbers are those of signals.
    (1..=64).filter(|&number| unsafe { libc::sigismember(set, number) } == 1).collect()
}

/// A set of signals.
pub(crate) fn signal_set(numbers: &[i32]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for &number in numbers {
        // SAFETY: the set is a valid one and the numbers are those of signals.
        unsafe { libc::sigaddset(&raw mut set, number) };
    }
    set
}

/// Blocks signals in this thread.
pub(crate) fn block(numbers: &[i32]) {
    let set = signal_set(numbers);
    // SAFETY: both pointers are valid or null as the call allows.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

/// Installs a handler with flags and a mask.
pub(crate) fn handle(
    number: i32,
    handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void),
    flags: i32,
    mask: &[i32],
) {
    let action = libc::sigaction {
        sa_sigaction: handler as *const () as usize,
        sa_mask: signal_set(mask),
        sa_flags: flags | libc::SA_SIGINFO,
        sa_restorer: None,
    };
    // SAFETY: the action is fully initialised and its handler is async-signal-safe.
    check(unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) }).unwrap();
}

/// The data of all events of an epoll set that are there now, sorted.
pub(crate) fn ready(set: i32) -> Vec<u64> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: room for sixteen events.
    let count = unsafe { libc::epoll_wait(set, events.as_mut_ptr(), 16, 0) };
    let mut data: Vec<u64> = events[..count.max(0) as usize].iter().map(|event| event.u64).collect();
    data.sort_unstable();
    data
}
