//! How this program itself is scheduled.

/// Place of `sched_runtime` in `struct sched_attr`, in 64-bit words.
const RUNTIME: usize = 3;

/// The slice of the scheduler that this program has, in nanoseconds; 0 if the kernel does not tell it (before
/// Linux 6.12). See `sched_getattr(2)`.
#[must_use]
pub fn own_slice() -> u64 {
    let mut attributes = [0_u64; 7];
    let (itself, length, none) = (0, size_of_val(&attributes), 0);
    // SAFETY: the pointer leads to as many writable bytes as the length says.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, itself, attributes.as_mut_ptr(), length, none) };
    if result == 0 { attributes[RUNTIME] } else { 0 }
}
