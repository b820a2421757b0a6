//! Opening sessions, and opening them again.

use std::os::fd::OwnedFd;
use std::rc::Weak;

use super::connection::Connection;
use super::waits::{Answer, question};
use super::{ConnectError, Context, Inner};
use crate::broker::{OpenError, ToSupervisor};
use crate::session::{ClientSession, Offer};
use crate::wire::Shape;
use crate::{Cause, Epoch, Executed, Failure, Incarnation, SessionId};

/// A session that was asked for.
pub(super) struct Asked {
    name: String,
    offer: Offer,
    answer: Answer<Result<ClientSession, ConnectError>>,
}

/// See [`Context::connection`].
pub(super) async fn connect(cx: &Context, name: &str, interface: &str) -> Result<Connection, ConnectError> {
    let session = open(cx, name, interface).await?;
    let weak = std::rc::Rc::downgrade(&cx.0);
    let (name, interface) = (name.to_owned(), interface.to_owned());
    Ok(Connection::lasting(
        session,
        Box::new(move || {
            let (weak, name, interface) = (weak.clone(), name.clone(), interface.clone());
            Box::pin(async move { reopen(weak, &name, &interface).await })
        }),
    ))
}

async fn reopen(weak: Weak<Inner>, name: &str, interface: &str) -> Result<ClientSession, Failure> {
    let failure = Failure { cause: Cause::NotConnected, executed: Executed::No };
    let cx = Context(weak.upgrade().ok_or(failure)?);
    open(&cx, name, interface).await.map_err(|error| {
        tracing::warn!("{error}");
        failure
    })
}

async fn open(cx: &Context, name: &str, interface: &str) -> Result<ClientSession, ConnectError> {
    let offer = Offer::new(Shape::default()).map_err(ConnectError::Io)?;
    let request = cx.0.next_request.replace(cx.0.next_request.get() + 1);
    let (opened, answer) = question();
    let message = ToSupervisor::Open { request, endpoint: name.to_owned(), interface: interface.to_owned() };
    let segment = offer.fd().try_clone_to_owned().map_err(ConnectError::Io)?;
    cx.0.asked.borrow_mut().insert(request, Asked { name: name.to_owned(), offer, answer });
    if cx.0.lost.has_happened() {
        cx.0.asked.borrow_mut().remove(&request);
    } else {
        cx.send(&message, &[std::os::fd::AsFd::as_fd(&segment)]);
    }
    drop(segment);
    opened.await.unwrap_or_else(|| {
        let error = OpenError::Unavailable { reason: "the supervisor is gone".into() };
        Err(ConnectError::Refused { name: name.to_owned(), error })
    })
}

/// The supervisor brings the host's segment. In the control socket's order, so that news of the host's death that comes
/// right behind finds the session.
pub(super) fn opened(cx: &Context, request: u64, id: SessionId, epoch: Epoch, host: Incarnation, segment: OwnedFd) {
    let Some(asked) = cx.0.asked.borrow_mut().remove(&request) else {
        tracing::warn!("a session that nobody asked for");
        return;
    };
    let result = asked.offer.open(segment, id, epoch);
    let answer = match result {
        Ok(session) => {
            cx.0.used.borrow_mut().insert(id, (session.clone(), host));
            asked.answer.give(Ok(session))
        }
        Err(error) => {
            let violation = Some(error.to_string());
            cx.send(&ToSupervisor::Close { session: id, violation }, &[]);
            asked.answer.give(Err(ConnectError::Io(std::io::Error::other(error.to_string()))))
        }
    };
    if answer.is_err() {
        // Whoever asked no longer waits: nobody will use it.
        if let Some((session, _)) = cx.0.used.borrow_mut().remove(&id) {
            session.close();
            cx.send(&ToSupervisor::Close { session: id, violation: None }, &[]);
        }
    }
}

/// The supervisor says that there will be no session.
pub(super) fn failed(cx: &Context, request: u64, error: OpenError) {
    if let Some(asked) = cx.0.asked.borrow_mut().remove(&request) {
        let _ = asked.answer.give(Err(ConnectError::Refused { name: asked.name, error }));
    }
}
