//! Lender, mapper, holder and keeper together, in one process.

use std::rc::Rc;

use super::testing::*;
use super::*;
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::runtime::IoMemory;

#[test]
fn leased_bytes_are_found_by_name_by_holder_and_mapper() {
    let mut world = World::new();
    let (name, _) = world.lend(ALICE, 1, 4096);
    let expected: Vec<u8> = (4096..8192).map(|i| (i % 251) as u8).collect();

    let mut bytes = vec![0; 4096];
    world.holder(ALICE).read(&name, 0, &mut bytes).expect("her own lease");
    assert_eq!(bytes, expected);

    let pinned = world.mapper.pin(&name, ALICE, 100..300).expect("her own lease");
    assert_eq!((pinned.len(), pinned.io_len()), (200, 200));
    let mut bytes = vec![0; 200];
    pinned.region.copy_out(pinned.offset, &mut bytes).expect("inside");
    assert_eq!(bytes, expected[100..300]);
}

#[test]
fn a_pinned_lease_is_dying_until_the_kernel_has_let_go() {
    let mut world = World::new();
    let (name, kept) = world.lend(ALICE, 0, 4096);
    let pinned = world.mapper.pin(&name, ALICE, 0..4096).expect("live");
    let twice = world.mapper.pin(&name, ALICE, 0..1).expect("live");

    assert_eq!(world.lender.release(ALICE, name.index, name.generation), Ok(Ended::Dying));
    assert_eq!(pinned.liveness(), Liveness::Ended, "nothing more may be submitted");
    assert_eq!((world.lender.dying(), world.lender.reclaim()), (1, 0));
    drop(pinned);
    assert_eq!(world.lender.reclaim(), 0, "one pin is left");
    assert!(kept.upgrade().is_some(), "the range was given back under a send");
    drop(twice);
    assert_eq!((world.lender.reclaim(), world.lender.dying()), (1, 0));
    assert!(kept.upgrade().is_none(), "the range was never given back");
}

#[test]
fn an_unpinned_lease_is_free_at_once() {
    let mut world = World::new();
    let (name, kept) = world.lend(ALICE, 0, 4096);
    assert_eq!(world.lender.take_back(name.index, name.generation), Ok(Ended::Free));
    assert!(kept.upgrade().is_none());
    assert_eq!(world.lender.take_back(name.index, name.generation), Err(StaleLease::Ended));
}

#[test]
fn a_lease_that_ended_can_be_neither_pinned_nor_read_also_when_its_index_is_lent_again() {
    let mut world = World::new();
    let (old, _) = world.lend(ALICE, 0, 4096);
    let held = world.holder(ALICE).hold(&old).expect("live");
    world.lender.release(ALICE, old.index, old.generation).expect("live");
    let (new, _) = world.lend(ALICE, 1, 4096);
    assert_eq!((old.index, old.generation + 1), (new.index, new.generation));
    assert_eq!(world.mapper.pin(&old, ALICE, 0..1).err(), Some(StaleLease::Ended));
    assert_eq!(held.copy_out(0, &mut [0; 16]), Err(StaleLease::Ended));
    assert_eq!(held.for_each_chunk(0..16, |_| {}), Err(StaleLease::Ended));
    assert!(world.mapper.pin(&new, ALICE, 0..1).is_ok());
}

#[test]
fn a_lease_is_its_holders_alone() {
    let mut world = World::new();
    let (name, kept) = world.lend(ALICE, 0, 4096);
    assert_eq!(world.mapper.pin(&name, BOB, 0..1).err(), Some(StaleLease::NotYours));
    assert_eq!(world.holder(BOB).read(&name, 0, &mut [0]), Err(StaleLease::NotYours));
    assert_eq!(world.lender.release(BOB, name.index, name.generation), Err(StaleLease::NotYours));
    assert!(kept.upgrade().is_some());
}

#[test]
fn a_dead_holder_loses_its_leases_and_no_others() {
    let mut world = World::new();
    let (first, _) = world.lend(ALICE, 0, 4096);
    world.lend(ALICE, 1, 4096);
    let (bobs, kept) = world.lend(BOB, 2, 4096);
    let pinned = world.mapper.pin(&first, ALICE, 0..4096).expect("live");
    assert_eq!(world.lender.take_back_all(ALICE), 1);
    assert_eq!((world.lender.lent_count(), world.lender.dying()), (1, 1));
    assert!(kept.upgrade().is_some());
    assert!(world.mapper.pin(&bobs, BOB, 0..1).is_ok());
    drop(pinned);
    assert_eq!(world.lender.reclaim(), 1);
}

#[test]
fn pins_of_a_dead_mapper_count_until_its_fence() {
    let mut world = World::new();
    let (name, kept) = world.lend(ALICE, 0, 4096);
    // The mapper dies with a send in the kernel: its pin is never taken off.
    std::mem::forget(world.mapper.pin(&name, ALICE, 0..4096).expect("live"));
    assert!(world.page.died(MAPPER_LINE));
    assert_eq!(world.lender.release(ALICE, name.index, name.generation), Ok(Ended::Dying));
    assert_eq!(world.lender.reclaim(), 0);
    assert!(world.page.fenced(MAPPER_LINE, Epoch(1)));
    assert_eq!(world.lender.reclaim(), 1);
    assert!(kept.upgrade().is_none());
}

#[test]
fn the_news_of_a_mappers_fence_frees_what_it_pinned() {
    let mut world = World::new();
    let (name, _) = world.lend(ALICE, 0, 4096);
    std::mem::forget(world.mapper.pin(&name, ALICE, 0..4096).expect("live"));
    world.lender.release(ALICE, name.index, name.generation).expect("live");
    assert_eq!(world.lender.fenced(Incarnation(99)), 0, "another mapper's fence frees nothing");
    assert_eq!(world.lender.fenced(MAPPER), 1);
}

#[test]
fn a_dead_lenders_table_lends_nothing_to_the_kernel_whatever_it_says() {
    let mut world = World::new();
    let (name, _) = world.lend(ALICE, 0, 4096);
    let pinned = world.mapper.pin(&name, ALICE, 0..4096).expect("live");
    let held = world.holder(ALICE).hold(&name).expect("live");
    assert!(world.page.died(LENDER_LINE));
    assert_eq!(world.mapper.pin(&name, ALICE, 0..1).err(), Some(StaleLease::LenderGone));
    assert_ne!(pinned.liveness(), Liveness::Live);
    assert_eq!(held.copy_out(0, &mut [0; 16]), Ok(()), "nobody refills what it had lent");
    // Its next epoch lives, and this table is still not that epoch's.
    assert!(world.page.lives(LENDER_LINE, Epoch(EPOCH.get() + 1)));
    assert_eq!(world.mapper.pin(&name, ALICE, 0..1).err(), Some(StaleLease::LenderGone));
}

#[test]
fn a_part_of_a_lease_must_be_inside_it_whatever_length_its_name_claims() {
    let mut world = World::new();
    let (mut name, _) = world.lend(ALICE, 0, 100);
    name.length = u64::MAX;
    assert!(world.mapper.pin(&name, ALICE, 0..100).is_ok());
    #[expect(clippy::reversed_empty_ranges, reason = "a peer can name one")]
    for wrong in [0..101, 100..101, 101..101, u64::MAX - 1..u64::MAX, 50..40, 1..u64::MAX] {
        assert_eq!(world.mapper.pin(&name, ALICE, wrong.clone()).err(), Some(StaleLease::OutOfRange), "{wrong:?}");
    }
    let holder = world.holder(ALICE);
    assert_eq!(holder.hold(&name).expect("live").len(), 100);
    assert_eq!(holder.read(&name, 1, &mut [0; 100]), Err(StaleLease::OutOfRange));
    assert_eq!(holder.read(&name, usize::MAX, &mut [0; 2]), Err(StaleLease::OutOfRange));
}

#[test]
fn lenders_and_regions_count_only_when_they_were_introduced() {
    let mut world = World::new();
    let (mut name, _) = world.lend(ALICE, 0, 4096);
    name.lender = LenderId(12);
    assert_eq!(world.mapper.pin(&name, ALICE, 0..1).err(), Some(StaleLease::UnknownLender));
    let elsewhere = Lend { region: RegionId(22), offset: 0, length: 1, source: None, keep: Rc::new(()) };
    let name = world.lender.lend(ALICE, elsewhere).expect("there is room");
    assert_eq!(world.mapper.pin(&name, ALICE, 0..1).err(), Some(StaleLease::UnknownRegion));
    let other = Region::create("other", RegionId(22), 4096).expect("memory");
    let reader = RegionReader::open(other.fd().try_clone_to_owned().expect("dup"), RegionId(22)).expect("sealed");
    assert!(world.mapper.add_region(LENDER, reader));
    let pinned = world.mapper.pin(&name, ALICE, 0..1).expect("known by now");
    world.mapper.remove_region(RegionId(22));
    assert_eq!(world.mapper.pin(&name, ALICE, 0..1).err(), Some(StaleLease::UnknownRegion));
    assert_eq!(pinned.region.copy_out(0, &mut [1]), Ok(()), "a pin keeps its region mapped");
}

#[test]
fn segments_that_are_not_what_the_broker_said_are_refused() {
    let world = World::new();
    let pins = |lender, capacity| PinSegment::create(MAPPER, Epoch(1), lender, capacity).expect("memory");
    let mut lender = Lender::new(LENDER, EPOCH, CAPACITY).expect("memory");
    let good = pins(LENDER, CAPACITY);
    assert!(lender.attach_pins(BOB, Epoch(1), reopen(good.fd())).is_err(), "another mapper's");
    assert!(lender.attach_pins(MAPPER, Epoch(2), reopen(good.fd())).is_err(), "another epoch's");
    assert!(lender.attach_pins(MAPPER, Epoch(1), reopen(pins(LenderId(12), CAPACITY).fd())).is_err());
    assert!(lender.attach_pins(MAPPER, Epoch(1), reopen(pins(LENDER, CAPACITY - 1).fd())).is_err(), "too few counts");
    assert!(lender.attach_pins(MAPPER, Epoch(1), reopen(world.lender.table_fd())).is_err(), "no pin segment at all");
    assert!(lender.attach_pins(MAPPER, Epoch(1), reopen(good.fd())).is_ok());

    let mut mapper = Mapper::new();
    let mut introduce = |id, epoch, table, pins| mapper.introduce(id, epoch, table, &[], pins, None);
    assert!(introduce(LenderId(12), EPOCH, world.table(), pins(LenderId(12), CAPACITY)).is_err());
    assert!(introduce(LENDER, Epoch(4), world.table(), pins(LENDER, CAPACITY)).is_err());
    assert!(introduce(LENDER, EPOCH, reopen(good.fd()), pins(LENDER, CAPACITY)).is_err(), "no table at all");
    assert!(introduce(LENDER, EPOCH, world.table(), pins(LENDER, CAPACITY - 1)).is_err());
    assert!(introduce(LENDER, EPOCH, world.table(), pins(LenderId(12), CAPACITY)).is_err());
    assert!(introduce(LENDER, EPOCH, world.table(), pins(LENDER, CAPACITY)).is_ok());
}

#[test]
fn a_region_is_copied_in_and_out_within_its_bounds_only() {
    let region = Region::create("region", REGION, 10_000).expect("memory");
    let reader = RegionReader::open(region.fd().try_clone_to_owned().expect("dup"), REGION).expect("sealed");
    let bytes: Vec<u8> = (0..5000).map(|i| (i % 7) as u8).collect();
    region.copy_in(1000, &bytes).expect("inside");
    let mut chunks = Vec::new();
    reader.for_each_chunk(1000..6000, |chunk| chunks.extend_from_slice(chunk)).expect("inside");
    assert_eq!(chunks, bytes);
    assert_eq!(region.copy_in(9_999, &[1, 2]), Err(OutOfRange));
    assert_eq!(reader.copy_out(10_000, &mut [0]), Err(OutOfRange));
    #[expect(clippy::reversed_empty_ranges, reason = "a peer can name one")]
    for wrong in [9_999..10_001, 5..4, usize::MAX - 1..usize::MAX] {
        assert_eq!(reader.for_each_chunk(wrong, |_| panic!("looked")), Err(OutOfRange));
    }
    assert!(reader.slice(9_000, 1_001).is_err() && region.slice(usize::MAX, 2).is_err());
    let (theirs, own) = (reader.slice(9_000, 1_000).expect("inside"), region.slice(1, 2).expect("inside"));
    assert_eq!((theirs.io_len(), own.io_len()), (1_000, 2));
}

#[test]
fn the_status_page_has_the_lines_it_says_and_no_more() {
    let page = StatusPage::create(2).expect("memory");
    let reader = StatusReader::open(page.fd().try_clone_to_owned().expect("dup")).expect("a page");
    let line = reader.endpoint(1).expect("a line");
    assert_eq!((line.live_epoch(), line.fenced_epoch()), (Epoch(0), Epoch(0)));
    assert!(!line.lives(Epoch(0)), "0 is no epoch: none lives");
    assert!(page.lives(1, Epoch(7)) && line.lives(Epoch(7)) && !line.lives(Epoch(6)));
    assert!(page.died(1) && !line.lives(Epoch(7)));
    assert!(page.fenced(1, Epoch(7)));
    assert_eq!(line.fenced_epoch(), Epoch(7));
    assert!(!page.lives(2, Epoch(1)) && page.word(2).is_none() && reader.endpoint(2).is_none());
}

#[test]
fn a_lease_is_summed_and_copied_with_its_sum() {
    let mut world = World::new();
    let (name, _) = world.lend(ALICE, 1, 4096);
    let bytes: Vec<u8> = (4096..8192).map(|i| (i % 251) as u8).collect();
    let expected = crate::sys::crc32c::append(0, &bytes[8..4000]);
    let held = world.holder(ALICE).hold(&name).expect("live");
    assert_eq!(held.crc32c(0, 8..4000), Ok(expected));
    assert_eq!(held.crc32c(0, 0..4097), Err(StaleLease::OutOfRange));

    let own = Region::create("own", RegionId(22), 8192).expect("memory");
    assert_eq!(held.copy_and_crc(0, 8..4000, &own, 16), Ok(expected));
    let mut copy = vec![0; 3992];
    own.copy_out(16, &mut copy).expect("inside");
    assert_eq!(copy, bytes[8..4000]);
    assert_eq!(own.crc32c(0, 16..4008), Ok(expected));
    assert_eq!(held.copy_and_crc(0, 0..4096, &own, 4097), Err(StaleLease::OutOfRange));

    world.lender.release(ALICE, name.index, name.generation).expect("live");
    assert_eq!(held.crc32c(0, 8..4000), Err(StaleLease::Ended));
    assert_eq!(held.copy_and_crc(0, 0..1, &own, 0), Err(StaleLease::Ended));
}

#[test]
fn an_extent_is_in_use_until_its_last_lease_has_ended() {
    let region = Region::create("region", REGION, 3 * 4096).expect("memory");
    let pool = Pool::new(region, 4096);
    let first = Rc::new(pool.take(5000).expect("two granules"));
    assert_eq!((first.len(), first.io_len(), pool.free()), (5000, 5000, 4096));
    assert!(pool.take(4097).is_none());
    first.copy_in(4990, &[7; 10]).expect("inside");
    assert_eq!(first.copy_in(4991, &[7; 10]), Err(OutOfRange));

    let mut lender = Lender::new(LENDER, EPOCH, 4).expect("memory");
    let lend = first.lend(4990..5000).expect("inside");
    assert_eq!((lend.region, lend.offset, lend.length), (REGION, first.offset() as u64 + 4990, 10));
    assert!(first.lend(0..5001).is_err());
    let name = lender.lend(ALICE, lend).expect("there is room");
    drop(first);
    assert_eq!(pool.free(), 4096, "the lease keeps it");
    lender.take_back(name.index, name.generation).expect("live");
    assert_eq!(pool.free(), 3 * 4096);
}
