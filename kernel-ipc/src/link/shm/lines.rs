//! Descriptors on their way between this end and the shared rings.
//!
//! A line that another core has written costs a wait for that core, and so does one that it has read and that is to be
//! written again. Lines that are moved one after the other, with a call's work in between, cost one such wait each; those
//! that are moved together wait at the same time. So both directions go by small batches, if there is more than one.

/// Most descriptors that are written together.
pub const STAGED: usize = 8;
/// Most that are copied before their turn.
pub const AHEAD: usize = 8;

/// What was sent and is not in the ring yet. The first line of a turn never waits: it may be the only one.
#[derive(Debug, Default)]
pub struct Staged {
    lines: [[u64; 8]; STAGED],
    count: usize,
    /// The turn has had its first line.
    begun: bool,
}

impl Staged {
    /// Whether a line is the turn's first, which is written at once.
    #[inline]
    pub fn is_first(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    /// Adds one. True: it is full.
    #[inline]
    pub fn push(&mut self, line: &[u64; 8]) -> bool {
        if let Some(place) = self.lines.get_mut(self.count) {
            *place = *line;
            self.count += 1;
        }
        self.count == STAGED
    }

    /// The turn is over. Whether lines are left.
    #[inline]
    pub fn end_turn(&mut self) -> bool {
        self.begun = false;
        self.count > 0
    }

    /// All of them, in order. There is none afterwards.
    #[inline]
    pub fn take(&mut self) -> &[[u64; 8]] {
        let count = std::mem::take(&mut self.count);
        self.lines.get(..count).unwrap_or_default()
    }
}

/// What was copied from the peer's ring before its turn.
#[derive(Debug, Default)]
pub struct Ahead {
    lines: [[u64; 8]; AHEAD],
    next: usize,
    end: usize,
    /// Messages that were found without missing one in between: a single call at a time is not looked beyond, because its
    /// peer writes the next line only afterwards.
    in_a_row: u32,
}

impl Ahead {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.next == self.end
    }

    /// The next one; `line_at(n)` is the message that stands n after it in the ring, if it has come.
    #[inline]
    pub fn next(&mut self, line_at: impl Fn(u64) -> Option<[u64; 8]>) -> Option<[u64; 8]> {
        if let Some(line) = self.lines.get(..self.end).and_then(|lines| lines.get(self.next)) {
            self.next += 1;
            return Some(*line);
        }
        let Some(line) = line_at(0) else {
            self.in_a_row = 0;
            return None;
        };
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row > 1 {
            (self.next, self.end) = (0, 0);
            while self.end < AHEAD
                && let Some(line) = line_at(self.end as u64 + 1)
            {
                self.lines[self.end] = line;
                self.end += 1;
            }
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring of which `there` messages have come.
    fn ring(received: u64, there: u64) -> impl Fn(u64) -> Option<[u64; 8]> {
        move |beyond| (received + beyond < there).then_some([received + beyond; 8])
    }

    #[test]
    fn what_comes_alone_and_what_comes_together_comes_in_order() {
        let mut ahead = Ahead::default();
        let mut received = 0;
        for there in [0, 1, 1, 2, 30, 30, 31, 45, 45] {
            while let Some(line) = ahead.next(ring(received, there)) {
                assert_eq!(line, [received; 8]);
                received += 1;
            }
            assert!(ahead.is_empty() && received == there);
        }
    }

    #[test]
    fn a_single_message_is_not_looked_beyond() {
        let mut ahead = Ahead::default();
        for received in 0..5 {
            let looked = std::cell::Cell::new(0);
            let line_at = |beyond| {
                looked.set(looked.get().max(beyond));
                (beyond == 0).then_some([received; 8])
            };
            assert_eq!(ahead.next(line_at), Some([received; 8]));
            assert_eq!((looked.get(), ahead.next(|_| None)), (0, None));
        }
    }

    #[test]
    fn staged_lines_leave_together_once() {
        let mut staged = Staged::default();
        for round in 0..3 {
            assert!(!staged.end_turn() && staged.is_first() && !staged.is_first());
            for n in 0..STAGED as u64 {
                assert_eq!(staged.push(&[round + n; 8]), n + 1 == STAGED as u64);
            }
            assert_eq!(staged.take().len(), STAGED);
        }
        assert!(!staged.push(&[7; 8]) && staged.end_turn());
        assert_eq!(staged.take(), [[7; 8]]);
        assert!(!staged.end_turn() && staged.take().is_empty());
    }
}
