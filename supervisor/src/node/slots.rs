//! Which component has which slot: the same as long as the node lives, whatever becomes of its manifest meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use super::Found;
use super::records::{Kept, Kind, NamedTag, Records, read, tag, text};
use crate::keeper::wire::{FIRST_GUEST_SLOT, SUPERVISOR_SLOT};
use crate::manifest::Component;

/// The slot of each component, in their order, and the records that say so.
///
/// # Errors
/// Of the keeper's socket; or there are more components than slots.
pub(super) fn assign(
    components: &[Component],
    found: &mut Found,
    records: &Rc<Records>,
) -> io::Result<(Vec<u32>, Vec<Kept>)> {
    let mut known = BTreeMap::new();
    while let Some(record) = found.take(Kind::Name) {
        let kept = records.know(record.key, None);
        if let Some(name) = read(&tag::<NamedTag>(&record.tag).name) {
            known.insert(name, (record.key.slot, kept));
        }
    }
    // Also of those that are no more: what is left of them is taken away by and by.
    let taken: Vec<u32> = known.values().map(|(slot, _)| *slot).collect();
    let mut free = (SUPERVISOR_SLOT + 1..FIRST_GUEST_SLOT).filter(|slot| !taken.contains(slot));
    let (mut slots, mut names) = (Vec::new(), Vec::new());
    for component in components {
        let (slot, name) = match known.remove(&component.name) {
            Some(known) => known,
            // Where nothing is known, by their order: so it was before there were such records.
            None => {
                let slot = free.next().ok_or_else(|| io::Error::other("there are too many components"))?;
                let name = text(&component.name).ok_or_else(|| io::Error::other("a name that is none"))?;
                (slot, records.put(Kind::Name, slot, 0, &NamedTag { number: 0, name }, None)?)
            }
        };
        slots.push(slot);
        names.push(name);
    }
    Ok((slots, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::Key;
    use crate::manifest::{EMBEDDED, Manifest, Origin};
    use crate::node::link::Record;
    use zerocopy::IntoBytes;

    fn found(names: &[(&str, u32)]) -> Found {
        let record = |&(name, slot): &(&str, u32)| {
            let said = NamedTag { number: 0, name: text(name).expect("it is short") };
            let mut tag = [0; crate::keeper::wire::TAG];
            tag[..size_of::<NamedTag>()].copy_from_slice(said.as_bytes());
            Record { key: Key { kind: Kind::Name as u32, slot, number: 0 }, tag, descriptor: None }
        };
        Found { turn: 1, records: names.iter().map(record).collect(), progress: None }
    }

    fn assigned(names: &[(&str, u32)]) -> Vec<u32> {
        let components =
            Manifest::load(Origin::Text { name: "web", text: EMBEDDED }, &[]).expect("it is good").components;
        assign(&components, &mut found(names), &Rc::new(Records::to_nobody())).expect("there is room").0
    }

    #[test]
    fn a_component_keeps_its_slot_and_others_get_free_ones() {
        assert_eq!(assigned(&[]), [1, 2, 3, 4], "in their order");
        assert_eq!(assigned(&[("httpd", 1), ("disk", 4), ("fs", 3), ("net", 2)]), [4, 3, 2, 1]);
        // One is new, one is gone and its slot not yet free, and the first two are as they were.
        assert_eq!(assigned(&[("disk", 1), ("fs", 2), ("gone", 3), ("net", 4)]), [1, 2, 4, 5]);
    }

    #[test]
    fn more_components_than_slots_are_refused() {
        let taken: Vec<(String, u32)> = (1..FIRST_GUEST_SLOT - 2).map(|slot| (format!("x{slot}"), slot)).collect();
        let taken: Vec<(&str, u32)> = taken.iter().map(|(name, slot)| (name.as_str(), *slot)).collect();
        let components = Manifest::load(Origin::Embedded, &[]).expect("it is good").components;
        assert!(assign(&components, &mut found(&taken), &Rc::new(Records::to_nobody())).is_err());
    }
}
