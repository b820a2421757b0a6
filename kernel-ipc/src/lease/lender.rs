//! A lender: says who may use which ranges, in a table that everybody may read, and takes them back.
//!
//! * The ledger is private and written first: an index is *free*, *lent* or *dying*. Of a lender that survives it is kept
//!   by the keeper too, and its next incarnation continues it: same indices, same generations.
//! * Taking back never blocks. Where a mapper still pins the lease, the index is dying; [`Lender::reclaim`] asks again.
//! * What a lease keeps alive ([`Lend::keep`]) is dropped when its index is free again, and no earlier.
//! * An index at its last generation is retired: no word of the table ever says the same of two leases.
//! * What a holder has been lent counts against its limits until the index is free: a holder cannot make memory
//!   disappear by releasing leases that it keeps pinned.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::kept::{Call, LeaseLedger};
use super::layout::{ENTRY, HEADER, MAX_CAPACITY, TABLE_MAGIC, TABLE_VERSION, header};
use super::pins::{AttachedPins, BadSegment};
use super::protocol::{self, Fields};
use super::status::StatusWord;
use super::view::StaleLease;
use crate::error::Cause;
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::steps;
use crate::sys::segment::{SegmentReader, SegmentWriter};
use crate::wire::{Handle, LeaseName};

/// A range about to be lent.
#[derive(Clone)]
pub struct Lend {
    /// The region object that the range is in.
    pub region: RegionId,
    /// Where in the region it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes. Not zero.
    pub length: u64,
    /// The lease of another lender that the range is a part of, for the ledger.
    pub source: Option<LeaseName>,
    /// Dropped when nobody uses the range any more through this lease. Its `Drop` must not call the lender, which is
    /// borrowed at that moment.
    pub keep: Rc<dyn Any>,
}

/// Why nothing was lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LendError {
    /// Every index is lent or dying. Refuse the call as busy.
    TableFull,
    /// This holder has been lent as much as it may. It must release something first.
    HolderQuota,
    /// The range is empty, or ends beyond 2^64: the lender's own mistake.
    BadRange,
}

impl std::fmt::Display for LendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TableFull => "the lease table is full",
            Self::HolderQuota => "the holder's lease quota is used up",
            Self::BadRange => "the range cannot be lent",
        })
    }
}

impl std::error::Error for LendError {}

impl From<LendError> for Cause {
    fn from(error: LendError) -> Self {
        match error {
            LendError::TableFull => Cause::BUSY,
            LendError::HolderQuota => Cause::Quota,
            LendError::BadRange => Cause::BadArguments,
        }
    }
}

/// How far a lease that was taken back has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nobody uses it any more: what it kept is dropped, and revoke may return.
    Free,
    /// A mapper still pins it. [`Lender::reclaim`] finishes it.
    Dying,
}

/// The most that one holder may have at a time, dying leases included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderLimits {
    /// How many leases.
    pub leases: u32,
    /// How many bytes, counted once for each lease of them.
    pub bytes: u64,
}

impl Default for HolderLimits {
    /// 16,384 leases of together 256 MiB: a cache of 64 MiB in blocks of 4 KiB, or 64 connections with 4 MiB in flight
    /// each.
    fn default() -> Self {
        Self { leases: 1 << 14, bytes: 256 << 20 }
    }
}

/// How many dying leases each lend looks at.
const SWEEP: usize = 4;

/// The ledger's word on one index.
enum State {
    Free,
    Lent(Lent),
    Dying(Lent),
}

struct Lent {
    holder: Incarnation,
    length: u64,
    /// Region, and where in it the range begins.
    place: (RegionId, u64),
    call: Option<Call>,
    /// The capability on which that call was made, if it is known.
    by: Option<Handle>,
    keep: Rc<dyn Any>,
}

/// Where a lease's bytes are, in the hands of the lender's own process: while this is there, nobody else gets the range.
pub struct Located {
    /// The region object.
    pub region: RegionId,
    /// Where in the region the range begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What the range's owner waits for before it uses the range again.
    pub keep: Rc<dyn Any>,
}

struct Record {
    /// Of the lease here, or of the next one to come here.
    generation: u32,
    state: State,
}

#[derive(Default)]
struct Account {
    leases: u32,
    bytes: u64,
}

/// A lender's table, ledger and attached mappers. One thread's.
pub struct Lender {
    id: LenderId,
    epoch: Epoch,
    table: SegmentWriter,
    capacity: u32,
    limits: HolderLimits,
    /// By index; grows as indices are first used.
    ledger: Vec<Record>,
    /// The same for the next incarnation.
    kept: Option<LeaseLedger<SegmentWriter>>,
    free: Vec<u32>,
    /// Waiting for pins to go, in the order in which they are asked for.
    dying: VecDeque<u32>,
    lent: usize,
    accounts: HashMap<Incarnation, Account>,
    mappers: Vec<Attached>,
    /// The generation after which an index is retired. Smaller in tests only.
    last_generation: u32,
    /// Somebody [sees to](super::reclaim_later) what is dying.
    pub(super) is_reclaimed: bool,
}

struct Attached {
    pins: AttachedPins,
    status: Option<StatusWord>,
}

impl Lender {
    /// Publishes an empty table of `capacity` entries (64 bytes each, taken as they are first used).
    ///
    /// # Errors
    /// Of making or mapping the memory; `InvalidInput` for a capacity of zero or 2^32 - 1.
    pub fn new(id: LenderId, epoch: Epoch, capacity: u32) -> io::Result<Self> {
        check_capacity(capacity)?;
        let table = SegmentWriter::create("leases", Self::table_bytes(capacity))?;
        Ok(Self::with_table(id, epoch, capacity, table, None))
    }

    /// Bytes of a table of this capacity.
    pub const fn table_bytes(capacity: u32) -> usize {
        HEADER + capacity as usize * ENTRY
    }

    fn with_table(
        id: LenderId,
        epoch: Epoch,
        capacity: u32,
        table: SegmentWriter,
        kept: Option<LeaseLedger<SegmentWriter>>,
    ) -> Self {
        table.store_u64(header::MAGIC, TABLE_MAGIC, Relaxed);
        table.store_u64(header::VERSION, TABLE_VERSION, Relaxed);
        table.store_u64(header::TABLE_LENDER, id.get(), Relaxed);
        table.store_u64(header::TABLE_EPOCH, epoch.get(), Relaxed);
        table.store_u64(header::TABLE_CAPACITY, capacity.into(), Relaxed);
        Self {
            id,
            epoch,
            table,
            capacity,
            limits: HolderLimits::default(),
            ledger: Vec::new(),
            kept,
            free: Vec::new(),
            dying: VecDeque::new(),
            lent: 0,
            accounts: HashMap::new(),
            mappers: Vec::new(),
            last_generation: u32::MAX,
            is_reclaimed: false,
        }
    }

    /// Sets what each holder may have at a time, from the next lend on.
    pub fn set_limits(&mut self, limits: HolderLimits) {
        self.limits = limits;
    }

    /// The lender's name.
    pub fn id(&self) -> LenderId {
        self.id
    }

    /// The epoch of its table.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many leases the table has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The descriptor by which others read the table.
    pub fn table_fd(&self) -> BorrowedFd<'_> {
        self.table.fd()
    }

    /// L1 to L4: lends a range to one incarnation. The name is for that holder only. Amortised O(1).
    ///
    /// # Errors
    /// See [`LendError`]; nothing was lent, and `lend.keep` is dropped.
    pub fn lend(&mut self, holder: Incarnation, lend: Lend) -> Result<LeaseName, LendError> {
        self.lend_for(holder, lend, None)
    }

    /// The same, as part of the answer to a call on a capability of its session: if the answer is lost, or the capability
    /// revoked, what it brought can be taken back, by the next incarnation too.
    ///
    /// # Errors
    /// See [`LendError`].
    pub fn lend_for(
        &mut self,
        holder: Incarnation,
        lend: Lend,
        call: Option<(Call, Handle)>,
    ) -> Result<LeaseName, LendError> {
        if lend.length == 0 || lend.offset.checked_add(lend.length).is_none() {
            return Err(LendError::BadRange);
        }
        self.reclaim_some(SWEEP);
        let account = self.accounts.get(&holder);
        let (leases, bytes) = account.map_or((0, 0), |account| (account.leases, account.bytes));
        if leases >= self.limits.leases || bytes.saturating_add(lend.length) > self.limits.bytes {
            return Err(LendError::HolderQuota);
        }
        let index = self.free_index().ok_or(LendError::TableFull)?;
        let account = self.accounts.entry(holder).or_default();
        account.leases += 1;
        account.bytes += lend.length;
        self.lent += 1;

        // L1: the ledger first, or a next incarnation would not know a lease that a mapper has pinned.
        let record = &mut self.ledger[index as usize];
        let place = (lend.region, lend.offset);
        let (by, brought) = (call.map(|(_, by)| by), call.map(|(call, _)| call));
        record.state = State::Lent(Lent { holder, length: lend.length, place, call: brought, by, keep: lend.keep });
        let fields =
            Fields { holder: holder.get(), region: lend.region.get(), offset: lend.offset, length: lend.length };
        if let Some(kept) = &mut self.kept {
            kept.lent(index, record.generation, &fields, call, lend.source);
        }
        steps::reach("lease/recorded");
        protocol::publish(&self.table, index, record.generation, &fields);
        steps::reach("lease/lent");
        Ok(LeaseName { lender: self.id, index, generation: record.generation, length: lend.length })
    }

    /// What `holder` was lent by this name, for the lender's own process to read.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn locate(&self, holder: Incarnation, index: u32, generation: u32) -> Result<Located, StaleLease> {
        let lent = self.lent(index, generation)?;
        if lent.holder != holder {
            return Err(StaleLease::NotYours);
        }
        let (region, offset) = lent.place;
        Ok(Located { region, offset, length: lent.length, keep: lent.keep.clone() })
    }

    /// Takes back what `holder` itself gives back: B1 to B5 for a lease of its own.
    ///
    /// # Errors
    /// [`StaleLease::Ended`] or [`StaleLease::NotYours`] if it has no such lease. Nothing changed.
    pub fn release(&mut self, holder: Incarnation, index: u32, generation: u32) -> Result<Ended, StaleLease> {
        match self.lent(index, generation)?.holder == holder {
            true => self.take_back(index, generation),
            false => Err(StaleLease::NotYours),
        }
    }

    /// Takes a lease back, whoever holds it: B1 to B5. Never blocks.
    ///
    /// # Errors
    /// [`StaleLease::Ended`] if there is no such lease (any more). Nothing changed.
    pub fn take_back(&mut self, index: u32, generation: u32) -> Result<Ended, StaleLease> {
        self.kill(index, generation)?;
        protocol::settle(&self.table);
        Ok(self.finish(index))
    }

    /// Takes everything back that `holder` has: it died, or its session ended. Returns how many are still dying.
    pub fn take_back_all(&mut self, holder: Incarnation) -> usize {
        if !self.accounts.contains_key(&holder) {
            return 0;
        }
        let theirs: Vec<(u32, u32)> = (0u32..)
            .zip(&self.ledger)
            .filter(|(_, record)| matches!(&record.state, State::Lent(lent) if lent.holder == holder))
            .map(|(index, record)| (index, record.generation))
            .collect();
        for (index, generation) in &theirs {
            self.kill(*index, *generation).expect("the ledger has just said that it is lent");
        }
        // B3, once for all of them.
        protocol::settle(&self.table);
        theirs.iter().filter(|(index, _)| self.finish(*index) == Ended::Dying).count()
    }

    /// Asks B4 again for every dying lease. Returns how many became free.
    ///
    /// Cheap, but it is polling: call it while [`Lender::dying`] is not zero, a few times a millisecond at most. Every
    /// [`Lender::lend`] asks for a few of them as well, so that a caller who never polls runs out of nothing.
    pub fn reclaim(&mut self) -> usize {
        self.reclaim_some(usize::MAX)
    }

    /// Asks B4 again for the `limit` leases that were asked for longest ago.
    fn reclaim_some(&mut self, limit: usize) -> usize {
        let before = self.dying.len();
        for _ in 0..before.min(limit) {
            if let Some(index) = self.dying.pop_front() {
                self.finish(index);
            }
        }
        before - self.dying.len()
    }

    /// How many leases wait for a mapper's pins.
    pub fn dying(&self) -> usize {
        self.dying.len()
    }

    /// How many indices were ever used.
    pub fn used(&self) -> usize {
        self.ledger.len()
    }

    /// How many leases are lent, without the dying ones.
    pub fn lent_count(&self) -> usize {
        self.lent
    }

    /// Attaches a mapper's pin segment: from now on its pins count. Acknowledge only after this, because the mapper gets
    /// the table then.
    ///
    /// # Errors
    /// [`BadSegment`]: not what the broker announced; refuse the mapper. Nothing changed.
    pub fn attach_pins(&mut self, mapper: Incarnation, epoch: Epoch, pins: SegmentReader) -> Result<(), BadSegment> {
        self.attach(mapper, epoch, pins, None)
    }

    /// As [`Lender::attach_pins`]; the segment no longer counts once `status`, the mapper's line of the keeper's page,
    /// says that `epoch` is fenced.
    ///
    /// # Errors
    /// The same.
    pub fn attach_pins_until_fenced(
        &mut self,
        mapper: Incarnation,
        epoch: Epoch,
        pins: SegmentReader,
        status: StatusWord,
    ) -> Result<(), BadSegment> {
        self.attach(mapper, epoch, pins, Some(status))
    }

    /// The keeper says that this mapper is dead and the kernel has let go of its pages: its pins no longer count.
    /// Returns how many leases became free.
    pub fn fenced(&mut self, mapper: Incarnation) -> usize {
        self.mappers.retain(|attached| attached.pins.mapper != mapper);
        self.reclaim()
    }

    /// The mappers whose pins count.
    pub fn mappers(&self) -> Vec<Incarnation> {
        self.mappers.iter().map(|attached| attached.pins.mapper).collect()
    }

    /// Everybody who has been lent something that is not free again.
    pub fn holders(&self) -> Vec<Incarnation> {
        self.accounts.iter().filter(|(_, account)| account.leases > 0).map(|(holder, _)| *holder).collect()
    }

    fn attach(
        &mut self,
        mapper: Incarnation,
        epoch: Epoch,
        pins: SegmentReader,
        status: Option<StatusWord>,
    ) -> Result<(), BadSegment> {
        let pins = AttachedPins::check(pins, mapper, epoch, self.id, self.capacity)?;
        // Said again, by somebody who does not know that it is done: the first segment may have been pinned in.
        if self.mappers.iter().any(|known| known.pins.mapper == mapper) {
            return Ok(());
        }
        self.mappers.push(Attached { pins, status });
        Ok(())
    }

    /// An index that nothing uses: a used one first, because its line is warm.
    fn free_index(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = u32::try_from(self.ledger.len()).ok().filter(|index| *index < self.capacity)?;
        self.ledger.push(Record { generation: 1, state: State::Free });
        // Release, before the entry's own word: whoever looks for leases here sees all that count.
        self.table.store_u64(header::TABLE_USED, self.ledger.len() as u64, Release);
        Some(index)
    }

    fn lent(&self, index: u32, generation: u32) -> Result<&Lent, StaleLease> {
        match self.ledger.get(index as usize) {
            Some(Record { generation: now, state: State::Lent(lent) }) if *now == generation => Ok(lent),
            _ => Err(StaleLease::Ended),
        }
    }

    /// B1 and B2. B3 must follow, then [`Lender::finish`].
    fn kill(&mut self, index: u32, generation: u32) -> Result<(), StaleLease> {
        self.lent(index, generation)?;
        let record = &mut self.ledger[index as usize];
        record.state = match std::mem::replace(&mut record.state, State::Free) {
            State::Lent(lent) => State::Dying(lent),
            other => other,
        };
        self.lent -= 1;
        if let Some(kept) = &self.kept {
            kept.dying(index, generation);
        }
        steps::reach("lease/dying");
        protocol::kill(&self.table, index, generation);
        steps::reach("lease/dead");
        Ok(())
    }

    /// B4 and B5 for one dying index: free, or on the list.
    fn finish(&mut self, index: u32) -> Ended {
        self.mappers.retain(|attached| !attached.is_fenced());
        if !self.mappers.iter().all(|attached| protocol::unpinned(&attached.pins.memory, index)) {
            self.dying.push_back(index);
            steps::reach("lease/pinned");
            return Ended::Dying;
        }
        let record = &mut self.ledger[index as usize];
        let State::Dying(lent) = std::mem::replace(&mut record.state, State::Free) else {
            unreachable!("only dying leases are finished");
        };
        if let Some(account) = self.accounts.get_mut(&lent.holder) {
            account.leases -= 1;
            account.bytes -= lent.length;
            if account.leases == 0 {
                self.accounts.remove(&lent.holder);
            }
        }
        // B5. At its last generation the index never comes back: N5 could see the same word on another lease.
        let last = record.generation == self.last_generation;
        if !last {
            record.generation += 1;
            self.free.push(index);
        }
        if let Some(kept) = &self.kept {
            kept.free(index, record.generation);
        }
        steps::reach("lease/free");
        // B6 is the drop of what the lease kept.
        drop(lent);
        steps::reach("lease/returned");
        Ended::Free
    }
}

fn check_capacity(capacity: u32) -> io::Result<()> {
    if capacity == 0 || capacity > MAX_CAPACITY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "impossible capacity of a lease table"));
    }
    Ok(())
}

impl Attached {
    fn is_fenced(&self) -> bool {
        self.status.as_ref().is_some_and(|line| line.fenced_epoch() >= self.pins.epoch)
    }
}

mod survival;

pub use survival::Lost;

#[cfg(test)]
mod tests;
