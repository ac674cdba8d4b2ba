//! Shared memory of every origin: anonymous, memfd, POSIX, System V, secret, of huge pages, and files that are mapped.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::{Outcome, Topic, ensure, is_root, need_root, skip};
use crate::stage::kernel::{check, fork, map, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "segments",
    fixtures: &[
        ("one_end", one_end),
        ("memory_files", memory_files),
        ("posix", posix),
        ("zero_device", zero_device),
        ("read_only", read_only),
        ("system_v", system_v),
        ("secret", secret),
        ("huge_pages", huge_pages),
    ],
    cases: &[
        ("unmapped_at_one_end", || two_rounds("one_end")),
        ("memory_files_with_seals", || two_rounds("memory_files")),
        ("posix_and_tmpfs", || two_rounds("posix")),
        ("zero_device", || two_rounds("zero_device")),
        ("read_only_stays_so", || two_rounds("read_only")),
        ("system_v", two_rounds_of_system_v),
        ("system_v_taken_by_others", system_v_taken),
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

fn mark(place: usize, value: u64) {
    // SAFETY: callers pass pages that they have mapped writable.
    unsafe { (place as *mut u64).write_volatile(value) };
}

fn seen(place: usize) -> u64 {
    // SAFETY: callers pass pages that can be read.
    unsafe { (place as *const u64).read_volatile() }
}

fn unmap(place: usize, length: usize) {
    // SAFETY: callers own the range.
    check(unsafe { libc::munmap(place as *mut _, length) }).unwrap();
}

/// Whether the kernel would let a mapping be written.
fn can_be_writable(place: usize) -> bool {
    // SAFETY: the range is the caller's.
    let changed = unsafe { libc::mprotect(place as *mut _, PAGE, READ | WRITE) } == 0;
    if changed {
        // SAFETY: as above.
        check(unsafe { libc::mprotect(place as *mut _, PAGE, READ) }).unwrap();
    }
    changed
}

/// A child that answers with what it sees at a place, and writes one more there.
struct Echo {
    ask: [i32; 2],
    answer: [i32; 2],
}

impl Echo {
    fn start(place: impl Fn() -> usize) -> Self {
        let echo = Echo { ask: pipe(0), answer: pipe(0) };
        let (ask, answer) = (echo.ask[0], echo.answer[1]);
        fork(move || {
            let place = place();
            while take(ask, 1).is_ok_and(|bytes| !bytes.is_empty()) {
                let value = seen(place);
                mark(place, value + 1);
                if put(answer, &value.to_ne_bytes()).is_err() {
                    return 1;
                }
            }
            0
        });
        echo
    }

    fn ask(&self) -> Result<u64, String> {
        put(self.ask[1], b"?").map_err(|error| error.to_string())?;
        let bytes = take(self.answer[0], 8).map_err(|error| error.to_string())?;
        bytes.try_into().map(u64::from_ne_bytes).map_err(|bytes| format!("{bytes:?}"))
    }
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

/// A new segment; with the key 0 one without a key.
fn segment(key: i32, size: usize) -> i32 {
    // SAFETY: plain numbers.
    check(unsafe { libc::shmget(key, size, libc::IPC_CREAT | libc::IPC_EXCL | 0o640) }).unwrap()
}

fn attach(id: i32, flags: i32) -> usize {
    // SAFETY: the kernel chooses the place.
    let place = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    assert_ne!(place, libc::MAP_FAILED, "shmat: {}", Error::last_os_error());
    place as usize
}

fn status(id: i32) -> Result<libc::shmid_ds, String> {
    // SAFETY: zeros are a valid value.
    let mut status: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the answer.
    let result = unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut status) };
    if result < 0 { Err(format!("segment {id}: {}", Error::last_os_error())) } else { Ok(status) }
}

fn remove(id: i32) {
    // SAFETY: the operation reads nothing.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

/// Removes the segment that a fixture has left.
struct Cleaner(std::path::PathBuf);

impl Drop for Cleaner {
    fn drop(&mut self) {
        if let Some(id) = fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok()) {
            remove(id);
        }
    }
}

/// Segments: one that stays, at two places, with an odd size; one that was removed, which only root can make again.
fn system_v(stage: Stage) {
    let key = (0x7643_0000 | (std::process::id() & 0xffff)).cast_signed();
    let id = segment(key, 2 * PAGE + 5);
    stage.publish("segment", &id.to_string());
    let (first, second) = (attach(id, 0), attach(id, libc::SHM_RDONLY));
    mark(first, 40);
    mark(first + 2 * PAGE, 41);
    // A part of it with another protection.
    // SAFETY: the page is ours.
    check(unsafe { libc::mprotect((first + PAGE) as *mut _, PAGE, READ) }).unwrap();
    let echo = Echo::start(move || first);
    let private = is_root().then(|| {
        let id = segment(libc::IPC_PRIVATE, PAGE);
        let place = attach(id, 0);
        mark(place, 50);
        remove(id);
        (id, place)
    });
    let mut value = 40;
    let before = status(id).unwrap();
    stage.serve(move |_| {
        verify!(echo.ask()? == value, "the child sees another value");
        value += 1;
        verify!(
            seen(first) == value && seen(second) == value,
            "both places: {}, {}",
            seen(first),
            seen(second)
        );
        verify!(seen(first + 2 * PAGE) == 41, "the last page");
        verify!(seen(first + PAGE) == 0, "a page that nobody has written has {}", seen(first + PAGE));
        verify!(!can_be_writable(second), "the place that can only be read");
        let now = status(id)?;
        let facts = |status: &libc::shmid_ds| {
            let rights = &status.shm_perm;
            (status.shm_segsz, status.shm_nattch, rights.__key, rights.mode, rights.uid, rights.gid)
        };
        verify!(facts(&now) == facts(&before), "{:?} has become {:?}", facts(&before), facts(&now));
        if let Some((id, place)) = private {
            verify!(seen(place) == 50, "the content of the one that was removed");
            let now = status(id)?;
            verify!(now.shm_nattch == 1 && now.shm_perm.mode & 0o1000 != 0, "the one that was removed");
        }
        // SAFETY: the kernel chooses the place.
        let again = attach(id, 0);
        let value_there = seen(again);
        // SAFETY: the place was attached above.
        unsafe { libc::shmdt(again as *const _) };
        verify!(value_there == value, "attached again it has {value_there}");
        Ok(())
    });
}

fn two_rounds_of_system_v() -> Outcome {
    let mut case = Case::new()?;
    let mut root = case.start("system_v", &[])?;
    let cleaner = Cleaner(case.path("segment"));
    case.ask()?;
    if case.is_control() {
        return case.finish(root);
    }
    // What is written to it meanwhile is not what the program had.
    let image = case.dump(root)?;
    let place = attach(fs::read_to_string(&cleaner.0)?.trim().parse()?, 0);
    for page in 0..3 {
        mark(place + page * PAGE, 99);
    }
    // SAFETY: the place was attached above.
    check(unsafe { libc::shmdt(place as *const _) })?;
    root = case.restore(&image)?;
    case.ask()?;
    if is_root() {
        // Then it has to be made again.
        let image = case.dump(root)?;
        remove(fs::read_to_string(&cleaner.0)?.trim().parse()?);
        root = case.restore(&image)?;
        case.ask()?;
    } else {
        root = case.round(root)?;
    }
    // It goes with the folder otherwise, in which its ID stands.
    drop(cleaner);
    case.finish(root)
}

/// A segment that others use by now is not touched.
fn system_v_taken() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("system_v", &[])?;
    let cleaner = Cleaner(case.path("segment"));
    case.ask()?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.dump(root)?;
    let id: i32 = fs::read_to_string(&cleaner.0)?.trim().parse()?;
    // Something about it has changed since.
    let mut changed = status(id).map_err(crate::harness::Stop::Failed)?;
    changed.shm_perm.uid = 65534;
    // SAFETY: a valid structure of the kind that the operation reads.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut changed) })?;
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?;
    ran.refused(&[5])?;
    ensure!(ran.stderr.contains("System V") && ran.stderr.contains("VC-MEM-005"), "{}", ran.describe());
    ensure!(status(id).is_ok(), "a restore that failed has removed the segment");
    drop(cleaner);
    case.finish_empty()
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
