//! What the host backend sends: copied header bytes, and pinned leases.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::Incarnation;
use kernel_ipc::interface::LeasePart;
use kernel_ipc::lease::{Liveness, Mapper, Pinned, StaleLease};

use crate::core::connection::Chunk;

/// How long pages that a dead run had pinned may wait for their lender to be introduced to this one.
const INTRODUCED_WITHIN: Duration = Duration::from_secs(20);

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
        pinned: Rc<Held>,
        /// How much of it is sent.
        start: usize,
    },
    /// The same, of a send that a dead run had accepted: pinned when somebody asks whether it lives.
    Inherited {
        /// The part.
        part: Rc<Inherited>,
        /// How much of it is sent.
        start: usize,
    },
}

/// How long a lease that has ended may wait for the news that its holder has died. The lender hears of a death when this process
/// does, and takes back at once what the dead was lent; its connections are not to be reset for that.
const NEWS_WITHIN: Duration = Duration::from_secs(2);

/// A pinned part of a lease.
pub(crate) struct Held {
    pinned: Pinned,
    ended: Cell<Option<Instant>>,
}

impl Held {
    pub(crate) fn new(pinned: Pinned) -> Held {
        Held { pinned, ended: Cell::new(None) }
    }

    pub(crate) fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    fn liveness(&self) -> Liveness {
        match self.pinned.liveness() {
            Liveness::Ended => {
                let since = self.ended.get().unwrap_or_else(Instant::now);
                self.ended.set(Some(since));
                if since.elapsed() < NEWS_WITHIN { Liveness::Waiting } else { Liveness::Ended }
            }
            other => other,
        }
    }
}

/// A part of a lease that is pinned as soon as it can be.
pub(crate) struct Inherited {
    part: LeasePart,
    holder: Incarnation,
    mapper: Rc<RefCell<Mapper>>,
    pinned: OnceCell<Held>,
    since: Instant,
}

impl Inherited {
    pub(crate) fn new(part: LeasePart, holder: Incarnation, mapper: Rc<RefCell<Mapper>>) -> Inherited {
        Inherited { part, holder, mapper, pinned: OnceCell::new(), since: Instant::now() }
    }

    fn liveness(&self) -> Liveness {
        if let Some(pinned) = self.pinned.get() {
            return pinned.liveness();
        }
        let LeasePart { name, offset, length } = &self.part;
        let Some(end) = offset.checked_add(*length) else { return Liveness::Ended };
        let result = self.mapper.borrow().pin(name, self.holder, *offset..end);
        match result {
            Ok(pinned) => self.pinned.get_or_init(|| Held::new(pinned)).liveness(),
            // Lender and region are introduced to each run anew, and the lender may be between two epochs.
            Err(StaleLease::UnknownLender | StaleLease::LenderGone | StaleLease::UnknownRegion)
                if self.since.elapsed() < INTRODUCED_WITHIN =>
            {
                Liveness::Waiting
            }
            // As above: its holder may have died.
            Err(_) if self.since.elapsed() < NEWS_WITHIN => Liveness::Waiting,
            Err(_) => Liveness::Ended,
        }
    }

    fn len(&self) -> usize {
        usize::try_from(self.part.length).unwrap_or(0)
    }

    /// Its bytes, once they are pinned.
    pub(crate) fn pinned(&self) -> Option<&Pinned> {
        self.pinned.get().map(Held::pinned)
    }
}

impl Chunk for Bytes {
    fn length(&self) -> usize {
        match self {
            Bytes::Header { bytes, start } => bytes.len().saturating_sub(*start),
            Bytes::Pages { pinned, start } => pinned.pinned().len().saturating_sub(*start),
            Bytes::Inherited { part, start } => part.len().saturating_sub(*start),
        }
    }

    fn advance(&mut self, bytes: usize) {
        let (Bytes::Header { start, .. } | Bytes::Pages { start, .. } | Bytes::Inherited { start, .. }) = self;
        *start = start.saturating_add(bytes);
    }

    fn is_pages(&self) -> bool {
        !matches!(self, Bytes::Header { .. })
    }

    fn liveness(&self) -> Liveness {
        match self {
            Bytes::Header { .. } => Liveness::Live,
            Bytes::Pages { pinned, .. } => pinned.liveness(),
            Bytes::Inherited { part, .. } => part.liveness(),
        }
    }
}
