//! The commands: one file each; arguments → request → report.

mod check;
mod completion;
mod demo;
mod dump;
mod explain;
mod restore;
mod run;
mod show;

use crate::cli::Command;
use crate::failure::Result;
use crate::output::Output;
use std::process::ExitCode;

/// Runs a command and gives its exit code.
pub(crate) fn run(command: Command, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Dump(arguments) => dump::run(arguments, output),
        Command::Restore(arguments) => restore::run(arguments, output),
        Command::Run(arguments) => run::run(arguments, output),
        Command::Check(arguments) => check::run(&arguments, output),
        Command::Show(arguments) => show::run(&arguments, output),
        Command::Explain(arguments) => explain::run(&arguments, output),
        Command::Demo(arguments) => demo::run(&arguments, output),
        Command::Completion(arguments) => completion::run(&arguments, output),
        Command::Man => completion::manual(output),
        Command::Bakery(arguments) => demo::bakery::run(arguments.role),
    }
}

/// The line about what could not be kept.
fn fidelity(degraded: &[String]) -> String {
    match degraded.len() {
        0 => "fidelity: exact".to_owned(),
        number => format!("fidelity: {} degraded", crate::units::count(number, "item", "items")),
    }
}

/// A duration in milliseconds, for JSON.
fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
