//! Sets how each thread is scheduled.

use super::autogroup::SetShares;
use super::{IOPRIO_WHO_PROCESS, attributes};
use crate::error::{Error, Result, Subject, code};
use crate::plan::{Action, Plan, Stage};
use crate::restoring::Restoring;
use crate::stub::batch::{Argument, Batch, CallIndex, Data};
use nix::errno::Errno;
use vckpt_image_format::reader::Image;
use vckpt_image_format::record::schedule_control::{
    Attributes, MAXIMUM_MASK_WORDS, ScheduleControl, ThreadSchedule, list,
};

/// Adds the steps for the scheduling of every thread.
///
/// # Errors
/// If the image can't be read.
pub fn plan(image: &Image, plan: &mut Plan) -> Result<()> {
    let mut shares = Vec::new();
    for record in crate::image::all::<ScheduleControl>(image)? {
        shares.extend(record.autogroup.map(|nice| (record.process, nice)));
        for thread in record.threads {
            if is_ordinary(&thread) {
                plan.batch(Stage::TaskState, thread.thread, "scheduling", Steps::new(&thread).batch);
            } else {
                plan.action(Stage::TaskState, SetSchedule(thread));
            }
        }
    }
    plan.action(Stage::TaskState, SetShares(shares));
    Ok(())
}

/// Whether nothing of it can be refused on another host or to another user.
fn is_ordinary(thread: &ThreadSchedule) -> bool {
    let ThreadSchedule { attributes, affinity, io_priority, memory_policy, .. } = thread;
    !attributes::is_real_time(attributes)
        && attributes.nice == 0
        && attributes::clamps(attributes).is_none()
        && affinity.is_none()
        && memory_policy.is_none()
        && *io_priority == 0
}

/// The calls for one thread.
struct Steps {
    batch: Batch,
    nice: Option<CallIndex>,
    policy: CallIndex,
    clamps: Option<CallIndex>,
    affinity: CallIndex,
    /// The processors that it may then run on.
    processors: Option<Data>,
    io_priority: CallIndex,
    memory_policy: CallIndex,
}

impl Steps {
    fn new(thread: &ThreadSchedule) -> Self {
        // What is never refused ends the batch if it is after all; what may be is answered by the action.
        let add: fn(&mut Batch, _, _, [Argument; 3]) -> CallIndex =
            if is_ordinary(thread) { Batch::must } else { Batch::call };
        let mut batch = Batch::new();
        let zero = Argument::value(0);
        if thread.timer_slack != 0 {
            let option = Argument::from(libc::PR_SET_TIMERSLACK);
            let arguments = [option, thread.timer_slack.into(), zero, zero, zero];
            batch.must("setting the timer slack", libc::SYS_prctl, arguments);
        }
        // Not every policy takes a niceness along.
        let nice =
            (thread.attributes.nice != 0 || !attributes::has_niceness(&thread.attributes)).then(|| {
                let arguments = [Argument::from(libc::PRIO_PROCESS), zero, thread.attributes.nice.into()];
                add(&mut batch, "setting the niceness", libc::SYS_setpriority, arguments)
            });
        let attributes = batch.data(&attributes::policy(&thread.attributes));
        let policy =
            add(&mut batch, "setting the policy", libc::SYS_sched_setattr, [zero, attributes.into(), zero]);
        let clamps = attributes::clamps(&thread.attributes).map(|clamps| {
            let clamps = batch.data(&clamps);
            batch.call(
                "setting the clamps of utilisation",
                libc::SYS_sched_setattr,
                [zero, clamps.into(), zero],
            )
        });
        let everywhere = [u64::MAX; MAXIMUM_MASK_WORDS];
        let mask = batch.words(thread.affinity.as_deref().unwrap_or(&everywhere));
        let length = |mask: Data| Argument::from(mask.length);
        let arguments = [zero, length(mask), mask.into()];
        let affinity = add(&mut batch, "setting the processors", libc::SYS_sched_setaffinity, arguments);
        let processors = thread.affinity.as_ref().map(|_| {
            let mask = batch.room(MAXIMUM_MASK_WORDS * 8);
            batch.must(
                "reading the processors",
                libc::SYS_sched_getaffinity,
                [zero, length(mask), mask.into()],
            );
            mask
        });
        let who = Argument::from(IOPRIO_WHO_PROCESS);
        let arguments = [who, zero, thread.io_priority.into()];
        let io_priority = add(&mut batch, "setting the priority for disks", libc::SYS_ioprio_set, arguments);
        let arguments = match &thread.memory_policy {
            None => [zero, zero, zero],
            Some(policy) => {
                let nodes = batch.words(&policy.nodes);
                // The kernel counts one bit more than it reads.
                [policy.mode.into(), nodes.into(), Argument::from(policy.nodes.len() * 64 + 1)]
            }
        };
        let memory_policy = batch.call("setting the memory policy", libc::SYS_set_mempolicy, arguments);
        Self { batch, nice, policy, clamps, affinity, processors, io_priority, memory_policy }
    }
}

/// Sets the scheduling of a thread, and says what it may not have.
#[derive(Debug)]
struct SetSchedule(ThreadSchedule);

impl Action for SetSchedule {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let thread = self.0.thread;
        let steps = Steps::new(&self.0);
        let outcome = restoring.run(thread, &steps.batch)?;
        let subject = Subject { task: Some(thread.0), ..Subject::default() };
        let refused = |what: String| {
            move |errno| {
                let code = if errno == Errno::EPERM { code::PRIVILEGE } else { code::TASK_RESTORE };
                Error::system(code, what, errno)
            }
        };
        if let Some(nice) = steps.nice {
            let what = format!("setting the niceness {}", self.0.attributes.nice);
            outcome.get(nice).map_err(refused(what)).map_err(|error| error.about(subject.clone()))?;
        }
        let described = describe(&self.0.attributes);
        outcome
            .get(steps.policy)
            .map_err(refused(described))
            .map_err(|error| error.about(subject.clone()))?;
        let what = format!("setting the priority for disks to {:#x}", self.0.io_priority);
        outcome.get(steps.io_priority).map_err(refused(what)).map_err(|error| error.about(subject))?;
        let mut degrade = |what: String| restoring.degraded.push(format!("thread {thread}: {what}"));
        if steps.clamps.is_some_and(|clamps| outcome.get(clamps).is_err()) {
            degrade("this kernel does not clamp utilisation".to_owned());
        }
        if self.0.memory_policy.is_some() && outcome.get(steps.memory_policy).is_err() {
            degrade("its memory policy is not possible on this host".to_owned());
        }
        if let (Some(wanted), Some(got)) = (&self.0.affinity, steps.processors) {
            let got: Vec<u64> = (0..MAXIMUM_MASK_WORDS).map(|index| outcome.word(got, index)).collect();
            if outcome.get(steps.affinity).is_err() {
                degrade(format!("none of its processors {} exists here: it may run on all", list(wanted)));
            } else if !same(wanted, &got) {
                degrade(format!("it runs on the processors {} instead of {}", list(&got), list(wanted)));
            }
        }
        Ok(())
    }
}

fn describe(attributes: &Attributes) -> String {
    let name = attributes::policy_name(attributes.policy);
    if attributes::is_deadline(attributes) {
        let Attributes { runtime, deadline, period, .. } = attributes;
        format!("setting {name} with {runtime} ns of every {period}, within {deadline}")
    } else if attributes::is_real_time(attributes) {
        format!("setting {name} with priority {}", attributes.priority)
    } else {
        format!("setting {name} with niceness {}", attributes.nice)
    }
}

/// Whether two masks of different length have the same bits.
fn same(one: &[u64], other: &[u64]) -> bool {
    let word = |mask: &[u64], index: usize| mask.get(index).copied().unwrap_or(0);
    (0..one.len().max(other.len())).all(|index| word(one, index) == word(other, index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vckpt_image_format::TaskId;
    use vckpt_image_format::record::schedule_control::MemoryPolicy;

    fn thread() -> ThreadSchedule {
        ThreadSchedule {
            thread: TaskId(5),
            attributes: Attributes::default(),
            affinity: None,
            io_priority: 0,
            timer_slack: 50_000,
            memory_policy: None,
        }
    }

    #[test]
    fn only_the_ordinary_is_never_refused() {
        assert!(is_ordinary(&thread()));
        let real_time = Attributes { policy: 1, priority: 3, ..Attributes::default() };
        for special in [
            ThreadSchedule { attributes: real_time, ..thread() },
            ThreadSchedule { attributes: Attributes { nice: -1, ..Attributes::default() }, ..thread() },
            ThreadSchedule { affinity: Some(vec![1]), ..thread() },
            ThreadSchedule { io_priority: 0x2000, ..thread() },
            ThreadSchedule { memory_policy: Some(MemoryPolicy { mode: 3, nodes: vec![1] }), ..thread() },
        ] {
            assert!(!is_ordinary(&special), "{special:?}");
        }
    }

    #[test]
    fn a_thread_of_all_processors_may_run_on_all_of_this_host() {
        let steps = Steps::new(&thread());
        assert!(steps.processors.is_none());
        let call = steps.batch.calls[steps.affinity.0];
        assert_eq!(call.arguments[1], 1024);
        let offset = usize::try_from(call.arguments[2]).unwrap();
        assert_eq!(steps.batch.data[offset..offset + 1024], [0xff; 1024]);
    }

    #[test]
    fn masks_are_compared_and_shown() {
        assert!(same(&[5], &[5, 0, 0]));
        assert!(!same(&[5], &[5, 1]));
        assert_eq!(
            describe(&Attributes { policy: 2, priority: 9, ..Attributes::default() }),
            "setting SCHED_RR with priority 9"
        );
        let deadline = Attributes { policy: 6, runtime: 2, deadline: 8, period: 10, ..Attributes::default() };
        assert_eq!(describe(&deadline), "setting SCHED_DEADLINE with 2 ns of every 10, within 8");
    }
}
