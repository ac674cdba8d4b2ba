//! Memory that several processes share, and one that answers what it sees there.

use super::kernel::{check, fork, pipe, put, take};

pub(crate) fn mark(place: usize, value: u64) {
    // SAFETY: callers pass pages that they have mapped writable.
    unsafe { (place as *mut u64).write_volatile(value) };
}

pub(crate) fn seen(place: usize) -> u64 {
    // SAFETY: callers pass pages that can be read.
    unsafe { (place as *const u64).read_volatile() }
}

/// Whether the kernel would let a mapping be written.
pub(crate) fn can_be_writable(place: usize) -> bool {
    // SAFETY: the range is the caller's.
    let changed = unsafe { libc::mprotect(place as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE) } == 0;
    if changed {
        // SAFETY: as above.
        check(unsafe { libc::mprotect(place as *mut _, 4096, libc::PROT_READ) }).unwrap();
    }
    changed
}

/// A child that answers with what it sees at a place, and writes one more there.
pub(crate) struct Echo {
    ask: [i32; 2],
    answer: [i32; 2],
}

impl Echo {
    pub(crate) fn start(place: impl Fn() -> usize) -> Self {
        let echo = Echo { ask: pipe(0), answer: pipe(0) };
        let (ask, answer) = (echo.ask[0], echo.answer[1]);
        fork(move || {
            let place = place();
            while take(ask, 1).is_ok_and(|bytes| !bytes.is_empty()) {
                let value = seen(place);
                mark(place, value + 1);
                if put(answer, &value.to_ne_bytes()).is_err() {
                    return 1;
                }
            }
            0
        });
        echo
    }

    pub(crate) fn ask(&self) -> Result<u64, String> {
        put(self.ask[1], b"?").map_err(|error| error.to_string())?;
        let bytes = take(self.answer[0], 8).map_err(|error| error.to_string())?;
        bytes.try_into().map(u64::from_ne_bytes).map_err(|bytes| format!("{bytes:?}"))
    }
}
