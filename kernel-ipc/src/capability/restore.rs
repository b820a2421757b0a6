//! The tables and the tree of the next incarnation, from the ledgers of all sessions.

use std::collections::HashMap;

use super::realm::{Gone, Member, Realm, Standing};
use super::table::{Grant, Line, State};
use super::tree::{NONE, Place};
use crate::id::SessionId;
use crate::wire::Handle;

/// One index of a ledger's table, for the table of the next incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Of the entry, or of the next one to come here.
    pub generation: u32,
    /// The entry, if there is one.
    pub entry: Option<(Grant, Standing)>,
}

/// The nodes of what was entered.
#[derive(Default)]
struct Entered {
    /// All of them.
    nodes: Vec<u32>,
    /// Copies that are held.
    held_copies: Vec<u32>,
    /// No copies, and held by nobody: they stay for others.
    kept: Vec<u32>,
}

impl Entered {
    fn enters(&mut self, node: u32, is_held: bool, is_copy: bool) {
        self.nodes.push(node);
        match (is_held, is_copy) {
            (true, true) => self.held_copies.push(node),
            (false, false) => self.kept.push(node),
            _ => {}
        }
    }
}

impl Realm {
    /// Enters what the ledgers of sessions say, all at once: what one has from another is found only so. What was derived from
    /// something that is not there is revoked; everything revoked is gone afterwards. Says what the services of the sessions
    /// have to drop. `lent` are the entries by which leases came that are out still, once for each: those that are
    /// [there](Self::is_there) afterwards stay until it has come back. O(entries × depth + leases).
    pub fn restore(&mut self, ledgers: &[(Member, &[Restored])], lent: &[(Member, Handle)]) -> Vec<Gone> {
        self.tree.reserve(ledgers.iter().map(|(_, entries)| entries.len()).sum());
        let (mut nodes, mut later, mut doomed) = (Entered::default(), Vec::new(), Vec::new());
        for (member, entries) in ledgers {
            self.tables[member.0 as usize].lines.reserve(entries.len());
            for (restored, index) in entries.iter().zip(0u32..) {
                let line = self.tables[member.0 as usize].restore(restored.generation, restored.entry.is_some());
                let Some((grant, standing)) = &restored.entry else { continue };
                let limit = standing.limit.unwrap_or(NONE);
                let Some(node) = self.tree.add(Place { table: member.0, index }, NONE, limit) else { continue };
                line.grant = *grant;
                line.expires = standing.expires;
                line.state = standing.state;
                line.is_copy = standing.is_copy;
                line.node = node;
                let held = !matches!(standing.state, State::Kept | State::KeptRevoked);
                self.tree.get_mut(node).copies = u32::from(held && !standing.is_copy);
                nodes.enters(node, held, standing.is_copy);
                if standing.state.is_revoked() {
                    doomed.push(node);
                }
                match standing.parent {
                    // As most do: from something of the same session that came before it.
                    Some((session, handle)) if self.is_before(*member, index, session, handle) => {
                        let parent = self.line(Place { table: member.0, index: handle.index }).node;
                        self.tree.link(node, parent);
                    }
                    Some(parent) => later.push((node, parent)),
                    None => {}
                }
            }
        }
        let sessions: HashMap<SessionId, Member> =
            ledgers.iter().map(|(member, _)| (self.tables[member.0 as usize].session, *member)).collect();
        for (node, (session, handle)) in later {
            let parent = sessions.get(&session).and_then(|member| self.node_of(*member, handle));
            // A ledger that makes a circle of them is wrong: what would close it has no parent.
            match parent.filter(|parent| self.tree.ancestors(*parent).all(|(above, _)| above != node)) {
                Some(parent) => self.tree.link(node, parent),
                None => doomed.push(node),
            }
        }
        self.recount(&nodes);
        // The service holds every object that an entry was granted for.
        let is_unnamed = |node: &&u32| self.tree.get(**node).copies == 0;
        let unnamed = nodes.kept.iter().filter(is_unnamed).map(|node| {
            let place = self.tree.get(*node).place;
            Gone { member: Member(place.table), grant: self.line(place).grant }
        });
        let mut gone: Vec<Gone> = unnamed.collect();
        for node in doomed {
            self.prune(node, &mut gone);
        }
        for (member, by) in lent {
            if self.is_there(*member, *by) {
                self.lent(*member, by.index);
            }
        }
        for (member, entries) in ledgers {
            for index in 0..entries.len() as u32 {
                self.settle(Place { table: member.0, index });
            }
        }
        gone
    }

    /// Whether `handle` of `session` names an entry of this member's that has been entered, at an index before this one.
    fn is_before(&self, member: Member, index: u32, session: SessionId, handle: Handle) -> bool {
        let table = &self.tables[member.0 as usize];
        handle.index < index && table.session == session && table.lines[handle.index as usize].is(handle)
    }

    /// The node of the entry that `handle` names, whoever holds it.
    fn node_of(&self, member: Member, handle: Handle) -> Option<u32> {
        let line = self.tables[member.0 as usize].lines.get(handle.index as usize)?;
        line.is(handle).then_some(line.node)
    }

    /// Counts copies and limits of entries that were restored.
    fn recount(&mut self, entered: &Entered) {
        for node in &entered.held_copies {
            if let Some(origin) = self.origin(*node) {
                self.tree.get_mut(origin).copies += 1;
            }
        }
        if self.tree.has_limits() {
            entered.nodes.iter().for_each(|node| self.tree.get_mut(*node).derived = 0);
            for node in &entered.nodes {
                let above: Vec<u32> = self.tree.ancestors(*node).skip(1).map(|(node, _)| node).collect();
                above.into_iter().for_each(|node| self.tree.get_mut(node).derived += 1);
            }
        }
    }

    /// Takes a whole subtree out, at once.
    pub(super) fn prune(&mut self, node: u32, gone: &mut Vec<Gone>) {
        let place = self.tree.get(node).place;
        // It may have gone with something above it.
        let is_there = |line: &Line| line.state != State::Free && line.node == node;
        if !self.tables[place.table as usize].lines.get(place.index as usize).is_some_and(is_there) {
            return;
        }
        let mut at = node;
        loop {
            let first = self.tree.get(at).first_child;
            if first != NONE {
                at = first;
                continue;
            }
            let parent = self.take_out_revoked(at, gone);
            if at == node {
                return;
            }
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use crate::rights::Rights;

    const SESSION: SessionId = SessionId(7);

    /// An entry derived from that of another index.
    fn derived(from: u32) -> Restored {
        let handle = Handle { index: from, generation: 1 };
        let standing = Standing { parent: Some((SESSION, handle)), ..Standing::FIRST };
        Restored { generation: 1, entry: Some((grant(u64::from(from)), standing)) }
    }

    fn grant(n: u64) -> Grant {
        Grant { object: [n, 0], kind: 1, rights: Rights::READ, badge: 0 }
    }

    #[test]
    fn whatever_parents_a_ledger_names_what_has_none_in_the_end_is_dropped() {
        let first = Restored { generation: 1, entry: Some((grant(9), Standing::FIRST)) };
        // 1 and 2 hang on the first; 3 on 4 and 4 on 2, which came before it; 5, 6 and 7 on each other; 8 on itself; 9 on nobody.
        let entries = [first, derived(0), derived(1), derived(4), derived(2), derived(6), derived(7), derived(5)];
        let entries: Vec<Restored> = entries.into_iter().chain([derived(8), derived(100)]).collect();
        let mut realm = Realm::default();
        let member = realm.join(SESSION, 64, None);
        let gone = realm.restore(&[(member, &entries)], &[]);
        let mut gone: Vec<u64> = gone.iter().map(|gone| gone.grant.object[0]).collect();
        gone.sort_unstable();
        assert_eq!(gone, [5, 6, 7, 8, 100], "what the service granted for them is dropped, once each");
        for (index, is_there) in (0..10).zip([true, true, true, true, true, false, false, false, false, false]) {
            let found = realm.inspect(member, Handle { index, generation: 1 });
            assert_eq!(found.err(), (!is_there).then_some(Cause::StaleHandle), "{index}");
        }
    }
}
