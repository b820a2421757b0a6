//! Opening sessions, and opening them again.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::beyond;
use super::connection::Connection;
use super::waits::{Answer, question};
use super::{ConnectError, Context};
use crate::broker::{OpenError, OpenedBeyond, ToSupervisor};
use crate::runtime;
use crate::session::{ClientSession, Offer, WeakSession};
use crate::steps;
use crate::wire::Shape;
use crate::{Cause, Epoch, Executed, Failure, Incarnation, SessionId};

/// A session that was asked for.
pub(super) struct Asked {
    name: String,
    interface: String,
    offer: Offer,
    /// The session to go on with.
    resumes: Option<ClientSession>,
    /// How often it was dialled in vain on another node.
    dialled: u32,
    answer: Answer<Result<ClientSession, ConnectError>>,
}

/// Between two times that a host on another node is asked for and dialled, at first; it doubles so often. It may die, or its node, in
/// between, and who waits for it does so as for one of this node: until there is one, or he goes away.
const DIAL_AGAIN: Duration = Duration::from_millis(200);
const DOUBLED_MOST: u32 = 5;

impl Asked {
    /// Says what is asked for, also again: to a supervisor that did not hear it.
    pub(super) fn say(&self, cx: &Context, request: u64) {
        let message = ToSupervisor::Open {
            request,
            endpoint: self.name.clone(),
            interface: self.interface.clone(),
            resumes: self.resumes.as_ref().map(ClientSession::id),
        };
        cx.send(&message, &[self.offer.fd()]);
    }
}

/// A session that is open, or suspended.
pub(super) struct Used {
    pub(super) session: WeakSession,
    /// Who serves it.
    pub(super) host: Incarnation,
    name: String,
    interface: String,
    /// The supervisor was asked to go on with it, and has not answered.
    resuming: Cell<bool>,
}

/// What the supervisor says of an opened session.
pub(super) struct Opened {
    pub(super) session: SessionId,
    pub(super) epoch: Epoch,
    pub(super) host: Incarnation,
    pub(super) survives: bool,
}

/// See [`Context::connection`].
pub(super) async fn connect(cx: &Context, name: &str, interface: &str) -> Result<Connection, ConnectError> {
    let session = open(cx, name, interface).await?;
    // A connection keeps its context: nothing there keeps a connection.
    let (cx, name, interface) = (cx.clone(), name.to_owned(), interface.to_owned());
    Ok(Connection::lasting(
        session,
        Box::new(move || {
            let (cx, name, interface) = (cx.clone(), name.clone(), interface.clone());
            Box::pin(async move { reopen(&cx, &name, &interface).await })
        }),
    ))
}

async fn reopen(cx: &Context, name: &str, interface: &str) -> Result<ClientSession, Failure> {
    open(cx, name, interface).await.map_err(|error| {
        tracing::warn!("{error}");
        Failure { cause: Cause::NotConnected, executed: Executed::No }
    })
}

async fn open(cx: &Context, name: &str, interface: &str) -> Result<ClientSession, ConnectError> {
    let offer = Offer::new(Shape::default()).map_err(ConnectError::Io)?;
    ask(cx, name, interface, offer, None).await
}

/// The host of a session has died, and the session goes on.
pub(super) fn suspended(cx: &Context, id: SessionId) {
    let known = |used: &Used| {
        let session = used.session.upgrade()?;
        Some((session, used.name.clone(), used.interface.clone(), used.resuming.replace(true)))
    };
    let used = cx.0.used.borrow().get(&id).and_then(known);
    let Some((session, name, interface, resuming)) = used else { return };
    session.suspend();
    steps::reach("resume/suspended");
    if resuming {
        // The host that was to go on with it has died too. The supervisor asks the next one by itself.
        return;
    }
    let weak = Rc::downgrade(&cx.0);
    runtime::spawn(async move {
        let resumed = match (weak.upgrade(), session.offer()) {
            (Some(inner), Ok(offer)) => {
                ask(&Context(inner), &name, &interface, offer, Some(session.clone())).await.map(drop)
            }
            (_, Err(error)) => Err(ConnectError::Io(error)),
            (None, _) => return,
        };
        if let Err(error) = resumed {
            tracing::warn!("a session with {name} does not go on: {error}");
            session.give_up();
        }
    });
}

async fn ask(
    cx: &Context,
    name: &str,
    interface: &str,
    offer: Offer,
    resumes: Option<ClientSession>,
) -> Result<ClientSession, ConnectError> {
    let (opened, answer) = question();
    let left = if resumes.is_none() { leave_to(cx, name, interface, answer) } else { Some(answer) };
    if let Some(answer) = left {
        let request = cx.0.next_request.replace(cx.0.next_request.get() + 1);
        let (name, interface) = (name.to_owned(), interface.to_owned());
        say(cx, request, Asked { name, interface, offer, resumes, dialled: 0, answer });
    }
    opened.await.unwrap_or_else(|| Err(refused(name, "the supervisor is gone".into())))
}

/// Whoever asked for the same and went away has left the question to this one: so there are never more than wait at a time. Gives the
/// answer back if there is none.
fn leave_to(
    cx: &Context,
    name: &str,
    interface: &str,
    answer: Answer<Result<ClientSession, ConnectError>>,
) -> Option<Answer<Result<ClientSession, ConnectError>>> {
    let mut all = cx.0.asked.borrow_mut();
    let is_left = |asked: &&mut Asked| {
        asked.name == name && asked.interface == interface && asked.resumes.is_none() && !asked.answer.is_awaited()
    };
    match all.values_mut().find(is_left) {
        Some(left) => {
            left.answer = answer;
            None
        }
        None => Some(answer),
    }
}

/// Asks the supervisor, if there is one. Otherwise the question is dropped, and has no answer.
fn say(cx: &Context, request: u64, asked: Asked) {
    if !cx.0.lost.has_happened() {
        asked.say(cx, request);
        steps::reach("open/asked");
        cx.0.asked.borrow_mut().insert(request, asked);
    }
}

fn refused(name: &str, reason: String) -> ConnectError {
    ConnectError::Refused { name: name.to_owned(), error: OpenError::Unavailable { reason } }
}

/// The supervisor brings the host's segment. In the control socket's order, so that news of the host's death that comes
/// right behind finds the session.
pub(super) fn opened(cx: &Context, request: u64, opened: Opened, segment: OwnedFd) {
    let Opened { session: id, epoch, host, survives } = opened;
    let Some(asked) = cx.0.asked.borrow_mut().remove(&request) else {
        tracing::warn!("a session that nobody asked for");
        return;
    };
    let Asked { name, interface, offer, resumes, answer, .. } = asked;
    let result = match resumes {
        Some(session) => {
            // What this client had lent to the dead host, its calls name to the next one.
            let dead = cx.0.used.borrow().get(&id).map(|used| used.host);
            if let (Some(dead), Some(lender)) = (dead, &*cx.0.lender.borrow()) {
                lender.borrow_mut().inherit(dead, host, None);
            }
            session.resume(offer, segment, epoch).map(|()| session)
        }
        None if survives => offer.open_surviving(segment, id, epoch),
        None => offer.open(segment, id, epoch),
    };
    match result {
        Ok(session) => {
            if let Some(book) = &cx.0.logbook {
                let known = cx.0.welcome.uses.iter().find(|used| used.name == name);
                session.log_to(book, known.map_or(&name, |used| &used.endpoint), &interface);
            }
            let used = Used { session: session.downgrade(), host, name, interface, resuming: Cell::new(false) };
            let resumed = cx.0.used.borrow_mut().insert(id, used).is_some();
            if !resumed {
                // A session keeps its context, which does not keep the session.
                let cx = cx.clone();
                session.on_end(move || ended(&cx, id));
            }
            if cx.survives() {
                session.stays_open_when_dropped();
            }
            // If whoever asked no longer waits, nobody will use it: dropping it ends it, unless the next run may need it.
            let _ = answer.give(Ok(session));
            steps::reach("open/opened");
        }
        Err(error) => {
            let violation = Some(error.to_string());
            cx.send(&ToSupervisor::Close { session: id, violation }, &[]);
            let _ = answer.give(Err(ConnectError::Io(std::io::Error::other(error.to_string()))));
        }
    }
}

/// The host is on another node, and expects us.
pub(super) fn opened_beyond(cx: &Context, to: OpenedBeyond) {
    let asked = cx.0.asked.borrow_mut().remove(&to.request);
    let Some(mut asked) = asked else { return tracing::warn!("a session that nobody asked for") };
    let cx = cx.clone();
    runtime::spawn(async move {
        match beyond::dial(&cx, &asked.interface, &to).await {
            Ok(session) => {
                if let Some(book) = &cx.0.logbook {
                    let known = cx.0.welcome.uses.iter().find(|used| used.name == asked.name);
                    session.log_to(book, known.map_or(&asked.name, |used| &used.endpoint), &asked.interface);
                }
                let _ = asked.answer.give(Ok(session));
            }
            // Nobody waits for it any more.
            Err(_) if !asked.answer.is_awaited() => {}
            Err(why) => {
                tracing::warn!("{why}; it is asked for again");
                runtime::sleep(DIAL_AGAIN * (1 << asked.dialled.min(DOUBLED_MOST))).await;
                asked.dialled += 1;
                if asked.answer.is_awaited() {
                    say(&cx, to.request, asked);
                }
            }
        }
    });
}

/// A session has ended on our side: dropped, closed, or broken by its host. The supervisor tells the host.
fn ended(cx: &Context, id: SessionId) {
    let used = cx.0.used.borrow_mut().remove(&id);
    // Otherwise it was the supervisor that told of its end.
    if used.is_some() {
        cx.send(&ToSupervisor::Close { session: id, violation: None }, &[]);
    }
}

/// The supervisor says that there will be no session.
pub(super) fn failed(cx: &Context, request: u64, error: OpenError) {
    let asked = cx.0.asked.borrow_mut().remove(&request);
    if let Some(asked) = asked {
        let _ = asked.answer.give(Err(ConnectError::Refused { name: asked.name, error }));
    }
}
