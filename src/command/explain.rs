//! `vckpt explain`: what an error code means.

use crate::cli::Explain;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::table::{Align, Table};
use serde::Serialize;
use std::process::ExitCode;
use vckpt_supervisor::error::code::ALL;
use vckpt_supervisor::error::{Class, Code};

/// A code in JSON.
#[derive(Serialize)]
struct Json {
    code: &'static str,
    exit_code: u8,
    class: &'static str,
    hint: &'static str,
}

impl From<&Code> for Json {
    fn from(code: &Code) -> Self {
        Self { code: code.name, exit_code: code.class as u8, class: meaning(code.class), hint: code.hint }
    }
}

/// Explains a code, or lists all.
pub(super) fn run(arguments: &Explain, output: &Output) -> Result<ExitCode> {
    let Some(wanted) = &arguments.code else {
        list(output)?;
        return Ok(ExitCode::SUCCESS);
    };
    let code = ALL.iter().find(|code| code.name.eq_ignore_ascii_case(wanted)).ok_or_else(|| {
        let message = format!("{wanted} is no error code of vckpt; vckpt explain lists all that there are");
        Failure::plain(Class::Usage, message)
    })?;
    if output.json {
        output.object(&Json::from(code))?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(format!("{}: {}", code.name, meaning(code.class)))?;
    output.line(format!("exit code: {}", code.class as u8))?;
    output.line(format!("what to do: {}", code.hint))?;
    Ok(ExitCode::SUCCESS)
}

fn list(output: &Output) -> Result<()> {
    if output.json {
        let codes: Vec<Json> = ALL.iter().map(Json::from).collect();
        return Ok(output.object(&codes)?);
    }
    let mut table = Table::new(&[("CODE", Align::Left), ("EXIT", Align::Right), ("WHAT TO DO", Align::Left)]);
    for code in ALL {
        table.row([code.name.to_owned(), (code.class as u8).to_string(), code.hint.to_owned()]);
    }
    Ok(output.lines(table.lines())?)
}

/// What a class of failures means.
const fn meaning(class: Class) -> &'static str {
    match class {
        Class::Internal => "a fault of vckpt",
        Class::Usage => "a wrong command line",
        Class::Unsupported => "the target is in a state that is not supported; nothing was changed",
        Class::Host => "this host lacks a feature or a privilege",
        Class::Environment => "something around the image differs from when it was made",
        Class::Image => "the image is damaged, or of another format",
        Class::Transfer => "writing or reading the image failed",
        Class::Timeout => "the target could not be stopped in time",
        Class::TargetLost => "the target ended meanwhile",
        Class::Degraded => "something would not be exact, and you insisted that it is",
    }
}
