//! Packet sockets: what they get of a network interface, and how.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::harness::case::{Case, all_left_running, text, two_rounds};
use crate::harness::process::{spawn, wait_exit};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::kernel::check;
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "packets",
    fixtures: &[("packets", packets), ("packet-ring", ring), ("packets-at", at)],
    cases: &[
        ("of_an_interface", || need_root().and_then(|()| two_rounds("packets"))),
        ("left_running", || need_root().and_then(|()| all_left_running(&["packets"]))),
        ("shown", shown),
        ("a_ring_is_refused", a_ring),
        ("of_an_interface_that_is_missing", missing),
    ],
};

/// Protocols for local experiments, and such that nobody uses.
const FILTERED: u16 = 0x88b5;
const COOKED: u16 = 0x88b6;
const SHARED: u16 = 0x88b7;

const AUXILIARY_DATA: i32 = libc::PACKET_AUXDATA;
const FANOUT: i32 = libc::PACKET_FANOUT;
/// Group 4711, by turns (`PACKET_FANOUT_LB`).
const GROUP: i32 = 4711 | 1 << 16;

struct Socket(OwnedFd);

impl Socket {
    fn new(kind: i32, protocol: u16) -> Self {
        // SAFETY: plain integers; the descriptor is nobody else's.
        unsafe {
            let flags = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let made = check(libc::socket(libc::AF_PACKET, flags, i32::from(protocol.to_be()))).unwrap();
            Self(OwnedFd::from_raw_fd(made))
        }
    }

    fn bound(kind: i32, protocol: u16, interface: i32) -> Self {
        let socket = Self::new(kind, 0);
        let address = address(protocol, interface);
        // SAFETY: a valid address.
        let bound = unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), LENGTH) };
        check(bound).unwrap();
        socket
    }

    fn set<T>(&self, level: i32, name: i32, value: &T) {
        let (value, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as u32);
        // SAFETY: the length is that of the value.
        check(unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, value, length) }).unwrap();
    }

    fn option(&self, name: i32) -> i32 {
        let (mut value, mut length) = (0_i32, 4);
        // SAFETY: room for an int.
        let got = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                name,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        check(got).unwrap();
        value
    }

    /// Protocol and interface.
    fn name(&self) -> (u16, i32) {
        let (mut address, mut length) = (address(0, 0), LENGTH);
        // SAFETY: room for an address.
        let got =
            unsafe { libc::getsockname(self.0.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        check(got).unwrap();
        (u16::from_be(address.sll_protocol), address.sll_ifindex)
    }

    fn send(&self, protocol: u16, interface: i32, data: &[u8]) -> Result<(), String> {
        let address = address(protocol, interface);
        // SAFETY: pointer and length are those of a slice; a valid address.
        let sent = unsafe {
            let (data, length) = (data.as_ptr().cast(), data.len());
            libc::sendto(self.0.as_raw_fd(), data, length, 0, (&raw const address).cast(), LENGTH)
        };
        check(sent).map(drop).map_err(|error| format!("sending a packet: {error}"))
    }

    /// All that waits.
    fn all(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        loop {
            let mut room = vec![0_u8; 2048];
            // SAFETY: room for as many bytes.
            let count = unsafe { libc::recv(self.0.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
            let Ok(count) = usize::try_from(count) else { return found };
            room.truncate(count);
            found.push(room);
        }
    }
}

const LENGTH: u32 = size_of::<libc::sockaddr_ll>() as u32;

fn address(protocol: u16, interface: i32) -> libc::sockaddr_ll {
    // SAFETY: an all-zero address is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    (address.sll_protocol, address.sll_ifindex) = (protocol.to_be(), interface);
    address.sll_halen = 6;
    address
}

fn index(name: &std::ffi::CStr) -> i32 {
    // SAFETY: a name that ends with NUL.
    unsafe { libc::if_nametoindex(name.as_ptr()) as i32 }
}

/// Whether an interface receives everything.
fn is_promiscuous() -> bool {
    let flags = std::fs::read_to_string("/sys/class/net/lo/flags").unwrap_or_default();
    u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0) & 0x100 != 0
}

fn packets(stage: Stage) {
    let lo = index(c"lo");
    let filtered = Socket::bound(libc::SOCK_RAW, FILTERED, lo);
    filtered.set(libc::SOL_PACKET, AUXILIARY_DATA, &1_i32);
    // ldb [14]; jeq #'y', 0, 1; ret #-1; ret #0
    let mut instructions = [
        libc::sock_filter { code: 0x30, jt: 0, jf: 0, k: 14 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: u32::from(b'y') },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 },
    ];
    let program = libc::sock_fprog { len: 4, filter: instructions.as_mut_ptr() };
    filtered.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program);
    let mut request: libc::packet_mreq = unsafe { std::mem::zeroed() };
    (request.mr_ifindex, request.mr_type) = (lo, libc::PACKET_MR_PROMISC as u16);
    filtered.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request);
    let cooked = Socket::new(libc::SOCK_DGRAM, COOKED);
    let shared = [0, 1].map(|_| {
        let socket = Socket::bound(libc::SOCK_RAW, SHARED, lo);
        socket.set(libc::SOL_PACKET, FANOUT, &GROUP);
        socket
    });
    let sender = Socket::new(libc::SOCK_DGRAM, 0);
    stage.serve(move |_| {
        verify!(filtered.name() == (FILTERED, lo), "{:?}", filtered.name());
        verify!(cooked.name() == (COOKED, 0), "{:?}", cooked.name());
        verify!(sender.name() == (0, 0), "{:?}", sender.name());
        verify!(filtered.option(AUXILIARY_DATA) == 1, "no auxiliary data");
        verify!(is_promiscuous(), "the interface does not receive everything");
        for socket in &shared {
            verify!(socket.option(FANOUT) == GROUP, "in the group {:#x}", socket.option(FANOUT));
        }
        for socket in [&filtered, &cooked, &sender, &shared[0], &shared[1]] {
            let found = socket.all();
            verify!(found.is_empty(), "{} packets wait that nobody has sent", found.len());
        }
        for word in ["yes", "no", "yet"] {
            sender.send(FILTERED, lo, word.as_bytes())?;
        }
        let found: Vec<_> = filtered.all().into_iter().map(|packet| packet[14..].to_vec()).collect();
        verify!(found == [&b"yes"[..], b"yet"], "the filter lets {found:?} in");
        sender.send(COOKED, lo, b"whole")?;
        let found = cooked.all();
        verify!(found == [b"whole"], "instead of one packet: {found:?}");
        for _ in 0..8 {
            sender.send(SHARED, lo, b"turns")?;
        }
        let counts = [shared[0].all().len(), shared[1].all().len()];
        verify!(counts == [4, 4], "8 packets are shared as {counts:?}");
        verify!(sender.all().is_empty(), "who only sends has got something");
        Ok(())
    });
}

fn shown() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("packets", &[])?;
    if case.is_control() {
        return case.finish(root);
    }
    let image = case.dump(root)?;
    let ran = case.vckpt(&["show", text(&image), "--sockets"])?.good()?;
    for word in ["p_raw", "0x88b5:lo", "p_dgr", "0x88b6:*"] {
        ensure!(ran.stdout.contains(word), "no {word}: {}", ran.describe());
    }
    let root = case.restore(&image)?;
    case.ask()?;
    case.finish(root)
}

/// Has a ring into which the kernel puts packets.
fn ring(stage: Stage) {
    let socket = Socket::new(libc::SOCK_RAW, FILTERED);
    let request =
        libc::tpacket_req { tp_block_size: 4096, tp_block_nr: 2, tp_frame_size: 2048, tp_frame_nr: 4 };
    socket.set(libc::SOL_PACKET, libc::PACKET_RX_RING, &request);
    stage.serve(move |_| {
        verify!(socket.name().0 == FILTERED, "{:?}", socket.name());
        Ok(())
    });
}

fn a_ring() -> Outcome {
    need_root()?;
    let mut case = Case::new()?;
    let root = case.start("packet-ring", &[])?;
    if !case.is_control() {
        let image = case.path("refused.vckpt");
        let ran = case.vckpt(&["dump", &root.to_string(), "-o", text(&image)])?;
        ran.refused(&[3])?;
        ensure!(ran.stderr.contains("a packet socket with a ring"), "it is not named: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}

/// Is bound to an interface that hosts don't have.
fn at(stage: Stage) {
    let interface = index(c"vckpt77");
    let socket = Socket::bound(libc::SOCK_RAW, FILTERED, interface);
    stage.serve(move |_| {
        verify!(socket.name() == (FILTERED, interface), "{:?}", socket.name());
        Ok(())
    });
}

fn missing() -> Outcome {
    need_root()?;
    let [unshare, nsenter] = [need_program("unshare")?, need_program("nsenter")?];
    need_program("ip")?;
    let mut case = Case::new()?;
    if case.is_control() {
        return skip("dump and restore");
    }
    let script = "ip link set lo name vckpt77 && ip link set vckpt77 up && exec \"$0\" \"$@\"";
    let mut command = case.command(&unshare, "packets-at")?;
    command.args(["--net", "sh", "-c", script]).arg(&case.fixtures);
    command.args(["fixture", "packets-at"]).arg(&case.folder);
    let root = spawn(&mut command)?;
    case.wait_ready("packets-at", root)?;
    case.ask()?;
    let image = case.path("image.vckpt");
    let mut command = case.command(&nsenter, "nsenter")?;
    command.args(["--net", "--target", &root.to_string()]).arg(&case.vckpt);
    command.args(["dump", &root.to_string(), "--leave-running", "-o", text(&image)]);
    let status = wait_exit(spawn(&mut command)?, std::time::Duration::from_secs(20))?;
    ensure!(status.success(), "the dump ended with {status}: {}", case.output("nsenter"));
    for command in [&["restore", text(&image), "--detach"][..], &["check", text(&image)]] {
        let ran = case.vckpt(command)?;
        ran.refused(&[4])?;
        ensure!(ran.stderr.contains("interface vckpt77"), "not named: {}", ran.describe());
    }
    case.ask()?;
    case.finish(root)
}
