//! Where the freestanding stub starts, and the symbols that a program without libraries has to define itself.
//!
//! Only in the stub, so neither seen by tests nor by the library; what the stub then does is in [`crate::life`].
#![allow(unsafe_code, reason = "the first instructions of a program have no stack and no language yet")]

use core::arch::global_asm;

use crate::protocol::{BOOT_OFFSET, STACK_LENGTH, STACK_OFFSET};

// `_start`: rdi is the boot page, or 0 after an execve (which clears the registers): then it is the one behind the
// code. The stack is this boot page's own, because threads share the code but not the rest. The direction flag is
// whatever the interrupted task had, and compiled code relies on it being clear.
global_asm!(
    ".globl _start",
    ".hidden __ehdr_start",
    ".type _start, @function",
    "_start:",
    "cld",
    "test rdi, rdi",
    "jnz 2f",
    "lea rdi, [rip + __ehdr_start + {boot_offset}]",
    "2:",
    "lea rsp, [rdi + {stack_top}]",
    "and rsp, -16",
    "xor ebp, ebp",
    "lea rsi, [rip + _start]",
    "call {live}",
    "ud2",
    ".size _start, . - _start",
    boot_offset = const BOOT_OFFSET,
    stack_top = const STACK_OFFSET - BOOT_OFFSET + STACK_LENGTH,
    live = sym crate::life::live,
);

// The memory functions that the compiler calls on its own. In assembly, so that it can't recognise a loop and
// replace it by a call of the very function it stands in.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    ".hidden memcpy, memmove, memset, memcmp, bcmp",
    ".type memcpy, @function",
    ".type memmove, @function",
    ".type memset, @function",
    ".type memcmp, @function",
    ".type bcmp, @function",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "mov rcx, rdx",
    "xor eax, eax",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "2:",
    "ret",
);

/// Asked for by the language. Never reached: a panic anywhere in the stub would fail its link.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    crate::sys::stay()
}
