//! Checkpoint packs: the volume's state in one place, written last.
//!
//! - There are two slots, A and B, written alternately: a pack goes to the slot that does not hold the newest.
//! - Each slot has two copies, far apart. A pack counts if one copy is whole: everything it refers to was flushed
//!   before any of it was written.
//! - The newest pack that counts is the volume's state.

use super::Pointer;
use super::superblock::Superblock;
use crate::device::{BLOCK_SIZE, crc32c};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a pack.
pub const MAGIC: [u8; 8] = *b"ATOLLCP1";
/// Slot of a group whose bitmap was never written: everything of it is free but what has a fixed place.
pub const UNWRITTEN: u8 = 2;

/// Head of a pack; the group table follows it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PackHead {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// CRC-32C of the whole pack with this field zero.
    pub crc: U32,
    /// Entries of the group table.
    pub groups: U32,
    /// Identity of the volume.
    pub uuid: [u8; 16],
    /// Generation of this checkpoint.
    pub generation: U64,
    /// The tree.
    pub root: Pointer,
    /// Next inode number to be dealt out.
    pub next_inode: U64,
    /// Regular files.
    pub files: U64,
    /// Directories.
    pub directories: U64,
    /// Blocks not in use.
    pub free_blocks: U64,
    /// Room for the log: sequence number from which it counts.
    pub log_sequence: U64,
    /// Room for the log: block within its ring.
    pub log_offset: U64,
    /// Room for snapshots: root of their table.
    pub snapshots: Pointer,
    /// Nanoseconds since 1970.
    pub written_ns: U64,
    /// Ledger of effects whose beginning this checkpoint holds; 0: none.
    pub ledger: U64,
    /// Position in that ledger up to which it holds them.
    pub ledger_position: U64,
    /// Zero.
    pub reserved: [u8; 336],
}
const _: () = assert!(size_of::<PackHead>() == 512);

/// Entry of the group table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GroupEntry {
    /// Blocks of the group that are not in use.
    pub free: U32,
    /// Aligned places of four free blocks: where a node fits.
    pub free_nodes: U32,
    /// CRC-32C of the bitmap.
    pub crc: U32,
    /// Slot that holds the bitmap: 0, 1 or [`UNWRITTEN`].
    pub slot: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
const _: () = assert!(size_of::<GroupEntry>() == 16);

/// Blocks of a pack of `groups` groups.
#[must_use]
pub fn blocks_for(groups: u64) -> u64 {
    (size_of::<PackHead>() as u64 + groups * size_of::<GroupEntry>() as u64).div_ceil(BLOCK_SIZE as u64)
}

/// A pack that was checked.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its head.
    pub head: PackHead,
    /// Its group table.
    pub table: Vec<GroupEntry>,
}

impl Pack {
    /// The bytes of a pack, padded to whole blocks and sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut head = self.head;
        head.magic = MAGIC;
        head.crc = U32::new(0);
        head.groups = U32::new(self.table.len() as u32);
        let mut bytes = Vec::with_capacity(blocks_for(self.table.len() as u64) as usize * BLOCK_SIZE);
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(self.table.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        head.crc = U32::new(crc32c(&bytes));
        bytes[..size_of::<PackHead>()].copy_from_slice(head.as_bytes());
        bytes
    }

    /// Checks the bytes of a pack.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(bytes: &[u8], superblock: &Superblock) -> Result<Self, &'static str> {
        let (head, _) = PackHead::read_from_prefix(bytes).map_err(|_| "wrong length")?;
        if head.magic != MAGIC {
            return Err("no pack here");
        }
        let mut unsealed = bytes.to_vec();
        unsealed[8..12].fill(0);
        if crc32c(&unsealed) != head.crc.get() {
            return Err("checksum");
        }
        if head.uuid != superblock.uuid {
            return Err("of another volume");
        }
        if head.groups != superblock.groups {
            return Err("group table of a wrong length");
        }
        let length = head.groups.get() as usize * size_of::<GroupEntry>();
        let table = bytes.get(size_of::<PackHead>()..).and_then(|rest| rest.get(..length)).ok_or("wrong length")?;
        let table: Vec<GroupEntry> = table
            .chunks_exact(size_of::<GroupEntry>())
            .filter_map(|entry| GroupEntry::read_from_bytes(entry).ok())
            .collect();
        if table.iter().any(|entry| entry.slot > UNWRITTEN || entry.free.get() > super::GROUP_BLOCKS) {
            return Err("impossible group");
        }
        // Counted up by one each: none of them comes near this in any lifetime.
        let counts = [head.generation, head.next_inode, head.files, head.directories, head.free_blocks];
        if counts.iter().any(|count| count.get() >> 56 != 0) {
            return Err("impossible count");
        }
        Ok(Self { head, table })
    }
}
