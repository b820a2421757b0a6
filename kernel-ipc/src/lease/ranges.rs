//! Who uses which part of a region: an allocator of ranges, in the owner's private memory.
//!
//! * First fit, in whole granules; freed neighbours are joined.
//! * Makes no system call; memory of its own grows with the number of holes.

use std::collections::BTreeMap;

/// The free ranges of a region of `len` bytes.
pub struct Ranges {
    /// Start → end, disjoint and never touching.
    holes: BTreeMap<u64, u64>,
    granule: u64,
    free: u64,
}

impl Ranges {
    /// All of `len` bytes free, given out in multiples of `granule` (a power of two; what does not fill one is lost).
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn new(len: u64, granule: u64) -> Self {
        assert!(granule.is_power_of_two(), "the granule is the caller's constant");
        let usable = len - len % granule;
        let holes = if usable == 0 { BTreeMap::new() } else { BTreeMap::from([(0, usable)]) };
        Self { holes, granule, free: usable }
    }

    /// Takes `len` bytes, rounded up to granules; returns where they begin. O(holes).
    /// `None` if no hole is large enough, or `len` is zero.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let len = self.rounded(len)?;
        let (&start, &end) = self.holes.iter().find(|(start, end)| *end - *start >= len)?;
        self.holes.remove(&start);
        if end - start > len {
            self.holes.insert(start + len, end);
        }
        self.free -= len;
        Some(start)
    }

    /// Gives back what [`Ranges::take`] gave for this `len`. O(log holes).
    ///
    /// # Panics
    /// If any of it is free already: the owner's books are wrong, and going on would hand out memory twice.
    pub fn give_back(&mut self, start: u64, len: u64) {
        let len = self.rounded(len).expect("only what was taken is given back");
        let (mut from, mut to) = (start, start + len);
        if let Some((&before, &before_end)) = self.holes.range(..=start).next_back() {
            assert!(before_end <= start, "range given back twice");
            if before_end == start {
                self.holes.remove(&before);
                from = before;
            }
        }
        if let Some((&after, &after_end)) = self.holes.range(start..).next() {
            assert!(to <= after, "range given back twice");
            if after == to {
                self.holes.remove(&after);
                to = after_end;
            }
        }
        self.holes.insert(from, to);
        self.free += len;
    }

    /// Bytes that are free, in however many holes.
    pub fn free(&self) -> u64 {
        self.free
    }

    fn rounded(&self, len: u64) -> Option<u64> {
        let rounded = len.checked_add(self.granule - 1)? & !(self.granule - 1);
        (rounded != 0).then_some(rounded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_of_it_can_be_taken_and_comes_back_in_one_piece() {
        let mut ranges = Ranges::new(10_000, 4096);
        assert_eq!(ranges.free(), 8192);
        assert_eq!((ranges.take(1), ranges.take(4096), ranges.take(1)), (Some(0), Some(4096), None));
        ranges.give_back(0, 1);
        ranges.give_back(4096, 4096);
        assert_eq!(ranges.take(8192), Some(0));
        assert_eq!((ranges.take(0), ranges.take(u64::MAX)), (None, None));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_noticed() {
        let mut ranges = Ranges::new(8192, 4096);
        ranges.take(8192);
        ranges.give_back(0, 4096);
        ranges.give_back(0, 8192);
    }

    proptest! {
        #[test]
        fn no_byte_is_given_to_two(steps in prop::collection::vec((any::<bool>(), 1u64..20_000, 0usize..64), 1..100)) {
            let mut ranges = Ranges::new(1 << 16, 512);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, len, which) in steps {
                if take {
                    if let Some(start) = ranges.take(len) {
                        prop_assert!(start + len <= 1 << 16 && start.is_multiple_of(512));
                        prop_assert!(taken.iter().all(|(other, theirs)| start + len <= *other || other + theirs <= start));
                        taken.push((start, len));
                    }
                } else if !taken.is_empty() {
                    let (start, len) = taken.swap_remove(which % taken.len());
                    ranges.give_back(start, len);
                }
                let used: u64 = taken.iter().map(|(_, len)| len.next_multiple_of(512)).sum();
                prop_assert_eq!(ranges.free(), (1 << 16) - used);
            }
            taken.drain(..).for_each(|(start, len)| ranges.give_back(start, len));
            prop_assert_eq!(ranges.take(1 << 16), Some(0), "holes were joined");
        }
    }
}
