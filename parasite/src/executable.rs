//! The stub as a program: a file for the kernel's ELF loader that lays out a whole area at a fixed address, so that
//! a puppet can be started by `execve`. Not a linker: there is nothing to link.

use alloc::vec::Vec;

use crate::blob::{ENTRY_OFFSET, STUB_IMAGE};
use crate::protocol::{AREA_LENGTH, BOOT_LENGTH, BOOT_OFFSET, Boot, CODE_LENGTH};

const PAGE: usize = 4096;
const HEADER_LENGTH: u16 = 64;
const PROGRAM_HEADER_LENGTH: u16 = 56;

const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

const LOAD: u32 = 1;
const STACK: u32 = 0x6474_e551;

/// One `Elf64_Phdr`.
struct Segment {
    kind: u32,
    flags: u32,
    file_offset: usize,
    address: u64,
    file_length: usize,
    memory_length: usize,
    alignment: usize,
}

/// A static executable (`ET_EXEC`) whose memory is one area at `area`, with this boot page. It starts with `rdi` 0,
/// thus on that boot page. `area` must be a multiple of the page size; [`Boot::area`] is taken as it is given.
///
/// The code and the boot page are private mappings of the file, the rest is anonymous. The kernel puts the break
/// somewhere behind the area.
#[must_use]
pub fn executable(area: u64, boot: &Boot) -> Vec<u8> {
    let segments = [
        Segment {
            kind: LOAD,
            flags: READ | EXECUTE,
            file_offset: PAGE,
            address: area,
            file_length: CODE_LENGTH,
            memory_length: CODE_LENGTH,
            alignment: PAGE,
        },
        Segment {
            kind: LOAD,
            flags: READ | WRITE,
            file_offset: PAGE + CODE_LENGTH,
            address: area + BOOT_OFFSET as u64,
            file_length: BOOT_LENGTH,
            memory_length: AREA_LENGTH - BOOT_OFFSET,
            alignment: PAGE,
        },
        // Without this one the kernel would make the initial stack executable.
        Segment {
            kind: STACK,
            flags: READ | WRITE,
            file_offset: 0,
            address: 0,
            file_length: 0,
            memory_length: 0,
            alignment: 16,
        },
    ];
    let mut file = Vec::with_capacity(PAGE + CODE_LENGTH + BOOT_LENGTH);
    put_header(&mut file, area + ENTRY_OFFSET as u64, segments.len());
    for segment in &segments {
        put_segment(&mut file, segment);
    }
    file.resize(PAGE, 0);
    file.extend_from_slice(STUB_IMAGE);
    file.resize(PAGE + CODE_LENGTH, 0);
    file.extend_from_slice(&boot.to_bytes());
    file.resize(PAGE + CODE_LENGTH + BOOT_LENGTH, 0);
    file
}

/// `Elf64_Ehdr`.
fn put_header(file: &mut Vec<u8>, entry: u64, segment_count: usize) {
    const EXECUTABLE: u16 = 2;
    const X86_64: u16 = 62;
    const VERSION: u32 = 1;
    // 64 bits, little-endian, version 1, System V.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&EXECUTABLE.to_le_bytes());
    file.extend_from_slice(&X86_64.to_le_bytes());
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&entry.to_le_bytes());
    file.extend_from_slice(&u64::from(HEADER_LENGTH).to_le_bytes());
    file.extend_from_slice(&0_u64.to_le_bytes());
    file.extend_from_slice(&0_u32.to_le_bytes());
    file.extend_from_slice(&HEADER_LENGTH.to_le_bytes());
    file.extend_from_slice(&PROGRAM_HEADER_LENGTH.to_le_bytes());
    file.extend_from_slice(&u16::try_from(segment_count).unwrap_or(0).to_le_bytes());
    // No sections: size of a header, count, index of the names.
    file.extend_from_slice(&[0; 6]);
}

fn put_segment(file: &mut Vec<u8>, segment: &Segment) {
    file.extend_from_slice(&segment.kind.to_le_bytes());
    file.extend_from_slice(&segment.flags.to_le_bytes());
    file.extend_from_slice(&(segment.file_offset as u64).to_le_bytes());
    file.extend_from_slice(&segment.address.to_le_bytes());
    file.extend_from_slice(&segment.address.to_le_bytes());
    file.extend_from_slice(&(segment.file_length as u64).to_le_bytes());
    file.extend_from_slice(&(segment.memory_length as u64).to_le_bytes());
    file.extend_from_slice(&(segment.alignment as u64).to_le_bytes());
}
