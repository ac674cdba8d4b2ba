//! Restartable sequences: a task that stands still inside one is sent to its abort handler, as the kernel does with
//! every task that it takes off its processor there.
//!
//! Without this, code that runs in the task meanwhile would make the kernel forget the sequence, and the task would go
//! on in its middle as if nothing had been.
//! Documentation: rseq(2), and `rseq_ip_fixup` in the kernel's kernel/rseq.c.

use crate::sys::process;
use crate::sys::ptrace::Registers;

/// Offset of the pointer to the current sequence in `struct rseq`.
const CURRENT: u64 = 8;

/// Sends a task to the abort handler of the sequence that it is in; the registers are changed in place. Gives the
/// address of a pointer that is to be cleared then.
#[must_use]
pub fn abort(tid: i32, area: u64, registers: &mut Registers) -> Option<u64> {
    // In a system call nothing is in a sequence.
    if area == 0 || registers.orig_rax.cast_signed() >= 0 {
        return None;
    }
    let pointer = area + CURRENT;
    let [sequence] = read::<1>(tid, pointer)?;
    if sequence == 0 {
        return None;
    }
    // struct rseq_cs: version and flags, start, length, abort handler.
    let [_, start, length, handler] = read::<4>(tid, sequence)?;
    if registers.rip.wrapping_sub(start) >= length {
        return None;
    }
    registers.rip = handler;
    Some(pointer)
}

fn read<const WORDS: usize>(tid: i32, address: u64) -> Option<[u64; WORDS]> {
    let mut bytes = vec![0; WORDS * 8];
    if process::read_memory(tid, address, &mut bytes) != Ok(bytes.len()) {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map(u64::from_le_bytes).ok()?;
    }
    Some(words)
}
