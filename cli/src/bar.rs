//! Progress for people, on standard error.
//!
//! * Only on a terminal, and only when the work has taken longer than [`PATIENCE`]: what is done at once needs no bar.
//! * Never wider than the terminal; what does not fit is left out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::stderr_colours;

/// How long nobody misses a bar.
const PATIENCE: Duration = Duration::from_millis(250);
/// Characters of what is being worked on.
const NAME: usize = 24;
/// Columns below which the rate and the time left are left out.
const NARROW: u16 = 84;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Bytes, of a total that is known.
    Bytes,
    /// Bytes and files, of a total that nobody knows yet.
    Files,
    /// Things, such as blocks or components, of a total that is known.
    Things,
}

/// A progress bar; clones are the same.
#[derive(Clone)]
pub struct Bar(Rc<Inner>);

struct Inner {
    bar: ProgressBar,
    wanted: bool,
    shown: Cell<bool>,
    files: Cell<u64>,
    start: Instant,
}

impl Bar {
    /// A bar that shows itself when it has taken long enough.
    pub fn new(counts: Counts, total: u64) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        // Of any standard stream that is a terminal.
        let columns = terminal_size::terminal_size().map_or(NARROW, |(width, _)| width.0);
        let style = ProgressStyle::with_template(template(counts, columns)).expect("the templates are valid");
        bar.set_style(style.progress_chars("━╸ "));
        Bar(Rc::new(Inner {
            bar,
            wanted: stderr_colours(),
            shown: Cell::new(false),
            files: Cell::new(0),
            start: Instant::now(),
        }))
    }

    /// Whether somebody may see it.
    pub fn is_wanted(&self) -> bool {
        self.0.wanted
    }

    /// More is to be done.
    pub fn more(&self, total: u64) {
        self.0.bar.inc_length(total);
    }

    /// So much more is done.
    pub fn done(&self, count: u64) {
        self.show();
        self.0.bar.inc(count);
    }

    /// One more file is done.
    pub fn file_done(&self) {
        self.0.files.set(self.0.files.get() + 1);
        self.0.bar.set_prefix(format!("{} files", self.0.files.get()));
    }

    /// So much is done, of so much.
    pub fn at(&self, done: u64, total: u64) {
        self.show();
        self.0.bar.set_length(total);
        self.0.bar.set_position(done);
    }

    /// So much is done.
    pub fn to(&self, done: u64) {
        self.show();
        self.0.bar.set_position(done);
    }

    /// What is being worked on.
    pub fn name(&self, name: &str) {
        self.show();
        self.0.bar.set_message(tail(name, NAME));
    }

    /// Prints something else meanwhile.
    pub fn aside(&self, print: impl FnOnce()) {
        self.0.bar.suspend(print);
    }

    /// Ends it; nothing of it stays on the terminal.
    pub fn end(&self) {
        self.0.bar.finish_and_clear();
    }

    fn show(&self) {
        if self.0.wanted && !self.0.shown.get() && self.0.start.elapsed() >= PATIENCE {
            self.0.shown.set(true);
            self.0.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

fn template(counts: Counts, columns: u16) -> &'static str {
    match (counts, columns < NARROW) {
        (Counts::Bytes, false) => {
            "{msg:24} {wide_bar} {binary_bytes:>10} of {binary_total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}"
        }
        (Counts::Bytes, true) => "{wide_bar} {binary_bytes:>10} of {binary_total_bytes:10}",
        (Counts::Files, false) => "{msg:24} {prefix:>14} {binary_bytes:>10} {binary_bytes_per_sec:>12}",
        (Counts::Files, true) => "{prefix:>14} {binary_bytes:>10}",
        (Counts::Things, false) => "{msg:24} {wide_bar} {human_pos:>10} of {human_len:10} {eta:>4}",
        (Counts::Things, true) => "{wide_bar} {human_pos:>10} of {human_len:10}",
    }
}

/// The end of a name, which tells more than its beginning.
fn tail(name: &str, most: usize) -> String {
    let length = name.chars().count();
    if length <= most {
        return name.to_string();
    }
    "…".chars().chain(name.chars().skip(length + 1 - most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(tail("/www/a", 6), "/www/a");
        assert_eq!(tail("/www/ärger", 6), "…ärger");
    }

    #[test]
    fn every_template_is_valid_and_fits_its_terminal() {
        for counts in [Counts::Bytes, Counts::Files, Counts::Things] {
            for columns in [40, NARROW - 1, NARROW, 200] {
                ProgressStyle::with_template(template(counts, columns)).expect("valid");
            }
        }
    }

    #[test]
    fn a_bar_counts_though_nobody_sees_it() {
        let bar = Bar::new(Counts::Bytes, 0);
        bar.more(10);
        bar.name("/www/a");
        bar.done(4);
        assert_eq!((bar.0.bar.position(), bar.0.bar.length()), (4, Some(10)));
        bar.at(7, 20);
        assert_eq!((bar.0.bar.position(), bar.0.bar.length()), (7, Some(20)));
        bar.end();
    }
}
