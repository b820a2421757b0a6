//! When a session is moved for the sake of load, and which.
//!
//! - One reactor is busy nearly all of its time and another one rests for most of its: in [`PERIODS`] periods in a row, so that
//!   a moment's work moves nothing. What lies between leaves both alone, so that no session goes to and fro.
//! - Of the busy one's sessions the second busiest goes: the busiest would only take the load with it, and a reactor that has
//!   one session that does anything gets rid of nothing by moving.
//! - A period is that of the supervisor's questions for a sign of life, about a second while the component is awake. At rest
//!   nothing is looked at.

use std::collections::HashMap;

use crate::SessionId;

/// What a reactor had to do in a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Load {
    /// For which part of the time its thread did not sleep.
    pub(super) busy: f64,
    /// For each of its sessions, how many messages have come.
    pub(super) calls: Vec<(SessionId, u64)>,
}

/// More than this is busy.
const BUSY: f64 = 0.75;
/// Less than this is at rest.
const RESTS: f64 = 0.25;
/// Periods in a row in which the load is uneven before something is done.
const PERIODS: u32 = 2;
/// Periods in which a session that could not be moved is not tried again.
const LEFT_ALONE: u32 = 30;

/// What is remembered from period to period.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Periods in which this reactor was busy and that one at rest.
    uneven: Option<(usize, usize, u32)>,
    /// Sessions that could not be moved, and for how many periods they are left alone.
    stays: HashMap<SessionId, u32>,
}

impl Balance {
    /// A period is over: the session that is to be moved, if one is, and to which reactor.
    pub(super) fn look(&mut self, loads: &[Load]) -> Option<(SessionId, u32)> {
        self.stays.retain(|_, periods| {
            *periods -= 1;
            *periods > 0
        });
        let by_busy = |(_, one): &(usize, &Load), (_, other): &(usize, &Load)| one.busy.total_cmp(&other.busy);
        let (busiest, most) = loads.iter().enumerate().max_by(by_busy)?;
        let (idlest, least) = loads.iter().enumerate().min_by(by_busy)?;
        let goes = self.second_busiest(most).filter(|_| most.busy > BUSY && least.busy < RESTS);
        let Some(goes) = goes else {
            self.uneven = None;
            return None;
        };
        let before = match self.uneven {
            Some((from, to, periods)) if (from, to) == (busiest, idlest) => periods,
            _ => 0,
        };
        if before + 1 < PERIODS {
            self.uneven = Some((busiest, idlest, before + 1));
            return None;
        }
        self.uneven = None;
        Some((goes, idlest as u32))
    }

    /// A session could not be moved.
    pub(super) fn stays(&mut self, session: SessionId) {
        self.stays.insert(session, LEFT_ALONE);
    }

    /// Of those that had calls, without the busiest.
    fn second_busiest(&self, load: &Load) -> Option<SessionId> {
        let mut busy: Vec<_> = load.calls.iter().filter(|(_, calls)| *calls > 0).collect();
        busy.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        busy.iter().skip(1).map(|(session, _)| *session).find(|session| !self.stays.contains_key(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: f64, calls: &[(u64, u64)]) -> Load {
        Load { busy, calls: calls.iter().map(|(session, calls)| (SessionId(*session), *calls)).collect() }
    }

    /// What is moved in each of as many periods with these loads.
    fn moves(balance: &mut Balance, loads: &[Load], periods: usize) -> Vec<Option<(u64, u32)>> {
        (0..periods).map(|_| balance.look(loads).map(|(session, to)| (session.get(), to))).collect()
    }

    #[test]
    fn the_second_busiest_session_goes_from_the_busy_reactor_to_the_idlest() {
        let loads = [load(0.2, &[(1, 5)]), load(1.0, &[(2, 10), (3, 90), (4, 50)]), load(0.1, &[])];
        assert_eq!(moves(&mut Balance::default(), &loads, 4), [None, Some((4, 2)), None, Some((4, 2))]);
    }

    #[test]
    fn one_busy_session_stays_whatever_else_is_open_there() {
        let loads = [load(1.0, &[(1, 1000), (2, 0)]), load(0.0, &[])];
        assert_eq!(moves(&mut Balance::default(), &loads, 5), [None; 5]);
    }

    #[test]
    fn a_moments_load_and_a_load_that_is_nearly_even_move_nothing() {
        let two = [(1, 10), (2, 10)];
        let mut balance = Balance::default();
        for _ in 0..5 {
            assert_eq!(balance.look(&[load(1.0, &two), load(0.0, &[])]), None);
            assert_eq!(balance.look(&[load(0.7, &two), load(0.0, &[])]), None);
        }
        assert_eq!(moves(&mut balance, &[load(1.0, &two), load(0.3, &[])], 5), [None; 5]);
        // It is another pair each time.
        for _ in 0..5 {
            assert_eq!(balance.look(&[load(1.0, &two), load(0.0, &[]), load(0.2, &[])]), None);
            assert_eq!(balance.look(&[load(1.0, &two), load(0.2, &[]), load(0.0, &[])]), None);
        }
    }

    #[test]
    fn a_session_that_could_not_be_moved_is_left_alone_for_a_while() {
        let loads = [load(1.0, &[(1, 30), (2, 20), (3, 10)]), load(0.0, &[])];
        let mut balance = Balance::default();
        balance.stays(SessionId(2));
        assert_eq!(moves(&mut balance, &loads, 2), [None, Some((3, 1))]);
        let later = moves(&mut balance, &loads, LEFT_ALONE as usize);
        assert_eq!(later.last(), Some(&Some((2, 1))));
    }

    #[test]
    fn of_one_reactor_nothing_is_moved() {
        assert_eq!(Balance::default().look(&[load(1.0, &[(1, 1), (2, 1)])]), None);
        assert_eq!(Balance::default().look(&[]), None);
    }
}
