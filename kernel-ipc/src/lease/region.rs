//! Regions: shared memory with one writer.
//!
//! * The owner has a [`Region`]; whoever may map it has a [`RegionReader`]. Who maps it can read all of it.
//! * Bytes of a peer's region change under the reader's eyes. So nothing here gives a reference into one: bytes are
//!   copied out, handed to the kernel as a slice object, or summed by a checksum that reads each of them once.
//! * Slices keep their mapping alive; the kernel may use them as long as they live.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::id::RegionId;
use crate::sys::crc32c;
use crate::sys::segment::{OutOfBounds, SegmentReader, SegmentWriter};

/// A range does not lie inside its region or lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl std::fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the range is not inside the region")
    }
}

impl std::error::Error for OutOfRange {}

impl From<OutOfBounds> for OutOfRange {
    fn from(_: OutOfBounds) -> Self {
        OutOfRange
    }
}

/// A region, in the hands of its owner. Clones are the same region.
#[derive(Clone)]
pub struct Region {
    writer: Arc<SegmentWriter>,
    id: RegionId,
}

impl Region {
    /// Makes a region of `len` zero bytes. Memory is taken page by page as it is first written.
    ///
    /// # Errors
    /// Of making or mapping the memory.
    pub fn create(name: &str, id: RegionId, len: usize) -> io::Result<Self> {
        Ok(Self { writer: Arc::new(SegmentWriter::create(name, len)?), id })
    }

    /// A region in memory that is kept: fresh, or that of its owner's last incarnation, whose every byte is what it was.
    /// Whoever maps it need not hear of the owner's death.
    ///
    /// # Errors
    /// Of mapping the memory.
    pub fn kept(memory: OwnedFd, id: RegionId) -> io::Result<Self> {
        Ok(Self { writer: Arc::new(SegmentWriter::open_kept_for_readers(memory)?), id })
    }

    /// The region object's name.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The descriptor by which others map it, read-only.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.fd()
    }

    /// A range for the kernel to fill or to read, in the owner's own writable mapping.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn slice(&self, offset: usize, len: usize) -> Result<RegionSlice, OutOfRange> {
        inside(self.len(), offset, len)?;
        Ok(RegionSlice { writer: self.writer.clone(), offset, len })
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was written.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        Ok(self.writer.copy_in(offset, bytes)?)
    }

    /// Copies from `offset` until `bytes` is full.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was copied.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        Ok(self.writer.copy_out(offset, bytes)?)
    }

    /// The CRC-32C of `range`, continuing from `crc`, that of what came before (0: nothing).
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn crc32c(&self, crc: u32, range: Range<usize>) -> Result<u32, OutOfRange> {
        let len = range.end.checked_sub(range.start).ok_or(OutOfRange)?;
        Ok(crc32c::append_own(crc, &self.writer, range.start, len)?)
    }

    /// Copies `range` of a peer's region to `offset`, and returns the CRC-32C of what was copied, continuing from `crc`.
    /// Each byte is read once, so copy and sum agree whatever the peer does. Fastest where both begin alike modulo 8.
    ///
    /// # Errors
    /// [`OutOfRange`], of either; nothing was copied.
    pub fn copy_and_crc(
        &self,
        crc: u32,
        from: &RegionReader,
        range: Range<usize>,
        offset: usize,
    ) -> Result<u32, OutOfRange> {
        let len = range.end.checked_sub(range.start).ok_or(OutOfRange)?;
        Ok(crc32c::copy_segment(crc, &from.reader, range.start, &self.writer, offset, len)?)
    }

    /// Copies `bytes` to `offset`, and returns their CRC-32C, continuing from `crc`.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was copied.
    pub fn copy_in_and_crc(&self, crc: u32, bytes: &[u8], offset: usize) -> Result<u32, OutOfRange> {
        Ok(crc32c::copy_bytes(crc, bytes, &self.writer, offset)?)
    }

    pub(crate) fn memory(&self) -> &SegmentWriter {
        &self.writer
    }
}

/// A peer's region, mapped read-only. Clones share the mapping.
#[derive(Clone)]
pub struct RegionReader {
    reader: Arc<SegmentReader>,
    id: RegionId,
}

impl RegionReader {
    /// Maps a region, after checking its seals: without them its owner could shrink it under us.
    ///
    /// # Errors
    /// Of the mapping; `InvalidData` if it is not sealed or has no bytes.
    pub fn open(fd: OwnedFd, id: RegionId) -> io::Result<Self> {
        Ok(Self { reader: Arc::new(SegmentReader::open(fd, 1)?), id })
    }

    /// The region object's name.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.reader.len()
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies from `offset` until `bytes` is full. The owner may write meanwhile: the copy is of some moment, byte by byte.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was copied.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        Ok(self.reader.copy_out(offset, bytes)?)
    }

    /// Shows the bytes of `range` to `look`, in order, copied out in chunks of up to 4 KiB. Allocates nothing.
    ///
    /// # Errors
    /// [`OutOfRange`]; `look` was not called.
    pub fn for_each_chunk(&self, range: Range<usize>, mut look: impl FnMut(&[u8])) -> Result<(), OutOfRange> {
        let len = range.end.checked_sub(range.start).ok_or(OutOfRange)?;
        inside(self.len(), range.start, len)?;
        let mut bounce = [0u8; 4096];
        let mut at = range.start;
        while at < range.end {
            let chunk = &mut bounce[..(range.end - at).min(4096)];
            self.reader.copy_out(at, chunk)?;
            look(chunk);
            at += chunk.len();
        }
        Ok(())
    }

    /// The CRC-32C of `range`, continuing from `crc`, that of what came before (0: nothing). Each byte is read once.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn crc32c(&self, crc: u32, range: Range<usize>) -> Result<u32, OutOfRange> {
        let len = range.end.checked_sub(range.start).ok_or(OutOfRange)?;
        Ok(crc32c::append_segment(crc, &self.reader, range.start, len)?)
    }

    /// A range for the kernel to read, in this process's own read-only mapping. Nothing is pinned: for a call's
    /// duration only, or through [`super::Mapper::pin`].
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn slice(&self, offset: usize, len: usize) -> Result<ReaderSlice, OutOfRange> {
        inside(self.len(), offset, len)?;
        Ok(ReaderSlice { reader: self.reader.clone(), offset, len })
    }

    pub(crate) fn memory(&self) -> &SegmentReader {
        &self.reader
    }
}

/// A range of the owner's own region, for the kernel.
pub struct RegionSlice {
    pub(crate) writer: Arc<SegmentWriter>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl RegionSlice {
    /// Where in the region it begins.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A range of a peer's region, for the kernel to read.
pub struct ReaderSlice {
    pub(crate) reader: Arc<SegmentReader>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl ReaderSlice {
    /// Where in the region it begins.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies from `at`, counted from its start, until `bytes` is full.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was copied.
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        inside(self.len, at, bytes.len())?;
        self.reader.copy_out(self.offset + at, bytes).map_err(|_| OutOfRange)
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Whether `len` bytes from `offset` lie inside `total`.
pub(crate) fn inside(total: usize, offset: usize, len: usize) -> Result<(), OutOfRange> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(OutOfRange),
    }
}
