//! Which blocks are free.
//!
//! - One bitmap per group, read when first needed, written by a checkpoint to the other of its two slots.
//! - A freed block is free in the bitmap at once but *held* in memory: it is dealt out again only when the checkpoint
//!   that freed it is durable and nobody has a lease of its old content.
//! - A place of four aligned free blocks is a *node place*. Data leaves a reserve of them alone, so that a checkpoint
//!   and a removal always find room for the nodes that they write.

use crate::device::BLOCK_SIZE;
use crate::error::{Error, Structure};
use crate::format::pack::{GroupEntry, UNWRITTEN};
use crate::format::superblock::Superblock;
use crate::format::{GROUP_BLOCKS, NODE_BLOCKS};
use std::any::Any;
use std::ops::Range;
use std::rc::Weak;
use zerocopy::little_endian::U32;

pub(crate) const WORDS: usize = GROUP_BLOCKS as usize / 64;
/// Groups that are searched for a run of full length before a shorter one is taken.
const PATIENCE: usize = 16;

/// Why no blocks were dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The bitmap of this group must be read first.
    Load(u32),
    /// There is nothing left.
    Full,
}

/// Someone who still reads blocks that were freed.
pub(crate) type Reader = Weak<dyn Any>;

struct Group {
    /// Clear bits of the bitmap, held ones included.
    free: u32,
    /// Held blocks.
    held: u32,
    /// Node places among the blocks that are free and not held.
    node_places: u32,
    crc: u32,
    slot: u8,
    dirty: bool,
    bits: Option<Box<Bits>>,
}

struct Bits {
    used: [u64; WORDS],
    held: [u64; WORDS],
}

impl Bits {
    fn free(&self, word: usize) -> u64 {
        !(self.used[word] | self.held[word])
    }
}

struct Freed {
    generation: u64,
    start: u64,
    blocks: u32,
    readers: Vec<Reader>,
}

impl Freed {
    fn is_over(&self, durable: u64) -> bool {
        self.generation <= durable && self.readers.iter().all(|reader| reader.strong_count() == 0)
    }
}

/// A bitmap that a checkpoint writes.
pub(crate) struct BitmapWrite {
    pub(crate) group: u32,
    pub(crate) slot: u8,
    pub(crate) crc: u32,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Allocator {
    data: Range<u64>,
    groups: Vec<Group>,
    freed: Vec<Freed>,
    /// Where the search for data and for the two copies of a node goes on.
    cursors: [u64; 3],
    /// Blocks free and not held.
    available: u64,
    /// Node places free and not held.
    node_places: u64,
}

/// The first bits of node places among the free bits of a word.
pub(crate) fn node_place_bits(free: u64) -> u64 {
    free & (free >> 1) & (free >> 2) & (free >> 3) & 0x1111_1111_1111_1111
}

impl Allocator {
    pub(crate) fn new(superblock: &Superblock, table: &[GroupEntry]) -> Self {
        let groups: Vec<Group> = table
            .iter()
            .map(|entry| Group {
                free: entry.free.get(),
                held: 0,
                node_places: entry.free_nodes.get(),
                crc: entry.crc.get(),
                slot: entry.slot,
                dirty: false,
                bits: None,
            })
            .collect();
        let mut this = Self {
            data: superblock.data.get()..superblock.data_end(),
            available: groups.iter().map(|group| u64::from(group.free)).sum(),
            node_places: groups.iter().map(|group| u64::from(group.node_places)).sum(),
            groups,
            freed: Vec::new(),
            cursors: [0; 3],
        };
        this.rewind();
        this
    }

    /// Table of a volume of which nothing is used but what has a fixed place.
    pub(crate) fn blank_table(superblock: &Superblock) -> Vec<GroupEntry> {
        (0..superblock.groups.get())
            .map(|group| {
                let bits = blank_bits(&(superblock.data.get()..superblock.data_end()), group);
                let free: u32 = bits.iter().map(|word| word.count_zeros()).sum();
                let places: u32 = bits.iter().map(|word| node_place_bits(!word).count_ones()).sum();
                GroupEntry {
                    free: U32::new(free),
                    free_nodes: U32::new(places),
                    slot: UNWRITTEN,
                    ..GroupEntry::default()
                }
            })
            .collect()
    }

    /// Starts the next search at the front: what was freed there is used before fresh blocks, and a sparse image stays
    /// small. Nodes keep away from data.
    pub(crate) fn rewind(&mut self) {
        let end = self.groups.len() as u64 * u64::from(GROUP_BLOCKS);
        let end = end.min(self.data.end);
        self.cursors = [self.data.start, end / 2, end / 4 * 3];
    }

    pub(crate) fn available(&self) -> u64 {
        self.available
    }

    pub(crate) fn node_places(&self) -> u64 {
        self.node_places
    }

    /// Blocks that the bitmaps call free.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.groups.iter().map(|group| u64::from(group.free)).sum()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.groups.iter().any(|group| group.dirty)
    }

    /// A dirty group whose bitmap was not read yet.
    pub(crate) fn missing(&self) -> Option<u32> {
        self.groups.iter().position(|group| group.dirty && group.bits.is_none()).map(|group| group as u32)
    }

    /// Slot and checksum of the bitmap of `group`, or that there is none on disk.
    pub(crate) fn bitmap(&self, group: u32) -> Option<(u8, u32)> {
        let group = self.groups.get(group as usize)?;
        (group.slot != UNWRITTEN).then_some((group.slot, group.crc))
    }

    /// Takes in the bitmap of `group`; `bytes` is empty if there is none on disk.
    pub(crate) fn load(&mut self, group: u32, bytes: &[u8], block: u64) -> Result<(), Error> {
        let Some(entry) = self.groups.get(group as usize) else { return Ok(()) };
        if entry.bits.is_some() {
            return Ok(());
        }
        let mut used = blank_bits(&self.data, group);
        if !bytes.is_empty() {
            for (word, eight) in used.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes([
                    eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7],
                ]);
            }
        }
        let free: u32 = used.iter().map(|word| word.count_zeros()).sum();
        // While the group was not in memory, blocks of it may have been freed but none taken.
        if free + entry.held != entry.free {
            return Err(Error::Corrupt { structure: Structure::Bitmap, block, what: "another count than its group's" });
        }
        self.node_places -= u64::from(entry.node_places);
        let mut bits = Box::new(Bits { used, held: [0; WORDS] });
        for freed in self.freed.iter().filter(|freed| (freed.start / u64::from(GROUP_BLOCKS)) as u32 == group) {
            let first = (freed.start % u64::from(GROUP_BLOCKS)) as u32;
            for bit in first..first + freed.blocks {
                bits.used[bit as usize / 64] &= !(1 << (bit % 64));
                bits.held[bit as usize / 64] |= 1 << (bit % 64);
            }
        }
        let places: u32 = (0..WORDS).map(|word| node_place_bits(bits.free(word)).count_ones()).sum();
        let entry = &mut self.groups[group as usize];
        entry.node_places = places;
        entry.bits = Some(bits);
        self.node_places += u64::from(places);
        Ok(())
    }

    /// Deals out up to `want` blocks in a row for data, leaving `reserve` node places.
    pub(crate) fn take_data(&mut self, want: u32, reserve: u64) -> Result<(u64, u32), Shortage> {
        let spare = self.node_places.saturating_sub(reserve + 1) * u64::from(NODE_BLOCKS);
        let roomy = spare > 0;
        let want = if roomy { u64::from(want).min(spare) as u32 } else { want };
        let count = self.groups.len();
        let first_group = (self.cursors[0] / u64::from(GROUP_BLOCKS)) as usize % count;
        let mut best: Option<(usize, u32, u32)> = None;
        let mut patience = PATIENCE;
        for turn in 0..=count {
            let index = (first_group + turn) % count;
            let group = &self.groups[index];
            let free = group.free - group.held;
            let usable = if roomy { free } else { free - group.node_places * NODE_BLOCKS };
            if usable == 0 {
                continue;
            }
            let Some(bits) = &group.bits else { return Err(Shortage::Load(index as u32)) };
            let from = if turn == 0 { (self.cursors[0] % u64::from(GROUP_BLOCKS)) as u32 } else { 0 };
            let (start, length) = find_run(bits, from, want, roomy);
            if best.is_none_or(|(_, _, longest)| length > longest) && length > 0 {
                best = Some((index, start, length));
            }
            patience -= 1;
            if length >= want || (patience == 0 && best.is_some()) {
                break;
            }
            patience = patience.max(1);
        }
        let (index, start, length) = best.ok_or(Shortage::Full)?;
        let length = length.min(want);
        self.mark(index, start, length, true);
        let block = index as u64 * u64::from(GROUP_BLOCKS) + u64::from(start);
        self.cursors[0] = block + u64::from(length);
        Ok((block, length))
    }

    /// Deals out a node place for copy `copy`.
    pub(crate) fn take_node(&mut self, copy: usize) -> Result<u64, Shortage> {
        let cursor = self.cursors[1 + copy];
        let count = self.groups.len();
        let first_group = (cursor / u64::from(GROUP_BLOCKS)) as usize % count;
        for turn in 0..=count {
            let index = (first_group + turn) % count;
            let group = &self.groups[index];
            if group.node_places == 0 {
                continue;
            }
            let Some(bits) = &group.bits else { return Err(Shortage::Load(index as u32)) };
            let from = if turn == 0 { (cursor % u64::from(GROUP_BLOCKS)) as usize } else { 0 };
            let found = (from / 64..WORDS).find_map(|word| {
                let mut places = node_place_bits(bits.free(word));
                if word == from / 64 {
                    places &= u64::MAX << (from % 64);
                }
                (places != 0).then(|| word as u32 * 64 + places.trailing_zeros())
            });
            let Some(start) = found else { continue };
            self.mark(index, start, NODE_BLOCKS, true);
            let block = index as u64 * u64::from(GROUP_BLOCKS) + u64::from(start);
            self.cursors[1 + copy] = block + u64::from(NODE_BLOCKS);
            return Ok(block);
        }
        Err(Shortage::Full)
    }

    /// Takes up to `want` free blocks in a row, from the end of the volume, out of use while `reader` lives, leaving
    /// `reserve` node places. Nothing of it is written: on disk they are free.
    pub(crate) fn set_aside(&mut self, want: u32, reserve: u64, reader: &Reader) -> Result<(u64, u32), Shortage> {
        let dirty: Vec<bool> = self.groups.iter().map(|group| group.dirty).collect();
        let cursor = self.cursors[0];
        self.cursors[0] = self.data.end.saturating_sub(8 * u64::from(want)).max(self.data.start);
        let taken = self.take_data(want, reserve);
        self.cursors[0] = cursor;
        let (start, blocks) = taken?;
        self.free(start, blocks, 0, std::slice::from_ref(reader));
        for (group, dirty) in self.groups.iter_mut().zip(dirty) {
            group.dirty = dirty;
        }
        Ok((start, blocks))
    }

    /// Gives back blocks that were dealt out and never came to be referred to.
    pub(crate) fn put_back(&mut self, start: u64, blocks: u32) {
        for (index, first, length) in by_group(start, blocks) {
            self.mark(index, first, length, false);
        }
    }

    /// Frees blocks that the last checkpoint may refer to; `generation` is the one in which they are freed.
    pub(crate) fn free(&mut self, start: u64, blocks: u32, generation: u64, readers: &[Reader]) {
        for (index, first, length) in by_group(start, blocks) {
            let Some(group) = self.groups.get_mut(index) else { continue };
            group.free += length;
            group.held += length;
            group.dirty = true;
            if let Some(bits) = &mut group.bits {
                // Used becomes held: neither is available, so the counts of what is stay.
                for bit in first..first + length {
                    bits.used[bit as usize / 64] &= !(1 << (bit % 64));
                    bits.held[bit as usize / 64] |= 1 << (bit % 64);
                }
            }
            self.freed.push(Freed {
                generation,
                start: index as u64 * u64::from(GROUP_BLOCKS) + u64::from(first),
                blocks: length,
                readers: readers.to_vec(),
            });
        }
    }

    /// What [`release`](Self::release) would release, in stretches of at least `least` blocks.
    pub(crate) fn releasable(&self, generation: u64, least: u32) -> Vec<(u64, u32)> {
        let mut ranges: Vec<(u64, u32)> = self
            .freed
            .iter()
            .filter(|freed| freed.is_over(generation))
            .map(|freed| (freed.start, freed.blocks))
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u32)> = Vec::new();
        for (start, blocks) in ranges {
            match merged.last_mut() {
                Some((first, length)) if *first + u64::from(*length) == start => *length += blocks,
                _ => merged.push((start, blocks)),
            }
        }
        merged.retain(|&(_, blocks)| blocks >= least);
        merged
    }

    /// Makes available what was freed up to `generation`, which is durable, and is read by nobody. Returns it.
    pub(crate) fn release(&mut self, generation: u64) -> Vec<(u64, u32)> {
        let (released, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.freed).into_iter().partition(|freed| freed.is_over(generation));
        self.freed = kept;
        for freed in &released {
            for (index, first, length) in by_group(freed.start, freed.blocks) {
                self.unhold(index, first, length);
            }
        }
        released.iter().map(|freed| (freed.start, freed.blocks)).collect()
    }

    /// The dirty bitmaps as the next checkpoint writes them. All of them are in memory.
    pub(crate) fn begin_checkpoint(&mut self) -> Vec<BitmapWrite> {
        let mut writes = Vec::new();
        for (index, group) in self.groups.iter_mut().enumerate().filter(|(_, group)| group.dirty) {
            let Some(bits) = &group.bits else { continue };
            let mut bytes = Vec::with_capacity(BLOCK_SIZE);
            for word in &bits.used {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            group.dirty = false;
            let slot = if group.slot == 0 { 1 } else { 0 };
            writes.push(BitmapWrite { group: index as u32, slot, crc: crate::device::crc32c(&bytes), bytes });
        }
        writes
    }

    /// The group table of a checkpoint that writes `writes`.
    pub(crate) fn table(&self, writes: &[BitmapWrite]) -> Vec<GroupEntry> {
        let mut table: Vec<GroupEntry> = self
            .groups
            .iter()
            .map(|group| {
                let places = group.bits.as_ref().map_or(group.node_places, |bits| {
                    bits.used.iter().map(|word| node_place_bits(!word).count_ones()).sum()
                });
                GroupEntry {
                    free: U32::new(group.free),
                    free_nodes: U32::new(places),
                    crc: U32::new(group.crc),
                    slot: group.slot,
                    reserved: [0; 3],
                }
            })
            .collect();
        for write in writes {
            table[write.group as usize].crc = U32::new(write.crc);
            table[write.group as usize].slot = write.slot;
        }
        table
    }

    /// The checkpoint that wrote `writes` is durable, or failed.
    pub(crate) fn end_checkpoint(&mut self, writes: &[BitmapWrite], durable: bool) {
        for write in writes {
            let group = &mut self.groups[write.group as usize];
            if durable {
                group.slot = write.slot;
                group.crc = write.crc;
            } else {
                group.dirty = true;
            }
        }
    }

    fn mark(&mut self, index: usize, first: u32, length: u32, used: bool) {
        let group = &mut self.groups[index];
        let Some(bits) = &mut group.bits else { return };
        let (mut before, mut after) = (0, 0);
        for (word, mask) in words(first, length) {
            before += node_place_bits(bits.free(word)).count_ones();
            if used {
                bits.used[word] |= mask;
            } else {
                bits.used[word] &= !mask;
            }
            after += node_place_bits(bits.free(word)).count_ones();
        }
        group.dirty = true;
        group.node_places = group.node_places + after - before;
        self.node_places = self.node_places + u64::from(after) - u64::from(before);
        if used {
            group.free -= length;
            self.available -= u64::from(length);
        } else {
            group.free += length;
            self.available += u64::from(length);
        }
    }

    fn unhold(&mut self, index: usize, first: u32, length: u32) {
        let group = &mut self.groups[index];
        group.held -= length;
        self.available += u64::from(length);
        let Some(bits) = &mut group.bits else { return };
        let (mut before, mut after) = (0, 0);
        for (word, mask) in words(first, length) {
            before += node_place_bits(bits.free(word)).count_ones();
            bits.held[word] &= !mask;
            after += node_place_bits(bits.free(word)).count_ones();
        }
        group.node_places = group.node_places + after - before;
        self.node_places = self.node_places + u64::from(after) - u64::from(before);
    }
}

/// Bits of a group of which only blocks of fixed place are used.
pub(crate) fn blank_bits(data: &Range<u64>, group: u32) -> [u64; WORDS] {
    let base = u64::from(group) * u64::from(GROUP_BLOCKS);
    let mut bits = [u64::MAX; WORDS];
    for (index, word) in bits.iter_mut().enumerate() {
        let first = base + index as u64 * 64;
        if first >= data.start && first + 64 <= data.end {
            *word = 0;
        } else if first < data.end && first + 64 > data.start {
            for bit in (0..64).filter(|bit| data.contains(&(first + bit))) {
                *word &= !(1 << bit);
            }
        }
    }
    bits
}

/// The parts of a run of blocks, each within one group: (group, first bit, length).
fn by_group(start: u64, blocks: u32) -> impl Iterator<Item = (usize, u32, u32)> {
    let group_blocks = u64::from(GROUP_BLOCKS);
    let (mut at, end) = (start, start + u64::from(blocks));
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at / group_blocks + 1) * group_blocks).min(end);
        let part = ((at / group_blocks) as usize, (at % group_blocks) as u32, (next - at) as u32);
        at = next;
        Some(part)
    })
}

/// The words that a run of bits touches, each with the mask of its bits.
fn words(first: u32, length: u32) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (first, first + length);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let count = (64 - at % 64).min(end - at);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << (at % 64) };
        let word = at as usize / 64;
        at += count;
        Some((word, mask))
    })
}

/// The first run of at least `want` free blocks from bit `from` on, or the longest one there is. Without `roomy`, blocks
/// of node places count as taken.
fn find_run(bits: &Bits, from: u32, want: u32, roomy: bool) -> (u32, u32) {
    let free = |word: usize| {
        let free = bits.free(word);
        if roomy { free } else { free & !(node_place_bits(free) * 15) }
    };
    let (mut best_start, mut best_length) = (0, 0);
    let (mut start, mut length) = (from, 0);
    let mut at = from;
    while at < GROUP_BLOCKS {
        let mut word = free(at as usize / 64) >> (at % 64);
        let mut left = 64 - at % 64;
        if length == 0 {
            let skip = word.trailing_zeros().min(left);
            at += skip;
            left -= skip;
            if left == 0 {
                continue;
            }
            word >>= skip;
            start = at;
        }
        let run = word.trailing_ones().min(left);
        length += run;
        at += run;
        if run == left && length < want {
            // It may go on in the next word.
            continue;
        }
        if length > best_length {
            (best_start, best_length) = (start, length);
        }
        if best_length >= want {
            break;
        }
        length = 0;
    }
    if length > best_length {
        (best_start, best_length) = (start, length);
    }
    (best_start, best_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(blocks: u64) -> Allocator {
        let superblock = Superblock::lay_out(blocks, 2, 64).unwrap();
        let mut this = Allocator::new(&superblock, &Allocator::blank_table(&superblock));
        for group in 0..superblock.groups.get() {
            this.load(group, &[], 0).unwrap();
        }
        this
    }

    #[test]
    fn every_block_is_dealt_out_once_and_comes_back_after_its_checkpoint() {
        let mut this = allocator(40_000);
        let total = this.available();
        let mut taken = vec![false; 40_000];
        let mut runs = Vec::new();
        for want in (1..=256).cycle() {
            match this.take_data(want, 0) {
                Ok((start, length)) => {
                    assert!(length >= 1 && length <= want);
                    for block in start..start + u64::from(length) {
                        assert!(!std::mem::replace(&mut taken[block as usize], true), "block {block} twice");
                    }
                    runs.push((start, length));
                }
                Err(Shortage::Full) => break,
                Err(Shortage::Load(_)) => unreachable!(),
            }
        }
        // A run that is not aligned may break one place more than it fills, so data always leaves one.
        assert_eq!((this.node_places(), this.available()), (1, 4), "of {total}");
        let spared = this.take_node(0).unwrap();
        assert_eq!(this.take_node(0), Err(Shortage::Full));
        for &(start, length) in &runs {
            this.free(start, length, 5, &[]);
        }
        assert_eq!(this.take_node(0), Err(Shortage::Full));
        assert!(this.release(4).is_empty());
        assert_eq!(this.take_node(0), Err(Shortage::Full));
        this.release(5);
        this.put_back(spared, NODE_BLOCKS);
        assert_eq!(this.available(), total);
        assert!(this.take_node(0).unwrap().is_multiple_of(4));
    }

    #[test]
    fn a_block_that_is_read_by_someone_is_not_dealt_out() {
        let mut this = allocator(1024);
        let reader: std::rc::Rc<dyn Any> = std::rc::Rc::new(());
        let (start, length) = this.take_data(10, 0).unwrap();
        this.free(start, length, 1, &[std::rc::Rc::downgrade(&reader)]);
        assert!(this.release(1).is_empty());
        drop(reader);
        assert_eq!(this.release(1), vec![(start, length)]);
    }

    #[test]
    fn data_leaves_the_reserve_of_node_places_alone() {
        let mut this = allocator(1024);
        while this.take_data(7, 20).is_ok() {}
        assert!(this.node_places() >= 20, "{}", this.node_places());
        for _ in 0..20 {
            this.take_node(0).unwrap();
        }
    }

    #[test]
    fn counts_agree_with_bits_after_any_history() {
        let mut this = allocator(3000);
        let mut seed = 7_u64;
        let mut live = Vec::new();
        for step in 0..5000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match seed >> 60 {
                0..8 => live.extend(this.take_data((seed >> 40) as u32 % 40 + 1, 4)),
                8..10 => live.extend(this.take_node(0).map(|block| (block, 4))),
                _ if !live.is_empty() => {
                    let (start, length) = live.swap_remove((seed >> 33) as usize % live.len());
                    if seed & 1 << 20 == 0 { this.put_back(start, length) } else { this.free(start, length, step, &[]) }
                }
                _ => {
                    this.release(step / 2);
                }
            }
        }
        let bits = this.groups[0].bits.as_ref().unwrap();
        let places: u32 = (0..WORDS).map(|word| node_place_bits(bits.free(word)).count_ones()).sum();
        let available: u32 = (0..WORDS).map(|word| bits.free(word).count_ones()).sum();
        assert_eq!((u64::from(places), u64::from(available)), (this.node_places, this.available));
    }
}
