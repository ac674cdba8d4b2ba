//! Addresses of unix sockets and their files: relative, renamed, moved, removed, replaced, too long, chosen by the kernel.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Outcome, Topic, is_root};
use crate::stage::kernel::check;
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "socket_names",
    fixtures: &[
        ("relative-names", relative),
        ("renamed-sockets", renamed),
        ("removed-sockets", removed),
        ("chosen-names", chosen),
    ],
    cases: &[
        ("relative_and_too_long", || two_rounds("relative-names")),
        ("renamed_moved_and_replaced", || two_rounds("renamed-sockets")),
        ("removed_with_their_directories", || two_rounds("removed-sockets")),
        ("chosen_by_the_kernel", || two_rounds("chosen-names")),
        ("files_that_are_gone_meanwhile", gone_meanwhile),
    ],
};

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// The address of a socket, and that of its peer, as bytes.
fn addresses(socket: &impl AsRawFd) -> [Vec<u8>; 2] {
    let get = |call: unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut u32) -> i32| {
        let mut address = [0_u8; 128];
        let mut length = 128_u32;
        // SAFETY: a live place of this length.
        let result = unsafe { call(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
        if result < 0 { Vec::new() } else { address[..length as usize].to_vec() }
    };
    [get(libc::getsockname), get(libc::getpeername)]
}

/// A listener, a connection that it has accepted, and the file by which it is reached, if there is one.
struct Server {
    listener: UnixListener,
    client: UnixStream,
    server: UnixStream,
    path: Option<PathBuf>,
    names: [[Vec<u8>; 2]; 3],
}

impl Server {
    fn new(listener: UnixListener, connect: &Path) -> Self {
        let client = UnixStream::connect(connect).unwrap();
        let server = listener.accept().unwrap().0;
        (&client).write_all(b"on the way").unwrap();
        let names = [addresses(&listener), addresses(&client), addresses(&server)];
        Self { listener, client, server, path: Some(connect.to_owned()), names }
    }

    /// Moves its file, or removes it.
    fn moved(mut self, to: Option<PathBuf>) -> Self {
        self.path = to;
        self
    }

    fn verify(&self) -> Verdict {
        let names = [addresses(&self.listener), addresses(&self.client), addresses(&self.server)];
        verify!(names == self.names, "{:?} became {names:?}", self.names);
        let mut bytes = [0; 10];
        (&self.server).read_exact(&mut bytes).map_err(text)?;
        verify!(&bytes == b"on the way", "{bytes:?} was on the way");
        (&self.client).write_all(b"on the way").map_err(text)?;
        (&self.server).write_all(b"back").map_err(text)?;
        (&self.client).read_exact(&mut bytes[..4]).map_err(text)?;
        let Some(path) = &self.path else { return Ok(()) };
        let new = connect_far(path)?;
        let accepted = self.listener.accept().map_err(text)?.0;
        (&new).write_all(b"hi").map_err(text)?;
        (&accepted).read_exact(&mut bytes[..2]).map_err(text)?;
        Ok(())
    }
}

/// Connects by way of a directory, since the path may be too long.
fn connect_far(path: &Path) -> Result<UnixStream, String> {
    let folder = fs::File::open(path.parent().unwrap()).map_err(text)?;
    let near = format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), path.file_name().unwrap().display());
    UnixStream::connect(near).map_err(|error| format!("connecting with {}: {error}", path.display()))
}

fn relative(stage: Stage) {
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    std::env::set_current_dir(&folder).unwrap();
    let near = Server::new(UnixListener::bind("near").unwrap(), Path::new("near"));
    fs::set_permissions("near", fs::Permissions::from_mode(0o640)).unwrap();
    let above = Server::new(UnixListener::bind("../above").unwrap(), Path::new("../above"));
    let datagrams = UnixDatagram::bind("./datagrams").unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let writer = UnixDatagram::unbound().unwrap();
    writer.connect("datagrams").unwrap();
    writer.send(b"one").unwrap();
    // Longer than any address.
    let mut deep = folder.clone();
    for _ in 0..4 {
        deep.push("d".repeat(60));
        fs::create_dir(&deep).unwrap();
    }
    std::env::set_current_dir(&deep).unwrap();
    let far = Server::new(UnixListener::bind("far").unwrap(), Path::new("far")).moved(Some(deep.join("far")));
    let near = near.moved(Some(folder.join("near")));
    let above = above.moved(Some(stage.path("above")));
    if is_root() {
        // An ordinary user's sockets are found by the directories that processes are in.
        std::env::set_current_dir("/").unwrap();
    } else {
        std::env::set_current_dir(&folder).unwrap();
    }
    let servers = if is_root() { vec![near, above, far] } else { vec![near, above] };
    let names = addresses(&datagrams);
    let mode = move || fs::metadata(folder.join("near")).map(|found| found.mode() & 0o7777).map_err(text);
    stage.serve(move |_| {
        servers.iter().try_for_each(Server::verify)?;
        verify!(addresses(&datagrams) == names, "{names:?} became {:?}", addresses(&datagrams));
        let mut bytes = [0; 10];
        let count = datagrams.recv(&mut bytes).map_err(text)?;
        verify!(&bytes[..count] == b"one", "the datagram is {bytes:?}");
        writer.send(b"one").map_err(text)?;
        verify!(mode()? == 0o640, "the mode of the file is {:o}", mode()?);
        Ok(())
    });
}

fn renamed(stage: Stage) {
    let bind = |name: &str| {
        let path = stage.path(name);
        Server::new(UnixListener::bind(&path).unwrap(), &path)
    };
    let rename = |from: &str, to: &str| {
        fs::rename(stage.path(from), stage.path(to)).unwrap();
        Some(stage.path(to))
    };
    let plain = bind("plain").moved(rename("plain", "renamed"));
    // The way to replace a listener without a gap.
    let new = bind("service.new");
    let old = bind("service").moved(None);
    let new = new.moved(rename("service.new", "service"));
    // Two have had the same name.
    let first = bind("turn").moved(rename("turn", "turn.1"));
    let second = bind("turn").moved(rename("turn", "turn.2"));
    let third = bind("turn");
    let mut servers = vec![plain, new, old, first, second, third];
    if is_root() {
        fs::create_dir(stage.path("before")).unwrap();
        let inner = bind("before/inner").moved(Some(stage.path("after/inner")));
        fs::rename(stage.path("before"), stage.path("after")).unwrap();
        servers.push(inner);
        // A file has taken the name.
        fs::write(stage.path("plain"), "in the way").unwrap();
    }
    let folder = stage.folder.clone();
    let before = sockets(&folder);
    stage.serve(move |_| {
        servers.iter().try_for_each(Server::verify)?;
        verify!(sockets(&folder) == before, "{before:?} became {:?}", sockets(&folder));
        let plain = fs::read(folder.join("plain")).ok();
        verify!(plain.is_none_or(|plain| plain == b"in the way"), "the file that has taken a name");
        Ok(())
    });
}

/// The names of sockets in a folder, and of directories.
fn sockets(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let named = entries.filter(|entry| {
        let kind = entry.file_type().unwrap();
        kind.is_socket() || kind.is_dir()
    });
    let mut names: Vec<String> =
        named.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn removed(stage: Stage) {
    let folder = stage.path("removed/within");
    fs::create_dir_all(&folder).unwrap();
    std::env::set_current_dir(&folder).unwrap();
    let path = folder.join("absolute");
    let absolute = Server::new(UnixListener::bind(&path).unwrap(), &path).moved(None);
    let relative = Server::new(UnixListener::bind("relative").unwrap(), Path::new("relative")).moved(None);
    let receiver = UnixDatagram::bind(folder.join("datagrams")).unwrap();
    let writer = UnixDatagram::unbound().unwrap();
    writer.connect(folder.join("datagrams")).unwrap();
    writer.send(b"one").unwrap();
    // The server has given up its socket and still has the connection.
    let kept = Server::new(UnixListener::bind(stage.path("kept")).unwrap(), &stage.path("kept"));
    let Server { listener, client, server, .. } = kept;
    drop(listener);
    let kept = [addresses(&client), addresses(&server)];
    let lost = Server::new(UnixListener::bind(stage.path("lost")).unwrap(), &stage.path("lost"));
    fs::remove_file(stage.path("lost")).unwrap();
    let Server { listener, client: widow, server: husband, .. } = lost;
    drop((listener, husband));
    let widow_names = addresses(&widow);
    std::env::set_current_dir("/").unwrap();
    fs::remove_dir_all(stage.path("removed")).unwrap();
    let top = stage.folder.clone();
    let before = sockets(&top);
    stage.serve(move |_| {
        absolute.verify()?;
        relative.verify()?;
        let mut bytes = [0; 10];
        let count = receiver.recv(&mut bytes).map_err(text)?;
        verify!(&bytes[..count] == b"one", "the datagram is {bytes:?}");
        writer.send(b"one").map_err(text)?;
        let now = [addresses(&client), addresses(&server)];
        verify!(now == kept, "{kept:?} became {now:?}");
        (&server).read_exact(&mut bytes).map_err(text)?;
        (&client).write_all(b"on the way").map_err(text)?;
        // Nobody listens there any more.
        let error = UnixStream::connect(top.join("kept")).err().and_then(|error| error.raw_os_error());
        verify!(error == Some(libc::ECONNREFUSED), "connecting gives {error:?}");
        verify!(addresses(&widow)[0] == widow_names[0], "{widow_names:?} became {:?}", addresses(&widow));
        verify!(sockets(&top) == before, "{before:?} became {:?}", sockets(&top));
        Ok(())
    });
}

/// Abstract names that the kernel has chosen, and a name with zeros in it.
fn chosen(stage: Stage) {
    let family = u16::try_from(libc::AF_UNIX).unwrap().to_ne_bytes();
    let receiver = UnixDatagram::unbound().unwrap();
    // SAFETY: two bytes are live.
    check(unsafe { libc::bind(receiver.as_raw_fd(), family.as_ptr().cast(), 2) }).unwrap();
    let zeros = UnixDatagram::unbound().unwrap();
    let name = [&family[..], b"\0vckpt\0", std::process::id().to_string().as_bytes(), b"\0"].concat();
    // SAFETY: the bytes are live.
    check(unsafe { libc::bind(zeros.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) }).unwrap();
    let connect = |from: &UnixDatagram, to: &UnixDatagram| {
        let [address, _] = addresses(to);
        // SAFETY: the bytes are live.
        let result =
            unsafe { libc::connect(from.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) };
        check(result).unwrap();
    };
    connect(&zeros, &receiver);
    connect(&receiver, &zeros);
    let load = |socket: &UnixDatagram| {
        (0..5_usize)
            .for_each(|number| assert_eq!(socket.send(&vec![7; number * 100]).unwrap(), number * 100));
    };
    load(&zeros);
    load(&receiver);
    let names = [addresses(&receiver), addresses(&zeros)];
    assert_eq!(names[0][0].len(), 8);
    stage.serve(move |_| {
        let now = [addresses(&receiver), addresses(&zeros)];
        verify!(now == names, "{names:?} became {now:?}");
        for socket in [&receiver, &zeros] {
            for number in 0..5_usize {
                let mut bytes = [0; 1000];
                let count = socket.recv(&mut bytes).map_err(text)?;
                verify!(count == number * 100, "{count} bytes came, not {}", number * 100);
            }
            load(if std::ptr::eq(socket, &raw const receiver) { &zeros } else { &receiver });
        }
        Ok(())
    });
}

/// The files are not there any more when the program comes back: they are made again.
fn gone_meanwhile() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("renamed-sockets", &[])?;
    case.ask()?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        for name in ["renamed", "service", "turn", "turn.1", "turn.2"] {
            fs::remove_file(case.path(name))?;
        }
        root = case.restore(&image)?;
        case.ask()?;
    }
    case.finish(root)
}
