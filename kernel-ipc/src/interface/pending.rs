//! A call, from its arguments to its result.

use std::future::Future;
use std::time::Duration;

use super::client::Place;
use super::under_way::Begin;
use super::{Ahead, Cap, Connection, Kind, Operation, OperationError, Retry};
use crate::codec::{Decode, Decoder, Encode, Encoder, Malformed};
use crate::session::{self, Begun, ClientSession, Earlier, Reply, Request, Sent};
use crate::wire::{Handle, LeaseName};
use crate::{CallError, Cause, Executed, Failure, runtime};

/// A call that has not begun: await it, perhaps after setting its [`deadline`](Pending::deadline).
#[must_use = "a call begins when it is awaited"]
pub struct Pending<S> {
    deadline: Option<Duration>,
    start: S,
}

/// What begins a call.
pub trait Start {
    /// What the call gives.
    type Output;
    /// The call under way.
    type Future: Future<Output = Self::Output> + Unpin;

    /// Begins the call.
    fn start(self, deadline: Option<Duration>) -> Self::Future;

    /// Sends it as a call that others can depend on.
    fn ahead(self, deadline: Option<Duration>) -> impl Future<Output = Result<Ahead<Self::Output>, Failure>>;

    /// Sends it as a one-way message.
    fn post(self, deadline: Option<Duration>) -> impl Future<Output = Result<(), Failure>>;
}

impl<S: Start> Pending<S> {
    /// Waits no longer than this, instead of the operation's default; the wait for a free slot is included.
    pub fn deadline(self, deadline: Duration) -> Pending<S> {
        self.or_deadline(Some(deadline))
    }

    /// Waits no longer than this, if it is given.
    pub fn or_deadline(self, deadline: Option<Duration>) -> Pending<S> {
        Pending { deadline: deadline.or(self.deadline), ..self }
    }

    /// Waits for ever, whatever the operation's default.
    pub fn no_deadline(self) -> Pending<S> {
        Pending { deadline: None, ..self }
    }

    /// Sends the call and returns when it is on its way. What it [brings](Ahead::capability) can be used from then on, so that
    /// calls which need it follow at once instead of after its answer: all of them together are one round trip. If all slots
    /// are taken it waits for one. When its host dies before it has answered, and the session with it, it is not made again.
    ///
    /// The capabilities among its arguments have to be kept until it is answered: it may still wait for what it depends on
    /// itself, and is checked only when it begins.
    ///
    /// # Errors
    /// It was not sent.
    pub async fn ahead(self) -> Result<Ahead<S::Output>, Failure> {
        self.start.ahead(self.deadline).await
    }

    /// The same on this thread, which runs no executor. What is sent so goes on while the thread waits for something: for this
    /// call ([`Ahead::wait`]), for one that was made on what it brings, or for any other.
    ///
    /// # Errors
    /// It was not sent.
    ///
    /// # Panics
    /// Inside a runtime.
    pub fn ahead_blocking(self) -> Result<Ahead<S::Output>, Failure> {
        crate::blocking(async {
            let ahead = self.ahead().await;
            // Whatever this thread does next, the host has it.
            runtime::yield_now().await;
            ahead
        })
    }

    /// Sends the call as a one-way message: returns when it is on its way, and nobody hears its answer. If all slots are
    /// taken it waits for one, no longer than the deadline, so a sender is never more than those ahead of the host. What
    /// became of messages says the [session](Cap::session) of the capability: [`ClientSession::messages`]. Leases and capabilities
    /// among the arguments have to be kept until they are [settled](ClientSession::settled).
    ///
    /// # Errors
    /// It was not sent.
    pub async fn post(self) -> Result<(), Failure> {
        self.start.post(self.deadline).await
    }

    /// Makes the call and waits for it on this thread, which runs no executor.
    pub fn wait(self) -> S::Output {
        crate::blocking(self.into_future())
    }
}

impl<S: Start> IntoFuture for Pending<S> {
    type Output = S::Output;
    type IntoFuture = S::Future;

    fn into_future(self) -> S::Future {
        self.start.start(self.deadline)
    }
}

/// The arguments of a call, as a generated client collects them.
pub struct Arguments<'a> {
    /// Handles stand in `encoder` in their order; a root as [`Handle::NONE`], for it differs from session to session.
    encoder: Encoder,
    /// The target, in the same way.
    target: Handle,
    /// Where a root among the handles comes from.
    connection: Option<&'a Connection>,
    /// Where the others come from.
    session: Option<&'a ClientSession>,
    /// What was found wrong before anything was sent.
    failure: Option<Failure>,
}

impl<'a> Arguments<'a> {
    /// Begins the arguments of a call on `target`.
    pub fn new<K: Kind>(target: &'a Cap<K>, fixed_bytes: usize) -> Arguments<'a> {
        let encoder = Encoder::new(fixed_bytes);
        let mut arguments = Arguments { encoder, target: Handle::NONE, connection: None, session: None, failure: None };
        arguments.target = arguments.resolve(&target.place);
        arguments
    }

    /// Adds a value.
    pub fn value<T: Encode + ?Sized>(&mut self, value: &T) {
        value.encode(&mut self.encoder);
    }

    /// Adds a capability.
    pub fn capability<K: Kind>(&mut self, capability: &'a Cap<K>) {
        let handle = self.resolve(&capability.place);
        self.encoder.handle(handle);
    }

    /// The handle in `place`, once it is clear that it belongs to the same session as the others.
    fn resolve(&mut self, place: &'a Place) -> Handle {
        let (handle, belongs) = match place {
            Place::Root(connection) => {
                let belongs =
                    self.connection.is_none_or(|other| same(&other.last_session(), &connection.last_session()));
                self.connection = Some(connection);
                (Handle::NONE, belongs)
            }
            Place::Session(session, handle) => {
                let belongs = self.session.is_none_or(|other| same(other, session));
                self.session = Some(session);
                (*handle, belongs)
            }
            Place::Expected(expected) => {
                let session = expected.session();
                let belongs = self.session.is_none_or(|other| same(other, session));
                self.session = Some(session);
                let handle = expected.handle().unwrap_or_else(|failure| {
                    self.failure = Some(failure);
                    Handle::NONE
                });
                (handle, belongs)
            }
        };
        if !belongs {
            self.failure = Some(Failure::not_executed(Cause::StaleHandle));
        }
        handle
    }

    /// The call of `operation` with these arguments.
    pub fn call<R, E>(self, operation: &'static Operation) -> Pending<Begin<'a, R, E>>
    where
        R: for<'p> Decode<'p>,
        E: OperationError,
    {
        Pending { deadline: operation.deadline, start: Begin::new(self, operation) }
    }

    /// Publishes the call, if nothing has to be waited for first. The wait, if there is one, is [`send`](Self::send)'s. An
    /// answer that is there already goes to `ended`: the operation's error, and the payload of a reply that brought nothing else.
    ///
    /// # Errors
    /// What was found wrong, when nothing was sent; or the failure of a call that was answered at once.
    #[inline(always)]
    pub(super) fn begin_with<T>(
        &mut self,
        operation: &Operation,
        deadline: Option<Duration>,
        ended: impl FnOnce(&ClientSession, Option<u16>, &[u8]) -> T,
    ) -> Result<Begun<T>, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let Some(session) = self.session_now()? else { return Ok(Begun::Waits) };
        self.place_root(session.root());
        session.begin_with(&self.request(operation, deadline), operation.at_once, ended)
    }

    /// The same for a message, whose answer nobody waits for.
    ///
    /// # Errors
    /// What was found wrong: nothing was sent.
    pub(super) fn begin(&mut self, operation: &Operation, deadline: Option<Duration>) -> Result<Option<Sent>, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let Some(session) = self.session_now()? else { return Ok(None) };
        self.place_root(session.root());
        session.begin(&self.request(operation, deadline))
    }

    /// Whether a call that failed like this is made once more: its host died on it, and `operation` may be repeated. Only
    /// a call that names nothing but roots: its other handles would be stale.
    pub(super) fn may_repeat(&self, operation: &Operation, failure: Failure) -> bool {
        let may = match operation.retry {
            Retry::Idempotent => true,
            Retry::Cached => failure.executed == Executed::No,
            Retry::Never => false,
        };
        may && failure.cause == Cause::PeerDied && self.session.is_none()
    }

    /// Makes the call, and once more if it has to be. `first` is what came of it before. The deadline holds for all of it.
    pub(super) async fn send(
        mut self,
        operation: &Operation,
        deadline: Option<Duration>,
        first: Option<Failure>,
    ) -> Result<(ClientSession, Reply), Failure> {
        let begun = session::now();
        let first = match first {
            Some(first) => first,
            None => match self.attempt(operation, deadline).await {
                Err(failure) if self.may_repeat(operation, failure) => failure,
                other => return other,
            },
        };
        let spent = Duration::from_nanos(session::now().saturating_sub(begun));
        let left = deadline.map(|deadline| deadline.saturating_sub(spent));
        // What failed now without running may have run before.
        self.attempt(operation, left).await.map_err(|second| match (first.executed, second.executed) {
            (Executed::Unknown, Executed::No) => Failure { executed: Executed::Unknown, ..second },
            _ => second,
        })
    }

    /// Sends it as a one-way message, when there is a slot for it.
    pub(super) async fn post(mut self, operation: &Operation, deadline: Option<Duration>) -> Result<(), Failure> {
        let session = self.session(deadline).await?;
        self.place_root(session.root());
        session.post(self.request(operation, deadline)).await
    }

    /// Sends it as a call that others can depend on, when there is a slot for it.
    pub(super) async fn ahead(mut self, operation: &Operation, deadline: Option<Duration>) -> Result<Earlier, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let session = self.session(deadline).await?;
        self.place_root(session.root());
        session.call_ahead(self.request(operation, deadline)).await
    }

    async fn attempt(
        &mut self,
        operation: &Operation,
        deadline: Option<Duration>,
    ) -> Result<(ClientSession, Reply), Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let session = self.session(deadline).await?;
        self.place_root(session.root());
        let reply = session.call(self.request(operation, deadline)).await?;
        Ok((session, reply))
    }

    fn request(&self, operation: &Operation, deadline: Option<Duration>) -> Request<'_> {
        Request {
            operation: operation.number,
            handle: self.target,
            payload: self.encoder.payload(),
            capabilities: self.encoder.handles(),
            leases: self.encoder.leases(),
            deadline,
            retry: operation.retry,
        }
    }

    /// Puts the root of this attempt's session where the arguments name a root.
    fn place_root(&mut self, root: Handle) {
        let all_are_roots = self.session.is_none();
        let place = |handle: &mut Handle| {
            if all_are_roots || *handle == Handle::NONE {
                *handle = root;
            }
        };
        place(&mut self.target);
        self.encoder.handles_mut().iter_mut().for_each(place);
    }

    /// The session of the handles, if there is one now.
    ///
    /// # Errors
    /// The handles are of a session that is over, or not the connection's.
    fn session_now(&self) -> Result<Option<ClientSession>, Failure> {
        let stale = Failure::not_executed(Cause::StaleEpoch);
        match (self.session, self.connection) {
            (Some(session), _) if !session.is_open() => Err(stale),
            (Some(session), Some(connection)) if !same(session, &connection.last_session()) => Err(stale),
            (Some(session), _) => Ok(Some(session.clone())),
            (None, Some(connection)) => Ok(Some(connection.last_session()).filter(ClientSession::is_open)),
            (None, None) => Err(stale),
        }
    }

    /// The same. Waits only for a connection that has to be made anew.
    async fn session(&self, deadline: Option<Duration>) -> Result<ClientSession, Failure> {
        if let Some(session) = self.session_now()? {
            return Ok(session);
        }
        let connection = self.connection.ok_or(Failure::not_executed(Cause::StaleEpoch))?;
        match deadline {
            Some(deadline) => runtime::timeout(deadline, connection.session())
                .await
                .unwrap_or(Err(Failure::not_executed(Cause::Deadline))),
            None => connection.session().await,
        }
    }
}

fn same(one: &ClientSession, other: &ClientSession) -> bool {
    one.id() == other.id()
}

/// What a reply says, to `earlier` if others may depend on that call. What it brought and nobody took is released.
pub(super) fn decoded<R, E>(
    session: &ClientSession,
    operation_error: Option<u16>,
    payload: &[u8],
    (capabilities, leases): (&[Handle], &[LeaseName]),
    earlier: Option<&Earlier>,
) -> Result<R, CallError<E>>
where
    R: for<'p> Decode<'p>,
    E: OperationError,
{
    let decoded = match operation_error {
        // Most often nothing came, and nothing was to come.
        None if size_of::<R>() == 0 && payload.is_empty() && capabilities.is_empty() && leases.is_empty() => {
            Decoder::new(R::FIXED_BYTES, &[]).and_then(|mut decoder| R::decode(&mut decoder)).map(Ok)
        }
        None => decode_result(session, payload, capabilities, leases, earlier).map(Ok),
        Some(number) => {
            release(session, capabilities, leases);
            E::decode(number, payload).map(|error| Err(CallError::Operation(error)))
        }
    };
    decoded.unwrap_or_else(|Malformed| {
        // The host answered something that its interface does not know: no correct host does.
        session.close();
        Err(CallError::Failed { cause: Cause::ProtocolViolation, executed: Executed::Yes })
    })
}

fn decode_result<'p, R: Decode<'p>>(
    session: &'p ClientSession,
    payload: &'p [u8],
    capabilities: &'p [Handle],
    leases: &'p [LeaseName],
    earlier: Option<&'p Earlier>,
) -> Result<R, Malformed> {
    let decoder = Decoder::new(R::FIXED_BYTES, payload);
    let Ok(decoder) = decoder else {
        release(session, capabilities, leases);
        return Err(Malformed);
    };
    let mut decoder = decoder.with_reply(session, capabilities, leases, earlier);
    let value = R::decode(&mut decoder);
    let (capabilities, leases) = decoder.untaken();
    release(session, capabilities, leases);
    value.and_then(|value| decoder.finish().map(|()| value))
}

#[inline]
fn release(session: &ClientSession, capabilities: &[Handle], leases: &[LeaseName]) {
    capabilities.iter().for_each(|handle| session.release_handle(*handle));
    leases.iter().for_each(|lease| session.release_lease(*lease));
}
