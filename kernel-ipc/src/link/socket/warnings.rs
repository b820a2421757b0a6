//! Warnings about strangers. Whoever can connect can cause them, as many as it likes: so one a second is written, which says how
//! many were not.

use std::cell::Cell;
use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::runtime::clock;

/// Between two warnings that are written.
const PAUSE: Duration = Duration::from_secs(1);

/// The warnings of one listener.
#[derive(Debug, Default)]
pub struct Warnings {
    last: Cell<Option<Instant>>,
    withheld: Cell<u64>,
}

impl Warnings {
    /// Warns, unless it was done just now.
    pub fn warn(&self, what: impl Display) {
        match self.admit(clock::now()) {
            Some(0) => tracing::warn!("{what}"),
            Some(withheld) => tracing::warn!("{what} ({withheld} other warnings about connections were left out)"),
            None => {}
        }
    }

    /// How many were withheld since the last one that was written, if one may be written now.
    fn admit(&self, now: Instant) -> Option<u64> {
        if self.last.get().is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            self.withheld.set(self.withheld.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.withheld.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_a_second_is_written_and_counts_the_others() {
        let (warnings, begun) = (Warnings::default(), Instant::now());
        let at = |millis| warnings.admit(begun + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(0), at(500), at(999)], [None; 3]);
        assert_eq!(at(1000), Some(3));
        assert_eq!(at(1500), None);
        assert_eq!((at(9000), at(99_000)), (Some(1), Some(0)));
    }
}
