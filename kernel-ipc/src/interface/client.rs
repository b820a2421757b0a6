//! What a client holds: capabilities and leases that give themselves back.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::time::Duration;

use super::{Connection, Kind};
use crate::codec::{Decode, Decoder, Encode, Encoder, Layout, Malformed};
use crate::described::{Type, Types};
use crate::error::{Cause, Failure};
use crate::session::capability::{Inspected, Minting, Revoked, Ticket};
use crate::session::{ClientSession, Expected};
use crate::wire::{Handle, LeaseName};

/// A capability that this client holds. Dropping it releases it; that never waits.
///
/// A capability belongs to the session on which it came. When its host has died it is stale, and every call on it
/// fails with [`StaleEpoch`](crate::Cause::StaleEpoch), not executed. Only the root is valid in every epoch.
pub struct Cap<K> {
    pub(super) place: Place,
    kind: PhantomData<K>,
}

/// Where a capability is valid.
pub(super) enum Place {
    /// The root of whatever session the connection has.
    Root(Connection),
    /// An entry of one session.
    Session(ClientSession, Handle),
    /// What a call brings that was made ahead.
    Expected(Rc<Expected>),
}

impl<K: Kind> Cap<K> {
    /// The capability with which every session of `connection` begins.
    pub fn root(connection: Connection) -> Cap<K> {
        Cap { place: Place::Root(connection), kind: PhantomData }
    }

    /// A capability that came on `session`.
    fn given(session: ClientSession, handle: Handle) -> Cap<K> {
        Cap { place: Place::Session(session, handle), kind: PhantomData }
    }

    /// A capability that a call brings which may be under way.
    pub(super) fn expected(expected: Rc<Expected>) -> Cap<K> {
        Cap { place: Place::Expected(expected), kind: PhantomData }
    }

    /// The session in which it is valid now.
    pub fn session(&self) -> ClientSession {
        match &self.place {
            Place::Root(connection) => connection.last_session(),
            Place::Session(session, _) => session.clone(),
            Place::Expected(expected) => expected.session().clone(),
        }
    }
}

/// What can be done with any capability, whatever its interface. See [`session::capability`](crate::session::capability).
impl<K: Kind> Cap<K> {
    /// Derives a capability for the same object, with fewer rights, a badge, a time or a limit.
    ///
    /// # Errors
    /// See [`ClientSession::mint`].
    pub async fn mint(&self, minting: Minting) -> Result<Cap<K>, Failure> {
        let (session, source) = self.here().await?;
        let handle = session.mint(source, minting).await?;
        Ok(Cap::given(session, handle))
    }

    /// Says what is known of it.
    ///
    /// # Errors
    /// See [`ClientSession::inspect`].
    pub async fn inspect(&self) -> Result<Inspected, Failure> {
        let (session, handle) = self.here().await?;
        session.inspect(handle).await
    }

    /// Ends it and all that was derived from it. When this returns, nothing of that happens any more.
    ///
    /// # Errors
    /// See [`ClientSession::revoke`].
    pub async fn revoke(self, grace: Duration) -> Result<Revoked, Failure> {
        let (session, handle) = self.here().await?;
        session.revoke(handle, false, grace).await
    }

    /// Ends all that was derived from it, and not itself.
    ///
    /// # Errors
    /// See [`ClientSession::revoke`].
    pub async fn revoke_derived(&self, grace: Duration) -> Result<Revoked, Failure> {
        let (session, handle) = self.here().await?;
        session.revoke(handle, true, grace).await
    }

    /// Makes a ticket by which another client of the same host can have what [`mint`](Self::mint) would give.
    ///
    /// # Errors
    /// See [`ClientSession::provide`].
    pub async fn provide(&self, to: &str, minting: Minting, lasts: Duration) -> Result<Ticket, Failure> {
        let (session, handle) = self.here().await?;
        session.provide(handle, to, minting, lasts).await
    }

    /// Takes what a ticket promises that another client of this connection's host has made for this one.
    ///
    /// # Errors
    /// See [`ClientSession::redeem`].
    pub async fn redeem(connection: &Connection, ticket: Ticket) -> Result<Cap<K>, Failure> {
        let session = connection.session().await?;
        let handle = session.redeem(ticket, K::NUMBER).await?;
        Ok(Cap::given(session, handle))
    }

    /// The session in which it is valid, opened anew if it is a root and that has ended, and how it is named there.
    async fn here(&self) -> Result<(ClientSession, Handle), Failure> {
        match &self.place {
            Place::Root(connection) => {
                let session = connection.session().await?;
                let root = session.root();
                Ok((session, root))
            }
            Place::Session(session, _) if !session.is_open() => Err(Failure::not_executed(Cause::StaleEpoch)),
            Place::Session(session, handle) => Ok((session.clone(), *handle)),
            Place::Expected(expected) => Ok((expected.session().clone(), expected.handle()?)),
        }
    }
}

impl<K> Drop for Cap<K> {
    fn drop(&mut self) {
        // A session that is over has no entries any more; releasing is then nothing.
        if let Place::Session(session, handle) = &self.place {
            session.release_handle(*handle);
        }
    }
}

impl<K> std::fmt::Debug for Cap<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Root(_) => f.write_str("Cap(root)"),
            Place::Session(_, Handle { index, generation }) => write!(f, "Cap({index}.{generation})"),
            Place::Expected(expected) => write!(f, "Cap({expected:?})"),
        }
    }
}

impl<K: Kind> Layout for Cap<K> {
    const FIXED_BYTES: usize = 0;

    fn describe(types: &mut Types) -> Type {
        Type::Capability { kind: types.kind(K::NUMBER) }
    }
}

impl<K: Kind> Decode<'_> for Cap<K> {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let session = from.session()?;
        let handle = from.handle()?;
        Ok(match from.earlier().and_then(|earlier| earlier.holder(handle)) {
            Some(expected) => Cap::expected(expected),
            None => Cap::given(session.clone(), handle),
        })
    }

    /// A list of capabilities: its count is in the payload, they travel beside it.
    fn decode_elements(count: usize, from: &mut Decoder<'_>) -> Result<Vec<Self>, Malformed> {
        from.beside(count, Self::decode)
    }
}

/// A range of somebody's region that this client may use until it drops this. Dropping never waits.
///
/// The bytes themselves are read by whoever maps the region: see [`Holder`](crate::lease::Holder) for copying them out,
/// and [`forward`](Lease::forward) for handing them on without a mapping.
#[derive(Debug)]
pub struct Lease {
    session: ClientSession,
    name: LeaseName,
}

impl Lease {
    /// A lease that an earlier incarnation of this client was given, and that this one has inherited on `session`.
    pub fn inherited(session: ClientSession, name: LeaseName) -> Lease {
        Lease { session, name }
    }

    /// How it is named.
    pub fn name(&self) -> LeaseName {
        self.name
    }

    /// Bytes that it covers, as its lender says.
    #[expect(clippy::len_without_is_empty, reason = "an empty range is never lent")]
    pub fn len(&self) -> u64 {
        self.name.length
    }

    /// The whole of it, as an argument.
    pub fn forward(&self) -> LeasePart {
        LeasePart::whole(self.name)
    }

    /// Some bytes of it, as an argument. A range that goes beyond it is cut at its end.
    pub fn part(&self, range: impl RangeBounds<u64>) -> LeasePart {
        LeasePart::of(self.name, range)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.session.release_lease(self.name);
    }
}

impl Layout for Lease {
    const FIXED_BYTES: usize = 0;

    fn describe(_: &mut Types) -> Type {
        Type::Lease
    }
}

impl Decode<'_> for Lease {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let session = from.session()?.clone();
        Ok(Lease { session, name: from.lease()? })
    }

    fn decode_elements(count: usize, from: &mut Decoder<'_>) -> Result<Vec<Self>, Malformed> {
        from.beside(count, Self::decode)
    }
}

/// Some bytes of a lease, as an argument. Whoever receives one takes holder, region and range from the lender's table:
/// what is said here can only narrow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePart {
    /// Which lease. Beside the payload.
    pub name: LeaseName,
    /// Where in the lease the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl LeasePart {
    /// All bytes of a lease: one that came from a host, or one that this process lent to the call's host.
    pub fn whole(name: LeaseName) -> LeasePart {
        LeasePart { name, offset: 0, length: name.length }
    }

    /// Some bytes of a lease. A range that goes beyond it is cut at its end.
    pub fn of(name: LeaseName, range: impl RangeBounds<u64>) -> LeasePart {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => name.length,
        };
        let start = start.min(name.length);
        LeasePart { name, offset: start, length: end.min(name.length).saturating_sub(start) }
    }
}

impl Layout for LeasePart {
    const FIXED_BYTES: usize = 16;

    fn describe(_: &mut Types) -> Type {
        Type::LeasePart
    }
}

impl Encode for LeasePart {
    fn encode(&self, to: &mut Encoder) {
        to.lease(self.name);
        self.offset.encode(to);
        self.length.encode(to);
    }
}

impl Decode<'_> for LeasePart {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let name = from.lease()?;
        let (offset, length) = <(u64, u64)>::decode(from)?;
        match offset.checked_add(length) {
            Some(end) if end <= name.length => Ok(LeasePart { name, offset, length }),
            _ => Err(Malformed),
        }
    }
}
