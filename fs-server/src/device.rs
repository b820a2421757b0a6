//! What the file system stands on: a block device, memory to write from, a clock, randomness, a place to run tasks.
//!
//! The core makes no system call. Under the tests these traits are a simulated device with a seed; in the server they
//! are a session of `atoll.block/1` and the runtime.
//!
//! - A *read* gives a held extent: verified bytes that do not change until the extent is dropped. It can be copied out,
//!   summed, and lent on; it is never copied in order to be served.
//! - A *write* takes memory that was staged before, so that bytes are copied exactly once on their way to the disk.
//! - Only `flush` orders: it covers the writes that had completed when it was called.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Bytes of a block, the unit of every address here.
pub const BLOCK_SIZE: usize = 4096;
/// Blocks of the longest transfer (1 MiB).
pub const MAX_TRANSFER_BLOCKS: u32 = 256;

/// Why a device did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The medium or the kernel failed; `errno` as it reported. The operation may be tried again.
    Io {
        /// The kernel's error number.
        errno: i32,
        /// First block of the transfer that failed.
        block: u64,
    },
    /// The range ends after the last block. A fault of this program or of a damaged volume.
    OutOfRange {
        /// First block of the transfer.
        block: u64,
    },
    /// The host under a sparse image is full. Nothing of the transfer can be relied on.
    NoSpace,
    /// The device takes no writes.
    ReadOnly,
    /// The driver is gone and none has come in its place.
    Gone,
    /// There is no memory for what would be read until something that was read is dropped.
    Busy,
}

/// A held range of the device's blocks: stays readable and unchanged until dropped.
pub trait Extent: 'static {
    /// Blocks held.
    fn blocks(&self) -> u32;
    /// Copies bytes from `offset` on. The range is within the extent, or nothing is copied and the bytes are zeros.
    fn copy_out(&self, offset: usize, into: &mut [u8]);
    /// CRC-32C of a range of the extent.
    fn crc32c(&self, offset: usize, length: usize) -> u32;
    /// False once the memory behind it belongs to a driver that is given up, and cannot be lent on.
    fn is_live(&self) -> bool {
        true
    }
}

/// Memory of our own that a device can write from.
pub trait Staging: 'static {
    /// Blocks staged.
    fn blocks(&self) -> u32;
    /// Copies bytes to `offset`. The caller stays within the staging.
    fn copy_in(&mut self, offset: usize, from: &[u8]);
    /// Copies bytes from `offset`.
    fn copy_out(&self, offset: usize, into: &mut [u8]);
    /// Writes zeros.
    fn zero(&mut self, offset: usize, length: usize);
    /// CRC-32C of a range.
    fn crc32c(&self, offset: usize, length: usize) -> u32;
}

/// A block device with 4 KiB blocks. All operations may run concurrently.
pub trait Device: 'static {
    /// What a read gives.
    type Extent: Extent;
    /// What a write takes.
    type Staging: Staging;

    /// Blocks of the device.
    fn blocks(&self) -> u64;
    /// Reads `count` (1 to [`MAX_TRANSFER_BLOCKS`]) blocks. [`DeviceError::Busy`] comes at once, not after a wait.
    fn read(&self, block: u64, count: u32) -> impl Future<Output = Result<Self::Extent, DeviceError>>;
    /// Memory for `count` (1 to [`MAX_TRANSFER_BLOCKS`]) blocks; waits until some is free. Its content is arbitrary.
    fn stage(&self, count: u32) -> impl Future<Output = Self::Staging>;
    /// Writes `count` blocks of `staged`, from its block `first` on, to `block`.
    fn write(
        &self,
        block: u64,
        staged: &Self::Staging,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<(), DeviceError>>;
    /// Makes every write that had completed survive a power cut.
    fn flush(&self) -> impl Future<Output = Result<(), DeviceError>>;
    /// Says that the content of these blocks is not needed any more. They read as anything afterwards.
    fn discard(&self, block: u64, count: u64) -> impl Future<Output = Result<(), DeviceError>>;
}

/// Bytes that a caller wants written, wherever they are.
pub trait Source<S: Staging> {
    /// Bytes there are.
    fn length(&self) -> u64;
    /// Copies `length` bytes from `from` on into `staging` at `at`. If `crcs` is not empty, the range is whole blocks on
    /// both sides and the checksum of each is stored there, taken from the bytes that were stored.
    ///
    /// # Errors
    /// The bytes are no more (their lender took them back). What was copied is arbitrary.
    fn copy_to(&self, from: u64, staging: &mut S, at: usize, length: usize, crcs: &mut [u32])
    -> Result<(), SourceLost>;
}

/// The bytes to be written went away while they were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLost;

impl<S: Staging> Source<S> for [u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn copy_to(
        &self,
        from: u64,
        staging: &mut S,
        at: usize,
        length: usize,
        crcs: &mut [u32],
    ) -> Result<(), SourceLost> {
        let from = usize::try_from(from).map_err(|_| SourceLost)?;
        let bytes = self.get(from..).and_then(|rest| rest.get(..length)).ok_or(SourceLost)?;
        if crcs.is_empty() {
            staging.copy_in(at, bytes);
            return Ok(());
        }
        for (index, (block, crc)) in bytes.chunks(BLOCK_SIZE).zip(crcs).enumerate() {
            staging.copy_in(at + index * BLOCK_SIZE, block);
            *crc = crc32c(block);
        }
        Ok(())
    }
}

/// A task that the environment runs beside the caller.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Time, randomness and tasks.
pub trait Environment: 'static {
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// Nanoseconds that only count on, whatever the time is said to be: for patience.
    fn elapsed_ns(&self) -> u64;
    /// While something is done again, the time is the one at which it was done; with `None` it goes on.
    fn stop_clock(&self, at_ns: Option<u64>);
    /// A random word.
    fn random(&self) -> u64;
    /// Runs `task` to its end, also when the caller is dropped.
    fn spawn(&self, task: Task);
    /// Waits; for no time at all it lets everything else go on once.
    fn sleep(&self, time: Duration) -> Task;
    /// A step is reached, at which a test may end all.
    fn reach(&self, step: &'static str);
}

/// CRC-32C (Castagnoli), the only checksum of the format.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
