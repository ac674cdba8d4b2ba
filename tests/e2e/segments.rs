//! Shared memory of every origin: anonymous, memfd, POSIX, secret, of huge pages, and files that are mapped.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, is_root, skip};
use crate::stage::kernel::{check, map, put};
use crate::stage::shared::{Echo, can_be_writable, mark, seen};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "segments",
    fixtures: &[
        ("one_end", one_end),
        ("memory_files", memory_files),
        ("posix", posix),
        ("zero_device", zero_device),
        ("read_only", read_only),
        ("secret", secret),
        ("huge_pages", huge_pages),
    ],
    cases: &[
        ("unmapped_at_one_end", || two_rounds("one_end")),
        ("memory_files_with_seals", || two_rounds("memory_files")),
        ("posix_and_tmpfs", || two_rounds("posix")),
        ("zero_device", || two_rounds("zero_device")),
        ("read_only_stays_so", || two_rounds("read_only")),
        ("secret_memory", secret_memory),
        ("huge_pages", with_huge_pages),
    ],
};

const PAGE: usize = 4096;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_WRITE;
const SHARED: i32 = libc::MAP_SHARED;
const OWN: i32 = libc::MAP_PRIVATE;
const ANONYMOUS: i32 = libc::MAP_ANONYMOUS;

fn unmap(place: usize, length: usize) {
    // SAFETY: callers own the range.
    check(unsafe { libc::munmap(place as *mut _, length) }).unwrap();
}

/// Memory that the one who made it has unmapped, wholly or in part.
fn one_end(stage: Stage) {
    let whole = map(4 * PAGE, READ | WRITE, SHARED | ANONYMOUS, -1) as usize;
    let part = map(8 * PAGE, READ | WRITE, SHARED | ANONYMOUS, -1) as usize;
    mark(whole, 10);
    mark(part, 3);
    mark(part + 5 * PAGE, 20);
    mark(part + 7 * PAGE, 4);
    let echoes =
        [Echo::start(move || whole), Echo::start(move || whole), Echo::start(move || part + 5 * PAGE)];
    unmap(whole, 4 * PAGE);
    unmap(part, 5 * PAGE);
    unmap(part + 6 * PAGE, PAGE);
    let (mut first, mut second) = (10, 20);
    stage.serve(move |_| {
        for echo in &echoes[..2] {
            let value = echo.ask()?;
            verify!(value == first, "a child sees {value} instead of {first}");
            first += 1;
        }
        let value = echoes[2].ask()?;
        verify!(value == second, "the third child sees {value} instead of {second}");
        second += 1;
        verify!(seen(part + 5 * PAGE) == second, "what a child wrote to the part that is left");
        verify!(seen(part + 7 * PAGE) == 4, "the last page");
        Ok(())
    });
}

fn memory_file(name: &str, flags: u32, size: usize) -> File {
    let name = CString::new(name).unwrap();
    // SAFETY: the name ends with a NUL.
    let number = check(unsafe { libc::memfd_create(name.as_ptr(), flags) }).unwrap();
    // SAFETY: the descriptor is new.
    let file = unsafe { File::from_raw_fd(number) };
    file.set_len(size as u64).unwrap();
    file
}

fn seal(file: &File, seals: i32) {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).unwrap();
}

fn seals(file: &File) -> i32 {
    // SAFETY: plain numbers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) }
}

fn memory_files(stage: Stage) {
    // One with the seals of size and an odd one, mapped; one that can't be written any more; one without its descriptor.
    let sized = memory_file("with a name", libc::MFD_ALLOW_SEALING, 3 * PAGE + 100);
    let sized_at = map(3 * PAGE + 100, READ | WRITE, SHARED, sized.as_raw_fd()) as usize;
    mark(sized_at, 1);
    mark(sized_at + 3 * PAGE, 5);
    seal(&sized, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let frozen = memory_file("frozen", libc::MFD_ALLOW_SEALING, PAGE);
    put(frozen.as_raw_fd(), &77_u64.to_ne_bytes()).unwrap();
    seal(&frozen, libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL);
    let reader = File::open(format!("/proc/self/fd/{}", frozen.as_raw_fd())).unwrap();
    let frozen_at = map(PAGE, READ, SHARED, reader.as_raw_fd()) as usize;
    let frozen_own = map(PAGE, READ | WRITE, OWN, frozen.as_raw_fd()) as usize;
    let future = memory_file("future", libc::MFD_ALLOW_SEALING, PAGE);
    let future_at = map(PAGE, READ | WRITE, SHARED, future.as_raw_fd()) as usize;
    mark(future_at, 8);
    seal(&future, libc::F_SEAL_FUTURE_WRITE);
    let closed = memory_file("closed", 0, PAGE);
    let closed_at = map(PAGE, READ | WRITE, SHARED, closed.as_raw_fd()) as usize;
    mark(closed_at, 9);
    // Only root may open shared memory that is mapped, but not open.
    let kept = (!is_root()).then_some(closed);
    let mut value = 1;
    stage.serve(move |_| {
        let _ = &kept;
        verify!(seals(&sized) == libc::F_SEAL_SHRINK | libc::F_SEAL_GROW, "seals {:x}", seals(&sized));
        verify!(seals(&frozen) == 15, "seals {:x}", seals(&frozen));
        verify!(seals(&future) == libc::F_SEAL_FUTURE_WRITE, "seals {:x}", seals(&future));
        verify!(sized.set_len(PAGE as u64).is_err(), "a sealed memory file can be cut");
        let length = sized.metadata().map_err(|error| error.to_string())?.len();
        verify!(length == (3 * PAGE + 100) as u64, "the size is {length}");
        verify!(seen(sized_at) == value && seen(sized_at + 3 * PAGE) == 5, "the content of the first");
        value += 1;
        mark(sized_at, value);
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&sized, &mut bytes, 0)
            .map_err(|error| error.to_string())?;
        verify!(u64::from_ne_bytes(bytes) == value, "mapping and descriptor lead to different files");
        verify!(seen(frozen_at) == 77 && !can_be_writable(frozen_at), "the one that can't be written");
        verify!(seen(frozen_own) == 77, "the private mapping of it");
        let refused = put(frozen.as_raw_fd(), b"x").err().and_then(|error| error.raw_os_error());
        verify!(refused == Some(libc::EPERM), "writing to it is {refused:?}");
        verify!(seen(future_at) == 8, "the one with writers of old");
        mark(future_at, 8);
        // SAFETY: the kernel chooses the place.
        let new =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, READ | WRITE, SHARED, future.as_raw_fd(), 0) };
        verify!(new == libc::MAP_FAILED, "a new writer of it is let in");
        verify!(seen(closed_at) == 9, "the one without a descriptor");
        Ok(())
    });
}

fn posix(stage: Stage) {
    let name = format!("vckpt-e2e-{}", std::process::id());
    let path = format!("/dev/shm/{name}");
    let open = |path: &str| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let gone = open(&path);
    gone.set_len(2 * PAGE as u64 + 10).unwrap();
    let gone_at = map(3 * PAGE, READ | WRITE, SHARED, gone.as_raw_fd()) as usize;
    let gone_own = map(PAGE, READ | WRITE, OWN, gone.as_raw_fd()) as usize;
    mark(gone_at, 30);
    mark(gone_at + 2 * PAGE, 31);
    fs::remove_file(&path).unwrap();
    // The descriptor of the second is closed, which only root can open then.
    let closed = open(&path);
    closed.set_len(PAGE as u64).unwrap();
    let closed_at = map(PAGE, READ | WRITE, SHARED, closed.as_raw_fd()) as usize;
    mark(closed_at, 32);
    fs::remove_file(&path).unwrap();
    let kept = (!is_root()).then_some(closed);
    // A third one keeps its name; it is in the folder of the case, which may be of any file system.
    let named = open(stage.path("named").to_str().unwrap());
    named.set_len(PAGE as u64).unwrap();
    let named_at = map(PAGE, READ | WRITE, SHARED, named.as_raw_fd()) as usize;
    mark(named_at, 33);
    let echo = Echo::start(move || gone_at);
    let mut value = 30;
    stage.serve(move |_| {
        let _ = &kept;
        verify!(echo.ask()? == value, "the child sees another value");
        value += 1;
        verify!(
            seen(gone_at) == value && seen(gone_own) == value,
            "what the child wrote is {}",
            seen(gone_at)
        );
        verify!(seen(gone_at + 2 * PAGE) == 31, "the last page");
        let length = gone.metadata().map_err(|error| error.to_string())?.len();
        verify!(length == 2 * PAGE as u64 + 10, "the size is {length}");
        verify!(seen(closed_at) == 32, "the one without a descriptor");
        verify!(seen(named_at) == 33, "the one with a name");
        Ok(())
    });
}

fn zero_device(stage: Stage) {
    let device = File::options().read(true).write(true).open("/dev/zero").unwrap();
    let own = map(4 * PAGE, READ | WRITE, OWN, device.as_raw_fd()) as usize;
    let common = map(4 * PAGE, READ | WRITE, SHARED, device.as_raw_fd()) as usize;
    drop(device);
    mark(own + PAGE, 5);
    mark(common + PAGE, 6);
    let echo = Echo::start(move || common + PAGE);
    let mut value = 6;
    stage.serve(move |_| {
        verify!(seen(own + PAGE) == 5 && seen(own) == 0, "the private mapping");
        verify!(echo.ask()? == value, "the child sees another value");
        value += 1;
        verify!(seen(common + PAGE) == value && seen(common) == 0, "the shared mapping");
        Ok(())
    });
}

/// Mappings by descriptors that can only be read can't be made writable, others can.
fn read_only(stage: Stage) {
    let path = stage.path("file");
    fs::write(&path, [1_u8; 2 * PAGE]).unwrap();
    let both = File::options().read(true).write(true).open(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let memory = memory_file("memory", 0, PAGE);
    let memory_reader = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
    let places = [
        (map(PAGE, READ, SHARED, both.as_raw_fd()) as usize, true),
        (map(PAGE, READ, SHARED, reader.as_raw_fd()) as usize, false),
        (map(PAGE, READ, OWN, reader.as_raw_fd()) as usize, true),
        (map(PAGE, READ, SHARED, memory.as_raw_fd()) as usize, true),
        (map(PAGE, READ, SHARED, memory_reader.as_raw_fd()) as usize, false),
    ];
    drop((both, reader));
    stage.serve(move |_| {
        let _ = (&memory, &memory_reader);
        for (number, (place, writable)) in places.into_iter().enumerate() {
            verify!(can_be_writable(place) == writable, "mapping {number} can be written: {}", !writable);
        }
        Ok(())
    });
}

fn secret_file() -> Result<File, Error> {
    // SAFETY: plain numbers.
    let number = check(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) })?;
    // SAFETY: the descriptor is new.
    Ok(unsafe { File::from_raw_fd(number as i32) })
}

fn secret_memory() -> Outcome {
    if secret_file().is_err() {
        return skip("memfd_secret");
    }
    let mut case = Case::new()?;
    let mut root = case.start("secret", &[])?;
    case.ask()?;
    if case.is_control() {
        return case.finish(root);
    }
    for _ in 0..2 {
        let image = case.path("secret.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-f", "-o", text(&image)])?.good()?;
        ensure!(ran.stderr.contains("memfd_secret"), "it is not told: {}", ran.describe());
        root = case.restore(&image)?;
        case.ask()?;
    }
    case.finish(root)
}

/// It has either what was written since it was made, or zeros. Only a part of it is mapped.
fn secret(stage: Stage) {
    let file = secret_file().unwrap();
    file.set_len(2 * PAGE as u64).unwrap();
    let place = map(PAGE, READ | WRITE, SHARED, file.as_raw_fd()) as usize;
    mark(place, 60);
    stage.serve(move |round| {
        let expected = if round == 1 { 60 } else { 0 };
        verify!(seen(place) == expected, "secret memory has {}", seen(place));
        mark(place, 60);
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        verify!(length == 2 * PAGE as u64, "the size is {length}");
        let again = map(PAGE, READ, SHARED, file.as_raw_fd()) as usize;
        let value = seen(again);
        unmap(again, PAGE);
        verify!(value == 60, "mapping and descriptor lead to different memory");
        Ok(())
    });
}

const HUGE: usize = 2 << 20;
const RESERVE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Gives reserved huge pages back.
struct Reserve(String);

impl Drop for Reserve {
    fn drop(&mut self) {
        let _ = fs::write(RESERVE, &self.0);
    }
}

fn with_huge_pages() -> Outcome {
    const NEEDED: usize = 16;
    let free = || {
        let text = fs::read_to_string(RESERVE.replace("nr_", "free_")).unwrap_or_default();
        text.trim().parse::<usize>().unwrap_or(0)
    };
    let before = fs::read_to_string(RESERVE).unwrap_or_default();
    let missing = NEEDED.saturating_sub(free());
    let wanted = before.trim().parse::<usize>().unwrap_or(0) + missing;
    let reserve = Reserve(before);
    if missing > 0 && (fs::write(RESERVE, wanted.to_string()).is_err() || free() < NEEDED) {
        return skip("huge pages that are reserved or can be (vm.nr_hugepages)");
    }
    let done = two_rounds("huge_pages");
    drop(reserve);
    done
}

fn huge_pages(stage: Stage) {
    let huge = libc::MAP_HUGETLB;
    let own = map(2 * HUGE, READ | WRITE, OWN | ANONYMOUS | huge, -1) as usize;
    let common = map(HUGE, READ | WRITE, SHARED | ANONYMOUS | huge, -1) as usize;
    let file = memory_file("huge", libc::MFD_HUGETLB, HUGE);
    let file_at = map(HUGE, READ | WRITE, SHARED, file.as_raw_fd()) as usize;
    for (place, value) in
        [(own, 70), (own + HUGE + 5 * PAGE, 71), (common + PAGE, 72), (file_at + 9 * PAGE, 73)]
    {
        mark(place, value);
    }
    let echo = Echo::start(move || common + PAGE);
    let mut value = 72;
    stage.serve(move |_| {
        verify!(seen(own) == 70 && seen(own + HUGE + 5 * PAGE) == 71 && seen(own + PAGE) == 0, "private");
        verify!(echo.ask()? == value, "the child sees another value");
        value += 1;
        verify!(seen(common + PAGE) == value, "shared");
        verify!(seen(file_at + 9 * PAGE) == 73, "a memory file");
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 9 * PAGE as u64)
            .map_err(|error| error.to_string())?;
        verify!(u64::from_ne_bytes(bytes) == 73, "mapping and descriptor lead to different files");
        Ok(())
    });
}
