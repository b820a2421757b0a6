//! The superblock: written once, by `format`; a copy is in the volume's last block.
//!
//! - It says where everything of fixed place is; nothing else does.
//! - A damaged first block is replaced by the copy, and the other way round.

use super::{EXTENT_BLOCKS, GROUP_BLOCKS, MAX_LEVELS, NODE_BLOCKS, NODE_SIZE, Pointer, pack};
use crate::device::{BLOCK_SIZE, crc32c};
use crate::error::{Error, Structure};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a volume.
pub const MAGIC: [u8; 8] = *b"ATOLLFS1";
/// First bytes of a device of which `format` has begun to make a volume, and has not finished.
pub const UNFINISHED: [u8; 8] = *b"ATOLLNEW";
/// What a superblock of another version is called.
pub(crate) const ANOTHER_VERSION: Error = Error::NotAVolume("another version of the format");
/// Blocks of the smallest volume (1 MiB).
pub const MIN_BLOCKS: u64 = 256;
/// Blocks of the largest volume (64 TiB): its packs stay below 8 MiB.
pub const MAX_BLOCKS: u64 = 1 << 34;

/// Features without which a program cannot read the volume. None is defined beyond the base format; bits 0 (log),
/// 1 (hard links), 2 (extended attributes), 3 (snapshots) and 4 (inline data) are spoken for.
pub const KNOWN_INCOMPAT: u64 = 0;
/// Features without which a program cannot write the volume.
pub const KNOWN_RO_COMPAT: u64 = 0;

/// The superblock as it is on disk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// CRC-32C of the block with this field zero.
    pub crc: U32,
    /// Version of the layout: 1.
    pub version: U32,
    /// Identity of the volume; also in every node and pack.
    pub uuid: [u8; 16],
    /// Key of the hash of names.
    pub hash_key: [u8; 16],
    /// Blocks of the volume, this one and its copy included.
    pub blocks: U64,
    /// 4096.
    pub block_size: U32,
    /// 16384.
    pub node_size: U32,
    /// 32768.
    pub group_blocks: U32,
    /// Allocation groups.
    pub groups: U32,
    /// Feature bits: cannot be read without.
    pub incompat: U64,
    /// Feature bits: cannot be written without.
    pub ro_compat: U64,
    /// Feature bits: may be ignored.
    pub compat: U64,
    /// Blocks of one checkpoint pack.
    pub pack_blocks: U32,
    /// Copies of each node: 1 or 2.
    pub node_copies: u8,
    /// Bits of the hash of a name that are used (64; fewer only to test collisions).
    pub name_hash_bits: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// First block of each pack: slot A copies 0 and 1, slot B copies 0 and 1.
    pub packs: [[U64; 2]; 2],
    /// First bitmap of slot A; those of slot B follow.
    pub bitmaps: U64,
    /// First block of the room of the log.
    pub log: U64,
    /// Blocks of the room of the log.
    pub log_blocks: U64,
    /// First block of the extent of zeros that holes are lent from.
    pub zeros: U64,
    /// Blocks of that extent.
    pub zero_blocks: U64,
    /// First block of data and nodes.
    pub data: U64,
    /// Nanoseconds since 1970 at which the volume was made.
    pub created_ns: U64,
    /// Zero.
    pub padding: [u8; 3904],
}
const _: () = assert!(size_of::<Superblock>() == BLOCK_SIZE);

impl Superblock {
    /// Lays out a volume of `blocks` blocks. The caller fills in identity and time, then seals.
    ///
    /// # Errors
    /// The size is out of range.
    pub fn lay_out(blocks: u64, node_copies: u8, name_hash_bits: u8) -> Result<Self, Error> {
        if blocks < MIN_BLOCKS {
            return Err(Error::BadGeometry("smaller than 1 MiB"));
        }
        if blocks > MAX_BLOCKS {
            return Err(Error::BadGeometry("larger than 64 TiB"));
        }
        if !(1..=2).contains(&node_copies) || name_hash_bits > 64 {
            return Err(Error::BadGeometry("option out of range"));
        }
        let groups = blocks.div_ceil(u64::from(GROUP_BLOCKS));
        let pack_blocks = pack::blocks_for(groups);
        let front_packs = 1;
        let back_packs = blocks - 1 - 2 * pack_blocks;
        let bitmaps = front_packs + 2 * pack_blocks;
        let log = bitmaps + 2 * groups;
        // 1/64 of the volume, 16 to 256 MiB; small volumes cannot spare the lower bound.
        let log_blocks = (blocks / 64).max(4096.min(blocks / 64)).min(65536);
        let zeros = log + log_blocks;
        let zero_blocks = if blocks < 16384 { 16 } else { u64::from(EXTENT_BLOCKS) };
        let data = (zeros + zero_blocks).next_multiple_of(u64::from(NODE_BLOCKS));
        let mut this = Self::read_from_bytes(&[0; BLOCK_SIZE]).map_err(|_| Error::BadGeometry("superblock size"))?;
        this.magic = MAGIC;
        this.version = U32::new(1);
        this.blocks = U64::new(blocks);
        this.block_size = U32::new(BLOCK_SIZE as u32);
        this.node_size = U32::new(NODE_SIZE as u32);
        this.group_blocks = U32::new(GROUP_BLOCKS);
        this.groups = U32::new(groups as u32);
        this.pack_blocks = U32::new(pack_blocks as u32);
        this.node_copies = node_copies;
        this.name_hash_bits = name_hash_bits;
        this.packs = [
            [U64::new(front_packs), U64::new(back_packs)],
            [U64::new(front_packs + pack_blocks), U64::new(back_packs + pack_blocks)],
        ];
        this.bitmaps = U64::new(bitmaps);
        this.log = U64::new(log);
        this.log_blocks = U64::new(log_blocks);
        this.zeros = U64::new(zeros);
        this.zero_blocks = U64::new(zero_blocks);
        this.data = U64::new(data);
        Ok(this)
    }

    /// Stores the checksum.
    pub fn seal(&mut self) {
        self.crc = U32::new(0);
        self.crc = U32::new(crc32c(self.as_bytes()));
    }

    /// Checks the bytes of a superblock that was read from block `block`.
    ///
    /// # Errors
    /// [`Error::NotAVolume`], [`Error::Corrupt`] or [`Error::Unsupported`].
    pub fn check(bytes: &[u8], block: u64) -> Result<Self, Error> {
        let corrupt = |what| Error::Corrupt { structure: Structure::Superblock, block, what };
        let raw = Self::read_from_bytes(bytes).map_err(|_| corrupt("wrong length"))?;
        let mut resealed = raw;
        resealed.seal();
        if raw.crc != resealed.crc {
            if raw.magic == MAGIC {
                return Err(corrupt("checksum"));
            }
            let blank = bytes.iter().all(|&byte| byte == 0);
            if raw.magic == UNFINISHED {
                return Err(Error::Unfinished);
            }
            return Err(Error::NotAVolume(if blank { "the first block is empty" } else { "no superblock" }));
        }
        if raw.magic != MAGIC || raw.version != 1 {
            return Err(ANOTHER_VERSION);
        }
        let unknown = (raw.incompat.get() & !KNOWN_INCOMPAT) | (raw.ro_compat.get() & !KNOWN_RO_COMPAT);
        if unknown != 0 {
            return Err(Error::Unsupported(unknown));
        }
        // Every field of geometry is a function of the size and two options, so one comparison checks them all.
        let mut expected = Self::lay_out(raw.blocks.get(), raw.node_copies, raw.name_hash_bits)
            .map_err(|_| corrupt("geometry out of range"))?;
        expected.uuid = raw.uuid;
        expected.hash_key = raw.hash_key;
        expected.created_ns = raw.created_ns;
        expected.compat = raw.compat;
        expected.seal();
        if expected.as_bytes() != raw.as_bytes() {
            return Err(corrupt("impossible geometry"));
        }
        Ok(raw)
    }

    /// First block after the last that data and nodes may use.
    #[must_use]
    pub fn data_end(&self) -> u64 {
        self.packs[0][1].get()
    }

    /// Checks a pointer that came from the disk with something of generation `newest`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_pointer(&self, pointer: &Pointer, newest: u64) -> Result<(), &'static str> {
        let data = self.data.get()..self.data_end();
        if pointer.is_none() || usize::from(pointer.level) >= MAX_LEVELS {
            return Err("impossible pointer");
        }
        if pointer.addresses().count() != usize::from(self.node_copies) {
            return Err("has another number of copies than the volume's nodes have");
        }
        for address in pointer.addresses() {
            let aligned = address % u64::from(NODE_BLOCKS) == 0;
            if !aligned || !data.contains(&address) || address + u64::from(NODE_BLOCKS) > data.end {
                return Err("lies where no node can");
            }
        }
        if pointer.generation.get() > newest {
            return Err("newer than what refers to it");
        }
        if pointer.reserved != [0; 3] {
            return Err("reserved bytes of its pointer are not zero");
        }
        Ok(())
    }

    /// Block of the bitmap of `group` in `slot`.
    #[must_use]
    pub fn bitmap_block(&self, group: u32, slot: u8) -> u64 {
        self.bitmaps.get() + u64::from(slot & 1) * u64::from(self.groups.get()) + u64::from(group)
    }
}
