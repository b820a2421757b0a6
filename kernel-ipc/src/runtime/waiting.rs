//! The waiting ladder: what a thread that has nothing to do does next.
//!
//! - Spin with `pause` while the peer runs on another core; then `sched_yield`, which hands a shared core to
//!   the peer at once; then park. Wake-ups, not bytes, are the cost of a call (docs: 0.1 µs spinning,
//!   0.45 µs yielding, 57 µs parking, on two cores).
//! - How long each rung lasts is learned from how long the last waits took. A wait is measured as if it had
//!   been at most [`WAIT_CAP`], so that one idle hour does not cost the next thousand calls a sleep each.
//! - No clock and no system calls here: the caller says how long it has been idle and how long a yield took.

use std::time::Duration;

use super::Waiting;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Spin with `pause` a little, then look again.
    Pause,
    /// `sched_yield`, then look again.
    Yield,
    /// Sleep until woken.
    Park,
}

/// Waits that are expected to take longer are not spun for: beyond it the peer is as good as asleep.
const SPIN_MAX: Duration = Duration::from_micros(20);
/// When a wait that only spins asks whether the peer needs this very core.
const SPIN_PATIENCE: Duration = Duration::from_millis(1);
/// Waits that are expected to take longer are slept through at once. Above the 57 µs that a wait takes when
/// *both* sides sleep in between, so that two sleepers find out that they could have stayed awake.
const YIELD_MAX: Duration = Duration::from_micros(100);
/// The shortest time that is spent looking before a sleep, unless a long wait is expected.
const GRACE: Duration = Duration::from_micros(4);
/// What one wait can teach at most.
const WAIT_CAP: Duration = Duration::from_micros(800);
/// A yield that took longer than this let somebody else run on this core (measured: 0.3 µs when alone).
const YIELD_ALONE: Duration = Duration::from_nanos(1500);
/// After so many yields in a row that found nobody, the core counts as ours again.
const ALONE_AFTER: u8 = 64;

/// See the module's contract.
#[derive(Debug)]
pub(super) struct Ladder {
    waiting: Waiting,
    /// How long a wait takes: an average with weight 1/8 for the last one.
    expected: Duration,
    /// Somebody else runs on this core, perhaps the very peer: spinning would only keep it from answering.
    shared: bool,
    alone: u8,
}

impl Ladder {
    pub fn new(waiting: Waiting) -> Ladder {
        Ladder { waiting, expected: Duration::ZERO, shared: false, alone: 0 }
    }

    /// The next step of a wait that has lasted `idle`.
    ///
    /// | waiting  | core   | idle up to                     | step  |
    /// |----------|--------|--------------------------------|-------|
    /// | spin     | ours   | 1 ms                           | pause |
    /// | spin     | any    | for ever                       | yield |
    /// | adaptive | ours   | 2 x expected, if that is short | pause |
    /// | adaptive | any    | 2 x expected, if not long      | yield |
    /// | adaptive | any    | after that                     | park  |
    /// | block    | any    | at once                        | park  |
    pub fn step(&self, idle: Duration) -> Step {
        match self.waiting {
            Waiting::Block => Step::Park,
            // Only a yield finds out that the core is shared. Not early: on a busy machine it gives the core away.
            Waiting::Spin if self.shared || idle > SPIN_PATIENCE => Step::Yield,
            Waiting::Spin => Step::Pause,
            Waiting::Adaptive if self.expected > YIELD_MAX => Step::Park,
            Waiting::Adaptive => {
                let budget = (2 * self.expected).max(GRACE);
                if !self.shared && self.expected <= SPIN_MAX && idle < budget {
                    Step::Pause
                } else if idle < 2 * budget {
                    Step::Yield
                } else {
                    Step::Park
                }
            }
        }
    }

    /// Whether a wait begins with spinning.
    pub fn may_spin(&self) -> bool {
        self.step(Duration::ZERO) == Step::Pause
    }

    /// Whether the thread may sleep at all.
    pub fn may_park(&self) -> bool {
        self.waiting != Waiting::Spin
    }

    /// A wait ended with work after `idle`.
    pub fn found(&mut self, idle: Duration) {
        self.expected = (7 * self.expected + idle.min(WAIT_CAP)) / 8;
    }

    /// A `sched_yield` took so long.
    pub fn yielded(&mut self, took: Duration) {
        if took > YIELD_ALONE {
            self.shared = true;
            self.alone = 0;
        } else {
            self.alone = self.alone.saturating_add(1);
            if self.alone >= ALONE_AFTER {
                self.shared = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn ladder(waiting: Waiting, expected: Duration, shared: bool) -> Ladder {
        Ladder { waiting, expected, shared, alone: 0 }
    }

    #[test]
    fn the_table_of_decisions_is_as_documented() {
        use Step::{Park, Pause, Yield};
        use Waiting::{Adaptive, Block, Spin};
        let table = [
            (Spin, us(0), false, us(0), Pause),
            (Spin, us(500), false, us(20), Pause),
            (Spin, us(500), false, us(1_000_000), Yield),
            (Spin, us(0), true, us(1_000_000), Yield),
            (Adaptive, us(0), false, us(3), Pause),
            (Adaptive, us(0), false, us(5), Yield),
            (Adaptive, us(0), false, us(8), Park),
            (Adaptive, us(10), false, us(19), Pause),
            (Adaptive, us(10), false, us(21), Yield),
            (Adaptive, us(10), false, us(40), Park),
            (Adaptive, us(10), true, us(0), Yield),
            (Adaptive, us(10), true, us(40), Park),
            (Adaptive, us(57), false, us(0), Yield),
            (Adaptive, us(57), false, us(113), Yield),
            (Adaptive, us(57), false, us(228), Park),
            (Adaptive, us(101), false, us(0), Park),
            (Block, us(0), false, us(0), Park),
        ];
        for (waiting, expected, shared, idle, step) in table {
            assert_eq!(
                ladder(waiting, expected, shared).step(idle),
                step,
                "{waiting:?}, expecting {expected:?}, shared {shared}, idle {idle:?}"
            );
        }
    }

    #[test]
    fn two_sleepers_learn_to_stay_awake_for_each_other() {
        let mut ladder = ladder(Waiting::Adaptive, us(400), false);
        let waits = (1..).take_while(|_| {
            ladder.found(us(57));
            ladder.step(us(0)) == Step::Park
        });
        assert!(waits.count() < 32, "57 µs waits never became worth waiting for");
    }

    #[test]
    fn one_idle_hour_is_forgotten_after_a_few_calls() {
        let mut ladder = ladder(Waiting::Adaptive, us(1), false);
        ladder.found(Duration::from_secs(3600));
        for _ in 0..20 {
            ladder.found(us(1));
        }
        assert_eq!(ladder.step(us(0)), Step::Pause);
    }

    #[test]
    fn a_slow_yield_ends_the_spinning_and_quick_ones_bring_it_back() {
        let mut ladder = ladder(Waiting::Adaptive, us(1), false);
        ladder.yielded(us(5));
        assert_eq!(ladder.step(us(0)), Step::Yield);
        for _ in 0..ALONE_AFTER {
            ladder.yielded(Duration::from_nanos(300));
        }
        assert_eq!(ladder.step(us(0)), Step::Pause);
    }
}
