//! Hostile holders, lenders and mappers.
//!
//! Whatever bytes a peer puts into its own memory or into a name, a lender gives nothing to whom it did not lend, a
//! mapper or holder touches nothing outside the regions that were introduced for that lender, and nobody panics.
#![deny(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};

use kernel_ipc::capability::{Grant, Realm};
use kernel_ipc::lease::layout::{
    ENTRY, HEADER, TABLE_MAGIC, TABLE_VERSION, entry, entry_at, header, pin_at, status_at, word,
};
use kernel_ipc::lease::{
    Ended, Held, Holder, Lend, Lender, Mapper, PinSegment, Pinned, Region, RegionReader, StaleLease, StatusReader,
};
use kernel_ipc::ledger::Tag;
use kernel_ipc::runtime::IoMemory;
use kernel_ipc::sys::segment::{SegmentReader, SegmentWriter, memfd, set_len};
use kernel_ipc::{Cause, Epoch, Handle, Incarnation, LeaseName, LenderId, RegionId, Rights, SessionId};
use proptest::prelude::*;

const LENDER: LenderId = LenderId(1);
const EPOCH: Epoch = Epoch(1);
const REGION: RegionId = RegionId(2);
const MAPPER: Incarnation = Incarnation(3);
const ALICE: Incarnation = Incarnation(4);
const MALLORY: Incarnation = Incarnation(5);
const BOB: Incarnation = Incarnation(6);
const BYTES: usize = 3 * 4096;
const CAPACITY: u32 = 4;

fn reopen(fd: BorrowedFd<'_>) -> SegmentReader {
    SegmentReader::open(fd.try_clone_to_owned().expect("dup"), 1).expect("sealed")
}

fn region() -> (Region, RegionReader) {
    let region = Region::create("region", REGION, BYTES).expect("memory");
    let reader = RegionReader::open(region.fd().try_clone_to_owned().expect("dup"), REGION).expect("sealed");
    (region, reader)
}

fn pins() -> PinSegment {
    PinSegment::create(MAPPER, Epoch(1), LENDER, CAPACITY).expect("memory")
}

/// A table written by somebody who does not use [`Lender`].
fn forged_table(entries: u32, claimed: u64) -> SegmentWriter {
    let table = SegmentWriter::create("forged", HEADER + entries as usize * ENTRY).expect("memory");
    table.store_u64(header::MAGIC, TABLE_MAGIC, Relaxed);
    table.store_u64(header::VERSION, TABLE_VERSION, Relaxed);
    table.store_u64(header::TABLE_LENDER, LENDER.get(), Relaxed);
    table.store_u64(header::TABLE_EPOCH, EPOCH.get(), Relaxed);
    table.store_u64(header::TABLE_CAPACITY, claimed, Relaxed);
    table
}

fn forge(table: &SegmentWriter, index: u32, fields: [u64; 5]) {
    let at = entry_at(index);
    for (field, value) in
        [entry::WORD, entry::HOLDER, entry::REGION, entry::OFFSET, entry::LENGTH].into_iter().zip(fields)
    {
        table.store_u64(at + field, value, Release);
    }
}

fn name(index: u32, generation: u32, length: u64) -> LeaseName {
    LeaseName { lender: LENDER, index, generation, length }
}

/// Where in the region a pin's bytes are: a panic if they are not inside.
fn check_inside(pinned: &Pinned, reader: &RegionReader) {
    let all = reader.slice(0, BYTES).expect("all of it");
    let start = (pinned.io_ptr() as usize).checked_sub(all.io_ptr() as usize).expect("not before the region");
    assert!(start.checked_add(pinned.io_len()).is_some_and(|end| end <= BYTES), "not beyond the region");
}

fn read_all(held: &Held) {
    assert!(held.offset() + held.len() <= BYTES);
    let mut bytes = vec![0; held.len()];
    let _ = held.copy_out(0, &mut bytes);
    let _ = held.crc32c(0, 0..held.len());
    assert!(held.copy_out(1, &mut bytes).is_err() && held.slice(1, held.len()).is_err());
}

/// Numbers that lie about where something is.
fn liar() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 4095, 4096, BYTES as u64 - 1, BYTES as u64, BYTES as u64 + 1, 1 << 32, 1 << 63];
    prop_oneof![
        4 => prop::sample::select(edges.to_vec()),
        2 => 0u64..BYTES as u64,
        2 => (0u64..8).prop_map(|n| u64::MAX - n),
        1 => any::<u64>(),
    ]
}

#[test]
fn a_client_can_name_what_it_has_lent_and_nothing_that_others_have() {
    let (_region, reader) = region();
    let (theirs, own) = (LENDER, LenderId(LENDER.get() + 1));
    let mut alice = Holder::new(ALICE);
    let mut lends = |id| {
        let mut lender = Lender::new(id, EPOCH, CAPACITY).expect("memory");
        let lend = Lend { region: REGION, offset: 0, length: 10, source: None, keep: Rc::new(()) };
        let name = lender.lend(ALICE, lend).expect("there is room");
        alice.introduce(id, EPOCH, reopen(lender.table_fd()), &[(REGION, reader.clone())], None).expect("its table");
        assert!(alice.hold(&name).is_ok());
        (name, lender)
    };
    // What Alice has been lent by somebody whom she calls, or lends to herself, no client can name.
    let ((name, _theirs), (landed, _own)) = (lends(theirs), lends(own));
    let seen = |alice: &Holder, client| alice.hold_from(&name, client).err();
    assert_eq!([ALICE, MALLORY, BOB].map(|client| seen(&alice, client)), [Some(StaleLease::NotYours); 3]);
    alice.lends(theirs, BOB);
    assert_eq!([ALICE, MALLORY].map(|client| seen(&alice, client)), [Some(StaleLease::NotYours); 2]);
    assert_eq!(seen(&alice, BOB), None);
    assert_eq!(alice.hold_from(&landed, BOB).err(), Some(StaleLease::NotYours));
    // Bob's next run goes on with the same lender.
    alice.lends(theirs, MALLORY);
    assert_eq!([BOB, MALLORY].map(|client| seen(&alice, client)), [Some(StaleLease::NotYours), None]);
    alice.retire(theirs);
    assert_eq!(seen(&alice, MALLORY), Some(StaleLease::NotYours));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_lenders_table_says_nothing_outside_its_regions_is_touched(
        fields in prop::collection::vec((0u32..3, any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.8), liar(), liar()), 4),
        asked in prop::collection::vec((0u32..6, 0u32..3, liar(), liar(), liar()), 1..20),
        entries in 0u32..5,
        claimed in liar(),
    ) {
        let (_region, reader) = region();
        let table = forged_table(entries, claimed);
        for (index, (generation, live, right_holder, right_region, offset, length)) in (0..entries).zip(&fields) {
            let holder = if *right_holder { ALICE.get() } else { *length };
            let region = if *right_region { REGION.get() } else { *offset };
            forge(&table, index, [word(*generation, *live), holder, region, *offset, *length]);
        }
        let mut mapper = Mapper::new();
        let mut holder = Holder::new(ALICE);
        let regions = [(REGION, reader.clone())];
        mapper.introduce(LENDER, EPOCH, reopen(table.fd()), &regions, pins(), None).expect("the header is good");
        holder.introduce(LENDER, EPOCH, reopen(table.fd()), &regions, None).expect("the header is good");
        for (index, generation, length, start, end) in asked {
            let name = name(index, generation, length);
            if let Ok(pinned) = mapper.pin(&name, ALICE, start..end) {
                check_inside(&pinned, &reader);
                prop_assert_eq!(pinned.len() as u64, end - start);
            }
            if let Ok(held) = holder.hold(&name) {
                read_all(&held);
            }
        }
    }

    #[test]
    fn whatever_a_tables_header_says_it_is_refused_or_harmless(words in prop::collection::vec(liar(), 5), len in 1usize..300) {
        let (_region, reader) = region();
        let fd = memfd("forged").expect("memory");
        set_len(&fd, len).expect("size");
        let table = SegmentWriter::adopt(fd).expect("memory");
        for (at, value) in (0..5).map(|n| n * 8).zip(words) {
            if at + 8 <= len {
                table.store_u64(at, value, Relaxed);
            }
        }
        let mut mapper = Mapper::new();
        let refused = mapper.introduce(LENDER, EPOCH, reopen(table.fd()), &[(REGION, reader)], pins(), None);
        prop_assert!(refused.is_err());
        prop_assert!(StatusReader::open(table.fd().try_clone_to_owned().expect("dup")).is_err());
        let mut lender = Lender::new(LENDER, EPOCH, CAPACITY).expect("memory");
        prop_assert!(lender.attach_pins(MAPPER, Epoch(1), reopen(table.fd())).is_err());
    }

    #[test]
    fn a_holder_that_guesses_names_gets_only_what_it_was_lent(
        lent in prop::collection::vec((any::<bool>(), any::<bool>()), 1..8),
        guesses in prop::collection::vec((0u64..3, 0u32..6, 0u32..5, liar()), 1..60),
    ) {
        let (_region, reader) = region();
        let mut lender = Lender::new(LENDER, EPOCH, CAPACITY).expect("memory");
        let own = pins();
        lender.attach_pins(MAPPER, Epoch(1), reopen(own.fd())).expect("good");
        let mut mapper = Mapper::new();
        let regions = [(REGION, reader)];
        mapper.introduce(LENDER, EPOCH, reopen(lender.table_fd()), &regions, own, None).expect("good");
        let mut holder = Holder::new(MALLORY);
        holder.introduce(LENDER, EPOCH, reopen(lender.table_fd()), &regions, None).expect("good");

        let mut hers = Vec::new();
        for (mallorys, ended) in lent {
            let who = if mallorys { MALLORY } else { ALICE };
            let Ok(name) = lender.lend(who, Lend { region: REGION, offset: 0, length: 64, source: None, keep: Rc::new(()) }) else { break };
            if ended {
                lender.take_back(name.index, name.generation).expect("live");
            } else if mallorys {
                hers.push((name.index, name.generation));
            }
        }
        for (lender_id, index, generation, length) in guesses {
            let guess = LeaseName { lender: LenderId(lender_id), index, generation, length };
            let is_hers = lender_id == LENDER.get() && hers.contains(&(index, generation));
            prop_assert_eq!(mapper.pin(&guess, MALLORY, 0..64).is_ok(), is_hers, "{:?}", guess);
            prop_assert_eq!(holder.read(&guess, 0, &mut [0; 64]).is_ok(), is_hers, "{:?}", guess);
            let held = hers.contains(&(index, generation));
            prop_assert_eq!(lender.release(MALLORY, index, generation).is_ok(), held, "{:?}", guess);
            hers.retain(|lease| *lease != (index, generation));
        }
    }

    #[test]
    fn a_client_that_guesses_handles_gets_only_what_it_was_granted(
        granted in prop::collection::vec(any::<bool>(), 0..10),
        guesses in prop::collection::vec((any::<u32>(), any::<u32>(), 0u32..12, 0u32..4, any::<bool>()), 1..60),
    ) {
        let grant = Grant { object: [7, 8], kind: 1, rights: Rights::READ, badge: 9 };
        let mut realm = Realm::default();
        let [me, other] = [1, 2].map(|session| realm.join(SessionId(session), 16, None));
        let root = realm.first(me, grant).expect("below the quota");
        realm.first(other, Grant { rights: Rights::all(), ..grant }).expect("below the quota");
        let mut live = vec![root];
        for removed in granted {
            let handle = realm.grant(me, root.index, grant, Tag::Session).expect("below the quota");
            if removed { realm.release(me, handle).expect("live"); } else { live.push(handle); }
        }
        for (wild_index, wild_generation, index, generation, wild) in guesses {
            let handle = if wild { Handle { index: wild_index, generation: wild_generation } } else { Handle { index, generation } };
            match realm.lookup(me, handle, 1, Rights::READ, || 0) {
                Ok(_) => prop_assert!(live.contains(&handle)),
                Err(cause) => {
                    prop_assert_eq!(cause, Cause::StaleHandle);
                    prop_assert!(!live.contains(&handle));
                }
            }
            prop_assert!(realm.lookup(me, handle, 1, Rights::WRITE, || 0).is_err());
        }
    }
}

#[test]
fn a_table_that_changes_under_the_mappers_eyes_gives_it_nothing_outside_its_regions() {
    let (_region, reader) = region();
    let table = Arc::new(forged_table(CAPACITY, CAPACITY.into()));
    let stop = Arc::new(AtomicBool::new(false));
    let mutator = std::thread::spawn({
        let (table, stop) = (table.clone(), stop.clone());
        move || {
            let good = [word(1, true), ALICE.get(), REGION.get(), 4096, 4096];
            let bad = [word(1, true), ALICE.get(), REGION.get(), BYTES as u64, u64::MAX - 4096];
            let mut n = 0u64;
            while !stop.load(Relaxed) {
                // Mixtures of the two, field by field, and another capacity.
                let mixed = std::array::from_fn(|field| if n >> field & 1 == 0 { good[field] } else { bad[field] });
                forge(&table, (n % 4) as u32, mixed);
                table.store_u64(header::TABLE_CAPACITY, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), Relaxed);
                n = n.wrapping_add(1);
            }
        }
    });
    let mut mapper = Mapper::new();
    let mut holder = Holder::new(ALICE);
    let regions = [(REGION, reader.clone())];
    mapper.introduce(LENDER, EPOCH, reopen(table.fd()), &regions, pins(), None).unwrap_or_else(|_| {
        // The capacity is garbage at this moment: larger than the pin segment is refused.
        let wide = PinSegment::create(MAPPER, Epoch(1), LENDER, CAPACITY * 2).expect("memory");
        mapper
            .introduce(LENDER, EPOCH, reopen(table.fd()), &regions, wide, None)
            .expect("at most the table's own size");
    });
    holder.introduce(LENDER, EPOCH, reopen(table.fd()), &regions, None).expect("the header is good");
    let mut pinned_some = 0;
    for n in 0..200_000u32 {
        let name = name(n % 8, 1, u64::MAX);
        if let Ok(pinned) = mapper.pin(&name, ALICE, 0..1 + u64::from(n % 5000)) {
            check_inside(&pinned, &reader);
            pinned_some += 1;
        }
        if n % 64 == 0
            && let Ok(held) = holder.hold(&name)
        {
            read_all(&held);
        }
    }
    stop.store(true, Relaxed);
    mutator.join().expect("it only writes");
    println!("{pinned_some} of 200000 pins found a good moment");
}

#[test]
fn a_mapper_that_writes_garbage_pins_holds_leases_back_until_its_fence_and_no_longer() {
    let mut lender = Lender::new(LENDER, EPOCH, CAPACITY).expect("memory");
    let fd = memfd("pins").expect("memory");
    set_len(&fd, PinSegment::bytes(CAPACITY)).expect("size");
    let hostile = {
        // A good header, then the mapper writes as it likes.
        let header = PinSegment::create(MAPPER, Epoch(1), LENDER, CAPACITY).expect("memory");
        let segment = SegmentWriter::adopt(fd).expect("memory");
        let from = reopen(header.fd());
        (0..HEADER).step_by(8).for_each(|at| segment.store_u64(at, from.load_u64(at, Relaxed), Relaxed));
        segment
    };
    lender.attach_pins(MAPPER, Epoch(1), reopen(hostile.fd())).expect("a good header");
    let keep = Rc::new(());
    let mut lend =
        || lender.lend(ALICE, Lend { region: REGION, offset: 0, length: 1, source: None, keep: keep.clone() });
    let names: Vec<LeaseName> = (0..CAPACITY).map(|_| lend().expect("there is room")).collect();
    assert!(lend().is_err());
    for (index, garbage) in [u32::MAX, 1, 1 << 31, 0x5555_5555].into_iter().enumerate() {
        hostile.store_u32(pin_at(index as u32), garbage, Relaxed);
    }
    hostile.store_u64(header::PINS_CAPACITY, u64::MAX, Relaxed);
    for name in &names {
        assert_eq!(lender.release(ALICE, name.index, name.generation), Ok(Ended::Dying));
        assert_eq!(lender.release(ALICE, name.index, name.generation), Err(StaleLease::Ended));
    }
    assert_eq!((lender.reclaim(), lender.dying()), (0, CAPACITY as usize));
    assert_eq!(lender.fenced(MAPPER), CAPACITY as usize);
    assert_eq!(Rc::strong_count(&keep), 1);
}

#[test]
fn a_status_page_that_lies_about_its_size_has_only_the_lines_that_it_has() {
    let page = SegmentWriter::create("status", status_at(2)).expect("memory");
    let real = kernel_ipc::lease::StatusPage::create(2).expect("memory");
    let from = reopen(real.fd());
    (0..HEADER).step_by(8).for_each(|at| page.store_u64(at, from.load_u64(at, Relaxed), Relaxed));
    page.store_u64(header::STATUS_ENDPOINTS, u64::MAX, Relaxed);
    let reader = StatusReader::open(page.fd().try_clone_to_owned().expect("dup")).expect("a page");
    assert!(reader.endpoint(1).is_some_and(|line| !line.lives(Epoch(1))));
    assert!(reader.endpoint(2).is_none() && reader.endpoint(u32::MAX).is_none());
}
