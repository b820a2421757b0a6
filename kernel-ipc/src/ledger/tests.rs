//! Hosts that die between any two stores, and ledgers that say what they should not.

use proptest::prelude::*;

use super::testing::Mortal;
use super::*;
use crate::capability::{Entries, Grant, Restored, Standing};
use crate::id::SessionId;
use crate::interface::Retry;
use crate::rights::Rights;
use crate::wire::{Completion, Extent, Handle, Shape, Status, inline_words};

mod look;
mod trees;

const SHAPE: Shape = Shape { slots: 2, window_bytes: 4096 };
const QUOTA: u32 = 8;
const SESSION: SessionId = SessionId(7);
const ROOT: Handle = Handle { index: 0, generation: 1 };
const RING: usize = 512;

fn grant(object: u64) -> Grant {
    Grant { object: [object, !object], kind: 3, rights: Rights::READ, badge: object << 8 }
}

fn restored((generation, grant): (u32, Option<Grant>)) -> Restored {
    Restored { generation, entry: grant.map(|grant| (grant, Standing::FIRST)) }
}

fn completion(slot: u16, seq: u64, capabilities: u8, payload: &[u8]) -> Completion {
    let extent = Extent { length: payload.len() as u32, capabilities, leases: 0 };
    Completion { slot, operation: 9, seq, extent, status: Status::Done, trace: 0, inline: inline_words(payload) }
}

/// A host as far as its ledgers go: what it does for one call, in the protocol's order.
struct Host {
    ledger: SessionLedger<Mortal>,
    records: Records<Mortal>,
    /// Replies that its client could see.
    published: Vec<(u16, u64)>,
}

impl Host {
    fn new(session: &Mortal, component: &Mortal) -> Self {
        let ledger = SessionLedger::create(session.clone(), SESSION, SHAPE, QUOTA, ROOT).unwrap();
        assert!(ledger.enter(ROOT, &grant(1), &Standing::FIRST, Tag::Session));
        Self { ledger, records: Records::create(component.clone()).unwrap(), published: Vec::new() }
    }

    /// A call that grants an entry, answers with `payload` and changes the component by `effect`.
    fn call(&mut self, slot: u16, seq: u64, entry: Handle, payload: &[u8], effect: &[u8], alive: &dyn Fn() -> bool) {
        self.ledger.begin(slot, seq, 9, Retry::Cached);
        assert!(self.ledger.enter(entry, &grant(seq), &Standing::FIRST, Tag::Call { slot, seq }));
        let long = if payload.len() > 16 { payload } else { &[] };
        let handle = entry.to_word().to_le_bytes();
        assert!(self.ledger.prepare(ROOT, &completion(slot, seq, 1, payload), &[&handle, long]));
        self.records.append(Some((SESSION, slot, seq)), &[effect]).unwrap();
        if alive() {
            self.published.push((slot, seq));
        }
        self.ledger.done(slot, seq);
    }
}

#[derive(Debug, PartialEq)]
struct Known {
    effects: Vec<Vec<u8>>,
    entries: Vec<Restored>,
    replies: Vec<Option<Vec<u8>>>,
}

/// What the next incarnation knows.
fn recover(session: &Mortal, component: &Mortal) -> Known {
    let (_, records) = Records::recover(component.inherited()).unwrap();
    let committed = |slot: u16| {
        let seqs = records.iter().filter_map(|record| record.call.filter(|call| call.1 == slot));
        seqs.map(|(_, _, seq)| seq).max().unwrap_or(0)
    };
    let (ledger, after) = SessionLedger::recover(session.inherited(), SESSION, committed).unwrap();
    let replies = after.cells.iter().zip(0..).map(|(cell, slot)| {
        (cell.done != 0).then(|| ledger.reply(slot, cell.done).unwrap().expect("done says that it is there").window)
    });
    Known {
        effects: records.into_iter().map(|record| record.effect).collect(),
        entries: after.entries,
        replies: replies.collect(),
    }
}

#[test]
fn a_host_that_dies_between_any_two_stores_leaves_a_whole_call_or_none() {
    let run = |dies_after: u64| {
        let session = Mortal::new(1 << 16);
        let component = session.beside(4096 + RING);
        let mut host = Host::new(&session, &component);
        let entry = |index| Handle { index, generation: 1 };
        host.call(0, 1, entry(1), b"short", b"first", &|| true);
        let before = session.stores();
        session.dies_after(dies_after);
        host.call(0, 2, entry(2), &[5; 40], &[6; 100], &|| session.is_alive());
        (host.published.len(), recover(&session, &component), session.stores() - before)
    };
    let (_, whole, stores) = run(u64::MAX);
    assert_eq!(whole.effects, [b"first".to_vec(), vec![6; 100]]);
    assert_eq!(whole.entries, [(1, Some(grant(1))), (1, Some(grant(1))), (1, Some(grant(2)))].map(restored));
    let (_, none, _) = run(0);
    let mut seen = [0, 0];
    for dies_after in 0..=stores {
        let (published, known, _) = run(dies_after);
        let happened = known.effects.len() == 2;
        seen[usize::from(happened)] += 1;
        assert!(happened || published == 1, "died after {dies_after}: a published answer is forgotten");
        let expected = if happened { &whole } else { &none };
        assert_eq!(known.effects, expected.effects, "died after {dies_after}");
        let live = |known: &Known| known.entries.iter().filter_map(|restored| restored.entry).collect::<Vec<_>>();
        assert_eq!(live(&known), live(expected), "died after {dies_after}");
        if happened {
            assert_eq!(known.replies, whole.replies, "died after {dies_after}");
        }
    }
    assert!(seen[0] > 10 && seen[1] > 1, "both ends were seen: {seen:?}");
}

#[test]
fn a_dropped_entry_is_gone_and_its_index_has_another_generation() {
    let session = Mortal::new(1 << 16);
    let mut host = Host::new(&session, &Mortal::new(4096 + RING));
    host.call(1, 1, Handle { index: 1, generation: 1 }, b"", b"x", &|| true);
    host.ledger.leave(1, 2);
    let (_, known) = SessionLedger::recover(session.inherited(), SESSION, |_| 0).unwrap();
    assert_eq!(known.entries, [(1, Some(grant(1))), (2, None)].map(restored));
    assert_eq!((known.shape, known.root, known.session), (SHAPE, ROOT, SESSION));
    assert_eq!(known.cells[1], Cell { operation: 9, retry: Some(Retry::Cached), begun: 1, done: 1, crashes: 0 });
}

#[test]
fn a_reply_that_is_too_long_is_not_kept() {
    let ledger = SessionLedger::create(Mortal::new(1 << 16), SESSION, SHAPE, QUOTA, ROOT).unwrap();
    ledger.begin(0, 1, 9, Retry::Cached);
    assert!(ledger.prepare(ROOT, &completion(0, 1, 0, &[1; 448]), &[&[1; 448]]));
    assert!(!ledger.prepare(ROOT, &completion(0, 1, 0, &[1; 449]), &[&[1; 449]]));
    assert!(!ledger.enter(Handle { index: QUOTA, generation: 1 }, &grant(1), &Standing::FIRST, Tag::Session));
}

#[test]
fn used_memory_and_another_session_are_refused() {
    let memory = Mortal::new(1 << 16);
    assert!(SessionLedger::recover(memory.inherited(), SESSION, |_| 0).is_err());
    SessionLedger::create(memory.clone(), SESSION, SHAPE, QUOTA, ROOT).unwrap();
    assert!(SessionLedger::create(memory.clone(), SESSION, SHAPE, QUOTA, ROOT).is_err());
    assert!(SessionLedger::recover(memory.inherited(), SessionId(8), |_| 0).is_err());
    assert!(SessionLedger::create(Mortal::new(4096), SESSION, SHAPE, QUOTA, ROOT).is_err());
    assert!(Records::create(Mortal::new(4096)).is_err());
}

#[test]
fn what_a_call_granted_is_found_again_and_nothing_else() {
    let memory = Mortal::new(1 << 16);
    let ledger = SessionLedger::create(memory.clone(), SESSION, SHAPE, QUOTA, ROOT).unwrap();
    let handle = |index| Handle { index, generation: 1 };
    let calls = [(1, 0, 5), (2, 0, 5), (3, 0, 4), (4, 1, 5)];
    for (index, slot, seq) in calls {
        assert!(ledger.enter(handle(index), &Grant::default(), &Standing::FIRST, Tag::Call { slot, seq }));
    }
    assert_eq!(ledger.granted_by(0, 5), [handle(1), handle(2)]);
    ledger.leave(1, 2);
    assert_eq!(ledger.granted_by(0, 5), [handle(2)]);
    assert_eq!(ledger.granted_by(1, 4), []);
}

proptest! {
    /// Beside a plain queue: what was appended and not trimmed is what is recovered, however often the ring goes round.
    #[test]
    fn records_are_recovered_in_their_order(steps in prop::collection::vec((0usize..200, 0usize..4), 1..200)) {
        let memory = Mortal::new(4096 + RING);
        let mut records = Records::create(memory.clone()).unwrap();
        let mut model = std::collections::VecDeque::new();
        for (step, (length, keep)) in (1..).zip(steps) {
            let effect = vec![step as u8; length];
            match records.append(Some((SESSION, 0, step)), &[&effect[..length / 2], &effect[length / 2..]]) {
                Ok(end) => model.push_back(Record { call: Some((SESSION, 0, step)), effect, end }),
                Err(Full) => {
                    while model.len() > keep {
                        let done = model.pop_front().unwrap();
                        records.trim(done.end);
                    }
                }
            }
            let (again, found) = Records::recover(memory.inherited()).unwrap();
            prop_assert_eq!(&found, &Vec::from(model.clone()));
            prop_assert_eq!(again.position(), records.position());
            prop_assert_eq!(again.room(), records.room());
        }
    }

    /// A damaged ledger is refused or says something possible; it is never believed beyond its measures.
    #[test]
    fn a_flipped_bit_never_gives_a_false_record(at in 0usize..4096 + RING, bit in 0u8..8) {
        let memory = Mortal::new(4096 + RING);
        let mut records = Records::create(memory.clone()).unwrap();
        for seq in 1..=3 {
            records.append(Some((SESSION, 1, seq)), &[&[seq as u8; 50]]).unwrap();
        }
        let (_, whole) = Records::recover(memory.inherited()).unwrap();
        memory.flip(at, bit);
        if let Ok((_, found)) = Records::recover(memory.inherited()) {
            prop_assert!(whole.starts_with(&found) || whole.ends_with(&found), "{found:?}");
        }
    }

    #[test]
    fn a_flipped_bit_of_a_session_ledger_harms_nobody(at in 0usize..6144, bit in 0u8..8) {
        let session = Mortal::new(1 << 16);
        let mut host = Host::new(&session, &Mortal::new(4096 + RING));
        host.call(0, 1, Handle { index: 1, generation: 1 }, &[1; 64], b"x", &|| true);
        session.flip(at, bit);
        if let Ok((ledger, known)) = SessionLedger::recover(session.inherited(), SESSION, |_| 0) {
            for (slot, cell) in (0..).zip(&known.cells) {
                let _ = ledger.reply(slot, cell.done);
            }
        }
    }
}

#[test]
fn a_call_that_was_under_way_at_a_crash_is_suspect_and_its_request_is_kept() {
    let memory = Mortal::new(1 << 16);
    let ledger = SessionLedger::create(memory.clone(), SESSION, SHAPE, QUOTA, ROOT).unwrap();
    let root = grant(7);
    assert!(ledger.enter(ROOT, &root, &Standing::FIRST, Tag::Session));
    ledger.begin(0, 1, 9, Retry::Cached);
    ledger.begin(1, 1, 8, Retry::Idempotent);
    ledger.done(1, 1);
    let crash = |number| {
        let (ledger, mut known) = SessionLedger::recover(memory.clone(), SESSION, |_| 0).unwrap();
        ledger.crashed(number, &mut known.cells);
        ledger.crashed(number, &mut known.cells);
        let (ledger, known) = SessionLedger::recover(memory.clone(), SESSION, |_| 0).unwrap();
        (ledger, [known.cells[0].crashes, known.cells[1].crashes])
    };
    assert!(!ledger.is_suspect(0));
    // Counted once, and only what was under way.
    let (ledger, crashes) = crash(5);
    assert_eq!(crashes, [1, 0]);
    assert_eq!(SessionLedger::executing(memory.clone(), SESSION).unwrap().0[0].request, None);
    // It runs once more, with its number: now its request is of interest.
    ledger.begin(0, 1, 9, Retry::Cached);
    assert!(ledger.is_suspect(0) && !ledger.is_suspect(1));
    ledger.keep_request(0, root.object, &[3; 500]);
    let (executing, _) = SessionLedger::executing(memory.clone(), SESSION).unwrap();
    let [one] = &executing[..] else { panic!("{executing:?}") };
    assert_eq!((one.slot, one.cell.operation, one.cell.crashes), (0, 9, 1));
    assert_eq!(one.request, Some((root.object, true, vec![3; 432])));
    let (ledger, crashes) = crash(6);
    assert_eq!(crashes, [2, 0]);
    // The slot's next call is another one.
    ledger.begin(0, 2, 9, Retry::Cached);
    assert!(!ledger.is_suspect(0));
    // A reply takes the place of a request.
    ledger.begin(1, 2, 9, Retry::Cached);
    ledger.keep_request(1, [0; 2], b"x");
    assert!(ledger.prepare(ROOT, &completion(1, 2, 0, b"y"), &[b"y"]));
    ledger.done(1, 2);
    assert!(ledger.reply(1, 2).unwrap().is_some());
    assert!(SessionLedger::recover(memory.clone(), SESSION, |_| 0).is_ok());
}
