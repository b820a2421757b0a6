//! When what passes arrives, and when the link is cut: computed from a seed and from times that the caller says. No system calls.

use std::time::Duration;

use crate::chaos::Numbers;

/// What is done to what passes between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// How long everything takes, each way.
    pub delay: Duration,
    /// Bytes a second that pass, each way; `None`: as many as come.
    pub rate: Option<u64>,
    /// Time between two cuts, on average; `None`: never.
    pub cut_every: Option<Duration>,
    /// Decides when the cuts are.
    pub seed: u64,
}

impl Faults {
    /// Whether there is nothing to do.
    pub fn are_none(&self) -> bool {
        self.delay.is_zero() && self.rate.is_none() && self.cut_every.is_none()
    }

    /// When the link is cut, from its begin on; without end, or never.
    pub fn cuts(&self) -> impl Iterator<Item = Duration> + use<> {
        let (mut numbers, mut at, every) = (Numbers::new(self.seed), Duration::ZERO, self.cut_every);
        std::iter::from_fn(move || {
            // From half of it to one and a half: at regular times each cut would find its users at the same step.
            at += every?.mul_f64(0.5 + numbers.below(1 << 20) as f64 / f64::from(1 << 20));
            Some(at)
        })
    }
}

/// One way of the link: all connections share it.
#[derive(Clone, Debug)]
pub struct Way {
    delay: Duration,
    rate: Option<u64>,
    /// When what has been sent so far has left.
    free: Duration,
}

impl Way {
    pub fn new(faults: &Faults) -> Way {
        Way { delay: faults.delay, rate: faults.rate, free: Duration::ZERO }
    }

    /// When `bytes` are at the other end that are sent at `now`, behind all that was sent before.
    pub fn arrival(&mut self, now: Duration, bytes: usize) -> Duration {
        let takes = self.rate.map_or(0.0, |rate| bytes as f64 / rate as f64);
        self.free = self.free.max(now) + Duration::from_secs_f64(takes);
        self.free + self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NONE: Faults = Faults { delay: Duration::ZERO, rate: None, cut_every: None, seed: 1 };

    #[test]
    fn what_is_sent_arrives_after_the_delay_and_at_the_rate_in_order() {
        let mut way = Way::new(&Faults { delay: 25 * MS, ..NONE });
        assert_eq!([way.arrival(MS, 1), way.arrival(MS, 1 << 30), way.arrival(3 * MS, 0)], [26 * MS, 26 * MS, 28 * MS]);
        // A kilobyte in a millisecond.
        let mut way = Way::new(&Faults { delay: 10 * MS, rate: Some(1_000_000), ..NONE });
        assert_eq!(way.arrival(Duration::ZERO, 5000), 15 * MS);
        assert_eq!(way.arrival(2 * MS, 1000), 16 * MS, "behind what is under way");
        assert_eq!(way.arrival(50 * MS, 1000), 61 * MS, "what was not used is not saved up");
    }

    #[test]
    fn a_seed_decides_when_the_link_is_cut() {
        let cuts = |seed, count| -> Vec<Duration> {
            Faults { cut_every: Some(100 * MS), seed, ..NONE }.cuts().take(count).collect()
        };
        assert_eq!(cuts(3, 1000), cuts(3, 1000));
        assert_ne!(cuts(3, 10), cuts(4, 10));
        let mut last = Duration::ZERO;
        for at in cuts(3, 1000) {
            assert!((50 * MS..150 * MS).contains(&(at - last)), "{at:?} after {last:?}");
            last = at;
        }
        assert!((95_000 * MS..105_000 * MS).contains(&last), "{last:?}");
        assert_eq!(NONE.cuts().next(), None);
    }

    #[test]
    fn a_link_without_faults_is_told_from_one_with_any() {
        assert!(NONE.are_none());
        for faults in
            [Faults { delay: MS, ..NONE }, Faults { rate: Some(1), ..NONE }, Faults { cut_every: Some(MS), ..NONE }]
        {
            assert!(!faults.are_none());
        }
    }
}
