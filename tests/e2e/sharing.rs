//! Processes that share memory, descriptors, directories or signal handlers with one another.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::case::{Case, two_rounds};
use crate::harness::{Topic, need_root};
use crate::stage::kernel::{check, map, pipe, put, take};
use crate::stage::{Stage, Verdict, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "sharing",
    fixtures: &[
        ("sharing", sharing),
        ("sharing-siblings", siblings),
        ("sharing-nephew", nephew),
        ("sharing-offspring", offspring),
    ],
    cases: &[
        ("with_the_parent", || two_rounds("sharing")),
        ("with_a_sibling", || two_rounds("sharing-siblings")),
        ("with_a_sibling_of_a_lower_number", || {
            need_root()?;
            let mut case = Case::new()?;
            let mut root = case.start("sharing-siblings", &["lower-numbers"])?;
            case.ask()?;
            for _ in 0..2 {
                root = case.round(root)?;
            }
            case.finish(root)
        }),
        ("with_the_child_of_a_sibling", || two_rounds("sharing-nephew")),
        ("with_threads_and_children", || two_rounds("sharing-offspring")),
    ],
};

/// A descriptor that is there only for a moment.
const NUMBER: i32 = 300;
/// Differs between memories.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What a member sees: whether [`NUMBER`] is open, the inode of its directory, the counter, the action of a signal,
/// its parent, itself.
type View = [u64; 6];

fn look() -> View {
    // SAFETY: all-zero values of these are valid, and all pointers lead to live places.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        libc::stat(c".".as_ptr(), &raw mut status);
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGUSR1, std::ptr::null(), &raw mut action);
        let is_open = u64::from(libc::fcntl(NUMBER, libc::F_GETFD) >= 0);
        let counter = COUNTER.load(Ordering::SeqCst);
        let (parent, own) = (libc::getppid() as u64, libc::getpid() as u64);
        [is_open, status.st_ino, counter, action.sa_sigaction as u64, parent, own]
    }
}

/// Bytes that a memory and its copies have in common.
static FILLING: AtomicU64 = AtomicU64::new(0);
const FILLED: usize = 8 << 20;

/// The sum of these words, each of which has another value.
fn sum() -> u64 {
    let start = FILLING.load(Ordering::SeqCst) as *const u64;
    // SAFETY: as many bytes were mapped and filled before any member was made.
    let words = unsafe { std::slice::from_raw_parts(start, FILLED / 8) };
    words.iter().fold(0, |sum, word| sum.rotate_left(1) ^ word)
}

/// A member, and the ends of its pipes that others use.
#[derive(Clone, Copy)]
struct Member {
    flags: i32,
    ask: [i32; 2],
    answer: [i32; 2],
}

impl Member {
    fn new(flags: i32) -> Self {
        Self { flags, ask: pipe(0), answer: pipe(0) }
    }

    /// Answers for ever. Makes no use of memory but its stack: others may use it too.
    fn serve(&self) -> ! {
        loop {
            let mut order = 0_u8;
            // SAFETY: the pointers lead to live places of the lengths that are passed.
            unsafe {
                if libc::read(self.ask[0], (&raw mut order).cast(), 1) != 1 {
                    libc::syscall(libc::SYS_exit_group, 1);
                }
                match order {
                    b'+' => {
                        COUNTER.fetch_add(1, Ordering::SeqCst);
                    }
                    b'o' => {
                        libc::dup2(self.ask[0], NUMBER);
                    }
                    b'c' => {
                        libc::close(NUMBER);
                    }
                    _ => {}
                }
                let mut view = look();
                if order == b's' {
                    view[0] = sum();
                }
                libc::write(self.answer[1], view.as_ptr().cast(), size_of::<View>());
            }
        }
    }

    fn order(&self, order: u8) -> Result<View, String> {
        put(self.ask[1], &[order]).map_err(|error| error.to_string())?;
        let bytes = take(self.answer[0], size_of::<View>()).map_err(|error| error.to_string())?;
        let words =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
        words.collect::<Vec<_>>().try_into().map_err(|_| "a short answer".to_owned())
    }

    fn look(&self) -> Result<View, String> {
        self.order(b'?')
    }

    /// Makes the process.
    fn make(&self) {
        self.make_with(self.flags);
    }

    fn make_with(&self, flags: i32) {
        extern "C" fn serve(member: *mut libc::c_void) -> i32 {
            // SAFETY: the member was leaked by who made this process.
            unsafe { *member.cast::<Member>() }.serve()
        }
        const STACK: usize = 64 << 10;
        let member = Box::leak(Box::new(*self)) as *mut Self;
        let stack =
            map(STACK, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        // SAFETY: the stack is new, and the member lives for ever.
        let made =
            unsafe { libc::clone(serve, stack.add(STACK).cast(), flags | libc::SIGCHLD, member.cast()) };
        check(made).unwrap();
    }
}

impl Member {
    /// Makes the process, which then makes a child with a copy of its memory.
    fn make_with_child(&self, flags: i32, child: Self) {
        extern "C" fn serve(members: *mut libc::c_void) -> i32 {
            // SAFETY: the members were leaked by who made this process; the child goes on with a copy of all.
            unsafe {
                let [own, child] = *members.cast::<[Member; 2]>();
                let signal = libc::SIGCHLD;
                if libc::syscall(libc::SYS_clone, signal, 0, 0, 0, 0) == 0 {
                    child.serve()
                }
                own.serve()
            }
        }
        const STACK: usize = 64 << 10;
        let members = Box::leak(Box::new([*self, child])).as_mut_ptr();
        let stack =
            map(STACK, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        // SAFETY: the stack is new, and the members live for ever.
        let made =
            unsafe { libc::clone(serve, stack.add(STACK).cast(), flags | libc::SIGCHLD, members.cast()) };
        check(made).unwrap();
    }
}

/// Whether each member sees what it shares with this process, and nothing else, and is what it was.
fn verify_members(members: &[Member], identities: &[(u64, u64)]) -> Verdict {
    let before = look();
    let back = std::env::current_dir().map_err(|error| error.to_string())?;
    let views = members.iter().map(Member::look).collect::<Result<Vec<_>, _>>()?;
    std::env::set_current_dir("/").map_err(|error| error.to_string())?;
    COUNTER.fetch_add(1, Ordering::SeqCst);
    // SAFETY: plain numbers.
    unsafe {
        libc::dup2(0, NUMBER);
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
    }
    let during = look();
    let changed = members.iter().map(Member::look).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: plain numbers.
    unsafe {
        libc::signal(libc::SIGUSR1, before[3] as usize);
        libc::close(NUMBER);
    }
    std::env::set_current_dir(back).map_err(|error| error.to_string())?;
    const KINDS: [i32; 4] = [libc::CLONE_FILES, libc::CLONE_FS, libc::CLONE_VM, libc::CLONE_SIGHAND];
    for (number, member) in members.iter().enumerate() {
        let (was, is) = (views[number], changed[number]);
        verify!(
            identity(was) == identities[number],
            "member {number}: {:?} became {was:?}",
            identities[number]
        );
        for (place, kind) in KINDS.into_iter().enumerate() {
            let expected = if member.flags & kind != 0 { during[place] } else { was[place] };
            verify!(
                is[place] == expected,
                "member {number}, {kind:#x}: {was:x?}, then {is:x?}; here {during:x?}"
            );
        }
    }
    Ok(())
}

/// Parent and ID of a member; the parent of this very process may be another one after a restore.
fn identity(view: View) -> (u64, u64) {
    let is_own = view[5] == u64::from(std::process::id());
    (if is_own { 0 } else { view[4] }, view[5])
}

fn identities(members: &[Member]) -> Vec<(u64, u64)> {
    // As it is after each change: the C library adds flags.
    // SAFETY: plain numbers.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_DFL) };
    members.iter().map(|member| member.look().map(identity).expect("it answers")).collect()
}

/// Every legal combination, each in a child.
fn sharing(stage: Stage) {
    let (files, directory) = (libc::CLONE_FILES, libc::CLONE_FS);
    let (memory, handlers) = (libc::CLONE_VM, libc::CLONE_VM | libc::CLONE_SIGHAND);
    let members: Vec<Member> = [0, memory, handlers]
        .into_iter()
        .flat_map(|flags| [0, files, directory, files | directory].map(|more| Member::new(flags | more)))
        .collect();
    members.iter().for_each(Member::make);
    let before = identities(&members);
    stage.serve(move |_| verify_members(&members, &before));
}

/// A child, and others of which each shares something with it and nothing with this process.
fn siblings(stage: Stage) {
    let first = Member::new(0);
    let flags = [libc::CLONE_FILES, libc::CLONE_FS, libc::CLONE_VM, libc::CLONE_VM | libc::CLONE_FILES];
    let others = flags.map(Member::new);
    if stage.arguments.iter().any(|argument| argument == "lower-numbers") {
        // The child gets one of the last numbers there are, its siblings the first.
        let most =
            std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse::<u64>().unwrap();
        std::fs::write("/proc/sys/kernel/ns_last_pid", format!("{}", most - 3)).unwrap();
    }
    let pid = crate::stage::kernel::fork(|| {
        others.iter().for_each(|other| other.make_with(other.flags | libc::CLONE_PARENT));
        first.serve()
    });
    let own = std::process::id();
    let all: Vec<Member> = std::iter::once(first).chain(others).collect();
    let before = identities(&all);
    assert!(before.iter().all(|identity| identity.0 == u64::from(own)), "{before:?}");
    assert_eq!(before[0].1, pid as u64);
    stage.serve(move |_| {
        let now = identities(&all);
        verify!(now == before, "{before:?} became {now:?}");
        let (was, own) = (first.look()?, look());
        let views = others.iter().map(Member::look).collect::<Result<Vec<_>, _>>()?;
        first.order(b'+')?;
        first.order(b'o')?;
        let is = others.iter().map(Member::look).collect::<Result<Vec<_>, _>>()?;
        first.order(b'c')?;
        verify!(look()[..3] == own[..3], "this process shares something with its child");
        for (number, other) in others.iter().enumerate() {
            let opened = u64::from(other.flags & libc::CLONE_FILES != 0);
            verify!(is[number][0] == opened, "member {number} sees a descriptor: {:?}", is[number]);
            let counter = if other.flags & libc::CLONE_VM != 0 { was[2] + 1 } else { views[number][2] };
            verify!(is[number][2] == counter, "member {number} counts {}, not {counter}", is[number][2]);
        }
        Ok(())
    });
}

/// A child, a sibling of it that shares its memory, and a child of that one with a copy of all.
fn nephew(stage: Stage) {
    let (first, beside, copy) = (Member::new(0), Member::new(libc::CLONE_VM), Member::new(0));
    crate::stage::kernel::fork(|| {
        let filling =
            map(FILLED, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        // SAFETY: as many bytes were mapped.
        let words = unsafe { std::slice::from_raw_parts_mut(filling.cast::<u64>(), FILLED / 8) };
        (1..).zip(words).for_each(|(number, word)| *word = number * 0x9e37_79b9);
        FILLING.store(filling as u64, Ordering::SeqCst);
        beside.make_with_child(beside.flags | libc::CLONE_PARENT, copy);
        first.serve()
    });
    let all = [first, beside, copy];
    let before = identities(&all);
    let sums = move || {
        all.iter().map(|member| member.order(b's').map(|view| view[0])).collect::<Result<Vec<_>, _>>()
    };
    let expected = sums().unwrap();
    assert!(expected.iter().all(|&sum| sum == expected[0] && sum != 0), "{expected:x?}");
    stage.serve(move |_| {
        let now = identities(&all);
        verify!(now == before, "{before:?} became {now:?}");
        let sums = sums()?;
        verify!(sums == expected, "{expected:x?} became {sums:x?}");
        let counters = |all: &[Member]| {
            all.iter().map(|member| member.look().map(|view| view[2])).collect::<Result<Vec<_>, _>>()
        };
        let was = counters(&all)?;
        first.order(b'+')?;
        let is = counters(&all)?;
        verify!(is == [was[0] + 1, was[1] + 1, was[2]], "{was:?} became {is:?}");
        Ok(())
    });
}

/// A process with our memory that has a child of its own, beside threads of ours and a child of one of these.
fn offspring(stage: Stage) {
    let beside = Member::new(libc::CLONE_VM | libc::CLONE_FILES);
    beside.make();
    let copy = Member::new(0);
    let of_thread = Member::new(0);
    let busy = Member::new(libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SIGHAND);
    crate::stage::thread(move || {
        of_thread.make();
        // A thread that serves is a member too.
        busy.serve()
    });
    copy.make();
    let members = [beside, copy, of_thread, busy];
    let before = identities(&members);
    stage.serve(move |_| verify_members(&members, &before));
}
