//! Looking at current directories.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::kinds::descriptor::restore::open;
use crate::kinds::nameless_file;
use crate::proc::{identity, read};
use crate::records::Records;
use std::os::fd::{AsFd, OwnedFd};
use vckpt_image_format::record::current_directory::CurrentDirectory;
use vckpt_image_format::{FileSystemContextId, Text};

/// Gives a record for each process.
///
/// # Errors
/// Directories whose path leads elsewhere.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let contexts = frozen
        .map_processes(|process| (process.shares.file_system == process.index).then(|| context(process)));
    for (process, context) in frozen.living().zip(contexts) {
        let Some(Context { mut record, removed }) = context.and_then(|context| problems.take(context)) else {
            continue;
        };
        if let Some(directory) = removed {
            let id = nameless_file::observe::observe_nameless(records, directory.as_fd(), &record.directory);
            record.nameless = problems.take(id.map_err(|error| error.about(process.subject())));
        }
        records.push(record);
    }
    problems.finish()
}

/// What was seen of a process.
struct Context {
    record: CurrentDirectory,
    /// Its current directory, if that was removed: what it is made of is still to be kept.
    removed: Option<OwnedFd>,
}

fn context(process: &FrozenProcess) -> Result<Context> {
    let status = read::file(process.view, "status")?;
    let umask = identity::field(&status, "Umask").and_then(|text| u32::from_str_radix(text, 8).ok());
    let Some(umask) = umask else {
        return Err(Error::new(code::PROC, "the kernel does not tell the umask").about(process.subject()));
    };
    let (directory, removed) = match removed(process)? {
        Some((path, directory)) => (path, Some(directory)),
        None => (directory(process, "cwd")?, None),
    };
    let record = CurrentDirectory {
        context: FileSystemContextId(process.shares.file_system),
        directory,
        nameless: None,
        root: self::directory(process, "root")?,
        umask,
    };
    Ok(Context { record, removed })
}

/// Its current directory, if that was removed: the path that it had, and the directory itself.
fn removed(process: &FrozenProcess) -> Result<Option<(Text, OwnedFd)>> {
    let flags = (libc::O_PATH | libc::O_DIRECTORY).cast_unsigned();
    let opened = open(&read::path(process.view, "cwd"), flags)
        .map_err(|errno| read::failure(process.view, "cwd", &errno.into()))?;
    let status =
        rustix::fs::fstat(&opened).map_err(|errno| read::failure(process.view, "cwd", &errno.into()))?;
    if status.st_nlink > 0 {
        return Ok(None);
    }
    let path = nameless_file::old_path(&read::link(process.view, "cwd")?.into());
    Ok(Some((path, opened)))
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
