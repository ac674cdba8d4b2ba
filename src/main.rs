//! `vckpt`: the command line of the checkpoint library. Reads the arguments, runs the command, gives the exit code.

mod cli;
mod command;
mod failure;
mod output;
mod progress;
mod signals;
mod table;
mod units;

use clap::Parser;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => return failure::usage(&usage),
    };
    let output = Output::new(arguments.json, arguments.quiet);
    output::start_log(arguments.verbose, arguments.quiet);
    match command::run(arguments.command, &output) {
        Ok(code) => code,
        Err(failure) => failure.report(&output),
    }
}
