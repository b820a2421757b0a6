use std::collections::HashSet;
use std::rc::Weak;

use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Mapper, PinSegment, Pinned};
use super::*;

fn lend(length: u64) -> Lend {
    Lend { region: REGION, offset: 0, length, source: None, keep: Rc::new(()) }
}

#[test]
fn an_index_is_retired_at_its_last_generation() {
    let mut lender = Lender::new(LENDER, EPOCH, 2).expect("memory");
    lender.last_generation = 3;
    let mut seen = HashSet::new();
    while let Ok(name) = lender.lend(ALICE, lend(1)) {
        assert!(seen.insert((name.index, name.generation)), "{name:?} named two leases");
        lender.take_back(name.index, name.generation).expect("live");
    }
    assert_eq!(seen.len(), 6, "two indices of three generations");
    assert_eq!(lender.lend(ALICE, lend(1)), Err(LendError::TableFull));
}

#[test]
fn a_holder_can_have_so_much_at_a_time_and_dying_counts() {
    let limits = HolderLimits { leases: 2, bytes: 100 };
    let mut lender = Lender::new(LENDER, EPOCH, 8).expect("memory");
    lender.set_limits(limits);
    let pins = PinSegment::create(MAPPER, Epoch(1), LENDER, 8).expect("memory");
    lender.attach_pins(MAPPER, Epoch(1), reopen(pins.fd())).expect("good");
    let first = lender.lend(ALICE, lend(60)).expect("within limits");
    assert_eq!(lender.lend(ALICE, lend(41)), Err(LendError::HolderQuota));
    assert_eq!(lender.lend(ALICE, lend(u64::MAX)), Err(LendError::HolderQuota));
    lender.lend(ALICE, lend(40)).expect("exactly at the limit");
    assert_eq!(lender.lend(ALICE, lend(1)), Err(LendError::HolderQuota));
    lender.lend(BOB, lend(100)).expect("another holder");

    pins.memory().store_u32(super::super::layout::pin_at(first.index), 1, Relaxed);
    assert_eq!(lender.release(ALICE, first.index, first.generation), Ok(Ended::Dying));
    assert_eq!(lender.lend(ALICE, lend(1)), Err(LendError::HolderQuota), "released, but not free");
    pins.memory().store_u32(super::super::layout::pin_at(first.index), 0, Relaxed);
    lender.lend(ALICE, lend(60)).expect("free again, also for who never asks");
    assert_eq!((lender.dying(), lender.reclaim()), (0, 0));
}

#[test]
fn impossible_ranges_and_capacities_are_refused() {
    let mut lender = Lender::new(LENDER, EPOCH, 2).expect("memory");
    assert_eq!(lender.lend(ALICE, lend(0)), Err(LendError::BadRange));
    let beyond = Lend { offset: u64::MAX, ..lend(2) };
    assert_eq!(lender.lend(ALICE, beyond), Err(LendError::BadRange));
    assert!(Lender::new(LENDER, EPOCH, 0).is_err() && Lender::new(LENDER, EPOCH, u32::MAX).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Lend { to: u64, length: u64 },
    Release { by: u64, lease: usize },
    TakeBack { lease: usize },
    TakeBackAll { of: u64 },
    Pin { by: u64, lease: usize },
    Unpin { pin: usize },
    Reclaim,
    Fence,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..3, 1u64..40).prop_map(|(to, length)| Step::Lend { to, length }),
        3 => (0u64..3, 0usize..64).prop_map(|(by, lease)| Step::Release { by, lease }),
        1 => (0usize..64).prop_map(|lease| Step::TakeBack { lease }),
        1 => (0u64..3).prop_map(|of| Step::TakeBackAll { of }),
        5 => (0u64..3, 0usize..64).prop_map(|(by, lease)| Step::Pin { by, lease }),
        4 => (0usize..64).prop_map(|pin| Step::Unpin { pin }),
        2 => Just(Step::Reclaim),
        1 => Just(Step::Fence),
    ]
}

/// What the model knows of a lease that was ever lent.
struct Known {
    name: LeaseName,
    holder: Incarnation,
    live: bool,
    kept: Weak<()>,
}

proptest! {
    /// Lender and mapper against a list of leases and a list of pins: what a lease keeps is dropped exactly when the
    /// lease was taken back and no unfenced pin of it is left.
    #[test]
    fn leases_end_exactly_when_nobody_uses_them(
        capacity in 1u32..5,
        last_generation in 1u32..6,
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let mut lender = Lender::new(LENDER, EPOCH, capacity).expect("memory");
        lender.last_generation = last_generation;
        let region = super::super::Region::create("region", REGION, 4096).expect("memory");
        let regions = [(REGION, super::super::RegionReader::open(
            region.fd().try_clone_to_owned().expect("dup"), REGION).expect("sealed"))];
        let mut mapper_number = 31;
        let mut attach = |lender: &mut Lender, mapper: &mut Mapper| {
            mapper_number += 1;
            let me = Incarnation(mapper_number);
            let pins = PinSegment::create(me, Epoch(1), LENDER, capacity).expect("memory");
            lender.attach_pins(me, Epoch(1), reopen(pins.fd())).expect("good");
            mapper.introduce(LENDER, EPOCH, reopen(lender.table_fd()), &regions, pins, None).expect("good");
            me
        };
        let mut mapper = Mapper::new();
        let mut me = attach(&mut lender, &mut mapper);

        let mut leases: Vec<Known> = Vec::new();
        let mut pins: Vec<(usize, Pinned)> = Vec::new();
        let holder = |n: u64| Incarnation(100 + n);
        for step in steps {
            match step {
                Step::Lend { to, length } => {
                    let keep = Rc::new(());
                    let kept = Rc::downgrade(&keep);
                    match lender.lend(holder(to), Lend { region: REGION, offset: 7, length, source: None, keep }) {
                        Ok(name) => {
                            prop_assert!(leases.iter().all(|known| known.name != name
                                && (known.name.index, known.name.generation) != (name.index, name.generation)));
                            prop_assert!(name.index < capacity && name.generation <= last_generation);
                            leases.push(Known { name, holder: holder(to), live: true, kept });
                        }
                        Err(error) => prop_assert_eq!(error, LendError::TableFull),
                    }
                }
                Step::Release { by, lease } if !leases.is_empty() => {
                    let at = lease % leases.len();
                    let known = &mut leases[at];
                    let result = lender.release(holder(by), known.name.index, known.name.generation);
                    if !known.live {
                        prop_assert_eq!(result, Err(StaleLease::Ended));
                    } else if known.holder != holder(by) {
                        prop_assert_eq!(result, Err(StaleLease::NotYours));
                    } else {
                        known.live = false;
                        let pinned = pins.iter().any(|(pinned, _)| *pinned == at);
                        prop_assert_eq!(result, Ok(if pinned { Ended::Dying } else { Ended::Free }));
                    }
                }
                Step::TakeBack { lease } if !leases.is_empty() => {
                    let at = lease % leases.len();
                    let known = &mut leases[at];
                    prop_assert_eq!(lender.take_back(known.name.index, known.name.generation).is_ok(), known.live);
                    known.live = false;
                }
                Step::TakeBackAll { of } => {
                    let theirs: Vec<usize> =
                        (0..leases.len()).filter(|at| leases[*at].live && leases[*at].holder == holder(of)).collect();
                    let pinned = theirs.iter().filter(|at| pins.iter().any(|(pinned, _)| pinned == *at)).count();
                    prop_assert_eq!(lender.take_back_all(holder(of)), pinned);
                    theirs.into_iter().for_each(|at| leases[at].live = false);
                }
                Step::Pin { by, lease } if !leases.is_empty() => {
                    let at = lease % leases.len();
                    let known = &leases[at];
                    match mapper.pin(&known.name, holder(by), 0..1) {
                        Ok(pinned) => {
                            prop_assert!(known.live && known.holder == holder(by));
                            pins.push((at, pinned));
                        }
                        Err(StaleLease::Ended) => prop_assert!(!known.live),
                        Err(error) => {
                            prop_assert_eq!(error, StaleLease::NotYours);
                            prop_assert!(known.live && known.holder != holder(by));
                        }
                    }
                }
                Step::Unpin { pin } if !pins.is_empty() => {
                    let at = pin % pins.len();
                    drop(pins.swap_remove(at));
                }
                Step::Reclaim => {
                    lender.reclaim();
                    for (at, known) in leases.iter().enumerate() {
                        let used = known.live || pins.iter().any(|(pinned, _)| *pinned == at);
                        prop_assert_eq!(known.kept.upgrade().is_some(), used);
                    }
                }
                Step::Fence => {
                    // The mapper dies, its pins stay where they are; its fence ends; another mapper comes.
                    pins.drain(..).for_each(|(_, pinned)| std::mem::forget(pinned));
                    lender.fenced(me);
                    mapper = Mapper::new();
                    me = attach(&mut lender, &mut mapper);
                }
                _ => {}
            }
            prop_assert_eq!(lender.lent_count(), leases.iter().filter(|known| known.live).count());
            let used = |at: usize| leases[at].live || pins.iter().any(|(pinned, _)| *pinned == at);
            prop_assert!((0..leases.len()).all(|at| !used(at) || leases[at].kept.upgrade().is_some()));
        }
    }
}
