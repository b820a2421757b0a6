//! The table as a map, one behaviour at a time; the tree beside a naive model in [`model`], a revoke beside
//! calls in [`turns`].

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::error::Cause;
use crate::id::SessionId;
use crate::ledger::Tag;
use crate::rights::Rights;
use crate::wire::Handle;

mod model;
mod turns;

const ALL: Rights = Rights::READ.union(Rights::WRITE);

fn grant(n: u64) -> Grant {
    Grant { object: [n, !n], kind: (n % 3) as u8 + 1, rights: ALL, badge: 0 }
}

/// A realm with one session, and its root.
fn realm(quota: u32) -> (Realm, Member, Handle) {
    let mut realm = Realm::default();
    let member = realm.join(SessionId(1), quota, None);
    let root = realm.first(member, grant(0)).expect("room");
    (realm, member, root)
}

fn tag() -> Tag {
    Tag::Call { slot: 0, seq: 1 }
}

fn never() -> u64 {
    panic!("the clock is asked only about what expires")
}

fn terms(rights: Rights) -> Terms {
    Terms { rights, ..Terms::default() }
}

/// Revokes at once.
fn revoke(realm: &mut Realm, member: Member, handle: Handle, derived_only: bool) -> (u64, Vec<Gone>) {
    let mut marking = Marking::of(realm, member, handle, derived_only).expect("it is held");
    let marked = loop {
        if let Some(marked) = marking.step(realm, 1) {
            break marked;
        }
    };
    let revoked = marked.revoked;
    let (mut sweep, mut gone) = (marked.sweep(), Vec::new());
    while !sweep.step(realm, 1, &mut gone) {}
    (revoked, gone)
}

#[test]
fn a_handle_finds_what_was_granted_and_nothing_else_does() {
    let (mut realm, me, root) = realm(8);
    let handle = realm.grant(me, root.index, grant(3), tag()).expect("below the quota");
    assert_eq!(realm.lookup(me, handle, 1, Rights::READ, never), Ok(&grant(3)));
    assert_eq!(realm.lookup(me, handle, 0, Rights::READ, never), Ok(&grant(3)));
    let next = Handle { generation: handle.generation + 1, ..handle };
    let beyond = Handle { index: handle.index + 1, ..handle };
    for wrong in [Handle::default(), next, beyond, Handle { index: u32::MAX, generation: u32::MAX }] {
        assert_eq!(realm.lookup(me, wrong, 0, Rights::empty(), never), Err(Cause::StaleHandle), "{wrong:?}");
    }
}

#[test]
fn a_wrong_kind_and_a_missing_right_are_refused_with_their_own_causes() {
    let (mut realm, me, root) = realm(8);
    let handle = realm.grant(me, root.index, grant(1), tag()).expect("below the quota");
    assert_eq!(realm.lookup(me, handle, 3, Rights::READ, never), Err(Cause::WrongKind));
    assert_eq!(realm.lookup(me, handle, 2, Rights::READ | Rights::MAP, never), Err(Cause::RightsMissing));
    // The kind comes first: a caller learns nothing about rights on an object that its operation does not take.
    assert_eq!(realm.lookup(me, handle, 3, Rights::MAP, never), Err(Cause::WrongKind));
}

#[test]
fn a_minted_one_has_fewer_rights_and_a_badge_that_is_set_once() {
    let (mut realm, me, root) = realm(8);
    let more = terms(ALL | Rights::MAP);
    assert_eq!(realm.mint(me, root.index, more, tag()), Err(Cause::RightsExceeded));
    let badged = Terms { badge: Some(7), ..terms(Rights::READ) };
    let badged = realm.mint(me, root.index, badged, tag()).expect("a subset");
    let found = *realm.lookup(me, badged, 1, Rights::READ, never).expect("live");
    assert_eq!(found, Grant { rights: Rights::READ, badge: 7, ..grant(0) });
    assert_eq!(realm.lookup(me, badged, 1, Rights::WRITE, never), Err(Cause::RightsMissing));
    let again = Terms { badge: Some(8), ..terms(Rights::READ) };
    assert_eq!(realm.mint(me, badged.index, again, tag()), Err(Cause::BadgeSet));
    assert_eq!(realm.mint(me, badged.index, terms(ALL), tag()), Err(Cause::RightsExceeded));
    let heir = realm.mint(me, badged.index, terms(Rights::READ), tag()).expect("the same");
    assert_eq!(realm.inspect(me, heir).expect("held").badge, 7);
    assert_eq!(realm.inspect(me, root).expect("held").derived, 1);
}

#[test]
fn what_expires_takes_what_was_derived_with_it_and_is_released_as_any() {
    let (mut realm, me, root) = realm(8);
    let until = |expires| Terms { expires, ..terms(ALL) };
    let short = realm.mint(me, root.index, until(100), tag()).expect("room");
    let longer = realm.mint(me, short.index, until(200), tag()).expect("room");
    let sooner = realm.mint(me, short.index, until(50), tag()).expect("room");
    let opened = realm.grant(me, short.index, grant(2), tag()).expect("room");
    for (handle, expires) in [(short, 100), (longer, 100), (sooner, 50), (opened, 100)] {
        assert!(realm.lookup(me, handle, 0, ALL, || expires - 1).is_ok());
        assert_eq!(realm.lookup(me, handle, 0, ALL, || expires), Err(Cause::Expired));
        assert!(realm.release(me, handle).is_ok());
    }
}

#[test]
fn a_limit_counts_what_is_derived_at_any_distance_and_stays_when_it_is_given_back() {
    let (mut realm, me, root) = realm(8);
    let two = Terms { limit: Some(2), ..terms(ALL) };
    let limited = realm.mint(me, root.index, two, tag()).expect("room");
    let child = realm.mint(me, limited.index, terms(ALL), tag()).expect("the first");
    let grandchild = realm.grant(me, child.index, grant(5), tag()).expect("the second");
    assert_eq!(realm.grant(me, grandchild.index, grant(6), tag()), Err(Quota));
    assert_eq!(realm.inspect(me, limited).expect("held").limit, Some((2, 2)));
    realm.release(me, limited).expect("held");
    assert_eq!(realm.grant(me, grandchild.index, grant(6), tag()), Err(Quota));
    realm.release(me, grandchild).expect("held");
    realm.grant(me, child.index, grant(6), tag()).expect("one has gone");
    let none = Terms { limit: Some(0), ..terms(ALL) };
    let barren = realm.mint(me, root.index, none, tag()).expect("room");
    assert_eq!(realm.mint(me, barren.index, terms(ALL), tag()), Err(Cause::Quota));
}

#[test]
fn a_chain_of_derivations_is_bounded() {
    let (mut realm, me, root) = realm(4 * MAX_DEPTH);
    let mut last = root;
    for _ in 1..MAX_DEPTH {
        last = realm.mint(me, last.index, terms(ALL), tag()).expect("not too deep");
    }
    assert_eq!(realm.mint(me, last.index, terms(ALL), tag()), Err(Cause::Quota));
    // The deepest can still be found while something is revoked, and everything can be revoked.
    assert_eq!(revoke(&mut realm, me, root, true).0, u64::from(MAX_DEPTH) - 1);
    assert_eq!(realm.charged(me), 1);
}

#[test]
fn a_chain_whose_links_are_given_back_can_go_on_for_ever() {
    let (mut realm, me, root) = realm(4);
    let mut last = realm.mint(me, root.index, terms(ALL), tag()).expect("room");
    for _ in 0..2 * MAX_DEPTH {
        let next = realm.mint(me, last.index, terms(ALL), tag()).expect("room");
        realm.release(me, last).expect("held");
        last = next;
    }
    assert_eq!((realm.charged(me), revoke(&mut realm, me, root, false).0), (2, 2));
}

#[test]
fn the_service_hears_once_that_what_it_granted_is_gone() {
    let (mut realm, me, root) = realm(8);
    let file = realm.grant(me, root.index, grant(4), tag()).expect("room");
    let copy = realm.mint(me, file.index, terms(Rights::READ), tag()).expect("room");
    let other = realm.mint(me, copy.index, terms(Rights::READ), tag()).expect("room");
    assert_eq!(realm.release(me, file), Ok(None));
    assert_eq!(realm.release(me, copy), Ok(None));
    assert_eq!(realm.release(me, other), Ok(Some(Gone { member: me, grant: grant(4) })));
    assert_eq!(realm.charged(me), 1);
}

#[test]
fn an_entry_stays_for_a_call_in_progress_and_for_a_lease() {
    let (mut realm, me, root) = realm(8);
    let file = realm.grant(me, root.index, grant(4), tag()).expect("room");
    realm.begun(me, file.index);
    realm.lent(me, file.index);
    assert!(realm.release(me, file).is_ok());
    assert_eq!(realm.lookup(me, file, 0, ALL, never), Err(Cause::StaleHandle));
    assert!(realm.ended(me, file.index), "somebody may wait");
    assert_eq!(realm.charged(me), 2);
    realm.came_back(me, file.index);
    assert_eq!(realm.charged(me), 1);
}

#[test]
fn a_revoke_finds_calls_below_it_and_only_those() {
    let (mut realm, me, root) = realm(8);
    let dir = realm.grant(me, root.index, grant(1), tag()).expect("room");
    let file = realm.grant(me, dir.index, grant(2), tag()).expect("room");
    realm.begun(me, root.index);
    realm.begun(me, file.index);
    let mut marking = Marking::of(&mut realm, me, dir, false).expect("held");
    for refused in [dir, file] {
        assert_eq!(realm.lookup(me, refused, 0, ALL, never), Err(Cause::Revoked), "at once");
    }
    assert!(realm.lookup(me, root, 0, ALL, never).is_ok());
    // The answer to the call grants something: it is born revoked.
    let born = realm.grant(me, file.index, grant(3), tag()).expect("room");
    assert_eq!(realm.lookup(me, born, 0, ALL, never), Err(Cause::Revoked));
    let mut marked = marking.step(&mut realm, 10).expect("three entries");
    assert_eq!((marked.revoked, marked.calls, marked.calls_left(&realm)), (2, 1, 1));
    assert_eq!(marked.busy(&realm), [(me, file.index)]);
    assert!(!marked.is_quiet(&realm));
    realm.ended(me, file.index);
    assert!(marked.is_quiet(&realm));
    let (mut sweep, mut gone) = (marked.sweep(), Vec::new());
    assert!(sweep.step(&mut realm, 100, &mut gone));
    assert_eq!(gone.len(), 3);
    assert_eq!(realm.lookup(me, dir, 0, ALL, never), Err(Cause::StaleHandle));
    assert_eq!(realm.charged(me), 1);
}

#[test]
fn revoking_what_is_derived_leaves_the_capability_and_what_is_derived_anew() {
    let (mut realm, me, root) = realm(8);
    let dir = realm.grant(me, root.index, grant(1), tag()).expect("room");
    let old = [0; 3].map(|_| realm.mint(me, dir.index, terms(ALL), tag()).expect("room"));
    let mut marking = Marking::of(&mut realm, me, dir, true).expect("held");
    assert!(old.iter().all(|old| realm.lookup(me, *old, 0, ALL, never) == Err(Cause::Revoked)), "at once");
    let new = realm.mint(me, dir.index, terms(ALL), tag()).expect("room");
    let marked = marking.step(&mut realm, 10).expect("three");
    assert_eq!(marked.revoked, 3);
    assert!(marked.sweep().step(&mut realm, 100, &mut Vec::new()));
    for live in [dir, new] {
        assert!(realm.lookup(me, live, 0, ALL, never).is_ok());
    }
    assert_eq!(realm.charged(me), 3);
}

#[test]
fn a_promise_is_kept_once_and_by_revoke_not_at_all() {
    let (mut realm, giver, root) = realm(8);
    let receiver = realm.join(SessionId(2), 8, None);
    realm.first(receiver, grant(9)).expect("room");
    let promise = realm.promise(giver, root.index, terms(Rights::READ)).expect("room");
    assert_eq!(realm.lookup(giver, promise, 0, Rights::READ, never), Err(Cause::StaleHandle));
    assert_eq!(realm.release(giver, promise), Err(Cause::StaleHandle));
    assert_eq!(realm.fulfil(giver, promise, 2, receiver, tag()), Err(Cause::WrongKind));
    let given = realm.fulfil(giver, promise, 1, receiver, tag()).expect("room");
    assert_eq!(realm.fulfil(giver, promise, 0, receiver, tag()), Err(Cause::NoSuchTicket));
    assert!(realm.lookup(receiver, given, 1, Rights::READ, never).is_ok());
    let second = realm.promise(giver, root.index, terms(Rights::READ)).expect("room");
    let (revoked, gone) = revoke(&mut realm, giver, root, true);
    assert_eq!((revoked, gone), (1, vec![]), "a promise is nobody's yet");
    assert_eq!(realm.lookup(receiver, given, 1, Rights::READ, never), Err(Cause::StaleHandle));
    assert_eq!(realm.fulfil(giver, second, 0, receiver, tag()), Err(Cause::NoSuchTicket));
    assert_eq!((realm.charged(giver), realm.charged(receiver)), (1, 1));
}

#[test]
fn a_removed_handle_stays_stale_when_its_index_comes_back() {
    let (mut realm, me, root) = realm(2);
    let old = realm.grant(me, root.index, grant(1), tag()).expect("below the quota");
    assert!(realm.release(me, old).is_ok());
    assert_eq!(realm.release(me, old), Err(Cause::StaleHandle));
    let new = realm.grant(me, root.index, grant(2), tag()).expect("below the quota");
    assert_eq!(new.index, old.index);
    assert_eq!(realm.inspect(me, old), Err(Cause::StaleHandle));
    assert!(realm.inspect(me, new).is_ok());
}

#[test]
fn an_index_is_retired_at_its_last_generation() {
    let (mut realm, me, root) = realm(2);
    realm.tables[0].last_generation = 3;
    let mut seen = HashSet::new();
    for n in 0..20 {
        let handle = realm.grant(me, root.index, grant(n), tag()).expect("a retired index does not use up the quota");
        assert!(handle.generation <= 3);
        assert!(seen.insert(handle), "{handle:?} named two entries");
        realm.release(me, handle).expect("just inserted");
    }
}

#[test]
fn the_quota_bounds_what_is_held_at_a_time() {
    let (mut realm, me, root) = realm(3);
    let first = realm.grant(me, root.index, grant(1), tag()).expect("below the quota");
    realm.grant(me, root.index, grant(2), tag()).expect("below the quota");
    assert_eq!(realm.grant(me, root.index, grant(3), tag()), Err(Quota));
    realm.release(me, first).expect("live");
    realm.grant(me, root.index, grant(3), tag()).expect("one was removed");
    let nobody = realm.join(SessionId(2), 0, None);
    assert_eq!(realm.first(nobody, grant(1)), Err(Quota));
}

#[test]
fn a_sessions_number_comes_back_when_nothing_of_it_is_left() {
    let (mut realm, me, root) = realm(8);
    realm.begun(me, root.index);
    assert_eq!(realm.leave(me), (vec![Gone { member: me, grant: grant(0) }], false));
    let other = realm.join(SessionId(2), 8, None);
    assert_ne!(other, me);
    realm.ended(me, root.index);
    assert_eq!(realm.join(SessionId(3), 8, None), me);
}

proptest! {
    /// One session's table against a map from handles to grants, with generations so few that indices retire.
    #[test]
    fn the_table_behaves_like_a_map_whose_keys_never_repeat(
        quota in 1u32..8,
        last_generation in 1u32..5,
        steps in prop::collection::vec((0u8..4, any::<u16>(), 0u8..5, 0u32..16), 1..120),
    ) {
        let (mut realm, me, root) = realm(quota);
        realm.tables[0].last_generation = last_generation;
        let mut live: HashMap<Handle, Grant> = [(root, grant(0))].into();
        let mut ever: Vec<Handle> = vec![root];
        for (step, n, kind, bits) in steps {
            let handle = ever[usize::from(n) % ever.len()];
            match step {
                0 | 1 => match realm.grant(me, root.index, grant(n.into()), tag()) {
                    Ok(handle) => {
                        prop_assert!(live.len() < quota as usize);
                        prop_assert!(!ever.contains(&handle), "{:?} named two entries", handle);
                        prop_assert!(handle.generation != 0 && handle.generation <= last_generation);
                        live.insert(handle, grant(n.into()));
                        ever.push(handle);
                    }
                    Err(Quota) => prop_assert_eq!(live.len(), quota as usize),
                },
                2 if handle != root => {
                    let expected = live.remove(&handle).map(|grant| Some(Gone { member: me, grant }));
                    prop_assert_eq!(realm.release(me, handle).ok(), expected);
                }
                _ => {
                    let rights = Rights::from_bits_retain(bits);
                    let expected = match live.get(&handle) {
                        None => Err(Cause::StaleHandle),
                        Some(entry) if kind != 0 && entry.kind != kind => Err(Cause::WrongKind),
                        Some(entry) if !entry.rights.contains(rights) => Err(Cause::RightsMissing),
                        Some(entry) => Ok(entry),
                    };
                    prop_assert_eq!(realm.lookup(me, handle, kind, rights, never), expected);
                    let guess = Handle { index: u32::from(n) % 12, generation: bits % 6 };
                    prop_assert_eq!(realm.inspect(me, guess).is_ok(), live.contains_key(&guess));
                }
            }
            prop_assert_eq!(realm.charged(me) as usize, live.len());
            prop_assert_eq!(realm.held(me).map(|(handle, grant)| (handle, *grant)).collect::<HashMap<_, _>>(), live.clone());
        }
    }
}
