//! What one session has for another that will come for it: entered, charged and revocable like an entry, and named by nobody
//! until it is fetched.

use super::realm::{Gone, Member, Realm, Standing, Terms};
use super::table::{Line, State};
use super::tree::{NONE, Place};
use crate::error::Cause;
use crate::ledger::Tag;
use crate::wire::Handle;

impl Realm {
    /// As [`mint`](Self::mint), for somebody who will come for it: no handle names it, and no ledger keeps it. It is charged
    /// to this session until then.
    ///
    /// # Errors
    /// As [`mint`](Self::mint).
    pub fn promise(&mut self, member: Member, source: u32, terms: Terms) -> Result<Handle, Cause> {
        let (grant, standing) = self.on_terms(member, source, terms)?;
        let standing = Standing { state: State::Promised, ..standing };
        Ok(self.insert(Some((member, source)), member, grant, standing, None)?)
    }

    /// Gives what was promised to the session that has come for it: derived from what the promise was derived from. `kind` is
    /// that which it wants; 0: whichever.
    ///
    /// # Errors
    /// [`Cause::NoSuchTicket`]: it was revoked or is over. [`Cause::WrongKind`], [`Cause::Quota`] of the receiver: the promise
    /// stands.
    pub fn fulfil(
        &mut self,
        giver: Member,
        promise: Handle,
        kind: u8,
        receiver: Member,
        tag: Tag,
    ) -> Result<Handle, Cause> {
        let line = *self.promised(giver, promise).ok_or(Cause::NoSuchTicket)?;
        if line.state != State::Promised || (self.marking != 0 && self.is_doomed(line.node)) {
            return Err(Cause::NoSuchTicket);
        }
        if kind != 0 && line.grant.kind != kind {
            return Err(Cause::WrongKind);
        }
        let node = *self.tree.get(line.node);
        let parent = self.tree.get(node.parent).place;
        let limit = (node.limit != NONE).then_some(node.limit);
        let standing = Standing { is_copy: true, expires: line.expires, limit, ..Standing::FIRST };
        let parent = Some((Member(parent.table), parent.index));
        // For a moment there are two, and only one of them counts.
        let handle = self.insert_for(1, parent, receiver, line.grant, standing, Some(tag))?;
        self.withdraw(giver, promise);
        Ok(handle)
    }

    /// Whether a promise can still be had.
    pub fn is_promised(&self, giver: Member, promise: Handle) -> bool {
        self.promised(giver, promise).is_some_and(|line| line.state == State::Promised)
    }

    /// Nobody will come for it any more. Does nothing to one that is gone, or is being revoked.
    pub fn withdraw(&mut self, giver: Member, promise: Handle) -> Option<Gone> {
        let line = self.promised(giver, promise).filter(|line| line.state == State::Promised)?;
        let node = line.node;
        let place = Place { table: giver.0, index: promise.index };
        let gone = self.no_longer_held(node);
        self.line_mut(place).state = State::Kept;
        self.settle(place);
        gone
    }

    fn promised(&self, giver: Member, promise: Handle) -> Option<&Line> {
        let line = self.tables.get(giver.0 as usize)?.lines.get(promise.index as usize)?;
        (line.generation == promise.generation).then_some(line)
    }
}
