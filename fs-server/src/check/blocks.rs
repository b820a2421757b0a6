//! Which blocks are marked used, and which belong to something.

use crate::allocator::{WORDS, blank_bits};
use crate::error::Structure;
use crate::format::GROUP_BLOCKS;
use crate::format::superblock::Superblock;
use crate::report::Report;
use std::ops::Range;

type Bits = Box<[u64; WORDS]>;

/// Two bits per block, kept only for groups that have any.
#[derive(Default)]
struct Group {
    /// The bitmap; none for a group that has none, whose blocks are all free.
    used: Option<Bits>,
    /// Blocks that something refers to.
    reached: Option<Bits>,
    /// The bitmap is damaged: nothing is known about these blocks.
    unknown: bool,
}

pub(super) struct Blocks {
    groups: Vec<Group>,
    data: Range<u64>,
}

/// Why a range cannot be claimed by one more thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// This block belongs to something else too.
    Twice(u64),
    /// This block is free according to its bitmap.
    Free(u64),
}

impl Blocks {
    pub(super) fn new(superblock: &Superblock) -> Self {
        let groups = (0..superblock.groups.get()).map(|_| Group::default()).collect();
        Self { groups, data: superblock.data.get()..superblock.data_end() }
    }

    /// Takes in the bitmap of a group. Says whether it marks everything used that lies at a fixed place or beyond the
    /// volume.
    pub(super) fn set_bitmap(&mut self, group: u32, bits: Bits) -> bool {
        let fixed = blank_bits(&self.data, group);
        let marked = bits.iter().zip(&fixed).all(|(bits, fixed)| bits & fixed == *fixed);
        if let Some(group) = self.groups.get_mut(group as usize) {
            group.used = Some(bits);
        }
        marked
    }

    /// Notes that the bitmap of a group is damaged.
    pub(super) fn set_unknown(&mut self, group: u32) {
        if let Some(group) = self.groups.get_mut(group as usize) {
            group.unknown = true;
        }
    }

    /// Blocks of the data area that are marked used.
    pub(super) fn used(&self) -> u64 {
        let mut sum = 0;
        for (index, group) in self.groups.iter().enumerate() {
            let Some(used) = &group.used else { continue };
            let fixed = blank_bits(&self.data, index as u32);
            sum += used.iter().zip(&fixed).map(|(used, fixed)| u64::from((used & !fixed).count_ones())).sum::<u64>();
        }
        sum
    }

    /// Notes that a range of the data area belongs to something; says the first thing that is wrong with that. Of a range
    /// that overlaps another nothing should be read: it was, and a volume must not make us read without end.
    pub(super) fn claim(&mut self, start: u64, blocks: u64) -> Result<(), Clash> {
        let mut outcome = Ok(());
        for block in start..start + blocks {
            let (word, bit) = ((block % u64::from(GROUP_BLOCKS)) as usize / 64, 1 << (block % 64));
            let Some(group) = self.groups.get_mut((block / u64::from(GROUP_BLOCKS)) as usize) else { continue };
            let reached = group.reached.get_or_insert_with(|| Box::new([0; WORDS]));
            if reached[word] & bit != 0 {
                if !matches!(outcome, Err(Clash::Twice(_))) {
                    outcome = Err(Clash::Twice(block));
                }
            } else if !group.unknown && group.used.as_ref().is_none_or(|used| used[word] & bit == 0) {
                outcome = outcome.and(Err(Clash::Free(block)));
            }
            reached[word] |= bit;
        }
        outcome
    }

    /// Reports what is marked used and belongs to nothing.
    pub(super) fn report_leaks(&self, report: &mut Report) {
        for (index, group) in self.groups.iter().enumerate() {
            let Some(used) = group.used.as_ref().filter(|_| !group.unknown) else { continue };
            let fixed = blank_bits(&self.data, index as u32);
            let base = index as u64 * u64::from(GROUP_BLOCKS);
            let mut run: Option<(u64, u64)> = None;
            for word in 0..WORDS {
                let reached = group.reached.as_ref().map_or(0, |reached| reached[word]);
                let leaked = used[word] & !fixed[word] & !reached;
                if leaked == 0 && run.is_none() {
                    continue;
                }
                for bit in 0..64 {
                    let block = base + word as u64 * 64 + bit;
                    match (&mut run, leaked >> bit & 1) {
                        (Some((_, length)), 1) => *length += 1,
                        (None, 1) => run = Some((block, 1)),
                        (Some(_), _) => report_leak(report, run.take()),
                        (None, _) => {}
                    }
                }
            }
            report_leak(report, run);
        }
    }
}

fn report_leak(report: &mut Report, run: Option<(u64, u64)>) {
    let Some((start, length)) = run else { return };
    report.leaked_blocks += length;
    let what = match length {
        1 => "marked used and belongs to nothing".to_owned(),
        _ => format!("{length} blocks from here on are marked used and belong to nothing"),
    };
    report.add(Structure::Bitmap, start, what);
}
