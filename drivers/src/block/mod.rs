//! Block devices: servers of `atoll.block/1`.

mod budget;
mod drain;
mod file;
mod image;
mod medium;
mod record;
mod request;
mod space;
mod taken;
mod under_way;

pub use budget::{Budget, Permit};
pub use drain::{Change, Drain};
pub use file::{Config, Device, FileDriver, Parts, Statistics, serve};
pub use image::{Image, ImageConfig, ImageError};
pub use record::{Block, Left, Recorder, Replay, Step};
pub use request::{Bounds, Refused};
pub use space::{CHUNK_BLOCKS, Space};
pub use taken::Nonsense;
pub use under_way::{Landing, UnderWay};
