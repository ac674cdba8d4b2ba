//! The peak memory of the commands.

use super::Outcome;
use super::options::Options;
use super::stage::{Folder, Program, reap, vckpt};
use super::table::{Table, Target};
use nix::sys::resource::{UsageWho, getrusage};
use std::fs;
use std::process::{Command, Stdio};

/// What a command may take, in MiB.
const LIMIT: f64 = 64.0;

/// Programs of many kinds, dumped and restored.
pub(crate) fn measure(options: &Options, table: &mut Table) -> Outcome {
    let size = options.size.to_string();
    let cases: [(&str, &str, &str); 4] = [
        ("64 MiB of memory", "memory", "64"),
        ("much memory", "memory", &size),
        ("20000 mappings", "mappings", "20000"),
        ("1000 threads", "threads", "1000"),
    ];
    for (what, name, number) in cases {
        let within = options.folders.last().ok_or("no folder")?;
        let folder = Folder::new(within)?;
        let image = folder.file("footprint.vckpt");
        let (program, _) = Program::fixture(&folder, &[name, number])?;
        let pid = program.pid().to_string();
        let dump = weighed(vckpt().args(["dump", "-q", &pid, "-o"]).arg(&image))?;
        reap()?;
        let restore = weighed(vckpt().args(["restore", "-q", "--detach"]).arg(&image))?;
        drop(program);
        table.row(&format!("dump, {what} ({number})"), "MiB", &[dump], Target::AtMost(LIMIT));
        table.row(&format!("restore, {what} ({number})"), "MiB", &[restore], Target::AtMost(LIMIT));
        fs::remove_file(&image)?;
    }
    Ok(())
}

/// The peak memory of a command in MiB. It is started by a small process of its own, since the kernel counts the memory
/// of whoever starts a program as that of the program.
fn weighed(command: &Command) -> Outcome<f64> {
    let mut scales = Command::new(std::env::current_exe()?);
    scales.arg("weigh").arg(command.get_program()).args(command.get_args());
    let output = scales.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let kibibytes: f64 = text.trim().parse().map_err(|_| format!("{command:?} failed"))?;
    Ok(kibibytes / 1024.0)
}

/// Runs a command and prints its peak memory in KiB.
pub(crate) fn weigh(words: &[&str]) -> Outcome {
    let (program, arguments) = words.split_first().ok_or("nothing to weigh")?;
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("{status}").into());
    }
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}
