//! Tickets: how a client gives a capability to another client of the same host.
//!
//! * A ticket is 128 random bits, for one receiver by its name in the manifest, which the broker vouches for. Whoever else has
//!   the bits has nothing. It is good once, and for a while.
//! * What it promises is an entry in the giver's table, charged to the giver, below the capability that is given: a revoke of
//!   that reaches it like any other. Redeemed, it is an entry of the receiver's, in the same place of the tree.
//! * Tickets live in the host's memory: they end with the giver's session, and with the host. What was redeemed survives.

use std::cell::RefCell;
use std::collections::HashMap;

use super::shared::Shared;
use crate::capability::{Member, Terms};
use crate::error::Cause;
use crate::ledger::Tag;
use crate::session::{Service, SessionInfo};
use crate::sys::random;
use crate::wire::Handle;

/// Most tickets of one session that nobody has redeemed.
pub(super) const TICKETS: usize = 64;
/// Longest that one lasts, in nanoseconds.
pub(super) const LASTS_MAX: u64 = 600 * 1_000_000_000;
/// Longest name of a receiver.
pub(super) const NAME_MAX: usize = 128;

#[derive(Default)]
pub(super) struct Tickets(RefCell<HashMap<[u64; 2], Ticket>>);

struct Ticket {
    giver: Member,
    promise: Handle,
    to: Box<str>,
    /// Monotonic nanoseconds.
    expires: u64,
}

impl<S: Service> Shared<S> {
    /// Makes a ticket for what `source` names, on these terms.
    ///
    /// # Errors
    /// [`Cause::Quota`]: as many as allowed are out. [`Cause::Busy`]: there is no randomness. And those of
    /// [`promise`](crate::capability::Realm::promise).
    pub(super) fn provide(
        &self,
        giver: Member,
        source: u32,
        terms: Terms,
        to: &str,
        (now, expires): (u64, u64),
    ) -> Result<[u64; 2], Cause> {
        if to.is_empty() || to.len() > NAME_MAX {
            return Err(Cause::BadArguments);
        }
        let mut tickets = self.tickets.0.borrow_mut();
        let is_its = |ticket: &Ticket| ticket.giver == giver;
        if tickets.values().filter(|ticket| is_its(ticket)).count() >= TICKETS {
            let mut gone = Vec::new();
            tickets.retain(|_, ticket| {
                let mut realm = self.realm.borrow_mut();
                let is_over = ticket.expires <= now || !realm.is_promised(giver, ticket.promise);
                if !is_its(ticket) || !is_over {
                    return true;
                }
                gone.extend(realm.withdraw(giver, ticket.promise));
                false
            });
            if tickets.values().filter(|ticket| is_its(ticket)).count() >= TICKETS {
                return Err(Cause::Quota);
            }
            drop(tickets);
            self.dropped(&gone);
            tickets = self.tickets.0.borrow_mut();
        }
        let words = random::random_words().map_err(|_| Cause::BUSY)?;
        let promise = self.realm.borrow_mut().promise(giver, source, terms)?;
        tickets.insert(words, Ticket { giver, promise, to: to.into(), expires });
        Ok(words)
    }

    /// Enters what a ticket promises into its receiver's table. The ticket is used up then, and only then.
    ///
    /// # Errors
    /// [`Cause::NoSuchTicket`]: none for this client, or it is over, used up or revoked. [`Cause::WrongKind`].
    /// [`Cause::Quota`] of the receiver.
    pub(super) fn redeem(
        &self,
        receiver: Member,
        info: &SessionInfo,
        words: [u64; 2],
        kind: u8,
        now: u64,
        tag: Tag,
    ) -> Result<Handle, Cause> {
        let mut tickets = self.tickets.0.borrow_mut();
        // Of another one's ticket nothing is said, not even that it is there.
        let ticket = tickets.get(&words).filter(|ticket| *ticket.to == *info.client_name && ticket.expires > now);
        let Ticket { giver, promise, .. } = ticket.ok_or(Cause::NoSuchTicket)?;
        let given = self.realm.borrow_mut().fulfil(*giver, *promise, kind, receiver, tag)?;
        tickets.remove(&words);
        Ok(given)
    }

    /// The giver has ended: what it promised went with it.
    pub(super) fn end_tickets(&self, giver: Member) {
        self.tickets.0.borrow_mut().retain(|_, ticket| ticket.giver != giver);
    }
}
