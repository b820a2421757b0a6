//! When a dead component or supervisor is started again. No clocks, no processes: time comes as an argument.
//!
//! - A death of its own making (it exited, crashed, broke the protocol, or died before it was ready) is followed by a
//!   pause, which doubles from 50 ms with each such death and is forgotten after [`HEALTHY`] of service.
//! - The fifth such death within [`WINDOW`] is the last: the component stays down until an operator restarts it.
//! - A death from outside (somebody killed it) is not counted. It is followed by a pause, always the shortest, only if
//!   the component was not ready yet.
//! - One that is restarted together with another one is not counted, and not paused: it waits for what it uses anyway.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pause after the first death of a row.
pub const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The pause does not grow beyond this.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So long a service makes earlier deaths forgotten.
pub const HEALTHY: Duration = Duration::from_secs(10);

/// Deaths within [`WINDOW`] after which it is given up.
pub const GIVE_UP_AFTER: usize = 5;

/// See [`GIVE_UP_AFTER`].
pub const WINDOW: Duration = Duration::from_secs(30);

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this pause.
    Restart(Duration),
    /// It does not help.
    GiveUp,
}

/// Whose doing a death was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The component's own.
    Own,
    /// Somebody sent a signal.
    Outside,
    /// It was taken along in the restart of another one.
    Together,
}

/// The recent deaths of one component.
#[derive(Debug, Default)]
pub struct Restarts {
    /// Times of its own deaths, oldest first.
    own: VecDeque<Instant>,
    /// Own deaths in a row, without healthy service between.
    row: u32,
}

impl Restarts {
    /// As the last supervisor knew it: its own deaths, oldest first, and how many of them are a row.
    pub fn known(own: impl IntoIterator<Item = Instant>, row: u32) -> Restarts {
        Restarts { own: own.into_iter().collect(), row }
    }

    /// The last of its own deaths, oldest first.
    pub fn own(&self) -> impl Iterator<Item = Instant> {
        self.own.iter().copied()
    }

    /// How many of them are a row.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// A death at `now`; `served` is how long it had been ready before, if it was.
    pub fn died(&mut self, now: Instant, cause: Cause, served: Option<Duration>) -> Decision {
        if served.is_some_and(|served| served >= HEALTHY) {
            self.row = 0;
        }
        if cause == Cause::Together {
            return Decision::Restart(Duration::ZERO);
        }
        if cause == Cause::Outside {
            // Killed before it was ready it gets a moment, so that whoever kills every start does not keep a core busy.
            return Decision::Restart(if served.is_some() { Duration::ZERO } else { FIRST_PAUSE });
        }
        self.own.retain(|&death| now.saturating_duration_since(death) < WINDOW);
        self.own.push_back(now);
        if self.own.len() >= GIVE_UP_AFTER {
            return Decision::GiveUp;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.row.min(16)).min(LONGEST_PAUSE);
        self.row += 1;
        Decision::Restart(pause)
    }

    /// An operator wants it started: earlier deaths are forgotten.
    pub fn forget(&mut self) {
        *self = Restarts::default();
    }
}

/// Whose doing the end with this wait status was.
pub fn cause(wait_status: i32) -> Cause {
    let own = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGXCPU,
        libc::SIGPIPE,
    ];
    if libc::WIFEXITED(wait_status) || own.contains(&libc::WTERMSIG(wait_status)) { Cause::Own } else { Cause::Outside }
}

/// The same, and how to say it.
pub fn explain(wait_status: i32) -> (Cause, String) {
    let number = libc::WTERMSIG(wait_status);
    let words = match nix::sys::signal::Signal::try_from(number) {
        _ if libc::WIFEXITED(wait_status) => format!("exited with code {}", libc::WEXITSTATUS(wait_status)),
        Ok(signal) => format!("killed by {signal}"),
        Err(_) => format!("killed by signal {number}"),
    };
    (cause(wait_status), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_pause_doubles_and_the_fifth_death_is_the_last() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        let pauses: Vec<_> = (0..5).map(|n| restarts.died(start + seconds(n), Cause::Own, None)).collect();
        let pause = |ms| Decision::Restart(Duration::from_millis(ms));
        assert_eq!(pauses, [pause(50), pause(100), pause(200), pause(400), Decision::GiveUp]);
    }

    #[test]
    fn deaths_that_lie_apart_do_not_add_up() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        for n in 0..20 {
            let decision = restarts.died(start + seconds(n * 8), Cause::Own, Some(seconds(7)));
            assert!(matches!(decision, Decision::Restart(_)), "death {n}");
        }
    }

    #[test]
    fn healthy_service_resets_the_pause_but_a_short_one_does_not() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        restarts.died(start, Cause::Own, None);
        assert_eq!(restarts.died(start, Cause::Own, Some(seconds(1))), Decision::Restart(FIRST_PAUSE * 2));
        assert_eq!(restarts.died(start + seconds(11), Cause::Own, Some(HEALTHY)), Decision::Restart(FIRST_PAUSE));
    }

    #[test]
    fn a_kill_from_outside_costs_nothing_unless_it_comes_before_ready() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(restarts.died(start, Cause::Outside, Some(seconds(0))), Decision::Restart(Duration::ZERO));
        }
        assert_eq!(restarts.died(start, Cause::Outside, None), Decision::Restart(FIRST_PAUSE));
    }

    #[test]
    fn being_taken_along_costs_nothing_and_is_not_counted() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(restarts.died(start, Cause::Together, None), Decision::Restart(Duration::ZERO));
        }
        assert_eq!(restarts.died(start, Cause::Own, None), Decision::Restart(FIRST_PAUSE));
    }

    #[test]
    fn an_operator_may_start_it_again() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        while restarts.died(start, Cause::Own, None) != Decision::GiveUp {}
        restarts.forget();
        assert_eq!(restarts.died(start, Cause::Own, None), Decision::Restart(FIRST_PAUSE));
    }

    #[test]
    fn wait_statuses_are_told_apart() {
        assert_eq!(explain(3 << 8), (Cause::Own, "exited with code 3".into()));
        assert_eq!(explain(libc::SIGKILL), (Cause::Outside, "killed by SIGKILL".into()));
        assert_eq!(explain(libc::SIGSEGV | 0x80).0, Cause::Own);
    }
}
