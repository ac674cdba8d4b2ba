//! The way home: signal frames that put a task back to its own state when nobody traces it any more.
//!
//! A task is released the moment its tracer dies. While we make it run anything but its own code, a chain of frames
//! lies below the red zone of its stack (or elsewhere: [`agent`](crate::stub::agent) decides), and every piece of
//! foreign code that it runs ends in `rt_sigreturn` on the first of them: that one unmaps our area (`munmap`, by a `syscall; ret` of the program's own code), and returns into
//! the second one, which holds the task's own registers, extended state and signal mask.
//!
//! The layout of a frame is `struct rt_sigframe` of arch/x86/include/asm/sigframe.h. The alternate stack that it names
//! is deliberately invalid, so that the kernel leaves the task's own in place (`restore_altstack` ignores the error).

use crate::sys::ptrace::Registers;

/// Instructions of the program itself that the way home needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gadgets {
    /// Address of a `syscall` instruction that a `ret` follows.
    pub call_and_return: u64,
    /// Address of a `rt_sigreturn`: `mov $15, %eax; syscall`.
    pub signal_return: u64,
}

/// Bytes below the stack pointer that a program may use without moving it (the red zone).
pub const RED_ZONE: u64 = 128;
/// Bytes of a frame without the extended state: return address, ucontext, siginfo, rounded up.
const FRAME_LENGTH: u64 = 8 + 304 + 128 + 8;
const XSTATE_ALIGNMENT: u64 = 64;

/// Offset of `sw_reserved` in the legacy area of XSAVE.
const SOFTWARE_BYTES: usize = 464;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UCONTEXT_FLAGS: u64 = 1 | 2 | 4;
/// No `SS_…` mode that the kernel knows.
const INVALID_STACK_FLAGS: u64 = 0x0f;
/// Bits of AMX: their state may be absent from a signal frame.
const AMX_FEATURES: u64 = 0b11 << 17;

/// A chain of two frames, ready to be written to `address`.
#[derive(Debug, Clone)]
pub struct WayHome {
    /// Where the bytes belong.
    pub address: u64,
    /// The frames and the extended state.
    pub bytes: Vec<u8>,
    /// What the stack pointer is after the return into `signal_return`: at the start of the chain plus 8.
    pub first: u64,
    /// The same for the second frame: home without unmapping.
    pub second: u64,
}

/// Builds the chain below `top`.
///
/// `home` is what the task goes on with: `rt_sigreturn` takes the kernel's own way of restarting a call away, so they
/// make an interrupted call anew. `area` is what the first frame unmaps: address and length.
#[must_use]
pub fn way_home(
    top: u64,
    home: &Registers,
    xstate: &[u8],
    signal_mask: u64,
    gadgets: Gadgets,
    area: (u64, u64),
) -> WayHome {
    let xstate = frame_xstate(xstate);
    let xstate_address = top.wrapping_sub(xstate.len() as u64) & !(XSTATE_ALIGNMENT - 1);
    let second_address = xstate_address.wrapping_sub(FRAME_LENGTH) & !15;
    let first_address = second_address.wrapping_sub(FRAME_LENGTH);

    let mut unmap = *home;
    unmap.rip = gadgets.call_and_return;
    unmap.rax = libc::SYS_munmap.cast_unsigned();
    unmap.rdi = area.0;
    unmap.rsi = area.1;
    unmap.rsp = second_address;

    let mut bytes = frame(&unmap, u64::MAX, xstate_address, gadgets.signal_return);
    bytes.extend(frame(home, signal_mask, xstate_address, gadgets.signal_return));
    bytes.resize(usize::try_from(xstate_address.wrapping_sub(first_address)).unwrap_or(0), 0);
    bytes.extend(xstate);
    WayHome {
        address: first_address,
        bytes,
        first: first_address.wrapping_add(8),
        second: second_address.wrapping_add(8),
    }
}

impl WayHome {
    /// Adds bytes behind the frames, at an address at or above their top.
    pub fn put_on_top(&mut self, address: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.resize(usize::try_from(address.wrapping_sub(self.address)).unwrap_or(0), 0);
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// One frame, ready to be written to `address`.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where the bytes belong; what the stack pointer is when its code returns into `rt_sigreturn`.
    pub address: u64,
    /// The frame and the extended state.
    pub bytes: Vec<u8>,
}

/// Builds one frame below `top` that gives a task these registers.
#[must_use]
pub fn single(home: &Registers, xstate: &[u8], signal_mask: u64, signal_return: u64, top: u64) -> Frame {
    let xstate = frame_xstate(xstate);
    let xstate_address = top.wrapping_sub(xstate.len() as u64) & !(XSTATE_ALIGNMENT - 1);
    let address = xstate_address.wrapping_sub(FRAME_LENGTH) & !15;
    let mut bytes = frame(home, signal_mask, xstate_address, signal_return);
    bytes.resize(usize::try_from(xstate_address.wrapping_sub(address)).unwrap_or(0), 0);
    bytes.extend(xstate);
    Frame { address, bytes }
}

/// The extended state as a signal frame has it: with the kernel's marks, and without what needs a permission.
fn frame_xstate(xstate: &[u8]) -> Vec<u8> {
    let mut bytes = xstate.to_vec();
    let word = |bytes: &[u8], offset: usize| {
        bytes.get(offset..offset + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let mut features = word(&bytes, SOFTWARE_BYTES);
    let used = word(&bytes, 512);
    if features & AMX_FEATURES != 0 && used & AMX_FEATURES == 0 {
        features &= !AMX_FEATURES;
        bytes.truncate(standard_length(features).min(bytes.len()));
    }
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let mut marks = Vec::with_capacity(48);
    marks.extend(MAGIC_1.to_le_bytes());
    marks.extend((length + 4).to_le_bytes());
    marks.extend(features.to_le_bytes());
    marks.extend(length.to_le_bytes());
    marks.resize(48, 0);
    if let Some(place) = bytes.get_mut(SOFTWARE_BYTES..SOFTWARE_BYTES + 48) {
        place.copy_from_slice(&marks);
    }
    bytes.extend(MAGIC_2.to_le_bytes());
    bytes
}

/// Bytes of the standard format of XSAVE with these features, as CPUID tells them.
fn standard_length(features: u64) -> usize {
    let mut length = 576;
    for feature in 2..63 {
        if features & (1 << feature) != 0 {
            let leaf = core::arch::x86_64::__cpuid_count(0xd, feature);
            length = length.max(leaf.eax as usize + leaf.ebx as usize);
        }
    }
    length
}

fn frame(registers: &Registers, signal_mask: u64, xstate: u64, return_address: u64) -> Vec<u8> {
    let segments = (registers.cs & 0xffff) | ((registers.ss & 0xffff) << 48);
    let words = [
        return_address,
        // struct ucontext: flags, link, and the alternate stack.
        UCONTEXT_FLAGS,
        0,
        0,
        INVALID_STACK_FLAGS,
        0,
        // struct sigcontext.
        registers.r8,
        registers.r9,
        registers.r10,
        registers.r11,
        registers.r12,
        registers.r13,
        registers.r14,
        registers.r15,
        registers.rdi,
        registers.rsi,
        registers.rbp,
        registers.rbx,
        registers.rdx,
        registers.rax,
        registers.rcx,
        registers.rsp,
        registers.rip,
        registers.eflags,
        segments,
        0,
        0,
        0,
        0,
        xstate,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        signal_mask,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(usize::try_from(FRAME_LENGTH).unwrap_or(0), 0);
    bytes
}
