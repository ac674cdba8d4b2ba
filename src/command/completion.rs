//! `vckpt completion` and `vckpt man`: both are made from the definition of the command line.

use crate::cli::{self, Completion};
use crate::failure::Result;
use crate::output::Output;
use std::process::ExitCode;

/// Prints the completions for a shell.
pub(super) fn run(arguments: &Completion, output: &Output) -> Result<ExitCode> {
    output.bytes(&cli::completion(arguments.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page.
pub(super) fn manual(output: &Output) -> Result<ExitCode> {
    output.bytes(&cli::manual()?)?;
    Ok(ExitCode::SUCCESS)
}
