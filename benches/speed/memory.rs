//! Much random memory: rates, compared with plain loops over the same bytes in the same round.

use super::Outcome;
use super::options::Options;
use super::stage::{Folder, Program};
use super::table::{Table, Target, milliseconds, ratios};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The part of the plain loops' rates that is wanted.
const WANTED: f64 = 0.7;
const CHUNK: usize = 1 << 20;

/// Times of all rounds.
#[derive(Default)]
struct Times {
    loops: Vec<Duration>,
    safe_loops: Vec<Duration>,
    dumps: Vec<Duration>,
    reads: Vec<Duration>,
    restores: Vec<Duration>,
}

/// A process with much memory, dumped and restored.
pub(crate) fn measure(options: &Options, table: &mut Table) -> Outcome {
    for within in &options.folders {
        let folder = Folder::new(within)?;
        let mut times = Times::default();
        let size = options.size.to_string();
        for round in 0..options.rounds(5) {
            measure_round(&folder, &size, options.size << 20, round, &mut times)?;
        }
        show(&times, &format!("{size} MiB, {}", within.display()), table);
    }
    Ok(())
}

fn measure_round(folder: &Folder, size: &str, length: usize, round: usize, times: &mut Times) -> Outcome {
    let image = folder.file("memory.vckpt");
    let (program, address) = Program::fixture(folder, &["memory", size])?;
    let address = usize::try_from(address)?;
    let yard = |times: &mut Times| {
        let (copied, safe) = copy_out(program.pid(), address, length, &folder.file("plain"))?;
        times.loops.push(copied);
        times.safe_loops.push(safe);
        Ok::<(), Box<dyn std::error::Error>>(())
    };
    // What comes first finds the machine in another state.
    if round.is_multiple_of(2) {
        yard(times)?;
        times.dumps.push(program.dump(&image)?);
        times.reads.push(read_in(&image, length)?);
        times.restores.push(Program::restore(&image)?);
    } else {
        times.dumps.push(program.dump(&image)?);
        times.restores.push(Program::restore(&image)?);
        times.reads.push(read_in(&image, length)?);
        fs::remove_file(&image)?;
        yard(times)?;
    }
    Ok(())
}

fn show(times: &Times, what: &str, table: &mut Table) {
    let Times { loops, safe_loops, dumps, reads, restores } = times;
    let none = Target::None;
    table.row(&format!("dump {what}"), "ms", &milliseconds(dumps), none);
    table.row("  readv + write", "ms", &milliseconds(loops), none);
    table.row("  readv + write + fdatasync", "ms", &milliseconds(safe_loops), none);
    table.row("  rate / readv + write", "", &ratios(loops, dumps), Target::AtLeast(WANTED));
    table.row("  rate / readv + write + fdatasync", "", &ratios(safe_loops, dumps), none);
    table.row(&format!("restore {what}"), "ms", &milliseconds(restores), none);
    table.row("  read", "ms", &milliseconds(reads), none);
    table.row("  rate / read", "", &ratios(reads, restores), Target::AtLeast(WANTED));
}

/// The time of a plain loop that copies the memory into a new file, without and with making the file safe.
fn copy_out(pid: Pid, address: usize, length: usize, path: &Path) -> Outcome<(Duration, Duration)> {
    let mut buffer = vec![0; CHUNK];
    let begin = Instant::now();
    let mut file = File::create(path)?;
    for start in (0..length).step_by(CHUNK) {
        let part = CHUNK.min(length - start);
        let remote = [RemoteIoVec { base: address + start, len: part }];
        let bytes = buffer.get_mut(..part).unwrap_or_default();
        let count = process_vm_readv(pid, &mut [IoSliceMut::new(bytes)], &remote)?;
        file.write_all(buffer.get(..count).unwrap_or_default())?;
    }
    let copied = begin.elapsed();
    file.sync_data()?;
    let safe = begin.elapsed();
    fs::remove_file(path)?;
    Ok((copied, safe))
}

/// The time of reading so much of a file into fresh memory.
fn read_in(path: &Path, length: usize) -> Outcome<Duration> {
    let mut file = File::open(path)?;
    let begin = Instant::now();
    let mut memory = vec![0; length];
    for part in memory.chunks_mut(CHUNK) {
        file.read_exact(part)?;
    }
    let time = begin.elapsed();
    std::hint::black_box(&memory);
    Ok(time)
}
