//! `atoll.block/1`: a block device of 4-KiB blocks. Payload moves by lease only.
//!
//! Operations complete in any order; only flush orders: what was answered before it was
//! asked is durable when it is answered.

use kernel_ipc::interface::{Lease, LeasePart, OperationError, Wire, interface};

/// A block device.
#[interface("atoll.block/1")]
pub trait Block {
    /// A device.
    type Device;

    /// Read blocks.
    const READ: Rights;
    /// Change blocks.
    const WRITE: Rights;
    /// Map the region that the driver lends from.
    const MAP: Rights;
    /// Make what was written durable.
    const FLUSH: Rights = 8;

    /// What the device is. Does not touch it.
    #[op(1, retry = idempotent, deadline = "5s")]
    fn info(device: Device) -> Result<DeviceInfo, InfoError>;

    /// Lends `count` blocks from `block` on, in one lease of `count` × [`BLOCK_SIZE`] bytes.
    ///
    /// The lease is a copy as of some moment while the call ran; later writes do not change it.
    #[op(2, requires = READ, retry = idempotent, deadline = "30s")]
    fn read(device: Device, block: u64, count: u32) -> Result<Lease, ReadError>;

    /// Writes the bytes of `data` to the blocks from `block` on. Its length is a multiple of [`BLOCK_SIZE`], and
    /// it begins at a multiple of [`BLOCK_SIZE`] of its region, which the driver maps.
    ///
    /// The lease's holder must be the *caller*: one that it was lent, or one of its own region that it lends to its
    /// own incarnation. (A lease lent to the driver would be good in the mouth of any of the driver's clients.)
    /// The bytes must not change until the call ends. Durable only after a later [`flush`](Client::flush).
    #[op(3, requires = WRITE, retry = idempotent, deadline = "30s")]
    fn write(device: Device, block: u64, data: LeasePart) -> Result<(), WriteError>;

    /// Makes durable whatever was answered before this was asked.
    #[op(4, requires = FLUSH, retry = idempotent, deadline = "60s")]
    fn flush(device: Device) -> Result<(), FlushError>;

    /// Says that `count` blocks from `block` on are not needed: they may read as anything until written again.
    #[op(5, requires = WRITE, retry = idempotent, deadline = "60s")]
    fn discard(device: Device, block: u64, count: u32) -> Result<(), WriteError>;

    /// Makes `count` blocks from `block` on read as zeros.
    #[op(6, requires = WRITE, retry = idempotent, deadline = "60s")]
    fn write_zeroes(device: Device, block: u64, count: u32) -> Result<(), WriteError>;
}

/// Bytes in one block of this interface.
pub const BLOCK_SIZE: u32 = 4096;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
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
    /// Nothing was ever written to it: who formats it destroys nothing.
    pub blank: bool,
}

/// Why the device could not be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum InfoError {
    /// The device failed.
    Io {
        /// Linux error number of the device.
        errno: u32,
    } = 5,
}

/// Why a read gave no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum ReadError {
    /// The device failed at `block`. The data there is not known; other blocks may be fine.
    Io {
        /// Linux error number of the device.
        errno: u32,
        /// First block that failed.
        block: u64,
    } = 1,
    /// The range is empty, too long or ends beyond the device. Ask `info`.
    OutOfRange = 2,
}

/// Why a write, discard or write-zeroes is not done. Part of the range may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum WriteError {
    /// The device failed at `block`.
    Io {
        /// Linux error number of the device.
        errno: u32,
        /// First block that failed.
        block: u64,
    } = 1,
    /// The range is empty, too long or ends beyond the device.
    OutOfRange = 2,
    /// The file under a sparse image found no room. Nothing else is affected.
    NoSpace = 3,
    /// The device takes no writes.
    ReadOnly = 4,
}

/// Why a flush failed. Writes answered since the last good flush may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum FlushError {
    /// The device failed.
    Io {
        /// Linux error number of the device.
        errno: u32,
    } = 5,
    /// The file under a sparse image found no room.
    NoSpace = 3,
}
