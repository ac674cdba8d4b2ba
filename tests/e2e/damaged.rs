//! Images that must be refused before anything is created: missing, foreign, cut short, flipped, too new.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::case::{Case, text};
use crate::harness::process::children;
use crate::harness::{Outcome, Topic, ensure};

pub(crate) const TOPIC: Topic = Topic {
    name: "damaged",
    fixtures: &[],
    cases: &[
        ("missing", missing),
        ("not_an_image", not_an_image),
        ("truncated", truncated),
        ("one_byte_flipped", one_byte_flipped),
        ("newer_format", newer_format),
        ("trailing_garbage", trailing_garbage),
    ],
};

/// An image of the family fixture, whose processes are gone.
fn image(case: &mut Case) -> Outcome<PathBuf> {
    let root = case.start("family", &[])?;
    case.ask()?;
    case.dump(root)
}

/// Both commands must refuse this file, and no process may come of it.
fn refused(case: &mut Case, file: &Path, codes: &[i32], what: &str) -> Outcome {
    for arguments in [&["check", text(file)][..], &["restore", text(file), "--detach"]] {
        let ran = case.vckpt(arguments)?;
        if let Err(stop) = ran.refused(codes) {
            return crate::harness::fail(format!("{what}: {stop:?}"));
        }
        let own = i32::try_from(std::process::id())?;
        ensure!(children(own).is_empty(), "{what}: a refused restore left processes");
    }
    Ok(())
}

fn missing() -> Outcome {
    let mut case = Case::new()?;
    let file = case.path("absent.vckpt");
    refused(&mut case, &file, &[2, 5, 6], "a missing image")?;
    case.finish_empty()
}

fn not_an_image() -> Outcome {
    let mut case = Case::new()?;
    let file = case.path("foreign.vckpt");
    for (what, bytes) in [
        ("an empty file", Vec::new()),
        ("a text", b"This is no image at all.\n".repeat(500)),
        ("zeros", vec![0; 100_000]),
        ("a program", fs::read("/bin/true")?),
    ] {
        fs::write(&file, bytes)?;
        refused(&mut case, &file, &[6], what)?;
    }
    let folder = case.path("folder.vckpt");
    fs::create_dir(&folder)?;
    refused(&mut case, &folder, &[2, 5, 6], "a folder")?;
    case.finish_empty()
}

fn truncated() -> Outcome {
    let mut case = Case::new()?;
    let whole = image(&mut case)?;
    let bytes = fs::read(&whole)?;
    let file = case.path("short.vckpt");
    let length = bytes.len();
    let mut lengths = vec![0, 1, 7, 8, 16, 31, 63, 64, 100, 511, 512, 4095, 4096, 4097, 8192];
    lengths.extend((1..20).map(|part| length * part / 20));
    lengths.extend([1, 2, 4, 8, 16, 32, 64, 100, 4096].map(|end| length - end));
    for shorter in lengths.into_iter().filter(|&shorter| shorter < length) {
        fs::write(&file, &bytes[..shorter])?;
        refused(&mut case, &file, &[6], &format!("the first {shorter} of {length} bytes"))?;
    }
    let root = case.restore(&whole)?;
    case.ask()?;
    case.finish(root)
}

fn one_byte_flipped() -> Outcome {
    let mut case = Case::new()?;
    let whole = image(&mut case)?;
    let mut bytes = fs::read(&whole)?;
    let file = case.path("flipped.vckpt");
    let length = bytes.len();
    // The beginning and the end densely, the rest spread by a step without common factor with the page size.
    let spread = (0..30).map(|part| (length * part / 30 + part * 127) % length);
    let positions: Vec<usize> =
        (0..20).map(|part| part * 3).chain(spread).chain((1..=12).map(|end| length - end * 5)).collect();
    for position in positions {
        let bit = 1 << (position % 8);
        bytes[position] ^= bit;
        fs::write(&file, &bytes)?;
        bytes[position] ^= bit;
        // Padding between parts may be outside any checksum, but must then be known to be zero: also refused.
        refused(&mut case, &file, &[5, 6], &format!("bit {bit:#x} of byte {position} of {length} flipped"))?;
    }
    let root = case.restore(&whole)?;
    case.ask()?;
    case.finish(root)
}

/// The header says that it comes from a later format: the words must say so, whatever else is wrong.
fn newer_format() -> Outcome {
    let mut case = Case::new()?;
    let whole = image(&mut case)?;
    let bytes = fs::read(&whole)?;
    let file = case.path("newer.vckpt");
    // Magic of eight bytes, then the version as a little-endian integer.
    let mut newer = bytes.clone();
    newer[8] = 99;
    fs::write(&file, &newer)?;
    refused(&mut case, &file, &[6], "a newer format")?;
    let ran = case.vckpt(&["check", text(&file)])?;
    ensure!(ran.stderr.contains("99"), "the version is not named: {}", ran.describe());
    case.finish_empty()
}

fn trailing_garbage() -> Outcome {
    let mut case = Case::new()?;
    let whole = image(&mut case)?;
    let mut bytes = fs::read(&whole)?;
    bytes.extend_from_slice(&[0; 100]);
    let file = case.path("longer.vckpt");
    fs::write(&file, &bytes)?;
    refused(&mut case, &file, &[6], "100 bytes more than there should be")?;
    case.finish_empty()
}
