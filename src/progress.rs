//! The progress bar: on a terminal only, and only for what takes long enough to wonder.

use crate::output::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};
use vckpt_supervisor::progress::Progress;

/// What takes less is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// Shows how far something is.
#[derive(Debug)]
pub(crate) struct Meter {
    wanted: bool,
    started: Instant,
    bar: Option<ProgressBar>,
    /// Whether the bar shows how much there is in all.
    sized: Option<bool>,
}

impl Meter {
    /// A meter that shows nothing yet.
    pub(crate) fn new(output: &Output) -> Self {
        Self { wanted: output.shows_progress(), started: Instant::now(), bar: None, sized: None }
    }

    /// Takes the news.
    pub(crate) fn update(&mut self, progress: &Progress) {
        if !self.wanted || self.started.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10))
        });
        if self.sized != Some(progress.total > 0) {
            self.sized = Some(progress.total > 0);
            bar.set_style(style(progress.total > 0));
        }
        bar.set_message(progress.phase);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }
}

fn style(sized: bool) -> ProgressStyle {
    let template = if sized {
        "{msg:<8} {bar:30} {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}, {eta} left"
    } else {
        "{msg:<8} {elapsed}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("##-")
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
