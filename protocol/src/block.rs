//! `atoll.block/1`: a block device of 4-KiB blocks. Payload moves by lease only.
//!
//! Operations complete in any order; only flush orders: what was answered before it was
//! asked is durable when it is answered.
//!
//! Planned client methods (the trait follows as soon as the macro is in):
//! ```text
//! rights: READ, WRITE, MAP, FLUSH = bit 8                     object: Device
//! 1 info(device) -> DeviceInfo                                 (no right)  idempotent
//! 2 read(device, block: u64, count: u32) -> Lease | ReadError  READ        idempotent
//! 3 write(device, block: u64, data: LeasePart) -> () | WriteError  WRITE   idempotent
//! 4 flush(device) -> () | FlushError                           FLUSH       idempotent
//! 5 discard(device, block: u64, count: u32) | WriteError       WRITE       idempotent
//! 6 write_zeroes(device, block: u64, count: u32) | WriteError  WRITE       idempotent
//! ```

/// Bytes in one block of this interface.
pub const BLOCK_SIZE: u32 = 4096;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes in a block; always [`BLOCK_SIZE`] in version 1.
    pub block_size: u32,
    /// Most blocks that one read or write may name.
    pub max_transfer_blocks: u32,
    /// Blocks on the device.
    pub blocks: u64,
    /// The driver bypasses the kernel's page cache.
    pub direct: bool,
    /// Writes are refused with [`WriteError::ReadOnly`].
    pub read_only: bool,
}

/// Why a read gave no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// 1: The device failed at `block`. The data there is not known; other blocks may be fine.
    Io {
        /// Linux error number of the device.
        errno: u32,
        /// First block that failed.
        block: u64,
    },
    /// 2: The range is empty, too long or ends beyond the device. Ask `info`.
    OutOfRange,
}

/// Why a write, discard or write-zeroes is not done. Part of the range may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// 1: The device failed at `block`.
    Io {
        /// Linux error number of the device.
        errno: u32,
        /// First block that failed.
        block: u64,
    },
    /// 2: The range is empty, too long or ends beyond the device.
    OutOfRange,
    /// 3: The file under a sparse image found no room. Nothing else is affected.
    NoSpace,
    /// 4: The device takes no writes.
    ReadOnly,
}

/// Why a flush failed. Writes answered since the last good flush may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushError {
    /// 1: The device failed.
    Io {
        /// Linux error number of the device.
        errno: u32,
    },
    /// 3: The file under a sparse image found no room.
    NoSpace,
}
