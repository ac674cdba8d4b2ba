//! The finished blob as an agent: its own socket pair, fetched from outside, and the way home.
//!
//! The "task" here is a program that is nothing but an area, and its home an `exit_group(42)`.
#![allow(unsafe_code, reason = "traces a child, and fetches a descriptor by calls that have no wrapper")]

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vckpt_parasite::protocol::{BOOT_OFFSET, Boot, FRAMES_OFFSET, epitaph, mode};
use vckpt_parasite::{STUB_IMAGE, executable};

use crate::puppet::{AREA, command, spawn_child};
use crate::support::{Batch, Channel, boot, value};

const HOME_STATUS: i32 = 42;

/// An agent, traced, after its `exec`; the memory of the area can be read and written by the file.
struct Agent {
    pid: Pid,
    memory: File,
}

impl Agent {
    fn start(has_home: bool, may_open: bool) -> Self {
        let home = if has_home { AREA + FRAMES_OFFSET as u64 + 8 } else { 0 };
        let (mut command, _program) =
            command(&executable(AREA, &Boot { home, ..boot(mode::AGENT, AREA, -1) }));
        let prepare = move || -> std::io::Result<()> {
            if !may_open {
                setrlimit(Resource::RLIMIT_NOFILE, 0, 0)?;
            }
            Ok(ptrace::traceme()?)
        };
        // SAFETY: the closure makes two system calls and touches nothing else.
        unsafe { command.pre_exec(prepare) };
        #[expect(clippy::zombie_processes, reason = "waited for by its pid")]
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)));
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        memory.write_all_at(&frame_of_home(), AREA + FRAMES_OFFSET as u64).unwrap();
        Self { pid, memory }
    }

    fn boot(&self) -> Boot {
        let mut bytes = [0; size_of::<Boot>()];
        self.memory.read_exact_at(&mut bytes, AREA + BOOT_OFFSET as u64).unwrap();
        Boot::from_bytes(&bytes).unwrap()
    }

    /// Lets it run to the end of its first system call, which must be `socketpair`.
    fn run_to_first_call(&self) -> i64 {
        for _ in 0..2 {
            ptrace::syscall(self.pid, None).unwrap();
            assert_eq!(waitpid(self.pid, None), Ok(WaitStatus::Stopped(self.pid, Signal::SIGTRAP)));
        }
        let registers = ptrace::getregs(self.pid).unwrap();
        assert_eq!(registers.orig_rax.cast_signed(), libc::SYS_socketpair);
        registers.rax.cast_signed()
    }

    fn fetch(&self, number: RawFd) -> OwnedFd {
        // SAFETY: touches no memory.
        let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid.as_raw(), 0) });
        // SAFETY: touches no memory.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
    }

    fn release(&self) {
        ptrace::detach(self.pid, None).unwrap();
    }

    fn expect_home(&self) {
        assert_eq!(waitpid(self.pid, None), Ok(WaitStatus::Exited(self.pid, HOME_STATUS)));
    }
}

/// A descriptor that a system call has just returned.
fn owned(result: i64) -> OwnedFd {
    assert!(result >= 0, "{}", Error::last_os_error());
    // SAFETY: the kernel has just made it, so no one else owns it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(result).unwrap()) }
}

/// An `rt_sigframe` whose registers make `exit_group(HOME_STATUS)` the next thing to happen.
fn frame_of_home() -> Vec<u8> {
    const RDI: usize = 48 + 8 * 8;
    const RAX: usize = 48 + 13 * 8;
    const RIP: usize = 48 + 16 * 8;
    const CODE_SEGMENT: usize = 48 + 18 * 8;
    const STACK_SEGMENT: usize = CODE_SEGMENT + 6;
    let instruction = STUB_IMAGE.windows(2).position(|bytes| bytes == [0x0f, 0x05]).unwrap();
    let mut frame = vec![0; 312];
    let mut put = |offset: usize, bytes: &[u8]| frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(RDI, &u64::from(HOME_STATUS.cast_unsigned()).to_le_bytes());
    put(RAX, &libc::SYS_exit_group.to_le_bytes());
    put(RIP, &(AREA + instruction as u64).to_le_bytes());
    put(CODE_SEGMENT, &0x33_u16.to_le_bytes());
    put(STACK_SEGMENT, &0x2b_u16.to_le_bytes());
    frame
}

#[test]
fn an_agent_is_fetched_and_goes_home() {
    let agent = Agent::start(true, true);
    assert_eq!(agent.run_to_first_call(), 0);
    let Boot { socket, peer, .. } = agent.boot();
    let channel = Channel(agent.fetch(peer));
    agent.release();
    let closed = Batch::new()
        .call(libc::SYS_fcntl, &[value(u64::from(peer.cast_unsigned())), value(1)])
        .call(libc::SYS_fcntl, &[value(u64::from(socket.cast_unsigned())), value(1)])
        .call(libc::SYS_getpid, &[]);
    assert_eq!(channel.ask(&closed).results, [-9, 1, i64::from(agent.pid.as_raw())]);
    assert_eq!(agent.boot().peer, -1);
    drop(channel);
    agent.expect_home();
}

#[test]
fn an_agent_that_no_one_fetches_goes_home() {
    let agent = Agent::start(true, true);
    agent.release();
    agent.expect_home();
}

#[test]
fn an_agent_without_a_socket_goes_home() {
    let agent = Agent::start(true, false);
    assert_eq!(agent.run_to_first_call(), -i64::from(libc::EMFILE));
    ptrace::syscall(agent.pid, None).unwrap();
    assert_eq!(waitpid(agent.pid, None), Ok(WaitStatus::Stopped(agent.pid, Signal::SIGTRAP)));
    assert_eq!(ptrace::getregs(agent.pid).unwrap().orig_rax.cast_signed(), libc::SYS_rt_sigreturn);
    let left = agent.boot();
    assert_eq!((left.epitaph, left.epitaph_detail), (epitaph::NO_SOCKET, libc::EMFILE as u64));
    agent.release();
    agent.expect_home();
}

#[test]
fn an_agent_without_a_home_stays() {
    let agent = Agent::start(false, true);
    agent.release();
    while agent.boot().epitaph == 0 {
        std::thread::yield_now();
    }
    assert_eq!(agent.boot().epitaph, epitaph::END_OF_FILE);
    assert_eq!(waitpid(agent.pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
    nix::sys::signal::kill(agent.pid, Signal::SIGKILL).unwrap();
    assert_eq!(waitpid(agent.pid, None), Ok(WaitStatus::Signaled(agent.pid, Signal::SIGKILL, false)));
}

#[test]
fn what_an_agent_spawns_has_no_home() {
    let agent = Agent::start(true, true);
    assert_eq!(agent.run_to_first_call(), 0);
    let channel = Channel(agent.fetch(agent.boot().peer));
    agent.release();
    let (copy, copy_pid) = spawn_child(&channel, 0);
    drop(copy);
    let wait = Batch::new().data(&[0; 4]).data_back().call(
        libc::SYS_wait4,
        &[value(copy_pid.cast_unsigned()), crate::support::data(0), value(0), value(0)],
    );
    let answer = channel.ask(&wait);
    assert_eq!(answer.results, [copy_pid]);
    assert_eq!(answer.data, [0, 125, 0, 0]);
    drop(channel);
    agent.expect_home();
}
