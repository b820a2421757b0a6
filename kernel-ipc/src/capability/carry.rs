//! A session's table on its way from one realm to another: to another reactor of its host.
//!
//! What it names stays what it is, and nobody hears of a drop: nothing is gone. Only a table that nothing else hangs on can go:
//! no call in progress, no lease out, nothing promised or being revoked, nothing given to or got from another session.

use super::realm::{Member, Realm, Standing};
use super::restore::Restored;
use super::table::{Line, State};
use super::tree::{NONE, Place};

impl Realm {
    /// Takes the table of a session out, as [`restore`](Self::restore) enters it elsewhere; the session has left this realm
    /// then. O(entries). `None`: it cannot go now, and nothing was changed.
    pub fn carry(&mut self, member: Member) -> Option<Vec<Restored>> {
        let table = &self.tables[member.0 as usize];
        let can_go = table.lines.iter().all(|line| self.can_go(member, line));
        if self.marking != 0 || table.ledger.is_some() || !can_go {
            return None;
        }
        let carried = table.lines.iter().map(|line| self.written(line)).collect();

        let mut tops = Vec::new();
        let table = &mut self.tables[member.0 as usize];
        table.is_closed = true;
        for line in table.lines.iter_mut().filter(|line| line.state != State::Free) {
            // So nobody is told that it is gone.
            line.state = State::KeptRevoked;
            if self.tree.get(line.node).parent == NONE {
                tops.push(line.node);
            }
        }
        let mut gone = Vec::new();
        tops.into_iter().for_each(|top| self.prune(top, &mut gone));
        debug_assert!(gone.is_empty());
        self.vacate(member.0);
        Some(carried)
    }

    fn can_go(&self, member: Member, line: &Line) -> bool {
        match line.state {
            State::Free => true,
            State::Live | State::Kept => {
                let parent = self.tree.get(line.node).parent;
                let is_own = parent == NONE || self.tree.get(parent).place.table == member.0;
                line.in_flight == 0 && line.leases == 0 && is_own && !self.has_heirs(line.node)
            }
            _ => false,
        }
    }

    /// An index as a ledger would tell it.
    fn written(&self, line: &Line) -> Restored {
        let entry = (line.state != State::Free).then(|| {
            let node = self.tree.get(line.node);
            let parent = (node.parent != NONE).then(|| {
                let place: Place = self.tree.get(node.parent).place;
                (self.tables[place.table as usize].session, self.handle(place))
            });
            let limit = (node.limit != NONE).then_some(node.limit);
            let standing = Standing { parent, is_copy: line.is_copy, expires: line.expires, limit, state: line.state };
            (line.grant, standing)
        });
        Restored { generation: line.generation, entry }
    }
}

#[cfg(test)]
mod tests {
    use super::super::realm::Terms;
    use super::super::table::Grant;
    use super::*;
    use crate::error::Cause;
    use crate::id::SessionId;
    use crate::ledger::Tag;
    use crate::rights::Rights;
    use crate::wire::Handle;

    const SESSION: SessionId = SessionId(7);
    const TAG: Tag = Tag::Session;

    fn grant(object: u64) -> Grant {
        Grant { object: [object, 0], kind: 1, rights: Rights::READ | Rights::WRITE, badge: 0 }
    }

    fn fresh() -> (Realm, Member, Handle) {
        let mut realm = Realm::default();
        let member = realm.join(SESSION, 100, None);
        let root = realm.first(member, grant(1)).unwrap();
        (realm, member, root)
    }

    fn object(realm: &Realm, member: Member, handle: Handle) -> Result<u64, Cause> {
        realm.lookup(member, handle, 0, Rights::READ, || 5).map(|grant| grant.object[0])
    }

    #[test]
    fn handles_terms_and_what_was_derived_from_what_are_the_same_in_the_other_realm() {
        let (mut realm, member, root) = fresh();
        let child = realm.grant(member, root.index, grant(2), TAG).unwrap();
        let terms = Terms { rights: Rights::READ, badge: Some(9), expires: 10, limit: Some(1) };
        let copy = realm.mint(member, child.index, terms, TAG).unwrap();
        let below = realm.grant(member, copy.index, grant(3), TAG).unwrap();
        let released = realm.grant(member, root.index, grant(4), TAG).unwrap();
        assert_eq!(realm.release(member, released).unwrap().map(|gone| gone.grant.object[0]), Some(4));
        // It stays for its copy, of which the service has not been told.
        assert_eq!(realm.release(member, child), Ok(None));

        let carried = realm.carry(member).expect("nothing hangs on it");
        assert_eq!(realm.tree.len(), 0);
        assert_eq!(realm.member(SESSION), None);
        assert_eq!(realm.join(SessionId(8), 100, None), member, "its number is free again");

        let mut other = Realm::default();
        other.join(SessionId(3), 100, None);
        let member = other.join(SESSION, 100, None);
        assert_eq!(other.restore(&[(member, &carried)], &[]), []);
        assert_eq!(object(&other, member, root), Ok(1));
        assert_eq!(object(&other, member, child), Err(Cause::StaleHandle));
        assert_eq!(object(&other, member, released), Err(Cause::StaleHandle));
        assert_eq!(object(&other, member, below), Ok(3));
        let copied = other.inspect(member, copy).unwrap();
        assert_eq!((copied.rights, copied.badge, copied.expires), (Rights::READ, 9, 10));
        assert_eq!(copied.limit, Some((1, 1)));
        assert!(other.grant(member, copy.index, grant(5), TAG).is_err(), "its limit is used up");
        // A new one never gets a handle that there was.
        let next = other.grant(member, root.index, grant(6), TAG).unwrap();
        assert!(next != released && next != child);
        // The last that named the object tells of its end.
        assert_eq!(other.release(member, below).unwrap().map(|gone| gone.grant.object[0]), Some(3));
        assert_eq!(other.release(member, copy).unwrap().map(|gone| gone.grant.object[0]), Some(2));
        assert_eq!(other.leave(member).0.len(), 2);
        assert_eq!(other.tree.len(), 0);
    }

    #[test]
    fn a_table_without_an_entry_goes_too() {
        let (mut realm, member, root) = fresh();
        realm.release(member, root).unwrap();
        let carried = realm.carry(member).unwrap();
        assert_eq!(carried, [Restored { generation: 2, entry: None }]);
        assert_eq!(realm.join(SESSION, 1, None), member);
    }

    #[test]
    fn a_table_on_which_something_hangs_stays_as_it_is() {
        let (mut realm, member, root) = fresh();
        let used = |realm: &mut Realm| realm.carry(member).is_none() && object(realm, member, root) == Ok(1);
        realm.begun(member, root.index);
        assert!(used(&mut realm), "a call");
        realm.ended(member, root.index);
        realm.lent(member, root.index);
        assert!(used(&mut realm), "a lease");
        realm.came_back(member, root.index);

        let other = realm.join(SessionId(8), 100, None);
        let promise = realm.promise(member, root.index, Terms { rights: Rights::READ, ..Terms::default() }).unwrap();
        assert!(used(&mut realm), "a promise");
        let given = realm.fulfil(member, promise, 1, other, TAG).unwrap();
        assert!(used(&mut realm), "what was given to another session");
        assert_eq!(realm.carry(other), None, "and what that has got");
        realm.release(other, given).unwrap();

        realm.marking += 1;
        assert!(used(&mut realm), "a revoke");
        realm.marking -= 1;
        assert!(realm.carry(member).is_some());
    }
}
