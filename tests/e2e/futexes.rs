//! Locks that the kernel knows the owners of: robust ones and such that lend their owner a priority, held by threads and
//! by other processes, with others that wait for them.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use crate::harness::Topic;
use crate::harness::case::two_rounds_with;
use crate::stage::kernel::{fork, map};
use crate::stage::{Stage, Verdict, thread, verify};

pub(crate) const TOPIC: Topic = Topic {
    name: "futexes",
    fixtures: &[("held", held)],
    cases: &[
        ("robust_with_waiter", || two_rounds_with("held", &["plain", "thread"])),
        ("robust_with_waiter_of_another_process", || two_rounds_with("held", &["plain", "child"])),
        ("lending_priority", || two_rounds_with("held", &["lending", "thread"])),
        ("lending_priority_to_another_process", || two_rounds_with("held", &["lending", "child"])),
    ],
};

/// What owner, waiter and the rest share: in memory that a child has too.
struct Shared {
    mutex: libc::pthread_mutex_t,
    /// What the owner is to do: [`HOLD`], [`GIVE`] or [`DIE`].
    order: AtomicU32,
    /// How often the owner has got the lock.
    owned: AtomicU32,
    /// The thread that waits.
    waiter: AtomicI32,
    /// How often the waiter has got it, and how.
    taken: AtomicU32,
    result: AtomicI32,
}

const HOLD: u32 = 0;
const GIVE: u32 = 1;
const DIE: u32 = 2;

/// A shared, robust lock; the kernel may only know one by its address, so it does not move.
fn shared(lends: bool) -> &'static Shared {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let place = map(4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1).cast::<Shared>();
    // SAFETY: new memory, all zeros, which is a valid value of every field, and stays for ever.
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED);
        let protocol = if lends { libc::PTHREAD_PRIO_INHERIT } else { libc::PTHREAD_PRIO_NONE };
        libc::pthread_mutexattr_setprotocol(&raw mut attributes, protocol);
        libc::pthread_mutex_init(&raw mut (*place).mutex, &raw const attributes);
        &*place
    }
}

impl Shared {
    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        (&raw const self.mutex).cast_mut()
    }

    /// Owns the lock; gives it away and takes it again when told; or ends with it.
    fn own(&self) {
        loop {
            // SAFETY: the lock is valid for ever.
            let result = unsafe { libc::pthread_mutex_lock(self.mutex()) };
            assert_eq!(result, 0, "the owner");
            self.owned.fetch_add(1, Ordering::SeqCst);
            loop {
                match self.order.load(Ordering::SeqCst) {
                    DIE => return,
                    GIVE => break,
                    _ => std::thread::sleep(std::time::Duration::from_millis(1)),
                }
            }
            let taken = self.taken.load(Ordering::SeqCst);
            // SAFETY: as above.
            unsafe { libc::pthread_mutex_unlock(self.mutex()) };
            while self.taken.load(Ordering::SeqCst) == taken || self.order.load(Ordering::SeqCst) == GIVE {
                std::thread::yield_now();
            }
        }
    }

    /// Waits for the lock, gives it back when the order has changed, and waits again.
    fn wait(&self) {
        // SAFETY: no arguments.
        self.waiter.store(unsafe { libc::syscall(libc::SYS_gettid) } as i32, Ordering::SeqCst);
        loop {
            // SAFETY: the lock is valid for ever.
            let result = unsafe { libc::pthread_mutex_lock(self.mutex()) };
            let owned = self.owned.load(Ordering::SeqCst);
            self.result.store(result, Ordering::SeqCst);
            self.order.store(HOLD, Ordering::SeqCst);
            // SAFETY: as above.
            unsafe {
                if result == libc::EOWNERDEAD {
                    libc::pthread_mutex_consistent(self.mutex());
                }
                libc::pthread_mutex_unlock(self.mutex());
            }
            self.taken.fetch_add(1, Ordering::SeqCst);
            if result != 0 {
                return;
            }
            while self.owned.load(Ordering::SeqCst) == owned {
                std::thread::yield_now();
            }
        }
    }

    /// Returns when the waiter waits in the kernel.
    fn until_it_waits(&self) {
        let tid = self.waiter.load(Ordering::SeqCst);
        let file = format!("/proc/thread-self/../{tid}/syscall");
        let number = format!("{} ", libc::SYS_futex);
        while !std::fs::read_to_string(&file).unwrap_or_default().starts_with(&number) {
            std::thread::yield_now();
        }
    }

    /// Tells the owner to give the lock away or to end, and waits until the waiter has it.
    fn tell(&self, order: u32) -> i32 {
        let taken = self.taken.load(Ordering::SeqCst);
        self.order.store(order, Ordering::SeqCst);
        while self.taken.load(Ordering::SeqCst) == taken {
            std::thread::yield_now();
        }
        self.result.load(Ordering::SeqCst)
    }
}

fn held(stage: Stage) {
    let shared = shared(stage.arguments[0] == "lending");
    if stage.arguments[1] == "child" {
        fork(|| {
            shared.own();
            0
        });
    } else {
        thread(|| shared.own());
    }
    let until_owned = |count| {
        while shared.owned.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    };
    until_owned(1);
    thread(|| shared.wait());
    while shared.waiter.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    shared.until_it_waits();
    let mut owned = 1;
    stage.serve_except(&["thread ", "memory map", "status Threads", "child "], move |number| -> Verdict {
        shared.until_it_waits();
        // SAFETY: the lock is valid for ever.
        let busy = unsafe { libc::pthread_mutex_trylock(shared.mutex()) };
        verify!(busy == libc::EBUSY, "the lock of a living owner gave {busy}");
        if number == 3 {
            let result = shared.tell(DIE);
            verify!(result == libc::EOWNERDEAD, "the waiter got {result} when the owner had ended");
            return Ok(());
        }
        let result = shared.tell(GIVE);
        verify!(result == 0, "the waiter got {result}");
        owned += 1;
        until_owned(owned);
        shared.until_it_waits();
        Ok(())
    });
}
