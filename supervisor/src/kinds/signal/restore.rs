//! Sets actions and alternate stacks, and queues the signals that wait.
//!
//! A puppet may have got signals that the application never did: the end of a child's puppet, a key at the terminal.
//! Ignoring a signal for a moment is how the kernel forgets those that wait.

use super::UNCATCHABLE;
use super::observe::SET_LENGTH;
use crate::error::Result;
use crate::kinds::alarm;
use crate::plan::{self, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch};
use std::collections::BTreeSet;
use vckpt_image_format::TaskId;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::alarm::Alarm;
use vckpt_image_format::record::signal::{Action, AlternateStack, Pending, SIGNAL_COUNT, Signal};

/// How many signals are queued by one batch.
const CHUNK: usize = 200;

/// Adds the steps for the signals of every process.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    steps(&crate::image::all::<Signal>(image)?, &crate::image::all::<Alarm>(image)?, plan);
    Ok(())
}

fn steps(signals: &[Signal], alarms: &[Alarm], plan: &mut Plan) {
    for signal in signals {
        let batch = actions(&signal.actions, 1..=SIGNAL_COUNT);
        plan.batch(Stage::TaskState, signal.process, "actions of signals", batch);
        for thread in &signal.threads {
            if let Some(stack) = thread.alternate_stack {
                plan.batch(Stage::TaskState, thread.thread, "alternate stack", set_stack(stack));
            }
        }
    }
    let child = libc::SIGCHLD.cast_unsigned();
    for signal in signals {
        plan.batch(
            Stage::Timers,
            signal.process,
            "ends of children",
            actions(&signal.actions, child..=child),
        );
    }
    plan.action(Stage::Timers, Barrier);
    for alarm in alarms {
        alarm::restore::make(alarm, plan);
    }
    for signal in signals {
        queue_signals(signal, alarms.iter().find(|alarm| alarm.process == signal.process), plan);
    }
    for alarm in alarms {
        let signal = signals.iter().find(|signal| signal.process == alarm.process);
        alarm::restore::start(alarm, signal, plan);
    }
}

/// Forgets the signals of this range that wait, and sets their actions: also the default ones, since puppets inherit
/// what this program ignores.
fn actions(actions: &[Action], signals: std::ops::RangeInclusive<u32>) -> Batch {
    let mut batch = Batch::new();
    let default = |signal| Action { signal, handler: 0, flags: 0, restorer: 0, mask: 0 };
    for signal in signals.filter(|signal| !UNCATCHABLE.contains(&signal.cast_signed())) {
        let action = actions.iter().find(|action| action.signal == signal).copied();
        let ignore = Action { handler: 1, ..default(signal) };
        for action in [ignore, action.unwrap_or(default(signal))] {
            let words = batch.words(&[action.handler, action.flags, action.restorer, action.mask]);
            let arguments = [signal.into(), words.into(), Argument::value(0), Argument::value(SET_LENGTH)];
            batch.must("setting the action of a signal", libc::SYS_rt_sigaction, arguments);
        }
    }
    batch
}

/// Adds the steps that queue what waits, each queue in its order: what a timer sends it sends itself, once.
fn queue_signals(signal: &Signal, alarm: Option<&Alarm>, plan: &mut Plan) {
    let mut expired = BTreeSet::new();
    let mut queue_all = |entries: &[Pending], receiver: TaskId, for_thread: bool| {
        let mut chunk: Vec<&Pending> = Vec::new();
        let flush = |chunk: &mut Vec<&Pending>, plan: &mut Plan| {
            if !chunk.is_empty() {
                plan.batch(Stage::Timers, receiver, "waiting signals", queue(chunk, for_thread));
                chunk.clear();
            }
        };
        for entry in entries.iter().filter(|entry| !UNCATCHABLE.contains(&entry.signal().cast_signed())) {
            let timer = alarm.and_then(|alarm| alarm::restore::sent_by(alarm, entry));
            if let Some(&timer) = timer.filter(|timer| expired.insert(timer.id)) {
                flush(&mut chunk, plan);
                plan.action(Stage::Timers, alarm::restore::Expire { process: signal.process, timer });
                continue;
            }
            chunk.push(entry);
            if chunk.len() == CHUNK {
                flush(&mut chunk, plan);
            }
        }
        flush(&mut chunk, plan);
    };
    queue_all(&signal.pending, signal.process, false);
    for thread in &signal.threads {
        queue_all(&thread.pending, thread.thread, true);
    }
}

/// The calls with which a task queues signals for itself. Only the task itself may say that they came from others, and
/// for the queue of the process only the leader.
fn queue(entries: &[&Pending], for_thread: bool) -> Batch {
    let mut batch = Batch::new();
    let process = batch.must("asking for the process ID", libc::SYS_getpid, []);
    let thread = for_thread.then(|| batch.must("asking for the thread ID", libc::SYS_gettid, []));
    for entry in entries {
        let information = batch.data(&entry.information());
        let signal = Argument::from(entry.signal());
        let label = "queueing a waiting signal";
        match thread {
            Some(thread) => {
                let arguments = [process.into(), thread.into(), signal, information.into()];
                batch.must(label, libc::SYS_rt_tgsigqueueinfo, arguments);
            }
            None => {
                batch.must(label, libc::SYS_rt_sigqueueinfo, [process.into(), signal, information.into()]);
            }
        }
    }
    batch
}

/// Parts what must happen one after the other in different threads.
#[derive(Debug)]
struct Barrier;

impl plan::Action for Barrier {
    fn act(&self, _restoring: &mut Restoring<'_>) -> Result<()> {
        Ok(())
    }
}

/// Sets an alternate stack. The kernel refuses one that is too small for this processor's signal frames.
fn set_stack(stack: AlternateStack) -> Batch {
    let mut batch = Batch::new();
    let stack = batch.words(&[stack.address, u64::from(stack.flags), stack.size]);
    batch.must(
        "setting the alternate signal stack",
        libc::SYS_sigaltstack,
        [stack.into(), Argument::value(0)],
    );
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::signal::waiting::SI_TIMER;
    use vckpt_image_format::record::alarm::{Notify, Setting, Timer};
    use vckpt_image_format::record::signal::{SIGINFO_LENGTH, ThreadSignals};

    fn waiting(signal: u8, code: i32, timer: u8) -> Pending {
        let mut information = [0; SIGINFO_LENGTH];
        information[0] = signal;
        information[8..12].copy_from_slice(&code.to_le_bytes());
        information[16] = timer;
        Pending::new(&information)
    }

    fn process(pending: Vec<Pending>, private: Vec<Pending>) -> Signal {
        let thread =
            |id, pending| ThreadSignals { thread: TaskId(id), mask: 0, alternate_stack: None, pending };
        let threads = vec![thread(5, Vec::new()), thread(6, private)];
        Signal { process: TaskId(5), actions: Vec::new(), pending, threads }
    }

    #[test]
    fn every_action_but_two_is_set_after_what_waits_is_forgotten() {
        let handler = Action { signal: 10, handler: 0x4000, flags: 4, restorer: 0x5000, mask: 2 };
        let batch = actions(&[handler], 1..=SIGNAL_COUNT);
        assert_eq!(batch.calls.len(), 62 * 2);
        assert!(batch.calls.iter().all(|call| call.arguments[0] != 9 && call.arguments[0] != 19));
        let set = batch.calls.iter().rfind(|call| call.arguments[0] == 10).map(|call| call.arguments[1]);
        let offset = usize::try_from(set.unwrap()).unwrap();
        let words: Vec<u8> = [0x4000_u64, 4, 0x5000, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(batch.data[offset..offset + 32], words);
        assert!(batch.fits());
    }

    /// The steps by (thread, number of calls), 0 for actions.
    fn steps_of(plan: &Plan) -> Vec<(u32, usize)> {
        let steps = plan.steps(Stage::Timers).map(|step| match step {
            plan::Step::Batch { thread, batch, .. } => (thread.0, batch.calls.len()),
            plan::Step::Action(_) => (0, 0),
        });
        steps.collect()
    }

    #[test]
    fn signals_are_queued_by_whom_they_wait_for() {
        let mut plan = Plan::default();
        queue_signals(&process(vec![waiting(34, -1, 1)], vec![waiting(12, -6, 0)]), None, &mut plan);
        assert_eq!(steps_of(&plan), [(5, 2), (6, 3)]);
    }

    #[test]
    fn a_timer_sends_its_signal_when_it_is_its_turn() {
        let setting = Setting::default();
        let (signal, notify, waits) = (34, Notify::Signal, Some(0));
        let timer = Timer { id: 3, clock: 1, notify, signal, value: 0, setting, overrun: 0, waiting: waits };
        let alarm = Alarm { process: TaskId(5), interval_timers: [setting; 3], timers: vec![timer] };
        let entries = vec![
            waiting(34, -1, 3),
            waiting(34, SI_TIMER, 3),
            waiting(34, SI_TIMER, 3),
            waiting(34, -1, 4),
            waiting(19, 0, 0),
        ];
        let mut plan = Plan::default();
        queue_signals(&process(entries, Vec::new()), Some(&alarm), &mut plan);
        assert_eq!(steps_of(&plan), [(5, 2), (0, 0), (5, 3)]);
    }

    #[test]
    fn many_signals_fit_into_requests() {
        let entries = vec![waiting(40, -1, 9); CHUNK];
        assert!(queue(&entries.iter().collect::<Vec<_>>(), true).fits());
    }
}
