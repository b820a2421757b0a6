//! The file system of Atoll: copy-on-write, checksummed, on a block device that it shares with nobody.
//!
//! The core makes no system calls: it is `async` code over the traits of [`device`], and runs the same under a
//! deterministic executor with a simulated device as in the server.
#![deny(unsafe_code)]

mod allocator;
mod cache;
pub mod check;
pub mod device;
pub mod effect;
pub mod error;
pub mod format;
pub mod image;
pub mod report;
mod room;
pub mod server;
pub mod simulated;
pub mod sync;
mod tree;
mod volume;

pub use cache::{Held, Kept};
pub use check::check;
pub use effect::Effect;
pub use error::{Error, Structure};
pub use format::items::FileKind;
pub use image::check_image;
pub use report::{Problem, Progress, Report};
pub use volume::{DirectoryEntry, FormatOptions, Journal, Listing, MountOptions, NodeId, Stat, Volume, VolumeStat};
