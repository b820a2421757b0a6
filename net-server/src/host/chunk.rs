//! What the host backend sends: copied header bytes, and pinned leases.

use std::rc::Rc;

use kernel_ipc::lease::{Liveness, Pinned};

use crate::core::connection::Chunk;

/// Bytes for the kernel. Clones share the bytes, and the pin.
#[derive(Clone)]
pub(crate) enum Bytes {
    /// Copied from the call.
    Header {
        /// All of them.
        bytes: Rc<Vec<u8>>,
        /// How many of them are sent.
        start: usize,
    },
    /// A part of a lease, from this process's read-only mapping. The pin ends with the last clone.
    Pages {
        /// The pinned part.
        pinned: Rc<Pinned>,
        /// How much of it is sent.
        start: usize,
    },
}

impl Chunk for Bytes {
    fn length(&self) -> usize {
        match self {
            Bytes::Header { bytes, start } => bytes.len().saturating_sub(*start),
            Bytes::Pages { pinned, start } => pinned.len().saturating_sub(*start),
        }
    }

    fn advance(&mut self, bytes: usize) {
        let (Bytes::Header { start, .. } | Bytes::Pages { start, .. }) = self;
        *start = start.saturating_add(bytes);
    }

    fn is_pages(&self) -> bool {
        matches!(self, Bytes::Pages { .. })
    }

    fn liveness(&self) -> Liveness {
        match self {
            Bytes::Header { .. } => Liveness::Live,
            Bytes::Pages { pinned, .. } => pinned.liveness(),
        }
    }
}
