//! Threads and children that say, when asked, what they can see of themselves.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::kernel::{fork, pipe, put, take};
use super::thread;

/// Most bytes of an answer of a child.
const ROOM: usize = 4096;

/// A thread or child that answers questions, and what it said at first.
pub(crate) struct Asked {
    name: &'static str,
    first: String,
    means: Means,
}

enum Means {
    Thread(Sender<()>, Receiver<String>),
    /// Where to ask, and where the answer comes.
    Child(i32, i32),
}

impl Asked {
    /// A thread that prepares itself and then answers.
    pub(crate) fn thread(
        name: &'static str,
        prepare: impl FnOnce() + Send + 'static,
        answer: fn() -> String,
    ) -> Self {
        let (ask, asked) = channel::<()>();
        let (tell, hear) = channel();
        thread(move || {
            prepare();
            tell.send(answer()).unwrap();
            while asked.recv().is_ok() {
                tell.send(answer()).unwrap();
            }
        });
        let first = hear.recv().unwrap();
        Self { name, first, means: Means::Thread(ask, hear) }
    }

    /// A child that prepares itself and then answers.
    pub(crate) fn child(name: &'static str, prepare: impl FnOnce(), answer: fn() -> String) -> Self {
        let (ask, tell) = (pipe(0), pipe(0));
        fork(|| {
            prepare();
            put(tell[1], answer().as_bytes()).unwrap();
            while let Ok([_]) = take(ask[0], 1).as_deref() {
                put(tell[1], answer().as_bytes()).unwrap();
            }
            0
        });
        let first = String::from_utf8_lossy(&take(tell[0], ROOM).unwrap()).into_owned();
        Self { name, first, means: Means::Child(ask[1], tell[0]) }
    }

    /// What it says now.
    pub(crate) fn now(&self) -> Result<String, String> {
        match &self.means {
            Means::Thread(ask, hear) => {
                ask.send(()).map_err(|error| error.to_string())?;
                hear.recv().map_err(|error| error.to_string())
            }
            Means::Child(ask, hear) => {
                put(*ask, b"?").map_err(|error| error.to_string())?;
                let bytes = take(*hear, ROOM).map_err(|error| error.to_string())?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// Fails unless it says what it said at first.
    pub(crate) fn verify(&self) -> super::Verdict {
        let now = self.now()?;
        if now == self.first { Ok(()) } else { Err(format!("{}: {} became {now}", self.name, self.first)) }
    }
}

/// Fails unless all say what they said at first.
pub(crate) fn verify_all(all: &[Asked]) -> super::Verdict {
    all.iter().try_for_each(Asked::verify)
}
