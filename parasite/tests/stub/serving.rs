//! The serve loop in a thread of this process, on an area of ordinary memory.
#![allow(unsafe_code, reason = "hands the serve loop an area")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::thread::{JoinHandle, spawn};

use nix::libc;
use nix::unistd::pipe;
use vckpt_parasite::protocol::{
    AREA_LENGTH, BOOT_OFFSET, BUFFER_LENGTH, Boot, MAXIMUM_CALLS, MAXIMUM_DESCRIPTORS, NOT_RUN, Request,
    VERSION, epitaph, mode, operation,
};
use vckpt_parasite::serve::{Area, Ending, serve};

use crate::support::{Batch, Channel, boot, data, descriptor, result, value};

const EINVAL: i64 = -22;

/// A serve loop in a thread; its result is the ending and the boot page as the loop left it.
fn serve_here() -> (Channel, JoinHandle<(Ending, Boot)>) {
    let (channel, socket) = Channel::pair();
    let thread = spawn(move || {
        let socket = socket.into_raw_fd();
        let layout = Layout::from_size_align(AREA_LENGTH, 4096).unwrap();
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        let page = memory.wrapping_add(BOOT_OFFSET).cast::<Boot>();
        // SAFETY: the boot page is inside the allocation, and aligned as it is.
        unsafe { page.write(boot(mode::PUPPET, memory.addr() as u64, socket)) };
        // SAFETY: the whole area is allocated, zeroed, and used by this thread only, until `serve` returns.
        let area = unsafe { Area::of(page) };
        let ending = serve(area, 0);
        // SAFETY: as above; serving has ended.
        let left = unsafe { page.read() };
        // SAFETY: allocated above with this layout, and not used any more.
        unsafe { dealloc(memory, layout) };
        nix::unistd::close(socket).unwrap();
        (ending, left)
    });
    (channel, thread)
}

/// Sends what is no request, and expects the loop to end over it.
fn expect_refused(message: &[u8], descriptors: &[RawFd]) {
    let (channel, thread) = serve_here();
    channel.send(message, descriptors);
    let (ending, left) = thread.join().unwrap();
    assert_eq!(ending.epitaph, epitaph::BAD_REQUEST);
    assert_eq!((left.epitaph, left.epitaph_detail), (ending.epitaph, ending.detail));
    channel.expect_end_of_file();
}

#[test]
fn a_call_is_made_and_the_end_is_noted() {
    let (channel, thread) = serve_here();
    let answer = channel.ask(&Batch::new().call(libc::SYS_getpid, &[]));
    assert_eq!(answer.results, [i64::from(std::process::id())]);
    assert_eq!(channel.ask(&Batch::new()).results, [] as [i64; 0]);
    drop(channel);
    let (ending, left) = thread.join().unwrap();
    assert_eq!(ending, Ending { epitaph: epitaph::END_OF_FILE, detail: 0 });
    assert_eq!(left.epitaph, epitaph::END_OF_FILE);
}

#[test]
fn results_feed_later_calls_and_data_comes_back() {
    let (channel, _thread) = serve_here();
    let mut given = b"/proc/self/comm\0".to_vec();
    given.resize(64, 0);
    let answer = channel.ask(
        &Batch::new()
            .data(&given)
            .data_back()
            .call(libc::SYS_openat, &[value(u64::MAX - 99), data(0), value(0)])
            .or_stop()
            .call(libc::SYS_read, &[result(0), data(16), value(48)])
            .call(libc::SYS_close, &[result(0)]),
    );
    assert!(answer.results[0] >= 0, "{:?}", answer.results);
    let length = usize::try_from(answer.results[1]).unwrap();
    assert!(length > 1);
    assert_eq!(answer.data[16 + length - 1], b'\n');
    assert_eq!(answer.results[2], 0);
}

#[test]
fn data_is_aligned_and_descriptors_are_passed() {
    let (channel, _thread) = serve_here();
    let mut file = tempfile();
    let answer = channel.ask_with(
        &Batch::new()
            .data(b"hello")
            .call(libc::SYS_write, &[descriptor(0), data(0), value(5)])
            .call(libc::SYS_close, &[descriptor(0)])
            .call(libc::SYS_close, &[descriptor(1)])
            .call(libc::SYS_close, &[descriptor(2)]),
        &[file.as_raw_fd(), file.as_raw_fd()],
    );
    assert_eq!(answer.results, [5, 0, 0, EINVAL]);
    assert_eq!(answer.reply.descriptor_count, 2);
    assert_eq!(answer.data, b"");
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

fn tempfile() -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    memfd_create("written by a batch", MFdFlags::MFD_CLOEXEC).unwrap().into()
}

#[test]
fn the_most_descriptors_are_passed() {
    let (channel, _thread) = serve_here();
    let (end, _other) = pipe().unwrap();
    let descriptors = vec![end.as_raw_fd(); MAXIMUM_DESCRIPTORS];
    let batch = (0..MAXIMUM_DESCRIPTORS)
        .fold(Batch::new(), |batch, index| batch.call(libc::SYS_close, &[descriptor(index as u64)]));
    let answer = channel.ask_with(&batch, &descriptors);
    assert_eq!(answer.results, vec![0; MAXIMUM_DESCRIPTORS]);
    assert_eq!(answer.reply.descriptor_count as usize, MAXIMUM_DESCRIPTORS);
}

#[test]
fn nothing_is_run_when_descriptors_are_missing() {
    let (channel, _thread) = serve_here();
    let (end, _other) = pipe().unwrap();
    let descriptors = vec![end.as_raw_fd(); MAXIMUM_DESCRIPTORS + 1];
    let answer = channel.ask_with(&Batch::new().call(libc::SYS_getpid, &[]), &descriptors);
    assert_eq!(answer.results, [NOT_RUN]);
    assert_eq!(answer.reply.descriptor_count as usize, MAXIMUM_DESCRIPTORS);
    let answer = channel.ask(&Batch::new().call(libc::SYS_getpid, &[]));
    assert_eq!(answer.results, [i64::from(std::process::id())]);
}

#[test]
fn a_failure_stops_only_where_it_should() {
    let (channel, _thread) = serve_here();
    let bad_close = [value(u64::from(u32::MAX))];
    let answer = channel.ask(
        &Batch::new()
            .call(libc::SYS_close, &bad_close)
            .call(libc::SYS_getpid, &[])
            .or_stop()
            .call(libc::SYS_close, &bad_close)
            .or_stop()
            .call(libc::SYS_getpid, &[])
            .call(libc::SYS_getpid, &[]),
    );
    let pid = i64::from(std::process::id());
    assert_eq!(answer.results, [-9, pid, -9, NOT_RUN, NOT_RUN]);
}

#[test]
fn references_out_of_range_fail_their_call_only() {
    let (channel, _thread) = serve_here();
    let answer = channel.ask(
        &Batch::new()
            .data(&[0; 8])
            .call(libc::SYS_close, &[result(0)])
            .call(libc::SYS_close, &[result(2)])
            .call(libc::SYS_close, &[result(u64::MAX)])
            .call(libc::SYS_close, &[descriptor(0)])
            .call(libc::SYS_close, &[descriptor(u64::MAX)])
            .call(libc::SYS_write, &[value(1), data(9), value(0)])
            .call(libc::SYS_write, &[value(1), data(u64::MAX), value(0)])
            .call(libc::SYS_close, &[(0, 77)])
            .call(operation::SPAWN_THREAD, &[])
            .call(operation::SPAWN, &[value(0), value(0), value(u64::MAX), value(0)])
            .call(libc::SYS_getpid, &[]),
    );
    let pid = i64::from(std::process::id());
    let expected = [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, -38, EINVAL, pid];
    assert_eq!(answer.results, expected);
}

#[test]
fn the_longest_requests_are_served() {
    let (channel, _thread) = serve_here();
    let batch = (0..MAXIMUM_CALLS).fold(Batch::new(), |batch, _| batch.call(libc::SYS_getppid, &[]));
    let data = vec![7; BUFFER_LENGTH - 16 - MAXIMUM_CALLS * 64];
    let answer = channel.ask(&batch.data(&data).data_back());
    assert_eq!(answer.results, vec![i64::from(std::os::unix::process::parent_id()); MAXIMUM_CALLS]);
    assert_eq!(answer.data, data);
    let data = vec![9; BUFFER_LENGTH - 16];
    assert_eq!(channel.ask(&Batch::new().data(&data).data_back()).data, data);
}

#[test]
fn messages_that_are_no_request_end_it() {
    let batch = Batch::new().call(libc::SYS_getpid, &[]).data(b"12345678");
    let good = batch.request();
    let hostile = [
        Request { version: VERSION + 1, ..good },
        Request { call_count: 0, ..good },
        Request { call_count: 2, ..good },
        Request { call_count: u32::MAX, ..good },
        Request { data_length: 7, ..good },
        Request { data_length: 9, ..good },
        Request { data_length: u32::MAX, ..good },
        Request { reply_data_length: 9, ..good },
        Request { reply_data_length: u32::MAX, ..good },
    ];
    for request in hostile {
        expect_refused(&batch.message(request), &[]);
    }
    for length in 1..16 {
        expect_refused(&vec![1; length], &[]);
    }
    let many = (0..=MAXIMUM_CALLS).fold(Batch::new(), |batch, _| batch.call(libc::SYS_getpid, &[]));
    expect_refused(&many.message(many.request()), &[]);
    let long = Batch::new().data(&vec![0; BUFFER_LENGTH - 15]);
    expect_refused(&long.message(long.request()), &[]);
}

#[test]
fn descriptors_of_what_is_no_request_are_closed() {
    let (read_end, write_end) = pipe().unwrap();
    expect_refused(b"no request", &[write_end.as_raw_fd()]);
    drop(write_end);
    let mut rest = Vec::new();
    File::from(read_end).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the end of file shows that no writer is left");
}
