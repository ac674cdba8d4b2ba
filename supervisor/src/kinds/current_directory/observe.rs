//! Looking at current directories.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::descriptor::restore::open;
use crate::kinds::nameless_file;
use crate::proc::{identity, read};
use crate::records::Records;
use std::os::fd::AsFd;
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::{FileSystemContextId, NamelessFileId, Text};

/// Gives a record for each process.
///
/// # Errors
/// Directories whose path leads elsewhere.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    for process in frozen.living() {
        if process.shares.file_system != process.index {
            continue;
        }
        if let Some(record) = problems.take(context(process, records)) {
            records.push(record);
        }
    }
    problems.finish()
}

fn context(process: &FrozenProcess, records: &mut Records) -> Result<CurrentDirectory> {
    let status = read::file(process.view, "status")?;
    let umask = identity::field(&status, "Umask").and_then(|text| u32::from_str_radix(text, 8).ok());
    let Some(umask) = umask else {
        return Err(Error::new(code::PROC, "the kernel does not tell the umask").about(process.subject()));
    };
    let (directory, nameless) = match removed(process, records)? {
        Some((path, id)) => (path, Some(id)),
        None => (directory(process, "cwd")?, None),
    };
    Ok(CurrentDirectory {
        context: FileSystemContextId(process.shares.file_system),
        directory,
        nameless,
        root: self::directory(process, "root")?,
        umask,
    })
}

/// Its current directory, if that was removed: the path that it had, and what it is made of.
fn removed(process: &FrozenProcess, records: &mut Records) -> Result<Option<(Text, NamelessFileId)>> {
    let flags = (libc::O_PATH | libc::O_DIRECTORY).cast_unsigned();
    let opened = open(&read::path(process.view, "cwd"), flags)
        .map_err(|errno| read::failure(process.view, "cwd", &errno.into()))?;
    let status =
        rustix::fs::fstat(&opened).map_err(|errno| read::failure(process.view, "cwd", &errno.into()))?;
    if status.st_nlink > 0 {
        return Ok(None);
    }
    let path = nameless_file::old_path(&read::link(process.view, "cwd")?.into());
    let id = nameless_file::observe::observe_nameless(records, opened.as_fd(), &path)
        .map_err(|error| error.about(process.subject()))?;
    Ok(Some((path, id)))
}

/// The path of one of its directories, which must lead there.
fn directory(process: &FrozenProcess, name: &str) -> Result<Text> {
    let path: Text = read::link(process.view, name)?.into();
    let link = read::path(process.view, name);
    let wanted = rustix::fs::stat(&link).map_err(|errno| read::failure(process.view, name, &errno.into()))?;
    let found = rustix::fs::stat(path.as_path());
    if found.is_ok_and(|found| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)) {
        return Ok(path);
    }
    let word = if name == "cwd" { "current directory" } else { "root directory" };
    Err(Error::new(code::TASK_STATE, format!("the path of the {word} does not lead there"))
        .about(process.subject().with_path(&path))
        .hint(format!("the {word} was removed, or something is mounted over it: change to another one")))
}
