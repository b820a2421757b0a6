//! A disk image as a [`Device`], read with plain calls. For `atoll fs check --image`, when no node runs.
//!
//! Not part of the core: it is the only place of the file system that touches a file of the host, and it never writes.

use crate::check::check;
use crate::device::{BLOCK_SIZE, Device, DeviceError, Extent, Staging, crc32c};
use crate::error::Error;
use crate::report::{Progress, Report};
use crate::sync::{Tasks, block_on};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Checks the volume of an image file that nobody else writes.
///
/// # Errors
/// The file cannot be read, or there is no volume in it. What is wrong with a volume is in the report.
pub fn check_image(path: &Path, progress: &mut dyn FnMut(Progress)) -> io::Result<Result<Report, Error>> {
    let image = Image::open(path)?;
    Ok(block_on(&Tasks::default(), check(&image, progress)))
}

/// An image file, for reading.
#[derive(Debug)]
pub struct Image {
    file: File,
    blocks: u64,
}

impl Image {
    /// Opens an image. Bytes after its last whole block are ignored.
    ///
    /// # Errors
    /// Those of the host's file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let blocks = file.metadata()?.len() / BLOCK_SIZE as u64;
        Ok(Self { file, blocks })
    }
}

impl Device for Image {
    type Extent = Bytes;
    type Staging = Bytes;

    fn blocks(&self) -> u64 {
        self.blocks
    }

    async fn read(&self, block: u64, count: u32) -> Result<Bytes, DeviceError> {
        if block.checked_add(u64::from(count)).is_none_or(|end| end > self.blocks) {
            return Err(DeviceError::OutOfRange { block });
        }
        let mut bytes = vec![0; count as usize * BLOCK_SIZE];
        match self.file.read_exact_at(&mut bytes, block * BLOCK_SIZE as u64) {
            Ok(()) => Ok(Bytes(bytes)),
            Err(error) => Err(DeviceError::Io { errno: error.raw_os_error().unwrap_or(0), block }),
        }
    }

    async fn stage(&self, count: u32) -> Bytes {
        Bytes(vec![0; count as usize * BLOCK_SIZE])
    }

    async fn write(&self, _: u64, _: &Bytes, _: u32, _: u32) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }
}

/// Plain memory as an extent and as staging.
#[derive(Clone, Debug)]
pub struct Bytes(pub Vec<u8>);

impl Extent for Bytes {
    fn blocks(&self) -> u32 {
        (self.0.len() / BLOCK_SIZE) as u32
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        match self.0.get(offset..).and_then(|rest| rest.get(..into.len())) {
            Some(from) => into.copy_from_slice(from),
            None => into.fill(0),
        }
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        self.0.get(offset..).and_then(|rest| rest.get(..length)).map_or(0, crc32c)
    }
}

impl Staging for Bytes {
    fn blocks(&self) -> u32 {
        (self.0.len() / BLOCK_SIZE) as u32
    }

    fn copy_in(&mut self, offset: usize, from: &[u8]) {
        self.0[offset..offset + from.len()].copy_from_slice(from);
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0[offset..offset + into.len()]);
    }

    fn zero(&mut self, offset: usize, length: usize) {
        self.0[offset..offset + length].fill(0);
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        crc32c(&self.0[offset..offset + length])
    }
}
