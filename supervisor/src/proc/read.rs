//! Reading files of `/proc`: the only input and output of this folder.

use crate::error::{Error, Result, Subject, code};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The path of a file about a process, such as `stat`.
#[must_use]
pub fn path(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// A whole file about a process.
///
/// # Errors
/// [`code::TARGET_DIED`] if the process is gone, [`code::NOT_PERMITTED`] if it may not be read, else [`code::PROC`].
pub fn file(pid: i32, name: &str) -> Result<Vec<u8>> {
    whole(&path(pid, name)).map_err(|error| failure(pid, name, &error))
}

/// A whole file of `/proc`, whose size is not known before: most are read by one call, and one more finds the end.
fn whole(path: &Path) -> std::io::Result<Vec<u8>> {
    const LEAST: usize = 4096;
    const MOST: usize = 64 * 1024;
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let end = bytes.len();
        bytes.resize(end + end.clamp(LEAST, MOST), 0);
        match file.read(bytes.get_mut(end..).unwrap_or_default()) {
            Ok(count) => {
                bytes.truncate(end + count);
                if count == 0 {
                    return Ok(bytes);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => bytes.truncate(end),
            Err(error) => return Err(error),
        }
    }
}

/// Where a link about a process leads, as the kernel prints it.
///
/// # Errors
/// As [`file()`].
pub fn link(pid: i32, name: &str) -> Result<OsString> {
    fs::read_link(path(pid, name)).map(PathBuf::into_os_string).map_err(|error| failure(pid, name, &error))
}

/// The numbers that name the entries of a directory, in ascending order, such as those of `task`.
///
/// # Errors
/// As [`file()`].
pub fn numbers(pid: i32, name: &str) -> Result<Vec<i32>> {
    let entries = fs::read_dir(path(pid, name)).map_err(|error| failure(pid, name, &error))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failure(pid, name, &error))?;
        numbers.extend(entry.file_name().to_str().and_then(|text| text.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The error for a file of `/proc` that can't be read.
#[must_use]
pub fn failure(pid: i32, name: &str, error: &std::io::Error) -> Box<Error> {
    let subject = Subject { task: u32::try_from(pid).ok(), ..Subject::path(path(pid, name).display()) };
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
        return Error::new(code::HOST_FEATURE, "vckpt has as many files open as it may")
            .because(error)
            .about(subject)
            .hint("raise the limit of open files (ulimit -Hn) of whoever runs vckpt: it needs a few for each process");
    }
    let gone = error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
    let code = if gone {
        code::TARGET_DIED
    } else if error.kind() == ErrorKind::PermissionDenied {
        code::NOT_PERMITTED
    } else {
        code::PROC
    };
    let what =
        if gone { "the process ended meanwhile" } else { "reading what the kernel tells about the process" };
    Error::new(code, what).because(error).about(subject)
}
