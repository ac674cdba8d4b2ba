//! Real programs and small outside helpers that cases use: finding them, talking to them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::{Outcome, skip};

/// The path of a program, or a skip naming it. Looks where packages of the distribution put programs first,
/// so that no wrapper script of a version manager is frozen in its place.
pub(crate) fn need_program(name: &str) -> Outcome<PathBuf> {
    let system = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    for folder in system.into_iter().chain(std::env::split_paths(&path)) {
        let candidate = folder.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    skip(format!("program {name}"))
}

/// A TCP port of the loopback interface that is free now.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Sends text to a local port and reads until the peer closes or `enough` is satisfied.
pub(crate) fn talk(port: u16, text: &str, enough: impl Fn(&[u8]) -> bool) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !enough(&answer) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// One inline command to a redis server; gives the first line of the answer (or the bulk string).
pub(crate) fn redis(port: u16, command: &str) -> std::io::Result<String> {
    let answer = talk(port, &format!("{command}\r\n"), |bytes| {
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return false };
        bytes.first() != Some(&b'$') || bytes.len() > end + 2 && bytes.ends_with(b"\r\n")
    })?;
    Ok(answer.trim_end().to_owned())
}

/// An HTTP GET from a local port; the whole answer.
pub(crate) fn http_get(port: u16, path: &str) -> std::io::Result<String> {
    talk(port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"), |_| false)
}

/// A configuration of nginx with two workers of another user, which answers with a word. `http` are further settings.
pub(crate) fn nginx_configuration(port: u16, connections: u32, http: &str, word: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = temporary.map(|name| format!("{name}_temp_path {name};\n")).concat();
    format!(
        "daemon off; user nobody nogroup; worker_processes 2; pid nginx.pid; error_log error.log;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{ {http} {temporary}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{word}\\n\"; }} }} }}\n"
    )
}
