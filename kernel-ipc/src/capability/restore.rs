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

impl Realm {
    /// Enters what the ledgers of sessions say, all at once: what one has from another is found only so. What was derived from
    /// something that is not there is revoked; everything revoked is gone afterwards. Says what the services of the sessions
    /// have to drop. `lent` are the entries by which leases came that are out still, once for each: those that are
    /// [there](Self::is_there) afterwards stay until it has come back. O(entries × depth + leases).
    pub fn restore(&mut self, ledgers: &[(Member, &[Restored])], lent: &[(Member, Handle)]) -> Vec<Gone> {
        let count = |entries: &[Restored]| entries.iter().filter(|restored| restored.entry.is_some()).count();
        let mut nodes = Vec::with_capacity(ledgers.iter().map(|(_, entries)| count(entries)).sum());
        self.tree.reserve(nodes.capacity());
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
                nodes.push(node);
                let held = !matches!(standing.state, State::Kept | State::KeptRevoked);
                let copies = u32::from(held && !standing.is_copy);
                self.tree.get_mut(node).copies = copies;
            }
        }
        let sessions: HashMap<SessionId, Member> =
            ledgers.iter().map(|(member, _)| (self.tables[member.0 as usize].session, *member)).collect();
        let mut doomed = Vec::new();
        for (member, entries) in ledgers {
            for (restored, index) in entries.iter().zip(0u32..) {
                let Some((_, standing)) = restored.entry else { continue };
                let node = self.line(Place { table: member.0, index }).node;
                let find = |(session, handle)| self.node_of(*sessions.get(&session)?, handle);
                match standing.parent.map(find) {
                    Some(Some(parent)) if parent != node => self.tree.link(node, parent),
                    Some(_) => doomed.push(node),
                    None => {}
                }
                if standing.state.is_revoked() {
                    doomed.push(node);
                }
            }
        }
        self.recount(nodes.iter().copied());
        // The service holds every object that an entry was granted for.
        let is_unnamed =
            |node: &u32| self.tree.get(*node).copies == 0 && !self.line(self.tree.get(*node).place).is_copy;
        let unnamed = nodes.iter().copied().filter(is_unnamed).map(|node| {
            let place = self.tree.get(node).place;
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

    /// The node of the entry that `handle` names, whoever holds it.
    fn node_of(&self, member: Member, handle: Handle) -> Option<u32> {
        let line = self.tables[member.0 as usize].lines.get(handle.index as usize)?;
        (line.state != State::Free && line.generation == handle.generation).then_some(line.node)
    }

    /// Counts copies and limits of entries that were restored.
    fn recount(&mut self, nodes: impl Iterator<Item = u32> + Clone) {
        for node in nodes.clone() {
            let line = self.line(self.tree.get(node).place);
            if line.is_copy {
                let held = !matches!(line.state, State::Kept | State::KeptRevoked);
                if let Some(origin) = self.origin(node) {
                    self.tree.get_mut(origin).copies += u32::from(held);
                }
            }
        }
        if self.tree.has_limits() {
            nodes.clone().for_each(|node| self.tree.get_mut(node).derived = 0);
            for node in nodes {
                let above: Vec<u32> = self.tree.ancestors(node).skip(1).map(|(node, _)| node).collect();
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
