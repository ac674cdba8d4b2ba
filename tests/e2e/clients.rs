//! Servers with clients that stay connected: 200 of them in this process, which notice nothing but a pause; and two
//! programs of one tree that talk over TCP.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::case::Case;
use crate::harness::process::{alive, spawn, until};
use crate::harness::programs::{free_port, http_get, need_program, nginx_configuration, redis};
use crate::harness::{Outcome, Topic, ensure, fail, need_root};

pub(crate) const TOPIC: Topic = Topic {
    name: "clients",
    fixtures: &[],
    cases: &[("redis_with_200", redis_server), ("nginx_with_200", nginx), ("two_pythons", pythons)],
};

const LIMIT: Duration = Duration::from_secs(30);
const COUNT: usize = 200;

/// Sends a question and reads an answer that is as long as the expected one.
fn asks(client: &mut TcpStream, question: &str, end: &str) -> Outcome {
    client.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    while !answer.ends_with(end.as_bytes()) {
        let count = client.read(&mut bytes)?;
        ensure!(count > 0, "the server has closed a connection after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..count]);
    }
    Ok(())
}

fn connected(port: u16) -> Outcome<Vec<TcpStream>> {
    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let client = TcpStream::connect(("127.0.0.1", port))?;
        client.set_read_timeout(Some(LIMIT))?;
        clients.push(client);
    }
    Ok(clients)
}

/// Two rounds, in which every client asks after each restore, and every second one before the dump too.
fn rounds(case: &mut Case, mut root: i32, port: u16, question: &str, end: &str) -> Outcome<i32> {
    let mut clients = connected(port)?;
    for client in &mut clients {
        asks(client, question, end)?;
    }
    for _ in 0..2 {
        for client in clients.iter_mut().step_by(2) {
            asks(client, question, end)?;
        }
        let image = case.dump(root)?;
        // One who asks while the server is away.
        clients[0].write_all(question.as_bytes())?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        asks(&mut clients[0], "", end)?;
        for client in &mut clients {
            asks(client, question, end)?;
        }
    }
    Ok(root)
}

fn redis_server() -> Outcome {
    need_root()?;
    let program = need_program("redis-server")?;
    let mut case = Case::new()?;
    let port = free_port()?;
    let mut server = case.command(&program, "redis")?;
    let number = port.to_string();
    server.args(["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let root = spawn(&mut server)?;
    until("redis to answer", LIMIT, || {
        if !alive(root) {
            return Some(fail(format!("redis ended: {}", case.output("redis"))));
        }
        redis(port, "PING").is_ok_and(|answer| answer == "+PONG").then_some(Ok(()))
    })??;
    let root = rounds(&mut case, root, port, "PING\r\n", "+PONG\r\n")?;
    case.finish(root)
}

fn configuration(port: u16) -> String {
    nginx_configuration(port, 512, "access_log off; keepalive_timeout 600;", "a word")
}

fn nginx() -> Outcome {
    need_root()?;
    let program = need_program("nginx")?;
    let mut case = Case::new()?;
    let port = free_port()?;
    let file = case.path("nginx.conf");
    fs::write(&file, configuration(port))?;
    let mut server = case.command(&program, "nginx")?;
    server.arg("-p").arg(&case.folder).arg("-c").arg(&file);
    let root = spawn(&mut server)?;
    until("nginx to answer", LIMIT, || {
        if !alive(root) {
            return Some(fail(format!("nginx ended: {}", case.output("nginx"))));
        }
        http_get(port, "/").is_ok_and(|answer| answer.contains("a word")).then_some(Ok(()))
    })??;
    let question = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let root = rounds(&mut case, root, port, question, "a word\n")?;
    case.finish(root)
}

/// A server and its client: numbers go to and fro all the time, several at once; a line every thousand.
const PYTHON: &str = r"
import os, socket, struct
listener = socket.socket()
listener.bind(('127.0.0.1', 0))
listener.listen()
if os.fork() == 0:
    there = socket.create_connection(listener.getsockname())
    listener.close()
    while True:
        data = there.recv(4096)
        if not data:
            os._exit(1)
        there.sendall(data)
connection, _ = listener.accept()
def take():
    data = b''
    while len(data) < 8:
        more = connection.recv(8 - len(data))
        if not more:
            raise SystemExit('the other end is gone')
        data += more
    return struct.unpack('q', data)[0]
for number in range(40):
    connection.sendall(struct.pack('q', number))
expected = 0
with open('laps', 'w', buffering=1) as out:
    while True:
        number = take()
        if number != expected:
            out.write('BAD %d, not %d\n' % (number, expected))
        expected += 1
        connection.sendall(struct.pack('q', number + 40))
        if number % 1000 == 0:
            out.write('lap %d\n' % number)
";

fn pythons() -> Outcome {
    let program = need_program("python3")?;
    let mut case = Case::new()?;
    let mut command = case.command(&program, "python")?;
    let mut root = spawn(command.arg("-c").arg(PYTHON))?;
    let path = case.path("laps");
    let laps = || fs::read_to_string(&path).unwrap_or_default();
    let goes_on = |case: &Case, root: i32| -> Outcome {
        let before = laps().lines().count();
        until("the numbers to go on", LIMIT, || {
            if !alive(root) {
                return Some(fail(format!("python ended: {}", case.output("python"))));
            }
            (laps().lines().count() > before + 1).then_some(Ok(()))
        })?
    };
    goes_on(&case, root)?;
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        goes_on(&case, root)?;
        ensure!(!laps().contains("BAD"), "numbers were lost: {}", laps());
    }
    case.finish(root)
}
