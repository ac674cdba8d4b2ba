//! PostgreSQL, with its clients in the tree: while it is written to, and in the middle of a transaction.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::case::{Case, text};
use crate::harness::process::{alive, reap, spawn, until};
use crate::harness::programs::{free_port, need_program};
use crate::harness::{Outcome, Topic, ensure, fail, is_root, need_root, skip};

pub(crate) const TOPIC: Topic = Topic {
    name: "databases",
    fixtures: &[],
    cases: &[
        ("postgres_under_load", || under_load(Case::new()?)),
        ("postgres_under_load_of_an_ordinary_user", || {
            need_root()?;
            under_load(Case::new_as_ordinary_user()?)
        }),
        ("postgres_in_a_transaction", || in_a_transaction("$PWD")),
        ("postgres_in_a_transaction_over_tcp", || in_a_transaction("127.0.0.1")),
    ],
};

const LIMIT: Duration = Duration::from_secs(60);
/// PostgreSQL does not run as root.
const USER: u32 = 65534;

/// Starts a server at a port, waits until it answers, and opens the FIFO by which this shell is told what to do.
/// Everybody may write to that. The server has little memory; only a crash of the machine could lose what it has not
/// synchronized.
const SERVER: &str = r#"
programs=$1 PGPORT=$2
export PGPORT PGHOST=$PWD PGUSER=postgres
mkfifo -m 666 orders; exec 9<>orders
"$programs/postgres" -D data -k "$PWD" -c listen_addresses=127.0.0.1 -c fsync=off \
    -c shared_buffers=16MB -c max_connections=20 9>&- &
server=$!
until "$programs/psql" -qc 'create table numbers (n int)' 2>/dev/null; do
    kill -0 $server || exit
done
"#;

/// One client that notes what was committed, two that count for themselves, and one that connects anew for each stroke:
/// its connection often waits to be accepted.
const LOAD: &str = r#"
"$programs/psql" -qc 'create table strokes (client int, n int)' 9>&-
printf '%s\n' '\set n :n + 1' 'insert into strokes values (:client_id, :n);' > stroke
"$programs/pgbench" -n -c 2 -j 2 -T 1000 -D n=0 -f stroke > bench.out 2>&1 9>&- &
bench=$!
"$programs/psql" -qc 'create table calls (n serial)' 9>&-
echo 'insert into calls default values;' > call
"$programs/pgbench" -C -n -T 1000 -f call > calls.out 2>&1 9>&- &
calls=$!
for ((n = 1; ; n++)); do
    [ -e stop ] && break
    echo "insert into numbers values ($n) returning n;"
done 9>&- | "$programs/psql" -qAt > committed 9>&- &
load=$!
read -r order <&9
> stop; wait $load
kill $bench $calls; wait $bench $calls
> settled
read -r order <&9
kill -INT $server; wait $server; echo $? > ended
"#;

/// A client that is told what to do.
const CLIENT: &str = r#"
"$programs/psql" -h CLIENT_HOST -qAt <&9 > answers 2>&1
kill -INT $server; wait $server; echo $? > ended
"#;

/// A running server with its clients.
struct Postgres {
    programs: PathBuf,
    case: Case,
    root: i32,
    port: u16,
}

/// The folder of the programs of the newest PostgreSQL.
fn programs() -> Outcome<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| {
            ["postgres", "initdb", "psql", "pgbench"].iter().all(|name| folder.join(name).is_file())
        })
        .collect();
    found.sort();
    found.pop().map_or_else(|| skip("program postgres"), Ok)
}

impl Postgres {
    /// A server with a fresh database, under a shell that goes on with `script`.
    fn start(case: Case, script: &str) -> Outcome<Self> {
        use std::os::unix::process::CommandExt as _;
        let (programs, bash) = (programs()?, need_program("bash")?);
        let command = |program: &Path, name: &str| -> Outcome<Command> {
            let mut command = case.command(program, name)?;
            if is_root() {
                std::os::unix::fs::chown(&case.folder, Some(USER), Some(USER))?;
                command.uid(USER).gid(USER);
            }
            Ok(command)
        };
        let mut make = command(&programs.join("initdb"), "initdb")?;
        make.args(["-N", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "-D", "data"]);
        let done = make.status()?;
        ensure!(done.success(), "initdb ended with {done}: {}", case.output("initdb"));
        let port = free_port()?;
        let mut shell = command(&bash, "postgres")?;
        shell.args(["-c", &format!("{SERVER}{script}"), "bash", text(&programs), &port.to_string()]);
        let root = spawn(&mut shell)?;
        Ok(Self { programs, case, root, port })
    }

    /// Waits for something while the server is alive.
    fn until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> Outcome<T> {
        until(what, LIMIT, || {
            reap();
            if !alive(self.root) {
                return Some(fail(format!("postgres has ended: {}", self.case.output("postgres"))));
            }
            condition().map(Ok)
        })?
    }

    /// What a new client outside of the tree gets for an answer.
    fn ask(&self, host: &str, query: &str) -> Outcome<String> {
        let mut client = Command::new(self.programs.join("psql"));
        client.args(["-h", host, "-p", &self.port.to_string(), "-U", "postgres", "-qAt", "-c", query]);
        let done = client.output()?;
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "{query}: {error}{}", self.case.output("postgres"));
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }

    /// As [`ask`](Self::ask), over the unix socket.
    fn ask_here(&self, query: &str) -> Outcome<String> {
        self.ask(text(&self.case.folder), query)
    }

    /// Tells the shell, or the client in its tree, what to do.
    fn order(&self, line: &str) -> Outcome {
        let mut orders = fs::File::options().write(true).open(self.case.path("orders"))?;
        orders.write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    fn round(&mut self) -> Outcome {
        let image = self.case.dump(self.root)?;
        self.root = self.case.restore(&image)?;
        fs::remove_file(image)?;
        Ok(())
    }

    /// The server has ended as it was told, and the shell after it.
    fn ended(mut self) -> Outcome {
        until("the shell to end", LIMIT, || {
            reap();
            (!alive(self.root)).then_some(())
        })?;
        let log = self.case.output("postgres");
        let status = fs::read_to_string(self.case.path("ended"))?;
        ensure!(status.trim() == "0", "postgres ended with {status}: {log}");
        let bad = log
            .lines()
            .find(|line| ["PANIC", "ERROR:", "WARNING", "terminated"].iter().any(|word| line.contains(word)));
        ensure!(bad.is_none(), "the log of postgres says {bad:?}: {log}");
        self.case.finish_empty()
    }
}

fn under_load(case: Case) -> Outcome {
    let mut server = Postgres::start(case, LOAD)?;
    server.until("the load to begin", || server.case.path("committed").exists().then_some(()))?;
    let mut seen = 0;
    for round in 0..=2 {
        if round > 0 {
            server.round()?;
        }
        // Every row once, without a gap, over both kinds of connection; and there are more and more.
        for host in ["127.0.0.1", text(&server.case.folder)] {
            let until_more = seen + 100;
            while seen < until_more {
                let rows = server
                    .ask(host, "select count(*), count(distinct n), coalesce(max(n), 0) from numbers")?;
                let counts: Vec<u64> = rows.split('|').filter_map(|word| word.parse().ok()).collect();
                ensure!(matches!(counts[..], [a, b, c] if a == b && b == c), "the rows are {rows}");
                ensure!(counts[0] >= seen, "there were {seen} rows, and are {rows}");
                ensure!(alive(server.root), "the load has ended: {}", server.case.output("bench"));
                seen = counts[0];
            }
        }
    }
    server.order("stop")?;
    server.until("the load to end", || server.case.path("settled").exists().then_some(()))?;
    let committed = fs::read_to_string(server.case.path("committed"))?;
    for (number, line) in committed.lines().enumerate() {
        ensure!(line == (number + 1).to_string(), "line {number} of what was committed is {line:?}");
    }
    let rows = server.ask_here("select count(*) from numbers")?;
    ensure!(rows == committed.lines().count().to_string(), "{rows} rows, not {}", committed.lines().count());
    let query = "select count(distinct client), sum((rows = distinct_rows and rows = last)::int) from (select client, count(*) rows, count(distinct n) distinct_rows, max(n) last from strokes group by client) counted";
    let strokes = server.ask_here(query)?;
    ensure!(strokes == "2|2", "the clients and those with every stroke once: {strokes}");
    let calls = server.ask_here("select count(*) > 0 and count(*) = count(distinct n) from calls")?;
    ensure!(calls == "t", "the calls are none, or some are there twice");
    for bench in ["bench", "calls"].map(|name| server.case.output(name)) {
        ensure!(!bench.contains("error"), "pgbench says {bench}");
    }
    server.order("end")?;
    server.ended()
}

/// A transaction that is open all the time, with a table of its own, and with a row that it has locked.
fn in_a_transaction(host: &str) -> Outcome {
    let case = Case::new()?;
    let mut server = Postgres::start(case, &CLIENT.replace("CLIENT_HOST", host))?;
    server.until("the client", || server.case.path("answers").exists().then_some(()))?;
    server.order("insert into numbers values (1); begin; update numbers set n = 2;")?;
    server.order("create temporary table own (n int); prepare add as insert into own values ($1);")?;
    let state = "select pg_backend_pid(), txid_current(), now(), pg_my_temp_schema()";
    let answer = |server: &Postgres, count: usize| {
        server.until("the client's answer", || {
            let answers = fs::read_to_string(server.case.path("answers")).ok()?;
            answers.lines().nth(count).filter(|_| answers.ends_with('\n')).map(str::to_owned)
        })
    };
    server.order(&format!("{state};"))?;
    let before = answer(&server, 0)?;
    for round in 1..=2 {
        server.order(&format!("execute add({round});"))?;
        server.round()?;
        server.order(&format!("{state};"))?;
        let now = answer(&server, 2 * round - 1)?;
        ensure!(now == before, "the transaction was {before} and is {now}");
        server.order("select sum(n), count(*) from own;")?;
        let own = answer(&server, 2 * round)?;
        ensure!(own == format!("{}|{round}", round * (round + 1) / 2), "the temporary table has {own}");
        // Others see nothing of it yet, but for the lock.
        let seen = server.ask_here("select n from numbers")?;
        ensure!(seen == "1", "others see {seen}");
        let locked =
            server.ask_here("select count(*) from (select from numbers for update skip locked) free")?;
        ensure!(locked == "0", "{locked} rows are free");
    }
    server.order("insert into numbers select n + 10 from own; commit; select 'committed';")?;
    let done = answer(&server, 5)?;
    ensure!(done == "committed", "the client says {done}");
    let rows = server.ask("127.0.0.1", "select string_agg(n::text, ',' order by n) from numbers")?;
    ensure!(rows == "2,11,12", "the table has {rows}");
    server.order("\\q")?;
    server.ended()
}
