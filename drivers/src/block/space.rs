//! The allocator of a driver's region: ranges of 1 to 256 blocks (4 KiB to 1 MiB), none across a 1-MiB chunk.
//!
//! - No system calls; all numbers are blocks.
//! - A range takes exactly its blocks. (A buddy allocator needs 128 aligned ones for a read of 75: with a third of the
//!   region free, a cache of small files left it none.)
//! - Best fit, twice: the chunk whose longest free run is the shortest that fits, and the shortest run in it. Small
//!   ranges fill holes, whole chunks are left for large ones, and of equal chunks the lowest is taken, so that the part
//!   of the region that was ever touched (and registered, and resident) stays small.

use std::ops::Range;

/// Blocks in a chunk, the largest range.
pub const CHUNK_BLOCKS: u32 = 256;
const WORDS: usize = CHUNK_BLOCKS as usize / 64;

/// Blocks of a chunk that are taken.
type Taken = [u64; WORDS];

/// See the module's contract.
pub struct Space {
    taken: Vec<Taken>,
    /// Of each chunk, the longest free run.
    longest: Vec<u16>,
    used: u32,
}

impl Space {
    /// A region of `chunks` chunks, all free.
    pub fn new(chunks: u32) -> Space {
        let chunks = chunks as usize;
        Space { taken: vec![[0; WORDS]; chunks], longest: vec![CHUNK_BLOCKS as u16; chunks], used: 0 }
    }

    /// Blocks in the region.
    pub fn blocks(&self) -> u32 {
        self.taken.len() as u32 * CHUNK_BLOCKS
    }

    /// Blocks that are taken.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The first block of a free range of `count` blocks, which is now taken. `None` when no run is long enough, or
    /// `count` is 0 or above [`CHUNK_BLOCKS`].
    pub fn allocate(&mut self, count: u32) -> Option<u32> {
        if count == 0 || count > CHUNK_BLOCKS {
            return None;
        }
        let fitting = self.longest.iter().enumerate().filter(|(_, longest)| u32::from(**longest) >= count);
        let (chunk, _) = fitting.min_by_key(|(_, longest)| **longest)?;
        let runs = free_runs(&self.taken[chunk]).filter(|run| run.len() >= count as usize);
        let run = runs.min_by_key(Range::len).expect("the chunk's longest run is long enough");
        self.mark(chunk, run.start..run.start + count, true);
        self.used += count;
        Some(chunk as u32 * CHUNK_BLOCKS + run.start)
    }

    /// Takes this very range, if it is one that `allocate` can give out and all of it is free.
    pub fn take(&mut self, range: Range<u32>) -> bool {
        let (chunk, first) = ((range.start / CHUNK_BLOCKS) as usize, range.start % CHUNK_BLOCKS);
        let Some(words) = self.taken.get(chunk) else { return false };
        if range.is_empty() || range.len() > (CHUNK_BLOCKS - first) as usize {
            return false;
        }
        let run = first..first + range.len() as u32;
        if next(words, first, true).is_some_and(|taken| taken < run.end) {
            return false;
        }
        self.used += range.len() as u32;
        self.mark(chunk, run, true);
        true
    }

    /// Gives a range back that `allocate` gave out or `take` took, whole.
    ///
    /// # Panics
    /// When the range is not inside the region: a bug of the driver.
    pub fn free(&mut self, range: Range<u32>) {
        let chunk = (range.start / CHUNK_BLOCKS) as usize;
        let first = range.start % CHUNK_BLOCKS;
        self.used -= range.len() as u32;
        self.mark(chunk, first..first + range.len() as u32, false);
    }

    fn mark(&mut self, chunk: usize, run: Range<u32>, taken: bool) {
        let words = &mut self.taken[chunk];
        let mut at = run.start;
        while at < run.end {
            let count = (64 - at % 64).min(run.end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            let word = &mut words[at as usize / 64];
            debug_assert_eq!(*word & mask, if taken { 0 } else { mask }, "given out twice, or given back twice");
            if taken {
                *word |= mask
            } else {
                *word &= !mask
            }
            at += count;
        }
        self.longest[chunk] = free_runs(words).map(|run| run.len() as u16).max().unwrap_or(0);
    }
}

/// The free runs of a chunk, in order.
fn free_runs(taken: &Taken) -> impl Iterator<Item = Range<u32>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = next(taken, at, false)?;
        at = next(taken, start, true).unwrap_or(CHUNK_BLOCKS);
        Some(start..at)
    })
}

/// The first block at or after `from` that is taken, or that is free.
fn next(words: &Taken, from: u32, taken: bool) -> Option<u32> {
    let first = from as usize / 64;
    (first..WORDS).find_map(|index| {
        let word = if taken { words[index] } else { !words[index] };
        let word = if index == first { word & (u64::MAX << (from % 64)) } else { word };
        (word != 0).then(|| index as u32 * 64 + word.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shortest_run_that_fits_is_taken_and_whole_chunks_are_spared() {
        let mut space = Space::new(4);
        assert_eq!(space.allocate(256), Some(0));
        assert_eq!(space.allocate(1), Some(256));
        assert_eq!(space.allocate(1), Some(257), "beside the last small one, not in a whole chunk");
        assert_eq!(space.allocate(256), Some(512));
        space.free(0..256);
        assert_eq!(space.allocate(2), Some(258));
        space.free(256..257);
        assert_eq!(space.allocate(2), Some(260), "one free block is not enough");
        assert_eq!(space.allocate(1), Some(256), "but it is for one");
        assert_eq!(space.allocate(256), Some(0));
    }

    #[test]
    fn a_range_costs_no_more_than_its_blocks() {
        let mut space = Space::new(1);
        assert_eq!(space.allocate(129), Some(0));
        assert_eq!(space.allocate(127), Some(129));
        assert_eq!((space.used(), space.allocate(1)), (256, None));
    }

    #[test]
    fn a_range_is_taken_again_if_it_is_one_and_free() {
        let mut space = Space::new(2);
        #[expect(clippy::reversed_empty_ranges, reason = "what a damaged ledger may say")]
        for impossible in [0..0, 255..257, 0..257, 512..513, 511..513, u32::MAX - 1..u32::MAX, 5..3] {
            assert!(!space.take(impossible.clone()), "{impossible:?}");
        }
        assert!(space.take(10..20) && space.take(20..256) && space.take(256..512));
        assert!(!space.take(0..11) && !space.take(19..20) && !space.take(300..301));
        assert_eq!((space.used(), space.allocate(11), space.allocate(10)), (502, None, Some(0)));
        space.free(10..20);
        assert!(space.take(12..15));
    }

    #[test]
    fn a_full_region_and_impossible_lengths_give_nothing() {
        let mut space = Space::new(1);
        assert_eq!(space.allocate(0), None);
        assert_eq!(space.allocate(257), None);
        assert_eq!(space.allocate(200), Some(0));
        assert_eq!(space.allocate(57), None);
        assert_eq!(space.allocate(56), Some(200));
    }

    /// What a cache of small files does: two thirds of the region held, the oldest given up for each new one.
    #[test]
    fn a_third_that_is_free_holds_the_next_small_file() {
        let mut space = Space::new(96);
        let mut held = std::collections::VecDeque::new();
        let mut seed = 1_u64;
        for step in 0..200_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let count = (seed >> 33) as u32 % 75 + 1;
            while space.used() + count > 64 * CHUNK_BLOCKS {
                // Not in order: what was used meanwhile stays.
                let second = (seed >> 20).is_multiple_of(8) && held.len() > 1;
                let range = held.remove(usize::from(second)).expect("something is held");
                space.free(range);
            }
            let start = space.allocate(count).unwrap_or_else(|| panic!("step {step}: no run of {count} blocks"));
            held.push_back(start..start + count);
        }
    }

    proptest! {
        /// Beside a plain table of blocks: ranges never overlap, never cross a chunk, and all comes back whole.
        #[test]
        fn ranges_never_overlap_and_everything_comes_back(
            steps in prop::collection::vec((any::<bool>(), 1u32..=256, any::<prop::sample::Index>()), 1..400)
        ) {
            let mut space = Space::new(5);
            let mut taken = vec![false; space.blocks() as usize];
            let mut ranges: Vec<Range<u32>> = Vec::new();
            for (allocate, count, which) in steps {
                if allocate {
                    let Some(start) = space.allocate(count) else {
                        let fits = |chunk: &[bool]| {
                            chunk.windows(count as usize).any(|run| run.iter().all(|taken| !taken))
                        };
                        prop_assert!(!taken.chunks(CHUNK_BLOCKS as usize).any(fits), "{} blocks in a row are free", count);
                        continue;
                    };
                    prop_assert_eq!(start / CHUNK_BLOCKS, (start + count - 1) / CHUNK_BLOCKS);
                    for block in &mut taken[start as usize..(start + count) as usize] {
                        prop_assert!(!std::mem::replace(block, true), "a block was given out twice");
                    }
                    ranges.push(start..start + count);
                } else if !ranges.is_empty() {
                    let range = ranges.swap_remove(which.index(ranges.len()));
                    taken[range.start as usize..range.end as usize].fill(false);
                    space.free(range);
                }
                prop_assert_eq!(space.used() as usize, taken.iter().filter(|taken| **taken).count());
            }
            for range in ranges {
                space.free(range);
            }
            for chunk in 0..5 {
                prop_assert_eq!(space.allocate(CHUNK_BLOCKS), Some(chunk * CHUNK_BLOCKS));
            }
        }
    }
}
