//! Making a call again with the time that is left.
//!
//! A time-out in a register, or in memory that a register points to, is replaced by a shorter one: the register keeps
//! the new value when the call returns, which no program notices that keeps to the calling convention of the C library
//! (registers of arguments belong to the callee). The memory is below the red zone of the stack.
//!
//! The time-out of a socket can't be replaced unseen. The task instead waits with `ppoll` first, by instructions of its
//! own, and returns by `rt_sigreturn` into its call, which then does not wait any more.

use super::call::{self, Limit};
use super::note::Note;
use super::{RESTART_BLOCK, RESTART_NO_HANDLER};
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::{self, Gadgets, RED_ZONE};
use vckpt_image_format::record::lightweight_process::Wait;

/// How a task goes on.
#[derive(Debug)]
pub struct Resume {
    /// The registers to set, at a stop in which the kernel restarts calls.
    pub registers: Registers,
    /// Bytes to write before, and where.
    pub bytes: Option<(u64, Vec<u8>)>,
}

const POLL_IN: u64 = 1;
const DO_NOT_WAIT: u64 = libc::MSG_DONTWAIT as u64;

/// How a task with these own registers goes on.
#[must_use]
pub fn resume(
    registers: &Registers,
    xstate: &[u8],
    signal_mask: u64,
    wait: Option<&Wait>,
    gadgets: Option<Gadgets>,
) -> Resume {
    let plain = Resume { registers: *registers, bytes: None };
    let Some(wait) = wait else { return plain };
    if wait.restart_block {
        return Resume { bytes: Some(Note::of(wait).bytes(registers)), ..plain };
    }
    let mut shorter = *registers;
    match call::place(u64::from(wait.number)) {
        Some(Limit::Milliseconds(register)) => {
            // Rounded up: a wait may be too long by less than this, but never too short.
            register.set(&mut shorter, wait.remaining.div_ceil(1_000_000));
            Resume { registers: shorter, bytes: None }
        }
        Some(Limit::Time(register)) => {
            let address = registers.rsp.wrapping_sub(RED_ZONE + 16) & !15;
            register.set(&mut shorter, address);
            Resume { registers: shorter, bytes: Some((address, timespec(wait.remaining))) }
        }
        Some(Limit::Receive) if can_wait_by_poll(registers, wait) => {
            let gadgets = gadgets.filter(|gadgets| gadgets.signal_return != 0);
            gadgets.map_or(plain, |gadgets| by_poll(registers, xstate, signal_mask, wait, gadgets))
        }
        // Made again as it was, it waits its whole time anew.
        Some(Limit::Receive | Limit::Send) => plain,
        None => plain,
    }
}

/// Whether a wait goes on by frames on the stack.
#[must_use]
pub fn needs_frames(wait: &Wait) -> bool {
    call::place(u64::from(wait.number)) == Some(Limit::Receive)
}

/// How a task goes on whose call has returned.
#[must_use]
pub fn with_result(registers: &Registers, result: u64) -> Resume {
    Resume { registers: Registers { rax: result, orig_rax: u64::MAX, ..*registers }, bytes: None }
}

fn timespec(nanoseconds: u64) -> Vec<u8> {
    let words = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The registers with which a task makes an interrupted call anew, by itself and from its instruction on; if it waits
/// for at most some time, then for what is left: the bytes of that belong to `time_address`.
#[must_use]
pub fn anew(registers: &Registers, wait: Option<&Wait>, time_address: u64) -> (Registers, Vec<u8>) {
    let mut home = *registers;
    if !is_restart(registers) {
        return (home, Vec::new());
    }
    home.rip = home.rip.wrapping_sub(2);
    home.rax = wait.map_or(home.orig_rax, |wait| u64::from(wait.number));
    let Some(wait) = wait.filter(|wait| !wait.is_unchanged()) else { return (home, Vec::new()) };
    match call::place(u64::from(wait.number)) {
        Some(Limit::Milliseconds(register)) => {
            register.set(&mut home, wait.remaining.div_ceil(1_000_000));
            (home, Vec::new())
        }
        Some(Limit::Time(register)) => {
            register.set(&mut home, time_address);
            (home, timespec(wait.remaining))
        }
        Some(Limit::Receive | Limit::Send) | None => (home, Vec::new()),
    }
}

/// Whether the registers are those of an interrupted call that the kernel is to restart.
fn is_restart(registers: &Registers) -> bool {
    let in_call = registers.orig_rax.cast_signed() >= 0;
    in_call && matches!(registers.rax.cast_signed(), -512 | -513 | RESTART_NO_HANDLER | RESTART_BLOCK)
}

/// Whether the call returns with whatever comes first, which is what it then does without waiting.
fn can_wait_by_poll(registers: &Registers, wait: &Wait) -> bool {
    const WAIT_FOR_ALL: u64 = libc::MSG_WAITALL as u64;
    let flags = match i64::from(wait.number) {
        libc::SYS_recvmsg => registers.rdx,
        libc::SYS_recvfrom => registers.r10,
        _ => 0,
    };
    flags & WAIT_FOR_ALL == 0
}

/// Waits with `ppoll` and then makes the call without waiting.
fn by_poll(registers: &Registers, xstate: &[u8], signal_mask: u64, wait: &Wait, gadgets: Gadgets) -> Resume {
    let mut call = *registers;
    call.rip = call.rip.wrapping_sub(2);
    call.rax = u64::from(wait.number);
    match i64::from(wait.number) {
        libc::SYS_recvmsg => call.rdx |= DO_NOT_WAIT,
        libc::SYS_read => {
            call.rax = libc::SYS_recvfrom.cast_unsigned();
            (call.r10, call.r8, call.r9) = (DO_NOT_WAIT, 0, 0);
        }
        _ => call.r10 |= DO_NOT_WAIT,
    }
    // struct timespec and struct pollfd above the frame.
    let arguments = registers.rsp.wrapping_sub(RED_ZONE + 32) & !63;
    let frame = sigframe::single(&call, xstate, signal_mask, gadgets.signal_return, arguments);
    let mut bytes = frame.bytes;
    bytes.resize(usize::try_from(arguments.wrapping_sub(frame.address)).unwrap_or(0), 0);
    bytes.extend(timespec(wait.remaining));
    bytes.extend((registers.rdi & 0xffff_ffff | POLL_IN << 32).to_le_bytes());
    let mut poll = *registers;
    poll.rip = gadgets.call_and_return;
    poll.rax = libc::SYS_ppoll.cast_unsigned();
    poll.orig_rax = u64::MAX;
    poll.rsp = frame.address;
    (poll.rdi, poll.rsi, poll.rdx, poll.r10, poll.r8) = (arguments + 16, 1, arguments, 0, 8);
    Resume { registers: poll, bytes: Some((frame.address, bytes)) }
}

/// Registers of a task whose restart block can't be made again: the call is made anew.
pub fn without_restart_block(registers: &mut Registers, wait: Option<&Wait>) {
    if registers.rax.cast_signed() != RESTART_BLOCK || wait.is_some_and(|wait| wait.restart_block) {
        return;
    }
    if registers.orig_rax == libc::SYS_restart_syscall.cast_unsigned() {
        // Which call it was is known to nobody any more: the program sees that it was interrupted.
        registers.rax = (-i64::from(libc::EINTR)).cast_unsigned();
    } else {
        registers.rax = RESTART_NO_HANDLER.cast_unsigned();
    }
}
