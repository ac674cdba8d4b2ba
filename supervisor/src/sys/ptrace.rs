//! The ptrace requests that nix does not have, and waiting for a single tracee.

use nix::errno::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// General-purpose registers of x86-64: `struct user_regs_struct`.
pub type Registers = libc::user_regs_struct;

/// `PTRACE_O_SUSPEND_SECCOMP`.
pub const OPTION_SUSPEND_SECCOMP: i32 = 1 << 21;

const NT_X86_XSTATE: i32 = 0x202;

/// Most bytes of extended state that any processor of today has.
const XSTATE_ROOM: usize = 64 * 1024;

fn request(number: u32, tid: i32, address: usize, data: *mut libc::c_void) -> Result<i64> {
    // SAFETY: callers pass pointers to live buffers of the size that the request documents, or plain numbers.
    let result = unsafe { libc::ptrace(number, tid, address, data) };
    Errno::result(result)
}

/// Begins to trace a task without stopping it.
///
/// # Errors
/// See ptrace(2), `PTRACE_SEIZE`.
pub fn seize(tid: i32, options: i32) -> Result<()> {
    let options = usize::try_from(options).map_err(|_| Errno::EINVAL)?;
    request(libc::PTRACE_SEIZE, tid, 0, std::ptr::without_provenance_mut(options)).map(drop)
}

/// Changes the options of a stopped tracee.
///
/// # Errors
/// See ptrace(2), `PTRACE_SETOPTIONS`.
pub fn set_options(tid: i32, options: i32) -> Result<()> {
    let options = usize::try_from(options).map_err(|_| Errno::EINVAL)?;
    request(libc::PTRACE_SETOPTIONS, tid, 0, std::ptr::without_provenance_mut(options)).map(drop)
}

/// Asks a tracee to stop.
///
/// # Errors
/// See ptrace(2), `PTRACE_INTERRUPT`.
pub fn interrupt(tid: i32) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, std::ptr::null_mut()).map(drop)
}

/// Lets a stopped tracee go on, delivering a signal (0: none).
///
/// # Errors
/// See ptrace(2), `PTRACE_CONT`.
pub fn resume(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, tid, 0, number(signal)).map(drop)
}

/// Lets a stopped tracee go on to the next entry or exit of a system call, delivering a signal (0: none).
///
/// # Errors
/// See ptrace(2), `PTRACE_SYSCALL`.
pub fn resume_to_call(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, number(signal)).map(drop)
}

/// Stops tracing, delivering a signal (0: none).
///
/// # Errors
/// See ptrace(2), `PTRACE_DETACH`.
pub fn detach(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, number(signal)).map(drop)
}

fn number(signal: i32) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(usize::try_from(signal).unwrap_or(0))
}

/// The number that belongs to the last event.
///
/// # Errors
/// See ptrace(2), `PTRACE_GETEVENTMSG`.
pub fn event_message(tid: i32) -> Result<u64> {
    let mut message = 0_u64;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).cast())?;
    Ok(message)
}

/// The general-purpose registers of a stopped tracee.
///
/// # Errors
/// See ptrace(2), `PTRACE_GETREGS`.
pub fn registers(tid: i32) -> Result<Registers> {
    let mut registers = from_words(&[0; 27]);
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers).cast())?;
    Ok(registers)
}

/// Sets the general-purpose registers of a stopped tracee.
///
/// # Errors
/// See ptrace(2), `PTRACE_SETREGS`.
pub fn set_registers(tid: i32, registers: &Registers) -> Result<()> {
    let mut registers = *registers;
    request(libc::PTRACE_SETREGS, tid, 0, (&raw mut registers).cast()).map(drop)
}

/// The registers as words, in the kernel's order.
#[must_use]
pub fn to_words(registers: &Registers) -> [u64; 27] {
    // SAFETY: the structure is repr(C) with 27 fields of 64 bits and no padding.
    unsafe { std::mem::transmute(*registers) }
}

/// The registers from words in the kernel's order.
#[must_use]
pub fn from_words(words: &[u64; 27]) -> Registers {
    // SAFETY: the structure is repr(C) with 27 fields of 64 bits and no padding; any bits are a valid value.
    unsafe { std::mem::transmute(*words) }
}

/// The extended state of a stopped tracee, in the standard format of XSAVE.
///
/// # Errors
/// See ptrace(2), `PTRACE_GETREGSET`.
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    let mut buffer = vec![0_u8; XSTATE_ROOM];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE.cast_unsigned() as usize, (&raw mut vector).cast())?;
    buffer.truncate(vector.iov_len);
    buffer.shrink_to_fit();
    Ok(buffer)
}

/// Sets the extended state of a stopped tracee.
///
/// # Errors
/// See ptrace(2), `PTRACE_SETREGSET`.
pub fn set_xstate(tid: i32, state: &[u8]) -> Result<()> {
    let mut vector = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE.cast_unsigned() as usize, (&raw mut vector).cast())
        .map(drop)
}

/// The signal mask of a stopped tracee: bit n-1 for signal n.
///
/// # Errors
/// See ptrace(2), `PTRACE_GETSIGMASK`.
pub fn signal_mask(tid: i32) -> Result<u64> {
    let mut mask = 0_u64;
    request(libc::PTRACE_GETSIGMASK, tid, 8, (&raw mut mask).cast())?;
    Ok(mask)
}

/// Sets the signal mask of a stopped tracee.
///
/// # Errors
/// See ptrace(2), `PTRACE_SETSIGMASK`.
pub fn set_signal_mask(tid: i32, mask: u64) -> Result<()> {
    let mut mask = mask;
    request(libc::PTRACE_SETSIGMASK, tid, 8, (&raw mut mask).cast()).map(drop)
}

/// The pending signals of a stopped tracee, the oldest first; of its whole process if `shared`. Each is a raw
/// `siginfo_t`.
///
/// # Errors
/// See ptrace(2), `PTRACE_PEEKSIGINFO`.
pub fn pending_signals(tid: i32, shared: bool) -> Result<Vec<[u8; 128]>> {
    const CHUNK: usize = 32;
    let mut signals = Vec::new();
    loop {
        let mut buffer = [[0_u8; 128]; CHUNK];
        let mut arguments = libc::ptrace_peeksiginfo_args {
            off: signals.len() as u64,
            flags: if shared { libc::PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: i32::try_from(CHUNK).unwrap_or(0),
        };
        // SAFETY: the address leads to the arguments, the data to room for as many siginfo_t as they ask for.
        let result =
            unsafe { libc::ptrace(libc::PTRACE_PEEKSIGINFO, tid, &raw mut arguments, buffer.as_mut_ptr()) };
        let count = usize::try_from(Errno::result(result)?).unwrap_or(0);
        signals.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count < CHUNK {
            return Ok(signals);
        }
    }
}

/// The restartable-sequence area of a stopped tracee: address, size, signature. Address 0: none.
///
/// # Errors
/// See ptrace(2), `PTRACE_GET_RSEQ_CONFIGURATION`; `EIO` or `EINVAL` where the kernel lacks it.
pub fn rseq(tid: i32) -> Result<(u64, u32, u32)> {
    let mut words = [0_u64; 3];
    request(0x420f, tid, size_of_val(&words), words.as_mut_ptr().cast())?;
    let size = u32::try_from(words[1] & 0xffff_ffff).unwrap_or(0);
    let signature = u32::try_from(words[1] >> 32).unwrap_or(0);
    Ok((words[0], size, signature))
}

/// The filter with this number of a stopped tracee, the oldest first: its instructions, and its flags.
///
/// # Errors
/// See ptrace(2), `PTRACE_SECCOMP_GET_FILTER`: `ENOENT` behind the last, `EACCES` without `CAP_SYS_ADMIN`.
pub fn filter(tid: i32, index: usize) -> Result<(Vec<u8>, u64)> {
    const GET_FILTER: u32 = 0x420c;
    const GET_METADATA: u32 = 0x420d;
    let count = request(GET_FILTER, tid, index, std::ptr::null_mut())?;
    let mut program = vec![0_u64; usize::try_from(count).unwrap_or(0)];
    request(GET_FILTER, tid, index, program.as_mut_ptr().cast())?;
    let mut metadata = [index as u64, 0];
    request(GET_METADATA, tid, size_of_val(&metadata), metadata.as_mut_ptr().cast())?;
    Ok((program.iter().flat_map(|word| word.to_le_bytes()).collect(), metadata[1]))
}

/// Which system calls of a stopped tracee are not dispatched to its own handler (syscall user dispatch): the address of
/// the selector, and start and length of the code that is exempt. None if all calls are made.
///
/// # Errors
/// See ptrace(2), `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`: `EIO` before Linux 6.4.
pub fn dispatch(tid: i32) -> Result<Option<[u64; 3]>> {
    // Mode, selector, offset, length.
    let mut words = [0_u64; 4];
    request(0x4211, tid, size_of_val(&words), words.as_mut_ptr().cast())?;
    let [mode, selector, start, length] = words;
    Ok((mode != 0).then_some([selector, start, length]))
}

/// Lets the calls of a stopped tracee be dispatched to its own handler, as [`dispatch`] gives it.
///
/// # Errors
/// See ptrace(2), `PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG`.
pub fn set_dispatch(tid: i32, [selector, start, length]: [u64; 3]) -> Result<()> {
    const ON: u64 = 1;
    let mut words = [ON, selector, start, length];
    request(0x4210, tid, size_of_val(&words), words.as_mut_ptr().cast()).map(drop)
}

/// What a wait for a tracee gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Nothing yet.
    Nothing,
    /// It stopped: the signal, and the event (`PTRACE_EVENT_…`, 0 for none).
    Stopped {
        /// The stop signal; its bit 7 marks a system call stop.
        signal: i32,
        /// The event.
        event: i32,
    },
    /// It has ended, with this wait status.
    Ended {
        /// As wait(2) gives it.
        status: i32,
    },
}

/// Waits for one tracee (or child), or only looks.
///
/// # Errors
/// See waitpid(2); `ECHILD` if it is none.
pub fn wait(tid: i32, block: bool) -> Result<Waited> {
    let mut status = 0;
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    let result = loop {
        // SAFETY: the pointer leads to a live integer.
        match Errno::result(unsafe { libc::waitpid(tid, &raw mut status, options) }) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if result == 0 {
        return Ok(Waited::Nothing);
    }
    if libc::WIFSTOPPED(status) {
        return Ok(Waited::Stopped { signal: libc::WSTOPSIG(status), event: status >> 16 });
    }
    Ok(Waited::Ended { status })
}
