//! End-to-end tests: real programs are frozen by `vckpt`, brought back, and asked what they noticed.
//!
//! This one binary is the harness and, as `e2e fixture NAME FOLDER …`, also every program that it freezes: one
//! file a topic holds both the frozen program and its cases. Every case goes round twice, since a restored
//! process must be as good as a new one.
//!
//! Run one: `cargo test --test e2e -- timers`. `VCKPT_TEST_LONG=1` runs the long variants,
//! `VCKPT_TEST_KEEP=1` keeps the folders, `VCKPT_BIN` names another `vckpt`. `VCKPT_TEST_CONTROL=1` is the control
//! run: dump and restore do nothing, so whatever fails then is wrong in the fixture.

#![allow(
    unsafe_code,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::wildcard_enum_match_arm,
    reason = "test programs call the kernel directly to put themselves into unusual states, and fail loudly"
)]

mod harness;
mod stage;
mod status;

mod actions;
mod addresses;
mod aio;
mod alarms;
mod attributes;
mod blocked;
mod clients;
mod clocks;
mod commands;
mod crowds;
mod damaged;
mod databases;
mod datagrams;
mod dispatch;
mod ends;
mod events;
mod files;
mod futexes;
mod guards;
mod handles;
mod held;
mod host_names;
mod in_flight;
mod ipc;
mod keys;
mod kills;
mod locks;
mod mapped_files;
mod memory;
mod notices;
mod outside;
mod over;
mod overlay;
mod owners;
mod packets;
mod paths;
mod peers;
mod pipes;
mod processor;
mod ptys;
mod queues;
mod ranges;
mod reception;
mod refusals;
mod rights;
mod ring_requests;
mod rings;
mod runs;
mod runtimes;
mod sandbox;
mod schedules;
mod segments;
mod sequences;
mod servers;
mod shapes;
mod sharing;
mod signals;
mod small_stacks;
mod socket_names;
mod socket_options;
mod sockets;
mod spin;
mod states;
mod streams;
mod system_v;
mod terminal;
mod threads;
mod timers;
mod tree;
mod unix_states;
mod waits;
mod watches;
mod workloads;

use std::process::ExitCode;

use harness::{Stop, Topic};
use libtest_mimic::{Arguments, Completion, Trial};

/// All topics, in the order in which one would bring them to life.
const TOPICS: &[Topic] = &[
    spin::TOPIC,
    processor::TOPIC,
    waits::TOPIC,
    blocked::TOPIC,
    threads::TOPIC,
    sequences::TOPIC,
    futexes::TOPIC,
    small_stacks::TOPIC,
    tree::TOPIC,
    memory::TOPIC,
    notices::TOPIC,
    ranges::TOPIC,
    guards::TOPIC,
    keys::TOPIC,
    segments::TOPIC,
    system_v::TOPIC,
    mapped_files::TOPIC,
    aio::TOPIC,
    files::TOPIC,
    packets::TOPIC,
    paths::TOPIC,
    handles::TOPIC,
    locks::TOPIC,
    pipes::TOPIC,
    outside::TOPIC,
    signals::TOPIC,
    queues::TOPIC,
    actions::TOPIC,
    owners::TOPIC,
    timers::TOPIC,
    alarms::TOPIC,
    attributes::TOPIC,
    dispatch::TOPIC,
    rights::TOPIC,
    schedules::TOPIC,
    events::TOPIC,
    watches::TOPIC,
    socket_options::TOPIC,
    sockets::TOPIC,
    socket_names::TOPIC,
    unix_states::TOPIC,
    host_names::TOPIC,
    in_flight::TOPIC,
    peers::TOPIC,
    datagrams::TOPIC,
    states::TOPIC,
    streams::TOPIC,
    addresses::TOPIC,
    over::TOPIC,
    overlay::TOPIC,
    status::TOPIC,
    ends::TOPIC,
    held::TOPIC,
    crowds::TOPIC,
    terminal::TOPIC,
    ptys::TOPIC,
    ipc::TOPIC,
    kills::TOPIC,
    runs::TOPIC,
    sandbox::TOPIC,
    servers::TOPIC,
    shapes::TOPIC,
    sharing::TOPIC,
    clients::TOPIC,
    workloads::TOPIC,
    runtimes::TOPIC,
    databases::TOPIC,
    reception::TOPIC,
    refusals::TOPIC,
    ring_requests::TOPIC,
    rings::TOPIC,
    damaged::TOPIC,
    clocks::TOPIC,
    commands::TOPIC,
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "fixture") {
        return stage::main(&words[1..]);
    }
    harness::process::become_subreaper();
    harness::process::keep_descriptors_private();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let cases = TOPICS.iter().flat_map(|topic| topic.cases.iter().map(|case| (topic.name, case)));
    let trials = cases.map(|(topic, &(name, run))| {
        Trial::ignorable_test(format!("{topic}::{name}"), move || match run() {
            Ok(()) => Ok(Completion::Completed),
            Err(Stop::Skipped(ability)) => Ok(Completion::ignored_with(format!("skipped: {ability}"))),
            Err(Stop::Failed(message)) => Err(message.into()),
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
