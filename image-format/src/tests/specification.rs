//! The bytes of an image, put together by hand from the specification in the documentation of the crate.

use super::{ended, open, page, snapshot};
use crate::ImageWriter;
use crate::codec::encode;
use crate::record::Record;
use crc32c::{crc32c, crc32c_append};

/// Appends numbers of the given sizes.
fn put(bytes: &mut Vec<u8>, fields: &[(usize, u64)]) {
    for &(size, value) in fields {
        bytes.extend_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Appends the checksum of what there is from `start` on.
fn seal(bytes: &mut Vec<u8>, start: usize) {
    let crc = crc32c(&bytes[start..]);
    bytes.extend_from_slice(&crc.to_le_bytes());
}

/// Appends zeros up to a multiple of `alignment`.
fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

/// Appends a record frame.
fn record<R: Record>(bytes: &mut Vec<u8>, code: u64, record: &R) {
    let (start, name, data) = (bytes.len(), record.name(), encode(record).unwrap());
    bytes.extend_from_slice(b"RCRD");
    put(bytes, &[(2, name.len() as u64), (2, 8), (2, code), (2, 0), (4, data.len() as u64), (4, 0)]);
    bytes.extend_from_slice(name.as_bytes());
    put(bytes, &[(2, 1), (2, 1), (4, 0)]);
    bytes.extend_from_slice(&data);
    pad(bytes, 8);
    let crc = crc32c_append(crc32c(&bytes[start..start + 16]), &bytes[start + 20..]);
    bytes[start + 16..start + 20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn an_image_is_as_specified() {
    let mut bytes = b"\x89VCKP\r\n\x1a".to_vec();
    put(&mut bytes, &[(4, 1), (4, 62), (4, 4096), (4, 1), (8, 0)]);
    pad(&mut bytes, 60);
    seal(&mut bytes, 0);
    record(&mut bytes, 10, &snapshot());
    let first = bytes.len() as u64 - 64;
    record(&mut bytes, 9, &ended(7, None));
    let section = bytes.len();
    let second = section as u64 - 64 - first;
    bytes.extend_from_slice(b"PAGE");
    put(&mut bytes, &[(4, 0), (8, 4096), (4, 0)]);
    seal(&mut bytes, section);
    pad(&mut bytes, 4096);
    assert_eq!(bytes.len(), 4096);
    bytes.extend((0..257).flat_map(|_| page(3)));
    let index = bytes.len();
    bytes.extend_from_slice(b"INDX");
    put(&mut bytes, &[(4, 0), (8, 3), (8, 2)]);
    put(&mut bytes, &[(8, 64), (8, first), (2, 1), (2, 10), (4, 0)]);
    put(&mut bytes, &[(8, 64 + first), (8, second), (2, 1), (2, 9), (4, 0)]);
    put(&mut bytes, &[(8, section as u64), (8, 257 * 4096), (2, 2), (2, 0), (4, 0)]);
    let chunk = 4096 + 1_048_576;
    let crcs = [crc32c(&bytes[4096..chunk]), crc32c(&bytes[chunk..index])];
    put(&mut bytes, &[(4, crcs[0].into()), (4, crcs[1].into())]);
    let end = bytes.len();
    let crc = crc32c(&bytes[index..]);
    bytes.extend_from_slice(b"VCKPTEND");
    put(&mut bytes, &[(8, index as u64), (8, (end - index) as u64), (8, end as u64 + 64), (4, crc.into())]);
    bytes.resize(end + 60, 0);
    seal(&mut bytes, end);

    let mut writer = ImageWriter::new(Vec::new()).unwrap();
    writer.record(&snapshot()).unwrap();
    writer.record(&ended(7, None)).unwrap();
    writer.begin_page_section().unwrap();
    writer.pages(&page(3).repeat(100)).unwrap();
    writer.pages(&page(3).repeat(157)).unwrap();
    assert!(writer.finish().unwrap() == bytes, "the writer writes something else");
    open(&bytes).unwrap();
}
