//! The note of a deadline: a few bytes below the red zone of a task's stack, which no code of the task uses while it
//! sits in the call. A signal handler may overwrite them, but then the call ends.

use crate::sys::process;
use crate::sys::ptrace::Registers;
use vckpt_image_format::record::lightweight_process::Wait;

/// A deadline that the kernel keeps in a restart block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// Number of the call.
    pub number: u32,
    /// Its deadline by `CLOCK_MONOTONIC`, in nanoseconds; `i64::MAX` if the arguments say it all.
    pub deadline: i64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"vckptdue");
const LENGTH: usize = 48;
/// Distance of the note's first byte below the stack pointer: the red zone, and the note.
const DISTANCE: u64 = 128 + 64;

impl Note {
    /// The note of a wait that is to go on now.
    #[must_use]
    pub fn of(wait: &Wait) -> Self {
        let remaining = i64::try_from(wait.remaining).unwrap_or(i64::MAX);
        Self { number: wait.number, deadline: super::now().saturating_add(remaining) }
    }

    /// What is left of it at this moment, in nanoseconds, or [`Wait::UNCHANGED`].
    #[must_use]
    pub fn remaining(&self, moment: i64) -> u64 {
        if self.deadline == i64::MAX {
            Wait::UNCHANGED
        } else {
            u64::try_from(self.deadline.saturating_sub(moment)).unwrap_or(0)
        }
    }

    /// The bytes, for a task with these registers, and where they belong.
    #[must_use]
    pub fn bytes(&self, registers: &Registers) -> (u64, Vec<u8>) {
        let words = [
            MAGIC,
            u64::from(self.number),
            self.deadline.cast_unsigned(),
            registers.rip,
            registers.rsp,
            self.check(registers),
        ];
        (registers.rsp.wrapping_sub(DISTANCE), words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    /// Ties the note to this very call of this very task.
    fn check(&self, registers: &Registers) -> u64 {
        let words = [
            u64::from(self.number),
            self.deadline.cast_unsigned(),
            registers.rip,
            registers.rsp,
            registers.fs_base,
            registers.rdi,
            registers.rsi,
        ];
        // FNV-1a: it guards against chance, not against an enemy, who could only make his own wait longer.
        words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
    }
}

/// The note of a task that was stopped in a restarted call, if there is one.
#[must_use]
pub fn read(tid: i32, registers: &Registers) -> Option<Note> {
    let mut bytes = [0; LENGTH];
    if process::read_memory(tid, registers.rsp.checked_sub(DISTANCE)?, &mut bytes) != Ok(LENGTH) {
        return None;
    }
    let word = |index: usize| bytes.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
    let note = Note { number: u32::try_from(word(1)?).ok()?, deadline: word(2)?.cast_signed() };
    let (_, expected) = note.bytes(registers);
    (expected == bytes).then_some(note)
}
