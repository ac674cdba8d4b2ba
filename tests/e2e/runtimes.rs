//! Runtimes of languages with threads, timers, collected memory and children of their own: each program serves HTTP,
//! answers with counts of all that goes on in it, and goes round twice.
//!
//! The first number of an answer is how often the program has found something wrong, the second how often it was
//! asked; each of the others must go on growing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{alive, reap, signal, spawn, until};
use crate::harness::programs::{free_port, http_get, need_program, talk};
use crate::harness::{Outcome, Stop, Topic, ensure, fail, need_root, skip};
use crate::workloads::grows;

pub(crate) const TOPIC: Topic = Topic {
    name: "runtimes",
    fixtures: &[],
    cases: &[
        ("java", java),
        ("node", node),
        ("node_with_rings", node_with_rings),
        ("ruby", ruby),
        ("erlang", erlang),
        ("python_asyncio", python),
        ("python_pool_by_fork", || python_pool("fork")),
        ("python_pool_by_spawn", || python_pool("spawn")),
        ("coroutines_on_small_stacks", coroutines),
        ("memcached_of_another_user", memcached),
        ("tmux_with_bash_and_vi", tmux),
    ],
};

const LIMIT: Duration = Duration::from_secs(30);

/// The numbers that a program answers with.
fn numbers(port: u16) -> Option<Vec<u64>> {
    let answer = http_get(port, "/").ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    body.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

/// A program that serves numbers.
struct Served {
    root: i32,
    port: u16,
    asked: u64,
}

impl Served {
    /// Asks once more. The answer must be a good one, and know of all questions before.
    fn ask(&mut self, case: &Case, what: &str) -> Outcome<Vec<u64>> {
        let found = until(&format!("an answer of {what}"), LIMIT, || {
            reap();
            if !alive(self.root) {
                return Some(fail(format!("{what} has ended: {}", case.output(what))));
            }
            numbers(self.port).map(Ok)
        })??;
        let &[mistakes, asked, ref counts @ ..] = &found[..] else {
            return fail(format!("{what} answers {found:?}"));
        };
        self.asked += 1;
        ensure!(mistakes == 0, "{what} has found {mistakes} mistakes: {}", case.output(what));
        ensure!(asked == self.asked, "{what} was asked {} times and says {asked}", self.asked);
        Ok(counts.to_vec())
    }

    /// Asks until all counts are higher than before.
    fn grows(&mut self, case: &Case, what: &str, before: &[u64]) -> Outcome<Vec<u64>> {
        loop {
            let counts = self.ask(case, what)?;
            let pairs = || counts.iter().zip(before);
            ensure!(
                counts.len() == before.len() && pairs().all(|(count, before)| count >= before),
                "the counts of {what} were {before:?} and are {counts:?}"
            );
            if pairs().all(|(count, before)| count > before) {
                return Ok(counts);
            }
            ensure!(self.asked < 100_000, "the counts of {what} stay at {counts:?}");
        }
    }
}

/// Goes round twice with a program that serves numbers at a port, `count` of them being counts.
fn goes_on(mut case: Case, what: &str, port: u16, count: usize, mut command: Command) -> Outcome {
    let root = spawn(&mut command)?;
    let mut served = Served { root, port, asked: 0 };
    let mut counts = served.grows(&case, what, &vec![0; count])?;
    for _ in 0..2 {
        let image = case.dump(served.root)?;
        ensure!(case.is_control() || numbers(port).is_none(), "something answers for the dumped {what}");
        served.root = case.restore(&image)?;
        fs::remove_file(image)?;
        counts = served.grows(&case, what, &counts)?;
    }
    let root = served.root;
    signal(root, libc::SIGTERM)?;
    until(&format!("{what} to end as it is told"), LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    case.finish_empty()
}

/// A program of `programs/`, in the folder of the case.
fn write(case: &Case, name: &str, source: &str) -> Outcome<String> {
    let path = case.path(name);
    fs::write(&path, source)?;
    Ok(text(&path).to_owned())
}

/// A command that runs a script of `programs/` with a port.
fn script(case: &Case, interpreter: &Path, what: &str, name: &str, source: &str) -> Outcome<(u16, Command)> {
    let port = free_port()?;
    let file = write(case, name, source)?;
    let mut command = case.command(interpreter, what)?;
    command.args([&file, &port.to_string()]);
    Ok((port, command))
}

fn java() -> Outcome {
    let program = need_program("java")?;
    need_program("javac")?;
    let case = Case::new()?;
    let (port, mut command) =
        script(&case, &program, "java", "Server.java", include_str!("programs/Server.java"))?;
    // Little memory, so that much of it is collected, and is quick to dump. Options come before the file.
    let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = case.command(&program, "java")?;
    command.args(["-Xmx48m", "-XX:+UseG1GC"]).args(words).env("TMPDIR", &case.folder);
    goes_on(case, "java", port, 2, command)
}

fn node() -> Outcome {
    let program = need_program("node")?;
    let case = Case::new()?;
    let (port, command) = script(&case, &program, "node", "server.js", include_str!("programs/server.js"))?;
    goes_on(case, "node", port, 4, command)
}

/// Node.js that uses io_uring for its files and its epoll set.
fn node_with_rings() -> Outcome {
    let program = need_program("node")?;
    let case = Case::new()?;
    let (port, mut command) =
        script(&case, &program, "node", "server.js", include_str!("programs/server.js"))?;
    command.env("UV_USE_IO_URING", "1");
    let mut probe = Command::new(&program);
    probe.args(["-e", "process.exit(require('fs').readdirSync('/proc/self/fd').some(number => { try { return \
        require('fs').readlinkSync('/proc/self/fd/' + number).includes('io_uring') } catch { return false } }) ? 0 : 1)"]);
    if !probe.env("UV_USE_IO_URING", "1").status()?.success() {
        return skip("Node.js that uses io_uring, and a kernel that lets it");
    }
    goes_on(case, "node", port, 4, command)
}

fn ruby() -> Outcome {
    let program = need_program("ruby")?;
    let case = Case::new()?;
    let (port, command) = script(&case, &program, "ruby", "server.rb", include_str!("programs/server.rb"))?;
    goes_on(case, "ruby", port, 4, command)
}

fn erlang() -> Outcome {
    let program = need_program("escript")?;
    let case = Case::new()?;
    let (port, mut command) =
        script(&case, &program, "erlang", "server.erl", include_str!("programs/server.erl"))?;
    command.env("HOME", &case.folder);
    goes_on(case, "erlang", port, 2, command)
}

fn python() -> Outcome {
    let program = need_program("python3")?;
    let case = Case::new()?;
    let (port, command) = script(&case, &program, "python", "server.py", include_str!("programs/server.py"))?;
    goes_on(case, "python", port, 3, command)
}

/// Processes that share semaphores: files that are mapped, but not open, and may have lost their names.
fn python_pool(method: &str) -> Outcome {
    let program = need_program("python3")?;
    let mut case = Case::new()?;
    let file = write(&case, "pool.py", include_str!("programs/pool.py"))?;
    let mut root = spawn(case.command(&program, "python")?.args([&file, method]))?;
    let laps = case.path("laps");
    until("the pool", LIMIT, || laps.exists().then_some(()))?;
    let start = grows(&laps, "the pool", root);
    ensure!(start.is_ok(), "{start:?}: {}", case.output("python"));
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        let further = grows(&laps, "the pool", root);
        ensure!(further.is_ok(), "{further:?}: {}", case.output("python"));
    }
    signal(root, libc::SIGTERM)?;
    until("the pool to end", LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    let words = case.output("python");
    ensure!(words.is_empty(), "the pool says {words}");
    case.finish_empty()
}

fn coroutines() -> Outcome {
    let compiler = need_program("gcc")?;
    let mut case = Case::new()?;
    let source = write(&case, "coroutines.c", include_str!("programs/coroutines.c"))?;
    let mut compile = case.command(&compiler, "gcc")?;
    let done = compile.args(["-O2", "-pthread", "-o", "coroutines", &source]).status()?;
    ensure!(done.success(), "gcc ended with {done}: {}", case.output("gcc"));
    let program = case.path("coroutines");
    let mut root = spawn(&mut case.command(&program, "coroutines")?)?;
    let laps = || (0..4).map(|number| case.path(&format!("laps-{number}"))).collect::<Vec<_>>();
    let laps = laps();
    for file in &laps {
        until("the first laps", LIMIT, || file.exists().then_some(()))?;
        grows(file, "a thread", root)?;
    }
    for _ in 0..2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        for file in &laps {
            grows(file, "a thread", root)?;
        }
    }
    case.finish(root)
}

/// A memcached that has given up being root.
fn memcached() -> Outcome {
    need_root()?;
    let program = need_program("memcached")?;
    let mut case = Case::new()?;
    let port = free_port()?;
    let mut command = case.command(&program, "memcached")?;
    let mut root = spawn(command.args(["-u", "nobody", "-l", "127.0.0.1", "-p", &port.to_string()]))?;
    let ask = |words: &str| {
        talk(port, &format!("{words}\r\nquit\r\n"), |_| false).map(|answer| answer.trim_end().to_owned())
    };
    until("memcached to answer", LIMIT, || ask("set counter 0 0 1\r\n0").ok())?;
    for number in 0..500 {
        let stored = ask(&format!("set key-{number} 0 0 4\r\n{:04}", number * 7))?;
        ensure!(stored == "STORED", "memcached says {stored}");
    }
    for round in 1..=2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        until("memcached to answer after the restore", LIMIT, || ask("version").ok())?;
        let counter = ask("incr counter 1")?;
        ensure!(counter == round.to_string(), "the counter is {counter} after {round} rounds");
        for number in 0..500 {
            let value = ask(&format!("get key-{number}"))?;
            let wanted = format!("VALUE key-{number} 0 4\r\n{:04}\r\nEND", number * 7);
            ensure!(value == wanted, "key {number} is {value:?}");
        }
        let stored = ask("set passing 0 1 1\r\nx")?;
        ensure!(stored == "STORED", "memcached says {stored}");
        let status = fs::read_to_string(format!("/proc/{root}/status"))?;
        let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
        ensure!(user.contains("65534"), "memcached runs as {user}");
    }
    // Its clock goes on as well: what was to pass has passed.
    until("a key to expire", LIMIT, || (ask("get passing").ok()? == "END").then_some(()))?;
    case.finish(root)
}

/// A tmux server with a shell and an editor on terminals of its own, driven by its own client.
fn tmux() -> Outcome {
    let (program, bash, vi) = (need_program("tmux")?, need_program("bash")?, need_program("vi")?);
    let mut case = Case::new()?;
    let socket = text(&case.path("socket")).to_owned();
    let server = |words: &[&str]| -> Outcome<Command> {
        let mut command = case.command(&program, "tmux")?;
        command.args(["-S", &socket, "-f", "/dev/null"]).args(words).env("TERM", "xterm").env("PS1", "$ ");
        Ok(command)
    };
    let mut root = spawn(&mut server(&["-D"])?)?;
    let clients = Clients { program: program.clone(), socket: socket.clone() };
    until("the tmux server", LIMIT, || fs::exists(&socket).ok()?.then_some(()))?;
    let written = case.path("written");
    let window = ["new-session", "-d", "-s", "one", "-x", "80", "-y", "24"];
    // Words of their own are run without the user's shell.
    clients.run(&[&window[..], &[text(&bash), "--norc", "--noprofile"]].concat())?;
    clients.run(&["new-window", "-t", "one:1", text(&vi), "-u", "NONE", text(&written)])?;
    clients.run(&["send-keys", "-t", "one:0", "number=40; sleep 1000 &", "Enter"])?;
    clients.shows("one:0", "[1]")?;
    clients.run(&["send-keys", "-t", "one:1", "ifirst line", "Escape"])?;
    clients.shows("one:1", "first line")?;
    for round in 1..=2 {
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        let line = "number=$((number + 1)); echo \"it is $number\"; jobs";
        clients.run(&["send-keys", "-t", "one:0", line, "Enter"])?;
        clients.shows("one:0", &format!("it is {}", 40 + round))?;
        clients.shows("one:0", "Running")?;
        clients.shows("one:0", "[1]")?;
        clients.run(&["resize-window", "-t", "one:0", "-x", &(80 + round).to_string()])?;
        // The server tells the terminal a little later.
        let size = format!("24 {}", 80 + round);
        let wait = format!("until [ \"$(stty size)\" = '{size}' ]; do :; done; echo now $(stty size)");
        clients.run(&["send-keys", "-t", "one:0", &wait, "Enter"])?;
        clients.shows("one:0", &format!("now {size}"))?;
        clients.run(&[
            "send-keys",
            "-t",
            "one:1",
            &format!("oline of round {round}"),
            "Escape",
            ":w",
            "Enter",
        ])?;
        let wanted = (1..=round).map(|number| format!("line of round {number}\n")).collect::<String>();
        until("the editor to write", LIMIT, || {
            let text = fs::read_to_string(&written).ok()?;
            (text == format!("first line\n{wanted}")).then_some(())
        })?;
    }
    clients.run(&["send-keys", "-t", "one:0", "kill %1; wait; echo gone $number", "Enter"])?;
    clients.shows("one:0", "gone 42")?;
    clients.run(&["kill-server"])?;
    until("the tmux server to end", LIMIT, || {
        reap();
        (!alive(root)).then_some(())
    })?;
    case.finish_empty()
}

/// Clients of a tmux server.
struct Clients {
    program: std::path::PathBuf,
    socket: String,
}

impl Clients {
    /// What a client prints.
    fn run(&self, words: &[&str]) -> Outcome<String> {
        let done = Command::new(&self.program).args(["-S", &self.socket]).args(words).output()?;
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "tmux {words:?} ended with {}: {error}", done.status);
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Waits until a window shows some text.
    fn shows(&self, window: &str, wanted: &str) -> Outcome {
        let shown = || self.run(&["capture-pane", "-p", "-t", window]);
        let found = until(&format!("{wanted:?} in window {window}"), LIMIT, || match shown() {
            Ok(text) => text.contains(wanted).then_some(Ok(())),
            Err(stop) => Some(Err(stop)),
        });
        match found {
            Err(Stop::Failed(error)) => fail(format!("{error}; it shows: {}", shown()?.trim_end())),
            found => found?,
        }
    }
}
