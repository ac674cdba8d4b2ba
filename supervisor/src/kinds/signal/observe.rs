//! Looks at signals and at timers, at one moment.
//!
//! Timers run on while their process stands still. A timer that expires between a look at it and a look at the waiting
//! signals would be lost or counted twice; so one batch asks for the waiting signals, the timers, and the waiting
//! signals again, and is made again if those differ.

use super::waiting::{Queues, ThreadQueue};
use crate::error::{Problems, Result};
use crate::frozen::{Frozen, FrozenProcess, run_in_all};
use crate::kinds::alarm;
use crate::proc::{read, status};
use crate::records::Records;
use crate::stub::batch::{Argument, Batch, CallIndex, Data, Outcome};
use std::collections::BTreeMap;
use vckpt_image_format::TaskId;
use vckpt_image_format::record::alarm::Alarm;
use vckpt_image_format::record::signal::{Action, AlternateStack, SIGNAL_COUNT, Signal, ThreadSignals};

/// Size of the kernel's `struct sigaction`.
const ACTION_LENGTH: usize = 32;
/// Size of `stack_t`.
const STACK_LENGTH: usize = 24;
/// Size of the kernel's signal sets.
pub(crate) const SET_LENGTH: u64 = 8;
/// `SS_AUTODISARM`.
const AUTODISARM: u32 = 1 << 31;
/// How often the look is repeated if signals keep coming in.
const MOST_LOOKS: usize = 100;

/// Gives the records of signals and alarms.
///
/// # Errors
/// Timers that can't be kept; whatever the stub or `/proc` says.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let names: BTreeMap<i32, TaskId> = frozen
        .processes
        .iter()
        .flat_map(|process| process.threads.iter().map(|thread| (thread.tid, thread.id)))
        .collect();
    let mut problems = Problems::new();
    let timers = frozen.map_processes(|process| alarm::observe::list(process, &names));
    let looks = first_looks(frozen, &timers);
    for ((process, timers), first) in frozen.living().zip(timers).zip(looks) {
        let observed = timers.and_then(|timers| observe_process(process, &timers, first));
        if let Some((signal, alarm, degraded)) = problems.take(observed) {
            records.degraded.extend(degraded);
            records.push(signal);
            records.push(alarm);
        }
    }
    problems.finish()
}

/// Looks at the processes of one thread, whose looks are single questions, all at the same time. Nothing for others.
fn first_looks(
    frozen: &mut Frozen,
    timers: &[Result<Vec<alarm::observe::Listed>>],
) -> Vec<Option<Result<Looked>>> {
    let mut timers = timers.iter();
    let mut questions = Vec::with_capacity(timers.len());
    frozen.living().for_each(|process| {
        let timers = timers.next().and_then(|timers| timers.as_ref().ok());
        let timers = timers.filter(|_| process.threads.len() == 1);
        questions.push(timers.map(|timers| (Questions::ask(timers), timers)));
    });
    let mut asked = questions.iter();
    let outcomes = frozen.run_in_some(|_| asked.next()?.as_ref().map(|(question, _)| &question.batch));
    let answers = frozen.living().zip(outcomes).zip(&questions);
    answers
        .map(|((process, outcome), question)| {
            let (questions, timers) = question.as_ref()?;
            Some(outcome?.map(|outcome| questions.looked(process.id, timers, &outcome)))
        })
        .collect()
}

/// The signals and timers of a process, and what of them will not be exact. It may have been looked at before.
fn observe_process(
    process: &mut FrozenProcess,
    timers: &[alarm::observe::Listed],
    first: Option<Result<Looked>>,
) -> Result<(Signal, Alarm, Vec<String>)> {
    let subject = process.subject();
    let mut looked = first.unwrap_or_else(|| look(process, timers))?;
    for _ in 1..MOST_LOOKS {
        if looked.settled {
            break;
        }
        looked = look(process, timers)?;
    }
    let mut alarm = looked.alarm;
    let queues = queues(process, &looked.waiting).map_err(|error| error.about(subject.clone()))?;
    let queues = queues.settle(&alarm);
    let unknown = alarm::overrun::measure(process, &mut alarm, &queues);
    let unknown = unknown.map_err(|error| error.about(subject.clone()))?.into_iter();
    let degraded = unknown
        .map(|id| format!("{subject}: how often timer {id} has expired while its signal waits is not known"));
    let degraded = degraded.collect();
    let threads = process.threads.iter().zip(looked.stacks).zip(queues.threads);
    let threads = threads.map(|((thread, alternate_stack), queue)| ThreadSignals {
        thread: thread.id,
        mask: thread.agent.signal_mask(),
        alternate_stack,
        pending: queue,
    });
    let signal = Signal {
        process: process.id,
        actions: looked.actions,
        pending: queues.shared,
        threads: threads.collect(),
    };
    Ok((signal, alarm, degraded))
}

/// What the queues held at the freeze, with what waits now.
fn queues(process: &FrozenProcess, waiting: &[u64]) -> Result<Queues> {
    // The thread that was looked at last has seen what the others may have taken from the queue before.
    let shared = match process.threads.last() {
        Some(thread) => thread.agent.pending(true)?,
        None => Vec::new(),
    };
    let mut shared_set = 0;
    let mut threads = Vec::with_capacity(process.threads.len());
    for (thread, &waiting) in process.threads.iter().zip(waiting) {
        let mut set = 0;
        if waiting != 0 {
            let status = read::file(process.pid, &format!("task/{}/status", thread.tid))?;
            (set, shared_set) = status::waiting_signals(&status)?;
        }
        threads.push(ThreadQueue { id: thread.id, entries: thread.agent.pending(false)?, waiting, set });
    }
    Ok(Queues { shared, shared_set, threads })
}

/// One look at a process.
struct Looked {
    actions: Vec<Action>,
    stacks: Vec<Option<AlternateStack>>,
    /// The signals that wait for each thread or its process.
    waiting: Vec<u64>,
    alarm: Alarm,
    /// Whether no signal came in during the look.
    settled: bool,
}

/// Questions to one thread.
struct ThreadQuestions {
    stack: Data,
    waiting: Data,
}

impl ThreadQuestions {
    fn ask(batch: &mut Batch) -> Self {
        let waiting = ask_waiting(batch);
        let stack = batch.room(STACK_LENGTH);
        batch.must("reading the alternate stack", libc::SYS_sigaltstack, [Argument::value(0), stack.into()]);
        Self { stack, waiting }
    }

    fn stack(&self, outcome: &Outcome) -> Option<AlternateStack> {
        let (address, size) = (outcome.word(self.stack, 0), outcome.word(self.stack, 2));
        (size != 0).then_some(AlternateStack {
            address,
            size,
            flags: outcome.half_word(self.stack, 2) & AUTODISARM,
        })
    }
}

/// Questions to a process: one batch, so that nothing comes between them that could not be told.
struct Questions {
    batch: Batch,
    before: Data,
    times: alarm::observe::Questions,
    thread: ThreadQuestions,
    actions: Vec<(u32, CallIndex, Data)>,
}

impl Questions {
    fn ask(timers: &[alarm::observe::Listed]) -> Self {
        let mut batch = Batch::new();
        let before = ask_waiting(&mut batch);
        let times = alarm::observe::Questions::ask(&mut batch, timers);
        let thread = ThreadQuestions::ask(&mut batch);
        let actions = ask_actions(&mut batch);
        Self { batch, before, times, thread, actions }
    }

    /// What the leader says of itself and its process.
    fn looked(&self, process: TaskId, timers: &[alarm::observe::Listed], outcome: &Outcome) -> Looked {
        let waiting = outcome.word(self.thread.waiting, 0);
        Looked {
            actions: read_actions(&self.actions, outcome),
            stacks: vec![self.thread.stack(outcome)],
            waiting: vec![waiting],
            alarm: self.times.alarm(process, timers, outcome),
            settled: outcome.word(self.before, 0) == waiting,
        }
    }
}

fn ask_waiting(batch: &mut Batch) -> Data {
    let waiting = batch.room(8);
    batch.must(
        "reading the waiting signals",
        libc::SYS_rt_sigpending,
        [waiting.into(), Argument::value(SET_LENGTH)],
    );
    waiting
}

fn look(process: &mut FrozenProcess, timers: &[alarm::observe::Listed]) -> Result<Looked> {
    let subject = process.subject();
    let mut thread_batch = Batch::new();
    let thread_questions = ThreadQuestions::ask(&mut thread_batch);
    let others = ask_threads(process, &thread_batch).map_err(|error| error.about(subject.clone()))?;

    let questions = Questions::ask(timers);
    let outcome = process.run(&questions.batch)?;
    let mut looked = questions.looked(process.id, timers, &outcome);

    let for_threads = timers.iter().any(alarm::observe::Listed::is_for_a_thread);
    if for_threads && !others.is_empty() {
        let again = ask_threads(process, &thread_batch).map_err(|error| error.about(subject))?;
        let waiting = |outcome: &Outcome| outcome.word(thread_questions.waiting, 0);
        looked.settled &= others.iter().map(waiting).eq(again.iter().map(waiting));
    }
    for other in &others {
        looked.stacks.push(thread_questions.stack(other));
        looked.waiting.push(other.word(thread_questions.waiting, 0));
    }
    Ok(looked)
}

/// Asks all threads but the leader.
fn ask_threads(process: &mut FrozenProcess, batch: &Batch) -> Result<Vec<Outcome>> {
    run_in_all(process.threads.get_mut(1..).unwrap_or_default(), batch)
}

fn ask_actions(batch: &mut Batch) -> Vec<(u32, CallIndex, Data)> {
    let ask = |signal: u32| {
        let action = batch.room(ACTION_LENGTH);
        let arguments = [signal.into(), Argument::value(0), action.into(), Argument::value(SET_LENGTH)];
        (signal, batch.must("reading the action of a signal", libc::SYS_rt_sigaction, arguments), action)
    };
    (1..=SIGNAL_COUNT).map(ask).collect()
}

fn read_actions(questions: &[(u32, CallIndex, Data)], outcome: &Outcome) -> Vec<Action> {
    let actions = questions.iter().map(|&(signal, _, data)| Action {
        signal,
        handler: outcome.word(data, 0),
        flags: outcome.word(data, 1),
        restorer: outcome.word(data, 2),
        mask: outcome.word(data, 3),
    });
    actions
        .filter(|action| (action.handler, action.flags, action.restorer, action.mask) != (0, 0, 0, 0))
        .collect()
}
