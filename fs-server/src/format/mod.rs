//! The on-disk format, drawn in `docs/fs-format.md`.
//!
//! Little-endian, 4 KiB blocks. Every structure is a `zerocopy` struct whose size is asserted; bytes of a disk have the
//! type `[u8]` before they are checked and one of these types after. Nothing here does I/O or panics on foreign bytes.

pub mod items;
pub mod node;
pub mod pack;
pub mod superblock;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a tree node.
pub const NODE_SIZE: usize = 16384;
/// Blocks of a tree node.
pub const NODE_BLOCKS: u32 = 4;
/// Blocks of an allocation group: the bits of one bitmap block (128 MiB).
pub const GROUP_BLOCKS: u32 = 32768;
/// Blocks of the longest extent (1 MiB). No extent crosses a multiple of this within its file.
pub const EXTENT_BLOCKS: u32 = 256;
/// Bytes of the longest file (1 TiB).
pub const MAX_FILE_SIZE: u64 = 1 << 40;
/// Bytes of the longest name.
pub const MAX_NAME: usize = 255;
/// Levels of the tree, at most.
pub const MAX_LEVELS: usize = 8;

/// Where a node of the tree is, and how to know that it is that node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Pointer {
    /// First block of each copy; 0 = no such copy.
    pub address: [U64; 2],
    /// Checkpoint generation in which the node was written.
    pub generation: U64,
    /// CRC-32C of the node's 16 KiB. It is here and not in the node, so that a lost write is seen too.
    pub crc: U32,
    /// Level of the node: 0 = leaf.
    pub level: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
const _: () = assert!(size_of::<Pointer>() == 32);

impl Pointer {
    /// True for "no node".
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.address[0] == 0
    }

    /// First block of each copy.
    pub fn addresses(&self) -> impl Iterator<Item = u64> + use<> {
        self.address.into_iter().map(U64::get).filter(|&address| address != 0)
    }

    /// Address that names the node: that of its first copy.
    #[must_use]
    pub fn primary(&self) -> u64 {
        self.address[0].get()
    }
}
