//! BPF maps, by bpf(2).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_NEXT_KEY: i32 = 4;
const INFORMATION: i32 = 15;
const MAP_FREEZE: i32 = 22;

/// `union bpf_attr`, as far as it is used here: all of it in 32-bit words.
type Attributes = [u32; 32];

/// Size of `struct bpf_map_info` as far as it is used here, and where the name is in it.
const INFORMATION_LENGTH: u32 = 64;
const NAME: std::ops::Range<usize> = 24..40;

fn call(command: i32, attributes: &Attributes) -> Result<i64> {
    // SAFETY: the attributes live and have the size that is told; pointers in them are those of live buffers, which the
    // callers here have made as long as the map needs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of::<Attributes>()) };
    Errno::result(result)
}

fn put_pointer(attributes: &mut Attributes, word: usize, pointer: *const u8) {
    let address = pointer.addr() as u64;
    let halves = [address & u64::from(u32::MAX), address >> 32];
    for (place, half) in attributes.iter_mut().skip(word).zip(halves) {
        *place = u32::try_from(half).unwrap_or_default();
    }
}

/// What a map is made with.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Its type.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub maximum: u32,
    /// Its flags.
    pub flags: u32,
}

/// Makes a map.
///
/// # Errors
/// See bpf(2): `EPERM` without `CAP_BPF`.
pub fn create(shape: Shape, name: &[u8]) -> Result<OwnedFd> {
    let Shape { map_type, key_size, value_size, maximum, flags } = shape;
    let mut attributes: Attributes = [0; 32];
    let words = [map_type, key_size, value_size, maximum, flags];
    attributes.iter_mut().zip(words).for_each(|(place, word)| *place = word);
    // Behind an inner map and a node: sixteen bytes.
    for (place, letters) in attributes.iter_mut().skip(7).take(4).zip(name.chunks(4)) {
        let mut word = [0; 4];
        word.iter_mut().zip(letters).for_each(|(byte, letter)| *byte = *letter);
        *place = u32::from_le_bytes(word);
    }
    let number = RawFd::try_from(call(MAP_CREATE, &attributes)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn entry(map: BorrowedFd<'_>, key: Option<&[u8]>, other: *const u8) -> Attributes {
    let mut attributes: Attributes = [0; 32];
    if let Some(first) = attributes.first_mut() {
        *first = map.as_raw_fd().cast_unsigned();
    }
    put_pointer(&mut attributes, 2, key.map_or(std::ptr::null(), <[u8]>::as_ptr));
    put_pointer(&mut attributes, 4, other);
    attributes
}

/// The key behind a key, or the first one; none behind the last. Keys have `size` bytes, which is the map's.
///
/// # Errors
/// See bpf(2).
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, size: usize) -> Result<Option<Vec<u8>>> {
    let mut next = vec![0_u8; size];
    match call(MAP_NEXT_KEY, &entry(map, key, next.as_mut_ptr())) {
        Ok(_) => Ok(Some(next)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The value of a key; none if it has none. Values have `size` bytes, which is the map's, rounded up to 8.
///
/// # Errors
/// See bpf(2).
pub fn value(map: BorrowedFd<'_>, key: &[u8], size: usize) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; size.next_multiple_of(8)];
    match call(MAP_LOOKUP, &entry(map, Some(key), value.as_mut_ptr())) {
        Ok(_) => {
            value.truncate(size);
            Ok(Some(value))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets the value of a key.
///
/// # Errors
/// See bpf(2).
pub fn set(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<()> {
    let mut padded = value.to_vec();
    padded.resize(value.len().next_multiple_of(8), 0);
    call(MAP_UPDATE, &entry(map, Some(key), padded.as_ptr())).map(drop)
}

/// Lets no program of user space change it any more.
///
/// # Errors
/// See bpf(2).
pub fn freeze(map: BorrowedFd<'_>) -> Result<()> {
    call(MAP_FREEZE, &entry(map, None, std::ptr::null())).map(drop)
}

/// The name of a map.
///
/// # Errors
/// See bpf(2).
pub fn name(map: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut information = [0_u8; INFORMATION_LENGTH as usize];
    let mut attributes: Attributes = [0; 32];
    let words = [map.as_raw_fd().cast_unsigned(), INFORMATION_LENGTH];
    attributes.iter_mut().zip(words).for_each(|(place, word)| *place = word);
    put_pointer(&mut attributes, 2, information.as_mut_ptr());
    call(INFORMATION, &attributes)?;
    let name = information.get(NAME).unwrap_or_default();
    Ok(name.iter().copied().take_while(|&byte| byte != 0).collect())
}
