//! Files behind private mappings: replaced, changed, cut or deleted after the dump, and stored with the image.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::harness::case::{Case, text, two_rounds};
use crate::harness::process::spawn;
use crate::harness::{Outcome, Topic, ensure, need_root};
use crate::stage::kernel::{fork, map, pipe, put, take};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "mapped_files",
    fixtures: &[("mapper", mapper), ("stale", stale), ("relatives", relatives), ("shared", shared)],
    cases: &[
        ("changed_since_is_refused", changed_since),
        ("embedded", embedded),
        ("embedded_and_there", embedded_and_there),
        ("library_was_replaced", library_was_replaced),
        ("deleted_or_cut_before", deleted_or_cut_before),
        ("shared_without_a_name", || two_rounds("shared")),
    ],
};

const PAGE: usize = 4096;
const PAGES: usize = 8;

/// Maps a file of its folder privately; one page of it is its own.
fn mapper(stage: Stage) {
    let file = File::open(stage.path("data")).unwrap();
    let place = map(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, file.as_raw_fd());
    drop(file);
    // SAFETY: the page is mapped writable.
    unsafe { place.wrapping_add(3 * PAGE).write_bytes(0xee, PAGE) };
    let place = place as usize;
    // What it is called changes where its file is not there.
    stage.serve_except(&["memory map", "exe"], move |_| {
        // SAFETY: all of it is mapped readable.
        let bytes = unsafe { std::slice::from_raw_parts(place as *const u8, PAGES * PAGE) };
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let expected = if number == 3 { 0xee } else { number as u8 + 1 };
            verify!(page.iter().all(|&byte| byte == expected), "page {number} begins with {:x}", page[0]);
        }
        Ok(())
    });
}

fn content() -> Vec<u8> {
    (0..PAGES).flat_map(|number| [number as u8 + 1; PAGE]).collect()
}

/// A case with the file, and the fixture as a program of its own that can be deleted.
fn begin() -> Outcome<(Case, PathBuf, i32)> {
    let mut case = Case::new()?;
    let data = case.path("data");
    fs::write(&data, content())?;
    let program = case.path("program");
    fs::copy(&case.fixtures, &program)?;
    case.fixtures = program;
    let pid = spawn(&mut case.fixture("mapper", &[])?)?;
    case.wait_ready("mapper", pid)?;
    case.ask()?;
    Ok((case, data, pid))
}

fn changed_since() -> Outcome {
    type Change = fn(&PathBuf) -> std::io::Result<()>;
    let changes: [(&str, Change); 4] = [
        ("deleted", |path| fs::remove_file(path)),
        ("replaced", |path| {
            let other = path.with_extension("new");
            fs::write(&other, content())?;
            fs::rename(other, path)
        }),
        ("cut", |path| File::options().write(true).open(path)?.set_len(PAGE as u64)),
        ("changed", |path| {
            fs::write(path, content())?;
            File::options().write(true).open(path)?.set_modified(std::time::SystemTime::UNIX_EPOCH)
        }),
    ];
    let (mut case, data, root) = begin()?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.dump(root)?;
    let modified = fs::metadata(&data)?.modified()?;
    for (word, change) in changes {
        change(&data)?;
        for arguments in [&["check", text(&image)][..], &["restore", text(&image), "--detach"]] {
            let ran = case.vckpt(arguments)?;
            ran.refused(&[5])?;
            let named = ran.stderr.contains(text(&data)) && ran.stderr.contains("VC-MEM-002");
            ensure!(named, "a file that was {word} is not named: {}", ran.describe());
        }
        let _ = fs::remove_file(&data);
        fs::write(&data, content())?;
        File::options().write(true).open(&data)?.set_modified(modified)?;
    }
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}

fn embedded() -> Outcome {
    let (mut case, data, root) = begin()?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.dump_with(root, &["--embed-files"])?;
    crate::harness::process::wait_gone(root, std::time::Duration::from_secs(5))?;
    fs::remove_file(&data)?;
    let program = case.fixtures.clone();
    fs::remove_file(&program)?;
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?.good()?;
    let mut root: i32 = ran.stdout.trim().parse()?;
    for path in [&data, &program] {
        ensure!(ran.stderr.contains(text(path)), "it is not told where {} is from", path.display());
    }
    case.ask()?;
    root = case.round(root)?;
    case.finish(root)
}

/// What is there is used, and nothing is said about it.
fn embedded_and_there() -> Outcome {
    let (mut case, _, root) = begin()?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.dump_with(root, &["--embed-files"])?;
    crate::harness::process::wait_gone(root, std::time::Duration::from_secs(5))?;
    let ran = case.vckpt(&["restore", text(&image), "--detach"])?.good()?;
    let root: i32 = ran.stdout.trim().parse()?;
    ensure!(!ran.stderr.contains("comes from the image"), "{}", ran.describe());
    case.ask()?;
    let maps = fs::read_to_string(format!("/proc/{root}/maps"))?;
    ensure!(!maps.contains("(deleted)"), "files are made again though they are there:\n{maps}");
    case.finish(root)
}

/// Two programs map a library that was replaced since, in a folder that is gone or may not be written.
fn library_was_replaced() -> Outcome {
    let mut case = Case::new()?;
    fs::create_dir(case.path("library"))?;
    fs::write(case.path("library/data"), content())?;
    let mut root = case.start("relatives", &[])?;
    fs::set_permissions(case.path("library"), fs::Permissions::from_mode(0o555))?;
    case.ask()?;
    for _ in 0..2 {
        root = case.round(root)?;
    }
    fs::set_permissions(case.path("library"), fs::Permissions::from_mode(0o755))?;
    case.finish(root)
}

/// A parent and a child, each of which has written over another page of a file that has no name any more.
fn relatives(stage: Stage) {
    let path = stage.path("library/data");
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let place =
        map(PAGES * PAGE, protection, libc::MAP_PRIVATE, File::open(&path).unwrap().as_raw_fd()) as usize;
    fs::write(path.with_extension("new"), [9; PAGE]).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    // SAFETY: the pages are mapped writable.
    let write =
        move |page: usize, byte: u8| unsafe { ((place + page * PAGE) as *mut u8).write_bytes(byte, PAGE) };
    // SAFETY: the pages are mapped readable.
    let byte = move |page: usize| unsafe { ((place + page * PAGE) as *const u8).read_volatile() };
    let bytes = move || (0..PAGES).map(byte).collect::<Vec<u8>>();
    let (ask, answer) = (pipe(0), pipe(0));
    fork(move || {
        write(2, 0xcc);
        write(5, 0xcc);
        while take(ask[0], 1).is_ok_and(|bytes| !bytes.is_empty()) {
            if put(answer[1], &bytes()).is_err() {
                return 1;
            }
        }
        0
    });
    write(3, 0xbb);
    write(5, 0xbb);
    stage.serve(move |_| {
        put(ask[1], b"?").map_err(|error| error.to_string())?;
        let child = take(answer[0], PAGES).map_err(|error| error.to_string())?;
        verify!(child == [1, 2, 0xcc, 4, 5, 0xcc, 7, 8], "the child has {child:x?}");
        let own = bytes();
        verify!(own == [1, 2, 3, 0xbb, 5, 0xbb, 7, 8], "the parent has {own:x?}");
        Ok(())
    });
}

fn deleted_or_cut_before() -> Outcome {
    need_root()?;
    two_rounds("stale")
}

/// Files that changed while they were mapped: one that was replaced, one that was cut.
fn stale(stage: Stage) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let open = |name: &str| {
        fs::write(stage.path(name), content()).unwrap();
        map(PAGES * PAGE, protection, libc::MAP_PRIVATE, File::open(stage.path(name)).unwrap().as_raw_fd())
            as usize
    };
    let (replaced, cut) = (open("replaced"), open("cut"));
    fs::write(stage.path("other"), [9; PAGE]).unwrap();
    fs::rename(stage.path("other"), stage.path("replaced")).unwrap();
    // SAFETY: the page is mapped writable.
    unsafe { ((cut + PAGE) as *mut u8).write_bytes(0xdd, PAGE) };
    File::options().write(true).open(stage.path("cut")).unwrap().set_len(3 * PAGE as u64).unwrap();
    stage.serve(move |_| {
        for (place, pages) in [(replaced, PAGES), (cut, 3)] {
            for number in 0..pages {
                // SAFETY: these pages are in the files.
                let byte = unsafe { ((place + number * PAGE) as *const u8).read_volatile() };
                let own = place == cut && number == 1;
                let expected = if own { 0xdd } else { number as u8 + 1 };
                verify!(byte == expected, "page {number} has {byte:x} instead of {expected:x}");
            }
        }
        Ok(())
    });
}

/// A parent and a child share files that nobody has open and whose first name is gone: one of which each maps another
/// part, one that ends before its mapping does, one that has another name.
fn shared(stage: Stage) {
    let open = |name: &str, pages: usize, mapped: usize| {
        let path = stage.path(name);
        fs::write(&path, &content()[..pages * PAGE]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let place =
            map(mapped * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd());
        if name == "linked" {
            fs::hard_link(&path, stage.path("other-name")).unwrap();
        }
        fs::remove_file(path).unwrap();
        place as usize
    };
    let whole = open("whole", PAGES, PAGES);
    let short = open("short", 2, PAGES);
    let linked = open("linked", PAGES, PAGES);
    // SAFETY: the pages are mapped writable.
    let write = move |place: usize, byte: u8| unsafe { (place as *mut u8).write_volatile(byte) };
    // SAFETY: the pages are mapped readable.
    let byte = move |place: usize| unsafe { (place as *const u8).read_volatile() };
    let unmap = move |first: usize, pages: usize| {
        // SAFETY: nobody uses these pages any more.
        assert_eq!(unsafe { libc::munmap((whole + first * PAGE) as *mut _, pages * PAGE) }, 0);
    };
    let (ask, answer) = (pipe(0), pipe(0));
    fork(move || {
        unmap(0, 2);
        while let Ok(asked) = take(ask[0], 1) {
            let Some(&asked) = asked.first() else { break };
            for place in [whole + 2 * PAGE, short + PAGE, linked + PAGE] {
                write(place, asked);
            }
            if put(answer[1], &[byte(whole + 7 * PAGE), byte(linked)]).is_err() {
                return 1;
            }
        }
        0
    });
    unmap(4, 2);
    let other_name = stage.path("other-name");
    stage.serve(move |number| {
        let number = number as u8 + 100;
        write(linked, number);
        put(ask[1], &[number]).map_err(|error| error.to_string())?;
        let child = take(answer[0], 2).map_err(|error| error.to_string())?;
        verify!(child == [8, number], "the child has {child:?}, asked {number}");
        let own = [whole, whole + 2 * PAGE, whole + 3 * PAGE, short, short + PAGE, linked + PAGE].map(byte);
        verify!(own == [1, number, 4, 1, number, number], "the parent has {own:?}, asked {number}");
        let file = fs::read(&other_name).map_err(|error| error.to_string())?;
        verify!(
            file[..1] == [number] && file[PAGE] == number,
            "the file that has another name is not mapped"
        );
        // The file of two pages has not become longer.
        let (ends, reads) = (pipe(0), [PAGE, 2 * PAGE].map(|offset| short + offset));
        let found = reads.map(|place| {
            // SAFETY: the kernel reads the byte, or says that there is none.
            unsafe { libc::write(ends[1], place as *const _, 1) }
        });
        for end in ends {
            // SAFETY: a descriptor of ours.
            unsafe { libc::close(end) };
        }
        verify!(found == [1, -1], "reads behind the end of the file give {found:?}");
        Ok(())
    });
}
