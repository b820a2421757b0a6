//! What a client can do with a capability itself, whatever its interface.
//!
//! ```text
//! operation        on                        request                                          answer
//! 0xFF01 mint      any it can use            rights u32, badge?, lasts ns?, limit u32?        a capability        cached
//! 0xFF02 inspect   any that it holds         none                                             see below           idempotent
//! 0xFF03 revoke    any that it holds         derived only u32, grace u64 ns                   4 × u64             idempotent
//! 0xFF04 provide   any it can use, GRANT     as mint; lasts u64 ns, name of the receiver      the ticket, 16 B    idempotent
//! 0xFF05 redeem    any it can use            the ticket, kind u32 (0: whichever)              a capability        cached
//!
//! inspection: flags u32 (1 expires, 2 limited, 4 revoked) | kind u32 | rights u32 | derived u32
//!             | badge u64 | lasts u64 ns | limit u32, derived at any distance u32
//! report:     revoked | completed | cancelled | still mapped
//! ```
//!
//! Numbers from 0xFF00 on are those of no interface. Times are durations: the host counts them from when it reads the call.

use std::time::Duration;

use super::{ClientSession, Request, nanoseconds};
use crate::capability;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::error::{Cause, Executed, Failure};
use crate::interface::Retry;
use crate::rights::Rights;
use crate::wire::Handle;

/// Numbers of the operations on capabilities.
pub mod operation {
    /// Operations from here on are those of no interface.
    pub const STANDARD: u16 = 0xFF00;
    /// Derives a capability.
    pub const MINT: u16 = 0xFF01;
    /// Says what is known of one.
    pub const INSPECT: u16 = 0xFF02;
    /// Ends one, and all that was derived from it.
    pub const REVOKE: u16 = 0xFF03;
    /// Makes a ticket for another client.
    pub const PROVIDE: u16 = 0xFF04;
    /// Takes what a ticket promises.
    pub const REDEEM: u16 = 0xFF05;
}

/// What may be done with a call of such an operation when its answer is lost.
pub(super) const fn retry(number: u16) -> Option<Retry> {
    match number {
        operation::MINT | operation::REDEEM => Some(Retry::Cached),
        // A ticket that nobody has heard of is nobody's, and ends by itself.
        operation::INSPECT | operation::REVOKE | operation::PROVIDE => Some(Retry::Idempotent),
        _ => None,
    }
}

/// Rights, badge, nanoseconds that it lasts, limit.
pub(super) type WireTerms = (u32, Option<u64>, Option<u64>, Option<u32>);

/// What a capability that is asked for is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minting {
    /// Its rights: some of its source's.
    pub rights: Rights,
    /// Its badge, if its source has none.
    pub badge: Option<u64>,
    /// How long it can be used, at most as long as its source.
    pub lasts: Option<Duration>,
    /// Most capabilities that may be derived from it, directly or not.
    pub limit: Option<u32>,
}

impl Minting {
    /// As its source, but with these rights.
    pub fn with(rights: Rights) -> Minting {
        Minting { rights, badge: None, lasts: None, limit: None }
    }

    fn to_wire(self) -> WireTerms {
        (self.rights.bits(), self.badge, self.lasts.map(nanoseconds), self.limit)
    }
}

/// What is known of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The kind of its object, numbered by the interface.
    pub kind: u8,
    /// What its holder may do.
    pub rights: Rights,
    /// Its badge; 0: none.
    pub badge: u64,
    /// How long it can be used yet; `None`: it does not expire.
    pub lasts: Option<Duration>,
    /// How many were derived from it directly, and are there.
    pub derived: u32,
    /// Most that may be derived from it at any distance, and how many are.
    pub limit: Option<(u32, u32)>,
    /// It is being revoked.
    pub is_revoked: bool,
}

/// What a revoke did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Capabilities that could be used before, and cannot any more.
    pub revoked: u64,
    /// Calls on them that were in progress and ended by themselves; one that names several counts for each.
    pub completed: u64,
    /// Calls that were told to end, and did.
    pub cancelled: u64,
    /// Leases that were taken back and that somebody's kernel still reads: their memory is not used again before that ends.
    pub still_mapped: u64,
}

/// What one client gives another to have a capability of the host of both. Good once, for the client that it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket([u64; 2]);

impl Ticket {
    /// As bytes, for a message.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0[0]) | u128::from(self.0[1]) << 64).to_le_bytes()
    }

    /// From [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: [u8; 16]) -> Ticket {
        let word = u128::from_le_bytes(bytes);
        Ticket([word as u64, (word >> 64) as u64])
    }
}

/// How long calls that are in progress may take to end by themselves, unless a revoke says otherwise.
pub const GRACE: Duration = Duration::from_secs(1);

impl ClientSession {
    /// Derives a capability from `source`, on the same session.
    ///
    /// # Errors
    /// [`Cause::RightsExceeded`], [`Cause::BadgeSet`], [`Cause::Quota`], or that `source` is none that can be used.
    pub async fn mint(&self, source: Handle, minting: Minting) -> Result<Handle, Failure> {
        let reply = self.on(source, operation::MINT, &Encoder::of(&minting.to_wire()), None).await?;
        match reply.capabilities[..] {
            [handle] => Ok(handle),
            _ => Err(self.not_an_answer()),
        }
    }

    /// Says what is known of a capability.
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it is none.
    pub async fn inspect(&self, handle: Handle) -> Result<Inspected, Failure> {
        let reply = self.on(handle, operation::INSPECT, &Encoder::of(&()), None).await?;
        decode_inspection(&reply.payload).map_err(|Malformed| self.not_an_answer())
    }

    /// Ends a capability and all that was derived from it, on whatever session of the host; `derived_only`: all but itself.
    /// When this returns, nothing that was derived from it happens any more: no call on it has an effect or an answer. Calls
    /// in progress get `grace` to end by themselves, then they are cancelled; it waits for them in any case. What nobody holds
    /// by this handle is ended already.
    ///
    /// # Errors
    /// Of the call alone. If it failed, what was marked stays revoked; revoking again goes on.
    pub async fn revoke(&self, handle: Handle, derived_only: bool, grace: Duration) -> Result<Revoked, Failure> {
        let payload = Encoder::of(&(u32::from(derived_only), nanoseconds(grace)));
        let reply = self.on(handle, operation::REVOKE, &payload, None).await?;
        let numbers = Decoder::whole::<((u64, u64), (u64, u64))>(&reply.payload);
        let ((revoked, completed), (cancelled, still_mapped)) = numbers.map_err(|Malformed| self.not_an_answer())?;
        Ok(Revoked { revoked, completed, cancelled, still_mapped })
    }

    /// Makes a ticket by which the client of this name (in the manifest) can have a capability that is derived from `source` as
    /// by [`mint`](Self::mint), on its own session with the same host. It is good for `lasts`, at most ten minutes, and ends with
    /// this session and with the host's death; until it is redeemed, what it promises is charged to this session.
    ///
    /// # Errors
    /// [`Cause::RightsMissing`] without GRANT; those of [`mint`](Self::mint); [`Cause::Quota`] also when too many are out.
    pub async fn provide(
        &self,
        source: Handle,
        to: &str,
        minting: Minting,
        lasts: Duration,
    ) -> Result<Ticket, Failure> {
        let payload = Encoder::of(&(minting.to_wire(), nanoseconds(lasts), to));
        let reply = self.on(source, operation::PROVIDE, &payload, None).await?;
        let (first, second) = Decoder::whole(&reply.payload).map_err(|Malformed| self.not_an_answer())?;
        Ok(Ticket([first, second]))
    }

    /// Takes what a ticket promises, if its object is of this kind (0: whichever).
    ///
    /// # Errors
    /// [`Cause::NoSuchTicket`]; [`Cause::WrongKind`] and [`Cause::Quota`], after which the ticket is still good.
    pub async fn redeem(&self, ticket: Ticket, kind: u8) -> Result<Handle, Failure> {
        let payload = Encoder::of(&(ticket.0[0], ticket.0[1], u32::from(kind)));
        let reply = self.on(self.root(), operation::REDEEM, &payload, None).await?;
        match reply.capabilities[..] {
            [handle] => Ok(handle),
            _ => Err(self.not_an_answer()),
        }
    }

    async fn on(
        &self,
        handle: Handle,
        operation: u16,
        payload: &Encoder,
        deadline: Option<Duration>,
    ) -> Result<super::Reply, Failure> {
        let request = Request {
            operation,
            handle,
            payload: payload.payload(),
            capabilities: &[],
            leases: &[],
            deadline,
            retry: retry(operation).unwrap_or_default(),
        };
        let reply = self.call(request).await?;
        match reply.operation_error {
            None => Ok(reply),
            Some(_) => Err(self.not_an_answer()),
        }
    }

    /// The host answered something that no correct host answers.
    fn not_an_answer(&self) -> Failure {
        self.close();
        Failure { cause: Cause::ProtocolViolation, executed: Executed::Yes }
    }
}

const EXPIRES: u32 = 1;
const LIMITED: u32 = 2;
const REVOKED: u32 = 4;

type WireInspection = ((u32, u32, u32, u32), (u64, u64), (u32, u32));

pub(super) fn encode_inspection(found: &capability::Inspection, now: u64) -> Encoder {
    let mut flags = 0;
    flags |= if found.expires != 0 { EXPIRES } else { 0 };
    flags |= if found.limit.is_some() { LIMITED } else { 0 };
    flags |= if found.is_revoked { REVOKED } else { 0 };
    let lasts = found.expires.saturating_sub(now);
    let wire: WireInspection = (
        (flags, found.kind.into(), found.rights.bits(), found.derived),
        (found.badge, if found.expires == 0 { 0 } else { lasts }),
        found.limit.unwrap_or_default(),
    );
    Encoder::of(&wire)
}

fn decode_inspection(payload: &[u8]) -> Result<Inspected, Malformed> {
    let ((flags, kind, rights, derived), (badge, lasts), limit): WireInspection = Decoder::whole(payload)?;
    Ok(Inspected {
        kind: u8::try_from(kind).map_err(|_| Malformed)?,
        rights: Rights::from_bits_retain(rights),
        badge,
        lasts: (flags & EXPIRES != 0).then_some(Duration::from_nanos(lasts)),
        derived,
        limit: (flags & LIMITED != 0).then_some(limit),
        is_revoked: flags & REVOKED != 0,
    })
}

pub(super) fn encode_report(report: &Revoked) -> Encoder {
    Encoder::of(&((report.revoked, report.completed), (report.cancelled, report.still_mapped)))
}
