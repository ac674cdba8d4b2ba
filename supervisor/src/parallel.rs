//! Looking at many things side by side: what is plain reading is done by as many threads as there are processors.
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
fn map_by<T: Sync, R: Send>(most: usize, things: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(most);
    if workers <= 1 {
        return things.iter().map(look).collect();
    }
    let look = &look;
    thread::scope(|scope| {
        let portions = things.chunks(things.len().div_ceil(workers));
        let threads: Vec<_> = portions
            .map(|portion| scope.spawn(move || portion.iter().map(look).collect::<Vec<R>>()))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<R>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
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
