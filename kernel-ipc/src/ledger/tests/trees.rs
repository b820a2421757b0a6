//! Hosts that die between any two stores of a mint, a release, a revoke, or of giving something to another session: what the
//! next incarnation finds of the derivation tree.

use std::rc::Rc;

use super::*;
use crate::capability::{Gone, Marking, Member, Realm, Terms};
use crate::error::Cause;

const OTHER: SessionId = SessionId(8);
const TAG: Tag = Tag::Session;

/// Two sessions of one service, and their ledgers.
struct Host {
    realm: Realm,
    ledgers: [Rc<SessionLedger<Mortal>>; 2],
    members: [Member; 2],
}

fn terms(rights: Rights) -> Terms {
    Terms { rights, ..Terms::default() }
}

impl Host {
    fn new(memory: &[Mortal; 2]) -> Host {
        let ledger = |n: usize, session| {
            Rc::new(SessionLedger::create(memory[n].clone(), session, SHAPE, QUOTA, ROOT).expect("fresh"))
        };
        let ledgers = [ledger(0, SESSION), ledger(1, OTHER)];
        let mut realm = Realm::default();
        let members = [(SESSION, 0), (OTHER, 1)].map(|(session, n)| {
            let member = realm.join(session, QUOTA, Some(ledgers[n].clone()));
            realm.first(member, grant(n as u64 + 1)).expect("room");
            member
        });
        Host { realm, ledgers, members }
    }

    /// The next incarnation, and what it hears is gone.
    fn after(memory: &[Mortal; 2]) -> (Host, Vec<Gone>) {
        let recover = |n: usize, session| {
            SessionLedger::recover(memory[n].inherited(), session, |_| 0).expect("what a dead host leaves makes sense")
        };
        let ((one, ours), (other, theirs)) = (recover(0, SESSION), recover(1, OTHER));
        let ledgers = [Rc::new(one), Rc::new(other)];
        let mut realm = Realm::default();
        let members = [(SESSION, 0), (OTHER, 1)].map(|(id, n)| realm.join(id, QUOTA, Some(ledgers[n].clone())));
        let gone = realm.restore(&[(members[0], &ours.entries), (members[1], &theirs.entries)], &[]);
        (Host { realm, ledgers, members }, gone)
    }

    /// The objects that a session can use, with their rights, in order of index.
    fn usable(&self, n: usize) -> Vec<(u64, Rights)> {
        let held = self.realm.held(self.members[n]);
        let usable =
            held.filter(|(handle, _)| self.realm.lookup(self.members[n], *handle, 0, Rights::empty(), || 0).is_ok());
        usable.map(|(_, grant)| (grant.object[0], grant.rights)).collect()
    }

    fn mint(&mut self, source: Handle) -> Handle {
        self.realm.mint(self.members[0], source.index, terms(Rights::READ), TAG).expect("room")
    }

    fn give(&mut self, source: Handle) -> Handle {
        let [giver, receiver] = self.members;
        let promise = self.realm.promise(giver, source.index, terms(Rights::READ)).expect("room");
        self.realm.fulfil(giver, promise, 0, receiver, TAG).expect("room")
    }

    fn revoke(&mut self, handle: Handle, derived_only: bool) -> u64 {
        let marking = Marking::of(&mut self.realm, self.members[0], handle, derived_only);
        let Some(mut marking) = marking else { return 0 };
        let marked = loop {
            if let Some(marked) = marking.step(&mut self.realm, 1) {
                break marked;
            }
        };
        let revoked = marked.revoked;
        let mut sweep = marked.sweep();
        while !sweep.step(&mut self.realm, 1, &mut Vec::new()) {}
        revoked
    }
}

/// Lets a host `prepare`, then die after any number of the stores of `act`, and looks at what the next one finds.
fn at_each_death<T: Copy>(
    prepare: impl Fn(&mut Host) -> T,
    act: impl Fn(&mut Host, T),
    mut look: impl FnMut(u64, u64, &mut Host, T),
) {
    let run = |dies_after| {
        let first = Mortal::new(1 << 16);
        let memory = [first.clone(), first.beside(1 << 16)];
        let mut host = Host::new(&memory);
        let prepared = prepare(&mut host);
        let before = first.stores();
        first.dies_after(dies_after);
        act(&mut host, prepared);
        let stores = first.stores() - before;
        (Host::after(&memory).0, prepared, stores)
    };
    let (_, _, stores) = run(u64::MAX);
    assert!(stores > 0);
    for dies_after in 0..=stores {
        let (mut next, prepared, _) = run(dies_after);
        look(dies_after, stores, &mut next, prepared);
    }
}

#[test]
fn a_mint_is_there_when_its_call_is_done_and_not_before() {
    let prepare = |_: &mut Host| ();
    let act = |host: &mut Host, ()| {
        host.ledgers[0].begin(0, 1, 9, Retry::Cached);
        let wish = Terms { badge: None, expires: 77, limit: Some(3), ..terms(Rights::READ) };
        let tag = Tag::Call { slot: 0, seq: 1 };
        let minted = host.realm.mint(host.members[0], ROOT.index, wish, tag).expect("room");
        let handle = minted.to_word().to_le_bytes();
        assert!(host.ledgers[0].prepare(ROOT, &completion(0, 1, 1, b""), &[&handle]));
        host.ledgers[0].done(0, 1);
    };
    let mut seen = [0, 0];
    at_each_death(prepare, act, |dies_after, stores, next, ()| {
        let usable = next.usable(0);
        assert_eq!(usable.len(), if dies_after == stores { 2 } else { 1 }, "died after {dies_after}");
        seen[usable.len() - 1] += 1;
        assert_eq!(next.realm.charged(next.members[0]) as usize, usable.len());
        if let [_, minted] = usable[..] {
            assert_eq!(minted, (1, Rights::READ));
            let found = next.realm.held(next.members[0]).last().map(|(handle, _)| handle).expect("two");
            let found = next.realm.inspect(next.members[0], found).expect("held");
            assert_eq!((found.expires, found.limit, found.badge), (77, Some((3, 0)), grant(1).badge));
        }
    });
    assert!(seen[0] > 10 && seen[1] == 1, "{seen:?}");
}

#[test]
fn what_was_derived_from_something_that_was_given_back_is_still_below_what_that_came_from() {
    let prepare = |host: &mut Host| {
        let [dir, other] = [host.mint(ROOT), host.mint(ROOT)];
        let middle = host.mint(dir);
        let file = host.mint(middle);
        [dir, other, middle, file]
    };
    let act = |host: &mut Host, [_, _, middle, _]: [Handle; 4]| {
        host.realm.release(host.members[0], middle).expect("held");
    };
    at_each_death(prepare, act, |dies_after, _, next, [dir, other, _, file]| {
        let alive = |next: &Host, handle| next.realm.lookup(next.members[0], handle, 0, Rights::READ, || 0).map(drop);
        assert!(alive(next, file).is_ok(), "died after {dies_after}");
        next.revoke(dir, false);
        assert_eq!(alive(next, file), Err(Cause::StaleHandle), "died after {dies_after}");
        assert!(alive(next, other).is_ok());
    });
}

#[test]
fn a_revoke_that_is_cut_short_is_finished_by_the_next_host() {
    let prepare = |host: &mut Host| {
        let [dir, other] = [host.mint(ROOT), host.mint(ROOT)];
        let below = host.mint(dir);
        let kept = host.mint(dir);
        host.mint(kept);
        host.mint(kept);
        host.realm.release(host.members[0], kept).expect("held");
        host.give(below);
        (dir, other)
    };
    let mut seen = [0, 0];
    at_each_death(
        prepare,
        |host, (dir, _)| assert!(host.revoke(dir, false) > 0),
        |dies_after, _, next, (dir, other)| {
            let (usable, given) = (next.usable(0).len(), next.usable(1).len());
            assert!([(6, 2), (2, 1)].contains(&(usable, given)), "died after {dies_after}: {usable} {given}");
            seen[usize::from(usable == 2)] += 1;
            assert!(next.realm.lookup(next.members[0], other, 0, Rights::READ, || 0).is_ok());
            // The client asks again: it is done, or was.
            let again = next.revoke(dir, false);
            assert_eq!(again == 0, usable == 2, "died after {dies_after}");
            assert_eq!((next.usable(0).len(), next.usable(1).len()), (2, 1));
            assert_eq!(next.realm.charged(next.members[0]), 2, "died after {dies_after}");
        },
    );
    // The first store is the mark.
    assert!(seen[0] == 1 && seen[1] > 10, "{seen:?}");
}

#[test]
fn a_revoke_of_what_is_derived_can_be_asked_for_again() {
    let prepare = |host: &mut Host| {
        let dir = host.mint(ROOT);
        let below = [host.mint(dir), host.mint(dir)];
        host.mint(below[0]);
        host.give(below[1]);
        dir
    };
    at_each_death(
        prepare,
        |host, dir| assert!(host.revoke(dir, true) > 0),
        |dies_after, _, next, dir| {
            assert!(next.realm.lookup(next.members[0], dir, 0, Rights::READ, || 0).is_ok(), "died after {dies_after}");
            next.revoke(dir, true);
            assert_eq!((next.usable(0).len(), next.usable(1).len()), (2, 1), "died after {dies_after}");
        },
    );
}

#[test]
fn what_was_given_is_there_whole_or_not_and_below_what_it_was_given_from() {
    let prepare = |host: &mut Host| host.mint(ROOT);
    at_each_death(
        prepare,
        |host, dir| assert_eq!(host.give(dir).index, 1),
        |dies_after, _, next, dir| {
            let given = next.usable(1);
            assert!(given.len() == 1 || given[1] == (1, Rights::READ), "died after {dies_after}: {given:?}");
            next.revoke(dir, false);
            assert_eq!(next.usable(1), [(2, grant(2).rights)], "died after {dies_after}");
        },
    );
}

#[test]
fn what_came_from_a_session_that_is_lost_is_gone_and_the_service_is_not_told_of_it() {
    let first = Mortal::new(1 << 16);
    let memory = [first.clone(), first.beside(1 << 16)];
    let mut host = Host::new(&memory);
    let given = host.give(ROOT);
    let (_, theirs) = SessionLedger::recover(memory[1].inherited(), OTHER, |_| 0).expect("sound");
    assert!(theirs.entries[given.index as usize].entry.is_some());
    let mut realm = Realm::default();
    let member = realm.join(OTHER, QUOTA, None);
    assert_eq!(realm.restore(&[(member, &theirs.entries)], &[]), [], "it never held anything for this");
    assert_eq!(realm.charged(member), 1);
}

#[test]
fn the_next_host_hears_what_nobody_names_any_more() {
    let mut seen = [0; 3];
    for dies_after in 0..12 {
        let first = Mortal::new(1 << 16);
        let memory = [first.clone(), first.beside(1 << 16)];
        let mut host = Host::new(&memory);
        let file = host.realm.grant(host.members[0], ROOT.index, grant(5), TAG).expect("room");
        let copy = host.give(file);
        assert_eq!(host.realm.release(host.members[0], file), Ok(None));
        let (next, gone) = Host::after(&memory);
        assert_eq!((next.usable(1).len(), gone), (2, vec![]), "the copy names it");
        first.dies_after(dies_after);
        let gone = host.realm.release(host.members[1], copy).expect("held");
        assert_eq!(gone.map(|gone| gone.grant), Some(grant(5)));
        // What the next host's service holds by the ledger is named by somebody, or it hears that it is gone.
        let (_, ours) = SessionLedger::recover(memory[0].inherited(), SESSION, |_| 0).expect("sound");
        let holds =
            ours.entries.iter().filter(|entry| entry.entry.is_some_and(|(grant, _)| grant.object[0] == 5)).count();
        let (next, gone) = Host::after(&memory);
        let named = next.usable(1).len() - 1;
        assert_eq!(holds, named + gone.len(), "died after {dies_after}");
        seen[usize::from(holds == 0) + usize::from(named == 0)] += 1;
    }
    assert!(seen.iter().all(|seen| *seen > 0), "named, to be dropped, and gone: {seen:?}");
}
