//! System calls without a library: the one instruction, and the few calls the stub makes on its own account.
//!
//! No wrappers by kind of call: what a batch calls is numbers to the stub.
#![allow(unsafe_code, reason = "system calls are made by inline assembly")]

use core::arch::asm;

/// Call numbers of x86-64 that the stub itself uses.
pub(crate) mod number {
    pub(crate) const CLOSE: u64 = 3;
    pub(crate) const RT_SIGRETURN: u64 = 15;
    pub(crate) const SENDMSG: u64 = 46;
    pub(crate) const RECVMSG: u64 = 47;
    pub(crate) const SOCKETPAIR: u64 = 53;
    pub(crate) const WAIT4: u64 = 61;
    pub(crate) const EXIT_GROUP: u64 = 231;
    pub(crate) const PPOLL: u64 = 271;
    pub(crate) const DUP3: u64 = 292;
    pub(crate) const CLONE3: u64 = 435;
}

/// Error numbers that the stub looks at or gives.
pub(crate) mod error {
    pub(crate) const EINTR: u64 = 4;
    pub(crate) const EINVAL: u64 = 22;
    pub(crate) const EPIPE: u64 = 32;
    pub(crate) const ENOSYS: u64 = 38;
    pub(crate) const ECONNRESET: u64 = 104;
}

/// `O_CLOEXEC`, which is also `SOCK_CLOEXEC`.
pub(crate) const CLOSE_ON_EXEC: u64 = 0o2_000_000;

/// One system call; what the kernel returned.
///
/// # Safety
/// The call must not break memory that Rust code in this process relies on.
pub(crate) unsafe fn call(number: u64, arguments: [u64; 6]) -> i64 {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result: i64;
    // SAFETY: the instruction changes no registers but rax, rcx and r11, all named here, and uses no stack of ours;
    // what the call itself does to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Sets a tile of AMX to zero, which makes the kernel give tiles to this task, and gives all tiles back.
pub(crate) fn use_tiles() {
    // Palette 1; the first tile has one row of four bytes.
    let mut configuration = [0_u64; 8];
    configuration[0] = 1;
    configuration[2] = 4;
    configuration[6] = 1;
    // SAFETY: the supervisor asks for it only where the processor has tiles, which this program does not use otherwise.
    // LDTILECFG reads the 64 bytes at rax; TILEZERO and TILERELEASE touch no memory.
    unsafe {
        asm!(
            ".byte 0xc4, 0xe2, 0x78, 0x49, 0x00",
            ".byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0",
            ".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0",
            in("rax") &raw const configuration,
            options(nostack, preserves_flags),
        );
    }
}

/// The error number in a result, if it is one (-4095 … -1).
pub(crate) fn error_of(result: i64) -> Option<u64> {
    if (-4095..0).contains(&result) { Some(result.unsigned_abs()) } else { None }
}

/// A descriptor as an argument: sign-extended, as the kernel's own callers pass it.
pub(crate) fn descriptor_argument(descriptor: i32) -> u64 {
    i64::from(descriptor).cast_unsigned()
}

/// Closes a descriptor. A failure can't be helped and is ignored.
pub(crate) fn close(descriptor: i32) {
    // SAFETY: closing a descriptor touches no memory.
    let _ = unsafe { call(number::CLOSE, [descriptor_argument(descriptor), 0, 0, 0, 0, 0]) };
}

/// Makes `number` another descriptor for what `descriptor` is, closed on exec.
pub(crate) fn duplicate(descriptor: i32, number: i32) -> i64 {
    let arguments = [descriptor_argument(descriptor), descriptor_argument(number), CLOSE_ON_EXEC, 0, 0, 0];
    // SAFETY: duplicating a descriptor touches no memory.
    unsafe { call(number::DUP3, arguments) }
}

/// Ends the process.
pub(crate) fn exit_group(status: u64) -> ! {
    loop {
        // SAFETY: no Rust code of this process runs after it.
        let _ = unsafe { call(number::EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

/// Waits for ever, for someone to change the registers from outside.
pub(crate) fn stay() -> ! {
    loop {
        // SAFETY: with null pointers only, ppoll neither reads nor writes memory.
        let _ = unsafe { call(number::PPOLL, [0; 6]) };
    }
}

/// Waits for any child of any kind to end: its pid (or a negative error) and its status.
pub(crate) fn wait_for_any_child() -> (i64, u32) {
    const ALL_KINDS: u64 = 0x4000_0000;
    let mut status: u32 = 0;
    let address = (&raw mut status).expose_provenance() as u64;
    // SAFETY: the kernel writes four bytes to `status`, which lives until after the call, and nothing else.
    let child = unsafe { call(number::WAIT4, [u64::MAX, address, ALL_KINDS, 0, 0, 0]) };
    (child, status)
}

/// Takes the registers from the signal frame that `stack` points 8 bytes into.
///
/// # Safety
/// `stack - 8` must be the address of a complete `rt_sigframe` whose registers this task may go on with; nothing of
/// the stub is returned to.
pub(crate) unsafe fn go_home(stack: u64) -> ! {
    // SAFETY: the stack pointer is given up for good, as nothing returns here; the frame is the caller's promise.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "syscall",
            "ud2",
            stack = in(reg) stack,
            in("rax") number::RT_SIGRETURN,
            options(noreturn),
        )
    }
}

/// `clone3` of a task that starts at `entry` with `rdi` = `boot`, and never returns here.
///
/// # Safety
/// `arguments` and `length` must describe valid `clone_args`, `boot` a boot page in an area that no other task uses,
/// and `entry` the start of the stub.
pub(crate) unsafe fn clone_at(arguments: u64, length: u64, boot: u64, entry: u64) -> i64 {
    let result: i64;
    // SAFETY: in the parent it is a plain system call with all changed registers named. The child has the parent's
    // registers but for rax and rsp; it leaves at once for the entry, which sets a stack of its own, so it never
    // touches this one.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r8",
            "jmp r9",
            "2:",
            inlateout("rax") number::CLONE3 => result,
            in("rdi") arguments,
            in("rsi") length,
            in("r8") boot,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
