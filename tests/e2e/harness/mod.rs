//! The harness: starts fixtures, drives `vckpt`, checks that nothing is left behind.
//!
//! Cases run one after another on the main thread, so at any moment every child of this process belongs to
//! the running case. The harness is a child subreaper: whatever a fixture or a restore leaves behind becomes
//! its child, is reaped by it, and is found by the check at the end of the case.
//!
//! Nothing here sleeps to let something happen: each wait names a condition and has a deadline.

pub(crate) mod case;
pub(crate) mod image;
pub(crate) mod process;
pub(crate) mod programs;

/// What a case ends with.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

/// Why a case did not go to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something is wrong with the program under test.
    Failed(String),
    /// This machine lacks an ability that the case needs; its name.
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.to_string())
    }
}

/// Ends a case as failed.
pub(crate) fn fail<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(message.into()))
}

/// Ends a case as skipped for want of `ability`.
pub(crate) fn skip<T>(ability: impl Into<String>) -> Outcome<T> {
    Err(Stop::Skipped(ability.into()))
}

/// Fails the case with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return $crate::harness::fail(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// A program that is frozen, by name.
pub(crate) type Fixture = (&'static str, fn(crate::stage::Stage));

/// What is tried with such programs, by name.
pub(crate) type Trial = (&'static str, fn() -> Outcome);

/// One topic: a file of fixtures and the cases that freeze them.
pub(crate) struct Topic {
    /// First part of the names of its cases.
    pub(crate) name: &'static str,
    /// The programs that are frozen.
    pub(crate) fixtures: &'static [Fixture],
    /// The cases, by name.
    pub(crate) cases: &'static [Trial],
}

/// True when this process is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Skips the case unless it runs as root.
pub(crate) fn need_root() -> Outcome {
    if is_root() { Ok(()) } else { skip("root") }
}

/// Skips the case when it runs as root.
pub(crate) fn need_ordinary_user() -> Outcome {
    if is_root() { skip("an ordinary user") } else { Ok(()) }
}

/// The number of rounds of a case that has a short and a long variant (`VCKPT_TEST_LONG=1`).
pub(crate) fn short_or_long(short: u32, long: u32) -> u32 {
    if std::env::var_os("VCKPT_TEST_LONG").is_some_and(|value| value == "1") { long } else { short }
}
