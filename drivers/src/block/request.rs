//! Checks of what a client asks for. No system calls.

use std::ops::Range;

use protocol::block::BLOCK_SIZE;

use super::space::CHUNK_BLOCKS;

/// Most blocks that one read or write may name: what one lease of the region can cover.
pub const MAX_TRANSFER_BLOCKS: u32 = CHUNK_BLOCKS;

/// A request that names no blocks of the device, or too many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// How large a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Blocks on the device. Together less than 2^63 bytes.
    pub blocks: u64,
}

impl Bounds {
    /// The bytes of `count` blocks from `block` on, for a read or a write.
    ///
    /// # Errors
    /// [`Refused`]: empty, more than [`MAX_TRANSFER_BLOCKS`], or beyond the end.
    pub fn transfer(&self, block: u64, count: u32) -> Result<Range<u64>, Refused> {
        if count > MAX_TRANSFER_BLOCKS { Err(Refused) } else { self.range(block, count) }
    }

    /// The bytes of `count` blocks from `block` on, however many: for a discard or write-zeroes.
    ///
    /// # Errors
    /// [`Refused`]: empty, or beyond the end.
    pub fn range(&self, block: u64, count: u32) -> Result<Range<u64>, Refused> {
        let end = block.checked_add(u64::from(count)).filter(|end| *end <= self.blocks).ok_or(Refused)?;
        if count == 0 {
            return Err(Refused);
        }
        let size = u64::from(BLOCK_SIZE);
        let bytes = |block: u64| block.checked_mul(size).ok_or(Refused);
        Ok(bytes(block)?..bytes(end)?)
    }

    /// The blocks of a lease part of `length` bytes as the data of a write.
    ///
    /// # Errors
    /// [`Refused`]: not whole blocks, none, or too many.
    pub fn blocks_of(length: u64) -> Result<u32, Refused> {
        let size = u64::from(BLOCK_SIZE);
        match u32::try_from(length / size) {
            Ok(count) if length.is_multiple_of(size) && count > 0 && count <= MAX_TRANSFER_BLOCKS => Ok(count),
            _ => Err(Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_inside_the_device_are_let_through() {
        let device = Bounds { blocks: 1000 };
        assert_eq!(device.transfer(0, 1), Ok(0..4096));
        assert_eq!(device.transfer(744, 256), Ok(744 * 4096..1000 * 4096));
        for (block, count) in [(0, 0), (1000, 0), (1000, 1), (999, 2), (745, 256), (u64::MAX, 1), (u64::MAX - 1, 3)] {
            assert_eq!(device.transfer(block, count), Err(Refused), "{count} blocks from {block}");
        }
        assert_eq!(device.transfer(0, 257), Err(Refused), "more than one lease covers");
        assert_eq!(device.range(0, 1000), Ok(0..1000 * 4096));
        assert_eq!(device.range(1, 1000), Err(Refused));
    }

    #[test]
    fn only_whole_blocks_can_be_written() {
        assert_eq!(Bounds::blocks_of(4096), Ok(1));
        assert_eq!(Bounds::blocks_of(1 << 20), Ok(256));
        for length in [0, 1, 4095, 4097, (1 << 20) + 4096, u64::MAX, u64::MAX - 4095] {
            assert_eq!(Bounds::blocks_of(length), Err(Refused), "{length} bytes");
        }
    }
}
