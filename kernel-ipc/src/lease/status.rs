//! The status page: which epoch of each endpoint lives, and up to which its dead are fenced.
//!
//! * The keeper writes it; everybody maps it read-only.
//! * A line is 64 bytes, so that one endpoint's death disturbs no other's readers.
//! * The low half of the live epoch is a futex word: whoever sleeps for a host's answer also waits on its host's word,
//!   which changes when the host dies. (An endpoint would need 2^32 restarts between two looks to hide one.)

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::layout::{HEADER, STATUS, STATUS_MAGIC, VERSION, header, status, status_at};
use super::pins::BadSegment;
use crate::id::Epoch;
use crate::sys::futex::WordAddress;
use crate::sys::segment::{SegmentReader, SegmentWriter};

/// The keeper's end.
pub struct StatusPage {
    writer: SegmentWriter,
    endpoints: u32,
}

impl StatusPage {
    /// A page on which no endpoint lives.
    ///
    /// # Errors
    /// Of making or mapping the memory.
    pub fn create(endpoints: u32) -> io::Result<Self> {
        let writer = SegmentWriter::create("status", HEADER + endpoints as usize * STATUS)?;
        writer.store_u64(header::MAGIC, STATUS_MAGIC, Relaxed);
        writer.store_u64(header::VERSION, VERSION, Relaxed);
        writer.store_u64(header::STATUS_ENDPOINTS, endpoints.into(), Relaxed);
        Ok(Self { writer, endpoints })
    }

    /// The descriptor that everybody gets.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.fd()
    }

    /// How many endpoints have a line.
    pub fn endpoints(&self) -> u32 {
        self.endpoints
    }

    /// This epoch of the endpoint lives. `false` if there is no such line.
    pub fn lives(&self, endpoint: u32, epoch: Epoch) -> bool {
        self.store(endpoint, status::LIVE, epoch.get())
    }

    /// No epoch of the endpoint lives: stored at the pidfd's news, before anything of a next incarnation is started.
    ///
    /// The fence makes the store visible before whatever this keeper does next. Sleepers are woken by
    /// [`StatusPage::word`]. `false` if there is no such line.
    pub fn died(&self, endpoint: u32) -> bool {
        let stored = self.store(endpoint, status::LIVE, 0);
        std::sync::atomic::fence(SeqCst);
        stored
    }

    /// All epochs of the endpoint up to this one are dead, and the kernel has let go of their pages and requests.
    /// `false` if there is no such line.
    pub fn fenced(&self, endpoint: u32, epoch: Epoch) -> bool {
        self.store(endpoint, status::FENCED, epoch.get())
    }

    /// Where sleepers wait, for waking them after [`StatusPage::died`] and [`StatusPage::lives`].
    pub fn word(&self, endpoint: u32) -> Option<WordAddress> {
        (endpoint < self.endpoints).then(|| self.writer.word(status_at(endpoint) + status::LIVE))
    }

    fn store(&self, endpoint: u32, field: usize, value: u64) -> bool {
        if endpoint >= self.endpoints {
            return false;
        }
        // Release pairs with the Acquire loads of `StatusWord`.
        self.writer.store_u64(status_at(endpoint) + field, value, Release);
        true
    }
}

/// Everybody else's end.
#[derive(Clone)]
pub struct StatusReader {
    memory: Rc<SegmentReader>,
    endpoints: u32,
}

impl StatusReader {
    /// Maps the keeper's page.
    ///
    /// # Errors
    /// Of the mapping; `InvalidData` if it is no status page of this version.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let memory = SegmentReader::open(fd, HEADER)?;
        if memory.load_u64(header::MAGIC, Relaxed) != STATUS_MAGIC
            || memory.load_u64(header::VERSION, Relaxed) != VERSION
        {
            return Err(BadSegment("not a status page of this version").into());
        }
        let lines = u64::try_from((memory.len() - HEADER) / STATUS).unwrap_or(0);
        let endpoints = memory.load_u64(header::STATUS_ENDPOINTS, Relaxed).min(lines);
        Ok(Self { memory: Rc::new(memory), endpoints: u32::try_from(endpoints).unwrap_or(u32::MAX) })
    }

    /// The line of one endpoint, if there is one.
    pub fn endpoint(&self, endpoint: u32) -> Option<StatusWord> {
        (endpoint < self.endpoints).then(|| StatusWord { memory: self.memory.clone(), endpoint })
    }
}

/// One endpoint's line of the status page.
#[derive(Clone)]
pub struct StatusWord {
    memory: Rc<SegmentReader>,
    endpoint: u32,
}

impl StatusWord {
    /// Whether this epoch lives. One load.
    pub fn lives(&self, epoch: Epoch) -> bool {
        epoch.get() != 0 && self.live_epoch() == epoch
    }

    /// The epoch that lives; 0: none.
    pub fn live_epoch(&self) -> Epoch {
        // Acquire pairs with the keeper's Release: whoever sees an epoch sees what was prepared for it.
        Epoch(self.memory.load_u64(status_at(self.endpoint) + status::LIVE, Acquire))
    }

    /// All epochs up to this one are dead and fenced.
    pub fn fenced_epoch(&self) -> Epoch {
        Epoch(self.memory.load_u64(status_at(self.endpoint) + status::FENCED, Acquire))
    }

    /// Where to sleep until the live epoch changes.
    pub fn word(&self) -> WordAddress {
        self.memory.word(status_at(self.endpoint) + status::LIVE)
    }
}
