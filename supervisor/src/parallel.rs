//! Doing many things side by side: what is plain reading and writing of files is done by as many threads as there are
//! processors.
//!
//! Not for calls of ptrace(2), which only the thread may make that traces.

use std::num::NonZeroUsize;
use std::thread;

/// So few things that a thread costs more than they do.
const FEW: usize = 32;

/// The results for all things, in their order.
pub(crate) fn map<T: Sync, R: Send>(things: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    map_by(things.len() / FEW, things, look)
}

/// The same for things of which each takes long.
pub(crate) fn map_long<T: Sync, R: Send>(things: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    map_by(things.len(), things, look)
}

/// The results by at most so many threads.
fn map_by<'things, T: Sync, R: Send>(
    most: usize,
    things: &'things [T],
    look: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(most);
    if workers <= 1 {
        return things.iter().map(look).collect();
    }
    let look = &look;
    thread::scope(|scope| {
        let portions = things.chunks(things.len().div_ceil(workers));
        let begin = |portion: &'things [T]| {
            let work = move || portion.iter().map(look).collect::<Vec<R>>();
            // Without a thread, of which a user may have only so many, it is done here.
            thread::Builder::new().spawn_scoped(scope, work).map_err(|_| portion)
        };
        let begun: Vec<Result<_, &[T]>> = portions.map(begin).collect();
        let finish = |begun: Result<thread::ScopedJoinHandle<'_, Vec<R>>, &[T]>| match begun {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(portion) => portion.iter().map(look).collect(),
        };
        begun.into_iter().flat_map(finish).collect()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_is_kept() {
        for count in [0, 1, 63, 64, 1000] {
            let things: Vec<usize> = (0..count).collect();
            assert_eq!(super::map(&things, |thing| thing + 1), (1..=count).collect::<Vec<_>>());
            assert_eq!(super::map_long(&things, |thing| thing + 1), (1..=count).collect::<Vec<_>>());
        }
    }
}
