//! Which calls wait for at most some time, and where they have it.

use crate::sys::process;
use crate::sys::ptrace::Registers;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::os::fd::AsFd;

/// Where a call has its time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The address of a `struct timespec` in this register.
    Time(Register),
    /// Milliseconds in this register; negative for none.
    Milliseconds(Register),
    /// `SO_RCVTIMEO` of the socket in `rdi`.
    Receive,
    /// `SO_SNDTIMEO` of the socket in `rdi`.
    Send,
}

/// A register of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// The first.
    Rdi,
    /// The third.
    Rdx,
    /// The fourth.
    R10,
    /// The fifth.
    R8,
}

/// A call with its six arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl From<&Registers> for Call {
    /// The call that a task with these registers was stopped in.
    fn from(registers: &Registers) -> Self {
        let Registers { rdi, rsi, rdx, r10, r8, r9, .. } = *registers;
        Self { number: registers.orig_rax, arguments: [rdi, rsi, rdx, r10, r8, r9] }
    }
}

impl Register {
    /// The value that a call has in it.
    #[must_use]
    pub fn get(self, call: &Call) -> u64 {
        let [rdi, _, rdx, r10, r8, _] = call.arguments;
        match self {
            Register::Rdi => rdi,
            Register::Rdx => rdx,
            Register::R10 => r10,
            Register::R8 => r8,
        }
    }

    /// Gives it a value.
    pub fn set(self, registers: &mut Registers, value: u64) {
        match self {
            Register::Rdi => registers.rdi = value,
            Register::Rdx => registers.rdx = value,
            Register::R10 => registers.r10 = value,
            Register::R8 => registers.r8 = value,
        }
    }
}

/// Where a call has its time-out, if it can have one that is lost.
#[must_use]
pub fn place(number: u64) -> Option<Limit> {
    Some(match number.cast_signed() {
        libc::SYS_nanosleep => Limit::Time(Register::Rdi),
        libc::SYS_clock_nanosleep | libc::SYS_rt_sigtimedwait => Limit::Time(Register::Rdx),
        libc::SYS_futex | libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Limit::Time(Register::R10),
        libc::SYS_io_getevents => Limit::Time(Register::R8),
        libc::SYS_poll => Limit::Milliseconds(Register::Rdx),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Limit::Milliseconds(Register::R10),
        libc::SYS_read | libc::SYS_recvfrom | libc::SYS_recvmsg => Limit::Receive,
        libc::SYS_write | libc::SYS_sendto | libc::SYS_sendmsg => Limit::Send,
        _ => return None,
    })
}

/// The time-out of a call that a task is in, in nanoseconds. None if it has none, or an absolute one.
#[must_use]
pub fn limit(pid: i32, tid: i32, call: &Call) -> Option<u64> {
    const ABSOLUTE: u64 = 1;
    const FUTEX_COMMAND: u64 = 0x7f;
    let number = call.number.cast_signed();
    let [descriptor, flags, ..] = call.arguments;
    if number == libc::SYS_clock_nanosleep && (flags & ABSOLUTE != 0 || !runs_by_itself(descriptor)) {
        return None;
    }
    if number == libc::SYS_futex && flags & FUTEX_COMMAND != 0 {
        return None;
    }
    match place(call.number)? {
        Limit::Time(register) => time(tid, register.get(call)),
        Limit::Milliseconds(register) => {
            // An int: the upper half of the register means nothing.
            #[expect(clippy::cast_possible_truncation, reason = "the kernel does the same")]
            let milliseconds = register.get(call) as u32;
            u64::try_from(milliseconds.cast_signed()).ok()?.checked_mul(1_000_000)
        }
        Limit::Receive => socket_limit((pid, tid), descriptor, true),
        Limit::Send => socket_limit((pid, tid), descriptor, false),
    }
}

/// Whether a clock goes on with time, and not with what a process or thread computes.
fn runs_by_itself(clock: u64) -> bool {
    const CLOCKS: [i32; 6] = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM,
        libc::CLOCK_BOOTTIME_ALARM,
        libc::CLOCK_TAI,
    ];
    i32::try_from(clock).is_ok_and(|clock| CLOCKS.contains(&clock))
}

/// A `struct timespec` in the memory of a task, in nanoseconds.
fn time(tid: i32, address: u64) -> Option<u64> {
    if address == 0 {
        return None;
    }
    let mut bytes = [0; 16];
    if process::read_memory(tid, address, &mut bytes) != Ok(16) {
        return None;
    }
    let word = |index: usize| bytes.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
    word(0)?.checked_mul(1_000_000_000)?.checked_add(word(1)?)
}

fn socket_limit((pid, tid): (i32, i32), number: u64, receive: bool) -> Option<u64> {
    // A process whose first thread has ended, or a kernel without descriptors for threads.
    let pidfd = process::thread_pidfd_open(tid).or_else(|_| process::pidfd_open(pid)).ok()?;
    let socket = process::pidfd_getfd(pidfd.as_fd(), i32::try_from(number).ok()?).ok()?;
    let limit: TimeVal = if receive {
        getsockopt(&socket, sockopt::ReceiveTimeout).ok()?
    } else {
        getsockopt(&socket, sockopt::SendTimeout).ok()?
    };
    let nanoseconds =
        limit.tv_sec().checked_mul(1_000_000_000)?.checked_add(limit.tv_usec().checked_mul(1000)?)?;
    u64::try_from(nanoseconds).ok().filter(|&limit| limit > 0)
}
