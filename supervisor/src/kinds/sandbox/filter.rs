//! What a filter does on a system call: a run of its instructions in which the arguments of the call are unknown, so that
//! all ways are gone.

/// A filter ends a way by one of these; a lower one wins over a higher one, as signed numbers.
pub type Action = u32;

/// `SECCOMP_RET_ACTION_FULL`.
const ACTION: u32 = 0xffff_0000;
/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: Action = 0x7fff_0000;
/// `SECCOMP_RET_LOG`: as [`ALLOW`].
pub const LOG: Action = 0x7ffc_0000;
/// `SECCOMP_RET_ERRNO`.
pub const ERROR: Action = 0x0005_0000;
/// `SECCOMP_RET_USER_NOTIF`.
pub const NOTIFY: Action = 0x7fc0_0000;
/// `SECCOMP_RET_KILL_THREAD`: what is taken for what can't be told.
const KILL: Action = 0;
/// `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Most steps that are made for one call.
const MOST_STEPS: usize = 200_000;

/// An instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    /// How far the two ways of a jump go.
    ways: (u8, u8),
    constant: u32,
}

/// A state of the machine, with what is known of its values.
#[derive(Debug, Clone, Copy)]
struct State {
    place: usize,
    accumulator: Option<u32>,
    index: Option<u32>,
    memory: [Option<u32>; 16],
}

fn decode(program: &[u8]) -> Vec<Instruction> {
    let instruction = |bytes: &[u8; 8]| Instruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        ways: (bytes[2], bytes[3]),
        constant: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    program.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok()).map(instruction).collect()
}

/// Whether a filter may ask a supervisor what to do.
#[must_use]
pub fn may_notify(program: &[u8]) -> bool {
    // BPF_RET | BPF_K. One that returns what it has calculated could do so too; no compiler makes such.
    decode(program).iter().any(|instruction| instruction.code == 6 && instruction.constant & ACTION == NOTIFY)
}

/// Everything that a filter may answer to a call of this number.
#[must_use]
pub fn answers(program: &[u8], number: u32) -> Vec<Action> {
    let program = decode(program);
    let mut answers = Vec::new();
    let mut states = vec![State { place: 0, accumulator: Some(0), index: Some(0), memory: [Some(0); 16] }];
    let mut steps = 0;
    while let Some(mut state) = states.pop() {
        loop {
            steps += 1;
            let Some(&instruction) = program.get(state.place).filter(|_| steps < MOST_STEPS) else {
                answers.push(KILL);
                return answers;
            };
            state.place += 1;
            match step(&mut state, instruction, number) {
                Next::Goes => {}
                Next::Forks(other) => states.push(State { place: other, ..state }),
                Next::Ends(answer) => {
                    answers.push(answer);
                    break;
                }
            }
        }
    }
    answers
}

enum Next {
    Goes,
    /// Two ways: the state's own, and one from this place on.
    Forks(usize),
    Ends(Action),
}

fn step(state: &mut State, instruction: Instruction, number: u32) -> Next {
    let Instruction { code, constant, .. } = instruction;
    let cell = usize::try_from(constant).unwrap_or(usize::MAX);
    match code & 7 {
        0 => state.accumulator = load(state, code, constant, number),
        1 => state.index = load(state, code, constant, number),
        2 | 3 => {
            let value = if code & 7 == 2 { state.accumulator } else { state.index };
            if let Some(place) = state.memory.get_mut(cell) {
                *place = value;
            }
        }
        4 => {
            let operand = if code & 8 == 0 { Some(constant) } else { state.index };
            let calculated =
                state.accumulator.zip(operand).and_then(|(one, other)| calculate(code & 0xf0, one, other));
            state.accumulator = calculated;
        }
        5 => return jump(state, instruction),
        6 if code & 0x18 == 0 => return Next::Ends(constant & ACTION),
        6 => return Next::Ends(state.accumulator.map_or(KILL, |answer| answer & ACTION)),
        _ if code & 0xf8 == 0x80 => state.accumulator = state.index,
        _ => state.index = state.accumulator,
    }
    Next::Goes
}

/// A value for one of the two registers, as far as it is known.
fn load(state: &State, code: u16, constant: u32, number: u32) -> Option<u32> {
    match code & 0xe0 {
        0x00 => Some(constant),
        0x20 => match constant {
            0 => Some(number),
            4 => Some(ARCHITECTURE),
            _ => None,
        },
        0x60 => state.memory.get(usize::try_from(constant).ok()?).copied().flatten(),
        // The length of `struct seccomp_data`.
        0x80 => Some(64),
        _ => None,
    }
}

fn calculate(operation: u16, one: u32, other: u32) -> Option<u32> {
    Some(match operation {
        0x00 => one.wrapping_add(other),
        0x10 => one.wrapping_sub(other),
        0x20 => one.wrapping_mul(other),
        0x30 => one.checked_div(other)?,
        0x40 => one | other,
        0x50 => one & other,
        0x60 => one.checked_shl(other)?,
        0x70 => one.checked_shr(other)?,
        0x80 => one.wrapping_neg(),
        0xa0 => one ^ other,
        _ => return None,
    })
}

fn jump(state: &mut State, instruction: Instruction) -> Next {
    let Instruction { code, ways, constant } = instruction;
    if code & 0xf0 == 0 {
        state.place = state.place.saturating_add(usize::try_from(constant).unwrap_or(usize::MAX));
        return Next::Goes;
    }
    let operand = if code & 8 == 0 { Some(constant) } else { state.index };
    let (yes, no) = (state.place + usize::from(ways.0), state.place + usize::from(ways.1));
    let Some((one, other)) = state.accumulator.zip(operand) else {
        state.place = yes;
        return if yes == no { Next::Goes } else { Next::Forks(no) };
    };
    let is_so = match code & 0xf0 {
        0x10 => one == other,
        0x20 => one > other,
        0x30 => one >= other,
        _ => one & other != 0,
    };
    state.place = if is_so { yes } else { no };
    Next::Goes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(code, yes, no, constant) in instructions {
            bytes.extend(code.to_le_bytes());
            bytes.extend([yes, no]);
            bytes.extend(constant.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_number_decides() {
        let filter =
            program(&[(0x20, 0, 0, 0), (0x15, 0, 1, 39), (0x06, 0, 0, ERROR | 1), (0x06, 0, 0, ALLOW)]);
        assert_eq!(answers(&filter, 39), [ERROR]);
        assert_eq!(answers(&filter, 40), [ALLOW]);
    }

    #[test]
    fn all_ways_that_arguments_may_lead_are_gone() {
        let filter = program(&[(0x20, 0, 0, 16), (0x15, 0, 1, 7), (0x06, 0, 0, NOTIFY), (0x06, 0, 0, LOG)]);
        let mut found = answers(&filter, 1);
        found.sort_unstable();
        assert_eq!(found, [NOTIFY, LOG]);
        assert!(may_notify(&filter));
    }

    #[test]
    fn what_makes_no_sense_kills() {
        assert_eq!(answers(&program(&[(0x05, 0, 0, u32::MAX)]), 1), [KILL]);
        assert_eq!(answers(&[], 1), [KILL]);
    }
}
