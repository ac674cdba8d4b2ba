//! What the demonstration says: calm, short, aligned, readable without colour.

use super::bakery::OVEN;
use super::book::{Book, Oven, Proof};
use crate::command::show::view::View;
use crate::command::show::{files, memory, processes, records};
use crate::failure::Result;
use crate::output::{Output, Tint};
use crate::units;
use std::path::Path;
use std::time::Duration;
use vckpt_supervisor::{dump, restore};

/// Tells the story.
#[derive(Debug)]
pub(super) struct Story<'a>(&'a Output);

impl<'a> Story<'a> {
    pub(super) const fn new(output: &'a Output) -> Self {
        Self(output)
    }

    pub(super) fn opening(&self) -> Result<()> {
        self.text("A small bakery: a baker puts loaves into a pipe, a shop sells them and keeps the book,")?;
        self.text(
            "a clock ticks, a washer washes, and there is bread in the oven. None of them knows of vckpt.",
        )?;
        self.text("")
    }

    pub(super) fn before_dump(&self, pid: i32, book: &Book, oven: &Oven) -> Result<()> {
        let baked = oven.put_in.map_or(Duration::ZERO, |put_in| super::stage::now().saturating_sub(put_in));
        let left = OVEN.saturating_sub(baked);
        self.line("at work", &format!("{}, bread needs {} more", sold(book), units::time(left)))?;
        self.text("")?;
        self.command(&format!("vckpt dump {pid}"))
    }

    /// Shows what was caught, and gives the process IDs, the master's first.
    pub(super) fn caught(&self, report: &dump::Report, view: &View) -> Result<Vec<u32>> {
        let image = units::bytes(report.image_bytes);
        let times = (units::time(report.frozen), units::time(report.total));
        self.line("frozen", &format!("for {}, written in {}: one file of {image}", times.0, times.1))?;
        let rows = processes::rows(view);
        let width = rows.iter().map(|row| row.branch.len() + row.command_line.len()).max().unwrap_or(0);
        let mut label = "caught";
        for row in &rows {
            let tree = format!("{}{}", row.branch, row.command_line);
            let threads = units::count(row.threads.len(), "thread", "threads");
            self.line(label, &format!("{:>7}  {tree:width$}  {threads}", row.pid))?;
            label = "";
        }
        let numbered = |row: &&files::Row| row.descriptor.starts_with(|letter: char| letter.is_ascii_digit());
        let descriptors = files::rows(view).iter().filter(numbered).count();
        let spaces = memory::spaces(view);
        let size: u64 = spaces.iter().map(|space| space.size).sum();
        let stored: u64 = spaces.iter().map(|space| space.stored).sum();
        let (size, stored) = (units::bytes(size), units::bytes(stored));
        let descriptors = units::count(descriptors, "descriptor", "descriptors");
        self.line("", &format!("{descriptors}; {size} of memory, of which {stored} had to be stored"))?;
        let rows_of_records = records::rows(view);
        let census = records::census(&rows_of_records);
        let number = units::count(rows_of_records.len(), "record", "records");
        self.line("", &format!("{number} of {} kinds:", census.len()))?;
        let words: Vec<String> = census.iter().map(|(word, number)| format!("{number} {word}")).collect();
        for line in wrap(&words, 84) {
            self.line("", &format!("  {line}"))?;
        }
        Ok(rows.iter().map(|row| row.pid).collect())
    }

    pub(super) fn away(&self, gone: bool, book: &Book) -> Result<()> {
        let loaf = book.entries.last().map_or(0, |entry| entry.loaf);
        let word = if gone { "no process is left" } else { "some processes are still there" };
        self.line("gone", &format!("{word}; the last sale in the book is loaf {loaf}"))?;
        self.text("")?;
        self.command("vckpt restore bakery.vckpt")
    }

    pub(super) fn back(&self, report: &restore::Report) -> Result<()> {
        let processes = units::count(report.processes, "process", "processes");
        let threads = units::count(report.threads, "thread", "threads");
        let time = units::time(report.total);
        self.line("back", &format!("{processes} with {threads} in {time}; the shop sells again"))?;
        self.text("")
    }

    pub(super) fn verdict(&self, proofs: &[Proof], took: Duration, kept: Option<&Path>) -> Result<()> {
        for proof in proofs {
            let mark =
                if proof.passed { self.0.tint(Tint::Good, "ok") } else { self.0.tint(Tint::Bad, "NO") };
            // The mark is two letters wide, whatever its colour.
            self.text(&format!("  {mark}        {}", proof.what))?;
        }
        self.text("")?;
        let failed = proofs.iter().filter(|proof| !proof.passed).count();
        let verdict = match failed {
            0 => format!("Everything went on where it was. ({} in all)", units::time(took)),
            _ => format!("{} could not be proved.", units::count(failed, "thing", "things")),
        };
        self.text(&self.0.tint(Tint::Strong, verdict))?;
        match kept {
            Some(folder) => self.text(&format!("The image and the book are in {}", folder.display())),
            None => Ok(()),
        }
    }

    fn command(&self, text: &str) -> Result<()> {
        self.text(&self.0.tint(Tint::Strong, format!("$ {text}")))
    }

    fn line(&self, label: &str, text: &str) -> Result<()> {
        let label = self.0.tint(Tint::Faint, format!("{label:<8}"));
        self.text(format!("  {label}  {text}").trim_end())
    }

    fn text(&self, text: &str) -> Result<()> {
        // With --json only the result is printed.
        if self.0.json { Ok(()) } else { Ok(self.0.line(text)?) }
    }
}

fn sold(book: &Book) -> String {
    match book.entries.last() {
        Some(entry) => format!("{} loaves sold, {} ticks, {} trays", entry.loaf, entry.ticks, entry.washed),
        None => "nothing sold yet".to_owned(),
    }
}

/// The words as lines of at most `width` columns.
fn wrap(words: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() + 2 <= width => line.extend([", ", word]),
            _ => lines.push(word.clone()),
        }
    }
    lines
}
