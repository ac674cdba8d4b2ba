//! Putting a stub into a thread.

use super::{Agent, Injected, PATIENCE, read_exact, write_exact};
use crate::error::{Error, Result, code};
use crate::stub::batch::Batch;
use crate::stub::channel::Channel;
use crate::stub::task_state::TaskState;
use crate::sys::process;
use crate::sys::ptrace::Registers;
use crate::tracee::Stopped;
use crate::tracee::sigframe::{self, Gadgets, RED_ZONE, WayHome};
use crate::waits::resume;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::time::Instant;
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

/// What lies below the stack pointer of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The rest of a stack that is the thread's own: free.
    OwnStack,
    /// Writable memory, which may be somebody's.
    Memory,
    /// Nothing that can be written to.
    None,
}

/// Bytes of a `struct timespec`.
const TIME_LENGTH: u64 = 16;
/// The code can be executed, all the rest written to.
const EXECUTABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MAPPING: i32 =
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;

impl Agent {
    /// Makes an area at an address where `protocol::AREA_LENGTH` bytes are free, by remote calls of this thread, and
    /// puts the stub there.
    ///
    /// # Errors
    /// [`code::INJECT`] if the target refuses a call; if the thread is gone.
    pub fn inject(&mut self, host: Host<'_>, room: Room, area: u64) -> Result<()> {
        let TaskState::Stopped(mut stopped) = self.state.take() else {
            return Err(Error::new(code::INTERNAL, "a stub for a task that does not stand still"));
        };
        let length = protocol::AREA_LENGTH as u64;
        let mut frames = None;
        if room != Room::None {
            let top = self.own.registers.rsp.wrapping_sub(RED_ZONE);
            let way_home = self.way_home(top, host.gadgets, (area, length));
            let mut overwritten = vec![0; way_home.bytes.len()];
            read_exact(host.memory, way_home.address, &mut overwritten)?;
            write_exact(host.memory, way_home.address, &way_home.bytes)?;
            frames = Some((way_home, overwritten));
        }
        let word = |number: i32| i64::from(number).cast_unsigned();
        let mapping = [area, length, word(WRITABLE), word(MAPPING), u64::MAX, 0];
        let protecting = [area, protocol::CODE_LENGTH as u64, word(EXECUTABLE), 0, 0, 0];
        for (number, arguments, expected) in
            [(libc::SYS_mmap, mapping, area), (libc::SYS_mprotect, protecting, 0)]
        {
            let stack = frames.as_ref().map(|(way_home, _)| way_home.address);
            let result;
            (stopped, result) = self.remote_call(stopped, host.gadgets, stack, number, arguments)?;
            if result.cast_unsigned() != expected {
                let overwritten = frames.as_ref().map(|(frames, bytes)| (frames.address, bytes.as_slice()));
                self.put_back(stopped, overwritten, host.memory)?;
                return Err(self.refused("making room for the stub", result));
            }
        }
        if let Some((way_home, overwritten)) = &frames
            && room != Room::OwnStack
        {
            // What lies there may be somebody's: it comes back at once, now that there is another place.
            write_exact(host.memory, way_home.address, overwritten)?;
            frames = None;
        }
        self.own_stack = room == Room::OwnStack;
        self.start(stopped, host, area, true, frames)
    }

    /// The batch by which another thread of the process makes an area for this one.
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

    /// Puts the stub into the thread, in an area that another one has made for it.
    ///
    /// # Errors
    /// As [`Agent::inject`].
    pub fn inject_into(&mut self, host: Host<'_>, area: u64) -> Result<()> {
        let TaskState::Stopped(stopped) = self.state.take() else {
            return Err(Error::new(code::INTERNAL, "a stub for a task that does not stand still"));
        };
        self.start(stopped, host, area, false, None)
    }

    /// Starts the stub in its area, and takes its socket.
    fn start(
        &mut self,
        stopped: Stopped,
        host: Host<'_>,
        area: u64,
        by_itself: bool,
        frames: Option<(WayHome, Vec<u8>)>,
    ) -> Result<()> {
        self.gadgets = Some(host.gadgets);
        let (way_home, overwritten) = match frames {
            Some(frames) => frames,
            None => {
                let top = area + protocol::AREA_LENGTH as u64;
                // The frames have to stay, so the area is unmapped up to them.
                let frames = self.way_home(top, host.gadgets, (area, protocol::FRAMES_OFFSET as u64));
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
            home: if host.gadgets.signal_return == 0 { way_home.second } else { way_home.first },
            epitaph: 0,
            epitaph_detail: 0,
        };
        let boot_address = area + protocol::BOOT_OFFSET as u64;
        write_exact(host.memory, area, vckpt_parasite::STUB_IMAGE)?;
        write_exact(host.memory, boot_address, &boot.to_bytes())?;
        let mut registers = self.own.registers;
        registers.rip = area + vckpt_parasite::ENTRY_OFFSET as u64;
        registers.rsp = area + (protocol::STACK_OFFSET + protocol::STACK_LENGTH) as u64;
        registers.rdi = boot_address;
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x400;
        stopped.set_signal_mask(u64::MAX)?;
        stopped.set_registers(&registers)?;
        let stopped = stopped.make_call(Instant::now() + PATIENCE)?;
        let result = stopped.registers()?.rax.cast_signed();
        if result != 0 {
            // The stub notices by itself and goes home, unmapping its area.
            self.state = TaskState::Running(stopped.resume(0)?);
            return Err(self.refused("making the socket pair of the stub", result));
        }
        let mut bytes = [0; size_of::<Boot>()];
        read_exact(host.memory, boot_address, &mut bytes)?;
        let boot =
            Boot::from_bytes(&bytes).ok_or_else(|| Error::new(code::INJECT, "the boot page is damaged"))?;
        let socket = process::pidfd_getfd(host.pidfd, boot.peer)
            .map_err(|errno| Error::system(code::INJECT, "fetching the socket of the stub", errno));
        self.state = TaskState::Running(stopped.resume(0)?);
        self.injected = Some(Injected {
            channel: Channel::new(socket?),
            socket: boot.socket,
            area,
            by_itself,
            call_and_return: host.gadgets.call_and_return,
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

    /// Makes a remote call; on the stack lies the way home, if there is one.
    pub(super) fn remote_call(
        &self,
        stopped: Stopped,
        gadgets: Gadgets,
        stack: Option<u64>,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<(Stopped, i64)> {
        stopped.set_registers(&call_registers(&self.own.registers, gadgets, stack, number, arguments))?;
        stopped.set_signal_mask(u64::MAX)?;
        let stopped = stopped.make_call(Instant::now() + PATIENCE)?;
        let result = stopped.registers()?.rax.cast_signed();
        Ok((stopped, result))
    }

    fn refused(&self, what: &str, result: i64) -> Box<Error> {
        let errno = i32::try_from(-result).unwrap_or(0);
        Error::system(code::INJECT, what, std::io::Error::from_raw_os_error(errno)).about(self.subject())
    }
}

/// The registers of a remote call, that goes home by itself when nobody stops it at its exit.
fn call_registers(
    home: &Registers,
    gadgets: Gadgets,
    stack: Option<u64>,
    number: i64,
    arguments: [u64; 6],
) -> Registers {
    let mut registers = *home;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
    registers.rax = number.cast_unsigned();
    registers.orig_rax = u64::MAX;
    registers.rip = gadgets.call_and_return;
    registers.rsp = stack.unwrap_or(home.rsp);
    registers
}
