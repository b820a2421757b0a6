//! How a record is written down. Numbers are little-endian.
//!
//! ```text
//!  0  magic "ATOLL-W1" | blocks of the device | where its last run begins          8 bytes each
//! 24  entries: kind | of | offset | length                                          8 bytes each,
//!     then `length` bytes, if the kind has bytes
//! ```
//!
//! Changes and flushes have the place of their own entry as their number.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub(super) const MAGIC: [u8; 8] = *b"ATOLL-W1";
/// Where the first entry is.
pub(super) const BEGIN: u64 = 24;
/// Where the header says in which place the last run begins.
pub(super) const LAST_RUN: u64 = 16;
const FIXED_BYTES: usize = 32;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A run of the driver begins: nothing of an earlier one can land any more, and of every change before this the record
    /// knows what became of it.
    Run = 1,
    /// These bytes are about to be written.
    Write = 2,
    /// These blocks are about to become zeros, or to be discarded.
    Zeroes = 3,
    /// Nobody can say any more what a change did. This is what was found in its place, or in a part of it.
    Found = 4,
    /// The device has answered a change; or, behind what was found, all of it was found.
    Done = 5,
    /// The device is about to be flushed.
    Flush = 6,
    /// It was.
    Flushed = 7,
}

impl Kind {
    fn of(number: u64) -> Option<Kind> {
        use Kind::{Done, Flush, Flushed, Found, Run, Write, Zeroes};
        [Run, Write, Zeroes, Found, Done, Flush, Flushed].into_iter().find(|kind| *kind as u64 == number)
    }

    fn has_bytes(self) -> bool {
        matches!(self, Kind::Write | Kind::Found)
    }
}

/// An entry without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// The change or flush that it is about.
    pub(super) of: u64,
    /// The bytes of the device that it is about.
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Entry {
    /// The entry at `at` of a record of `end` bytes; `None` if there is none, or not all of it.
    ///
    /// # Errors
    /// The file cannot be read, or has something else there.
    pub(super) fn read(record: &File, at: u64, end: u64) -> io::Result<Option<Entry>> {
        if end.checked_sub(at).is_none_or(|left| left < FIXED_BYTES as u64) {
            return Ok(None);
        }
        let mut fixed = [0; FIXED_BYTES];
        record.read_exact_at(&mut fixed, at)?;
        let (words, _) = fixed.as_chunks::<8>();
        let [kind, of, offset, length] = [0, 1, 2, 3].map(|word| u64::from_le_bytes(words[word]));
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, format!("no entry of a record at {at}"));
        let kind = Kind::of(kind).ok_or_else(nonsense)?;
        offset.checked_add(length).ok_or_else(nonsense)?;
        let entry = Entry { kind, of, offset, length };
        Ok(Some(entry).filter(|entry| entry.bytes(at).end <= end))
    }

    /// Where in the record the bytes of an entry at `at` are. What follows them is the next entry.
    pub(super) fn bytes(&self, at: u64) -> Range<u64> {
        let start = at + FIXED_BYTES as u64;
        start..start.saturating_add(if self.kind.has_bytes() { self.length } else { 0 })
    }

    /// The entry and its bytes, as the record has them.
    pub(super) fn encode(&self, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::with_capacity(FIXED_BYTES + bytes.len());
        for word in [self.kind as u64, self.of, self.offset, self.length] {
            whole.extend(word.to_le_bytes());
        }
        whole.extend(bytes);
        whole
    }
}
