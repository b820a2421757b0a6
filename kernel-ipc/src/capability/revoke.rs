//! Ending what was derived from a capability, in bounded steps.
//!
//! ```text
//! Marking::of / of_ended   the first mark: from here on look-ups below it are refused, what is derived is born revoked
//! Marking::step …          a mark on each entry, and in its ledger; notes where calls are in progress and leases out
//! Marked::is_quiet         those calls have been answered          (leases are taken back by the sessions' host)
//! Sweep::step …            takes the entries out, children first
//! ```
//!
//! * One marking or sweep runs at a time over a realm; whoever runs them waits for its turn. So nobody else takes a revoked
//!   entry out, and a cursor that stands on one is good in the next turn.
//! * Marking ends: nothing unmarked comes in below the first mark, because derivation looks at every ancestor meanwhile.
//! * A revoke waits only for calls on entries below its own target, so two never wait for each other.

use super::realm::{Gone, Member, Realm};
use super::table::State;
use super::tree::{NONE, Place};
use crate::wire::Handle;

/// An entry by its node, and which derivation it was: never another one's.
#[derive(Clone, Copy, Debug)]
struct Name {
    node: u32,
    born: u64,
}

/// What a marking found.
#[derive(Debug, Default)]
pub struct Marked {
    /// Entries that clients held and that are revoked now.
    pub revoked: u64,
    /// Calls that were in progress on them; one that names several counts for each.
    pub calls: u64,
    /// Entries with calls that have not been answered.
    busy: Vec<Name>,
    /// Entries by which leases are out, or may come by those calls.
    lending: Vec<Name>,
    /// The entries below which everything is marked, they included.
    tops: Vec<Name>,
}

impl Marked {
    /// Whether every call on them has been answered.
    pub fn is_quiet(&mut self, realm: &Realm) -> bool {
        self.busy.retain(|name| realm.place(*name).is_some_and(|place| realm.line(place).in_flight > 0));
        self.busy.is_empty()
    }

    /// The entries with calls that have not been answered yet.
    pub fn busy(&self, realm: &Realm) -> Vec<(Member, u32)> {
        let places = self.busy.iter().filter_map(|name| realm.place(*name));
        places.map(|place| (Member(place.table), place.index)).collect()
    }

    /// How many calls on them have not been answered yet.
    pub fn calls_left(&self, realm: &Realm) -> u64 {
        let places = self.busy.iter().filter_map(|name| realm.place(*name));
        places.map(|place| u64::from(realm.line(place).in_flight)).sum()
    }

    /// The next entry by which leases are out.
    pub fn next_lending(&mut self, realm: &Realm) -> Option<(Member, u32)> {
        loop {
            let place = realm.place(self.lending.pop()?);
            if let Some(place) = place.filter(|place| realm.line(*place).leases > 0) {
                return Some((Member(place.table), place.index));
            }
        }
    }

    /// Takes the entries out. When all is [quiet](Self::is_quiet), and leases have been taken back.
    pub fn sweep(self) -> Sweep {
        Sweep { tops: self.tops, top: NONE, at: NONE }
    }
}

/// A subtree that is being marked.
#[derive(Debug)]
pub struct Marking {
    /// Its number: what has been seen by it.
    number: u32,
    /// Entries that are revoked and below which is still to be marked.
    left: Vec<Name>,
    /// The children of this entry, which is pinned meanwhile: its node, and where it is.
    below: Option<(u32, Place)>,
    top: u32,
    /// The last that was marked.
    at: u32,
    found: Marked,
}

impl Marking {
    /// Begins to revoke an entry and all that was derived from it; `derived_only`: without the entry itself, unless it is
    /// revoked already. From now on look-ups are refused. `None`: the client holds nothing by that handle any more.
    pub fn of(realm: &mut Realm, member: Member, handle: Handle, derived_only: bool) -> Option<Marking> {
        let line = realm.tables.get(member.0 as usize)?.held(handle)?;
        let (state, node) = (line.state, line.node);
        let place = Place { table: member.0, index: handle.index };
        let mut marking = Marking::new(realm);
        realm.marking += 1;
        if derived_only && state == State::Live && !realm.is_doomed(node) {
            realm.tree.cut(node);
            marking.below = Some((node, place));
            // At once: what is derived from now on comes before it, and is not meant.
            match marking.next_top(realm) {
                Some(first) => {
                    realm.begun(member, handle.index);
                    marking.visit(realm, first);
                }
                None => marking.below = None,
            }
        } else {
            // Before anything else, and in the ledger: whatever happens, it stays so.
            if realm.mark(place) {
                marking.found.revoked = 1;
            }
            marking.left.push(realm.name(node));
        }
        Some(marking)
    }

    /// Begins to revoke what a session that has [ended](Realm::leave) had given to others.
    pub fn of_ended(realm: &mut Realm, member: Member) -> Marking {
        let mut marking = Marking::new(realm);
        for line in realm.tables[member.0 as usize].lines.iter().filter(|line| line.state != State::Free) {
            let parent = realm.tree.get(line.node).parent;
            if parent == NONE || realm.tree.get(parent).place.table != member.0 {
                marking.left.push(realm.name(line.node));
            }
        }
        marking
    }

    fn new(realm: &mut Realm) -> Marking {
        let number = realm.tree.next_marking();
        Marking { number, left: Vec::new(), below: None, top: NONE, at: NONE, found: Marked::default() }
    }

    /// Marks at most `steps` entries more. Gives what was found, once, when everything is marked.
    pub fn step(&mut self, realm: &mut Realm, steps: u32) -> Option<Marked> {
        for _ in 0..steps {
            let Some(next) = self.next(realm) else {
                realm.marking -= 1;
                if let Some((_, place)) = self.below {
                    realm.ended(Member(place.table), place.index);
                }
                return Some(std::mem::take(&mut self.found));
            };
            self.visit(realm, next);
        }
        None
    }

    /// The next entry: a child, else the next sibling of what we come from or of something above it. Going up undoes a way
    /// down that was a mark, so on the whole it costs no more than the marks; at once it is at most
    /// [`MAX_DEPTH`](super::MAX_DEPTH) steps.
    fn next(&mut self, realm: &Realm) -> Option<u32> {
        if self.at == NONE {
            return self.next_top(realm);
        }
        let first = realm.tree.get(self.at).first_child;
        if first != NONE {
            return Some(first);
        }
        while self.at != self.top {
            let node = realm.tree.get(self.at);
            if node.next != NONE {
                return Some(node.next);
            }
            self.at = node.parent;
        }
        self.next_top(realm)
    }

    fn next_top(&mut self, realm: &Realm) -> Option<u32> {
        let top = match self.below {
            Some((node, _)) if self.top == NONE => realm.tree.get(node).first_child,
            Some(_) => realm.tree.get(self.top).next,
            // What has been swept meanwhile, or was seen below another one, needs nothing.
            None => loop {
                let Some(name) = self.left.pop() else { break NONE };
                if realm.place(name).is_some() && realm.tree.get(name.node).seen != self.number {
                    break name.node;
                }
            },
        };
        if top == NONE {
            return None;
        }
        self.top = top;
        self.found.tops.push(realm.name(top));
        Some(top)
    }

    fn visit(&mut self, realm: &mut Realm, node: u32) {
        self.at = node;
        realm.tree.get_mut(node).seen = self.number;
        let place = realm.tree.get(node).place;
        if realm.mark(place) {
            self.found.revoked += 1;
        }
        let (name, line) = (realm.name(node), realm.line(place));
        if line.in_flight > 0 {
            self.found.calls += u64::from(line.in_flight);
            self.found.busy.push(name);
        }
        if line.in_flight > 0 || line.leases > 0 {
            self.found.lending.push(name);
        }
    }
}

/// A subtree that is taken out.
#[derive(Debug)]
pub struct Sweep {
    tops: Vec<Name>,
    top: u32,
    at: u32,
}

impl Sweep {
    /// Goes at most `steps` links on. Adds what is gone with the entries that were taken out. True: all are.
    pub fn step(&mut self, realm: &mut Realm, steps: u32, gone: &mut Vec<Gone>) -> bool {
        for _ in 0..steps {
            if self.at == NONE {
                let Some(name) = self.tops.pop() else { return true };
                if realm.place(name).is_some() {
                    (self.top, self.at) = (name.node, name.node);
                }
                continue;
            }
            let first = realm.tree.get(self.at).first_child;
            if first != NONE {
                self.at = first;
                continue;
            }
            let parent = realm.take_out_revoked(self.at, gone);
            if self.at != self.top {
                self.at = parent;
                continue;
            }
            self.at = NONE;
            if parent != NONE {
                realm.settle(realm.tree.get(parent).place);
            }
        }
        false
    }
}

impl Realm {
    /// Revokes one entry, in its ledger too. True: its client held it, and could use it.
    fn mark(&mut self, place: Place) -> bool {
        let line = self.line_mut(place);
        let before = line.state;
        line.state = before.revoked();
        let after = line.state;
        if before != after
            && let Some(ledger) = &self.tables[place.table as usize].ledger
            && after != State::PromisedRevoked
        {
            ledger.amend(self.handle(place), after);
        }
        before == State::Live
    }

    fn name(&self, node: u32) -> Name {
        Name { node, born: self.tree.get(node).born }
    }

    /// Where the entry is, if it is there.
    fn place(&self, name: Name) -> Option<Place> {
        let node = self.tree.get(name.node);
        (node.born == name.born).then_some(node.place)
    }
}
