//! What the keeper holds for the supervisor: records, each with a tag and at most one descriptor.
//!
//! - A record is found by its key: kind, slot and number mean what the supervisor wants them to mean. Its tag is bytes of a
//!   fixed size that nobody here looks into.
//! - Putting a record replaces the tag of one with the same key, and its descriptor if it comes with another one; taking it
//!   away closes the descriptor.
//! - A supervisor that starts lists all of them. Every record lives until it is taken away or the node ends.
//! - All memory is allocated at the start.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::wire::{Key, TAG};

/// Most records. With a descriptor each they are half of what a process may have open.
pub const MAX_RECORDS: usize = 32 << 10;

/// A record.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) key: Key,
    pub(super) tag: [u8; TAG],
    pub(super) descriptor: Option<OwnedFd>,
}

/// All records.
#[derive(Debug)]
pub(super) struct Store {
    records: Vec<Option<Record>>,
    places: HashMap<Key, u32>,
    free: Vec<u32>,
    most: usize,
}

impl Store {
    /// An empty store for at most `most` records.
    pub(super) fn new(most: usize) -> Store {
        Store {
            records: Vec::with_capacity(most),
            // Twice as many: with less than half of it in use the map tidies up in its place, and never grows.
            places: HashMap::with_capacity(2 * most),
            free: Vec::with_capacity(most),
            most,
        }
    }

    /// Puts a record, in the place of one with the same key.
    ///
    /// # Errors
    /// `ENOSPC` when there are too many; nothing has changed.
    pub(super) fn put(&mut self, record: Record) -> Result<(), Errno> {
        if let Some(&place) = self.places.get(&record.key) {
            let known = &mut self.records[place as usize];
            let before = known.take().and_then(|known| known.descriptor);
            *known = Some(Record { descriptor: record.descriptor.or(before), ..record });
            return Ok(());
        }
        let key = record.key;
        let place = match self.free.pop() {
            Some(place) => {
                self.records[place as usize] = Some(record);
                place
            }
            None if self.records.len() < self.most => {
                self.records.push(Some(record));
                self.records.len() as u32 - 1
            }
            None => return Err(Errno::ENOSPC),
        };
        self.places.insert(key, place);
        Ok(())
    }

    /// Takes a record away, if there is one.
    pub(super) fn take(&mut self, key: &Key) -> Option<Record> {
        let place = self.places.remove(key)?;
        self.free.push(place);
        self.records.get_mut(place as usize)?.take()
    }

    /// The first record at `cursor` or behind, and the cursor of the next one.
    pub(super) fn next(&self, cursor: u64) -> Option<(&Record, u64)> {
        let from = usize::try_from(cursor).ok()?;
        let (at, record) =
            self.records.iter().enumerate().skip(from).find_map(|(at, known)| Some((at, known.as_ref()?)))?;
        Some((record, at as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key { kind: 7, slot: 3, number }
    }

    fn record(number: u64, tag: u8, descriptor: Option<OwnedFd>) -> Record {
        Record { key: key(number), tag: [tag; TAG], descriptor }
    }

    fn listed(store: &Store) -> Vec<(u64, u8)> {
        let mut cursor = 0;
        let next = || {
            let (record, next) = store.next(cursor)?;
            cursor = next;
            Some((record.key.number, record.tag[0]))
        };
        let mut all: Vec<_> = std::iter::from_fn(next).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_record_is_replaced_listed_and_taken_away() {
        let mut store = Store::new(8);
        assert!(store.next(0).is_none());
        for (number, tag) in [(1, 1), (2, 2), (3, 3), (2, 9)] {
            store.put(record(number, tag, None)).unwrap();
        }
        assert_eq!(listed(&store), [(1, 1), (2, 9), (3, 3)]);
        assert_eq!(store.take(&key(2)).unwrap().tag[0], 9);
        assert!(store.take(&key(2)).is_none());
        store.put(record(4, 4, None)).unwrap();
        assert_eq!(listed(&store), [(1, 1), (3, 3), (4, 4)]);
        assert!(store.next(u64::MAX).is_none());
    }

    #[test]
    fn kind_slot_and_number_tell_records_apart() {
        let mut store = Store::new(8);
        let keys = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)].map(|(kind, slot, number)| Key { kind, slot, number });
        for (tag, key) in (0..).zip(keys) {
            store.put(Record { key, tag: [tag; TAG], descriptor: None }).unwrap();
        }
        for (tag, key) in (0..).zip(keys) {
            assert_eq!(store.take(&key).unwrap().tag[0], tag);
        }
    }

    #[test]
    fn a_full_store_refuses_what_is_new_and_never_grows() {
        let mut store = Store::new(100);
        (0..100).for_each(|number| store.put(record(number, 0, None)).unwrap());
        assert_eq!(store.put(record(100, 0, None)).unwrap_err(), Errno::ENOSPC);
        store.put(record(99, 5, None)).unwrap();
        let (map, records) = (store.places.capacity(), store.records.capacity());
        for number in 100..50_000 {
            store.take(&key(number - 100)).unwrap();
            store.put(record(number, 0, None)).unwrap();
        }
        // The map's capacity counts without what has to be tidied up.
        assert!(store.places.capacity() <= map && store.records.capacity() == records);
        assert_eq!(listed(&store).len(), 100);
    }

    #[test]
    fn a_record_that_is_replaced_or_taken_away_closes_its_descriptor() {
        let mut store = Store::new(8);
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (end, held) = nix::unistd::pipe().unwrap();
            store.put(record(1, 0, Some(held))).unwrap();
            ends.push(end);
        }
        // End of file: nobody has the write end any more.
        assert_eq!(nix::unistd::read(&ends[0], &mut [0]).unwrap(), 0);
        store.put(record(1, 7, None)).unwrap();
        let kept = store.next(0).unwrap().0;
        assert!(kept.tag[0] == 7 && kept.descriptor.is_some(), "a new tag leaves it open");
        drop(store.take(&key(1)));
        assert_eq!(nix::unistd::read(&ends[1], &mut [0]).unwrap(), 0);
    }
}
