//! The table of figures.

use std::time::Duration;

/// Prints rows as they come and counts the targets.
#[derive(Debug)]
pub(crate) struct Table {
    met: usize,
    missed: usize,
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// Anything.
    None,
}

impl Table {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self { met: 0, missed: 0 }
    }

    /// Begins a group.
    pub(crate) fn heading(&self, group: &str) {
        println!("\n{group:<54} {:>9} {:>9} {:>9}  target", "median", "min", "max");
    }

    /// A row of samples, of which the median has to meet the target.
    pub(crate) fn row(&mut self, what: &str, unit: &str, samples: &[f64], target: Target) {
        let median = median(samples);
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (met, text) = match target {
            Target::AtLeast(limit) => (median >= limit, format!("≥ {limit} ")),
            Target::AtMost(limit) => (median <= limit, format!("≤ {limit} ")),
            Target::None => {
                println!("  {what:<52} {median:>9.2} {min:>9.2} {max:>9.2}  {unit}");
                return;
            }
        };
        let word = if met { "pass" } else { "FAIL" };
        if met {
            self.met += 1;
        } else {
            self.missed += 1;
        }
        println!("  {what:<52} {median:>9.2} {min:>9.2} {max:>9.2}  {text}{unit} {word}");
    }

    /// Targets that were met.
    pub(crate) fn met(&self) -> usize {
        self.met
    }

    /// Targets that were missed.
    pub(crate) fn missed(&self) -> usize {
        self.missed
    }
}

/// The middle one.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

/// In milliseconds.
pub(crate) fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1000.0).collect()
}

/// How fast the second is compared with the first, pair by pair.
pub(crate) fn ratios(yardstick: &[Duration], measured: &[Duration]) -> Vec<f64> {
    yardstick.iter().zip(measured).map(|(yard, time)| yard.as_secs_f64() / time.as_secs_f64()).collect()
}
