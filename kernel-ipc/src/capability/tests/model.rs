//! The tree beside a model that keeps every derivation ever made and walks all of it.

use std::collections::HashMap;

use super::*;

/// An entry as the model knows it: for ever.
#[derive(Clone, Debug)]
struct Entry {
    member: usize,
    /// The session's number, and whether it is there.
    number: Member,
    has_left: bool,
    handle: Handle,
    parent: Option<usize>,
    is_copy: bool,
    limit: Option<u32>,
    grant: Grant,
    held: bool,
    promised: bool,
    revoked: bool,
    calls: u32,
}

/// A revoke that is under way, if one is.
enum Under {
    Way(Marking),
    Wait(Marked),
    Sweep(Sweep),
}

struct World {
    realm: Realm,
    members: Vec<Member>,
    next_session: u64,
    entries: Vec<Entry>,
    under: Option<Under>,
    /// How often the service must have heard, and has heard, that an object is gone, by its number.
    expected: HashMap<u64, u32>,
    heard: HashMap<u64, u32>,
}

const SESSIONS: usize = 3;

impl World {
    fn new() -> World {
        let mut world = World {
            realm: Realm::default(),
            members: Vec::new(),
            next_session: 1,
            entries: Vec::new(),
            under: None,
            expected: HashMap::new(),
            heard: HashMap::new(),
        };
        (0..SESSIONS).for_each(|session| world.join(session));
        world
    }

    fn join(&mut self, session: usize) {
        let member = self.realm.join(SessionId(self.next_session), 1 << 10, None);
        self.next_session += 1;
        if session == self.members.len() {
            self.members.push(member);
        }
        self.members[session] = member;
        let grant = self.fresh_grant();
        let handle = self.realm.first(member, grant).expect("room");
        self.add(session, handle, None, false, None, grant);
    }

    fn fresh_grant(&self) -> Grant {
        Grant { object: [self.entries.len() as u64, 0], kind: 1, rights: ALL, badge: 0 }
    }

    fn add(
        &mut self,
        member: usize,
        handle: Handle,
        parent: Option<usize>,
        is_copy: bool,
        limit: Option<u32>,
        grant: Grant,
    ) {
        let revoked = parent.is_some_and(|parent| self.entries[parent].revoked);
        self.entries.push(Entry {
            member,
            number: self.members[member],
            has_left: false,
            handle,
            parent,
            is_copy,
            limit,
            grant,
            held: true,
            promised: false,
            revoked,
            calls: 0,
        });
    }

    fn is_below(&self, mut entry: usize, above: usize) -> bool {
        while let Some(parent) = self.entries[entry].parent {
            if parent == above {
                return true;
            }
            entry = parent;
        }
        false
    }

    fn children(&self, of: usize) -> impl Iterator<Item = usize> {
        (0..self.entries.len()).filter(move |entry| self.entries[*entry].parent == Some(of))
    }

    fn origin(&self, mut entry: usize) -> usize {
        while self.entries[entry].is_copy {
            entry = self.entries[entry].parent.expect("a copy has a source");
        }
        entry
    }

    fn is_named(&self, origin: usize) -> bool {
        let names = |(n, entry): (usize, &Entry)| (entry.held || entry.promised) && self.origin(n) == origin;
        self.entries.iter().enumerate().any(names)
    }

    /// The uppermost entries that are there in the subtree of this one, itself included.
    fn tops(&self, entry: usize) -> Vec<usize> {
        let below: Vec<usize> = self.children(entry).flat_map(|child| self.tops(child)).collect();
        let this = &self.entries[entry];
        let stays = this.held
            || this.promised
            || this.calls > 0
            || below.len() > 1
            || (below.len() == 1 && (this.limit.is_some() || self.entries[below[0]].member != this.member))
            || (!this.is_copy && self.is_named(entry));
        if stays { vec![entry] } else { below }
    }

    /// Whether the entry is there.
    fn is_there(&self, entry: usize) -> bool {
        self.tops(entry) == [entry]
    }

    /// Whether one more may be derived from an entry.
    fn has_room(&self, parent: usize) -> bool {
        let above = (0..self.entries.len()).filter(|above| *above == parent || self.is_below(parent, *above));
        above.into_iter().all(|above| {
            let derived = (0..self.entries.len()).filter(|n| self.is_below(*n, above) && self.is_there(*n)).count();
            self.entries[above].limit.is_none_or(|limit| derived < limit as usize)
        })
    }

    fn usable(&self, n: usize) -> Option<usize> {
        let usable = |entry: &Entry| entry.held && !entry.revoked;
        let all: Vec<usize> = (0..self.entries.len()).filter(|n| usable(&self.entries[*n])).collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    /// An entry is nobody's any more.
    fn dropped(&mut self, entry: usize) {
        let origin = self.origin(entry);
        let was_named = self.is_named(origin);
        (self.entries[entry].held, self.entries[entry].promised) = (false, false);
        if was_named && !self.is_named(origin) {
            *self.expected.entry(self.entries[origin].grant.object[0]).or_default() += 1;
        }
    }

    fn hears(&mut self, gone: impl IntoIterator<Item = Gone>) {
        for gone in gone {
            *self.heard.entry(gone.grant.object[0]).or_default() += 1;
        }
    }

    /// Goes on with what is under way, by a few steps.
    fn pump(&mut self, steps: u32) {
        self.under = match self.under.take() {
            Some(Under::Way(mut marking)) => Some(match marking.step(&mut self.realm, steps) {
                Some(marked) => Under::Wait(marked),
                None => Under::Way(marking),
            }),
            Some(Under::Wait(mut marked)) => Some(match marked.is_quiet(&self.realm) {
                true => Under::Sweep(marked.sweep()),
                false => Under::Wait(marked),
            }),
            Some(Under::Sweep(mut sweep)) => {
                let mut gone = Vec::new();
                let done = sweep.step(&mut self.realm, steps, &mut gone);
                self.hears(gone);
                if done {
                    self.swept();
                }
                (!done).then_some(Under::Sweep(sweep))
            }
            None => None,
        };
    }

    fn swept(&mut self) {
        for n in 0..self.entries.len() {
            if self.entries[n].revoked {
                self.dropped(n);
            }
        }
    }

    fn finish(&mut self) {
        for n in 0..self.entries.len() {
            while self.entries[n].calls > 0 {
                self.end_call(n);
            }
        }
        while self.under.is_some() {
            self.pump(3);
        }
    }

    fn end_call(&mut self, n: usize) {
        self.entries[n].calls -= 1;
        let Entry { number, handle, .. } = self.entries[n];
        self.realm.ended(number, handle.index);
    }

    fn step(&mut self, (what, n, m): (u8, usize, u32)) -> Result<(), TestCaseError> {
        let Some(source) = self.usable(n) else { return Ok(()) };
        let Entry { member, handle, .. } = self.entries[source].clone();
        let number = self.members[member];
        // What is revoked and not yet taken out counts for limits until then.
        let is_quiet = self.under.is_none();
        let limit = (m % 4 == 0).then_some(m / 4 % 3);
        match what {
            0..3 => {
                let grant = self.fresh_grant();
                match self.realm.grant(number, handle.index, grant, tag()) {
                    Ok(handle) => {
                        prop_assert!(!is_quiet || self.has_room(source));
                        self.add(member, handle, Some(source), false, None, grant);
                    }
                    Err(Quota) => prop_assert!(!is_quiet || !self.has_room(source)),
                }
            }
            3..6 => {
                let terms = Terms { rights: ALL, limit, ..Terms::default() };
                match self.realm.mint(number, handle.index, terms, tag()) {
                    Ok(minted) => {
                        prop_assert!(!is_quiet || self.has_room(source));
                        self.add(member, minted, Some(source), true, limit, self.entries[source].grant);
                    }
                    Err(cause) => {
                        prop_assert_eq!(cause, Cause::Quota);
                        prop_assert!(!is_quiet || !self.has_room(source));
                    }
                }
            }
            6..8 => {
                let terms = Terms { rights: ALL, limit, ..Terms::default() };
                let to = m as usize % SESSIONS;
                if let Ok(promise) = self.realm.promise(number, handle.index, terms) {
                    let given = self.realm.fulfil(number, promise, 0, self.members[to], tag());
                    prop_assert!(given.is_ok(), "what was promised can be had: {:?}", given);
                    let given = given.expect("it is");
                    self.add(to, given, Some(source), true, limit, self.entries[source].grant);
                }
            }
            8..11 if self.entries[source].parent.is_some() => {
                self.dropped(source);
                let gone = self.realm.release(number, handle);
                prop_assert!(gone.is_ok());
                self.hears(gone.expect("it is held"));
            }
            11 => {
                self.realm.begun(number, handle.index);
                self.entries[source].calls += 1;
            }
            12 => {
                let busy: Vec<usize> = (0..self.entries.len()).filter(|n| self.entries[*n].calls > 0).collect();
                if !busy.is_empty() {
                    self.end_call(busy[n % busy.len()]);
                }
            }
            13 if is_quiet => {
                let derived_only = m % 2 == 0;
                let marking = Marking::of(&mut self.realm, number, handle, derived_only);
                self.under = Some(Under::Way(marking.expect("it is held")));
                for n in 0..self.entries.len() {
                    self.entries[n].revoked |= self.is_below(n, source) || (n == source && !derived_only);
                }
            }
            14 if is_quiet => {
                let (gone, gave) = self.realm.leave(number);
                self.hears(gone);
                for n in 0..self.entries.len() {
                    if self.entries[n].member == member {
                        self.dropped(n);
                        self.entries[n].revoked = true;
                        self.entries[n].has_left = true;
                    }
                }
                for n in 0..self.entries.len() {
                    let above = self.entries[n].parent;
                    self.entries[n].revoked |= above.is_some_and(|above| self.entries[above].revoked);
                }
                if gave {
                    self.under = Some(Under::Way(Marking::of_ended(&mut self.realm, number)));
                }
                self.finish();
                self.join(member);
            }
            _ => self.pump(m % 3 + 1),
        }
        Ok(())
    }

    /// Everything that can be asked is as the model says.
    fn check(&self) -> Result<(), TestCaseError> {
        for (n, entry) in self.entries.iter().enumerate().filter(|(_, entry)| !entry.has_left) {
            let found = self.realm.lookup(entry.number, entry.handle, 1, ALL, never);
            if entry.held && !entry.revoked {
                prop_assert_eq!(found.copied(), Ok(entry.grant), "entry {}", n);
            } else if entry.held && !matches!(self.under, Some(Under::Sweep(_))) {
                prop_assert_eq!(found, Err(Cause::Revoked), "entry {}", n);
            } else {
                prop_assert!(found.is_err(), "entry {}", n);
            }
        }
        if self.under.is_none() {
            for (member, number) in self.members.iter().enumerate() {
                let there =
                    (0..self.entries.len()).filter(|n| self.entries[*n].member == member && self.is_there(*n)).count();
                prop_assert_eq!(self.realm.charged(*number) as usize, there, "session {}", member);
            }
            prop_assert_eq!(&self.heard, &self.expected);
        }
        Ok(())
    }
}

proptest! {
    /// Whatever is derived, given, released, called on and revoked, in whatever order and however far a revoke has got.
    #[test]
    fn the_tree_behaves_like_one_that_keeps_every_derivation(
        steps in prop::collection::vec((0u8..18, any::<usize>(), any::<u32>()), 1..60),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
            world.check()?;
        }
        world.finish();
        world.check()?;
        for n in 0..SESSIONS {
            let (gone, gave) = world.realm.leave(world.members[n]);
            drop(gone);
            if gave {
                world.under = Some(Under::Way(Marking::of_ended(&mut world.realm, world.members[n])));
                world.finish();
            }
        }
        prop_assert_eq!(world.realm.tree.len(), 0, "something is left");
    }
}
