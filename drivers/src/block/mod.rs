//! Block devices: servers of `atoll.block/1`.

mod buddy;
mod budget;
mod file;
mod image;
mod request;

pub use buddy::{Buddy, CHUNK_BLOCKS};
pub use budget::{Budget, Permit};
pub use file::{Config, Device, FileDriver, Parts, Statistics, serve};
pub use image::{Image, ImageConfig, ImageError};
pub use request::{Bounds, Refused};
