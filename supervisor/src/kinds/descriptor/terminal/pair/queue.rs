//! What waits in a pair: taken, and put back at once.

use super::observe::Pair;
use super::{quiet, raw};
use crate::error::{Error, Result, code};
use crate::frozen::Frozen;
use crate::proc::read;
use crate::stub::batch::{Batch, CallIndex, Data, Outcome};
use vckpt_image_format::record::pseudo_terminal::PairState;
use vckpt_image_format::record::terminal::Modes;

/// Bytes that one read takes, and how often output and input are read: more than the kernel keeps of either.
const PORTION: usize = 4096;
const OUTPUT_READS: usize = 20;
const INPUT_READS: usize = 2;
const POLLIN: u16 = 1;

/// `ioctl` requests; see ioctl_tty(2).
const TCSETS2: u64 = 0x402c_542b;
const TIOCPKT: u64 = 0x5420;
const TIOCGPTPEER: u64 = 0x5441;

/// Finds out what waits in a pair, if its slave can be opened without changing anything.
///
/// # Errors
/// If it could not be put back, or the process can't be reached.
pub fn observe(frozen: &mut Frozen, pair: &mut Pair) -> Result<()> {
    let (Some(holder), Some(master), Some(state)) =
        (pair.holder, &pair.record.master, &mut pair.record.state)
    else {
        return Ok(());
    };
    if state.locked || (pair.record.slaves.is_empty() && !state.abandoned) {
        return Ok(());
    }
    let Some(process) = frozen.processes.get_mut(holder.process) else { return Ok(()) };
    // The number that the slave gets when it is opened: the lowest that is free.
    let numbers = read::numbers(process.view, "fd")?;
    let peer_number = (0..).find(|number| numbers.binary_search(number).is_err()).unwrap_or_default();
    let subject = process.subject().descriptor(holder.number);
    let question = Question::new(holder.number, peer_number);
    let answer = process.run(&question.batch)?;
    if let Some(what) = question.hinders(&answer, &state.modes) {
        return Err(Error::new(code::DESCRIPTOR_KIND, what)
            .about(subject)
            .hint("let what waits in the terminal be read first"));
    }
    let calls = calls(holder.number, peer_number, master.flags, state);
    let outcome = process.run(&calls.batch)?;
    let put_back = |takes: &[Take]| {
        let mut bytes = Vec::new();
        for take in takes {
            let count = outcome.get(take.read).unwrap_or_default();
            if count > 0 && outcome.get(take.write) != Ok(count) {
                return Err(Error::new(code::INTERNAL, "what waits in a terminal could not be put back")
                    .about(subject.clone()));
            }
            bytes.extend_from_slice(taken(&outcome, take.room, count));
        }
        Ok(bytes)
    };
    (state.output, state.input) = (put_back(&calls.output)?, put_back(&calls.input)?);
    Ok(())
}

fn taken(outcome: &Outcome, room: Data, count: u64) -> &[u8] {
    outcome.bytes(room).get(..usize::try_from(count).unwrap_or_default()).unwrap_or_default()
}

/// How much waits, asked without taking it.
struct Question {
    batch: Batch,
    counts: [Data; 2],
    polled: Data,
}

impl Question {
    /// So much can be put back at once: the kernel takes more only as fast as somebody reads.
    const MOST: u32 = 3000;

    fn new(master: i32, peer_number: i32) -> Self {
        let mut batch = Batch::new();
        let open = (libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC).into();
        let peer = batch.must("opening a slave", libc::SYS_ioctl, [master.into(), TIOCGPTPEER.into(), open]);
        let [output, input] = [batch.room(8), batch.room(8)];
        let arguments = [master.into(), libc::FIONREAD.into(), output.into()];
        batch.must("asking how much waits", libc::SYS_ioctl, arguments);
        let arguments = [peer.into(), libc::FIONREAD.into(), input.into()];
        batch.must("asking how much waits", libc::SYS_ioctl, arguments);
        let events = u64::from(peer_number.cast_unsigned()) | u64::from(POLLIN) << 32;
        let polled = batch.exchange(&events.to_le_bytes());
        batch.must("asking whether anything waits", libc::SYS_poll, [polled.into(), 1.into(), 0.into()]);
        batch.must("closing a slave", libc::SYS_close, [peer.into()]);
        Self { batch, counts: [output, input], polled }
    }

    /// What about a terminal with these modes makes it impossible to take what waits and put it back.
    fn hinders(&self, answer: &Outcome, modes: &Modes) -> Option<String> {
        let [output, input] = self.counts.map(|count| answer.half_word(count, 0));
        let readable = answer.word(self.polled, 0) >> 48 & u64::from(POLLIN) != 0;
        if output > Self::MOST || input > Self::MOST {
            let waiting = output.max(input);
            return Some(format!("a terminal in which {waiting} bytes wait, more than can be looked at"));
        }
        // Of an end of file there is nothing to be read but the news.
        let end_of_file = modes.local & libc::ICANON != 0 && readable && input == 0;
        end_of_file.then(|| "a terminal in which an end of file was typed and not read".to_owned())
    }
}

/// A portion that is taken and put back.
struct Take {
    room: Data,
    read: CallIndex,
    write: CallIndex,
}

struct Calls {
    batch: Batch,
    output: Vec<Take>,
    input: Vec<Take>,
}

/// The calls. Nothing in them waits; one that fails has nothing to take, and then nothing to put back: a count that is
/// an error is none that a write accepts.
fn calls(master: i32, peer_number: i32, flags: u32, state: &PairState) -> Calls {
    let mut batch = Batch::new();
    let nonblocking = flags | libc::O_NONBLOCK.cast_unsigned();
    let number = [false, true].map(|on| batch.words(&[u64::from(on)]));
    let [off, on] = number;
    let set_flags = |batch: &mut Batch, flags: u32| {
        batch.must(
            "setting the flags of a master",
            libc::SYS_fcntl,
            [master.into(), libc::F_SETFL.into(), flags.into()],
        );
    };
    let open = (libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC).into();
    let peer = batch.must("opening a slave", libc::SYS_ioctl, [master.into(), TIOCGPTPEER.into(), open]);
    set_flags(&mut batch, nonblocking);
    if state.packets {
        batch.call("leaving packet mode", libc::SYS_ioctl, [master.into(), TIOCPKT.into(), off.into()]);
    }
    let read = |batch: &mut Batch, from: crate::stub::batch::Argument| {
        let room = batch.room(PORTION);
        let call = batch.call("reading what waits", libc::SYS_read, [from, room.into(), PORTION.into()]);
        (room, call)
    };
    let output: Vec<_> = (0..OUTPUT_READS).map(|_| read(&mut batch, master.into())).collect();
    set_modes(&mut batch, master, &raw(&state.modes));
    let input: Vec<_> = (0..INPUT_READS).map(|_| read(&mut batch, peer.into())).collect();
    let write = |to: crate::stub::batch::Argument, taken: Vec<(Data, CallIndex)>, batch: &mut Batch| {
        let back = |(room, read): (Data, CallIndex)| {
            let arguments = [to, room.into(), read.into()];
            Take { room, read, write: batch.call("putting back what waits", libc::SYS_write, arguments) }
        };
        taken.into_iter().map(back).collect()
    };
    let output = write(peer.into(), output, &mut batch);
    set_modes(&mut batch, master, &quiet(&state.modes));
    let input = write(master.into(), input, &mut batch);
    // What is typed passes a queue of the kernel's. Asking the slave waits for that, if nothing is there to be read; if
    // something is, it is being taken from there, and the change of modes waits until all of it is.
    let polled = batch.words(&[u64::from(peer_number.cast_unsigned()) | u64::from(POLLIN) << 32]);
    batch.call("waiting for what was typed", libc::SYS_poll, [polled.into(), 1.into(), 0.into()]);
    set_modes(&mut batch, master, &state.modes);
    if state.packets {
        batch.call("entering packet mode", libc::SYS_ioctl, [master.into(), TIOCPKT.into(), on.into()]);
    }
    set_flags(&mut batch, flags);
    batch.must("closing a slave", libc::SYS_close, [peer.into()]);
    Calls { batch, output, input }
}

/// Through the master the modes of the slave are set.
fn set_modes(batch: &mut Batch, master: i32, modes: &Modes) {
    let words = [modes.input, modes.output, modes.control, modes.local].map(u32::to_le_bytes).concat();
    let speeds = [modes.speeds.0, modes.speeds.1].map(u32::to_le_bytes).concat();
    let modes = batch.data(&[&words[..], &[modes.discipline], &modes.characters, &speeds].concat());
    batch.call(
        "setting the modes of a terminal",
        libc::SYS_ioctl,
        [master.into(), TCSETS2.into(), modes.into()],
    );
}
