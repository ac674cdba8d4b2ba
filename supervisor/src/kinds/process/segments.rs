//! Memory segments that a process has made for itself (modify_ldt(2), set_thread_area(2)), and addresses with tags (LAM):
//! what 64-bit programs hardly ever have. Refused, so that nothing is lost silently.

use crate::error::{Error, Result, code};
use crate::frozen::{FrozenProcess, run_in_all};
use crate::stub::batch::{Batch, CallIndex, Data, Outcome};

/// Entries of the global table that a thread may set, if the kernel runs 32-bit programs.
const ENTRIES: [u32; 3] = [12, 13, 14];
/// Bytes of `struct user_desc`.
const DESCRIPTION: usize = 16;
/// `read_exec_only | seg_not_present`: what an empty entry looks like.
const EMPTY: u32 = 0x28;
/// `ARCH_GET_UNTAG_MASK`.
const GET_UNTAG_MASK: u32 = 0x4001;

/// Refuses a process with segments of its own.
///
/// # Errors
/// [`code::TASK_STATE`]; what the stubs say.
pub(super) fn refuse(process: &mut FrozenProcess) -> Result<()> {
    let mut batch = Batch::new();
    let mask = batch.room(8);
    let call = batch.call("asking for tags", libc::SYS_arch_prctl, [GET_UNTAG_MASK.into(), mask.into()]);
    // Few filters know this call. What is behind one that forbids it can't have made it, unless before.
    let is_free = process.threads.iter().all(|thread| thread.filters.is_empty());
    let table = is_free.then(|| {
        let room = batch.room(8);
        batch.call("reading the table of segments", libc::SYS_modify_ldt, [0.into(), room.into(), 8.into()])
    });
    let outcome = process.run(&batch)?;
    let because = |what: &str| Error::new(code::TASK_STATE, what);
    if outcome.get(call).is_ok() && outcome.word(mask, 0) != u64::MAX {
        return Err(because("its addresses carry tags (LAM)"));
    }
    if table.is_some_and(|table| outcome.get(table).is_ok_and(|length| length > 0)) {
        return Err(because("it has segments of its own (modify_ldt)"));
    }
    let (batch, questions) = entries();
    let answers = run_in_all(&mut process.threads, &batch)?;
    if answers.iter().any(|answer| questions.iter().any(|question| is_set(answer, *question))) {
        return Err(because("it has segments of its own (set_thread_area)"));
    }
    Ok(())
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
