//! The stage: what runs inside a fixture, the program that is frozen.
//!
//! A fixture sets something up and then serves: the harness creates `ask.N` in the case's folder, the fixture
//! verifies itself and writes `answer.N`. These are plain files, opened anew each time, so the channel itself
//! needs nothing to survive. Besides its own check every fixture compares all of [`facts`] with those
//! that it noted before it said that it was ready.

pub(crate) mod asked;
pub(crate) mod facts;
pub(crate) mod kernel;
pub(crate) mod memory;
pub(crate) mod messages;
pub(crate) mod shared;
pub(crate) mod uring;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use facts::Facts;

/// Result of a verification; the text says what is wrong.
pub(crate) type Verdict = Result<(), String>;

/// Ends a verification with a message unless the condition holds.
macro_rules! verify {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use verify;

/// What a fixture was started with.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Folder of the case.
    pub(crate) folder: PathBuf,
    /// Arguments after the folder.
    pub(crate) arguments: Vec<String>,
}

/// Runs a fixture: `fixture NAME FOLDER ARGUMENTS…`.
pub(crate) fn main(words: &[String]) -> ExitCode {
    let [name, folder, arguments @ ..] = words else { return ExitCode::from(64) };
    let found = crate::TOPICS.iter().flat_map(|topic| topic.fixtures).find(|fixture| fixture.0 == name);
    let Some((_, run)) = found else {
        eprintln!("no fixture {name}");
        return ExitCode::from(64);
    };
    // One arena: memory that a thread asks for late must not look like a change of the memory map.
    // SAFETY: plain integers, before any thread is started.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    run(Stage { folder: PathBuf::from(folder), arguments: arguments.to_vec() });
    ExitCode::SUCCESS
}

/// Starts a thread and waits until it runs, so that whatever the library maps for it is there.
pub(crate) fn thread<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let (tell, hear) = std::sync::mpsc::sync_channel(0);
    let handle = std::thread::spawn(move || {
        tell.send(()).unwrap();
        body()
    });
    hear.recv().unwrap();
    handle
}

impl Stage {
    /// A path in the folder of the case.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a whole file at once: it appears complete or not at all.
    pub(crate) fn publish(&self, name: &str, text: &str) {
        let draft = self.path(&format!("draft-of-{name}"));
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, self.path(name)).unwrap();
    }

    /// Says that the fixture is ready and answers for ever; ends when the file `stop` appears.
    pub(crate) fn serve(&self, verify: impl FnMut(u32) -> Verdict) {
        self.serve_except(&[], verify);
    }

    /// As [`Stage::serve`], without comparing the facts whose names begin with one of `ignored`.
    pub(crate) fn serve_except(&self, ignored: &[&str], mut verify: impl FnMut(u32) -> Verdict) {
        // The first collection makes the heap as large as collecting needs.
        drop(Facts::collect());
        let mut before = Facts::collect();
        before.forget(ignored);
        self.publish("ready", "");
        self.answer_questions(|number| {
            let mut now = Facts::collect();
            now.forget(ignored);
            let mut problems = before.differences(&now);
            if let Err(problem) = verify(number) {
                problems.push(problem);
            }
            if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
        });
    }

    /// Answers `ask.1`, `ask.2`, … until the file `stop` appears.
    pub(crate) fn answer_questions(&self, mut verify: impl FnMut(u32) -> Verdict) {
        let mut number = 1;
        while !self.path("stop").exists() {
            if self.path(&format!("ask.{number}")).exists() {
                let verdict = verify(number);
                self.publish(&format!("answer.{number}"), &verdict.err().unwrap_or_else(|| "ok".to_owned()));
                number += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
