//! Landlock: rules that a program gives to itself and its children. The kernel shows them to nobody, so they can't be
//! kept; but it can be told that there are some.
//!
//! Who has rules may not look into a process that has not the same ones, whatever else they are about. So each thread
//! is asked for something of a process that it could look into otherwise: of this program, which does for most, or of a
//! [witness] that has the same user and group and no capabilities. What is asked changes nothing. If the witness is
//! refused too, it is asked whether another witness can: if not, then it is something else that forbids it.
//!
//! Documentation: landlock(7), ptrace(2) ("Ptrace access mode checking").

mod witness;

use crate::error::{Error, Problems, Result, Subject, code};
use crate::frozen::{Frozen, FrozenProcess};
use crate::records::Records;
use crate::stub::batch::{Batch, CallIndex, Outcome};
use crate::sys::landlock;
use nix::errno::Errno;
use vckpt_image_format::TaskId;
use witness::{Identity, Witnesses};

/// What can be told of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Free,
    Restricted,
    /// Why it can't be told.
    Unknown(String),
}

/// Refuses threads that have rules.
///
/// # Errors
/// [`code::TASK_STATE`], all at once; what the stubs say.
pub(super) fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    if landlock::is_absent() {
        return Ok(());
    }
    let mut problems = Problems::new();
    let mut witnesses = Witnesses::default();
    let (batch, call) = question_about_us();
    let answers = frozen.run_in_threads(&batch);
    for (process, answers) in frozen.living().zip(answers) {
        let subject = process.subject();
        // Who is in another PID namespace does not know us, but maybe somebody else by our number.
        let is_near = process.identity.ids.len() == 1;
        let answers = if is_near { answers } else { Ok(Vec::new()) };
        let found = answers.and_then(|answers| look(process, call, &answers, &mut witnesses));
        let Some(found) = problems.take(found.map_err(|error| error.about(subject.clone()))) else {
            continue;
        };
        if let Some((thread, _)) = found.iter().find(|(_, finding)| *finding == Finding::Restricted) {
            problems.push(refusal(*thread, &subject));
        }
        let unknown = found.iter().find_map(|(thread, finding)| match finding {
            Finding::Unknown(why) => Some((thread, why)),
            Finding::Free | Finding::Restricted => None,
        });
        if let Some((thread, why)) = unknown {
            records
                .degraded
                .push(format!("{subject}: whether Landlock restricts thread {thread} can't be told: {why}"));
        }
    }
    problems.finish()?;
    match landlock::own_layers() {
        Ok(None | Some(0)) => {}
        Ok(Some(_)) => records.degraded.push(
            "vckpt is restricted by Landlock, and so is the tree: restored elsewhere, it is not".to_owned(),
        ),
        Err(errno) => records
            .degraded
            .push(format!("whether Landlock restricts vckpt and the tree can't be told: {}", errno.desc())),
    }
    Ok(())
}

fn refusal(thread: TaskId, subject: &Subject) -> Box<Error> {
    let what = match subject.task {
        Some(process) if process == thread.0 => "it is restricted by Landlock".to_owned(),
        _ => format!("its thread {thread} is restricted by Landlock"),
    };
    Error::new(code::TASK_STATE, what)
        .because("the kernel shows the rules to nobody, so that they would be lost")
        .about(subject.clone())
}

/// What can be told of the threads of a process, of which some may have answered the question about us.
fn look(
    process: &mut FrozenProcess,
    call: CallIndex,
    answers: &[Outcome],
    witnesses: &mut Witnesses,
) -> Result<Vec<(TaskId, Finding)>> {
    let mut found = Vec::with_capacity(process.threads.len());
    for index in 0..process.threads.len() {
        let is_free = answers.get(index).is_some_and(|answer| answer.get(call).is_ok());
        let finding = if is_free { Finding::Free } else { ask(process, index, witnesses)? };
        found.extend(process.threads.get(index).map(|thread| (thread.id, finding)));
    }
    Ok(found)
}

/// A question that only those may ask who may look into this program.
fn question_about_us() -> (Batch, CallIndex) {
    let mut batch = Batch::new();
    let room = batch.room(16);
    let length = batch.room(8);
    let arguments = [std::process::id().into(), room.into(), length.into()];
    let call = batch.call("looking into vckpt", libc::SYS_get_robust_list, arguments);
    (batch, call)
}

/// Lets a thread look into a witness.
fn ask(process: &mut FrozenProcess, index: usize, witnesses: &mut Witnesses) -> Result<Finding> {
    let Some(thread) = process.threads.get_mut(index) else { return Ok(Finding::Free) };
    let Some(identity) = Identity::of(thread.tid)? else {
        return Ok(Finding::Unknown("its user namespace does not know its user".to_owned()));
    };
    // This program may have reached a limit, or have no right to become that user.
    let witness = match witnesses.get(identity) {
        Ok(witness) => witness,
        Err(error) => return Ok(Finding::Unknown(error.to_string())),
    };
    let (batch, call) = witness.question();
    let refusal = match thread.run(&batch)?.get(call) {
        Ok(_) => return Ok(Finding::Free),
        Err(errno @ (Errno::EACCES | Errno::EPERM)) => errno,
        Err(errno) => return Ok(Finding::Unknown(errno.desc().to_owned())),
    };
    Ok(match witness.would_be_seen(identity) {
        Ok(true) => Finding::Restricted,
        Ok(false) => Finding::Unknown(refusal.desc().to_owned()),
        Err(error) => Finding::Unknown(error.to_string()),
    })
}
