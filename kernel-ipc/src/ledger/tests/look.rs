//! Looking at a ledger that somebody else writes.

use super::*;
use crate::capability::State;

fn ledger() -> (SessionLedger<Mortal>, Mortal) {
    let memory = Mortal::new(SessionLedger::<Mortal>::bytes(SHAPE, QUOTA));
    let ledger = SessionLedger::create(memory.clone(), SESSION, SHAPE, QUOTA, ROOT).unwrap();
    assert!(ledger.enter(ROOT, &grant(1), &Standing::FIRST, Tag::Session));
    (ledger, memory)
}

/// Index, generation, state and parent.
type Shown = (u32, u32, State, Option<(SessionId, Handle)>);

fn look(memory: &Mortal) -> Vec<Shown> {
    let stores = memory.stores();
    let holdings = Holdings::look(memory.clone(), SESSION, 0, 100).unwrap();
    assert_eq!((holdings.quota, holdings.next, memory.stores()), (QUOTA, None, stores));
    let shown = |one: Capability| (one.handle.index, one.handle.generation, one.standing.state, one.standing.parent);
    holdings.capabilities.into_iter().map(shown).collect()
}

#[test]
fn what_a_session_holds_is_seen_as_it_stands_and_what_was_not_answered_is_not() {
    let (ledger, memory) = ledger();
    let node = Handle { index: 1, generation: 4 };
    let below = Standing { parent: Some((SESSION, ROOT)), ..Standing::FIRST };
    ledger.begin(0, 1, 9, Retry::Cached);
    assert!(ledger.enter(node, &grant(2), &below, Tag::Call { slot: 0, seq: 1 }));
    let root = (0, 1, State::Live, None);
    assert_eq!(look(&memory), [root]);
    ledger.done(0, 1);
    assert_eq!(look(&memory), [root, (1, 4, State::Live, Some((SESSION, ROOT)))]);
    ledger.amend(node, State::Revoked);
    let gone = SessionId(8);
    ledger.moved(1, &Standing { parent: Some((gone, ROOT)), ..below });
    assert_eq!(look(&memory), [root, (1, 4, State::Revoked, Some((gone, ROOT)))]);
    ledger.leave(1, 5);
    assert_eq!(look(&memory), [root]);
}

#[test]
fn many_are_seen_in_parts() {
    let (ledger, memory) = ledger();
    for index in 1..5 {
        assert!(ledger.enter(Handle { index, generation: 1 }, &grant(2), &Standing::FIRST, Tag::Session));
    }
    ledger.leave(2, 2);
    let mut seen = Vec::new();
    let mut from = Some(0);
    while let Some(index) = from {
        let part = Holdings::look(memory.clone(), SESSION, index, 2).unwrap();
        seen.push(part.capabilities.iter().map(|one| one.handle.index).collect::<Vec<_>>());
        from = part.next;
    }
    assert_eq!(seen, [vec![0, 1], vec![3, 4]]);
}

#[test]
fn nonsense_ends_with_what_is_impossible_or_with_no_more_than_there_is_room_for() {
    let (_ledger, memory) = ledger();
    assert!(Holdings::look(memory.clone(), SessionId(9), 0, 100).is_err());
    for at in 0..SessionLedger::<Mortal>::bytes(SHAPE, QUOTA) {
        for bit in 0..8 {
            memory.flip(at, bit);
            let seen = Holdings::look(memory.clone(), SESSION, 0, 100);
            assert!(seen.is_err() || seen.unwrap().capabilities.len() <= QUOTA as usize);
            memory.flip(at, bit);
        }
    }
    assert_eq!(look(&memory), [(0, 1, State::Live, None)]);
}
