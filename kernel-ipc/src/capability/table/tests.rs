use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn grant(n: u64) -> Grant {
    Grant { object: [n, !n], kind: (n % 3) as u8, rights: Rights::READ | Rights::WRITE, badge: n * 7 }
}

#[test]
fn a_handle_finds_what_was_granted_and_nothing_else_does() {
    let mut table = Table::new(8);
    let handle = table.insert(grant(3)).expect("below the quota");
    assert_eq!(table.lookup(handle, 0, Rights::READ), Ok(&grant(3)));
    let next = Handle { generation: handle.generation + 1, ..handle };
    let beyond = Handle { index: handle.index + 1, ..handle };
    for wrong in [Handle::default(), next, beyond, Handle { index: u32::MAX, generation: u32::MAX }] {
        assert_eq!(table.lookup(wrong, 0, Rights::empty()), Err(Cause::StaleHandle), "{wrong:?}");
    }
}

#[test]
fn a_wrong_kind_and_a_missing_right_are_refused_with_their_own_causes() {
    let mut table = Table::new(8);
    let handle = table.insert(grant(1)).expect("below the quota");
    assert_eq!(table.lookup(handle, 2, Rights::READ), Err(Cause::WrongKind));
    assert_eq!(table.lookup(handle, 1, Rights::READ | Rights::MAP), Err(Cause::RightsMissing));
    // The kind comes first: a caller learns nothing about rights on an object that its operation does not take.
    assert_eq!(table.lookup(handle, 2, Rights::MAP), Err(Cause::WrongKind));
}

#[test]
fn a_removed_handle_stays_stale_when_its_index_comes_back() {
    let mut table = Table::new(1);
    let old = table.insert(grant(1)).expect("below the quota");
    assert_eq!(table.remove(old), Ok(grant(1)));
    assert_eq!(table.remove(old), Err(Cause::StaleHandle));
    let new = table.insert(grant(2)).expect("below the quota");
    assert_eq!(new.index, old.index);
    assert_eq!(table.entry(old), Err(Cause::StaleHandle));
    assert_eq!(table.entry(new), Ok(&grant(2)));
}

#[test]
fn an_index_is_retired_at_its_last_generation() {
    let mut table = Table::new(1);
    table.last_generation = 3;
    let mut seen = HashSet::new();
    for n in 0..20 {
        let handle = table.insert(grant(n)).expect("a retired index does not use up the quota");
        assert!(handle.generation <= 3);
        assert!(seen.insert(handle), "{handle:?} named two entries");
        table.remove(handle).expect("just inserted");
    }
}

#[test]
fn the_quota_bounds_what_is_held_at_a_time() {
    let mut table = Table::new(2);
    let first = table.insert(grant(1)).expect("below the quota");
    table.insert(grant(2)).expect("below the quota");
    assert_eq!(table.insert(grant(3)), Err(Quota));
    table.remove(first).expect("live");
    table.insert(grant(3)).expect("one was removed");
    assert_eq!(Table::new(0).insert(grant(1)), Err(Quota));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64),
    Remove(usize),
    RemoveStale(usize),
    Lookup(usize, u8, u32),
    Guess(u32, u32),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..1000).prop_map(Step::Insert),
        4 => any::<prop::sample::Index>().prop_map(|i| Step::Remove(i.index(1 << 16))),
        1 => any::<prop::sample::Index>().prop_map(|i| Step::RemoveStale(i.index(1 << 16))),
        4 => (0usize..64, 0u8..4, 0u32..16).prop_map(|(i, kind, rights)| Step::Lookup(i, kind, rights)),
        2 => (0u32..12, 0u32..6).prop_map(|(index, generation)| Step::Guess(index, generation)),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    /// The table against a map from handles to grants, with generations so few that indices retire.
    #[test]
    fn the_table_behaves_like_a_map_whose_keys_never_repeat(
        quota in 0u32..8,
        last_generation in 1u32..5,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut table = Table::new(quota);
        table.last_generation = last_generation;
        let mut live: HashMap<Handle, Grant> = HashMap::new();
        let mut order: Vec<Handle> = Vec::new();
        let mut ever: Vec<Handle> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(n) => match table.insert(grant(n)) {
                    Ok(handle) => {
                        prop_assert!(live.len() < quota as usize);
                        prop_assert!(!ever.contains(&handle), "{:?} named two entries", handle);
                        prop_assert!(handle.generation != 0 && handle.generation <= last_generation);
                        live.insert(handle, grant(n));
                        order.push(handle);
                        ever.push(handle);
                    }
                    Err(Quota) => prop_assert_eq!(live.len(), quota as usize),
                },
                Step::Remove(i) if !order.is_empty() => {
                    let handle = order.swap_remove(i % order.len());
                    prop_assert_eq!(table.remove(handle).ok(), live.remove(&handle));
                }
                Step::RemoveStale(i) if !ever.is_empty() => {
                    let handle = ever[i % ever.len()];
                    order.retain(|other| *other != handle);
                    prop_assert_eq!(table.remove(handle).ok(), live.remove(&handle));
                }
                Step::Lookup(i, kind, bits) if !ever.is_empty() => {
                    let handle = ever[i % ever.len()];
                    let rights = Rights::from_bits_retain(bits);
                    let expected = match live.get(&handle) {
                        None => Err(Cause::StaleHandle),
                        Some(entry) if entry.kind != kind => Err(Cause::WrongKind),
                        Some(entry) if !entry.rights.contains(rights) => Err(Cause::RightsMissing),
                        Some(entry) => Ok(entry),
                    };
                    prop_assert_eq!(table.lookup(handle, kind, rights), expected);
                }
                Step::Guess(index, generation) => {
                    let handle = Handle { index, generation };
                    prop_assert_eq!(table.entry(handle).ok(), live.get(&handle));
                }
                Step::Drain => {
                    prop_assert_eq!(table.drain().len(), live.len());
                    live.clear();
                    order.clear();
                }
                _ => {}
            }
            prop_assert_eq!(table.len(), live.len());
            prop_assert_eq!(table.iter().map(|(handle, grant)| (handle, *grant)).collect::<HashMap<_, _>>(), live.clone());
        }
    }
}
