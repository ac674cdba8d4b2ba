//! Putting stubs into threads, into many at the same time.

use super::calls::{RemoteCall, run_to_calls};
use super::{Agent, Injected, read_exact, write_exact};
use crate::error::{Error, Problems, Result, code};
use crate::stub::batch::Batch;
use crate::stub::channel::Channel;
use crate::stub::task_state::TaskState;
use crate::sys::process;
use crate::sys::ptrace::Registers;
use crate::tracee::sigframe::{self, Gadgets, RED_ZONE, WayHome};
use crate::tracee::stack::Room;
use crate::waits::resume;
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

/// Frames that lie in the memory of a thread, and what was there before.
type Laid = (WayHome, Vec<u8>);

/// Bytes of a `struct timespec`.
const TIME_LENGTH: u64 = 16;
/// The code can be executed, all the rest written to.
const EXECUTABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MAPPING: i32 =
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;

/// Lets threads make their areas by calls of their own, and puts the stubs there.
///
/// # Errors
/// [`code::INJECT`] if a target refuses a call; if a thread is gone. All threads at once.
pub fn inject(mut injections: Vec<Injection<'_>>) -> Result<()> {
    let mut problems = Problems::new();
    let mut laid: Vec<Option<Laid>> = Vec::with_capacity(injections.len());
    for injection in &injections {
        laid.push(problems.take(injection.lay_frames()).flatten());
    }
    // What fails here has changed nothing yet but the bytes below some stacks, and these come back at once.
    if !problems.is_empty() {
        for (injection, laid) in injections.iter().zip(laid) {
            problems.take(injection.take_frames_back(laid.as_ref()));
        }
        return problems.finish();
    }
    make_areas(&mut injections, &mut laid)?;
    for (injection, laid) in injections.iter_mut().zip(&mut laid) {
        injection.agent.own_stack = injection.room == Room::OwnStack;
        if !injection.agent.own_stack {
            // What lies there may be somebody's: it comes back at once, now that there is another place.
            problems.take(injection.take_frames_back(laid.take().as_ref()));
        }
    }
    problems.finish()?;
    start(injections, laid, true)
}

/// Puts stubs into threads whose areas another thread has made.
///
/// # Errors
/// As [`inject`].
pub fn inject_into_areas(injections: Vec<Injection<'_>>) -> Result<()> {
    let laid = injections.iter().map(|_| None).collect();
    start(injections, laid, false)
}

/// The batch by which another thread of the process makes an area.
#[must_use]
pub fn area_batch(area: u64) -> Batch {
    let mut batch = Batch::new();
    let length = protocol::AREA_LENGTH.into();
    let arguments = [area.into(), length, WRITABLE.into(), MAPPING.into(), (-1).into(), 0.into()];
    batch.must("making room for a stub", libc::SYS_mmap, arguments);
    let arguments = [area.into(), protocol::CODE_LENGTH.into(), EXECUTABLE.into()];
    batch.must("protecting the code of a stub", libc::SYS_mprotect, arguments);
    batch
}

fn make_areas(injections: &mut [Injection<'_>], laid: &mut [Option<Laid>]) -> Result<()> {
    let word = |number: i32| i64::from(number).cast_unsigned();
    let mapping = [protocol::AREA_LENGTH as u64, word(WRITABLE), word(MAPPING), u64::MAX];
    let protecting = [protocol::CODE_LENGTH as u64, word(EXECUTABLE), 0, 0];
    for (number, [length, protection, flags, descriptor]) in
        [(libc::SYS_mmap, mapping), (libc::SYS_mprotect, protecting)]
    {
        let maps = number == libc::SYS_mmap;
        let mut calls = Vec::with_capacity(injections.len());
        for (injection, laid) in injections.iter_mut().zip(laid.iter()) {
            let stack = laid.as_ref().map(|(frames, _)| frames.address);
            let arguments = [injection.area, length, protection, flags, descriptor, 0];
            let call = RemoteCall { number, arguments, stack };
            let registers = call.registers(&injection.agent.own.registers, injection.host.gadgets);
            calls.push((&mut *injection.agent, registers));
        }
        let results = run_to_calls(&mut calls);
        let mut problems = Problems::new();
        for (injection, result) in injections.iter().zip(results) {
            let expected = if maps { injection.area } else { 0 };
            problems.take(result.and_then(|result| match result.cast_unsigned() == expected {
                true => Ok(()),
                false => Err(injection.agent.refused("making room for the stub", result)),
            }));
        }
        if !problems.is_empty() {
            put_all_back(injections, laid, !maps);
            return problems.finish();
        }
    }
    Ok(())
}

/// After a failure: every thread that still stands still gets its own state again.
fn put_all_back(injections: &mut [Injection<'_>], laid: &[Option<Laid>], mapped: bool) {
    for (injection, laid) in injections.iter_mut().zip(laid) {
        let Injection { agent, host, area, .. } = injection;
        let stack = laid.as_ref().map(|(frames, _)| frames.address);
        if mapped {
            let arguments = [*area, protocol::AREA_LENGTH as u64, 0, 0, 0, 0];
            let call = RemoteCall { number: libc::SYS_munmap, arguments, stack };
            let registers = call.registers(&agent.own.registers, host.gadgets);
            // Best effort: the first failure is the one that is told.
            drop(run_to_calls(&mut [(&mut **agent, registers)]));
        }
        let overwritten = laid.as_ref().map(|(frames, bytes)| (frames.address, bytes.as_slice()));
        let _ = agent.put_back(overwritten, host.memory);
    }
}

/// Starts the stubs in their areas, and takes their sockets.
fn start(mut injections: Vec<Injection<'_>>, laid: Vec<Option<Laid>>, by_itself: bool) -> Result<()> {
    let mut problems = Problems::new();
    let mut ways = Vec::with_capacity(injections.len());
    let mut calls = Vec::with_capacity(injections.len());
    for (injection, laid) in injections.iter_mut().zip(laid) {
        let prepared = injection.prepare_start(laid);
        let Some((laid, registers)) = problems.take(prepared) else { continue };
        ways.push((injection.host, injection.area, laid));
        calls.push((&mut *injection.agent, registers));
    }
    let results = run_to_calls(&mut calls);
    for (((agent, _), result), (host, area, laid)) in calls.into_iter().zip(results).zip(ways) {
        problems.take(result.and_then(|result| agent.take_socket(host, area, laid, by_itself, result)));
    }
    problems.finish()
}

impl Injection<'_> {
    /// Writes the frames of the way home below the red zone, if there is room.
    fn lay_frames(&self) -> Result<Option<Laid>> {
        if self.room == Room::None {
            return Ok(None);
        }
        let top = self.agent.own.registers.rsp.wrapping_sub(RED_ZONE);
        let unmapped = (self.area, protocol::AREA_LENGTH as u64);
        let frames = self.agent.way_home(top, self.host.gadgets, unmapped);
        let mut overwritten = vec![0; frames.bytes.len()];
        read_exact(self.host.memory, frames.address, &mut overwritten)?;
        write_exact(self.host.memory, frames.address, &frames.bytes)?;
        Ok(Some((frames, overwritten)))
    }

    fn take_frames_back(&self, laid: Option<&Laid>) -> Result<()> {
        laid.map_or(Ok(()), |(frames, overwritten)| {
            write_exact(self.host.memory, frames.address, overwritten)
        })
    }

    /// Fills the area; gives the registers with which the stub starts there.
    fn prepare_start(&mut self, laid: Option<Laid>) -> Result<(Laid, Registers)> {
        let Self { agent, host, area, .. } = self;
        let area = *area;
        agent.gadgets = Some(host.gadgets);
        let laid = match laid {
            Some(laid) => laid,
            None => {
                let top = area + protocol::AREA_LENGTH as u64;
                // The frames have to stay, so the area is unmapped up to them.
                let frames = agent.way_home(top, host.gadgets, (area, protocol::FRAMES_OFFSET as u64));
                write_exact(host.memory, frames.address, &frames.bytes)?;
                (frames, Vec::new())
            }
        };
        let boot = Boot {
            magic: protocol::BOOT_MAGIC,
            version: protocol::VERSION,
            mode: mode::AGENT,
            socket: -1,
            peer: -1,
            area,
            home: if host.gadgets.signal_return == 0 { laid.0.second } else { laid.0.first },
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
        Ok((laid, registers))
    }
}

impl Agent {
    /// Takes the socket of a stub that has just made its pair with this result, and lets it go on.
    fn take_socket(
        &mut self,
        host: Host<'_>,
        area: u64,
        (way_home, overwritten): Laid,
        by_itself: bool,
        result: i64,
    ) -> Result<()> {
        let resume = |agent: &mut Self| agent.step(|_, stopped| Ok(TaskState::Running(stopped.resume(0)?)));
        if result != 0 {
            // The stub notices by itself and goes home, unmapping its area.
            resume(self)?;
            return Err(self.refused("making the socket pair of the stub", result));
        }
        let mut bytes = [0; size_of::<Boot>()];
        read_exact(host.memory, area + protocol::BOOT_OFFSET as u64, &mut bytes)?;
        let boot =
            Boot::from_bytes(&bytes).ok_or_else(|| Error::new(code::INJECT, "the boot page is damaged"))?;
        let socket = process::pidfd_getfd(host.pidfd, boot.peer)
            .map_err(|errno| Error::system(code::INJECT, "fetching the socket of the stub", errno));
        resume(self)?;
        self.injected = Some(Injected {
            channel: Channel::new(socket?),
            socket: boot.socket,
            area,
            by_itself,
            way_home,
            overwritten,
        });
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
        let errno = i32::try_from(-result).unwrap_or(0);
        Error::system(code::INJECT, what, std::io::Error::from_raw_os_error(errno)).about(self.subject())
    }
}
