//! Threads: identity, thread-local memory, locks and condition variables, names, masks, stacks, robust mutexes.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::harness::Topic;
use crate::harness::case::two_rounds;
use crate::stage::kernel::{block, check, fork, members, pipe, put, take, wait};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "threads",
    fixtures: &[
        ("eight", eight),
        ("robust", robust),
        ("leader-gone", leader_gone),
        ("leader-gone-child", leader_gone_child),
    ],
    cases: &[
        ("eight", || two_rounds("eight")),
        ("robust_mutex", || two_rounds("robust")),
        ("leader_has_exited", || two_rounds("leader-gone")),
        ("leader_has_exited_in_a_child", || two_rounds("leader-gone-child")),
    ],
};

thread_local! {
    static SECRET: Cell<u64> = const { Cell::new(0) };
}

/// What a thread can say about itself.
fn portrait() -> String {
    // SAFETY: plain getters into valid places.
    unsafe {
        let tid = libc::syscall(libc::SYS_gettid);
        let own = libc::pthread_self();
        let mut name = [0_u8; 16];
        libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &raw mut stack);
        let (mut head, mut length) = (0_usize, 0_usize);
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length);
        let mut clear = 0_usize;
        libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut clear);
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus);
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        let slack = libc::prctl(libc::PR_GET_TIMERSLACK);
        let stack = format!("{:?} {} {}", stack.ss_sp, stack.ss_size, stack.ss_flags);
        let secret = SECRET.get();
        let count = libc::CPU_COUNT(&cpus);
        let name = String::from_utf8_lossy(&name).into_owned();
        let mask = members(&mask);
        format!(
            "{tid} {own:x} {name} {mask:?} {stack} {head:x} {length} {clear:x} {count} {nice} {slack} {secret}"
        )
    }
}

/// Gives thread `number` a name, mask, alternate stack, nice value and timer slack of its own.
fn dress(number: u64) {
    let name = format!("worker-{number}\0");
    // SAFETY: the name ends with NUL; the stack is leaked, so it lives as long as the thread.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        let memory = Box::leak(vec![0_u8; 32768].into_boxed_slice());
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: 32768 };
        check(libc::sigaltstack(&raw const stack, std::ptr::null_mut())).unwrap();
        let tid = libc::syscall(libc::SYS_gettid) as u32;
        check(libc::setpriority(libc::PRIO_PROCESS, tid, number as i32)).unwrap();
        libc::prctl(libc::PR_SET_TIMERSLACK, 50_000 + number);
    }
    block(&[34 + number as i32]);
    SECRET.set(number * 1_000_003);
}

fn eight(stage: Stage) {
    const COUNT: u64 = 8;
    let turn = Arc::new((Mutex::new(0_u64), Condvar::new()));
    let broken = Arc::new(Mutex::new(Vec::<String>::new()));
    let ready = Arc::new(Barrier::new(COUNT as usize + 1));
    for number in 0..COUNT {
        let (turn, broken, ready) = (turn.clone(), broken.clone(), ready.clone());
        thread(move || {
            dress(number);
            let before = portrait();
            ready.wait();
            loop {
                // The token goes round: every thread waits for its own turn.
                let mut token = turn.0.lock().unwrap();
                while *token % COUNT != number {
                    token = turn.1.wait(token).unwrap();
                }
                *token += 1;
                drop(token);
                turn.1.notify_all();
                let now = portrait();
                if now != before {
                    broken.lock().unwrap().push(format!("thread {number}: {before} became {now}"));
                }
            }
        });
    }
    ready.wait();
    stage.serve(move |_| {
        let before = *turn.0.lock().unwrap();
        let start = Instant::now();
        while *turn.0.lock().unwrap() < before + 10 * COUNT {
            verify!(start.elapsed() < Duration::from_secs(10), "the token does not go round");
            std::thread::sleep(Duration::from_millis(1));
        }
        let problems = std::mem::take(&mut *broken.lock().unwrap());
        verify!(problems.is_empty(), "{}", problems[0]);
        Ok(())
    });
}

/// Tells the owner of the robust mutex to die.
static DIE: AtomicBool = AtomicBool::new(false);

/// A robust mutex whose owner dies after the restore: the next one to lock it must be told.
fn robust(stage: Stage) {
    let mutex = Box::leak(Box::new(libc::PTHREAD_MUTEX_INITIALIZER)) as *mut libc::pthread_mutex_t as usize;
    // SAFETY: the mutex is leaked and initialised once before use.
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutex_init(mutex as *mut _, &raw const attributes);
    }
    static HELD: AtomicU64 = AtomicU64::new(0);
    let owner = move || {
        // SAFETY: the mutex is valid for ever.
        let result = unsafe { libc::pthread_mutex_lock(mutex as *mut _) };
        HELD.fetch_add(1, Ordering::SeqCst);
        while !DIE.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        result
    };
    let mut alive = Some(thread(owner));
    let wait_for_owner = |count: u64| {
        while HELD.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    };
    wait_for_owner(1);
    let mut owners = 1;
    // Threads come and go here, so their list is not compared.
    stage.serve_except(&["thread ", "memory map", "status Threads"], move |_| -> Verdict {
        // SAFETY: the mutex is valid for ever.
        let busy = unsafe { libc::pthread_mutex_trylock(mutex as *mut _) };
        verify!(busy == libc::EBUSY, "the mutex of a living owner gave {busy}");
        DIE.store(true, Ordering::SeqCst);
        let result = alive.take().expect("an owner").join().expect("the owner ends well");
        verify!(result == 0, "the owner got {result}");
        // SAFETY: as above.
        let result = unsafe { libc::pthread_mutex_lock(mutex as *mut _) };
        verify!(result == libc::EOWNERDEAD, "after the death of the owner: {result}");
        unsafe {
            libc::pthread_mutex_consistent(mutex as *mut _);
            libc::pthread_mutex_unlock(mutex as *mut _);
        }
        alive = Some(thread(owner));
        owners += 1;
        wait_for_owner(owners);
        Ok(())
    });
}

/// Waits until the leader of this process is a zombie.
fn wait_for_the_end_of_the_leader() {
    let leader = std::process::id();
    let status = format!("/proc/self/task/{leader}/status");
    while std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ")) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is left of a leader: its name, its state, and who it was.
fn leader() -> String {
    let leader = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/self/task/{leader}/status")).unwrap_or_default();
    // The last field is its wait status.
    let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).unwrap_or_default();
    let status = stat.split_ascii_whitespace().last().unwrap_or_default().to_owned();
    let wanted = ["Name:", "State:", "Uid:", "Gid:", "CapEff:", "NoNewPrivs:"];
    let lines = text.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines.chain([status.as_str()]).collect::<Vec<_>>().join(" ")
}

/// Ends this thread alone.
fn end_thread(status: i32) -> ! {
    // SAFETY: ends this thread alone; it holds nothing that anybody needs.
    unsafe { libc::syscall(libc::SYS_exit, status) };
    unreachable!("a thread that has ended")
}

/// The thread-group leader has exited; another thread goes on.
fn leader_gone(stage: Stage) {
    std::thread::spawn(move || {
        wait_for_the_end_of_the_leader();
        let before = leader();
        assert!(before.contains("State:\tZ") && before.ends_with(&format!(" {}", 7 << 8)), "{before}");
        stage.serve(move |_| {
            let now = leader();
            verify!(now == before, "the leader: {before} became {now}");
            Ok(())
        });
        std::process::exit(0);
    });
    end_thread(7)
}

/// A child whose leader has ended. It has a child that wants to hear of the end of its parent, which is the thread.
fn leader_gone_child(stage: Stage) {
    let orders = pipe(0);
    let (answers, grandchild) = (pipe(0), pipe(0));
    let child = fork(|| {
        std::thread::spawn(move || {
            wait_for_the_end_of_the_leader();
            let child = fork(|| {
                // SAFETY: plain integers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                put(answers[1], b"r").unwrap();
                // Until it is killed.
                drop(take(grandchild[0], 1));
                1
            });
            loop {
                let Ok(order) = take(orders[0], 1) else { end_thread(1) };
                if order == b"e" {
                    end_thread(1);
                }
                // Whether the child is there, and whose it is.
                let own = std::process::id();
                // SAFETY: plain numbers.
                let tid = unsafe { libc::syscall(libc::SYS_gettid) };
                let list = std::fs::read_to_string(format!("/proc/{own}/task/{tid}/children"));
                let good = list.is_ok_and(|list| list.trim() == child.to_string());
                put(answers[1], if good { b"g" } else { b"b" }).unwrap();
            }
        });
        end_thread(7)
    });
    assert_eq!(take(answers[0], 1).unwrap(), b"r");
    stage.serve_except(&["child "], move |number| {
        put(orders[1], b"?").map_err(|error| error.to_string())?;
        let answer = take(answers[0], 1).map_err(|error| error.to_string())?;
        verify!(answer == b"g", "the child of the second thread is not its child any more");
        if number == 3 {
            put(orders[1], b"e").map_err(|error| error.to_string())?;
            let status = wait(child).map_err(|error| error.to_string())?;
            verify!(status == 1 << 8, "the child ended with {status:#x}");
        }
        Ok(())
    });
}
