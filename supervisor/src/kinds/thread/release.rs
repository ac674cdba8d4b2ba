//! The release: every puppet becomes what it is to be, and then all run together.

use super::{dispatch, wait};
use crate::error::{Error, Result, Subject, code};
use crate::plan::Action;
use crate::restoring::Restoring;
use crate::stub::puppet::Puppet;
use crate::sys::ptrace::{self, Registers};
use crate::tracee::Stopped;
use crate::tracee::gadgets;
use crate::tracee::sigframe::Gadgets;
use crate::waits::resume;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vckpt_image_format::record::lightweight_process::LightweightProcess;
use vckpt_image_format::record::process::{EndedLeader, Process};
use vckpt_image_format::{MemoryId, TaskId};
use vckpt_parasite::protocol;

const PATIENCE: Duration = Duration::from_secs(10);

/// Gives all threads their registers and lets them run.
#[derive(Debug)]
pub struct Release {
    /// All threads.
    pub threads: Vec<LightweightProcess>,
    /// Address of the vdso in each memory.
    pub vdso: BTreeMap<MemoryId, u64>,
    /// Signal mask of each thread.
    pub masks: BTreeMap<TaskId, u64>,
}

impl Action for Release {
    fn act(&self, restoring: &mut Restoring<'_>) -> Result<()> {
        let records = crate::image::all::<Process>(restoring.image)?;
        let processes: BTreeMap<TaskId, &Process> =
            records.iter().map(|process| (process.id, process)).collect();
        let leaders: Vec<(&Process, EndedLeader)> = records.iter().filter_map(ended_leader).collect();
        let call = system_call_in_vdso()?;
        let threads = self.threads.iter().map(|thread| thread.id);
        stop(restoring, &threads.chain(leaders.iter().map(|(leader, _)| leader.id)).collect::<Vec<_>>())?;
        let mut memories: BTreeMap<MemoryId, (&LightweightProcess, Registers, Option<u64>)> = BTreeMap::new();
        let mut ended = BTreeMap::new();
        for thread in &self.threads {
            let about = |error: Box<Error>| error.about(Subject::task(thread.process.0, thread.name.clone()));
            let memory = processes.get(&thread.process).and_then(|process| process.living.as_ref());
            let vdso = memory.and_then(|living| self.vdso.get(&living.memory));
            let call = vdso.zip(call).map(|(vdso, offset)| vdso + offset);
            let home = registers(thread)?;
            let result = wait::restart(restoring.puppet(thread.id)?, thread, &home, call).map_err(about)?;
            ended.extend(result.map(|result| (thread.id, result)));
            if let Some(living) = memory {
                memories.entry(living.memory).or_insert((thread, home, call));
            }
        }
        let areas = crate::kinds::process::family::places(&records)?.areas();
        // Without a vdso the stub's few pages stay: there is no instruction that could unmap them.
        let unmaps = memories.into_iter().filter_map(|(memory, (thread, home, call))| {
            Some(Unmap { thread, home, call: call?, areas: areas.get(&memory).copied().unwrap_or(1) })
        });
        unmap(restoring, &unmaps.collect::<Vec<_>>())?;
        for (leader, ended) in leaders {
            let about = |error: Box<Error>| error.about(Subject::task(leader.id.0, leader.command.clone()));
            let vdso = leader.living.as_ref().and_then(|living| self.vdso.get(&living.memory));
            let call = vdso.zip(call).map(|(vdso, offset)| vdso + offset);
            end_leader(restoring, leader.id, ended, call).map_err(about)?;
        }
        for thread in &self.threads {
            let home = registers(thread)?;
            let puppet = restoring.puppet(thread.id)?;
            let mask = self.masks.get(&thread.id).copied().unwrap_or(0);
            let resume = match ended.get(&thread.id) {
                Some(&result) => resume::with_result(&home, result),
                None => {
                    let gadgets = gadgets(thread, puppet);
                    resume::resume(&home, &thread.xstate, mask, thread.wait.as_ref(), gadgets)
                }
            };
            let written = resume.bytes.as_ref().map(|(address, bytes)| puppet.write(*address, bytes));
            // Without room below its stack the thread waits its time anew.
            let registers =
                if written.is_some_and(|written| written.is_err()) { home } else { resume.registers };
            let stopped = puppet.stopped()?;
            stopped.set_xstate(&thread.xstate)?;
            stopped.set_registers(&registers)?;
            stopped.set_signal_mask(mask)?;
            dispatch::restore(stopped, thread)?;
        }
        restoring.release()
    }
}

/// Parks and stops these puppets: each step of all of them at the same time.
fn stop(restoring: &mut Restoring<'_>, all: &[TaskId]) -> Result<()> {
    all.iter().try_for_each(|&id| restoring.puppet(id)?.begin_parking())?;
    all.iter().try_for_each(|&id| restoring.puppet(id)?.finish_parking())?;
    all.iter().try_for_each(|&id| restoring.puppet(id)?.begin_stopping())?;
    all.iter().try_for_each(|&id| restoring.puppet(id)?.finish_stopping().map(drop))
}

/// A process whose first thread has ended while others run.
fn ended_leader(process: &Process) -> Option<(&Process, EndedLeader)> {
    Some((process, process.living.as_ref()?.ended_leader?))
}

/// Lets the first thread of a process end, by a call from the vdso. In a process that is stopped it ends when the process
/// goes on.
fn end_leader(
    restoring: &mut Restoring<'_>,
    leader: TaskId,
    ended: EndedLeader,
    call: Option<u64>,
) -> Result<()> {
    let Some(call) = call else {
        return Err(Error::new(
            code::TASK_STATE,
            "its first thread had ended, which needs a vdso to be restored",
        ));
    };
    let deadline = Instant::now() + PATIENCE;
    let puppet = restoring.puppet(leader)?;
    let stopped = puppet.stopped()?;
    let mut registers = stopped.registers()?;
    registers.rip = call;
    registers.orig_rax = u64::MAX;
    registers.rax = libc::SYS_exit.cast_unsigned();
    registers.rdi = u64::from(ended.status >> 8);
    stopped.set_signal_mask(ended.mask)?;
    stopped.set_registers(&registers)?;
    let tid = puppet.tid;
    puppet.release()?;
    let state = || {
        let stat = crate::proc::read::file(tid, "stat").ok()?;
        crate::proc::stat::parse(&stat).map(|stat| stat.state)
    };
    while !matches!(state(), None | Some(b'Z' | b'T')) {
        if Instant::now() > deadline {
            return Err(Error::new(code::STUB_SILENT, "its first thread did not end in time"));
        }
        crate::tracee::pause(PATIENCE);
    }
    Ok(())
}

/// The registers with which a thread begins.
fn registers(thread: &LightweightProcess) -> Result<Registers> {
    let words: [u64; 27] =
        thread.registers.as_slice().try_into().map_err(|_| {
            Error::new(code::IMAGE_BAD, "a thread has not the registers of this architecture")
        })?;
    let mut registers = ptrace::from_words(&words);
    resume::without_restart_block(&mut registers, thread.wait.as_ref());
    Ok(registers)
}

/// The instructions that the dump found in the program, if they are where they were: not in another kernel's vdso.
fn gadgets(thread: &LightweightProcess, puppet: &Puppet) -> Option<Gadgets> {
    let (call_and_return, signal_return) = thread.instructions?;
    let found = Gadgets { call_and_return, signal_return };
    let waits = thread.wait.as_ref().is_some_and(resume::needs_frames);
    (waits && gadgets::are_there(found, &puppet.memory().ok()?)).then_some(found)
}

/// The end of all areas in a memory.
struct Unmap<'image> {
    /// The thread that makes the call.
    thread: &'image LightweightProcess,
    /// Its own registers.
    home: Registers,
    /// Where the vdso has a call.
    call: u64,
    /// How many areas there are.
    areas: usize,
}

/// Unmaps all areas of all memories, by a call of one thread of each from the vdso. They make each step at the same time.
fn unmap(restoring: &mut Restoring<'_>, unmaps: &[Unmap<'_>]) -> Result<()> {
    let deadline = || Instant::now() + PATIENCE;
    let mut each = |step: &dyn Fn(&mut Puppet, &Unmap<'_>) -> Result<()>| {
        unmaps.iter().try_for_each(|unmap| {
            let subject = Subject::task(unmap.thread.process.0, unmap.thread.name.clone());
            step(restoring.puppet(unmap.thread.id)?, unmap).map_err(|error| error.about(subject))
        })
    };
    each(&|puppet, unmap| {
        let mut registers = unmap.home;
        registers.rip = unmap.call;
        registers.orig_rax = u64::MAX;
        registers.rax = libc::SYS_munmap.cast_unsigned();
        registers.rdi = puppet.place.area;
        registers.rsi = (protocol::AREA_LENGTH * unmap.areas) as u64;
        puppet.set_out(|stopped| {
            stopped.set_registers(&registers)?;
            stopped.resume_to_call()
        })
    })?;
    each(&|puppet, _| {
        puppet.arrive(|running| running.expect_call(deadline()))?;
        puppet.set_out(Stopped::resume_to_call)
    })?;
    each(&|puppet, _| {
        puppet.arrive(|running| running.expect_call(deadline()))?;
        let result = puppet.stopped()?.registers()?.rax.cast_signed();
        if result != 0 {
            return Err(Error::new(code::INTERNAL, "the stub could not be unmapped").because(result));
        }
        // A stop in which the kernel looks at signals, where registers of interrupted calls may be set.
        puppet.set_out(|stopped| {
            stopped.interrupt()?;
            stopped.resume(0)
        })
    })?;
    each(&|puppet, _| puppet.arrive(|running| running.expect_interruption(deadline())))
}

/// Offset of a system call instruction in the vdso of this kernel, which is that of every process.
fn system_call_in_vdso() -> Result<Option<u64>> {
    let own = std::process::id().cast_signed();
    let maps = crate::proc::maps::parse(&crate::proc::read::file(own, "maps")?)
        .map_err(|line| Error::new(code::PROC, "the kernel's text is not understood").because(line))?;
    let Some(vdso) = maps.iter().find(|line| line.name == b"[vdso]") else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(vdso.end - vdso.start).unwrap_or(0)];
    let memory = std::fs::File::open("/proc/self/mem")
        .and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, vdso.start));
    Ok(memory.ok().and_then(|()| memchr::memmem::find(&bytes, &[0x0f, 0x05])).map(|offset| offset as u64))
}
