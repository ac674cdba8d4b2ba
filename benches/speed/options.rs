//! The command line.

use super::Outcome;
use std::path::PathBuf;

/// What is to be measured, and how.
#[derive(Debug)]
pub(crate) struct Options {
    groups: Vec<String>,
    /// Whether a missed target is a failure.
    pub(crate) check: bool,
    /// Rounds of a measurement; each group has a number of its own.
    rounds: Option<usize>,
    /// Size of the large program in MiB.
    pub(crate) size: usize,
    /// Folders for images: one on each file system that is of interest.
    pub(crate) folders: Vec<PathBuf>,
    /// Another tool to be measured in the same rounds.
    pub(crate) criu: Option<PathBuf>,
}

impl Options {
    /// Reads the command line and the environment.
    pub(crate) fn parse(words: &[&str]) -> Outcome<Self> {
        let mut options = Self {
            groups: Vec::new(),
            check: false,
            rounds: None,
            size: 1024,
            folders: Vec::new(),
            criu: std::env::var_os("CRIU").map(PathBuf::from),
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut value = || words.next().copied().ok_or(format!("{word} needs a value"));
            match word {
                // From `cargo bench`.
                "--bench" => {}
                "--check" => options.check = true,
                "--rounds" => options.rounds = Some(value()?.parse()?),
                "--size" => options.size = value()?.parse()?,
                "--folder" => options.folders.push(value()?.into()),
                "small" | "memory" | "footprint" | "many" => options.groups.push(word.to_owned()),
                _ => return Err(format!("{word} is neither a group nor an option").into()),
            }
        }
        if options.folders.is_empty() {
            options.folders.push(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
            options.folders.extend(Some(PathBuf::from("/dev/shm")).filter(|folder| folder.is_dir()));
        }
        Ok(options)
    }

    /// Whether a group is to be run.
    pub(crate) fn wants(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|wanted| wanted == group)
    }

    /// Number of rounds.
    pub(crate) fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual).max(1)
    }
}
