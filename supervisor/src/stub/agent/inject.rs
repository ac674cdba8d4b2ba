//! Putting stubs into threads, into many at the same time.

use super::calls::{RemoteCall, run_to_calls};
use super::{Agent, read_exact, write_exact};
use crate::error::{Error, Problems, Result, code};
use crate::stub::batch::Batch;
use crate::stub::channel::Channel;
use crate::stub::task_state::TaskState;
use crate::sys::process;
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::{self, Gadgets, RED_ZONE, WayHome};
use crate::tracee::stack::Room;
use crate::waits::resume;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::BorrowedFd;
use vckpt_parasite::protocol::{self, Boot, mode};

/// What a process offers to the agents in its threads.
#[derive(Debug, Clone, Copy)]
pub struct Host<'process> {
    /// `/proc/<pid>/mem`, open for reading and writing.
    pub memory: &'process File,
    /// A descriptor for the process.
    pub pidfd: BorrowedFd<'process>,
    /// Instructions of its own.
    pub gadgets: Gadgets,
}

/// A stub to be put into a thread.
#[derive(Debug)]
pub struct Injection<'process> {
    /// The thread.
    pub agent: &'process mut Agent,
    /// Its process.
    pub host: Host<'process>,
    /// Where `protocol::AREA_LENGTH` bytes are free, or an area is already.
    pub area: u64,
    /// What lies below its stack pointer.
    pub room: Room,
}

/// Bytes of a `struct timespec`.
const TIME_LENGTH: u64 = 16;
/// The code can be executed, all the rest written to.
const EXECUTABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MAPPING: i32 =
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;

/// Stubs that start side by side: until each has closed the descriptor that is for us, its process has two for it.
const AT_ONCE: usize = 16;

/// Lets threads make their areas by calls of their own, and puts the stubs there. Whatever fails, [`remove`] takes all
/// of it away again.
///
/// # Errors
/// [`code::TARGET_LIMITS`] or [`code::INJECT`] if a target refuses a call; if a thread is gone. All threads at once.
///
/// [`remove`]: super::remove
pub fn inject(mut injections: Vec<Injection<'_>>) -> Result<()> {
    let mut problems = Problems::new();
    for injection in &mut injections {
        problems.take(injection.lay_frames());
    }
    problems.finish()?;
    make_areas(&mut injections)?;
    let mut problems = Problems::new();
    for injection in injections.iter_mut().filter(|injection| injection.room != Room::OwnStack) {
        // What lies there may be somebody's: it comes back at once, now that there is another place.
        injection.agent.foothold.way_home = None;
        problems.take(injection.agent.take_frames_back(injection.host.memory));
    }
    problems.finish()?;
    start(injections)
}

/// Puts stubs into threads whose areas another thread has [made](Agent::gets_area).
///
/// # Errors
/// As [`inject`].
pub fn inject_into_areas(injections: Vec<Injection<'_>>) -> Result<()> {
    start(injections)
}

/// The batch by which another thread of the process makes an area.
#[must_use]
pub fn area_batch(area: u64) -> Batch {
    let mut batch = Batch::new();
    let length = protocol::AREA_LENGTH.into();
    let arguments = [area.into(), length, EXECUTABLE.into(), MAPPING.into(), (-1).into(), 0.into()];
    batch.must("making room for a stub", libc::SYS_mmap, arguments);
    let (rest, length) = rest(area);
    batch.must(
        "protecting the data of a stub",
        libc::SYS_mprotect,
        [rest.into(), length.into(), WRITABLE.into()],
    );
    batch
}

/// Address and length of what is not code.
fn rest(area: u64) -> (u64, u64) {
    let code = protocol::CODE_LENGTH as u64;
    (area + code, protocol::AREA_LENGTH as u64 - code)
}

/// Code first and data second: what can be written to may not become code where that is forbidden (`PR_SET_MDWE`).
fn make_areas(injections: &mut [Injection<'_>]) -> Result<()> {
    let word = |number: i32| i64::from(number).cast_unsigned();
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let maps = number == libc::SYS_mmap;
        let mut calls = Vec::with_capacity(injections.len());
        for injection in injections.iter_mut() {
            let area = injection.area;
            let (rest, length) = rest(area);
            let arguments = if maps {
                [area, protocol::AREA_LENGTH as u64, word(EXECUTABLE), word(MAPPING), u64::MAX, 0]
            } else {
                [rest, length, word(WRITABLE), 0, 0, 0]
            };
            let stack = injection.agent.foothold.way_home.map(|(address, _)| address);
            let call = RemoteCall { number, arguments, stack };
            let registers = call.registers(&injection.agent.own.registers, injection.host.gadgets);
            calls.push((&mut *injection.agent, registers));
        }
        let results = run_to_calls(&mut calls);
        let mut problems = Problems::new();
        for (injection, result) in injections.iter_mut().zip(results) {
            let expected = if maps { injection.area } else { 0 };
            let Some(result) = problems.take(result) else { continue };
            if result.cast_unsigned() != expected {
                problems.push(injection.agent.refused("making room for the stub", result));
            } else if maps {
                injection.agent.foothold.area = Some((injection.area, true));
            }
        }
        problems.finish()?;
    }
    Ok(())
}

/// Starts the stubs in their areas, and takes their sockets.
fn start(mut injections: Vec<Injection<'_>>) -> Result<()> {
    let mut problems = Problems::new();
    for injections in injections.chunks_mut(AT_ONCE) {
        let mut hosts = Vec::with_capacity(injections.len());
        let mut calls = Vec::with_capacity(injections.len());
        for injection in injections {
            let prepared = injection.prepare_start();
            let Some(registers) = problems.take(prepared) else { continue };
            hosts.push((injection.host, injection.area));
            calls.push((&mut *injection.agent, registers));
        }
        let results = run_to_calls(&mut calls);
        for (((agent, _), result), (host, area)) in calls.into_iter().zip(results).zip(hosts) {
            problems.take(result.and_then(|result| agent.take_socket(host, area, result)));
        }
    }
    problems.finish()
}

impl Injection<'_> {
    /// Writes the frames of the way home below the red zone, if there is room.
    fn lay_frames(&mut self) -> Result<()> {
        let Self { agent, host, area, room } = self;
        agent.room = Some(*room);
        agent.gadgets = Some(host.gadgets);
        if *room == Room::None {
            return Ok(());
        }
        let top = agent.own.registers.rsp.wrapping_sub(RED_ZONE);
        let frames = agent.way_home(top, host.gadgets, (*area, protocol::AREA_LENGTH as u64));
        let mut overwritten = vec![0; frames.bytes.len()];
        read_exact(host.memory, frames.address, &mut overwritten)?;
        agent.foothold.on_stack = Some((frames.address, overwritten));
        agent.foothold.way_home = Some((frames.address, stub_home(&frames, host.gadgets)));
        write_exact(host.memory, frames.address, &frames.bytes)
    }

    /// Fills the area; gives the registers with which the stub starts there.
    fn prepare_start(&mut self) -> Result<Registers> {
        let Self { agent, host, area, room } = self;
        let area = *area;
        agent.room = Some(*room);
        agent.gadgets = Some(host.gadgets);
        let home = match agent.foothold.way_home {
            Some((_, home)) => home,
            None => {
                let top = area + protocol::AREA_LENGTH as u64;
                // The frames have to stay, so the area is unmapped up to them.
                let frames = agent.way_home(top, host.gadgets, (area, protocol::FRAMES_OFFSET as u64));
                write_exact(host.memory, frames.address, &frames.bytes)?;
                let home = stub_home(&frames, host.gadgets);
                agent.foothold.way_home = Some((frames.address, home));
                home
            }
        };
        let boot = Boot {
            magic: protocol::BOOT_MAGIC,
            version: protocol::VERSION,
            mode: mode::AGENT,
            socket: -1,
            peer: -1,
            area,
            home,
            epitaph: 0,
            epitaph_detail: 0,
        };
        let boot_address = area + protocol::BOOT_OFFSET as u64;
        write_exact(host.memory, area, vckpt_parasite::STUB_IMAGE)?;
        write_exact(host.memory, boot_address, &boot.to_bytes())?;
        let mut registers = agent.own.registers;
        registers.rip = area + vckpt_parasite::ENTRY_OFFSET as u64;
        registers.rsp = area + (protocol::STACK_OFFSET + protocol::STACK_LENGTH) as u64;
        registers.rdi = boot_address;
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x400;
        Ok(registers)
    }
}

/// Where the stub goes home: without a `rt_sigreturn` of the program there is nothing that could unmap its area.
fn stub_home(frames: &WayHome, gadgets: Gadgets) -> u64 {
    if gadgets.signal_return == 0 { frames.second } else { frames.first }
}

impl Agent {
    /// Notes that another thread is about to make the area of this one.
    pub fn gets_area(&mut self, area: u64) {
        self.foothold.area = Some((area, false));
    }

    /// Takes the socket of a stub that has just made its pair with this result, and lets it go on.
    fn take_socket(&mut self, host: Host<'_>, area: u64, result: i64) -> Result<()> {
        if result != 0 {
            return Err(self.refused("making the socket pair of the stub", result));
        }
        let mut bytes = [0; size_of::<Boot>()];
        read_exact(host.memory, area + protocol::BOOT_OFFSET as u64, &mut bytes)?;
        let boot =
            Boot::from_bytes(&bytes).ok_or_else(|| Error::new(code::INJECT, "the boot page is damaged"))?;
        // The last is closed first: a thread that goes home from a remote call closes nothing any more.
        self.foothold.descriptors = vec![boot.peer, boot.socket];
        let socket = process::pidfd_getfd(host.pidfd, boot.peer).map_err(|errno| {
            Error::system(code::INJECT, "fetching the socket of the stub", errno).about(self.subject())
        })?;
        self.step(|_, stopped| Ok(TaskState::Running(stopped.resume(0)?)))?;
        self.foothold.channel = Some(Channel::new(socket));
        Ok(())
    }

    /// Frames below `top` that take the thread home; the time that is left of a wait lies above them.
    fn way_home(&self, top: u64, gadgets: Gadgets, unmapped: (u64, u64)) -> WayHome {
        let time = top.wrapping_sub(TIME_LENGTH) & !(TIME_LENGTH - 1);
        let (home, bytes) = resume::anew(&self.own.registers, self.own.wait.as_ref(), time);
        let mut frames =
            sigframe::way_home(time, &home, &self.own.xstate, self.own.signal_mask, gadgets, unmapped);
        frames.put_on_top(time, &bytes);
        frames
    }

    fn refused(&self, what: &str, result: i64) -> Box<Error> {
        let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
        let short = [Errno::EMFILE, Errno::ENOMEM, Errno::EAGAIN].contains(&errno);
        let code = if short { code::TARGET_LIMITS } else { code::INJECT };
        Error::system(code, what, errno).about(self.subject())
    }
}
