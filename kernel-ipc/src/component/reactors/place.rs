//! Which reactor serves which session: what the first reactor knows of all of them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use super::Order;
use super::balance::{Balance, Load};
use super::local::Threads;
use super::moves::Moving;
use crate::broker::{Account, Serve, ToSupervisor};
use crate::component::Context;
use crate::{Incarnation, SessionId};

/// See the module's contract.
pub(in crate::component) struct Places {
    pub(super) threads: Threads,
    pub(super) sessions: RefCell<HashMap<SessionId, Placed>>,
    /// What the supervisor has asked, and some reactor has not answered yet; oldest first.
    asked: RefCell<VecDeque<Asked>>,
    pub(super) balance: RefCell<Balance>,
    /// Which reactor was given a session last.
    last: Cell<u32>,
}

/// One session.
pub(super) struct Placed {
    client: Incarnation,
    /// Where what concerns it is said.
    pub(super) reactor: u32,
    /// The host's segment; `None`: it is being opened.
    pub(super) segment: Option<OwnedFd>,
    pub(super) moving: Option<Moving>,
}

struct Asked {
    question: Question,
    /// By reactor.
    answers: Vec<Option<Load>>,
}

/// What the supervisor asks, to which every healthy executor answers within a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::component) enum Question {
    Pulse { request: u64 },
    Counters { request: u64 },
}

impl Places {
    pub(in crate::component) fn new(threads: Threads) -> Places {
        Places {
            threads,
            sessions: RefCell::default(),
            asked: RefCell::default(),
            balance: RefCell::default(),
            last: Cell::new(0),
        }
    }

    /// Ends all reactors but this one.
    pub(in crate::component) fn stop(&self) {
        self.threads.stop();
    }

    /// How many reactors there are.
    pub(super) fn count(&self) -> u32 {
        self.threads.orders.len() as u32
    }

    pub(super) fn tell(&self, reactor: u32, order: Order) {
        // One that has failed reads nothing any more, and the component ends.
        let _ = self.threads.orders[reactor as usize].send(order);
    }

    pub(super) fn to_all(&self, order: impl Fn() -> Order) {
        (0..self.count()).for_each(|reactor| self.tell(reactor, order()));
    }

    /// The reactor that a new session goes to: one with the fewest, in turns.
    fn next(&self) -> u32 {
        let mut sessions = vec![0u32; self.threads.orders.len()];
        self.sessions.borrow().values().for_each(|placed| sessions[placed.reactor as usize] += 1);
        let after = |step| (self.last.get() + step) % self.count();
        let next = (1..=self.count()).map(after).min_by_key(|reactor| sessions[*reactor as usize]).unwrap_or(0);
        self.last.set(next);
        next
    }

    /// The supervisor wants a session to be served.
    pub(in crate::component) fn open(&self, serve: Serve, segment: OwnedFd) {
        let reactor = self.next();
        let placed = Placed { client: serve.client, reactor, segment: None, moving: None };
        self.sessions.borrow_mut().insert(serve.session, placed);
        self.tell(reactor, Order::Open { serve: Box::new(serve), segment });
    }

    pub(super) fn opened(&self, cx: &Context, session: SessionId, opened: Result<OwnedFd, String>) {
        let mut sessions = self.sessions.borrow_mut();
        // Otherwise its client is gone, which the reactor has been told.
        let Some(placed) = sessions.get_mut(&session) else { return };
        match opened {
            Ok(segment) => {
                cx.send(&ToSupervisor::Serving { session }, &[segment.as_fd()]);
                placed.segment = Some(segment);
            }
            Err(reason) => {
                cx.send(&ToSupervisor::Refused { session, reason }, &[]);
                sessions.remove(&session);
            }
        }
    }

    pub(super) fn ended(&self, cx: &Context, session: SessionId, violation: Option<String>) {
        let ended = self.sessions.borrow_mut().remove(&session);
        // Otherwise it was the supervisor that wanted its end.
        let is_known = |placed: &Placed| placed.moving.as_ref().is_none_or(|moving| moving.gone.is_none());
        if ended.as_ref().is_some_and(is_known) {
            cx.send(&ToSupervisor::Close { session, violation }, &[]);
        }
    }

    /// The supervisor says that a session's client is gone.
    pub(in crate::component) fn gone(&self, session: SessionId, died: bool) {
        let mut sessions = self.sessions.borrow_mut();
        if let Some(placed) = sessions.get_mut(&session)
            && let Some(moving) = &mut placed.moving
            && moving.has_left
        {
            // Behind the session itself, to where it goes.
            let reactor = placed.reactor;
            sessions.remove(&session);
            return self.tell(reactor, Order::Gone { session, died });
        }
        match sessions.get_mut(&session) {
            Some(Placed { moving: Some(moving), .. }) => moving.gone = Some(died),
            Some(placed) => {
                let reactor = placed.reactor;
                sessions.remove(&session);
                self.tell(reactor, Order::Gone { session, died });
            }
            None => {}
        }
    }

    /// Whether a session that a new supervisor wants to be served is served already, or about to be.
    pub(in crate::component) fn serves_already(&self, cx: &Context, session: SessionId) -> bool {
        let sessions = self.sessions.borrow();
        let Some(placed) = sessions.get(&session) else { return false };
        if let Some(segment) = &placed.segment {
            cx.send(&ToSupervisor::Serving { session }, &[segment.as_fd()]);
        }
        true
    }

    /// Adds the sessions to what a new supervisor is told.
    pub(in crate::component) fn account(&self, account: &mut Account) {
        account.hosts.extend(self.sessions.borrow().iter().map(|(id, placed)| (*id, placed.client)));
    }

    /// The supervisor asks for a sign of life: each reactor has to give one.
    pub(in crate::component) fn ask_all(&self, question: Question) {
        let answers = vec![None; self.threads.orders.len()];
        self.asked.borrow_mut().push_back(Asked { question, answers });
        // One period of load lasts from pulse to pulse.
        let ends_period = matches!(question, Question::Pulse { .. });
        self.to_all(|| Order::Beat { ends_period });
    }

    /// A reactor lives. It answers in the order in which it was asked.
    pub(super) fn beats(&self, cx: &Context, reactor: u32, load: Load) {
        let mut asked = self.asked.borrow_mut();
        let its = |asked: &&mut Asked| asked.answers[reactor as usize].is_none();
        if let Some(asked) = asked.iter_mut().find(its) {
            asked.answers[reactor as usize] = Some(load);
        }
        while let Some(answered) = asked.pop_front_if(|asked| asked.answers.iter().all(Option::is_some)) {
            let loads: Vec<Load> = answered.answers.into_iter().flatten().collect();
            self.answer(cx, answered.question, &loads);
        }
    }

    fn answer(&self, cx: &Context, question: Question, loads: &[Load]) {
        match question {
            Question::Counters { request } => {
                cx.send(&ToSupervisor::Counters { request, counters: cx.0.counters.values() }, &[]);
            }
            Question::Pulse { request } => {
                cx.send(&ToSupervisor::Pulse { request }, &[]);
                self.threads.rests.wanted();
                let uneven = self.balance.borrow_mut().look(loads);
                if let Some((session, to)) = uneven {
                    cx.even_out(session, to);
                }
            }
        }
    }
}
