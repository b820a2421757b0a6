//! `block-file`: serves a regular file or block device as `atoll.block/1`.
//!
//! - A read lands in the driver's region (by direct I/O where the file has it) and is lent from there: no copy in user
//!   space. The range stays taken until the lease is free again.
//! - A write goes to the kernel from the client's region, which the driver maps read-only, while the lease is pinned.
//!   Holder, region and range come from the lender's table.
//! - Operations end in any order; a flush covers every write that was answered before it was asked.
//! - A full region, or a full lease table, refuses a read as busy; it never waits for somebody to release something.
//! - A session begins when every change of the device that was under way has landed: what a dead client wrote cannot land
//!   in the middle of what its next incarnation writes.
//! - An error of the disk ends one call. The driver goes on.
//! - The driver survives: its next run has the same region, in which what was lent stays lent; calls that were under way run
//!   again. Each of them may, as often as it likes: it brings the same bytes to the same place.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use kernel_ipc::component::{Context, Counters, Error, Survived};
use kernel_ipc::interface::{Granted, LeasePart, NewCap, Object};
use kernel_ipc::lease::{HolderLimits, Inherited, Lend, Lender, Mapper, Region, RegionSlice};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime::io::{self, Buffers};
use kernel_ipc::session::{Call, SessionInfo};
use kernel_ipc::steps;
use kernel_ipc::{CallError, Cause, Executed};
use protocol::block::{self, BLOCK_SIZE, DeviceInfo, FlushError, InfoError, ReadError, WriteError};
use serde::Deserialize;

use super::budget::Budget;
use super::drain::{Change, Drain};
use super::image::{Image, ImageConfig};
use super::medium::Medium;
use super::record::Recorder;
use super::request::{Bounds, MAX_TRANSFER_BLOCKS, Refused};
use super::space::{CHUNK_BLOCKS, Space};
use super::taken::{self, Nonsense, Taken};
use super::under_way::{self, UnderWay};
use crate::sys;

/// Bytes of a chunk: the unit of registration with the kernel.
const CHUNK_BYTES: usize = CHUNK_BLOCKS as usize * BLOCK_SIZE as usize;

/// The manifest's `config` of `block-file`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// File or device, relative to the state directory.
    pub path: PathBuf,
    /// Bytes of a file that is made.
    pub size: Option<u64>,
    /// Make the file if there is none.
    #[serde(default)]
    pub create: bool,
    /// Take no writes.
    #[serde(default)]
    pub read_only: bool,
    /// Bytes of the region that reads land in.
    #[serde(default = "default_region")]
    pub region: u64,
    /// Most bytes in the kernel's hands at a time.
    #[serde(default = "default_in_flight")]
    pub in_flight: u64,
    /// Keep a record of all writes and flushes in this file, relative to the state directory: for tests that cut the power.
    pub record: Option<PathBuf>,
}

/// The 64 MiB that fs-server caches by default, and half of that again for what is being sent.
fn default_region() -> u64 {
    96 << 20
}

/// What a disk of 1 GB/s (the reference machine's) does in 32 ms.
fn default_in_flight() -> u64 {
    32 << 20
}

/// The name of the memory that says whether anything is under way.
const UNDER_WAY: &str = "under-way";

/// Bytes of effects that are kept: none. What a call does to the device is there or is done again.
const RING_BYTES: usize = 4096;

/// The component: opens the image, provides `disk`, serves until it is asked to stop.
///
/// # Errors
/// The image, the region or the configuration is not to be had; says which.
pub async fn serve(cx: Context) -> Result<(), Error> {
    let config: Config = cx.config()?;
    let left = cx.kept_before(UNDER_WAY);
    let Survived { leases, .. } = cx.survive(RING_BYTES).await?;
    sys::outlive_file_size_limit();
    let memory = match left {
        Some(memory) => memory,
        None => cx.keep(UNDER_WAY, under_way::BYTES).await?,
    };
    let (under_way, left) = UnderWay::kept(memory)?;
    if left {
        // It must not land in the region, or on the device, after this run has begun.
        cx.last_run_fenced().await;
        steps::reach("restart/fenced");
    }
    under_way.landed();
    let region_bytes = usize::try_from(config.region)?.next_multiple_of(CHUNK_BYTES);
    let region = cx.keep_region(region_bytes).await?;
    let image = Image::open(&ImageConfig {
        path: cx.state_dir().join(&config.path),
        size: config.size,
        create: config.create,
        read_only: config.read_only,
    })
    .await?;
    let record = match config.record {
        Some(path) => {
            let path = cx.state_dir().join(path);
            Some(
                Recorder::open(&path, &image)
                    .await
                    .map_err(|error| format!("the record {}: {error}", path.display()))?,
            )
        }
        None => None,
    };
    // All that it needs of the file system is open.
    cx.confine(false);
    cx.publish_region(&region).await?;
    // A holder may have the whole region: it is what is given out, and there is no more.
    let limits = HolderLimits { bytes: region_bytes as u64, ..HolderLimits::default() };
    cx.lender().borrow_mut().set_limits(limits);
    let driver = FileDriver::new(Parts {
        image,
        region,
        in_flight: config.in_flight,
        mapper: cx.mapper(),
        counters: cx.counters(),
        under_way,
        record,
    })?;
    if let Err(nonsense) = driver.hold(&leases, &cx.lender()) {
        return Err(cx.forget(&nonsense.to_string()).into());
    }
    steps::reach("restart/held");
    cx.report("blocks", driver.bounds.blocks);
    cx.report("direct", driver.direct);
    let root = NewCap::new(Device, Rights::all()).to_grant();
    let drain = driver.drain.clone();
    let open = async move |_: &SessionInfo| {
        drain.settled().await;
        Ok(root)
    };
    cx.provide("disk", Rc::new(block::Dispatcher(driver)), open)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// The one object of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Object)]
#[kind(block::Device)]
pub struct Device;

/// What a driver is made of.
pub struct Parts {
    /// The file.
    pub image: Image,
    /// Where reads land; whole chunks of 1 MiB.
    pub region: Region,
    /// Most bytes in the kernel's hands at a time.
    pub in_flight: u64,
    /// Who may be written from.
    pub mapper: Rc<RefCell<Mapper>>,
    /// Where payload is counted.
    pub counters: Rc<Counters>,
    /// Where operations under way are counted.
    pub under_way: UnderWay,
    /// The record of this image, if one is kept.
    pub record: Option<Recorder>,
}

/// What a driver did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Reads into registered chunks.
    pub fixed_reads: u64,
    /// Reads beyond what the memory-lock limit allowed to register.
    pub plain_reads: u64,
    /// Chunks registered with the kernel.
    pub chunks_registered: u32,
    /// Registrations that the kernel refused; after the first one none is tried.
    pub chunks_refused: u32,
}

/// A handler of `atoll.block/1` over a file.
pub struct FileDriver {
    medium: Medium,
    bounds: Bounds,
    direct: bool,
    read_only: bool,
    region: Region,
    space: Rc<RefCell<Space>>,
    buffers: Option<RefCell<Buffers<RegionSlice>>>,
    budget: Budget,
    drain: Drain,
    under_way: UnderWay,
    mapper: Rc<RefCell<Mapper>>,
    counters: Rc<Counters>,
    /// Nothing was written yet to a file that was made for this.
    blank: Cell<bool>,
    fixed_reads: Cell<u64>,
    plain_reads: Cell<u64>,
    /// Keeps the claim.
    _image: Image,
}

impl FileDriver {
    /// Makes the driver. Inside a runtime, whose fixed buffers it uses.
    ///
    /// # Errors
    /// No descriptor to be had, or a region that is not whole chunks.
    pub fn new(parts: Parts) -> std::io::Result<FileDriver> {
        let Parts { image, region, in_flight, mapper, counters, under_way, record } = parts;
        let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let chunks = u32::try_from(region.len() / CHUNK_BYTES).map_err(|error| invalid(error.to_string()))?;
        let whole = region.slice(0, region.len()).map_err(|error| invalid(error.to_string()))?;
        // Refused by a kernel without sparse tables: then every read is a plain one.
        let buffers = Buffers::new(whole, CHUNK_BYTES).ok().map(RefCell::new);
        Ok(FileDriver {
            medium: Medium { file: image.descriptor()?.into(), record },
            bounds: Bounds { blocks: image.blocks },
            direct: image.direct,
            read_only: image.read_only,
            space: Rc::new(RefCell::new(Space::new(chunks))),
            region,
            buffers,
            budget: Budget::new(in_flight),
            drain: Drain::default(),
            under_way,
            mapper,
            counters,
            blank: Cell::new(image.blank),
            fixed_reads: Cell::new(0),
            plain_reads: Cell::new(0),
            _image: image,
        })
    }

    /// What it did so far.
    pub fn statistics(&self) -> Statistics {
        let (chunks_registered, chunks_refused) =
            self.buffers.as_ref().map_or((0, 0), |buffers| buffers.borrow().counts());
        Statistics {
            fixed_reads: self.fixed_reads.get(),
            plain_reads: self.plain_reads.get(),
            chunks_registered,
            chunks_refused,
        }
    }

    /// Goes on with the leases of a dead run: from now on each of them keeps its range of the region. Before anything is read.
    ///
    /// # Errors
    /// [`Nonsense`]: the ledger of leases is damaged.
    pub fn hold(&self, leases: &[Inherited], lender: &RefCell<Lender>) -> Result<(), Nonsense> {
        let ranges = taken::take_again(&self.space, leases, self.region.id())?;
        for (lease, range) in leases.iter().zip(ranges) {
            lender.borrow_mut().keep(lease.index, range);
        }
        Ok(())
    }

    /// Blocks of the region that are in use.
    pub fn used(&self) -> u32 {
        self.space.borrow().used()
    }

    /// A free range of the region.
    fn space(&self, count: u32) -> Option<Taken> {
        Taken::new(&self.space, count)
    }

    /// Fills a range of the region from the file. What the kernel writes to stays taken even if this is dropped.
    async fn fill(&self, space: Rc<Taken>, range: Range<u64>) -> Result<(), ReadError> {
        let at = space.blocks.start as usize * BLOCK_SIZE as usize;
        let length = (range.end - range.start) as usize;
        let buffer = self.buffers.as_ref().and_then(|buffers| buffers.borrow_mut().buffer(at, length));
        let mut done = 0;
        while done < length {
            let failed = |errno| {
                let block = (range.start + done as u64) / u64::from(BLOCK_SIZE);
                Err(ReadError::Io { errno, block })
            };
            let slice = self.region.slice(at + done, length - done).expect("the allocator stays inside the region");
            let (memory, offset) = ((slice, Rc::clone(&space)), range.start + done as u64);
            let (result, _) = match buffer {
                Some(buffer) => io::read_fixed(&self.medium.file, memory, offset, buffer).await,
                None => io::read_at(&self.medium.file, memory, offset).await,
            };
            match result {
                // The file has become shorter than it was: whoever cut it off has broken the claim.
                Ok(0) => return failed(libc::EIO as u32),
                Ok(count) => done += count,
                Err(error) if is_transient(&error) => {}
                Err(error) => return failed(errno_of(&error)),
            }
        }
        steps::reach("read/landed");
        let counter = if buffer.is_some() { &self.fixed_reads } else { &self.plain_reads };
        counter.set(counter.get() + 1);
        Ok(())
    }

    /// Writes a part of a lease to the file.
    async fn store(&self, call: &Call, data: &LeasePart, range: Range<u64>) -> Result<(), CallError<WriteError>> {
        let mut done = 0;
        while done < data.length {
            let failed = |error: &std::io::Error| write_error(error, range.start + done);
            let part = data.offset + done..data.offset + data.length;
            // Pinned anew after a short write: the rest of a lease that was taken back is not written.
            let pinned = self.mapper.borrow().pin(&data.name, call.session().client, part).map_err(|stale| {
                let executed = if done == 0 { Executed::No } else { Executed::Yes };
                CallError::Failed { cause: Cause::from(stale), executed }
            })?;
            steps::reach("write/pinned");
            let written = self.medium.write(pinned, range.start + done).await;
            steps::reach("write/landed");
            match written {
                Ok(0) => return Err(failed(&std::io::ErrorKind::WriteZero.into()).into()),
                Ok(count) => done += count as u64,
                Err(error) if is_transient(&error) => {}
                // A lease that does not begin at a block of its region.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Err(CallError::Failed { cause: Cause::BadArguments, executed: Executed::No });
                }
                Err(error) => return Err(failed(&error).into()),
            }
        }
        Ok(())
    }

    /// A change of the device begins.
    fn change(&self) -> Result<Change, WriteError> {
        if self.read_only {
            return Err(WriteError::ReadOnly);
        }
        self.blank.set(false);
        Ok(self.drain.begin())
    }
}

impl block::Handler for FileDriver {
    const SURVIVES: bool = true;

    type Device = Device;

    async fn info(&self, _: &Call, _: Granted<Device>) -> Result<DeviceInfo, CallError<InfoError>> {
        Ok(DeviceInfo {
            block_size: BLOCK_SIZE,
            max_transfer_blocks: MAX_TRANSFER_BLOCKS,
            blocks: self.bounds.blocks,
            direct: self.direct,
            read_only: self.read_only,
            blank: self.blank.get(),
        })
    }

    async fn read(&self, _: &Call, _: Granted<Device>, block: u64, count: u32) -> Result<Lend, CallError<ReadError>> {
        let range = self.bounds.transfer(block, count).map_err(|Refused| ReadError::OutOfRange)?;
        let busy = CallError::Failed { cause: Cause::BUSY, executed: Executed::No };
        let space = Rc::new(self.space(count).ok_or(busy)?);
        let length = range.end - range.start;
        let _permit = self.budget.acquire(length).await;
        let _landing = self.under_way.begin();
        self.fill(Rc::clone(&space), range).await?;
        self.counters.add_leased(length);
        let offset = u64::from(space.blocks.start) * u64::from(BLOCK_SIZE);
        Ok(Lend { region: self.region.id(), offset, length, source: None, keep: space })
    }

    async fn write(
        &self,
        call: &Call,
        _: Granted<Device>,
        block: u64,
        data: LeasePart,
    ) -> Result<(), CallError<WriteError>> {
        let _change = self.change()?;
        let range = Bounds::blocks_of(data.length)
            .and_then(|count| self.bounds.transfer(block, count))
            .map_err(|Refused| WriteError::OutOfRange)?;
        let _permit = self.budget.acquire(data.length).await;
        let _landing = self.under_way.begin();
        self.store(call, &data, range).await
    }

    async fn flush(&self, _: &Call, _: Granted<Device>) -> Result<(), CallError<FlushError>> {
        let _landing = self.under_way.begin();
        steps::reach("sync/begun");
        let synced = self.medium.flush().await;
        steps::reach("sync/landed");
        match synced {
            Ok(()) => Ok(()),
            Err(error) if is_full(&error) => Err(FlushError::NoSpace.into()),
            Err(error) => Err(FlushError::Io { errno: errno_of(&error) }.into()),
        }
    }

    async fn discard(&self, _: &Call, _: Granted<Device>, block: u64, count: u32) -> Result<(), CallError<WriteError>> {
        let _change = self.change()?;
        let _landing = self.under_way.begin();
        let range = self.bounds.range(block, count).map_err(|Refused| WriteError::OutOfRange)?;
        let hole = self.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, &range);
        match self.medium.zero(&range, hole).await {
            // A file system without holes: the blocks keep their bytes, which a discard allows.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result.map_err(|error| write_error(&error, range.start).into()),
        }
    }

    async fn write_zeroes(
        &self,
        _: &Call,
        _: Granted<Device>,
        block: u64,
        count: u32,
    ) -> Result<(), CallError<WriteError>> {
        let _change = self.change()?;
        let _landing = self.under_way.begin();
        let range = self.bounds.range(block, count).map_err(|Refused| WriteError::OutOfRange)?;
        let result = self.medium.zero(&range, self.make_zeros(&range)).await;
        result.map_err(|error| write_error(&error, range.start).into())
    }
}

impl FileDriver {
    async fn make_zeros(&self, range: &Range<u64>) -> std::io::Result<()> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        for mode in [libc::FALLOC_FL_ZERO_RANGE | keep, libc::FALLOC_FL_PUNCH_HOLE | keep] {
            match self.allocate(mode, range).await {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        self.write_zeroes_slowly(range).await
    }

    async fn allocate(&self, mode: i32, range: &Range<u64>) -> std::io::Result<()> {
        loop {
            match io::fallocate(&self.medium.file, mode, range.start, range.end - range.start).await {
                Err(error) if is_transient(&error) => {}
                result => return result,
            }
        }
    }

    /// Zeros for a file system that has neither holes nor zero ranges.
    async fn write_zeroes_slowly(&self, range: &Range<u64>) -> std::io::Result<()> {
        let space = Rc::new(self.space(1).ok_or(std::io::ErrorKind::ResourceBusy)?);
        let at = space.blocks.start as usize * BLOCK_SIZE as usize;
        self.region.copy_in(at, &[0; BLOCK_SIZE as usize]).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        let mut offset = range.start;
        while offset < range.end {
            let zeros = self.region.slice(at, BLOCK_SIZE as usize).map_err(|_| std::io::ErrorKind::InvalidInput)?;
            match io::write_at(&self.medium.file, (zeros, Rc::clone(&space)), offset).await.0 {
                Ok(count) if count == BLOCK_SIZE as usize => offset += u64::from(BLOCK_SIZE),
                Ok(_) => return Err(std::io::ErrorKind::WriteZero.into()),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// To be tried again at once.
fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// The host's file system has no room for what a sparse image would have to allocate.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

fn errno_of(error: &std::io::Error) -> u32 {
    error.raw_os_error().and_then(|errno| u32::try_from(errno).ok()).unwrap_or(libc::EIO as u32)
}

fn write_error(error: &std::io::Error, offset: u64) -> WriteError {
    match is_full(error) {
        true => WriteError::NoSpace,
        false => WriteError::Io { errno: errno_of(error), block: offset / u64::from(BLOCK_SIZE) },
    }
}
