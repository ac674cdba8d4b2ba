//! The extended state of the processor: x87 and MMX, SSE, AVX, AVX-512, protection keys, AMX, with control words, in
//! threads that never make a call and in threads that wait in one. What the processor itself saves is compared.

use std::alloc::{Layout, alloc_zeroed};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::slice::from_raw_parts;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vckpt_image_format::record::snapshot::Snapshot;

use crate::harness::case::{Case, text, two_rounds_with};
use crate::harness::image::rewrite;
use crate::harness::process::children;
use crate::harness::{Outcome, Topic, ensure, skip};
use crate::stage::kernel::{check, pipe, put, take};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "processor",
    fixtures: &[("extended", extended), ("permitted", permitted)],
    cases: &[
        ("states_of_threads", || two_rounds_with("extended", &[])),
        ("states_left_running", || left_running(&[])),
        ("tiles", || with_tiles(|| two_rounds_with("extended", &["tiles"]))),
        ("tiles_left_running", || with_tiles(|| left_running(&["tiles"]))),
        ("tiles_that_are_permitted", || with_tiles(|| two_rounds_with("permitted", &[]))),
        ("features_that_a_host_lacks", features_that_a_host_lacks),
    ],
};

/// Components of the state (bits of XCR0).
const KEYS: u32 = 9;
const TILE_CONFIGURATION: u32 = 17;
const TILES: u32 = 18;
const ALL_TILES: u64 = 1 << TILE_CONFIGURATION | 1 << TILES;
/// `ARCH_GET_XCOMP_SUPP`, `ARCH_REQ_XCOMP_PERM`.
const GET_SUPPORTED: u32 = 0x1021;
const REQUEST: u32 = 0x1023;
/// Where parts of the state are when it is saved (XSAVE, standard format).
const CONTROL: usize = 0;
const TAGS: usize = 4;
const SSE_CONTROL: usize = 24;
const REGISTERS: std::ops::Range<usize> = 32..416;
const HEADER: usize = 512;

/// The components that the kernel keeps for programs.
fn components() -> u64 {
    let mut components = 0_u64;
    // SAFETY: a place for one word.
    check(unsafe { libc::syscall(libc::SYS_arch_prctl, GET_SUPPORTED, &raw mut components) }).unwrap();
    components
}

fn request_tiles() -> std::io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) }).map(drop)
}

/// Whether this machine has AMX.
pub(crate) fn has_tiles() -> bool {
    components() & ALL_TILES == ALL_TILES
}

fn with_tiles(case: fn() -> Outcome) -> Outcome {
    if has_tiles() { case() } else { skip("AMX") }
}

/// Room for a saved state.
#[derive(Clone, Copy)]
struct Room(*mut u8, usize);

// SAFETY: nobody but the thread that has it uses the memory.
unsafe impl Send for Room {}

impl Room {
    fn new() -> Self {
        let length = __cpuid_count(0xd, 0).ecx as usize;
        // SAFETY: the length is not zero.
        Room(unsafe { alloc_zeroed(Layout::from_size_align(length, 64).unwrap()) }, length)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as much was allocated, for ever.
        unsafe { from_raw_parts(self.0, self.1) }
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.1);
        // SAFETY: it is within what was allocated, and nobody else has it.
        unsafe { self.0.add(offset).copy_from(bytes.as_ptr(), bytes.len()) };
    }
}

/// Where a component is.
fn place(component: u32) -> std::ops::Range<usize> {
    let leaf = __cpuid_count(0xd, component);
    leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize
}

fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        (word >> 24) as u8
    })
}

/// A state in which everything is something else for each seed.
fn pattern(seed: u64, tiles: bool) -> (Room, u64) {
    let room = Room::new();
    let all = components() & if tiles { u64::MAX } else { !ALL_TILES };
    let mut noise = noise(seed);
    let mut some = |length: usize| -> Vec<u8> { noise.by_ref().take(length).collect() };
    // Precision and rounding; all exceptions masked.
    let controls: [(u16, u32); 3] = [(0x0f7f, 0x9fc0), (0x027f, 0x7f80), (0x0b7f, 0x3f80)];
    let (control, sse) = controls[seed as usize % 3];
    room.put(CONTROL, &control.to_le_bytes());
    // Every x87 register is in use.
    room.put(TAGS, &[0xff]);
    room.put(SSE_CONTROL, &sse.to_le_bytes());
    for register in 0..8 {
        room.put(REGISTERS.start + register * 16, &some(10));
    }
    room.put(REGISTERS.start + 128, &some(256));
    for component in (2..63).filter(|component| all & 1 << component != 0) {
        let place = place(component);
        match component {
            // The first keys stay open: memory has them.
            KEYS => room.put(place.start, &(0x5555_0000_u32 | 0x1100 << (seed % 3)).to_le_bytes()),
            TILE_CONFIGURATION => {
                // Palette 1; eight tiles of 64 bytes by 16 rows.
                let mut configuration = [0_u8; 64];
                configuration[0] = 1;
                for tile in 0..8 {
                    configuration[16 + 2 * tile] = 64;
                    configuration[48 + tile] = 16;
                }
                room.put(place.start, &configuration);
            }
            _ => room.put(place.start, &some(place.len())),
        }
    }
    room.put(HEADER, &all.to_le_bytes());
    (room, all)
}

/// The first difference between two states.
fn difference(one: &[u8], other: &[u8], all: u64) -> Option<String> {
    let parts = [(CONTROL, 2, "x87 control"), (TAGS, 1, "x87 tags"), (SSE_CONTROL, 4, "MXCSR")];
    let parts = parts.map(|(start, length, name)| (start..start + length, name.to_owned()));
    let component = |number: &u32| all & 1 << number != 0;
    let components = (2..63).filter(component).map(|number| (place(number), format!("component {number}")));
    parts
        .into_iter()
        .chain([(REGISTERS, "x87 and SSE registers".to_owned())])
        .chain(components)
        .find(|(place, _)| one[place.clone()] != other[place.clone()])
        .map(|(place, name)| {
            let offset = place.clone().find(|&offset| one[offset] != other[offset]).unwrap_or(0);
            format!("{name} at {}: {:x} instead of {:x}", offset - place.start, other[offset], one[offset])
        })
}

/// Takes up a state, makes `turns` turns and, if `descriptor` is one, reads a byte from it; tells the state after that.
fn live(state: Room, after: Room, turns: u64, descriptor: i64) {
    let own = Room::new();
    let mut byte = 0_u64;
    // SAFETY: the state that the compiler knows is saved before and taken up again at the end; all rooms are as large as
    // the processor wants; what is between uses named registers only.
    unsafe {
        asm!(
            "xsave64 [{own}]",
            "xrstor64 [{state}]",
            "2:",
            "sub {turns}, 1",
            "jnz 2b",
            "test edi, edi",
            "js 4f",
            "3:",
            "mov rax, {number}",
            "mov r8, rdx",
            "mov edx, 1",
            "syscall",
            "mov rdx, r8",
            "4:",
            "mov eax, -1",
            "xsave64 [{after}]",
            "xrstor64 [{own}]",
            own = in(reg) own.0,
            state = in(reg) state.0,
            after = in(reg) after.0,
            turns = inout(reg) turns => _,
            number = const libc::SYS_read,
            inout("rax") 0xffff_ffff_u64 => _,
            in("rdx") 0xffff_ffff_u64,
            in("rdi") descriptor,
            in("rsi") &raw mut byte,
            out("rcx") _,
            out("r8") _,
            out("r11") _,
        );
        std::alloc::dealloc(own.0, Layout::from_size_align(own.1, 64).unwrap());
    }
}

static ROUNDS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static BROKEN: Mutex<String> = Mutex::new(String::new());

fn compare(name: &str, state: Room, after: Room, all: u64) {
    if let Some(difference) = difference(state.bytes(), after.bytes(), all) {
        *BROKEN.lock().unwrap() = format!("{name}: {difference}");
    }
}

/// Threads that spin and threads that wait, each with a state of its own.
fn extended(stage: Stage) {
    let tiles = stage.arguments.iter().any(|word| word == "tiles");
    if tiles {
        request_tiles().unwrap();
    }
    for (rounds, seed) in ROUNDS.iter().zip(1..) {
        let (state, all) = pattern(seed, tiles);
        let after = Room::new();
        thread(move || {
            loop {
                live(state, after, 300_000, -1);
                compare("a thread that spins", state, after, all);
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let (answers, waiting): (_, Vec<_>) = (pipe(0), (10..13).map(|seed| (seed, pipe(0))).collect());
    for (seed, [from, _]) in waiting.clone() {
        let (state, all) = pattern(seed, tiles);
        let after = Room::new();
        thread(move || {
            loop {
                live(state, after, 1, from.into());
                compare("a thread that waits", state, after, all);
                put(answers[1], b"!").unwrap();
            }
        });
    }
    stage.serve(move |_| -> Verdict {
        for (_, [_, to]) in &waiting {
            put(*to, b"?").map_err(|error| error.to_string())?;
            take(answers[0], 1).map_err(|error| error.to_string())?;
        }
        let before = ROUNDS.each_ref().map(|rounds| rounds.load(Ordering::SeqCst));
        let start = Instant::now();
        // One round may have begun before the stop; the next one has not.
        while ROUNDS.iter().zip(before).any(|(rounds, before)| rounds.load(Ordering::SeqCst) < before + 2) {
            verify!(start.elapsed().as_secs() < 10, "a thread stands still");
            std::thread::yield_now();
        }
        let broken = BROKEN.lock().unwrap();
        verify!(broken.is_empty(), "{broken}");
        Ok(())
    });
}

/// May use tiles, and does so for the first time in a new thread after a restore.
fn permitted(stage: Stage) {
    request_tiles().unwrap();
    stage.serve_except(&["memory map"], |number| {
        if number < 3 {
            return Ok(());
        }
        let (state, all) = pattern(5, true);
        let after = Room::new();
        live(state, after, 1000, -1);
        difference(state.bytes(), after.bytes(), all).map_or(Ok(()), Err)
    });
}

fn left_running(arguments: &[&str]) -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("extended", arguments)?;
    for _ in 0..5 {
        case.dump_with(root, &["--leave-running"])?;
        case.ask()?;
    }
    case.finish(root)
}

/// Images of a host that has what no processor has: refused by name before anything is made.
fn features_that_a_host_lacks() -> Outcome {
    let mut case = Case::new()?;
    let root = case.start("plain-counter", &[])?;
    let image = case.dump(root)?;
    if case.is_control() {
        return case.finish(root);
    }
    for name in ["bit 40", "tea_making"] {
        let changed = case.path("changed.vckpt");
        rewrite(&image, &changed, |mut snapshot: Snapshot| {
            if name == "bit 40" {
                snapshot.xstate_features |= 1 << 40;
            } else {
                snapshot.processor_features.push(name.to_owned());
            }
            snapshot
        })?;
        for arguments in [&["check", text(&changed)][..], &["restore", text(&changed), "--detach"]] {
            let ran = case.vckpt(arguments)?;
            ran.refused(&[5])?;
            let named = ran.stderr.contains("VC-CPU-001") && ran.stderr.contains(name);
            ensure!(named, "{name} is not named: {}", ran.describe());
            let own = i32::try_from(std::process::id())?;
            ensure!(children(own).is_empty(), "a refused restore left processes");
        }
    }
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}
