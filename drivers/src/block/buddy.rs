//! The allocator of a driver's region: ranges of 1 to 256 blocks (4 KiB to 1 MiB), none across a 1-MiB chunk.
//!
//! - No system calls; all numbers are blocks.
//! - A range of a power of two of blocks is aligned to its length. Other lengths take the front of the next
//!   power of two, and the rest stays free.
//! - Of the smallest free pieces that fit, the one at the lowest address is taken, so that the part of the
//!   region that was ever touched (and registered, and resident) stays small.
//! - Neighbours that are free are always merged: after everything was freed, every chunk is whole.

use std::ops::Range;

/// Blocks in a chunk, the largest range.
pub const CHUNK_BLOCKS: u32 = 256;
/// log2 of [`CHUNK_BLOCKS`].
const TOP: usize = CHUNK_BLOCKS.ilog2() as usize;

/// A set of numbers that finds its smallest member quickly: one summary bit per word.
struct Bitmap {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Bitmap {
    fn new(length: usize) -> Bitmap {
        let words = length.div_ceil(64);
        Bitmap { words: vec![0; words], summary: vec![0; words.div_ceil(64)] }
    }

    fn insert(&mut self, index: usize) {
        self.words[index / 64] |= 1 << (index % 64);
        self.summary[index / 4096] |= 1 << (index / 64 % 64);
    }

    /// Takes `index` out. False when it was not in.
    fn remove(&mut self, index: usize) -> bool {
        let Some(word) = self.words.get_mut(index / 64) else { return false };
        let was_in = *word & 1 << (index % 64) != 0;
        *word &= !(1 << (index % 64));
        if *word == 0 {
            self.summary[index / 4096] &= !(1 << (index / 64 % 64));
        }
        was_in
    }

    fn first(&self) -> Option<usize> {
        let summary = self.summary.iter().position(|bits| *bits != 0)?;
        let word = summary * 64 + self.summary[summary].trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }
}

/// See the module's contract.
pub struct Buddy {
    /// By order: piece `i` of order `o` is blocks `i << o .. (i + 1) << o`.
    free: [Bitmap; TOP + 1],
    blocks: u32,
    used: u32,
}

impl Buddy {
    /// A region of `chunks` chunks, all free.
    pub fn new(chunks: u32) -> Buddy {
        let blocks = chunks * CHUNK_BLOCKS;
        let mut free = std::array::from_fn(|order| Bitmap::new(blocks as usize >> order));
        for chunk in 0..chunks as usize {
            free[TOP].insert(chunk);
        }
        Buddy { free, blocks, used: 0 }
    }

    /// Blocks in the region.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Blocks that are allocated.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The first block of a free range of `count` blocks, which is now taken. `None` when no piece is large
    /// enough, or `count` is 0 or above [`CHUNK_BLOCKS`].
    pub fn allocate(&mut self, count: u32) -> Option<u32> {
        if count == 0 || count > CHUNK_BLOCKS {
            return None;
        }
        let needed = count.next_power_of_two().ilog2() as usize;
        let (order, piece) = (needed..=TOP).find_map(|order| Some((order, self.free[order].first()?)))?;
        self.free[order].remove(piece);
        let start = (piece << order) as u32;
        self.used += 1 << order;
        self.give_back(start + count..start + (1 << order));
        Some(start)
    }

    /// Gives a range back that `allocate` gave out, whole.
    ///
    /// # Panics
    /// When the range is not inside the region: a bug of the driver.
    pub fn free(&mut self, range: Range<u32>) {
        assert!(range.end <= self.blocks, "a range that was never allocated");
        self.give_back(range);
    }

    /// Cuts a range into aligned powers of two and frees each.
    fn give_back(&mut self, range: Range<u32>) {
        let mut start = range.start;
        while start < range.end {
            let aligned = if start == 0 { TOP as u32 } else { start.trailing_zeros().min(TOP as u32) };
            let order = aligned.min((range.end - start).ilog2());
            self.merge(start as usize >> order, order as usize);
            self.used -= 1 << order;
            start += 1 << order;
        }
    }

    /// Frees a piece, joined with its neighbour as often as that is free as well.
    fn merge(&mut self, mut piece: usize, mut order: usize) {
        while order < TOP && self.free[order].remove(piece ^ 1) {
            piece >>= 1;
            order += 1;
        }
        self.free[order].insert(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lowest_piece_that_fits_is_taken_and_large_ones_are_spared() {
        let mut buddy = Buddy::new(4);
        assert_eq!(buddy.allocate(256), Some(0));
        assert_eq!(buddy.allocate(1), Some(256));
        assert_eq!(buddy.allocate(1), Some(257), "beside the last small one, not in a whole chunk");
        assert_eq!(buddy.allocate(256), Some(512));
        buddy.free(0..256);
        assert_eq!(buddy.allocate(2), Some(258));
        assert_eq!(buddy.allocate(256), Some(0));
    }

    #[test]
    fn what_a_range_does_not_need_of_its_piece_stays_free() {
        let mut buddy = Buddy::new(1);
        assert_eq!(buddy.allocate(5), Some(0));
        assert_eq!(buddy.allocate(1), Some(5));
        assert_eq!(buddy.allocate(2), Some(6));
        assert_eq!(buddy.used(), 8);
    }

    #[test]
    fn a_full_region_and_impossible_lengths_give_nothing() {
        let mut buddy = Buddy::new(1);
        assert_eq!(buddy.allocate(0), None);
        assert_eq!(buddy.allocate(257), None);
        assert_eq!(buddy.allocate(200), Some(0));
        assert_eq!(buddy.allocate(128), None);
        assert_eq!(buddy.allocate(32), Some(224));
    }

    proptest! {
        /// Beside a plain table of blocks: ranges never overlap, never cross a chunk, and all comes back whole.
        #[test]
        fn ranges_never_overlap_and_everything_merges_again(steps in prop::collection::vec((any::<bool>(), 1u32..=256, any::<prop::sample::Index>()), 1..400)) {
            let mut buddy = Buddy::new(5);
            let mut taken = vec![false; buddy.blocks() as usize];
            let mut ranges: Vec<Range<u32>> = Vec::new();
            for (allocate, count, which) in steps {
                if allocate {
                    let Some(start) = buddy.allocate(count) else { continue };
                    prop_assert_eq!(start / CHUNK_BLOCKS, (start + count - 1) / CHUNK_BLOCKS);
                    prop_assert!(!count.is_power_of_two() || start % count == 0);
                    for block in &mut taken[start as usize..(start + count) as usize] {
                        prop_assert!(!std::mem::replace(block, true), "a block was given out twice");
                    }
                    ranges.push(start..start + count);
                } else if !ranges.is_empty() {
                    let range = ranges.swap_remove(which.index(ranges.len()));
                    taken[range.start as usize..range.end as usize].fill(false);
                    buddy.free(range);
                }
                prop_assert_eq!(buddy.used() as usize, taken.iter().filter(|taken| **taken).count());
            }
            for range in ranges {
                buddy.free(range);
            }
            for chunk in 0..5 {
                prop_assert_eq!(buddy.allocate(CHUNK_BLOCKS), Some(chunk * CHUNK_BLOCKS));
            }
        }
    }
}
