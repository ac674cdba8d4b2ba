//! No byte of an image can change without its being refused.

use super::{file, open, page, refused, sample, written};
use crate::error::FormatError;
use crate::layout::Header;
use crate::{CHUNK_SIZE, FORMAT_VERSION, Image, PAGE_SIZE};
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn every_flipped_byte_is_found() {
    let bytes = sample();
    let file = file(&bytes);
    for (at, &byte) in bytes.iter().enumerate() {
        for flip in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte ^ flip], at as u64).unwrap();
            let result = Image::open(file.try_clone().unwrap());
            assert!(result.is_err(), "byte {at} changed from {byte:#x} by {flip:#x} was not found");
        }
        file.write_all_at(&[byte], at as u64).unwrap();
    }
    Image::open(file).unwrap();
}

#[test]
fn without_pages_only_the_bytes_of_pages_may_differ() {
    let bytes = sample();
    let file = file(&bytes);
    let image = Image::open(file.try_clone().unwrap()).unwrap();
    let in_pages = |at: u64| {
        image
            .page_sections()
            .any(|section| (section.offset..section.offset + section.pages * PAGE_SIZE as u64).contains(&at))
    };
    for (at, &byte) in bytes.iter().enumerate() {
        file.write_all_at(&[!byte], at as u64).unwrap();
        let opened = Image::open_without_pages(file.try_clone().unwrap()).is_ok();
        assert_eq!(opened, in_pages(at as u64), "at byte {at}");
        file.write_all_at(&[byte], at as u64).unwrap();
    }
}

#[test]
fn every_truncation_is_found() {
    let bytes = sample();
    let file = file(&bytes);
    for length in (0..bytes.len() as u64).rev() {
        file.set_len(length).unwrap();
        let error = Image::open(file.try_clone().unwrap()).unwrap_err();
        let expected =
            if length == 0 { matches!(error, FormatError::NotAnImage) } else { is_truncated(&error) };
        assert!(expected, "{length}: {error}");
    }
}

fn is_truncated(error: &FormatError) -> bool {
    matches!(error, FormatError::Truncated { .. })
}

#[test]
fn what_follows_an_image_is_found() {
    for more in [&b"\0"[..], b"more", &[0; 64], &sample()] {
        let mut bytes = sample();
        bytes.extend_from_slice(more);
        let error = refused(&bytes);
        assert!(is_truncated(&error), "{error}");
    }
}

#[test]
fn what_is_no_image() {
    for bytes in [&b""[..], b"\n", b"\x7fELF\x02\x01\x01", &[0; 5000], b"\x89PNG\r\n\x1a\n"] {
        assert!(matches!(refused(bytes), FormatError::NotAnImage));
    }
    let directory = File::open(std::env::temp_dir()).unwrap();
    assert!(matches!(Image::open(directory).unwrap_err(), FormatError::NotRegular));
    let device = File::open("/dev/zero").unwrap();
    assert!(matches!(Image::open(device).unwrap_err(), FormatError::NotRegular));
}

/// The sample with another header.
fn with_header(header: Header) -> Vec<u8> {
    let mut bytes = sample();
    bytes[..Header::SIZE].copy_from_slice(&header.encode());
    bytes
}

#[test]
fn headers_of_others() {
    let ours = Header::OURS;
    open(&with_header(ours)).unwrap();
    let error = refused(&with_header(Header { version: FORMAT_VERSION + 1, ..ours }));
    let FormatError::NewerFormat { found, supported } = error else { panic!("{error}") };
    assert_eq!((found, supported), (FORMAT_VERSION + 1, FORMAT_VERSION));
    let error = refused(&with_header(Header { version: 0, ..ours }));
    assert!(matches!(error, FormatError::Damaged { offset: 0, .. }), "{error}");
    let error = refused(&with_header(Header { architecture: 183, ..ours }));
    assert!(matches!(error, FormatError::OtherArchitecture { found: 183, .. }), "{error}");
    let error = refused(&with_header(Header { page_size: 65536, ..ours }));
    assert!(matches!(error, FormatError::OtherPageSize { found: 65536, .. }), "{error}");
    let error = refused(&with_header(Header { codec: 2, ..ours }));
    assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
    let error = refused(&with_header(Header { flags: 1, ..ours }));
    assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
}

#[test]
fn damaged_pages_are_found_by_either_thread() {
    let mut bytes = written(|writer| {
        writer.record(&super::ended(7, None)).unwrap();
        writer.begin_page_section().unwrap();
        writer.pages(&page(5).repeat(20 * CHUNK_SIZE / PAGE_SIZE)).unwrap();
    });
    let start = usize::try_from(open(&bytes).unwrap().page_section(0).unwrap().offset).unwrap();
    for chunk in [0, 1, 10, 19] {
        let at = start + chunk * CHUNK_SIZE + 77;
        bytes[at] ^= 4;
        let error = refused(&bytes);
        let FormatError::Damaged { offset, .. } = error else { panic!("{error}") };
        assert_eq!(offset, (start + chunk * CHUNK_SIZE) as u64);
        bytes[at] ^= 4;
    }
}
