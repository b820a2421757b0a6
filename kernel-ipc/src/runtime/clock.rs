//! The time, as sessions and the runtime see it: the kernel's, or, on a thread that simulates, what the simulation says.
//!
//! Who simulates sets the clock; nothing else moves it. One thread-local word is looked at before the kernel is asked.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

thread_local! {
    /// Nanoseconds that a simulated clock shows; 0: the clock is the kernel's.
    static SIMULATED: Cell<u64> = const { Cell::new(0) };
}

/// What a simulated clock counts from: an `Instant` cannot be made of a number.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
/// How often the kernel moves the coarse clock on.
const TICK_NS: u64 = 4_000_000;

/// The time.
#[inline]
pub fn now() -> Instant {
    match SIMULATED.get() {
        0 => Instant::now(),
        ns => at(ns),
    }
}

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds: a tick behind the time, at a third of its cost.
#[inline]
pub(crate) fn coarse_ns() -> u64 {
    match SIMULATED.get() {
        0 => {
            let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("Linux has had this clock since 2.6.32");
            time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
        }
        ns => (ns / TICK_NS * TICK_NS).max(1),
    }
}

/// From now on this thread's clock shows so many nanoseconds; `None`: the kernel's time again.
pub fn simulate(ns: Option<u64>) {
    SIMULATED.set(ns.map_or(0, |ns| ns.max(1)));
}

/// What a simulated clock shows at an instant that it has given: nanoseconds.
pub fn simulated_ns(instant: Instant) -> u64 {
    u64::try_from(instant.saturating_duration_since(*BEGINNING).as_nanos()).unwrap_or(u64::MAX)
}

fn at(ns: u64) -> Instant {
    *BEGINNING + Duration::from_nanos(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_clock_stands_until_it_is_moved_and_then_the_kernels_goes_on() {
        simulate(Some(7_000_000_000));
        let then = now();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!((now(), simulated_ns(then)), (then, 7_000_000_000));
        simulate(Some(7_009_000_000));
        assert_eq!(now() - then, Duration::from_millis(9));
        assert_eq!(coarse_ns(), 7_008_000_000, "a tick behind");
        simulate(None);
        let (one, coarse) = (now(), coarse_ns());
        std::thread::sleep(Duration::from_millis(20));
        assert!(now() > one && coarse_ns() > coarse);
    }
}
