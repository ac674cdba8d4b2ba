//! The memory of one stub: boot page, buffer, results. Every access to it goes through here and is checked.
//!
//! Everything is found from the boot page, never from the code: threads of a puppet share the code and nothing else.
#![allow(unsafe_code, reason = "the area is memory that the supervisor mapped, known only by its address")]

use core::mem::offset_of;

use crate::protocol::{
    BOOT_MAGIC, BOOT_OFFSET, BUFFER_LENGTH, BUFFER_OFFSET, Boot, Call, MAXIMUM_CALLS, RESULTS_OFFSET,
    Request, VERSION, mode,
};
use crate::serve::Ending;

/// The area of one stub, known by its boot page.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    boot: *mut Boot,
}

impl Area {
    /// The area that this boot page belongs to.
    ///
    /// # Safety
    /// `boot` must be page-aligned, and from it to the end of the area (`AREA_LENGTH - BOOT_OFFSET` bytes) there must
    /// be mapped, initialised, writable memory for as long as the result is used. No Rust reference into it may
    /// exist, and no other thread may write it.
    #[must_use]
    pub const unsafe fn of(boot: *mut Boot) -> Self {
        Self { boot }
    }

    /// The byte at this offset of the area, which must lie behind the code.
    const fn at(self, offset: usize) -> *mut u8 {
        self.boot.cast::<u8>().wrapping_add(offset.wrapping_sub(BOOT_OFFSET))
    }

    /// A field of the boot page.
    fn read<T: Copy>(self, offset: usize) -> T {
        debug_assert!(offset + size_of::<T>() <= size_of::<Boot>());
        // SAFETY: the boot page is mapped (`of`). The callers in this file pass the offset of a field together with
        // its type, for which any bytes are valid. Volatile, as the supervisor writes the page from outside.
        unsafe { self.boot.cast::<u8>().wrapping_add(offset).cast::<T>().read_volatile() }
    }

    fn write<T: Copy>(self, offset: usize, value: T) {
        debug_assert!(offset + size_of::<T>() <= size_of::<Boot>());
        // SAFETY: the boot page is mapped and writable (`of`). The callers in this file pass the offset of a field
        // together with its type. Volatile, as the supervisor reads the page from outside.
        unsafe { self.boot.cast::<u8>().wrapping_add(offset).cast::<T>().write_volatile(value) }
    }

    /// Whether a supervisor of this version has prepared the boot page.
    pub(crate) fn is_prepared(self) -> bool {
        self.read::<u64>(offset_of!(Boot, magic)) == BOOT_MAGIC
            && self.read::<u32>(offset_of!(Boot, version)) == VERSION
    }

    /// What the stub is for.
    pub(crate) fn mode(self) -> u32 {
        self.read(offset_of!(Boot, mode))
    }

    /// The descriptor that requests come from.
    pub(crate) fn socket(self) -> i32 {
        self.read(offset_of!(Boot, socket))
    }

    /// The supervisor's end of an agent's pair.
    pub(crate) fn peer(self) -> i32 {
        self.read(offset_of!(Boot, peer))
    }

    /// The stack pointer with which `rt_sigreturn` takes the task home.
    pub(crate) fn home(self) -> u64 {
        self.read(offset_of!(Boot, home))
    }

    pub(crate) fn set_peer(self, peer: i32) {
        self.write(offset_of!(Boot, peer), peer);
    }

    pub(crate) fn set_socket(self, socket: i32) {
        self.write(offset_of!(Boot, socket), socket);
    }

    /// Makes this area that of a new process: a puppet, without a home.
    pub(crate) fn set_born(self) {
        self.write(offset_of!(Boot, mode), mode::PUPPET);
        self.write(offset_of!(Boot, home), 0_u64);
    }

    /// Notes why the stub gives up.
    pub(crate) fn write_epitaph(self, ending: Ending) {
        self.write(offset_of!(Boot, epitaph_detail), ending.detail);
        self.write(offset_of!(Boot, epitaph), ending.epitaph);
    }

    /// Where `socketpair` puts its two descriptors: `socket`, and `peer` right behind it.
    pub(crate) fn socket_pair_address(self) -> u64 {
        const OFFSET: usize = offset_of!(Boot, socket);
        const { assert!(offset_of!(Boot, peer) == OFFSET + 4) };
        self.boot.expose_provenance().wrapping_add(OFFSET) as u64
    }

    /// The address of the message buffer.
    pub(crate) fn buffer_address(self) -> u64 {
        self.at(BUFFER_OFFSET).expose_provenance() as u64
    }

    /// The address of the results.
    pub(crate) fn results_address(self) -> u64 {
        self.at(RESULTS_OFFSET).expose_provenance() as u64
    }

    /// The header at the beginning of the buffer.
    pub(crate) fn request(self) -> Request {
        // SAFETY: the buffer is mapped, page-aligned and longer than a header; any bytes are a valid header.
        unsafe { self.at(BUFFER_OFFSET).cast::<Request>().read_volatile() }
    }

    /// The call with this index in the buffer, if one fits there.
    pub(crate) fn call(self, index: usize) -> Option<Call> {
        let offset = call_offset(index)?;
        // SAFETY: `call_offset` checked that the call ends inside the buffer, which is mapped; the offset is a
        // multiple of the alignment; any bytes are a valid `Call`. Volatile, as system calls write here too.
        Some(unsafe { self.at(BUFFER_OFFSET.wrapping_add(offset)).cast::<Call>().read_volatile() })
    }

    /// The result with this index.
    pub(crate) fn result(self, index: usize) -> Option<i64> {
        let address = self.result_pointer(index)?;
        // SAFETY: `result_pointer` gives aligned addresses inside the mapped results only.
        Some(unsafe { address.read_volatile() })
    }

    /// Sets the result with this index, if there can be one.
    pub(crate) fn set_result(self, index: usize, result: i64) {
        if let Some(address) = self.result_pointer(index) {
            // SAFETY: `result_pointer` gives aligned addresses inside the mapped, writable results only.
            unsafe { address.write_volatile(result) };
        }
    }

    fn result_pointer(self, index: usize) -> Option<*mut i64> {
        (index < MAXIMUM_CALLS).then(|| self.at(RESULTS_OFFSET).cast::<i64>().wrapping_add(index))
    }
}

/// Offset in the buffer of the call with this index, if the call ends inside the buffer.
fn call_offset(index: usize) -> Option<usize> {
    let offset = data_offset(index)?;
    (offset <= BUFFER_LENGTH - size_of::<Call>()).then_some(offset)
}

/// Offset in the buffer of what follows this many calls: the data. A multiple of 16.
pub(crate) fn data_offset(call_count: usize) -> Option<usize> {
    const { assert!(size_of::<Request>() == 16 && size_of::<Call>() == 64) };
    call_count.checked_mul(size_of::<Call>())?.checked_add(size_of::<Request>())
}
