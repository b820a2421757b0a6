//! What a cut of power would have left at any moment of a record.
//!
//! - Every change that was done when a flush began which was completed is there.
//! - Any other that had begun is there, or not, or in part: each of its blocks by itself, each sector of a block by itself.
//! - A change of which was found what it had come to counts as that, done when it was found.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use protocol::block::BLOCK_SIZE;

use super::entry::{BEGIN, Entry, Kind};
use super::{header, invalid};

/// What the disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
const SIZE: u64 = BLOCK_SIZE as u64;

/// The bytes of a block.
pub type Block = [u8; BLOCK_SIZE as usize];

/// What is on a device: every other block is zeros.
pub type Left = HashMap<u64, Rc<Block>>;

/// What a step of a record was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A run of the driver began.
    Run,
    /// A change of the device began, or ended.
    Change,
    /// Nobody knew what had become of a change, and it was looked at.
    Found,
    /// A flush began.
    Flush,
    /// A flush was completed.
    Flushed,
}

/// A record, read from its beginning. A clone goes on by itself.
#[derive(Clone)]
pub struct Replay {
    record: Rc<File>,
    blocks: u64,
    at: u64,
    end: u64,
    durable: Left,
    /// In the order in which they began.
    open: BTreeMap<u64, Change>,
    ignores_flushes: bool,
}

/// A change that no flush has made durable.
#[derive(Clone, Default)]
struct Change {
    blocks: Vec<(u64, Rc<Block>)>,
    found: Vec<(u64, Rc<Block>)>,
    done: Option<u64>,
}

impl Replay {
    /// The beginning of the record at `path`, as far as it goes now.
    ///
    /// # Errors
    /// The file cannot be read, or is no record.
    pub fn open(path: &Path) -> io::Result<Replay> {
        let record = File::open(path)?;
        let [blocks, _] = header(&record)?;
        let end = record.metadata()?.len();
        let (durable, open) = Default::default();
        Ok(Replay { record: record.into(), blocks, at: BEGIN, end, durable, open, ignores_flushes: false })
    }

    /// Blocks of the device.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How much of the record has happened, in bytes: a file that was so long when something was seen had all this behind it.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// From now on the device says that it flushes and does not; or it does again. For a test of a test.
    pub fn ignore_flushes(&mut self, ignores: bool) {
        self.ignores_flushes = ignores;
    }

    /// The next thing happens. `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, or is no record; or it says that two changes of one block were under way at once, of which
    /// nobody can know the outcome.
    pub fn step(&mut self) -> io::Result<Option<Step>> {
        let Some(entry) = Entry::read(&self.record, self.at, self.end)? else { return Ok(None) };
        let (at, of) = (self.at, entry.of);
        let unknown = || invalid("it ends what has not begun");
        let step = match entry.kind {
            Kind::Write | Kind::Zeroes => {
                let blocks = self.content(at, &entry)?;
                self.is_alone(&blocks)?;
                self.open.insert(at, Change { blocks, ..Change::default() });
                Step::Change
            }
            Kind::Found => {
                let found = self.content(at, &entry)?;
                self.open.get_mut(&of).ok_or_else(unknown)?.found.extend(found);
                Step::Found
            }
            Kind::Done => {
                let change = self.open.get_mut(&of).ok_or_else(unknown)?;
                if !change.found.is_empty() {
                    change.blocks = std::mem::take(&mut change.found);
                }
                change.done = Some(at);
                Step::Change
            }
            Kind::Run => Step::Run,
            Kind::Flush => Step::Flush,
            Kind::Flushed if self.ignores_flushes => Step::Flushed,
            Kind::Flushed => {
                for (_, change) in self.open.extract_if(.., |_, change| change.done.is_some_and(|done| done < of)) {
                    self.durable.extend(change.blocks);
                }
                Step::Flushed
            }
        };
        self.at = entry.bytes(at).end;
        Ok(Some(step))
    }

    /// Whether a device with all this behind it has other blocks than zeros. What was under way when it ended may be there or
    /// not. Reads on to the end.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub(super) fn leaves_bytes(mut self) -> io::Result<bool> {
        while self.step()?.is_some() {}
        let mut left = self.durable;
        let (done, under_way): (Vec<_>, Vec<_>) = self.open.into_values().partition(|change| change.done.is_some());
        left.extend(done.into_iter().flat_map(|change| change.blocks));
        for (block, _) in under_way.into_iter().flat_map(|change| change.blocks) {
            left.remove(&block);
        }
        Ok(left.values().any(|block| block.iter().any(|byte| *byte != 0)))
    }

    /// What is left if the power is cut now. `below(n)` chooses a number below `n`.
    pub fn cut(&self, mut below: impl FnMut(u64) -> u64) -> Left {
        let mut left = self.durable.clone();
        // One mood per cut: mostly lost, mostly kept, or evenly, so that extremes are seen too.
        let mood = below(5);
        for (block, after) in self.open.values().flat_map(|change| &change.blocks) {
            let is_kept = match mood {
                0 => false,
                1 => below(8) == 0,
                2 => below(8) != 0,
                3 => true,
                _ => below(2) == 0,
            };
            if is_kept {
                left.insert(*block, after.clone());
            } else if below(8) == 0 {
                let mut torn = left.get(block).map_or([0; BLOCK_SIZE as usize], |before| **before);
                for (sector, after) in torn.chunks_mut(SECTOR).zip(after.chunks(SECTOR)) {
                    if below(2) == 0 {
                        sector.copy_from_slice(after);
                    }
                }
                left.insert(*block, Rc::new(torn));
            }
        }
        left
    }

    /// The blocks of an entry.
    fn content(&self, at: u64, entry: &Entry) -> io::Result<Vec<(u64, Rc<Block>)>> {
        let first = entry.offset / SIZE;
        let end = (entry.offset + entry.length) / SIZE;
        if !entry.offset.is_multiple_of(SIZE) || !entry.length.is_multiple_of(SIZE) || end > self.blocks {
            return Err(invalid("it names what are no blocks of the device"));
        }
        if entry.kind == Kind::Zeroes {
            let zeros = Rc::new([0; BLOCK_SIZE as usize]);
            return Ok((first..end).map(|block| (block, zeros.clone())).collect());
        }
        let mut bytes = vec![0; entry.length as usize];
        self.record.read_exact_at(&mut bytes, entry.bytes(at).start)?;
        let (blocks, _) = bytes.as_chunks::<{ BLOCK_SIZE as usize }>();
        Ok((first..end).zip(blocks.iter().map(|block| Rc::new(*block))).collect())
    }

    /// Nothing else is under way where a change begins.
    fn is_alone(&self, blocks: &[(u64, Rc<Block>)]) -> io::Result<()> {
        let mut under_way = self.open.values().filter(|change| change.done.is_none()).flat_map(|change| &change.blocks);
        let (first, last) = (blocks.first().map(|block| block.0), blocks.last().map(|block| block.0));
        match under_way.find(|(block, _)| Some(*block) >= first && Some(*block) <= last) {
            Some((block, _)) => Err(invalid(&format!("two changes of block {block} are under way at once"))),
            None => Ok(()),
        }
    }
}
