//! Items of the tree: their keys, and the bytes of their values.
//!
//! ```text
//! (inode, INODE, 0)                  Inode
//! (directory, ENTRY, hash of name)   1 to 16 entries {inode u64, kind u8, slot u8, length u8, name}
//! (inode, EXTENT, first block)       ExtentHead, then one CRC-32C per block
//! (1, ORPHAN, inode)                 empty: blocks beyond its end, or all if it has no link, are to be freed
//! ```
//! Kinds 16 (XATTR), 48 (LINK, a back reference) and 80 (SNAPSHOT) are spoken for.

use super::{EXTENT_BLOCKS, MAX_FILE_SIZE, MAX_NAME};
use crate::device::BLOCK_SIZE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Inode number under which the list of orphans is kept.
pub const ORPHANS: u64 = 1;
/// Inode number of the root directory.
pub const ROOT: u64 = 2;
/// First inode number that is dealt out.
pub const FIRST_INODE: u64 = 16;
/// Entries of one hash, at most.
pub const MAX_COLLISIONS: usize = 16;
/// Low bits of an entry's position that say which of the entries of one hash it is.
pub const SLOT_MASK: u64 = 15;

/// What an item is. The numbers order the items of one inode.
pub mod kind {
    /// An inode.
    pub const INODE: u8 = 0;
    /// Directory entries.
    pub const ENTRY: u8 = 32;
    /// An extent.
    pub const EXTENT: u8 = 64;
    /// An inode with something to free.
    pub const ORPHAN: u8 = 96;
}

/// Key of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Inode it belongs to.
    pub inode: u64,
    /// One of [`kind`].
    pub kind: u8,
    /// Place among its kind.
    pub offset: u64,
}

impl Key {
    /// The least key.
    pub const MIN: Self = Self { inode: 0, kind: 0, offset: 0 };

    /// Key of an inode.
    #[must_use]
    pub fn inode(inode: u64) -> Self {
        Self { inode, kind: kind::INODE, offset: 0 }
    }

    /// Key of the entries of a hash.
    #[must_use]
    pub fn entry(directory: u64, hash: u64) -> Self {
        Self { inode: directory, kind: kind::ENTRY, offset: hash & !SLOT_MASK }
    }

    /// Key of the extent that begins at `block` of the file.
    #[must_use]
    pub fn extent(inode: u64, block: u64) -> Self {
        Self { inode, kind: kind::EXTENT, offset: block }
    }

    /// Key of an orphan.
    #[must_use]
    pub fn orphan(inode: u64) -> Self {
        Self { inode: ORPHANS, kind: kind::ORPHAN, offset: inode }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
}

impl FileKind {
    /// The kind that `byte` means.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            _ => None,
        }
    }
}

/// Value of an INODE item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawInode {
    /// A [`FileKind`].
    pub kind: u8,
    /// Zero.
    pub flags: [u8; 3],
    /// Entries that refer to it: 1, or 0 when it was unlinked while open.
    pub links: U32,
    /// Bytes of a file, entries of a directory.
    pub size: U64,
    /// Random; a handle to another inode of the same number does not have it.
    pub generation: U64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: U64,
    /// Last change of the inode.
    pub changed_ns: U64,
    /// Creation.
    pub created_ns: U64,
    /// Data blocks.
    pub blocks: U64,
    /// Directory with its entry.
    pub parent: U64,
    /// Position of its entry there (hash and slot).
    pub position: U64,
    /// Room for permissions and owner.
    pub reserved: [u8; 16],
}
const _: () = assert!(size_of::<RawInode>() == 88);

/// An inode that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: FileKind,
    /// The fields as on disk.
    pub raw: RawInode,
}

impl Inode {
    /// Checks the value of an INODE item.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(value: &[u8]) -> Result<Self, &'static str> {
        let raw = RawInode::read_from_bytes(value).map_err(|_| "inode of a wrong length")?;
        let kind = FileKind::from_byte(raw.kind).ok_or("inode of an unknown kind")?;
        if kind == FileKind::File && raw.size.get() > MAX_FILE_SIZE {
            return Err("file size beyond the largest");
        }
        if raw.links.get() > 1 {
            return Err("more than one link");
        }
        Ok(Self { kind, raw })
    }
}

/// Head of the value of an EXTENT item; one CRC-32C (u32) per block follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentHead {
    /// First block on disk.
    pub physical: U64,
    /// Generation in which it was written.
    pub birth: U64,
    /// Blocks, 1 to 256.
    pub blocks: U32,
    /// Zero; room for "unwritten".
    pub flags: U32,
}
const _: () = assert!(size_of::<ExtentHead>() == 24);

/// Bytes of the longest extent item.
pub const MAX_EXTENT_VALUE: usize = size_of::<ExtentHead>() + 4 * EXTENT_BLOCKS as usize;

/// An extent that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// First block of the file that it holds.
    pub start: u64,
    /// First block on disk.
    pub physical: u64,
    /// Generation in which it was written.
    pub birth: u64,
    /// CRC-32C of each block; as many as there are blocks.
    pub crcs: Vec<u32>,
}

impl FileExtent {
    /// Blocks it holds.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.crcs.len() as u64
    }

    /// First block of the file after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.blocks()
    }

    /// Checks the value of the EXTENT item at file block `start`; its blocks must lie within `data`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(start: u64, value: &[u8], data: &std::ops::Range<u64>) -> Result<Self, &'static str> {
        let (head, rest) = ExtentHead::read_from_prefix(value).map_err(|_| "extent item of a wrong length")?;
        let blocks = u64::from(head.blocks.get());
        if blocks == 0 || blocks > u64::from(EXTENT_BLOCKS) || rest.len() as u64 != 4 * blocks || head.flags != 0 {
            return Err("extent item of a wrong length");
        }
        let chunk = u64::from(EXTENT_BLOCKS);
        if start > MAX_FILE_SIZE / BLOCK_SIZE as u64 || start % chunk + blocks > chunk {
            return Err("extent at an impossible place of its file");
        }
        let physical = head.physical.get();
        if physical < data.start || physical.checked_add(blocks).is_none_or(|end| end > data.end) {
            return Err("extent outside the data blocks");
        }
        let crcs = rest.chunks_exact(4).map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]])).collect();
        Ok(Self { start, physical, birth: head.birth.get(), crcs })
    }

    /// The value of its item.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = ExtentHead {
            physical: U64::new(self.physical),
            birth: U64::new(self.birth),
            blocks: U32::new(self.crcs.len() as u32),
            flags: U32::new(0),
        };
        let mut value = Vec::with_capacity(size_of::<ExtentHead>() + 4 * self.crcs.len());
        value.extend_from_slice(head.as_bytes());
        for crc in &self.crcs {
            value.extend_from_slice(&crc.to_le_bytes());
        }
        value
    }

    /// The part of it that holds file blocks `from..to`, both within it.
    #[must_use]
    pub fn part(&self, from: u64, to: u64) -> Self {
        let first = (from - self.start) as usize;
        let last = (to - self.start) as usize;
        Self {
            start: from,
            physical: self.physical + first as u64,
            birth: self.birth,
            crcs: self.crcs[first..last].to_vec(),
        }
    }
}

/// One name of a directory, as it lies in its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What the name means.
    pub inode: u64,
    /// What that is.
    pub kind: FileKind,
    /// Which of the entries of one hash it is; never changes.
    pub slot: u8,
    /// The name.
    pub name: &'a [u8],
}

impl Entry<'_> {
    /// Appends its bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.inode.to_le_bytes());
        into.extend_from_slice(&[self.kind as u8, self.slot, self.name.len() as u8]);
        into.extend_from_slice(self.name);
    }
}

/// Walks the value of an ENTRY item. Stops with an error at the first impossible entry.
#[derive(Clone, Debug)]
pub struct Entries<'a>(pub &'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parsed = parse_entry(self.0);
        self.0 = parsed.as_ref().map_or(&[][..], |(_, rest)| rest);
        Some(parsed.map(|(entry, _)| entry))
    }
}

fn parse_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8]), &'static str> {
    let (inode, rest) = bytes.split_first_chunk::<8>().ok_or("directory entry cut short")?;
    let ([kind, slot, length], rest) = rest.split_first_chunk::<3>().ok_or("directory entry cut short")?;
    let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or("directory entry cut short")?;
    let kind = FileKind::from_byte(*kind).ok_or("directory entry of an unknown kind")?;
    if usize::from(*slot) >= MAX_COLLISIONS {
        return Err("directory entry in an impossible slot");
    }
    check_name(name).map_err(|_| "directory entry with an impossible name")?;
    Ok((Entry { inode: u64::from_le_bytes(*inode), kind, slot: *slot, name }, rest))
}

/// Says why `name` cannot be the name of an entry.
///
/// # Errors
/// The reason.
pub fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("empty"),
        b"." | b".." => Err("'.' and '..' are not names"),
        _ if name.len() > MAX_NAME => Err("longer than 255 bytes"),
        _ if name.contains(&b'/') => Err("contains '/'"),
        _ if name.contains(&0) => Err("contains NUL"),
        _ => Ok(()),
    }
}
