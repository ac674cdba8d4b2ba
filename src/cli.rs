//! What can be typed. The documentation comments are the help, the manual page and the completions; clap appears
//! nowhere else but where those are printed.

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Freeze a running tree of processes into one file, and bring it back
///
/// vckpt writes everything that a tree of processes is (memory, threads, open files, pipes, signals, timers) into one
/// image file, and restores it later: here or on another machine, once or many times. The processes need no
/// preparation and notice nothing.
///
/// Exit codes: 0 done; 1 fault of vckpt; 2 usage; 3 the target's state is not supported; 4 the host lacks a feature or
/// privilege; 5 the environment differs; 6 the image is damaged; 7 the image can't be written or read; 8 time-out while
/// freezing; 9 the target ended; 10 degraded; 75 checkpointed, run again; 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "vckpt", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Print one JSON object instead of words
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Print what is done and how long it takes; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Print nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands; their help is at their arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Dump(Dump),
    Restore(Restore),
    Run(Run),
    Check(Check),
    Show(Show),
    Explain(Explain),
    Demo(Demo),
    Completion(Completion),
    /// Print the manual page
    Man,
    /// The workload of the demonstration
    #[command(hide = true)]
    Bakery(Bakery),
}

/// Write a running process and all its descendants into an image
///
/// The image's path is printed to standard output, everything else to standard error. Unless told otherwise, the
/// processes are ended when the image is complete; if anything fails before, they go on as if nothing had happened.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    /// The process, which is dumped with all its descendants
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,

    /// The image [default: ./NAME-PID.vckpt]; - for standard output
    #[arg(short, long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,

    /// Let the processes go on afterwards
    #[arg(short = 'R', long, conflicts_with = "leave_stopped")]
    pub(crate) leave_running: bool,

    /// Leave the processes stopped afterwards, until SIGCONT
    #[arg(short = 's', long)]
    pub(crate) leave_stopped: bool,

    /// How long the processes may take to stand still
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) freeze_timeout: Duration,

    /// Replace an image that is already there
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Store programs and libraries too, for hosts that do not have the same
    #[arg(long)]
    pub(crate) embed_files: bool,

    /// What becomes of TCP connections whose peer is outside of the tree
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    pub(crate) tcp: TcpChoice,

    /// What becomes of unix sockets whose peer is outside of the tree
    ///
    /// Datagram sockets that send to an address, as those for log messages do, are connected with it again; with close,
    /// also if nobody is there any more.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub(crate) external: ExternalChoice,
}

/// What becomes of unix sockets whose peer is outside of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExternalChoice {
    /// The dump fails and names them
    Refuse,
    /// The program finds them closed by the peer, and the report names them
    Close,
}

/// What becomes of TCP connections whose peer is outside of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TcpChoice {
    /// They go on at the restore; the peer notices nothing but a pause
    Keep,
    /// The program finds them closed by the peer
    Close,
}

/// Bring back the processes of an image
///
/// Stays as the parent of the restored processes: signals and the terminal are handed on to them, and the exit code is
/// that of the first process (128 + n if signal n ended it). With --detach it ends as soon as they run, and prints the
/// process ID of the first one.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The image; - for standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) image: PathBuf,

    /// End as soon as the processes run
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Write the process ID of the first process to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pid_file: Option<PathBuf>,

    /// Where the old process IDs come from [default: same if they are free, else namespace]
    #[arg(long, value_name = "WHERE")]
    pub(crate) pids: Option<PidChoice>,

    /// Give sockets at address OLD of this host the address NEW (several times for several addresses)
    #[arg(long, value_name = "OLD=NEW", value_parser = addresses)]
    pub(crate) map_ip: Vec<(IpAddr, IpAddr)>,
}

/// Where the old process IDs come from.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PidChoice {
    /// The same IDs here; an error if one is taken
    Same,
    /// A fresh PID namespace
    Namespace,
}

/// Run a command that can be interrupted here and carried on elsewhere
///
/// If the image is there, the command goes on from it; else it is started. When vckpt run is told to end (SIGTERM), as
/// by a CI system that needs the machine, it writes the command with all its descendants into the image and ends with
/// exit code 75. Run again with that image, here or on another machine, the command goes on where it was.
///
/// When the command has exited, the image is removed; if it was killed, an image that is there stays. The exit code is
/// that of the command (128 + n if signal n ended it; 126 and 127 if it can't be started). Other signals are handed on
/// to it.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The image
    #[arg(short, long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) image: PathBuf,

    /// What SIGTERM does
    #[arg(long, value_name = "WHAT", default_value = "dump")]
    pub(crate) on_term: OnTerm,

    /// Renew the image while the command runs, each time after this span: 90, 90s, 10m, 2h
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) every: Option<Duration>,

    /// How long the processes may take to stand still
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) freeze_timeout: Duration,

    /// Store programs and libraries too, for hosts that do not have the same
    #[arg(long)]
    pub(crate) embed_files: bool,

    /// What becomes of TCP connections whose peer is outside of the tree
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    pub(crate) tcp: TcpChoice,

    /// What becomes of unix sockets whose peer is outside of the tree
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub(crate) external: ExternalChoice,

    /// The command and its arguments, behind --
    #[arg(last = true, required = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// What SIGTERM does to vckpt run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnTerm {
    /// The command goes into the image; if that can't be, it gets the signal
    Dump,
    /// The command gets it
    Pass,
}

/// Tell everything that stands in the way of a dump or restore, at once
///
/// Nothing is changed or created. Exit code 0: nothing stands in the way; 10: some things would not be exact; anything
/// else: the code that dump or restore would end with.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A process ID or an image
    #[arg(value_name = "PID|IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) subject: PathBuf,
}

/// Show what is in an image: processes, descriptors, signals, memory, records
///
/// Without options, all but the threads and the records. The contents of memory are not read.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The image
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) image: PathBuf,

    /// The tree of processes, as ps axjf shows it
    #[arg(short, long)]
    pub(crate) processes: bool,

    /// The threads with their rights and how they are scheduled
    #[arg(short, long)]
    pub(crate) threads: bool,

    /// The descriptors, as lsof shows them
    #[arg(short, long)]
    pub(crate) files: bool,

    /// The sockets, as ss -tanpx shows them
    #[arg(short, long)]
    pub(crate) sockets: bool,

    /// The signals that wait to be delivered, and the timers
    #[arg(long)]
    pub(crate) signals: bool,

    /// The mappings, as pmap shows them, with what is stored of each
    #[arg(short, long)]
    pub(crate) memory: bool,

    /// Every resource record, by kind
    #[arg(short, long)]
    pub(crate) records: bool,
}

/// Explain an error code such as VC-FD-001
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The code; without it, all are listed
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
}

/// Freeze a small bakery, bring it back, and prove that nothing was lost
///
/// Starts three processes of its own that work together through a pipe, a file, threads and timers; dumps them, shows
/// what was caught, restores them, and checks that they went on exactly where they were. Takes some four seconds,
/// needs no privileges, and leaves nothing behind.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the image and the bakery's book, and say where they are
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Print completions for a shell
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    pub(crate) shell: Shell,
}

/// The shells that completions are made for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// The workload of the demonstration; started by `vckpt demo` only.
#[derive(Debug, Args)]
pub(crate) struct Bakery {
    /// Which of its processes this is
    pub(crate) role: Role,
}

/// The processes of the bakery.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// The first process, which starts the others and watches the oven
    Master,
    /// Bakes loaves
    Baker,
    /// Sells them and keeps the book
    Shop,
}

impl Role {
    /// The word on the command line.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Baker => "baker",
            Self::Shop => "shop",
        }
    }
}

fn addresses(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let (old, new) = text.split_once('=').ok_or("these are no two addresses with = between them")?;
    let address = |text: &str| text.parse::<IpAddr>().map_err(|error| format!("{text}: {error}"));
    let (old, new) = (address(old)?, address(new)?);
    if old.is_ipv4() == new.is_ipv4() {
        return Ok((old, new));
    }
    Err("one address is of IPv4, the other of IPv6".to_owned())
}

/// A span of time: a number, and perhaps the letter of its unit.
fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.trim_end_matches(['s', 'm', 'h']) {
        number if number.len() + 1 < text.len() => return Err("this is no span of time".to_owned()),
        number => (number, text.get(number.len()..).unwrap_or_default()),
    };
    let factor = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let seconds: f64 = number.parse().map_err(|_| "this is no span of time".to_owned())?;
    match Duration::try_from_secs_f64(seconds * factor) {
        Ok(Duration::ZERO) => Err("this is no time at all".to_owned()),
        span => span.map_err(|error| error.to_string()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "this is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The completions for a shell.
pub(crate) fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "vckpt", &mut script);
    script
}

/// The manual page, one after the other for every command.
pub(crate) fn manual() -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = Arguments::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for part in command.get_subcommands().filter(|part| !part.is_hide_set() && part.get_name() != "help") {
        clap_mangen::Man::new(part.clone()).render(&mut page)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::{Arguments, CommandFactory, Parser};

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_have_units() {
        let seconds = |text| super::span(text).map(|span| span.as_secs_f64());
        assert_eq!(seconds("90"), Ok(90.0));
        assert_eq!(seconds("1.5s"), Ok(1.5));
        assert_eq!(seconds("10m"), Ok(600.0));
        assert_eq!(seconds("2h"), Ok(7200.0));
        for bad in ["", "m", "0", "-1", "5mm", "5d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn process_ids_are_positive() {
        assert!(Arguments::try_parse_from(["vckpt", "dump", "0"]).is_err());
        assert!(Arguments::try_parse_from(["vckpt", "dump", "12", "-o", "-"]).is_ok());
        assert!(Arguments::try_parse_from(["vckpt", "dump", "12", "-R", "-s"]).is_err());
    }
}
