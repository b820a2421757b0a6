//! The tables of all sessions of one service, and what was derived from what in them.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::MAX_DEPTH;
use super::table::{Entries, Grant, Line, Quota, State, Table};
use super::tree::{NONE, Place, Tree};
use crate::error::Cause;
use crate::id::SessionId;
use crate::ledger::Tag;
use crate::rights::Rights;
use crate::wire::Handle;

/// A session's number in a realm. Given again when nothing of the session is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(pub(super) u32);

/// What an entry is derived from: an entry of some session, by index. It is one that stays while this is used.
pub type Parent = Option<(Member, u32)>;

/// What whoever mints a capability asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Its rights: a subset of its source's.
    pub rights: Rights,
    /// Its badge; `None`: its source's. Set once.
    pub badge: Option<u64>,
    /// Monotonic nanoseconds from which on it refuses; 0: not before its source does.
    pub expires: u64,
    /// Most entries that may be derived from it, at any distance. `None`: as many as from its source.
    pub limit: Option<u32>,
}

/// How an entry stands to others, as a ledger keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What it was derived from.
    pub parent: Option<(SessionId, Handle)>,
    /// It names what its parent names.
    pub is_copy: bool,
    /// Monotonic nanoseconds; 0: never.
    pub expires: u64,
    /// Most entries that may be derived from it.
    pub limit: Option<u32>,
    /// What is known of it beside.
    pub state: State,
}

impl Standing {
    /// Of the first capability of a session.
    pub const FIRST: Standing = Standing { parent: None, is_copy: false, expires: 0, limit: None, state: State::Live };
}

/// What is known of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The object's kind, numbered by the interface.
    pub kind: u8,
    /// What its holder may do with it.
    pub rights: Rights,
    /// Its badge.
    pub badge: u64,
    /// Monotonic nanoseconds; 0: never.
    pub expires: u64,
    /// Entries that were derived from it directly.
    pub derived: u32,
    /// Most entries that may be derived from it at any distance, and how many are.
    pub limit: Option<(u32, u32)>,
    /// It is revoked.
    pub is_revoked: bool,
}

/// The last capability that named an object is gone: the service hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The session that it was granted on.
    pub member: Member,
    /// As it was granted.
    pub grant: Grant,
}

/// All tables of one service's sessions. One thread's.
pub struct Realm {
    pub(super) tables: Vec<Table>,
    free: Vec<u32>,
    pub(super) tree: Tree,
    /// Subtrees that are being marked: meanwhile a look-up asks what an entry was derived from.
    pub(super) marking: u32,
}

impl Default for Realm {
    fn default() -> Self {
        Self { tables: Vec::new(), free: Vec::new(), tree: Tree::new(), marking: 0 }
    }
}

impl Realm {
    /// A session comes, with room for `quota` entries.
    pub fn join(&mut self, session: SessionId, quota: u32, ledger: Option<Rc<dyn Entries>>) -> Member {
        let table = Table::new(session, quota, ledger);
        match self.free.pop() {
            Some(number) => {
                self.tables[number as usize] = table;
                Member(number)
            }
            None => {
                self.tables.push(table);
                Member(self.tables.len() as u32 - 1)
            }
        }
    }

    /// The entry that `handle` names, if it is of this `kind` (0: whichever) and has all of `rights`. `now` gives monotonic
    /// nanoseconds, and is asked only about an entry that expires. O(1); while something is being revoked, at most
    /// [`MAX_DEPTH`] steps.
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more), [`Cause::Revoked`], [`Cause::Expired`], [`Cause::WrongKind`],
    /// [`Cause::RightsMissing`]; in this order, so a stale handle says nothing about what replaced it.
    #[inline]
    pub fn lookup(
        &self,
        member: Member,
        handle: Handle,
        kind: u8,
        rights: Rights,
        now: impl FnOnce() -> u64,
    ) -> Result<&Grant, Cause> {
        let line = self.tables[member.0 as usize].lookup(handle, kind, rights, now)?;
        if self.marking != 0 && self.is_doomed(line.node) {
            return Err(Cause::Revoked);
        }
        Ok(&line.grant)
    }

    /// Whether the entry, or something that it was derived from, is revoked.
    #[cold]
    pub(super) fn is_doomed(&self, node: u32) -> bool {
        let mut born = u64::MAX;
        for (_, node) in self.tree.ancestors(node) {
            // The child that we come from was born before its parent was cut.
            if self.line(node.place).state.is_revoked() || node.cut >= born {
                return true;
            }
            born = node.born;
        }
        false
    }

    /// A call begins on an entry of this index; it stays until the call has [ended](Self::ended).
    #[inline]
    pub fn begun(&mut self, member: Member, index: u32) {
        self.tables[member.0 as usize].lines[index as usize].in_flight += 1;
    }

    /// A call on it was answered. True: somebody may wait for that.
    #[inline]
    pub fn ended(&mut self, member: Member, index: u32) -> bool {
        let line = &mut self.tables[member.0 as usize].lines[index as usize];
        line.in_flight -= 1;
        if line.state == State::Live {
            return false;
        }
        self.settle(Place { table: member.0, index });
        true
    }

    /// Whether an entry is there under this handle, held or not.
    pub fn is_there(&self, member: Member, handle: Handle) -> bool {
        let line = self.tables.get(member.0 as usize).and_then(|table| table.lines.get(handle.index as usize));
        line.is_some_and(|line| line.state != State::Free && line.generation == handle.generation)
    }

    /// A call on an entry brought a lease, which keeps the entry until it has [come back](Self::came_back).
    pub fn lent(&mut self, member: Member, index: u32) {
        self.tables[member.0 as usize].lines[index as usize].leases += 1;
    }

    /// A lease has come back.
    pub fn came_back(&mut self, member: Member, index: u32) {
        self.tables[member.0 as usize].lines[index as usize].leases -= 1;
        self.settle(Place { table: member.0, index });
    }

    /// Enters the first capability of a session.
    ///
    /// # Errors
    /// [`Quota`].
    pub fn first(&mut self, member: Member, grant: Grant) -> Result<Handle, Quota> {
        self.insert(None, member, grant, Standing::FIRST, Some(Tag::Session))
    }

    /// Enters what a call on `parent` grants, under a handle that no entry of the table ever had. It lasts no longer than
    /// `parent`; under a revoked one it is born revoked.
    ///
    /// # Errors
    /// [`Quota`]: the session holds as many as it may, as many are derived from some ancestor as its limit says, or it is
    /// [`MAX_DEPTH`] derivations from the first. Nothing was stored.
    pub fn grant(&mut self, member: Member, parent: u32, grant: Grant, tag: Tag) -> Result<Handle, Quota> {
        self.insert(Some((member, parent)), member, grant, Standing::FIRST, Some(tag))
    }

    /// Enters a copy of an entry of the same table, on these terms.
    ///
    /// # Errors
    /// [`Cause::RightsExceeded`], [`Cause::BadgeSet`], [`Cause::Quota`]. Nothing was stored.
    pub fn mint(&mut self, member: Member, source: u32, terms: Terms, tag: Tag) -> Result<Handle, Cause> {
        let (grant, standing) = self.on_terms(member, source, terms)?;
        Ok(self.insert(Some((member, source)), member, grant, standing, Some(tag))?)
    }

    /// The client gives an entry back: `handle` is stale from now on. O(1), and at most [`MAX_DEPTH`] steps to find what it is a
    /// copy of. Says what is gone with it.
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more). Nothing was changed.
    pub fn release(&mut self, member: Member, handle: Handle) -> Result<Option<Gone>, Cause> {
        let line = self.tables[member.0 as usize].held(handle).ok_or(Cause::StaleHandle)?;
        let (node, state) = (line.node, line.state.kept());
        let place = Place { table: member.0, index: handle.index };
        self.line_mut(place).state = state;
        let gone = self.no_longer_held(node);
        if !self.settle(place)
            && let Some(ledger) = &self.tables[member.0 as usize].ledger
        {
            ledger.amend(handle, state);
        }
        Ok(gone)
    }

    /// What is known of the entry that `handle` names, revoked or expired too. O(1).
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more).
    pub fn inspect(&self, member: Member, handle: Handle) -> Result<Inspection, Cause> {
        let line = self.tables[member.0 as usize].held(handle).ok_or(Cause::StaleHandle)?;
        let node = self.tree.get(line.node);
        Ok(Inspection {
            kind: line.grant.kind,
            rights: line.grant.rights,
            badge: line.grant.badge,
            expires: line.expires,
            derived: node.children,
            limit: (node.limit != NONE).then_some((node.limit, node.derived)),
            is_revoked: line.state == State::Revoked || self.is_doomed(line.node),
        })
    }

    /// Every entry that the session holds, with its handle, in order of index.
    pub fn held(&self, member: Member) -> impl Iterator<Item = (Handle, &Grant)> {
        let lines = self.tables[member.0 as usize].lines.iter().zip(0u32..);
        lines
            .filter(|(line, _)| matches!(line.state, State::Live | State::Revoked))
            .map(|(line, index)| (Handle { index, generation: line.generation }, &line.grant))
    }

    /// How many entries are charged to the session: those that it holds, and those that only stay.
    pub fn charged(&self, member: Member) -> u32 {
        self.tables[member.0 as usize].used()
    }

    /// The number of the session, if it has come.
    pub fn member(&self, session: SessionId) -> Option<Member> {
        let is_its = |table: &Table| table.session == session && !table.is_closed;
        self.tables.iter().position(is_its).map(|number| Member(number as u32))
    }

    /// The session has ended: gives everything back that it holds; nothing is written into its ledger. O(indices). Says what
    /// is gone, and what it had given to others, if anything: they have to be [revoked](super::Marking::of_ended).
    pub fn leave(&mut self, member: Member) -> (Vec<Gone>, bool) {
        let table = &mut self.tables[member.0 as usize];
        table.is_closed = true;
        table.ledger = None;
        let indices = table.lines.len() as u32;
        let place = |index| Place { table: member.0, index };
        let gave = (0..indices).any(|index| {
            let line = self.line(place(index));
            line.state != State::Free && self.has_heirs(line.node)
        });
        let mut gone = Vec::new();
        for index in 0..indices {
            let line = self.line(place(index));
            let node = line.node;
            match line.state {
                State::Free => continue,
                State::Live | State::Revoked | State::Promised | State::PromisedRevoked => {
                    gone.extend(self.no_longer_held(node));
                }
                State::Kept | State::KeptRevoked => {}
            }
            let line = self.line_mut(place(index));
            line.state = line.state.kept();
            // Of one that was not served since its host's death; what was lent on it goes its own way.
            line.leases = 0;
            if gave {
                line.state = line.state.revoked();
            }
        }
        if gave {
            self.marking += 1;
        } else {
            // The table is no more when the last of them has gone.
            for index in 0..indices {
                if (index as usize) < self.tables[member.0 as usize].lines.len() {
                    self.settle(place(index));
                }
            }
        }
        self.vacate(member.0);
        (gone, gave)
    }

    /// Whether something of another session was derived from this node directly. At most as many steps as it has children
    /// of its own session before.
    pub(super) fn has_heirs(&self, node: u32) -> bool {
        let node = self.tree.get(node);
        let mut child = node.first_child;
        while child != NONE {
            let at = self.tree.get(child);
            if at.place.table != node.place.table {
                return true;
            }
            child = at.next;
        }
        false
    }
}

/// What the parts of a realm do for each other.
impl Realm {
    /// What a copy on these terms would be.
    pub(super) fn on_terms(&self, member: Member, source: u32, terms: Terms) -> Result<(Grant, Standing), Cause> {
        let source = self.line(Place { table: member.0, index: source });
        if !source.grant.rights.contains(terms.rights) {
            return Err(Cause::RightsExceeded);
        }
        if terms.badge.is_some() && source.grant.badge != 0 {
            return Err(Cause::BadgeSet);
        }
        let badge = terms.badge.unwrap_or(source.grant.badge);
        let grant = Grant { rights: terms.rights, badge, ..source.grant };
        let standing =
            Standing { parent: None, is_copy: true, expires: terms.expires, limit: terms.limit, state: State::Live };
        Ok((grant, standing))
    }

    /// Enters an entry. Its standing's parent and state are found here.
    pub(super) fn insert(
        &mut self,
        parent: Parent,
        member: Member,
        grant: Grant,
        asked: Standing,
        tag: Option<Tag>,
    ) -> Result<Handle, Quota> {
        self.insert_for(0, parent, member, grant, asked, tag)
    }

    /// The same, in the place of so many others below the parent.
    pub(super) fn insert_for(
        &mut self,
        others: u32,
        parent: Parent,
        member: Member,
        grant: Grant,
        asked: Standing,
        tag: Option<Tag>,
    ) -> Result<Handle, Quota> {
        let mut standing = asked;
        let mut above = NONE;
        if let Some((Member(table), index)) = parent {
            let place = Place { table, index };
            let source = self.line(place);
            above = source.node;
            self.has_room_below(above, others)?;
            if source.state.is_revoked() || (self.marking != 0 && self.is_doomed(above)) {
                standing.state = standing.state.revoked();
            }
            standing.expires = earlier(source.expires, asked.expires);
            standing.parent = Some((self.tables[table as usize].session, self.handle(place)));
        }
        let table = &mut self.tables[member.0 as usize];
        let handle = table.take()?;
        let is_kept = match (&table.ledger, tag) {
            (Some(ledger), Some(tag)) => ledger.enter(handle, &grant, &standing, tag),
            _ => true,
        };
        let place = Place { table: member.0, index: handle.index };
        let limit = standing.limit.unwrap_or(NONE);
        let node = if is_kept { self.tree.add(place, above, limit) } else { None };
        let line = &mut self.tables[member.0 as usize].lines[handle.index as usize];
        let Some(node) = node else {
            self.tables[member.0 as usize].give_back(handle.index);
            return Err(Quota);
        };
        line.grant = grant;
        line.expires = standing.expires;
        line.state = standing.state;
        line.is_copy = standing.is_copy;
        line.node = node;
        if standing.is_copy
            && let Some(origin) = self.origin(node)
        {
            self.tree.get_mut(origin).copies += 1;
        }
        Ok(handle)
    }

    /// Whether one more may be derived from this node, when so many others are gone.
    fn has_room_below(&self, node: u32, others: u32) -> Result<(), Quota> {
        let mut depth = 0;
        for (_, node) in self.tree.ancestors(node) {
            depth += 1;
            if depth >= MAX_DEPTH || (node.limit != NONE && node.derived - others >= node.limit) {
                return Err(Quota);
            }
        }
        Ok(())
    }

    /// The entry that the service granted: itself, or that which it is a copy of. `None`: that was lost with its ledger.
    pub(super) fn origin(&self, node: u32) -> Option<u32> {
        let mut line = self.tree.ancestors(node);
        line.find(|(_, node)| !self.line(node.place).is_copy).map(|(node, _)| node)
    }

    /// The holder of an entry has it no more. Says so if it was the last that named its object.
    pub(super) fn no_longer_held(&mut self, node: u32) -> Option<Gone> {
        let origin = self.origin(node)?;
        let at = self.tree.get_mut(origin);
        at.copies = at.copies.saturating_sub(1);
        let (last, place) = (at.copies == 0, at.place);
        if !last {
            return None;
        }
        let gone = Gone { member: Member(place.table), grant: self.line(place).grant };
        if origin != node {
            self.settle(place);
        }
        Some(gone)
    }

    /// Takes an entry out that was given back, and those that only stayed for it, if nothing depends on it any more. True: it
    /// is gone. A revoked one is left to whoever revokes.
    pub(super) fn settle(&mut self, place: Place) -> bool {
        let mut at = place;
        let mut is_gone = false;
        loop {
            let line = self.line(at);
            if line.state != State::Kept || line.in_flight != 0 || line.leases != 0 {
                return is_gone;
            }
            let node = *self.tree.get(line.node);
            let is_needed = node.children > 1 || (node.children == 1 && node.limit != NONE);
            let is_named = node.copies != 0 && !line.is_copy;
            // One in another session would lose what it lives by.
            let has_heir = node.children == 1 && self.tree.get(node.first_child).place.table != at.table;
            if is_needed || is_named || has_heir {
                return is_gone;
            }
            self.take_out(at);
            is_gone = true;
            if node.parent == NONE {
                return true;
            }
            at = self.tree.get(node.parent).place;
        }
    }

    /// Takes an entry with at most one child out; the child comes into its place.
    pub(super) fn take_out(&mut self, place: Place) {
        let node = self.line(place).node;
        let heir = self.tree.get(node).first_child;
        self.tree.remove(node);
        if heir != NONE {
            // First the ledger of what stays: of an entry without a parent the next incarnation drops everything.
            self.write_standing(heir);
        }
        self.tables[place.table as usize].give_back(place.index);
        self.vacate(place.table);
    }

    /// Writes into its ledger how an entry stands now.
    fn write_standing(&self, node: u32) {
        let node = self.tree.get(node);
        let table = &self.tables[node.place.table as usize];
        let line = self.line(node.place);
        let Some(ledger) = table.ledger.as_ref().filter(|_| line.state != State::Promised) else { return };
        let parent = (node.parent != NONE).then(|| {
            let place = self.tree.get(node.parent).place;
            (self.tables[place.table as usize].session, self.handle(place))
        });
        let limit = (node.limit != NONE).then_some(node.limit);
        let standing = Standing { parent, is_copy: line.is_copy, expires: line.expires, limit, state: line.state };
        ledger.moved(node.place.index, &standing);
    }

    /// The number of a session of which nothing is left may be given again.
    pub(super) fn vacate(&mut self, number: u32) {
        let table = &mut self.tables[number as usize];
        if table.is_closed && !table.is_vacant && table.used() == 0 {
            *table = Table::vacant();
            self.free.push(number);
        }
    }

    /// Takes an entry without children out, whatever its state. Gives what it was derived from.
    pub(super) fn take_out_revoked(&mut self, node: u32, gone: &mut Vec<Gone>) -> u32 {
        let place = self.tree.get(node).place;
        if !matches!(self.line(place).state, State::Kept | State::KeptRevoked) {
            self.line_mut(place).state = State::KeptRevoked;
            gone.extend(self.no_longer_held(node));
        }
        debug_assert!(self.line(place).in_flight == 0 && self.line(place).leases == 0);
        // Only now: what it is a copy of may have gone with it.
        let parent = self.tree.get(node).parent;
        self.take_out(place);
        parent
    }

    pub(super) fn line(&self, place: Place) -> &Line {
        &self.tables[place.table as usize].lines[place.index as usize]
    }

    pub(super) fn line_mut(&mut self, place: Place) -> &mut Line {
        &mut self.tables[place.table as usize].lines[place.index as usize]
    }

    pub(super) fn handle(&self, place: Place) -> Handle {
        Handle { index: place.index, generation: self.line(place).generation }
    }
}

/// The earlier of two times; 0 is never.
fn earlier(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, time) | (time, 0) => time,
        (one, other) => one.min(other),
    }
}
