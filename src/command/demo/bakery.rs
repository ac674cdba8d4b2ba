//! The workload of the demonstration: a bakery of three processes that works until it is told to close.
//!
//! The master has bread in the oven (a timer) and two children. The baker writes numbered loaves into a small pipe,
//! mostly waiting until there is room. The shop sells one a millisecond and notes each sale in the book, a file that
//! it writes at its offset; a clock (a periodic timer with a thread) and a washer (a thread that checks and changes
//! 4 MiB of memory all the time) put their counts into the same line. Nothing here knows about checkpoints.

use crate::cli::Role;
use crate::failure::{Failure, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

/// How long the bread takes.
pub(super) const OVEN: Duration = Duration::from_millis(2000);
/// The files that the bakery writes, in its current directory.
pub(super) const BOOK_FILE: &str = "book";
/// See [`BOOK_FILE`].
pub(super) const OVEN_FILE: &str = "oven";
/// The last line of the book.
pub(super) const CLOSED: &str = "closed";

/// The time between two ticks of the clock.
const TICK: Duration = Duration::from_millis(5);
/// The pipe holds one page, so that the baker soon has to wait.
const SHELF: usize = 4096;
/// Words that the washer checks: 4 MiB.
const DISHES: usize = 512 * 1024;
/// Words that the washer checks at once.
const TRAY: usize = 8 * 1024;

/// Runs one of the processes.
pub(crate) fn run(role: Role) -> Result<ExitCode> {
    let name = match role {
        Role::Master => c"bakery",
        Role::Baker => c"baker",
        Role::Shop => c"shop",
    };
    prctl::set_name(name).map_err(io::Error::from)?;
    match role {
        Role::Master => master(),
        Role::Baker => baker(),
        Role::Shop => shop(),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the others, waits for the bread, and closes when it is told to.
fn master() -> Result<()> {
    nix::unistd::setsid().map_err(io::Error::from)?;
    let signals: SigSet = [Signal::SIGALRM, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().map_err(io::Error::from)?;
    let (reader, writer) = io::pipe()?;
    rustix::pipe::fcntl_setpipe_size(&writer, SHELF).map_err(io::Error::from)?;
    let mut baker = member(Role::Baker)?.stdin(Stdio::null()).stdout(writer).spawn()?;
    let mut shop = member(Role::Shop)?.stdin(reader).stdout(Stdio::null()).spawn()?;

    let mut oven = File::create(OVEN_FILE)?;
    let timer = timer(Expiration::OneShot(TimeSpec::from_duration(OVEN)))?;
    writeln!(oven, "in {}", super::stage::now().as_nanos())?;
    while signals.wait().map_err(io::Error::from)? == Signal::SIGALRM {
        writeln!(oven, "ready {}", super::stage::now().as_nanos())?;
    }
    drop(timer);
    baker.kill()?;
    baker.wait()?;
    let status = shop.wait()?;
    if status.success() { Ok(()) } else { Err(Failure::message(format!("the shop ended with {status}"))) }
}

fn member(role: Role) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("vckpt").args(["bakery", role.word()]);
    Ok(command)
}

/// Bakes for ever.
fn baker() -> Result<()> {
    let mut shelf = io::stdout().lock();
    for loaf in 1_u64.. {
        shelf.write_all(format!("loaf {loaf}\n").as_bytes())?;
        shelf.flush()?;
    }
    Ok(())
}

/// Sells loaves until there are no more.
fn shop() -> Result<()> {
    static TICKS: AtomicU64 = AtomicU64::new(0);
    static WASHED: AtomicU64 = AtomicU64::new(0);
    let alarm: SigSet = [Signal::SIGALRM].into_iter().collect();
    alarm.thread_block().map_err(io::Error::from)?;
    thread::Builder::new().name("clock".to_owned()).spawn(|| tick(&TICKS))?;
    thread::Builder::new().name("washer".to_owned()).spawn(|| wash(&WASHED))?;

    let mut book = OpenOptions::new().write(true).create_new(true).open(BOOK_FILE)?;
    for line in BufReader::with_capacity(256, io::stdin().lock()).lines() {
        let line = line?;
        let loaf = line.strip_prefix("loaf ").unwrap_or("?");
        let (ticks, washed) = (TICKS.load(Ordering::Relaxed), WASHED.load(Ordering::Relaxed));
        book.write_all(format!("{loaf} {ticks} {washed}\n").as_bytes())?;
        sleep(Duration::from_millis(1));
    }
    Ok(writeln!(book, "{CLOSED}")?)
}

/// Counts the expirations of a periodic timer; without a timer, none.
fn tick(ticks: &AtomicU64) {
    let Ok(timer) = timer(Expiration::Interval(TimeSpec::from_duration(TICK))) else { return };
    let alarm: SigSet = [Signal::SIGALRM].into_iter().collect();
    while alarm.wait().is_ok() {
        let missed = u64::try_from(timer.overruns()).unwrap_or(0);
        ticks.fetch_add(1 + missed, Ordering::Relaxed);
    }
}

/// Checks that memory is as it was left, and changes it; stops counting when it is not.
fn wash(washed: &AtomicU64) {
    let mut dishes = vec![0_u64; DISHES];
    for round in 0_u64.. {
        for (number, tray) in dishes.chunks_mut(TRAY).enumerate() {
            let mark = |round: u64| round << 16 | u64::try_from(number).unwrap_or(0);
            let clean = if round == 0 { 0 } else { mark(round) };
            if tray.iter().any(|&dish| dish != clean) {
                return;
            }
            tray.fill(mark(round + 1));
            washed.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_micros(500));
        }
    }
}

/// A timer that sends `SIGALRM`.
fn timer(expiration: Expiration) -> Result<Timer> {
    let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).map_err(io::Error::from)?;
    timer.set(expiration, TimerSetTimeFlags::empty()).map_err(io::Error::from)?;
    Ok(timer)
}
