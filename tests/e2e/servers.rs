//! Real servers: redis with 200,000 keys, nginx with workers of another user. Each goes round twice.

use std::fs;
use std::time::Duration;

use crate::harness::case::Case;
use crate::harness::process::{alive, children, signal, spawn, until};
use crate::harness::programs::{free_port, http_get, need_program, nginx_configuration, redis};
use crate::harness::{Outcome, Topic, ensure, need_root};

pub(crate) const TOPIC: Topic =
    Topic { name: "servers", fixtures: &[], cases: &[("redis", redis_server), ("nginx", nginx)] };

const LIMIT: Duration = Duration::from_secs(60);

fn redis_server() -> Outcome {
    let program = need_program("redis-server")?;
    let mut case = Case::new()?;
    let port = free_port()?;
    let mut server = case.command(&program, "redis")?;
    let number = port.to_string();
    server.args(["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    // DEBUG is off by default since version 7, and unknown before.
    let with_debug = ["--enable-debug-command", "yes"];
    let mut root = spawn(server.args(with_debug))?;
    let ping = || redis(port, "PING").is_ok_and(|answer| answer == "+PONG");
    until("redis to answer", LIMIT, || {
        if !alive(root) {
            return Some(crate::harness::fail(format!("redis ended: {}", case.output("redis"))));
        }
        ping().then_some(Ok(()))
    })??;
    let populated = redis(port, "DEBUG POPULATE 200000 key 100")?;
    ensure!(populated == "+OK", "DEBUG POPULATE gives {populated}");
    redis(port, "SET counter 0")?;
    for round in 1..=2 {
        let digest = redis(port, "DEBUG DIGEST")?;
        let size = redis(port, "DBSIZE")?;
        ensure!(size == ":200001", "{size} keys");
        let image = case.dump(root)?;
        ensure!(case.is_control() || !ping(), "something answers on the port of the dumped redis");
        root = case.restore(&image)?;
        until("redis to answer after the restore", LIMIT, || ping().then_some(()))?;
        let now = redis(port, "DEBUG DIGEST")?;
        ensure!(now == digest, "the digest of all keys was {digest} and is {now}");
        let counter = redis(port, "INCR counter")?;
        ensure!(counter == format!(":{round}"), "the counter is {counter} after {round} rounds");
        let expired = redis(port, "SET passing x PX 50")?;
        ensure!(expired == "+OK", "SET gives {expired}");
        until("a key to expire", LIMIT, || (redis(port, "EXISTS passing").ok()? == ":0").then_some(()))?;
        fs::remove_file(image)?;
    }
    case.finish(root)
}

/// A configuration that answers with a word.
fn configuration(port: u16, word: &str) -> String {
    nginx_configuration(port, 64, "access_log access.log;", word)
}

fn nginx() -> Outcome {
    need_root()?;
    let program = need_program("nginx")?;
    let mut case = Case::new()?;
    let port = free_port()?;
    let file = case.path("nginx.conf");
    fs::write(&file, configuration(port, "word-0"))?;
    let mut server = case.command(&program, "nginx")?;
    server.arg("-p").arg(&case.folder).arg("-c").arg(&file);
    let mut root = spawn(&mut server)?;
    let says = |word: &str| http_get(port, "/").is_ok_and(|answer| answer.contains(word));
    until("nginx to answer", LIMIT, || {
        if !alive(root) {
            return Some(crate::harness::fail(format!("nginx ended: {}", case.output("nginx"))));
        }
        says("word-0").then_some(Ok(()))
    })??;
    for round in 1..=2 {
        until("two workers", LIMIT, || (children(root).len() == 2).then_some(()))?;
        let image = case.dump(root)?;
        root = case.restore(&image)?;
        fs::remove_file(image)?;
        until("nginx to answer after the restore", LIMIT, || {
            says(&format!("word-{}", round - 1)).then_some(())
        })?;
        let old = children(root);
        ensure!(old.len() == 2, "{} workers after the restore", old.len());
        for worker in &old {
            let status = fs::read_to_string(format!("/proc/{worker}/status"))?;
            let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
            ensure!(user.contains("65534"), "a worker runs as {user}");
        }
        // A reload: new workers with the new configuration, the old ones end.
        let word = format!("word-{round}");
        fs::write(&file, configuration(port, &word))?;
        signal(root, libc::SIGHUP)?;
        until("the reloaded configuration", LIMIT, || says(&word).then_some(()))?;
        until("the old workers to end", LIMIT, || old.iter().all(|&worker| !alive(worker)).then_some(()))?;
        let log = fs::read_to_string(case.path("access.log"))?;
        ensure!(log.lines().count() > 0, "nothing was written to the log");
    }
    // A quiet end, in which nginx itself reaps its workers.
    signal(root, libc::SIGQUIT)?;
    until("nginx to end", LIMIT, || {
        crate::harness::process::reap();
        (!alive(root)).then_some(())
    })?;
    case.finish(root)
}
