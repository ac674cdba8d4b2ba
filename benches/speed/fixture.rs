//! The programs that are frozen.

use super::Outcome;
use memmap2::{Mmap, MmapMut};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Becomes a program: `NAME NUMBER READY`. It writes a number to the file `READY` when it is ready, and then waits.
pub(crate) fn run(name: &str, words: &[&str]) -> Outcome {
    let [number, ready] = words else { return Err("a fixture needs a number and a file".into()) };
    let number: usize = number.parse()?;
    let ready = Path::new(ready);
    match name {
        "memory" => memory(number, ready),
        "mappings" => mappings(number, ready),
        "threads" => threads(number, ready),
        "tree" => tree(number, ready),
        "leaf" => wait(),
        "descriptors" => descriptors(number, ready),
        "connections" => connections(number, ready),
        _ => Err(format!("there is no fixture {name}").into()),
    }
}

/// Says that everything is there, and waits for ever.
fn announce(ready: &Path, number: u64) -> Outcome {
    let temporary = ready.with_extension("new");
    fs::write(&temporary, format!("{number}\n"))?;
    fs::rename(temporary, ready)?;
    wait()
}

fn wait() -> Outcome {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// So many MiB of random memory; says its address.
fn memory(size: usize, ready: &Path) -> Outcome {
    nix::unistd::setsid()?;
    let mut words = vec![0_u64; size << 17];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in &mut words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state;
    }
    announce(ready, words.as_ptr().addr() as u64)
}

/// So many mappings of two pages, of which one is written.
fn mappings(count: usize, ready: &Path) -> Outcome {
    enum Held {
        Writable { _map: MmapMut },
        ReadOnly { _map: Mmap },
    }
    nix::unistd::setsid()?;
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let mut map = MmapMut::map_anon(8192)?;
        if let Some(byte) = map.first_mut() {
            *byte = 1;
        }
        // Neighbours with the same protection would become one mapping.
        held.push(if number % 2 == 0 {
            Held::Writable { _map: map }
        } else {
            Held::ReadOnly { _map: map.make_read_only()? }
        });
    }
    announce(ready, held.len() as u64)
}

/// So many threads that wait.
fn threads(count: usize, ready: &Path) -> Outcome {
    nix::unistd::setsid()?;
    for _ in 1..count {
        std::thread::Builder::new().stack_size(64 * 1024).spawn(wait_alone)?;
    }
    announce(ready, count as u64)
}

fn wait_alone() {
    loop {
        std::thread::park();
    }
}

/// A process with so many children less one.
fn tree(count: usize, ready: &Path) -> Outcome {
    nix::unistd::setsid()?;
    let program = std::env::current_exe()?;
    let mut leaves = Vec::with_capacity(count);
    for _ in 1..count {
        let mut leaf = Command::new(&program);
        leaf.args(["fixture", "leaf", "0", ""]);
        leaves.push(leaf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    // They have to be through their start.
    while !leaves.iter().all(|leaf| super::stage::sleeps(leaf.id())) {
        std::thread::sleep(Duration::from_millis(10));
    }
    announce(ready, count as u64)
}

/// So many descriptors of ten kinds, in equal parts.
fn descriptors(count: usize, ready: &Path) -> Outcome {
    nix::unistd::setsid()?;
    allow_descriptors()?;
    let folder = ready.parent().ok_or("no folder")?.join("descriptors");
    fs::create_dir_all(&folder)?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let mut held: Vec<OwnedFd> = Vec::with_capacity(count);
    for number in 0..count.div_ceil(12) {
        let file = folder.join(number.to_string());
        fs::write(&file, "something")?;
        held.push(fs::File::open(&file)?.into());
        held.push(fs::File::open(&folder)?.into());
        let (reader, writer) = std::io::pipe()?;
        held.extend([reader.into(), writer.into()]);
        let (one, other) = UnixStream::pair()?;
        held.extend([one.into(), other.into()]);
        let event = EventFd::from_value(7)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        held.push(OwnedFd::from(event));
        held.push(Epoll::new(EpollCreateFlags::empty())?.0);
        held.push(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?.into());
        held.push(memfd_create("bench", MFdFlags::empty())?);
        held.push(UdpSocket::bind("127.0.0.1:0")?.into());
        held.push(TcpListener::bind("127.0.0.1:0")?.into());
    }
    let number = held.len();
    std::mem::forget((held, epoll));
    announce(ready, number as u64)
}

/// So many TCP connections, with both ends.
fn connections(count: usize, ready: &Path) -> Outcome {
    nix::unistd::setsid()?;
    allow_descriptors()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let client = TcpStream::connect(address)?;
        held.push((client, listener.accept()?.0));
    }
    announce(ready, held.len() as u64)
}

/// As many descriptors as the system gives.
fn allow_descriptors() -> Outcome {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}
