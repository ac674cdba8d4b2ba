//! Images made to break the reader: it answers with an error, in little time and memory, and never panics.

use super::repair::Parts;
use super::{file, open, refused, sample};
use crate::error::FormatError;
use crate::layout::{Content, Header, IndexEntry, IndexHeader, Trailer};
use crate::record::REGISTRY;
use crate::{Image, MAX_FRAMES};
use crc32c::crc32c;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

static SAMPLE: LazyLock<(Vec<u8>, Parts)> = LazyLock::new(|| {
    let bytes = sample();
    let parts = Parts::of(&bytes);
    (bytes, parts)
});

/// Opens what may be no image, and reads all of it if it is one.
fn try_out(bytes: &[u8]) {
    let Ok(image) = open(bytes) else { return };
    for frame in image.frames() {
        let data = image.data(frame.number).unwrap();
        let json = frame.kind.map(|kind| crate::to_json(kind, data));
        assert!(json.is_none_or(|json| json.is_ok()) || !frame.must_understand);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        try_out(&bytes);
    }

    #[test]
    fn any_bytes_between_header_and_trailer(bytes in vec(any::<u8>(), 0..600), index in any::<u16>()) {
        let mut image = Header::OURS.encode().to_vec();
        image.extend_from_slice(&bytes);
        let index = 64 + usize::from(index) % (bytes.len() + 1);
        try_out(&closed(image, index));
    }

    #[test]
    fn any_change_with_right_checksums(changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
        let (bytes, parts) = &*SAMPLE;
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            // Twice as often in records and index as evenly; pages are most of the bytes and least of interest.
            let at = at.index(bytes.len() * 2);
            let dense = if at.is_multiple_of(2) { at % 1500 } else { parts.index.start + at % parts.index.len() };
            let at = if at < bytes.len() { at } else { dense };
            bytes[at] = byte;
        }
        parts.repair(&mut bytes);
        try_out(&bytes);
    }

    #[test]
    fn any_entry_of_the_index(entry in 0_usize..7, offset in any::<u64>(), length in any::<u64>(), class in 0_u16..4) {
        let (bytes, parts) = &*SAMPLE;
        let mut bytes = bytes.clone();
        let at = parts.index.start + IndexHeader::SIZE + entry * IndexEntry::SIZE;
        bytes[at..at + 8].copy_from_slice(&(offset >> (offset % 64)).to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(length >> (length % 64)).to_le_bytes());
        bytes[at + 16..at + 18].copy_from_slice(&class.to_le_bytes());
        parts.repair(&mut bytes);
        try_out(&bytes);
    }

    #[test]
    fn any_data_of_any_kind(data in vec(any::<u8>(), 0..200)) {
        for entry in REGISTRY {
            let examined = (entry.examine)(&data).is_ok();
            assert_eq!(examined, (entry.json)(&data).is_ok());
            assert_eq!(examined, (entry.debug)(&data).is_ok());
        }
    }
}

/// An image of these bytes, of which those from `index` on are the index.
fn closed(mut bytes: Vec<u8>, index: usize) -> Vec<u8> {
    let trailer = Trailer {
        index_offset: index as u64,
        index_length: (bytes.len() - index) as u64,
        file_length: (bytes.len() + Trailer::SIZE) as u64,
        index_crc: crc32c(&bytes[index..]),
    };
    bytes.extend_from_slice(&trailer.encode());
    bytes
}

/// An image with this index and nothing else.
fn indexed(header: IndexHeader, entries: &[IndexEntry]) -> Vec<u8> {
    let mut bytes = Header::OURS.encode().to_vec();
    bytes.extend_from_slice(&header.encode());
    for entry in entries {
        bytes.extend_from_slice(&entry.encode());
    }
    closed(bytes, Header::SIZE)
}

#[test]
fn counts_that_are_too_large() {
    for frames in [1, 2, MAX_FRAMES, MAX_FRAMES + 1, u64::MAX / 24, u64::MAX] {
        for chunks in [0, 1, u64::MAX / 4, u64::MAX] {
            refused(&indexed(IndexHeader { frames, chunks }, &[]));
        }
    }
}

#[test]
fn lengths_that_are_too_large() {
    for length in [0, 8, 4096, 1 << 32, 1 << 63, u64::MAX - 63, !4095, u64::MAX] {
        for content in [Content::Record(10), Content::Section(0), Content::Section(u32::MAX)] {
            let entry = IndexEntry { offset: 64, length, content };
            refused(&indexed(IndexHeader { frames: 1, chunks: 0 }, &[entry]));
        }
    }
    for (offset, length) in
        [(64, u64::MAX), (u64::MAX, 1), (u64::MAX - 7, 72), (0, 128), (128, 0), (1 << 40, 1 << 40)]
    {
        let mut bytes = Header::OURS.encode().to_vec();
        bytes.extend_from_slice(&[0; 64]);
        let trailer = Trailer { index_offset: offset, index_length: length, file_length: 192, index_crc: 0 };
        bytes.extend_from_slice(&trailer.encode());
        refused(&bytes);
    }
}

/// Peak memory of this process, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn large_files_with_holes_cost_no_memory() {
    let before = peak();
    let length: u64 = 1 << 40;
    let file = file(&Header::OURS.encode());
    file.set_len(length).unwrap();
    let put = |trailer: Trailer, index: &[u8]| {
        file.write_all_at(index, trailer.index_offset).unwrap();
        file.write_all_at(&trailer.encode(), length - 64).unwrap();
        Image::open(file.try_clone().unwrap()).unwrap_err()
    };
    // An index of nearly a TiB.
    let index_length = length - 128;
    let error = put(Trailer { index_offset: 64, index_length, file_length: length, index_crc: 0 }, &[]);
    assert!(matches!(error, FormatError::TooLarge { .. }), "{error}");
    // A record of nearly a TiB.
    let entry = IndexEntry { offset: 64, length: length - 64 - 64 - 48, content: Content::Record(10) };
    let index = [IndexHeader { frames: 1, chunks: 0 }.encode(), entry.encode()].concat();
    let index_offset = length - 64 - 48;
    let trailer = Trailer { index_offset, index_length: 48, file_length: length, index_crc: crc32c(&index) };
    let error = put(trailer, &index);
    assert!(matches!(error, FormatError::TooLarge { .. }), "{error}");
    let grown = peak() - before;
    assert!(grown < 200 * 1024, "{grown} KiB");
}

#[test]
fn lengths_inside_a_record() {
    let (bytes, parts) = &*SAMPLE;
    for (at, width) in [(4, 2), (6, 2), (8, 2), (12, 4)] {
        for byte in [0x01, 0x7f, 0xff] {
            let mut bytes = bytes.clone();
            bytes[64 + at..64 + at + width].fill(byte);
            parts.repair(&mut bytes);
            refused(&bytes);
        }
    }
}

#[test]
fn lengths_inside_the_data() {
    // Every byte of the snapshot's data made the mark of an eight-byte length.
    let (bytes, parts) = &*SAMPLE;
    let image = open(bytes).unwrap();
    let frame = image.frames().next().unwrap();
    let end = usize::try_from(frame.offset + frame.length).unwrap();
    for at in 64..end - 8 {
        let mut bytes = bytes.clone();
        bytes[at] = 253;
        bytes[at + 1..at + 9].fill(0xff);
        parts.repair(&mut bytes);
        try_out(&bytes);
    }
}
