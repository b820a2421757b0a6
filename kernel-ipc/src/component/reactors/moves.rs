//! Moving an open session from one reactor to another.
//!
//! ```text
//! first reactor          where it is             where it goes
//!   │ Leave ────────────────▶│ holds its calls back, waits for those that run (at most 20 ms)
//!   │                   Left │ with all that it is; or it stays
//!   │◀───────────────────────│
//!   │ Arrive ───────────────────────────────────────▶│ serves it on
//!   │                                        Arrived │
//!   │◀───────────────────────────────────────────────│
//! ```

use super::place::{Placed, Places};
use super::{Moved, Order};
use crate::SessionId;
use crate::component::Context;
use crate::component::waits::{Answer, question};
use crate::runtime::spawn;

/// Why a session stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// It is not open on several reactors: it has ended, is being opened, or there is one reactor only.
    NoSession,
    /// There is no reactor of this number.
    NoReactor,
    /// It is being moved.
    Moving,
    /// It has calls in progress that did not end in time, or something of it is being revoked. It is served as before.
    Busy,
}

impl std::fmt::Display for MoveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MoveError::NoSession => "there is no such session on one of several reactors",
            MoveError::NoReactor => "there is no such reactor",
            MoveError::Moving => "the session is being moved",
            MoveError::Busy => "the session has calls in progress that take long",
        })
    }
}

impl std::error::Error for MoveError {}

/// A session that is to go elsewhere.
pub(super) struct Moving {
    to: u32,
    answer: Answer<Result<(), MoveError>>,
    /// It is on its way.
    pub(super) has_left: bool,
    /// Its client is gone meanwhile; whether it died.
    pub(super) gone: Option<bool>,
}

impl Context {
    /// The sessions that are open on this component's reactors, each with the one that serves it; empty if there is one
    /// reactor only.
    pub fn placed_sessions(&self) -> Vec<(SessionId, u32)> {
        let Some(places) = &self.0.places else { return Vec::new() };
        let sessions = places.sessions.borrow();
        let open = sessions.iter().filter(|(_, placed)| placed.segment.is_some());
        open.map(|(id, placed)| (*id, placed.reactor)).collect()
    }

    /// Moves an open session to another reactor. Its client notices nothing but time: calls that come meanwhile wait in its
    /// ring. Waits until it is served there. Nobody needs to call this for the sake of load: sessions are moved when that is
    /// uneven.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub async fn move_session(&self, session: SessionId, to: u32) -> Result<(), MoveError> {
        let places = self.0.places.as_ref().ok_or(MoveError::NoSession)?;
        match places.begin_move(session, to)? {
            // Without an answer it has ended on its way.
            Some(moved) => moved.await.unwrap_or(Err(MoveError::NoSession)),
            None => Ok(()),
        }
    }

    /// Moves a session for the sake of load.
    pub(super) fn even_out(&self, session: SessionId, to: u32) {
        let cx = self.clone();
        spawn(async move {
            match cx.move_session(session, to).await {
                Ok(()) => tracing::debug!("session {session} moved to reactor {to}"),
                Err(stays) => {
                    tracing::debug!("session {session} stays: {stays}");
                    if let Some(places) = &cx.0.places {
                        places.balance.borrow_mut().stays(session);
                    }
                }
            }
        });
    }
}

type Moves = crate::component::waits::Question<Result<(), MoveError>>;

impl Places {
    /// `None`: it is there.
    fn begin_move(&self, session: SessionId, to: u32) -> Result<Option<Moves>, MoveError> {
        if to >= self.count() {
            return Err(MoveError::NoReactor);
        }
        let mut sessions = self.sessions.borrow_mut();
        let placed = sessions.get_mut(&session).filter(|placed| placed.segment.is_some());
        let placed = placed.ok_or(MoveError::NoSession)?;
        if placed.moving.is_some() {
            return Err(MoveError::Moving);
        }
        if placed.reactor == to {
            return Ok(None);
        }
        let (moved, answer) = question();
        placed.moving = Some(Moving { to, answer, has_left: false, gone: None });
        self.tell(placed.reactor, Order::Leave { session });
        Ok(Some(moved))
    }

    /// A session that was to leave is on its way; or stays.
    pub(super) fn left(&self, session: SessionId, left: Result<Box<Moved>, MoveError>) {
        let mut sessions = self.sessions.borrow_mut();
        // It has ended before; then it has not left either.
        let Some(placed) = sessions.get_mut(&session) else { return };
        let Some(moving) = &mut placed.moving else { return };
        let gone = moving.gone;
        match left {
            Ok(moved) => {
                moving.has_left = true;
                placed.reactor = moving.to;
                self.tell(placed.reactor, Order::Arrive(moved));
            }
            Err(stays) => {
                if let Some(Moving { answer, .. }) = placed.moving.take() {
                    // Whoever asked may not wait any more.
                    let _ = answer.give(Err(stays));
                }
            }
        }
        if let Some(died) = gone {
            let reactor = placed.reactor;
            sessions.remove(&session);
            self.tell(reactor, Order::Gone { session, died });
        }
    }

    /// It is served where it was to go.
    pub(super) fn arrived(&self, session: SessionId) {
        let moving = self.sessions.borrow_mut().get_mut(&session).and_then(|placed: &mut Placed| placed.moving.take());
        if let Some(Moving { answer, .. }) = moving {
            let _ = answer.give(Ok(()));
        }
    }
}
