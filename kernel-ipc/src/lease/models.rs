//! Every interleaving, and every reordering that the memory model allows, of the protocol's steps.
//!
//! * The models run the shipped steps of [`protocol`](super::protocol) over loom's atomics.
//! * A model must hold, and must break when one rule is taken away: then the memory of one side leaves out a fence,
//!   does not look again, or sees no pins ([`Without`]). So each rule is known to be needed, and each model to be able
//!   to notice.
//! * "The kernel reads" and "the owner refills" are accesses of a cell that loom watches: two that nothing orders are
//!   a violation, whatever the bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{self, Relaxed, Release, SeqCst};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::thread;

use super::layout::{entry, entry_at, pin_at, word};
use super::protocol::{self, Fields, Memory, Writable};

/// The rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// B2: the entry is not marked dead.
    DeadWord,
    /// B3
    LenderFence,
    /// B4: the lender does not look for pins.
    PinCheck,
    /// L3 publishes without release.
    Release,
    /// N4
    MapperFence,
    /// N5
    SecondLook,
    /// N5 compares the live bit only.
    SecondLookAtGeneration,
    /// N6
    StatusWord,
    /// The keeper stores `live_epoch = 0` only after the next incarnation has started.
    StatusBeforeRestart,
    /// N8 unpins without release.
    UnpinRelease,
    /// The fence between a holder's copy and its second look.
    CopyFence,
}

const INDEX: u32 = 0;
const FIRST: Fields = Fields { holder: 1, region: 1, offset: 1, length: 1 };
const SECOND: Fields = Fields { holder: 2, region: 2, offset: 2, length: 2 };
const EPOCH: u64 = 1;

/// One entry, one pin count, one status word, and the bytes that are lent.
struct Shared {
    word: AtomicU64,
    fields: [AtomicU64; 4],
    pins: AtomicU32,
    live_epoch: AtomicU64,
    /// Read by the kernel for a mapper, written by the owner.
    pages: UnsafeCell<()>,
    /// Read by a holder that copies; the value says which lease the bytes belong to.
    bytes: AtomicU64,
}

impl Shared {
    fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            fields: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)],
            pins: AtomicU32::new(0),
            live_epoch: AtomicU64::new(EPOCH),
            pages: UnsafeCell::new(()),
            bytes: AtomicU64::new(1),
        }
    }

    fn u64(&self, at: usize) -> &AtomicU64 {
        match at - entry_at(INDEX) {
            entry::WORD => &self.word,
            entry::HOLDER => &self.fields[0],
            entry::REGION => &self.fields[1],
            entry::OFFSET => &self.fields[2],
            entry::LENGTH => &self.fields[3],
            other => unreachable!("no word at {other} of an entry"),
        }
    }

    fn u32(&self, at: usize) -> &AtomicU32 {
        assert_eq!(at, pin_at(INDEX));
        &self.pins
    }

    fn kernel_reads(&self) {
        self.pages.with(|_| ());
    }

    fn owner_refills(&self) {
        self.pages.with_mut(|_| ());
        self.bytes.store(2, Relaxed);
    }
}

/// One side's memory, without one rule.
struct Side<'a>(&'a Shared, Without);

struct LenderSide<'a>(Side<'a>);
struct MapperSide<'a>(Side<'a>);

impl Memory for LenderSide<'_> {
    fn load_u64(&self, at: usize, order: Ordering) -> u64 {
        self.0.0.u64(at).load(order)
    }

    fn load_u32(&self, at: usize, order: Ordering) -> u32 {
        if self.0.1 == Without::PinCheck { 0 } else { self.0.0.u32(at).load(order) }
    }

    fn fence(&self, order: Ordering) {
        if self.0.1 != Without::LenderFence {
            fence(order);
        }
    }
}

impl Writable for LenderSide<'_> {
    fn store_u64(&self, at: usize, value: u64, order: Ordering) {
        match self.0.1 {
            Without::DeadWord if at == entry_at(INDEX) + entry::WORD && value & 1 == 0 => {}
            Without::Release => self.0.0.u64(at).store(value, Relaxed),
            _ => self.0.0.u64(at).store(value, order),
        }
    }

    fn store_u32(&self, _: usize, _: u32, _: Ordering) {
        unreachable!("a lender writes no pins");
    }
}

impl Memory for MapperSide<'_> {
    fn load_u64(&self, at: usize, order: Ordering) -> u64 {
        let second_look = at == entry_at(INDEX) + entry::WORD && order == Relaxed;
        match self.0.1 {
            Without::SecondLook if second_look => word(1, true),
            Without::SecondLookAtGeneration if second_look => word(1, self.0.0.u64(at).load(order) & 1 == 1),
            _ => self.0.0.u64(at).load(order),
        }
    }

    fn load_u32(&self, at: usize, order: Ordering) -> u32 {
        self.0.0.u32(at).load(order)
    }

    fn fence(&self, order: Ordering) {
        let left_out = if order == SeqCst { Without::MapperFence } else { Without::CopyFence };
        if self.0.1 != left_out {
            fence(order);
        }
    }
}

impl Writable for MapperSide<'_> {
    fn store_u64(&self, _: usize, _: u64, _: Ordering) {
        unreachable!("a mapper writes no table");
    }

    fn store_u32(&self, at: usize, value: u32, order: Ordering) {
        let order = if self.0.1 == Without::UnpinRelease { Relaxed } else { order };
        self.0.0.u32(at).store(value, order);
    }
}

impl Shared {
    fn lender(&self, without: Without) -> LenderSide<'_> {
        LenderSide(Side(self, without))
    }

    fn mapper(&self, without: Without) -> MapperSide<'_> {
        MapperSide(Side(self, without))
    }
}

/// A mapper sends the first lease once, if it may.
fn send(shared: &Shared, without: Without) {
    let memory = shared.mapper(without);
    let Some(fields) = protocol::look(&memory, INDEX, 1) else { return };
    let lives = || without == Without::StatusWord || shared.live_epoch.load(Relaxed) == EPOCH;
    if protocol::pin(&memory, &memory, INDEX, 1, lives).is_ok() {
        assert_eq!(fields, FIRST, "the fields are of the lease that was pinned");
        shared.kernel_reads();
        protocol::unpin(&memory, INDEX);
    }
}

/// A lease is taken back and its range refilled while a mapper sends it.
fn pin_against_refill(without: Without) {
    let shared = Arc::new(Shared::new());
    protocol::publish(&shared.lender(Without::Nothing), INDEX, 1, &FIRST);
    let mapper = thread::spawn({
        let shared = shared.clone();
        move || send(&shared, without)
    });
    let lender = shared.lender(without);
    protocol::kill(&lender, INDEX, 1);
    protocol::settle(&lender);
    if protocol::unpinned(&lender, INDEX) {
        shared.owner_refills();
    }
    mapper.join().expect("the mapper found what it should");
}

/// A lease is taken back and its index lent again, to another holder and of another range, while a mapper looks at it.
fn pin_against_lending_again(without: Without) {
    let shared = Arc::new(Shared::new());
    protocol::publish(&shared.lender(Without::Nothing), INDEX, 1, &FIRST);
    let mapper = thread::spawn({
        let shared = shared.clone();
        move || send(&shared, without)
    });
    let lender = shared.lender(without);
    protocol::kill(&lender, INDEX, 1);
    protocol::settle(&lender);
    if protocol::unpinned(&lender, INDEX) {
        shared.owner_refills();
        protocol::publish(&lender, INDEX, 2, &SECOND);
    }
    mapper.join().expect("the mapper found what it should");
}

/// A lease is lent for the first time while a mapper that was told its name early looks at it.
fn pin_against_lending(without: Without) {
    let shared = Arc::new(Shared::new());
    let mapper = thread::spawn({
        let shared = shared.clone();
        move || send(&shared, without)
    });
    // The owner has filled the range before.
    shared.owner_refills();
    protocol::publish(&shared.lender(without), INDEX, 1, &FIRST);
    mapper.join().expect("the mapper found what it should");
}

/// A lender dies; its entry says *live* for ever; its next incarnation takes the lease back.
fn pin_against_restart(without: Without) {
    let shared = Arc::new(Shared::new());
    protocol::publish(&shared.lender(Without::Nothing), INDEX, 1, &FIRST);
    let mapper = thread::spawn({
        let shared = shared.clone();
        move || send(&shared, without)
    });
    let keeper_says_dead = || shared.live_epoch.store(0, Release);
    if without != Without::StatusBeforeRestart {
        keeper_says_dead();
    }
    // The next incarnation finds the lease dying in the ledger, and continues at B3.
    let next = shared.lender(without);
    protocol::settle(&next);
    if protocol::unpinned(&next, INDEX) {
        shared.owner_refills();
    }
    if without == Without::StatusBeforeRestart {
        keeper_says_dead();
    }
    mapper.join().expect("the mapper found what it should");
}

/// A holder without a pin copies while the lease is taken back and refilled.
fn copy_against_refill(without: Without) {
    let shared = Arc::new(Shared::new());
    protocol::publish(&shared.lender(Without::Nothing), INDEX, 1, &FIRST);
    let holder = thread::spawn({
        let shared = shared.clone();
        move || {
            let memory = shared.mapper(without);
            if protocol::look(&memory, INDEX, 1).is_none() {
                return;
            }
            let copy = shared.bytes.load(Relaxed);
            if protocol::copied_in_time(&memory, INDEX, 1) {
                assert_eq!(copy, 1, "the copy is of the lease");
            }
        }
    });
    let lender = shared.lender(without);
    protocol::kill(&lender, INDEX, 1);
    protocol::settle(&lender);
    if protocol::unpinned(&lender, INDEX) {
        shared.owner_refills();
    }
    holder.join().expect("the holder found what it should");
}

fn holds(model: fn(Without)) {
    loom::model(move || model(Without::Nothing));
}

fn breaks(model: fn(Without), without: Without) {
    let run = AssertUnwindSafe(|| loom::model(move || model(without)));
    assert!(catch_unwind(run).is_err(), "the model does not notice that {without:?} is missing");
}

#[test]
fn no_range_is_refilled_under_a_send() {
    holds(pin_against_refill);
    let needed = [
        Without::DeadWord,
        Without::LenderFence,
        Without::PinCheck,
        Without::MapperFence,
        Without::SecondLook,
        Without::UnpinRelease,
    ];
    needed.into_iter().for_each(|rule| breaks(pin_against_refill, rule));
}

#[test]
fn no_lease_is_taken_for_the_next_one_of_its_index() {
    holds(pin_against_lending_again);
    let needed = [
        Without::LenderFence,
        Without::PinCheck,
        Without::MapperFence,
        Without::SecondLook,
        Without::SecondLookAtGeneration,
    ];
    needed.into_iter().for_each(|rule| breaks(pin_against_lending_again, rule));
}

#[test]
fn whoever_sees_a_live_word_sees_its_fields_and_bytes() {
    holds(pin_against_lending);
    breaks(pin_against_lending, Without::Release);
}

#[test]
fn a_dead_lenders_live_word_is_not_believed() {
    holds(pin_against_restart);
    let needed = [Without::StatusWord, Without::StatusBeforeRestart, Without::LenderFence, Without::MapperFence];
    needed.into_iter().for_each(|rule| breaks(pin_against_restart, rule));
}

#[test]
fn a_copy_that_was_checked_afterwards_is_of_the_lease() {
    holds(copy_against_refill);
    let needed = [Without::DeadWord, Without::LenderFence, Without::SecondLook, Without::CopyFence];
    needed.into_iter().for_each(|rule| breaks(copy_against_refill, rule));
}
