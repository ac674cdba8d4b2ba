//! The finished blob as a program of its own: puppets, their children and threads.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vckpt_parasite::executable;
use vckpt_parasite::protocol::{
    AREA_LENGTH, BOOT_LENGTH, BOOT_OFFSET, STACK_LENGTH, STACK_OFFSET, mode, operation,
};

use crate::support::{Batch, Channel, boot, data, descriptor, result, value};

pub(crate) const AREA: u64 = 0x1_0000_0000;
const THREAD_AREA: u64 = 0x2_0000_0000;
const CHILD_SOCKET: u64 = 50;
const THREAD_SOCKET: u64 = 60;
/// Bytes of `clone_args`.
const CLONE_LENGTH: u64 = 88;

/// A command that runs this executable.
pub(crate) fn command(file: &[u8]) -> (Command, OwnedFd) {
    let program = memfd_create("puppet", MFdFlags::MFD_CLOEXEC).unwrap();
    let mut program = File::from(program);
    program.write_all(file).unwrap();
    (Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())), program.into())
}

/// A puppet whose socket is its descriptor 0.
fn start() -> (Channel, Child) {
    let (channel, socket) = Channel::pair();
    let (mut command, _program) = command(&executable(AREA, &boot(mode::PUPPET, AREA, 0)));
    (channel, command.stdin(Stdio::from(socket)).spawn().unwrap())
}

/// `clone_args` with these flags, signal and stack.
fn clone_arguments(flags: i32, signal: i32, stack: u64, stack_length: u64) -> Vec<u8> {
    let flags = u64::from(flags.cast_unsigned());
    let signal = u64::from(signal.cast_unsigned());
    [flags, 0, 0, 0, signal, stack, stack_length, 0, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// Has a child spawned: the channel to it and its pid.
pub(crate) fn spawn_child(parent: &Channel, flags: i32) -> (Channel, i64) {
    let (channel, socket) = Channel::pair();
    let answer = parent.ask_with(
        &Batch::new()
            .data(&clone_arguments(flags, libc::SIGCHLD, 0, 0))
            .call(operation::SPAWN, &[data(0), value(CLONE_LENGTH), descriptor(0), value(CHILD_SOCKET)])
            .call(libc::SYS_getpid, &[]),
        &[socket.as_raw_fd()],
    );
    assert!(answer.results[0] > 0, "{:?}", answer.results);
    assert_ne!(answer.results[0], answer.results[1]);
    (channel, answer.results[0])
}

fn pid_of(channel: &Channel) -> i64 {
    channel.ask(&Batch::new().call(libc::SYS_getpid, &[])).results[0]
}

#[test]
fn a_puppet_serves_until_its_supervisor_is_gone() {
    let (channel, mut child) = start();
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    assert_eq!(child.try_wait().unwrap(), None);
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(125));
}

#[test]
fn its_memory_is_the_area() {
    let (channel, child) = start();
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let code = format!("{AREA:08x}-{:08x} r-xp", AREA + BOOT_OFFSET as u64);
    assert!(maps.starts_with(&code), "{maps}");
    assert!(maps.contains(&format!("-{:08x} rw-p", AREA + AREA_LENGTH as u64)), "{maps}");
    let both = maps.lines().filter(|line| line.contains(" rwx")).count();
    assert_eq!(both, 0, "{maps}");
}

#[test]
fn a_puppet_spawns_children_that_serve() {
    let (channel, mut child) = start();
    let (first, first_pid) = spawn_child(&channel, 0);
    let (grandchild, grandchild_pid) = spawn_child(&first, 0);
    assert_eq!(pid_of(&first), first_pid);
    assert_eq!(pid_of(&grandchild), grandchild_pid);
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    // The only descriptors left in the child are its own socket and those it was born with.
    let batch = Batch::new()
        .call(libc::SYS_fcntl, &[value(0), value(1)])
        .call(libc::SYS_fcntl, &[value(CHILD_SOCKET), value(1)])
        .call(libc::SYS_fcntl, &[value(3), value(1)]);
    assert_eq!(first.ask(&batch).results, [-9, 1, -9]);
    // Its end is that of its socket alone.
    drop(first);
    let wait = Batch::new()
        .data(&[0; 4])
        .data_back()
        .call(libc::SYS_wait4, &[value(first_pid.cast_unsigned()), data(0), value(0), value(0)]);
    let answer = channel.ask(&wait);
    assert_eq!(answer.results, [first_pid]);
    assert_eq!(answer.data, [0, 125, 0, 0]);
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert_eq!(pid_of(&grandchild), grandchild_pid);
}

#[test]
fn a_child_may_share_the_descriptors() {
    let (channel, mut child) = start();
    let (other, pid) = spawn_child(&channel, libc::CLONE_FILES);
    assert_eq!(pid_of(&other), pid);
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    drop(other);
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(125));
}

#[test]
fn a_clone_that_fails_leaves_no_descriptor() {
    let (channel, _child) = start();
    let (other, socket) = Channel::pair();
    let batch = Batch::new()
        .data(&clone_arguments(0, 0x1000, 0, 0))
        .call(operation::SPAWN, &[data(0), value(CLONE_LENGTH), descriptor(0), value(CHILD_SOCKET)]);
    assert_eq!(channel.ask_with(&batch, &[socket.as_raw_fd()]).results, [-22]);
    drop(socket);
    other.expect_end_of_file();
}

#[test]
fn a_child_without_a_socket_ends() {
    let (channel, _child) = start();
    let (other, socket) = Channel::pair();
    let batch = Batch::new()
        .data(&clone_arguments(0, libc::SIGCHLD, 0, 0))
        .call(operation::SPAWN, &[data(0), value(CLONE_LENGTH), descriptor(0), value(0x7000_0000)])
        .call(libc::SYS_wait4, &[result(0), data(0), value(0), value(0)])
        .data_back();
    let answer = channel.ask_with(&batch, &[socket.as_raw_fd()]);
    assert!(answer.results[0] > 0);
    assert_eq!(answer.results[0], answer.results[1]);
    assert_eq!(answer.data[..4], [0, 125, 0, 0]);
    drop(socket);
    other.expect_end_of_file();
}

#[test]
fn a_puppet_spawns_threads_that_serve_and_park() {
    let (channel, mut child) = start();
    let (thread, socket) = Channel::pair();
    let number = i32::try_from(THREAD_SOCKET).unwrap();
    let page = boot(mode::PUPPET_THREAD, THREAD_AREA, number).to_bytes();
    let boot_address = THREAD_AREA + BOOT_OFFSET as u64;
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let read_write = value(3);
    let shared = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut given = clone_arguments(shared, 0, THREAD_AREA + STACK_OFFSET as u64, STACK_LENGTH as u64);
    given.extend_from_slice(&page);
    let answer = channel.ask_with(
        &Batch::new()
            .data(&given)
            .call(
                libc::SYS_mmap,
                &[
                    value(boot_address),
                    value((AREA_LENGTH - BOOT_OFFSET) as u64),
                    read_write,
                    value(u64::from(fixed.cast_unsigned())),
                    value(u64::MAX),
                    value(0),
                ],
            )
            .or_stop()
            // The boot page gets there through a file; a supervisor would write it from outside.
            .call(libc::SYS_memfd_create, &[data(CLONE_LENGTH + 48), value(1)])
            .or_stop()
            .call(libc::SYS_write, &[result(1), data(CLONE_LENGTH), value(page.len() as u64)])
            .or_stop()
            .call(libc::SYS_pread64, &[result(1), value(boot_address), value(4096), value(0)])
            .or_stop()
            .call(libc::SYS_close, &[result(1)])
            .call(libc::SYS_dup3, &[descriptor(0), value(THREAD_SOCKET), value(0o2_000_000)])
            .or_stop()
            .call(libc::SYS_close, &[descriptor(0)])
            .call(operation::SPAWN_THREAD, &[data(0), value(CLONE_LENGTH), value(boot_address)])
            .or_stop(),
        &[socket.as_raw_fd()],
    );
    drop(socket);
    let tid = *answer.results.last().unwrap();
    assert!(tid > 0, "{:?}", answer.results);
    let both = Batch::new().call(libc::SYS_gettid, &[]).call(libc::SYS_getpid, &[]);
    let pid = i64::from(child.id());
    for _ in 0..100 {
        thread.send(&both.message(both.request()), &[]);
        channel.send(&both.message(both.request()), &[]);
        assert_eq!(thread.receive().results, [tid, pid]);
        assert_eq!(channel.receive().results, [pid, pid]);
    }
    let park = Batch::new().call(operation::PARK, &[]);
    thread.send(&park.message(park.request()), &[]);
    thread.expect_end_of_file();
    assert_eq!(pid_of(&channel), pid);
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(125));
}

#[test]
fn a_parked_puppet_waits() {
    let (channel, mut child) = start();
    let park = Batch::new().call(libc::SYS_getpid, &[]).call(operation::PARK, &[]);
    channel.send(&park.message(park.request()), &[]);
    channel.expect_end_of_file();
    drop(channel);
    let state = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
    assert!(state.starts_with("271 ") || state.starts_with("running"), "{state}");
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn an_init_ends_as_its_root_does_and_after_all_others() {
    for (call, argument, status) in [(libc::SYS_exit_group, 7, 7), (libc::SYS_kill, 9, 137)] {
        let (channel, mut child) = start();
        let (root, root_pid) = spawn_child(&channel, 0);
        let (other, _) = spawn_child(&channel, 0);
        let answer = channel.ask(
            &Batch::new()
                .call(operation::INIT, &[value(root_pid.cast_unsigned())])
                .call(libc::SYS_getpid, &[]),
        );
        assert_eq!(answer.results, [0, i64::MIN]);
        channel.expect_end_of_file();
        let end = if call == libc::SYS_kill {
            Batch::new().call(call, &[value(root_pid.cast_unsigned()), value(argument)])
        } else {
            Batch::new().call(call, &[value(argument)])
        };
        root.send(&end.message(end.request()), &[]);
        root.expect_end_of_file();
        assert_eq!(child.try_wait().unwrap(), None, "another child is left");
        drop(other);
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

#[test]
fn a_puppet_can_leave_the_file_it_was_started_from() {
    let (channel, child) = start();
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    let copy = 0x3_0000_0000;
    let file_part = (BOOT_OFFSET + BOOT_LENGTH) as u64;
    let fixed =
        u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE).cast_unsigned());
    let map = Batch::new()
        .call(libc::SYS_mmap, &[copy, file_part, 3, fixed, u64::MAX, 0].map(value))
        .or_stop()
        .call(libc::SYS_mprotect, &[copy, BOOT_OFFSET as u64, 5].map(value));
    assert_eq!(channel.ask(&map).results, [copy.cast_signed(), 0]);
    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", child.id())).unwrap();
    let mut bytes = vec![0; BOOT_OFFSET + BOOT_LENGTH];
    memory.read_exact_at(&mut bytes, AREA).unwrap();
    memory.write_all_at(&bytes, copy).unwrap();
    let (code, page) = (BOOT_OFFSET as u64, BOOT_LENGTH as u64);
    let put_in_place = Batch::new()
        .call(libc::SYS_mremap, &[copy, code, code, 3, AREA].map(value))
        .call(libc::SYS_mremap, &[copy + code, page, page, 3, AREA + code].map(value));
    assert_eq!(channel.ask(&put_in_place).results, [AREA, AREA + code].map(u64::cast_signed));
    assert_eq!(pid_of(&channel), i64::from(child.id()));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    assert!(!maps.contains("memfd"), "{maps}");
}
