//! What paths lead to: `O_PATH`, removed folders, FIFOs and links, files with holes and with other names, odd names.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{check, put, take};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "paths",
    fixtures: &[
        ("path-only", path_only),
        ("removed-folders", removed_folders),
        ("removed-nodes", removed_nodes),
        ("holes", holes),
        ("odd-names", odd_names),
    ],
    cases: &[
        ("path_only", || two_rounds("path-only")),
        ("removed_folders", || two_rounds("removed-folders")),
        ("removed_fifo_link_and_socket_file", || two_rounds("removed-nodes")),
        ("holes_and_other_names", || two_rounds("holes")),
        ("odd_names_and_far_offsets", || two_rounds("odd-names")),
    ],
};

/// Turns an I/O error into the text of a verification.
fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// A path for the kernel.
fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Opens with exactly these flags.
fn open(path: &Path, flags: i32) -> File {
    // SAFETY: a path that ends with NUL, and a descriptor that nobody else knows.
    unsafe { File::from_raw_fd(check(libc::open(name(path).as_ptr(), flags | libc::O_CLOEXEC)).unwrap()) }
}

/// Where `/proc` says that a descriptor leads.
fn link(file: &File) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn path_only(stage: Stage) {
    let [file, folder, symlink, fifo] = ["file", "folder", "symlink", "fifo"].map(|name| stage.path(name));
    fs::write(&file, "content").unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("inner"), "inside").unwrap();
    std::os::unix::fs::symlink("file", &symlink).unwrap();
    // SAFETY: a path that ends with NUL.
    check(unsafe { libc::mkfifo(name(&fifo).as_ptr(), 0o600) }).unwrap();
    let opened = [
        open(&file, libc::O_PATH),
        open(&folder, libc::O_PATH | libc::O_DIRECTORY),
        open(&symlink, libc::O_PATH | libc::O_NOFOLLOW),
        open(&fifo, libc::O_PATH),
    ];
    let paths = [file, folder, symlink, fifo];
    let types = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO];
    stage.serve(move |_| {
        for ((opened, path), wanted) in opened.iter().zip(&paths).zip(types) {
            let found = opened.metadata().map_err(text)?;
            verify!(found.mode() & libc::S_IFMT == wanted, "{} has mode {:o}", path.display(), found.mode());
            let there = fs::symlink_metadata(path).map_err(text)?;
            verify!(found.ino() == there.ino(), "{} leads elsewhere", path.display());
            verify!(link(opened) == *path, "{} is called {}", path.display(), link(opened).display());
            let error = take(opened.as_raw_fd(), 8).err().and_then(|error| error.raw_os_error());
            verify!(error == Some(libc::EBADF), "reading {} gives {error:?}", path.display());
        }
        let inner = format!("/proc/self/fd/{}/inner", opened[1].as_raw_fd());
        verify!(fs::read(inner).map_err(text)? == b"inside", "the folder");
        let mut target = [0_u8; 16];
        // SAFETY: an empty path that ends with NUL, and room for sixteen bytes.
        let length =
            unsafe { libc::readlinkat(opened[2].as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), 16) };
        verify!(length == 4 && target.starts_with(b"file"), "the symbolic link leads to {target:?}");
        Ok(())
    });
}

/// A folder that is open, one in another that is gone too, and one that is the working directory; all are removed.
fn removed_folders(stage: Stage) {
    let path = stage.path("removed");
    let inner = path.join("within/this");
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(path.join("working")).unwrap();
    fs::set_permissions(&inner, std::os::unix::fs::PermissionsExt::from_mode(0o710)).unwrap();
    let opened = [
        open(&path, libc::O_RDONLY | libc::O_DIRECTORY),
        open(&inner, libc::O_RDONLY),
        open(&inner, libc::O_PATH),
    ];
    std::env::set_current_dir(path.join("working")).unwrap();
    let working = open(Path::new("."), libc::O_PATH);
    fs::remove_dir_all(&path).unwrap();
    // A folder that has taken the name is not the one that is open.
    let taken = stage.path("taken");
    fs::create_dir(&taken).unwrap();
    let old = open(&taken, libc::O_RDONLY);
    fs::remove_dir(&taken).unwrap();
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("new"), "").unwrap();
    let before = names(&stage.folder);
    stage.serve(move |_| {
        for folder in opened.iter().chain([&working, &old]) {
            let found = folder.metadata().map_err(text)?;
            verify!(
                found.is_dir() && found.nlink() == 0,
                "{} has {} names",
                link(folder).display(),
                found.nlink()
            );
            verify!(link(folder).to_string_lossy().ends_with(" (deleted)"), "{}", link(folder).display());
            let inside = format!("/proc/self/fd/{}/new", folder.as_raw_fd());
            let error = File::create(inside).err().and_then(|error| error.raw_os_error());
            verify!(error == Some(libc::ENOENT), "a file in a removed folder: {error:?}");
        }
        verify!(opened[1].metadata().map_err(text)?.mode() & 0o7777 == 0o710, "the mode of a removed folder");
        let same = opened[1].metadata().map_err(text)?.ino() == opened[2].metadata().map_err(text)?.ino();
        verify!(same, "two descriptions of one removed folder lead to two");
        let current = fs::metadata(".").map_err(text)?;
        verify!(current.nlink() == 0, "the working directory has a name again");
        verify!(current.ino() == working.metadata().map_err(text)?.ino(), "the working directory is another");
        let error = std::env::current_dir().err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::ENOENT), "the name of the working directory: {error:?}");
        verify!(taken.join("new").exists(), "the folder that took the name is gone");
        verify!(names(&stage_folder(&taken)) == before, "what lies in the folder has changed");
        Ok(())
    });
}

/// The folder of a path.
fn stage_folder(path: &Path) -> PathBuf {
    path.parent().unwrap().to_path_buf()
}

/// The names in a folder that are neither the harness's nor the fixture's messages.
fn names(folder: &Path) -> Vec<String> {
    let known = ["ask.", "answer.", "draft-of-", "image-", "vckpt", "ready", "outages", "restored.pid"];
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !known.iter().any(|known| name.starts_with(known)) && !name.ends_with(".out"))
        .collect();
    found.sort();
    found
}

fn removed_nodes(stage: Stage) {
    let [fifo, symlink, socket, file] = ["fifo", "symlink", "socket", "file"].map(|name| stage.path(name));
    // SAFETY: a path that ends with NUL.
    check(unsafe { libc::mkfifo(name(&fifo).as_ptr(), 0o640) }).unwrap();
    let reader = open(&fifo, libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = open(&fifo, libc::O_WRONLY);
    let watched = open(&fifo, libc::O_PATH);
    put(writer.as_raw_fd(), b"left behind").unwrap();
    std::os::unix::fs::symlink("somewhere else", &symlink).unwrap();
    let symbolic = open(&symlink, libc::O_PATH | libc::O_NOFOLLOW);
    let listener = UnixListener::bind(&socket).unwrap();
    let socket_file = open(&socket, libc::O_PATH);
    fs::write(&file, "content").unwrap();
    let plain = open(&file, libc::O_PATH);
    for path in [&fifo, &symlink, &socket, &file] {
        fs::remove_file(path).unwrap();
    }
    let folder = stage.folder.clone();
    let before = names(&folder);
    stage.serve(move |_| {
        let found = take(reader.as_raw_fd(), 100).map_err(text)?;
        verify!(found == b"left behind", "the removed FIFO held {:?}", String::from_utf8_lossy(&found));
        put(writer.as_raw_fd(), b"left behind").map_err(text)?;
        let inodes = [&reader, &writer, &watched].map(|file| file.metadata().map(|found| found.ino()).ok());
        verify!(inodes.iter().all(|inode| *inode == inodes[0]), "one removed FIFO is several: {inodes:?}");
        let found = reader.metadata().map_err(text)?;
        verify!(found.mode() & 0o7777 == 0o640 && found.nlink() == 0, "the removed FIFO: {found:?}");
        let mut target = [0_u8; 32];
        // SAFETY: an empty path that ends with NUL, and room for 32 bytes.
        let length =
            unsafe { libc::readlinkat(symbolic.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), 32) };
        verify!(
            length == 14 && target.starts_with(b"somewhere else"),
            "the removed link leads to {target:?}"
        );
        let found = socket_file.metadata().map_err(text)?;
        verify!(found.mode() & libc::S_IFMT == libc::S_IFSOCK, "the removed socket file: {found:?}");
        let address = listener.local_addr().map_err(text)?;
        verify!(address.as_pathname() == Some(&*socket), "the removed socket is called {address:?}");
        let again = fs::read(format!("/proc/self/fd/{}", plain.as_raw_fd())).map_err(text)?;
        verify!(again == b"content", "the removed file that is known by O_PATH holds {again:?}");
        verify!(names(&folder) == before, "{:?} became {:?}", before, names(&folder));
        Ok(())
    });
}

/// A file of 1 GiB that is nearly all hole and has lost all its names; one that has lost one of two.
fn holes(stage: Stage) {
    let [first, second] = ["first", "second"].map(|name| stage.path(name));
    let mut sparse = File::options().read(true).write(true).create_new(true).open(&first).unwrap();
    fs::hard_link(&first, &second).unwrap();
    sparse.write_all(&[5; 5000]).unwrap();
    sparse.write_all_at(&[6; 5000], 1 << 29).unwrap();
    sparse.set_len(1 << 30).unwrap();
    fs::remove_file(&first).unwrap();
    fs::remove_file(&second).unwrap();
    let [lost, kept] = ["lost", "kept"].map(|name| stage.path(name));
    fs::write(&lost, "one file").unwrap();
    fs::hard_link(&lost, &kept).unwrap();
    let linked = File::options().read(true).write(true).open(&lost).unwrap();
    fs::remove_file(&lost).unwrap();
    let folder = stage.folder.clone();
    let before = names(&folder);
    // Its name in /proc is that of the name that it still has.
    let number = format!("fd {}", linked.as_raw_fd());
    stage.serve_except(&[&number], move |round| {
        let found = sparse.metadata().map_err(text)?;
        verify!(found.len() == 1 << 30 && found.nlink() == 0, "the file with holes: {found:?}");
        verify!(found.blocks() < 64, "the file with holes takes {} blocks", found.blocks());
        let mut bytes = [0; 5001];
        sparse.read_exact_at(&mut bytes, 1 << 29).map_err(text)?;
        verify!(bytes[..5000] == [6; 5000] && bytes[5000] == 0, "what stands between the holes");
        // SAFETY: our own descriptor; the position is put back.
        let data = unsafe { libc::lseek(sparse.as_raw_fd(), 100_000, libc::SEEK_DATA) };
        unsafe { libc::lseek(sparse.as_raw_fd(), 5000, libc::SEEK_SET) };
        verify!(data == 1 << 29, "after the first hole comes data at {data}");
        linked.write_all_at(&[b'0' + round as u8], 0).map_err(text)?;
        let other = fs::read(&kept).map_err(text)?;
        verify!(other[0] == b'0' + round as u8, "the file with another name is not the same any more");
        verify!(linked.metadata().map_err(text)?.nlink() == 1, "the number of names");
        verify!(names(&folder) == before, "{:?} became {:?}", before, names(&folder));
        Ok(())
    });
}

fn odd_names(stage: Stage) {
    let odd = [
        &b"quote'\"`$(x)"[..],
        b"line\nline",
        b"not \xff\xfe UTF-8",
        b"back\\slash\\012",
        b" (deleted)",
        b"x (deleted)",
    ];
    let mut opened = Vec::new();
    for name in odd {
        let path = stage.folder.join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        let mut file = File::open(&path).unwrap();
        file.seek(SeekFrom::Start(3)).unwrap();
        let gone = stage.folder.join(OsStr::from_bytes(&[b"gone ", name].concat()));
        fs::write(&gone, name).unwrap();
        let removed = File::open(&gone).unwrap();
        fs::remove_file(&gone).unwrap();
        opened.push((file, removed, name));
    }
    let folder = stage.folder.join(OsStr::from_bytes(b"folder\n\xff'"));
    fs::create_dir(&folder).unwrap();
    std::env::set_current_dir(&folder).unwrap();
    // Beyond what 32 bits hold.
    let far = stage.path("far");
    let mut file = File::options().read(true).write(true).create_new(true).open(&far).unwrap();
    file.set_len((5 << 30) + 100).unwrap();
    file.write_all_at(b"far away", 5 << 30).unwrap();
    file.seek(SeekFrom::Start(5 << 30)).unwrap();
    let append = File::options().append(true).custom_flags(libc::O_SYNC).open(&far).unwrap();
    let closed: Vec<OwnedFd> = Vec::new();
    drop(closed);
    stage.serve(move |_| {
        for (file, removed, name) in &mut opened {
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).map_err(text)?;
            file.seek(SeekFrom::Start(3)).map_err(text)?;
            verify!(rest == name[3..], "a file with an odd name: {:?}", String::from_utf8_lossy(name));
            verify!(link(file).as_os_str().as_bytes().ends_with(name), "{:?} has another name", link(file));
            let mut whole = vec![0; name.len()];
            removed.read_exact_at(&mut whole, 0).map_err(text)?;
            verify!(whole == *name, "a removed file with an odd name: {:?}", String::from_utf8_lossy(name));
        }
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map_err(text)?;
        file.seek(SeekFrom::Start(5 << 30)).map_err(text)?;
        verify!(&bytes == b"far away", "far away stands {bytes:?}");
        far_end(&append)
    });
}

/// Appending goes to the end, and is taken back.
fn far_end(mut append: &File) -> Verdict {
    let before = append.metadata().map_err(text)?.len();
    append.write_all(b"!").map_err(text)?;
    verify!(append.metadata().map_err(text)?.len() == before + 1, "appending");
    append.set_len(before).map_err(text)?;
    append.seek(SeekFrom::Start(0)).map_err(text)?;
    Ok(())
}
