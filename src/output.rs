//! How results are printed: results to standard output, words for people to standard error. No logic.

use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::time;

/// Where and how results are printed.
#[derive(Debug)]
pub(crate) struct Output {
    /// One JSON object instead of words.
    pub(crate) json: bool,
    quiet: bool,
    colour: bool,
}

/// What a word means, for those who see colours. Every text is readable without.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tint {
    Strong,
    Faint,
    Good,
    Bad,
}

impl Output {
    /// Output as the user wants it.
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, quiet, colour: io::stdout().is_terminal() && !refused }
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", text.as_ref())
    }

    /// Lines of the result.
    pub(crate) fn lines<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        lines.into_iter().try_for_each(|line| writeln!(stdout, "{}", line.as_ref()))
    }

    /// The result as bytes.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// The result as JSON.
    pub(crate) fn object(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(serde_json::to_string_pretty(value)?)
    }

    /// A line for people. That nobody reads it is no failure.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            self.warn(text);
        }
    }

    /// A line that is printed even if the user wants no words.
    pub(crate) fn warn(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// Whether a progress bar may be drawn.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }

    /// The text in a colour, if standard output shows colours.
    pub(crate) fn tint(&self, tint: Tint, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        let code = match tint {
            Tint::Strong => "1",
            Tint::Faint => "2",
            Tint::Good => "32",
            Tint::Bad => "1;31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from an image or a target, fit for a terminal: control characters are escaped.
pub(crate) fn plain(text: impl std::fmt::Display) -> String {
    let escape = |character: char| -> String {
        if character.is_control() { character.escape_default().collect() } else { character.into() }
    };
    text.to_string().chars().map(escape).collect()
}

/// Sends the log of the libraries to standard error, with the time since the start.
pub(crate) fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_timer(time::uptime())
        .with_target(verbose > 1)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
}
