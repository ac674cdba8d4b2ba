//! Asks each thread how it is scheduled.

use super::{IOPRIO_WHO_PROCESS, attributes, autogroup};
use crate::error::{Problems, Result};
use crate::frozen::Frozen;
use crate::records::Records;
use crate::stub::batch::{Argument, Batch, CallIndex, Data, Outcome};
use crate::sys::schedule;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::schedule_control::{
    MAXIMUM_MASK_WORDS, MemoryPolicy, ScheduleControl, ThreadSchedule,
};

/// Room for a mask of processors or nodes, in bytes.
const MASK_LENGTH: usize = MAXIMUM_MASK_WORDS * 8;
/// `MPOL_DEFAULT`.
const DEFAULT_POLICY: u32 = 0;

/// Gives the records of scheduling.
///
/// # Errors
/// Whatever the stub says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let host = Host { online: online(), slice: schedule::own_slice() };
    let (batch, questions) = Questions::ask();
    let mut problems = Problems::new();
    let answers = frozen.run_in_threads(&batch);
    for (process, answers) in frozen.living().zip(answers) {
        let id = process.id;
        if let Some(answers) = problems.take(answers) {
            let answers = process.threads.iter().zip(&answers);
            let threads =
                answers.map(|(thread, outcome)| questions.answer(thread.id, outcome, &host)).collect();
            let autogroup = autogroup::read(process.view).map(|(_, nice)| nice);
            records.push(ScheduleControl { process: id, autogroup, threads });
        }
    }
    problems.finish()
}

/// The processors that are online, as a mask. Empty if that can't be read: then no mask has all of them.
fn online() -> Vec<u64> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    mask_of_list(&text)
}

/// A list such as `0-3,8` as a mask.
fn mask_of_list(text: &str) -> Vec<u64> {
    let mut mask = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { continue };
        for number in first..=last.min(MAXIMUM_MASK_WORDS * 64 - 1) {
            mask.resize(mask.len().max(number / 64 + 1), 0);
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    mask
}

/// What is ordinary on this host.
struct Host {
    /// The processors that are online.
    online: Vec<u64>,
    /// The slice of a thread that nobody gave another one.
    slice: u64,
}

struct Questions {
    attributes: Data,
    affinity: (CallIndex, Data),
    nice: CallIndex,
    io_priority: CallIndex,
    timer_slack: CallIndex,
    memory_policy: (CallIndex, Data, Data),
}

impl Questions {
    fn ask() -> (Batch, Self) {
        let mut batch = Batch::new();
        let zero = Argument::value(0);
        let attributes = batch.room(attributes::LENGTH);
        let length = Argument::from(attributes::LENGTH);
        batch.must("reading the policy", libc::SYS_sched_getattr, [zero, attributes.into(), length, zero]);
        let processors = batch.room(MASK_LENGTH);
        let arguments = [zero, Argument::from(MASK_LENGTH), processors.into()];
        let affinity = batch.must("reading the processors", libc::SYS_sched_getaffinity, arguments);
        let process = Argument::from(libc::PRIO_PROCESS);
        let nice = batch.must("reading the niceness", libc::SYS_getpriority, [process, zero]);
        let who = Argument::from(IOPRIO_WHO_PROCESS);
        let io_priority = batch.must("reading the priority for disks", libc::SYS_ioprio_get, [who, zero]);
        let option = Argument::from(libc::PR_GET_TIMERSLACK);
        let timer_slack =
            batch.must("reading the timer slack", libc::SYS_prctl, [option, zero, zero, zero, zero]);
        let (mode, nodes) = (batch.room(8), batch.room(MASK_LENGTH));
        // The kernel counts one bit more than it writes.
        let arguments = [mode.into(), nodes.into(), Argument::from(MASK_LENGTH * 8), zero, zero];
        let memory = batch.call("reading the memory policy", libc::SYS_get_mempolicy, arguments);
        let affinity = (affinity, processors);
        let memory_policy = (memory, mode, nodes);
        (batch, Self { attributes, affinity, nice, io_priority, timer_slack, memory_policy })
    }

    fn answer(&self, thread: TaskId, outcome: &Outcome, host: &Host) -> ThreadSchedule {
        let (call, processors) = self.affinity;
        let length = outcome.get(call).ok().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let affinity = trimmed(outcome, processors, length / 8);
        let number = |call| outcome.get(call).unwrap_or(0);
        let (call, mode, nodes) = self.memory_policy;
        let mode = outcome.half_word(mode, 0);
        let memory_policy = (outcome.get(call).is_ok() && mode != DEFAULT_POLICY)
            .then(|| MemoryPolicy { mode, nodes: trimmed(outcome, nodes, MAXIMUM_MASK_WORDS) });
        let mut attributes = attributes::read(outcome, self.attributes);
        if attributes.runtime == host.slice && !attributes::is_real_time(&attributes) {
            attributes.runtime = 0;
        }
        // Policies without one keep it for the day on which the thread has another policy. The call gives 40 to 1.
        attributes.nice = outcome
            .get(self.nice)
            .ok()
            .and_then(|value| i32::try_from(value).ok())
            .map_or(0, |value| 20 - value);
        ThreadSchedule {
            thread,
            attributes,
            affinity: (affinity != host.online).then_some(affinity),
            io_priority: u32::try_from(number(self.io_priority)).unwrap_or(0),
            timer_slack: number(self.timer_slack),
            memory_policy,
        }
    }
}

/// A mask without the empty words at its end.
fn trimmed(outcome: &Outcome, mask: Data, words: usize) -> Vec<u64> {
    let mut mask: Vec<u64> = (0..words).map(|index| outcome.word(mask, index)).collect();
    mask.truncate(mask.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1));
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_masks() {
        assert_eq!(mask_of_list("0-1\n"), [3]);
        assert_eq!(mask_of_list("0-3,8,64-65\n"), [0x10f, 3]);
        assert!(mask_of_list("").is_empty());
    }

    #[test]
    fn the_questions_fit_into_a_request() {
        assert!(Questions::ask().0.fits());
    }
}
