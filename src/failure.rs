//! How failures look, and which exit code they give: the only place that knows.
//!
//! One line a problem, `vckpt: error[VC-…]: subject: what: why`, then what to do about it, then what became of the
//! target.

use crate::output::{Output, plain};
use serde::Serialize;
use std::io;
use std::process::ExitCode;
use vckpt_image_format::FormatError;
use vckpt_supervisor::error::{Class, Code, Error, Subject, code};

/// A result of the command line.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library says why.
    Library {
        /// The problem, with others that are independent of it.
        error: Box<Error>,
        /// What became of the target, in a sentence.
        guarantee: Option<String>,
    },
    /// Something that has no code: the class alone gives the exit code.
    Plain {
        /// The class.
        class: Class,
        /// What, on what, and why.
        message: String,
    },
    /// A fault of this program, or of its output.
    Other(anyhow::Error),
}

impl Failure {
    /// The same, with a word about the target.
    pub(crate) fn with_guarantee(self, word: Option<String>) -> Self {
        match self {
            Self::Library { error, .. } => Self::Library { error, guarantee: word },
            Self::Plain { .. } | Self::Other(_) => self,
        }
    }

    /// A failure that has no code.
    pub(crate) fn plain(class: Class, message: impl Into<String>) -> Self {
        Self::Plain { class, message: message.into() }
    }

    /// A failure in words.
    pub(crate) fn message(text: impl Into<String>) -> Self {
        Self::Other(anyhow::Error::msg(text.into()))
    }

    /// The same, with what was tried before it.
    pub(crate) fn context(self, what: impl Into<String>) -> Self {
        match self {
            Self::Other(error) => Self::Other(error.context(what.into())),
            Self::Library { .. } | Self::Plain { .. } => self,
        }
    }

    /// Prints it and gives the exit code. That nobody reads our output any more is a success.
    pub(crate) fn report(&self, output: &Output) -> ExitCode {
        match self {
            Self::Other(error) if is_broken_pipe(error) => ExitCode::SUCCESS,
            Self::Plain { class, message } if output.json => {
                let (message, exit_code) = (message.clone(), *class as u8);
                let problem = Problem {
                    code: "",
                    hint: String::new(),
                    message,
                    exit_code,
                    ..Problem::new(code::INTERNAL)
                };
                report_json(output, vec![problem], None)
            }
            Self::Plain { class, message } => {
                output.warn(format!("vckpt: error: {message}"));
                ExitCode::from(*class as u8)
            }
            Self::Other(error) if output.json => {
                let problem = Problem { message: format!("{error:#}"), ..Problem::new(code::INTERNAL) };
                report_json(output, vec![problem], None)
            }
            Self::Other(error) => {
                output.warn(format!("vckpt: error: {error:#}"));
                ExitCode::from(Class::Internal as u8)
            }
            Self::Library { error, guarantee } if output.json => {
                let problems = all(error).map(problem).collect();
                report_json(output, problems, guarantee.as_deref())
            }
            Self::Library { error, guarantee } => {
                for line in lines(all(error)) {
                    output.warn(line);
                }
                if let Some(sentence) = guarantee {
                    output.warn(format!("vckpt: {sentence}"));
                }
                ExitCode::from(error.code.class as u8)
            }
        }
    }
}

impl From<Box<Error>> for Failure {
    fn from(error: Box<Error>) -> Self {
        Self::Library { error, guarantee: None }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.into())
    }
}

/// A problem with an image at this path, as the library would say it.
pub(crate) fn image(path: impl std::fmt::Display, error: &FormatError) -> Failure {
    use FormatError as Refused;
    let (code, hint) = match error {
        Refused::Io(_) => (code::IMAGE_OPEN, None),
        Refused::NotAnImage => (code::IMAGE_BAD, Some("give a file that vckpt dump has written")),
        Refused::NotRegular => (code::IMAGE_BAD, Some("store the stream in a file first")),
        Refused::NewerFormat { .. } | Refused::UnknownKind { .. } | Refused::NewerRecord { .. } => {
            (code::IMAGE_NEWER, None)
        }
        Refused::OtherArchitecture { .. } | Refused::OtherPageSize { .. } => {
            (code::IMAGE_BAD, Some("use the image on a machine like the one where it was made"))
        }
        Refused::Truncated { .. }
        | Refused::Damaged { .. }
        | Refused::Unsupported { .. }
        | Refused::OlderRecord { .. }
        | Refused::Inconsistent { .. }
        | Refused::TooLarge { .. } => (code::IMAGE_BAD, None),
    };
    let mut problem = Error::new(code, "the image can't be used").about(Subject::path(path)).because(error);
    problem.hint = hint.map(str::to_owned);
    problem.into()
}

/// A command line that can't be understood, or help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(_) => ExitCode::SUCCESS,
    }
}

/// The lines for these problems: each with what to do, unless the next one has the same advice.
pub(crate) fn lines<'a>(problems: impl Iterator<Item = &'a Error>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut problems = problems.peekable();
    while let Some(error) = problems.next() {
        lines.push(format!("vckpt: error[{}]: {}", error.code.name, plain(error)));
        if problems.peek().is_none_or(|next| hint(next) != hint(error)) {
            lines.push(format!("hint: {}", plain(hint(error))));
        }
    }
    lines
}

/// A problem and those that travel with it.
pub(crate) fn all(error: &Error) -> impl Iterator<Item = &Error> {
    std::iter::once(error).chain(&error.others)
}

fn hint(error: &Error) -> &str {
    error.hint.as_deref().unwrap_or(error.code.hint)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(kind)
}

/// A problem in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    code: &'static str,
    exit_code: u8,
    message: String,
    task: Option<u32>,
    command: Option<String>,
    descriptor: Option<i32>,
    path: Option<String>,
    hint: String,
}

impl Problem {
    fn new(code: Code) -> Self {
        Self {
            code: code.name,
            exit_code: code.class as u8,
            message: String::new(),
            task: None,
            command: None,
            descriptor: None,
            path: None,
            hint: code.hint.to_owned(),
        }
    }
}

/// A problem as it is shown in JSON.
pub(crate) fn problem(error: &Error) -> Problem {
    let subject = error.subject.clone().unwrap_or_default();
    Problem {
        message: error.to_string(),
        task: subject.task,
        command: subject.command,
        descriptor: subject.descriptor,
        path: subject.path,
        hint: hint(error).to_owned(),
        ..Problem::new(error.code)
    }
}

/// Errors go to standard error in JSON too: standard output has results only.
fn report_json(output: &Output, problems: Vec<Problem>, guarantee: Option<&str>) -> ExitCode {
    #[derive(Serialize)]
    struct Failed<'a> {
        errors: Vec<Problem>,
        guarantee: Option<&'a str>,
    }
    let code = problems.first().map_or(Class::Internal as u8, |problem| problem.exit_code);
    if let Ok(text) = serde_json::to_string_pretty(&Failed { errors: problems, guarantee }) {
        output.warn(text);
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::{all, lines};
    use vckpt_supervisor::error::{Error, Subject, code};

    #[test]
    fn all_problems_are_shown_and_equal_advice_once() {
        let mut error = Error::new(code::DESCRIPTOR_KIND, "an io_uring can't be kept")
            .about(Subject::task(7, "node").descriptor(3));
        error.others.push(*Error::new(code::DESCRIPTOR_KIND, "a perf event can't be kept"));
        error
            .others
            .push(*Error::new(code::MAPPING, "memory of a device").because("unknown").hint("do this"));
        let expected = [
            "vckpt: error[VC-FD-001]: node(7) fd 3: an io_uring can't be kept",
            "vckpt: error[VC-FD-001]: a perf event can't be kept",
            "hint: this kind of descriptor is not supported yet: close it before the dump",
            "vckpt: error[VC-MEM-001]: memory of a device: unknown",
            "hint: do this",
        ];
        assert_eq!(lines(all(&error)), expected);
    }
}
