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
