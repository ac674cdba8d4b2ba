//! Open files: offset, flags, sharing by dup and fork, deleted and nameless files, folders, working directory.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, need_root};
use crate::stage::kernel::{check, fork, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "files",
    fixtures: &[
        ("open-files", open_files),
        ("shared-offset", shared_offset),
        ("deleted", deleted),
        ("folders", folders),
        ("places", places),
        ("changed-root", changed_root),
    ],
    cases: &[
        ("offsets_and_flags", || two_rounds("open-files")),
        ("descriptions_shared_by_fork", || two_rounds("shared-offset")),
        ("deleted_and_nameless", || two_rounds("deleted")),
        ("folders_and_devices", || two_rounds("folders")),
        ("working_directory_and_umask", || two_rounds("places")),
        ("changed_root", root_changed),
    ],
};

/// Turns an I/O error into the text of a verification.
fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn open_files(stage: Stage) {
    let write = |name: &str| fs::write(stage.path(name), "0123456789abcdefghijklmnopqrstuvwxyz").unwrap();
    ["plain", "appended", "read"].into_iter().for_each(write);
    let options = |read: bool, append: bool, flags: i32, name: &str| {
        let mut options = File::options();
        options.read(read).append(append).write(!append).custom_flags(flags);
        options.open(stage.path(name)).unwrap()
    };
    let mut plain = options(true, false, libc::O_DSYNC, "plain");
    plain.seek(std::io::SeekFrom::Start(7)).unwrap();
    let mut appended = options(true, true, libc::O_NONBLOCK, "appended");
    let mut read = File::open(stage.path("read")).unwrap();
    read.seek(std::io::SeekFrom::Start(3)).unwrap();
    let path_only = File::options().read(true).custom_flags(libc::O_PATH).open(stage.path("read")).unwrap();
    // Numbers with gaps, one that is kept over exec, and one far away.
    // SAFETY: plain descriptor numbers of our own.
    let far = check(unsafe { libc::fcntl(plain.as_raw_fd(), libc::F_DUPFD, 700) }).unwrap();
    let copy = check(unsafe { libc::dup3(read.as_raw_fd(), 100, libc::O_CLOEXEC) }).unwrap();
    // SAFETY: as above; SIGURG instead of SIGIO, sent to this process.
    unsafe {
        libc::fcntl(read.as_raw_fd(), libc::F_SETOWN, libc::getpid());
        libc::fcntl(read.as_raw_fd(), 10 /* F_SETSIG */, libc::SIGURG);
    }
    let close_on_exec = |number: i32| unsafe { libc::fcntl(number, libc::F_GETFD) };
    let before = [far, copy, plain.as_raw_fd()].map(close_on_exec);
    let mut length = 36;
    stage.serve(move |_| {
        let now = [far, copy, plain.as_raw_fd()].map(close_on_exec);
        verify!(now == before, "close-on-exec of three descriptors: {before:?} became {now:?}");
        // A duplicate shares the offset, in both directions.
        plain.write_all(b"XY").map_err(text)?;
        let seen = unsafe { libc::lseek(far, 0, libc::SEEK_CUR) };
        verify!(seen == 9, "the duplicate's offset is {seen} after the write, not 9");
        unsafe { libc::lseek(far, 7, libc::SEEK_SET) };
        let other = unsafe { libc::lseek(copy, 0, libc::SEEK_CUR) };
        verify!(other == 3, "the offset of the other duplicate is {other}, not 3");
        let mut three = [0; 3];
        read.read_exact(&mut three).map_err(text)?;
        verify!(&three == b"345", "read {three:?} at offset 3");
        read.seek(std::io::SeekFrom::Start(3)).map_err(text)?;
        appended.seek(std::io::SeekFrom::Start(0)).map_err(text)?;
        appended.write_all(b"+").map_err(text)?;
        length += 1;
        let size = appended.metadata().map_err(text)?.len();
        verify!(size == length, "the file of an appender has {size} bytes, not {length}");
        appended.seek(std::io::SeekFrom::Start(0)).map_err(text)?;
        // SAFETY: getters on our own descriptor.
        let owner =
            unsafe { (libc::fcntl(read.as_raw_fd(), libc::F_GETOWN), libc::fcntl(read.as_raw_fd(), 11)) };
        verify!(owner == (unsafe { libc::getpid() }, libc::SIGURG), "owner and signal are {owner:?}");
        verify!(path_only.metadata().is_ok(), "the O_PATH descriptor is of no use");
        Ok(())
    });
}

fn shared_offset(stage: Stage) {
    let mut file =
        File::options().read(true).write(true).create_new(true).open(stage.path("shared")).unwrap();
    let number = file.as_raw_fd();
    let (ask, answer) = (pipe(0), pipe(0));
    // The child has the description under its own number, and another that is not shared.
    fork(move || {
        let own = check(unsafe { libc::dup2(number, 50) }).unwrap();
        while let Ok([_]) = take(ask[0], 1).as_deref() {
            put(own, b"child ").unwrap();
            put(answer[1], b"!").unwrap();
        }
        0
    });
    let mut expected = String::new();
    stage.serve(|_| {
        file.write_all(b"parent ").map_err(text)?;
        put(ask[1], b"?").map_err(text)?;
        take(answer[0], 1).map_err(text)?;
        expected.push_str("parent child ");
        let offset = file.stream_position().map_err(text)?;
        verify!(offset == expected.len() as u64, "the common offset is {offset}, not {}", expected.len());
        let found = fs::read_to_string(stage.path("shared")).map_err(text)?;
        verify!(found == expected, "the file holds {found:?}");
        // The offset is a fact that the next comparison looks at.
        unsafe { libc::ftruncate(number, 0) };
        file.rewind().map_err(text)?;
        expected.clear();
        Ok(())
    });
}

fn deleted(stage: Stage) {
    let path = stage.path("ghost");
    let mut ghost = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let second = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    ghost.write_all(&[7; 10_000]).unwrap();
    // Sparse: 1 GiB long, with a few bytes at the end.
    ghost.write_all_at(b"end", 1 << 30).unwrap();
    let mut nameless =
        File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&stage.folder).unwrap();
    nameless.write_all(b"nameless").unwrap();
    // Deleted, and another file has taken its name.
    let replaced_path = stage.path("replaced");
    fs::write(&replaced_path, "old").unwrap();
    let replaced = File::open(&replaced_path).unwrap();
    fs::remove_file(&replaced_path).unwrap();
    fs::write(&replaced_path, "new").unwrap();
    // SAFETY: a name that ends with NUL.
    let number = check(unsafe { libc::memfd_create(c"notes".as_ptr(), 0) }).unwrap();
    let mut memory = unsafe { File::from_raw_fd(number) };
    memory.write_all(b"in memory").unwrap();
    let read_at = |file: &File, length: usize, offset: u64| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes).map_err(text)
    };
    stage.serve(|round| {
        verify!(read_at(&ghost, 10_000, 0)? == [7; 10_000], "the beginning of the deleted file");
        verify!(read_at(&ghost, 3, 1 << 30)? == b"end", "the end of the deleted file");
        let metadata = ghost.metadata().map_err(text)?;
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        verify!(blocks < 4096, "the deleted file takes {blocks} blocks: its holes are filled");
        ghost.write_all_at(&[round as u8], 20_000).map_err(text)?;
        verify!(
            read_at(&second, 1, 20_000)? == [round as u8],
            "two descriptions of one deleted file are two files"
        );
        verify!(read_at(&nameless, 8, 0)? == b"nameless", "the nameless file");
        verify!(read_at(&replaced, 3, 0)? == b"old", "the deleted file is the one that has taken its name");
        verify!(fs::read(&replaced_path).map_err(text)? == b"new", "the file that took the name has changed");
        verify!(read_at(&memory, 9, 0)? == b"in memory", "the memfd");
        verify!(!path.exists(), "the deleted file has its name again");
        let left: Vec<_> =
            fs::read_dir(&stage.folder).map_err(text)?.flatten().map(|entry| entry.file_name()).collect();
        let strange: Vec<_> = left
            .iter()
            .filter(|name| {
                let name = name.to_string_lossy();
                let known = ["ask.", "answer.", "draft-of-", "image-", "vckpt"];
                !known.iter().any(|known| name.starts_with(known))
                    && !name.ends_with(".out")
                    && !["ready", "replaced", "outages", "outages-draft", "restored.pid"].contains(&&*name)
            })
            .collect();
        verify!(strange.is_empty(), "strange files in the folder: {strange:?}");
        Ok(())
    });
}

/// All names that are left to read from an open folder.
fn rest_of(folder: i32) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0_u8; 512];
    loop {
        // SAFETY: room for 512 bytes.
        let count = unsafe { libc::syscall(libc::SYS_getdents64, folder, buffer.as_mut_ptr(), 512) };
        if count <= 0 {
            return all;
        }
        all.extend_from_slice(&buffer[..count as usize]);
    }
}

fn folders(stage: Stage) {
    let path = stage.path("many");
    fs::create_dir(&path).unwrap();
    for number in 0..100 {
        fs::write(path.join(format!("file-{number}")), "").unwrap();
    }
    let folder = File::open(&path).unwrap();
    let number = folder.as_raw_fd();
    let mut buffer = [0_u8; 512];
    // SAFETY: room for 512 bytes.
    unsafe { libc::syscall(libc::SYS_getdents64, number, buffer.as_mut_ptr(), 512) };
    let position = unsafe { libc::lseek(number, 0, libc::SEEK_CUR) };
    let expected = rest_of(number);
    unsafe { libc::lseek(number, position, libc::SEEK_SET) };
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    let mut devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"].map(open);
    stage.serve(move |_| {
        let found = rest_of(number);
        unsafe { libc::lseek(number, position, libc::SEEK_SET) };
        verify!(found == expected, "the rest of the folder differs");
        let mut bytes = [1; 8];
        verify!(devices[0].read(&mut bytes).map_err(text)? == 0, "/dev/null gives bytes");
        devices[1].read_exact(&mut bytes).map_err(text)?;
        verify!(bytes == [0; 8], "/dev/zero gives {bytes:?}");
        let error = devices[2].write_all(b"x").err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::ENOSPC), "writing to /dev/full gives {error:?}");
        devices[3].read_exact(&mut bytes).map_err(text)?;
        Ok(())
    });
}

fn places(stage: Stage) {
    let path = stage.path("inner");
    fs::create_dir(&path).unwrap();
    std::env::set_current_dir(&path).unwrap();
    // SAFETY: one thread only.
    unsafe { libc::umask(0o137) };
    stage.serve(move |round| {
        fs::write(format!("made-{round}"), "").map_err(text)?;
        let made = path.join(format!("made-{round}")).metadata().map_err(text)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&made.permissions()) & 0o777;
        verify!(mode == 0o640, "a file made in the working directory has mode {mode:o}, not 640");
        Ok(())
    });
}

/// In a root of its own: the case's folder is the root, so the channel is at `/`.
fn changed_root(stage: Stage) {
    let path = CString::new(stage.folder.as_os_str().as_encoded_bytes()).unwrap();
    fs::create_dir(stage.path("proc")).unwrap();
    // SAFETY: a path that ends with NUL.
    check(unsafe { libc::chroot(path.as_ptr()) }).unwrap();
    std::env::set_current_dir("/").unwrap();
    let inside = Stage { folder: "/".into(), arguments: Vec::new() };
    // Files that have other paths inside than outside, one of them without a name.
    fs::write("/inner", "inside").unwrap();
    fs::write("/gone", "removed").unwrap();
    let [inner, gone] = ["/inner", "/gone"].map(|path| File::open(path).unwrap());
    fs::remove_file("/gone").unwrap();
    let folder = File::open("/").unwrap();
    inside.serve(move |_| {
        verify!(fs::exists("/ready").map_err(text)?, "the root is another one");
        for (file, wanted) in [(&inner, "inside"), (&gone, "removed")] {
            let mut bytes = vec![0; wanted.len()];
            file.read_exact_at(&mut bytes, 0).map_err(text)?;
            verify!(bytes == wanted.as_bytes(), "a file in the root holds {bytes:?}");
        }
        let same = |file: &File, path: &str| {
            let inode = |found: fs::Metadata| std::os::unix::fs::MetadataExt::ino(&found);
            file.metadata().ok().map(inode) == fs::metadata(path).ok().map(inode)
        };
        verify!(same(&inner, "/inner") && same(&folder, "/"), "a path in the root leads elsewhere");
        Ok(())
    });
}

fn root_changed() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let mut root = case.start("changed-root", &[])?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    case.finish(root)
}
