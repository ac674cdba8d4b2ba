//! Benchmarks of the `vckpt` command, as ratios to what the machine can do in the same round.
//!
//! Run with `cargo bench`; `benches/README.md` says what each figure means. This one program is the benchmark and, as
//! `speed fixture NAME …`, also the programs that are frozen.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a benchmark talks to people, and its figures are rounded"
)]

mod fixture;
mod footprint;
mod many;
mod memory;
mod options;
mod small;
mod stage;
mod table;

use std::error::Error;
use std::process::ExitCode;
use table::Table;

/// What goes wrong is shown and ends the benchmark.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["fixture", name, rest @ ..] => fixture::run(name, rest).map(|()| true),
        ["weigh", command @ ..] => footprint::weigh(command).map(|()| true),
        words => options::Options::parse(words).and_then(|options| measure(&options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("speed: {error}");
            ExitCode::from(2)
        }
    }
}

/// Measures something and adds its rows.
type Group = fn(&options::Options, &mut Table) -> Outcome;

/// Runs the groups that were asked for; false if a target was missed and that is to count.
fn measure(options: &options::Options) -> Outcome<bool> {
    stage::prepare()?;
    let mut table = Table::new();
    let groups: [(&str, Group); 4] = [
        ("small", small::measure),
        ("memory", memory::measure),
        ("footprint", footprint::measure),
        ("many", many::measure),
    ];
    for (name, group) in groups {
        if options.wants(name) {
            table.heading(name);
            group(options, &mut table)?;
        }
    }
    println!("\n{} targets met, {} missed", table.met(), table.missed());
    Ok(table.missed() == 0 || !options.check)
}
