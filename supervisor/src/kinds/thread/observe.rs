//! Observing threads.

use crate::error::{Error, Problems, Result, code};
use crate::frozen::{Frozen, FrozenThread};
use crate::records::Records;
use crate::stub::batch::{Batch, CallIndex, Data, Outcome};
use crate::sys::{process, ptrace};
use vckpt_image_format::TaskId;
use vckpt_image_format::record::lightweight_process::{LightweightProcess, Rseq};

/// `PR_GET_SPECULATION_CTRL`.
const GET_SPECULATION: i32 = 52;
/// `PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`, `PR_SPEC_L1D_FLUSH`.
pub(super) const SPECULATION: [u32; 3] = [0, 1, 2];
/// `PR_SPEC_PRCTL`: a task may choose.
const BY_TASK: u32 = 1;
/// `PR_GET_TID_ADDRESS`.
const GET_TID_ADDRESS: i32 = 40;

/// `PR_MCE_KILL_DEFAULT`.
pub(super) const DEFAULT_FAILURE: u32 = 2;
/// `PR_GET_IO_FLUSHER`.
const GET_FLUSHER: i32 = 58;
/// `ARCH_GET_CPUID`.
const GET_CPUID: i32 = 0x1011;

/// Adds the records of all threads.
///
/// # Errors
/// What the kernel would not tell.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    let mut problems = Problems::new();
    let question = Question::new();
    let answers = frozen.run_in_threads(&question.batch);
    for (process, answers) in frozen.living().zip(answers) {
        let (id, subject) = (process.id, process.subject());
        let Some(answers) = problems.take(answers) else { continue };
        for (thread, answer) in process.threads.iter().zip(answers) {
            if thread.agent.loses_its_call() {
                records.degraded.push(format!(
                    "{subject}: thread {} is in a wait of unknown length that was interrupted before; restored, it \
                     sees EINTR",
                    thread.id
                ));
            }
            if answer.get(question.flusher) == Ok(1) {
                records.degraded.push(format!(
                    "{subject}: thread {} may use reserves of memory to write to disks (PR_SET_IO_FLUSHER): not kept",
                    thread.id
                ));
            }
            let record = question.record(id, thread, &answer).map_err(|error| error.about(subject.clone()));
            if let Some(record) = problems.take(record) {
                records.push(record);
            }
        }
    }
    problems.finish()
}

/// What is asked of every thread.
struct Question {
    batch: Batch,
    address: Data,
    death_signal: Data,
    counter: Data,
    speculation: [CallIndex; 3],
    personality: CallIndex,
    identification: CallIndex,
    memory_failure: CallIndex,
    flusher: CallIndex,
}

impl Question {
    fn new() -> Self {
        let mut batch = Batch::new();
        let address = batch.room(8);
        let death_signal = batch.room(8);
        batch.must("asking for the tid address", libc::SYS_prctl, [GET_TID_ADDRESS.into(), address.into()]);
        batch.must(
            "asking for the death signal",
            libc::SYS_prctl,
            [libc::PR_GET_PDEATHSIG.into(), death_signal.into()],
        );
        let counter = batch.room(8);
        batch.call(
            "asking for the time stamp counter",
            libc::SYS_prctl,
            [libc::PR_GET_TSC.into(), counter.into()],
        );
        let speculation = SPECULATION.map(|kind| {
            let arguments = [GET_SPECULATION.into(), kind.into(), 0.into(), 0.into(), 0.into()];
            batch.call("asking for speculation", libc::SYS_prctl, arguments)
        });
        let personality =
            batch.must("asking for the personality", libc::SYS_personality, [0xffff_ffff_u32.into()]);
        let arguments = [GET_CPUID.into(), 0.into()];
        let identification = batch.call("asking for CPUID", libc::SYS_arch_prctl, arguments);
        let arguments = [libc::PR_MCE_KILL_GET.into(), 0.into(), 0.into(), 0.into(), 0.into()];
        let memory_failure = batch.call("asking for failing memory", libc::SYS_prctl, arguments);
        let arguments = [GET_FLUSHER.into(), 0.into(), 0.into(), 0.into(), 0.into()];
        let flusher = batch.call("asking for the use of reserves", libc::SYS_prctl, arguments);
        Self {
            batch,
            address,
            death_signal,
            counter,
            speculation,
            personality,
            identification,
            memory_failure,
            flusher,
        }
    }

    fn record(&self, process: TaskId, thread: &FrozenThread, answer: &Outcome) -> Result<LightweightProcess> {
        let robust_list = process::robust_list(thread.tid)
            .map_err(|errno| Error::system(code::PROC, "asking for the robust list", errno))?;
        let (rseq_address, size, signature) = thread.agent.rseq();
        let number = |call| answer.get(call).ok().and_then(|value| u32::try_from(value).ok());
        Ok(LightweightProcess {
            id: thread.id,
            process,
            name: thread.name.as_slice().into(),
            registers: ptrace::to_words(thread.agent.registers()).to_vec(),
            xstate: thread.agent.xstate().to_vec(),
            robust_list,
            clear_child_tid: answer.word(self.address, 0),
            rseq: (rseq_address != 0).then_some(Rseq { address: rseq_address, size, signature }),
            parent_death_signal: answer.half_word(self.death_signal, 0),
            time_stamp_counter: answer.half_word(self.counter, 0),
            speculation: self.speculation.map(|call| {
                let value = number(call).unwrap_or(0);
                if value & BY_TASK == 0 { 0 } else { value }
            }),
            personality: number(self.personality).unwrap_or(0),
            identification_denied: number(self.identification) == Some(0),
            memory_failure: number(self.memory_failure).unwrap_or(DEFAULT_FAILURE),
            dispatch: thread.dispatch,
            wait: thread.agent.wait(),
            instructions: thread.agent.instructions(),
        })
    }
}
