//! Memory segments that a process has made for itself (modify_ldt(2), set_thread_area(2)), and addresses with tags (LAM):
//! what 64-bit programs hardly ever have. Refused, so that nothing is lost silently.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::stub::batch::{Batch, CallIndex, Data, Outcome};

/// Entries of the global table that a thread may set, if the kernel runs 32-bit programs.
const ENTRIES: [u32; 3] = [12, 13, 14];
/// Bytes of `struct user_desc`.
const DESCRIPTION: usize = 16;
/// `read_exec_only | seg_not_present`: what an empty entry looks like.
const EMPTY: u32 = 0x28;
/// `ARCH_GET_UNTAG_MASK`.
const GET_UNTAG_MASK: u32 = 0x4001;

/// Refuses processes with segments of their own.
///
/// # Errors
/// [`code::TASK_STATE`], all at once; what the stubs say.
pub(super) fn refuse(frozen: &mut Frozen) -> Result<()> {
    let mut problems = Problems::new();
    let (without_table, with_table) = (Question::new(false), Question::new(true));
    // Few filters know these calls. What is behind one that forbids them can't have made segments, unless before.
    let question = |process: &FrozenProcess| {
        if process.threads.iter().all(|thread| thread.filters.is_empty()) {
            &with_table
        } else {
            &without_table
        }
    };
    let answers = frozen.run_in_some(|process| Some(&question(process).batch));
    let (batch, entries) = entries();
    let of_threads = frozen.run_in_threads(&batch);
    for ((process, answer), of_threads) in frozen.living().zip(answers).zip(of_threads) {
        let answer = answer.and_then(|answer| problems.take(answer));
        let found = answer.and_then(|answer| question(process).found(&answer));
        let of_threads = problems.take(of_threads).unwrap_or_default();
        let is_set = |answer: &Outcome| entries.iter().any(|question| is_set(answer, *question));
        let found = found.or_else(|| {
            of_threads.iter().any(is_set).then_some("it has segments of its own (set_thread_area)")
        });
        if let Some(what) = found {
            problems.push(Error::new(code::TASK_STATE, what).about(process.subject()));
        }
    }
    problems.finish()
}

/// What a process is asked.
struct Question {
    batch: Batch,
    tags: (CallIndex, Data),
    table: Option<CallIndex>,
}

impl Question {
    fn new(of_the_table: bool) -> Self {
        let mut batch = Batch::new();
        let mask = batch.room(8);
        let arguments = [GET_UNTAG_MASK.into(), mask.into()];
        let tags = (batch.call("asking for tags", libc::SYS_arch_prctl, arguments), mask);
        let table = of_the_table.then(|| {
            let arguments = [0.into(), batch.room(8).into(), 8.into()];
            batch.call("reading the table of segments", libc::SYS_modify_ldt, arguments)
        });
        Self { batch, tags, table }
    }

    /// What stands in the way of a dump.
    fn found(&self, answer: &Outcome) -> Option<&'static str> {
        let (call, mask) = self.tags;
        if answer.get(call).is_ok() && answer.word(mask, 0) != u64::MAX {
            return Some("its addresses carry tags (LAM)");
        }
        let has_table = |table| answer.get(table).is_ok_and(|length| length > 0);
        self.table.is_some_and(has_table).then_some("it has segments of its own (modify_ldt)")
    }
}

fn entries() -> (Batch, [(CallIndex, Data); 3]) {
    let mut batch = Batch::new();
    let questions = ENTRIES.map(|entry| {
        let mut description = [0; DESCRIPTION];
        description[..4].copy_from_slice(&entry.to_le_bytes());
        let place = batch.exchange(&description);
        (batch.call("reading a segment", libc::SYS_get_thread_area, [place.into()]), place)
    });
    (batch, questions)
}

fn is_set(answer: &Outcome, (call, place): (CallIndex, Data)) -> bool {
    let (base, limit, flags) =
        (answer.half_word(place, 1), answer.half_word(place, 2), answer.half_word(place, 3));
    answer.get(call).is_ok() && (base != 0 || limit != 0 || flags & EMPTY != EMPTY)
}
