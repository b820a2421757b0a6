//! Regions, leases and pins: payload that moves between processes without being copied.
//!
//! * A [`Region`] is shared memory with one writer, its owner. Whoever else maps it ([`RegionReader`]) can read all of it.
//! * A [`Lender`] says in its table, which only it can write, who may use which range of which region: leases. A lease
//!   is named by (lender, index, generation); range and holder are taken from the table, never from the name.
//! * A [`Mapper`] gives leased bytes to the kernel, from its own read-only mapping: it pins the lease in a segment that
//!   only it can write, looks again that the lease is still live, and unpins when the kernel is done.
//! * A [`Holder`] that maps the region copies bytes out and looks again afterwards; it pins nothing.
//! * A lender that takes a lease back never blocks: the index is *dying* until no unfenced mapper pins it, then free.
//! * A [`Pool`] is a region with its books: who owns one takes [`Extent`]s from it, fills them and lends them.
//! * What a client beyond a socket lends comes as bytes, and is in this process's own [`Arrivals`], for mapper and holder alike.
//! * A [`StatusPage`], written by the keeper, says which epoch of each endpoint lives.
//!
//! The steps are named as in `docs/leases.md` (L1-L4, B1-B6, N0-N8); [`protocol`] has their loads, stores and fences,
//! generic over [`protocol::Memory`], so that the models in this module run exactly the code that is shipped.

mod arrivals;
mod holder;
mod kept;
pub mod layout;
mod lender;
mod mapper;
#[cfg(test)]
mod models;
mod pins;
mod pool;
pub mod protocol;
mod ranges;
mod reclaim;
mod region;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;

pub use arrivals::{Arrivals, Arrived};
pub use holder::{Held, Holder};
pub(crate) use kept::FORMAT as LEDGER_FORMAT;
pub use kept::{Call, Inherited};
pub use lender::{Ended, HolderLimits, Lend, LendError, Lender, Located, Lost};
pub use mapper::{Liveness, Mapper, Pinned};
pub use pins::{BadSegment, PinSegment};
pub use pool::{Extent, Pool};
pub use ranges::Ranges;
pub(crate) use reclaim::reclaim_later;
pub use region::{OutOfRange, ReaderSlice, Region, RegionReader, RegionSlice};
pub use status::{StatusPage, StatusReader, StatusWord};
pub use view::StaleLease;

/// By which a lease table is known: magic and version.
pub(crate) const TABLE_FORMAT: [u64; 2] = [layout::TABLE_MAGIC, layout::TABLE_VERSION];
