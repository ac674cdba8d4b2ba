//! Reads filters, suspends them, and refuses those under which no dump is safe.

use super::filter::{self, ALLOW, ERROR, LOG};
use super::landlock;
use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::records::Records;
use crate::stub::batch::Batch;
use crate::tracee::Stopped;
use nix::errno::Errno;
use std::collections::BTreeSet;
use vckpt_image_format::record::sandbox::{Filter, Sandbox, ThreadSandbox};

/// `SECCOMP_MODE_STRICT`.
const STRICT: u32 = 1;

/// The lowest number of an operation of the stub.
const FIRST_OPERATION: u32 = 0x7663_0000;

/// The calls without which a stub does not find home.
const ON_THE_WAY_HOME: [(i64, &str); 5] = [
    (libc::SYS_rt_sigreturn, "rt_sigreturn"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_close, "close"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_sendmsg, "sendmsg"),
];

/// The other calls by which a stub comes and goes. They may fail when this program is gone.
const ON_THE_WAY: [(i64, &str); 4] = [
    (libc::SYS_socketpair, "socketpair"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_restart_syscall, "restart_syscall"),
];

/// Names of the calls that a stub makes to find something out, for messages.
const QUESTIONS: [(i64, &str); 33] = [
    (libc::SYS_getpriority, "getpriority"),
    (libc::SYS_get_thread_area, "get_thread_area"),
    (libc::SYS_get_robust_list, "get_robust_list"),
    (libc::SYS_readlinkat, "readlinkat"),
    (libc::SYS_brk, "brk"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_personality, "personality"),
    (libc::SYS_waitid, "waitid"),
    (libc::SYS_getpid, "getpid"),
    (libc::SYS_gettid, "gettid"),
    (libc::SYS_sigaltstack, "sigaltstack"),
    (libc::SYS_rt_sigaction, "rt_sigaction"),
    (libc::SYS_rt_sigpending, "rt_sigpending"),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
    (libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo"),
    (libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo"),
    (libc::SYS_getitimer, "getitimer"),
    (libc::SYS_timer_gettime, "timer_gettime"),
    (libc::SYS_timer_settime, "timer_settime"),
    (libc::SYS_timer_getoverrun, "timer_getoverrun"),
    (libc::SYS_clock_gettime, "clock_gettime"),
    (libc::SYS_sched_getattr, "sched_getattr"),
    (libc::SYS_sched_getaffinity, "sched_getaffinity"),
    (libc::SYS_ioprio_get, "ioprio_get"),
    (libc::SYS_get_mempolicy, "get_mempolicy"),
    (libc::SYS_prlimit64, "prlimit64"),
    (libc::SYS_getrlimit, "getrlimit"),
    (libc::SYS_mincore, "mincore"),
    (libc::SYS_membarrier, "membarrier"),
    (libc::SYS_arch_prctl, "arch_prctl"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_fcntl, "fcntl"),
];

/// Takes down the filters of a thread that stands still and has some, and suspends them.
///
/// # Errors
/// [`code::TASK_STATE`] if it can't be dumped under them, [`code::NOT_PERMITTED`] if they may not be read.
pub fn suspend(stopped: &Stopped, mode: u32) -> Result<Vec<Filter>> {
    if mode == STRICT {
        return Err(Error::new(code::TASK_STATE, "it runs in the strict mode of seccomp")
            .because("a task in it could not go on if the dump were killed"));
    }
    let forbidden = |errno: Errno| {
        let error = Error::system(code::TASK_STATE, "it runs under a seccomp filter", errno);
        error.hint("only root may read filters, and only from a program that has none itself")
    };
    let filters = stopped.filters().map_err(forbidden)?;
    refuse(&filters)?;
    stopped.suspend_filters(libc::PTRACE_O_TRACESYSGOOD).map_err(forbidden)?;
    Ok(filters)
}

fn refuse(filters: &[Filter]) -> Result<()> {
    if filters.iter().any(|filter| filter::may_notify(&filter.program)) {
        let what = "its seccomp filter asks another process (SECCOMP_RET_USER_NOTIF)";
        return Err(Error::new(code::TASK_STATE, what).because("that one can't be connected to it again"));
    }
    let calls =
        ON_THE_WAY_HOME.iter().map(|call| (call, true)).chain(ON_THE_WAY.iter().map(|call| (call, false)));
    for (&(number, name), is_needed) in calls {
        let is_good = |answer: u32| matches!(answer, ALLOW | LOG) || !is_needed && answer == ERROR;
        let number = u32::try_from(number).unwrap_or(0);
        let mut answers = filters.iter().flat_map(|filter| filter::answers(&filter.program, number));
        if !answers.all(is_good) {
            return Err(not_allowed(name));
        }
    }
    Ok(())
}

fn not_allowed(call: &str) -> Box<Error> {
    Error::new(code::TASK_STATE, format!("its seccomp filter does not allow {call}"))
        .because("it would be harmed by a dump that is killed while its stub makes that call")
}

/// Refuses a batch for a thread under filters, if one of its calls would end the thread.
///
/// # Errors
/// [`code::TASK_STATE`].
pub fn permit(filters: &[Filter], batch: &Batch) -> Result<()> {
    if filters.is_empty() {
        return Ok(());
    }
    // Numbers above are operations of the stub.
    let numbers: BTreeSet<u32> = batch
        .calls
        .iter()
        .filter_map(|call| u32::try_from(call.number).ok())
        .filter(|&number| number < FIRST_OPERATION)
        .collect();
    for number in numbers {
        let mut answers = filters.iter().flat_map(|filter| filter::answers(&filter.program, number));
        if !answers.all(|answer| matches!(answer, ALLOW | LOG | ERROR)) {
            let known = QUESTIONS.iter().find(|(known, _)| *known == i64::from(number));
            return Err(
                known.map_or_else(|| not_allowed(&format!("call {number}")), |(_, name)| not_allowed(name))
            );
        }
    }
    Ok(())
}

/// Gives the records of all filters, and refuses what has rules of Landlock.
///
/// # Errors
/// [`code::TASK_STATE`]; what the stubs say.
pub fn observe(frozen: &mut Frozen, records: &mut Records) -> Result<()> {
    for process in frozen.living() {
        let threads = process.threads.iter().filter(|thread| !thread.filters.is_empty());
        let threads: Vec<_> = threads
            .map(|thread| ThreadSandbox { thread: thread.id, filters: thread.filters.clone() })
            .collect();
        if !threads.is_empty() {
            records.push(Sandbox { process: process.id, threads });
        }
    }
    landlock::observe(frozen, records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::batch::Argument;
    use vckpt_parasite::protocol::operation;

    #[test]
    fn calls_that_end_a_thread_are_not_made_in_it() {
        // Ends the thread at every call but munmap.
        let number = u32::try_from(libc::SYS_munmap).unwrap().to_le_bytes();
        let mut program = vec![0x20, 0, 0, 0, 0, 0, 0, 0, 0x15, 0, 0, 1];
        program.extend(number);
        program.extend([6, 0, 0, 0, 0, 0, 0xff, 0x7f, 6, 0, 0, 0, 0, 0, 0, 0]);
        let filters = [Filter { flags: 0, program }];
        let batch = |number| {
            let mut batch = Batch::new();
            batch.call("something", number, [Argument::value(0)]);
            batch
        };
        assert_eq!(permit(&filters, &batch(libc::SYS_munmap)), Ok(()));
        let error = permit(&filters, &batch(libc::SYS_ioctl)).unwrap_err();
        assert_eq!(error.what, "its seccomp filter does not allow ioctl");
        assert_eq!(permit(&[], &batch(libc::SYS_reboot)), Ok(()));
        let error = permit(&filters, &batch(libc::SYS_reboot)).unwrap_err();
        assert_eq!(error.what, "its seccomp filter does not allow call 169");
        let mut batch = Batch::new();
        batch.operation("parking", operation::PARK, []);
        assert_eq!(permit(&filters, &batch), Ok(()));
    }
}
