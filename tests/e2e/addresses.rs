//! Addresses that a host does not have: refused before anything is made, and given up for others.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{spawn, wait_exit};
use crate::harness::programs::need_program;
use crate::harness::{Outcome, Topic, ensure, need_root, skip};
use crate::stage::{Stage, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "addresses",
    fixtures: &[("addressed", addressed)],
    cases: &[("missing_and_mapped", missing_and_mapped)],
};

const OLD: &str = "192.0.2.77";
const LIMIT: Duration = Duration::from_secs(20);

fn addressed(stage: Stage) {
    let listener = TcpListener::bind((OLD, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let client = TcpStream::connect(at).unwrap();
    let server = listener.accept().unwrap().0;
    let udp = UdpSocket::bind((OLD, 0)).unwrap();
    let ports = [at.port(), client.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
    stage.serve_except(&["namespace"], |number| {
        let told = |error: std::io::Error| error.to_string();
        let expected: IpAddr = if number == 1 { OLD.parse().unwrap() } else { Ipv4Addr::LOCALHOST.into() };
        let places = [
            listener.local_addr().map_err(told)?,
            client.local_addr().map_err(told)?,
            udp.local_addr().map_err(told)?,
        ];
        for (place, port) in places.iter().zip(ports) {
            verify!((place.ip(), place.port()) == (expected, port), "{place} is not {expected} port {port}");
        }
        let peers = [client.peer_addr().map_err(told)?, server.peer_addr().map_err(told)?];
        verify!(peers == [places[0], places[1]], "the peers are {peers:?}");
        drop(TcpStream::connect(places[0]).map_err(told)?);
        listener.accept().map_err(told).map(drop)
    });
}

fn missing_and_mapped() -> Outcome {
    need_root()?;
    let [unshare, nsenter] = [need_program("unshare")?, need_program("nsenter")?];
    need_program("ip")?;
    let mut case = Case::new()?;
    if case.is_control() {
        return skip("dump and restore");
    }
    let script = format!("ip link set lo up && ip address add {OLD}/32 dev lo && exec \"$0\" \"$@\"");
    let mut command = case.command(&unshare, "addressed")?;
    command.args(["--net", "sh", "-c", &script]).arg(&case.fixtures);
    command.args(["fixture", "addressed"]).arg(&case.folder);
    let root = spawn(&mut command)?;
    case.wait_ready("addressed", root)?;
    case.ask()?;
    let image = case.path("image.vckpt");
    let mut command = case.command(&nsenter, "nsenter")?;
    command.args(["--net", "--target", &root.to_string()]).arg(&case.vckpt);
    command.args(["dump", &root.to_string(), "-o", text(&image)]);
    let status = wait_exit(spawn(&mut command)?, LIMIT)?;
    ensure!(status.success(), "the dump ended with {status}: {}", case.output("nsenter"));
    for command in [&["restore", text(&image), "--detach"][..], &["check", text(&image)]] {
        let ran = case.vckpt(command)?;
        ran.refused(&[5])?;
        ensure!(ran.stderr.contains(OLD), "no address: {}", ran.describe());
        ensure!(ran.stderr.contains("--map-ip"), "no way out: {}", ran.describe());
    }
    let root = case.restore_with(Path::new(&image), &["--map-ip", &format!("{OLD}=127.0.0.1")])?;
    case.ask()?;
    case.finish(root)
}
