//! The protocol between the supervisor and the stub: the one definition that both sides include.
//!
//! A *request* is one `SOCK_SEQPACKET` message: a [`Request`] header, `call_count` [`Call`]s, then `data_length`
//! bytes of data. Descriptors may travel with it (`SCM_RIGHTS`).
//! The stub places the data in its buffer, makes the calls in order, and answers with one message: a [`Reply`]
//! header, `call_count` results (`i64`, what the kernel returned; [`NOT_RUN`] for a call that was not reached), then
//! the data area as the calls left it.
//!
//! The stub knows no resource kind. All structures are `repr(C)`, hold no pointers of Rust, and are read and written
//! as plain bytes. [`VERSION`] changes with every change of this file; supervisor and stub are always built together,
//! so the number only guards against a stale blob.
//!
//! Not here: the transport (supervisor: `stub::channel`; stub: `serve`) and the meaning of any system call.

#[cfg(not(parasite_stub))]
mod bytes;

/// Changes with every change of the protocol.
pub const VERSION: u32 = 3;
/// First word of a boot page: `"vckpboot"` read as a little-endian number.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"vckpboot");
/// Result of a call that was not run because an earlier [`STOP_ON_ERROR`] call failed.
pub const NOT_RUN: i64 = i64::MIN;

/// Bytes of the code part of an area; the boot page follows it directly. A multiple of the page size, and at least
/// the length of the stub image (checked when the stub is built).
pub const CODE_LENGTH: usize = 8 * 1024;
/// Bytes of the boot page.
pub const BOOT_LENGTH: usize = 4096;
/// Bytes of the stack of the stub.
pub const STACK_LENGTH: usize = 16 * 1024;
/// Bytes of the message buffer, thus of the longest request.
pub const BUFFER_LENGTH: usize = 128 * 1024;
/// Bytes behind the buffer in which results are collected.
pub const RESULTS_LENGTH: usize = MAXIMUM_CALLS * 8;
/// Bytes at the end of an agent's area for its own frames (see [`Boot::home`]).
pub const FRAMES_LENGTH: usize = 32 * 1024;
/// Most calls of one request.
pub const MAXIMUM_CALLS: usize = 1024;
/// Most descriptors of one request (the kernel's `SCM_MAX_FD` is 253).
pub const MAXIMUM_DESCRIPTORS: usize = 250;

/// Offset of the boot page in an area.
pub const BOOT_OFFSET: usize = CODE_LENGTH;
/// Offset of the stack in an area (it grows down from `STACK_OFFSET + STACK_LENGTH`).
pub const STACK_OFFSET: usize = BOOT_OFFSET + BOOT_LENGTH;
/// Offset of the message buffer in an area.
pub const BUFFER_OFFSET: usize = STACK_OFFSET + STACK_LENGTH;
/// Offset of the results in an area.
pub const RESULTS_OFFSET: usize = BUFFER_OFFSET + BUFFER_LENGTH;
/// Offset of the frames in an area.
pub const FRAMES_OFFSET: usize = RESULTS_OFFSET + RESULTS_LENGTH;
/// Bytes of a whole area: code (read-execute), then everything else (read-write).
pub const AREA_LENGTH: usize = FRAMES_OFFSET + FRAMES_LENGTH;

/// What the stub is for; decides what it does when its supervisor is gone.
pub mod mode {
    /// Injected into a running task for a dump: makes its own socket pair, and goes [home](super::Boot::home) at the
    /// end of file.
    pub const AGENT: u32 = 1;
    /// A puppet that is being turned into a restored task: ends itself (`exit_group`) at the end of file.
    pub const PUPPET: u32 = 2;
    /// A second thread of a puppet: the same, on a socket it is told.
    pub const PUPPET_THREAD: u32 = 3;
}

/// The boot page: what the stub finds when it starts. The supervisor writes it, the stub fills in what is marked.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// One of [`mode`].
    pub mode: u32,
    /// The stub's end of the socket pair. Agent: written by the stub. Puppet: given.
    pub socket: i32,
    /// Agent: the supervisor's end, until it was fetched and the stub has closed it. Written by the stub.
    pub peer: i32,
    /// Address of this area's first byte (code).
    pub area: u64,
    /// Agent: where the stack pointer must be for `rt_sigreturn` to take the task home when the supervisor is gone:
    /// 8 bytes into the first frame of a chain whose last frame holds the task's own registers. 0: there is no way
    /// home but staying (the task waits for ever), which the supervisor never leaves so.
    pub home: u64,
    /// Written by the stub when it gives up: why (one of [`epitaph`]), else 0.
    pub epitaph: u64,
    /// Written with the epitaph: a number that explains it (an error number, a length).
    pub epitaph_detail: u64,
}

/// Why a stub gave up, for [`Boot::epitaph`].
pub mod epitaph {
    /// No socket pair; detail: the error number.
    pub const NO_SOCKET: u64 = 1;
    /// A request that is no request; detail: its length.
    pub const BAD_REQUEST: u64 = 2;
    /// The supervisor closed its end.
    pub const END_OF_FILE: u64 = 3;
    /// Receiving failed; detail: the error number.
    pub const RECEIVE: u64 = 4;
    /// Answering failed; detail: the error number.
    pub const SEND: u64 = 5;
}

/// Header of a request.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Number of calls.
    pub call_count: u32,
    /// Bytes of data behind the calls.
    pub data_length: u32,
    /// Bytes of the data to send back (a prefix), 0 for none.
    pub reply_data_length: u32,
}

/// Header of a reply.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u32,
    /// Number of results that follow: the request's `call_count`.
    pub call_count: u32,
    /// Bytes of data that follow the results.
    pub data_length: u32,
    /// Number of descriptors that were received with the request. If the kernel could not hand over all that were
    /// sent (the task's limit, a security module), those that came are closed, and nothing is run: every result is
    /// [`NOT_RUN`]. Descriptors of a request that is run are the batch's to close.
    pub descriptor_count: u32,
}

/// One system call of a batch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The system call's number, or one of [`operation`].
    pub number: u64,
    /// Six arguments, each read as its [`argument`] kind says.
    pub arguments: [u64; 6],
    /// One of [`argument`] for each argument.
    pub kinds: [u8; 6],
    /// [`STOP_ON_ERROR`] or 0.
    pub flags: u8,
    /// Always 0.
    pub reserved: u8,
}

/// If this call fails (-4095 … -1), the calls behind it are not run.
pub const STOP_ON_ERROR: u8 = 1;

/// How an argument of a [`Call`] is to be read.
pub mod argument {
    /// The value itself.
    pub const VALUE: u8 = 0;
    /// The result of the call with this index.
    pub const RESULT: u8 = 1;
    /// The received descriptor with this index.
    pub const DESCRIPTOR: u8 = 2;
    /// The address of the data area plus this offset.
    pub const DATA: u8 = 3;
}

/// What a batch can ask for besides system calls: numbers that no kernel uses.
pub mod operation {
    /// `clone3(arguments[0], arguments[1])` as a process (without `CLONE_VM`): the child closes its copy of the
    /// parent's socket, takes descriptor `arguments[2]` as its own socket and serves it with a copy of the parent's
    /// area; the parent closes `arguments[2]`, even if it has no child, and has the child's pid as the result.
    /// `arguments[3]`: the number that the child gives to its socket (`dup3`); if that fails, the child ends.
    ///
    /// With `CLONE_FILES` there is one table for both: neither closes or moves anything, and the child's socket is
    /// `arguments[2]`. Whatever the parent is, the child is a [`PUPPET`](super::mode::PUPPET) without a home, so that
    /// a copy of a task never runs on as that task.
    pub const SPAWN: u64 = 0x7663_0001;
    /// `clone3(arguments[0], arguments[1])` as a thread that starts on the boot page at `arguments[2]` (its `clone_args`
    /// name the stack in that area). The result is the thread's tid. It shares the code of this area, so its own
    /// needs none. Any task that shares the memory is such a thread, whatever else it shares.
    pub const SPAWN_THREAD: u64 = 0x7663_0002;
    /// Close the stub's own socket and wait for ever with `ppoll(NULL, 0, NULL, NULL)`, without an answer: the end of
    /// file on the supervisor's end is the answer, and the supervisor then sets the registers by ptrace.
    /// Must be the last call.
    pub const PARK: u64 = 0x7663_0003;
    /// Become the init of a PID namespace: answer, close the socket, then reap children until the child with pid
    /// `arguments[0]` has ended and no other is left, and end as it did: with its status, or with 128 + N if signal N
    /// ended it. Signals are left as they are. The result is 0; calls behind it are not run.
    pub const INIT: u64 = 0x7663_0004;
    /// Use a tile of AMX, which the process must be permitted to: the kernel then makes room for tiles in the state of
    /// this task. The result is 0.
    pub const TILES: u64 = 0x7663_0005;
}
