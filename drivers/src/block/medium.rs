//! The file under a driver: what changes it goes through here, so that a record of it can be kept.

use std::ops::Range;

use kernel_ipc::lease::Pinned;
use kernel_ipc::runtime::io::{self, File};

use super::record::Recorder;

/// The file, and the record of it if one is kept.
pub(super) struct Medium {
    pub(super) file: File,
    pub(super) record: Option<Recorder>,
}

impl Medium {
    /// One write; may be short.
    pub(super) async fn write(&self, from: Pinned, offset: u64) -> std::io::Result<usize> {
        match &self.record {
            Some(record) => record.write(&self.file, from, offset).await,
            None => io::write_at(&self.file, from, offset).await.0,
        }
    }

    /// Lets `zeroing` make zeros of a range, or give its blocks back.
    pub(super) async fn zero(
        &self,
        range: &Range<u64>,
        zeroing: impl Future<Output = std::io::Result<()>>,
    ) -> std::io::Result<()> {
        match &self.record {
            Some(record) => record.zero(&self.file, range.clone(), zeroing).await,
            None => zeroing.await,
        }
    }

    /// `fdatasync` writes back a file's new size and extents too, and ends with a flush of the disk's own cache.
    pub(super) async fn flush(&self) -> std::io::Result<()> {
        match &self.record {
            Some(record) => record.flush(&self.file).await,
            None => io::fdatasync(&self.file).await,
        }
    }
}
