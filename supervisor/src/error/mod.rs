//! The one error of the library: what was tried, on what, why it failed, and what to do.
//!
//! Every error has a stable [`Code`] (listed in [`code`]); several independent problems travel as one [`Error`] with
//! [`others`](Error::others). Nothing is printed here: the command line decides how an error looks.

pub mod code;

pub use code::{Class, Code};
use std::fmt;

/// What an error is about; whatever is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The task, by the ID that the user knows.
    pub task: Option<u32>,
    /// The name of its program.
    pub command: Option<String>,
    /// The descriptor.
    pub descriptor: Option<i32>,
    /// The address in its memory.
    pub address: Option<u64>,
    /// The path.
    pub path: Option<String>,
}

impl Subject {
    /// About a task.
    #[must_use]
    pub fn task(task: u32, command: impl fmt::Display) -> Self {
        Self { task: Some(task), command: Some(command.to_string()), ..Self::default() }
    }

    /// About a path.
    #[must_use]
    pub fn path(path: impl fmt::Display) -> Self {
        Self { path: Some(path.to_string()), ..Self::default() }
    }

    /// The same, about a descriptor of it.
    #[must_use]
    pub fn descriptor(mut self, descriptor: i32) -> Self {
        self.descriptor = Some(descriptor);
        self
    }

    /// The same, about an address of it.
    #[must_use]
    pub fn address(mut self, address: u64) -> Self {
        self.address = Some(address);
        self
    }

    /// The same, about a path of it.
    #[must_use]
    pub fn with_path(mut self, path: impl fmt::Display) -> Self {
        self.path = Some(path.to_string());
        self
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        match (&self.command, self.task) {
            (Some(command), Some(task)) => words.push(format!("{command}({task})")),
            (Some(command), None) => words.push(command.clone()),
            (None, Some(task)) => words.push(format!("task {task}")),
            (None, None) => {}
        }
        words.extend(self.descriptor.map(|descriptor| format!("fd {descriptor}")));
        words.extend(self.address.map(|address| format!("address {address:#x}")));
        words.extend(self.path.clone());
        formatter.write_str(&words.join(" "))
    }
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The stable code.
    pub code: Code,
    /// What was tried or found, in one sentence without a full stop.
    pub what: String,
    /// What it is about.
    pub subject: Option<Subject>,
    /// Why, such as the kernel's own word.
    pub why: Option<String>,
    /// What to do, overriding the code's own hint.
    pub hint: Option<String>,
    /// Whether it is a state that passes by itself, if the target goes on for a moment.
    pub passing: bool,
    /// Other problems, independent of this one.
    pub others: Vec<Error>,
}

/// A result of this library. The error is boxed because it is large and rare.
pub type Result<T, E = Box<Error>> = std::result::Result<T, E>;

impl Error {
    /// An error with what was tried.
    #[must_use]
    pub fn new(code: Code, what: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            code,
            what: what.into(),
            subject: None,
            why: None,
            hint: None,
            passing: false,
            others: Vec::new(),
        })
    }

    /// A failed system call.
    #[must_use]
    pub fn system(code: Code, what: impl Into<String>, errno: impl Into<std::io::Error>) -> Box<Self> {
        let errno: std::io::Error = errno.into();
        Self::new(code, what).because(errno)
    }

    /// The same, about this.
    #[must_use]
    pub fn about(mut self: Box<Self>, subject: Subject) -> Box<Self> {
        self.subject.get_or_insert(subject);
        self
    }

    /// The same, with the reason.
    #[must_use]
    pub fn because(mut self: Box<Self>, why: impl fmt::Display) -> Box<Self> {
        self.why = Some(why.to_string());
        self
    }

    /// The same, as a state that passes by itself.
    #[must_use]
    pub fn passing(mut self: Box<Self>) -> Box<Self> {
        self.passing = true;
        self
    }

    /// Whether this and all [others](Self::others) pass by themselves.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.passing && self.others.iter().all(|other| other.passing)
    }

    /// The same, with what to do.
    #[must_use]
    pub fn hint(mut self: Box<Self>, hint: impl Into<String>) -> Box<Self> {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.subject {
            write!(formatter, "{subject}: ")?;
        }
        formatter.write_str(&self.what)?;
        match &self.why {
            Some(why) => write!(formatter, ": {why}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Problems that are independent of one another, collected to be reported at once.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "errors come in boxes and leave in boxes")]
pub struct Problems(Vec<Box<Error>>);

impl Problems {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, error: Box<Error>) {
        self.0.push(error);
    }

    /// Adds those of another list.
    pub fn append(&mut self, others: Problems) {
        self.0.extend(others.0);
    }

    /// The value, or remembers the error.
    pub fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them as one error.
    ///
    /// # Errors
    /// The first problem, with the others in [`Error::others`].
    pub fn finish(self) -> Result<()> {
        let mut problems = self.0.into_iter();
        let Some(mut first) = problems.next() else { return Ok(()) };
        first.others.extend(problems.flat_map(|problem| {
            let mut problem = *problem;
            let others = std::mem::take(&mut problem.others);
            std::iter::once(problem).chain(others)
        }));
        Err(first)
    }
}
