//! Why an operation of the file system did not happen.

use crate::device::DeviceError;
use std::fmt;

/// A structure of the on-disk format, to name what is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Structure {
    /// The superblock or its copy.
    Superblock,
    /// A checkpoint pack.
    CheckpointPack,
    /// A bitmap of free blocks.
    Bitmap,
    /// A node of the tree.
    TreeNode,
    /// The item of an inode.
    Inode,
    /// An item of directory entries.
    DirectoryEntry,
    /// The item of an extent.
    ExtentItem,
    /// A file's data.
    Data,
    /// The extent of zeros that holes are read from.
    ZeroExtent,
    /// The list of unlinked files.
    OrphanList,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::CheckpointPack => "checkpoint pack",
            Self::Bitmap => "bitmap",
            Self::TreeNode => "tree node",
            Self::Inode => "inode",
            Self::DirectoryEntry => "directory entry",
            Self::ExtentItem => "extent item",
            Self::Data => "data",
            Self::ZeroExtent => "zero extent",
            Self::OrphanList => "orphan list",
        })
    }
}

/// Why an operation did not happen. Unless a variant says otherwise nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No entry of that name.
    NotFound,
    /// There is an entry of that name already.
    Exists,
    /// A component of the path, or the target, is no directory.
    NotDirectory,
    /// The target is a directory.
    IsDirectory,
    /// The directory has entries.
    NotEmpty,
    /// The name or path is not allowed; says why.
    BadName(&'static str),
    /// A directory cannot be moved below itself.
    Cycle,
    /// The volume, or the host under it, is full. Remove something, then try again.
    NoSpace,
    /// Beyond the largest file (1 TiB).
    TooLarge,
    /// The object that this handle meant is no more.
    Stale,
    /// The bytes to write were taken back by their lender.
    SourceLost,
    /// A structure's checksum or content is wrong. Wrong data is never returned in its place.
    Corrupt {
        /// What is damaged.
        structure: Structure,
        /// Where it lies.
        block: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The device has no Atoll volume; says what was found.
    NotAVolume(&'static str),
    /// Somebody began to make a volume on the device and did not finish: it has nothing to lose.
    Unfinished,
    /// The device is shorter than the volume on it.
    Truncated {
        /// Blocks of the volume.
        expected_blocks: u64,
        /// Blocks of the device.
        device_blocks: u64,
    },
    /// The volume needs a newer program; the feature bits that this one does not know.
    Unsupported(u64),
    /// The device is too small to format, or an option is out of its range.
    BadGeometry(&'static str),
    /// Others read everything that is held in memory, and went on too long. Try again.
    Busy,
    /// The device failed.
    Device(DeviceError),
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::NoSpace => Self::NoSpace,
            DeviceError::Busy => Self::Busy,
            other => Self::Device(other),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file or directory"),
            Self::Exists => f.write_str("exists already"),
            Self::NotDirectory => f.write_str("not a directory"),
            Self::IsDirectory => f.write_str("is a directory"),
            Self::NotEmpty => f.write_str("directory not empty"),
            Self::BadName(why) => write!(f, "name not allowed: {why}"),
            Self::Cycle => f.write_str("a directory cannot be moved below itself"),
            Self::NoSpace => f.write_str("no space left"),
            Self::TooLarge => f.write_str("beyond the largest file (1 TiB)"),
            Self::Stale => f.write_str("stale handle: the object is no more"),
            Self::SourceLost => f.write_str("the bytes to write were taken back"),
            Self::Corrupt { structure, block, what } => write!(f, "damaged {structure} at block {block}: {what}"),
            Self::NotAVolume(found) => write!(f, "no Atoll volume: {found}"),
            Self::Unfinished => f.write_str("no Atoll volume: its making was interrupted"),
            Self::Truncated { expected_blocks, device_blocks } => {
                write!(f, "the image is truncated: the volume has {expected_blocks} blocks, the device {device_blocks}")
            }
            Self::Unsupported(bits) => {
                write!(f, "the volume needs features that this program does not know ({bits:#x})")
            }
            Self::BadGeometry(why) => write!(f, "cannot format: {why}"),
            Self::Device(DeviceError::Io { errno, block }) => {
                write!(f, "the device failed at block {block} (errno {errno})")
            }
            Self::Device(DeviceError::OutOfRange { block }) => write!(f, "block {block} is beyond the device"),
            Self::Device(DeviceError::ReadOnly) => f.write_str("the device is read-only"),
            Self::Device(DeviceError::Gone) => f.write_str("the block driver is gone"),
            Self::Busy | Self::Device(DeviceError::Busy) => {
                f.write_str("busy: slow readers hold all memory of the block driver")
            }
            Self::Device(DeviceError::NoSpace) => f.write_str("no space left under the image"),
        }
    }
}

impl std::error::Error for Error {}
