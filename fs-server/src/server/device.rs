//! A session of `atoll.block/1` as the core's device.
//!
//! - A read's extent is the driver's lease: verified and lent on through our read-only mapping of its region.
//! - A write lends from our own region to ourselves, and names that lease to the driver.
//! - A driver's death is felt as time: the session goes on, and so do leases. Should the driver have lost what it kept, then
//!   every operation is asked again of whoever follows, for a while: all of them are idempotent.

use crate::device::{BLOCK_SIZE, Device, DeviceError, Extent, Staging};
use crate::sync::Bell;
use kernel_ipc::component::Context;
use kernel_ipc::interface::{Lease, LeasePart};
use kernel_ipc::lease::{self, Lend, Pool, RegionReader, StaleLease};
use kernel_ipc::runtime;
use kernel_ipc::steps;
use kernel_ipc::{CallError, Cause, LeaseName, RegionId};
use protocol::block::{self, FlushError, ReadError, WriteError};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a driver may be gone before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);
/// Blocks of one discard: 1 GiB.
const DISCARD_BLOCKS: u64 = 1 << 18;

/// The driver's device. Clones are the same one.
#[derive(Clone)]
pub(crate) struct LeasedDevice(Rc<Inner>);

struct Inner {
    cx: Context,
    client: block::Client,
    pool: Pool,
    freed: Rc<Bell>,
    blocks: u64,
}

impl LeasedDevice {
    pub(crate) fn new(cx: &Context, client: block::Client, pool: Pool, blocks: u64) -> Self {
        Self(Rc::new(Inner { cx: cx.clone(), client, pool, freed: Rc::default(), blocks }))
    }
}

/// A lease of the driver's region, mapped here.
pub(crate) struct LeasedExtent {
    held: lease::Held,
    /// Gives itself back when this is dropped.
    lease: Lease,
}

impl LeasedExtent {
    /// One that an earlier run of this server was lent.
    ///
    /// # Errors
    /// Its lender does not know it any more.
    pub(crate) fn inherited(cx: &Context, client: &block::Client, name: LeaseName) -> Result<Self, StaleLease> {
        let held = cx.holder().borrow().hold(&name)?;
        // Not before: one that is dropped goes back to the driver, and whoever fails here may come again.
        let lease = Lease::inherited(client.root().session(), name);
        Ok(Self { held, lease })
    }

    /// How the driver names it.
    pub(crate) fn name(&self) -> LeaseName {
        self.lease.name()
    }

    pub(crate) fn region(&self) -> RegionId {
        self.held.region().id()
    }

    /// Where in the region it begins.
    pub(crate) fn start(&self) -> u64 {
        self.held.offset() as u64
    }

    fn mapped(&self) -> &RegionReader {
        self.held.region()
    }
}

impl Extent for LeasedExtent {
    fn blocks(&self) -> u32 {
        (self.held.len() / BLOCK_SIZE) as u32
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        if offset + into.len() > self.held.len() || self.held.copy_out(offset, into).is_err() {
            into.fill(0);
        }
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        if offset + length > self.held.len() {
            return 0;
        }
        let start = self.held.offset() + offset;
        self.mapped().crc32c(0, start..start + length).unwrap_or(0)
    }

    fn is_live(&self) -> bool {
        self.held.still_live()
    }
}

/// A part of our own region. Whoever waits for memory hears when it is free again: when neither we nor a lease keep it.
pub(crate) struct StagedMemory(Rc<Part>);

struct Part {
    extent: Option<lease::Extent>,
    freed: Rc<Bell>,
}

impl Part {
    fn extent(&self) -> &lease::Extent {
        self.extent.as_ref().expect("taken out only when it is dropped")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.extent.take());
        self.freed.ring();
    }
}

impl StagedMemory {
    pub(crate) fn extent(&self) -> &lease::Extent {
        self.0.extent()
    }
}

impl Staging for StagedMemory {
    fn blocks(&self) -> u32 {
        (self.extent().len() / BLOCK_SIZE) as u32
    }

    fn copy_in(&mut self, offset: usize, from: &[u8]) {
        self.extent().copy_in(offset, from).expect("the core stays within what it staged");
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.extent().copy_out(offset, into).expect("the core stays within what it staged");
    }

    fn zero(&mut self, offset: usize, length: usize) {
        let zeros = [0; BLOCK_SIZE];
        for at in (offset..offset + length).step_by(BLOCK_SIZE) {
            let part = zeros.get(..(offset + length - at).min(BLOCK_SIZE)).unwrap_or_default();
            self.extent().copy_in(at, part).expect("the core stays within what it staged");
        }
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        let start = self.extent().offset() + offset;
        self.extent().region().crc32c(0, start..start + length).expect("the core stays within what it staged")
    }
}

/// What to do after a call that failed without an answer of the operation. (`NotConnected` is final: the supervisor waits
/// for the next incarnation itself, and says so when there will be none.)
async fn again(cause: Cause, until: Instant) -> Result<(), DeviceError> {
    let gone = !matches!(
        cause,
        Cause::PeerDied
            | Cause::SessionClosed
            | Cause::StaleEpoch
            | Cause::Busy { .. }
            | Cause::Quota
            | Cause::StaleLease
            | Cause::Revoked
            | Cause::Deadline
            | Cause::Cancelled
    );
    if gone || Instant::now() >= until {
        return Err(DeviceError::Gone);
    }
    runtime::sleep(PAUSE).await;
    Ok(())
}

impl Device for LeasedDevice {
    type Extent = LeasedExtent;
    type Staging = StagedMemory;

    fn blocks(&self) -> u64 {
        self.0.blocks
    }

    async fn read(&self, block: u64, count: u32) -> Result<LeasedExtent, DeviceError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let cause = match self.0.client.read(self.0.client.root(), block, count).await {
                Ok(lease) => match self.0.cx.holder().borrow().hold(&lease.name()) {
                    Ok(held) if held.len() == count as usize * BLOCK_SIZE => {
                        return Ok(LeasedExtent { held, lease });
                    }
                    _ => Cause::StaleLease,
                },
                Err(CallError::Operation(ReadError::Io { errno, block })) => {
                    return Err(DeviceError::Io { errno: errno as i32, block });
                }
                Err(CallError::Operation(ReadError::OutOfRange)) => return Err(DeviceError::OutOfRange { block }),
                // Its region, or the number of leases that we may have, is used up.
                Err(CallError::Failed { cause: Cause::Busy { .. } | Cause::Quota, .. }) => {
                    return Err(DeviceError::Busy);
                }
                Err(CallError::Failed { cause, .. }) => cause,
            };
            again(cause, until).await?;
        }
    }

    async fn stage(&self, count: u32) -> StagedMemory {
        loop {
            if let Some(extent) = self.0.pool.take(count as usize * BLOCK_SIZE) {
                return StagedMemory(Rc::new(Part { extent: Some(extent), freed: Rc::clone(&self.0.freed) }));
            }
            self.0.freed.heard().await;
        }
    }

    async fn write(&self, block: u64, staged: &StagedMemory, first: u32, count: u32) -> Result<(), DeviceError> {
        let until = Instant::now() + PATIENCE;
        let extent = staged.extent();
        let lend = Lend {
            region: extent.region().id(),
            offset: (extent.offset() + first as usize * BLOCK_SIZE) as u64,
            length: u64::from(count) * BLOCK_SIZE as u64,
            source: None,
            keep: Rc::clone(&staged.0) as Rc<dyn std::any::Any>,
        };
        loop {
            let lender = self.0.cx.lender();
            // To ourselves: lent to the driver, it would be good in the mouth of any of the driver's clients.
            let name = lender.borrow_mut().lend(self.0.cx.incarnation(), lend.clone());
            let cause = match name {
                Ok(name) => {
                    steps::reach("write/lent");
                    let result = self.0.client.write(self.0.client.root(), block, LeasePart::whole(name)).await;
                    steps::reach("write/answered");
                    let _ = lender.borrow_mut().take_back(name.index, name.generation);
                    match result {
                        Ok(()) => return Ok(()),
                        Err(CallError::Operation(error)) => return Err(write_error(error, block)),
                        Err(CallError::Failed { cause, .. }) => cause,
                    }
                }
                Err(_) => Cause::BUSY,
            };
            again(cause, until).await?;
        }
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.0.client.flush(self.0.client.root()).await {
                Ok(()) => return Ok(()),
                Err(CallError::Operation(FlushError::NoSpace)) => return Err(DeviceError::NoSpace),
                Err(CallError::Operation(FlushError::Io { errno })) => {
                    return Err(DeviceError::Io { errno: errno as i32, block: 0 });
                }
                Err(CallError::Failed { cause, .. }) => again(cause, until).await?,
            }
        }
    }

    async fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        for at in (block..block + count).step_by(DISCARD_BLOCKS as usize) {
            let part = (block + count - at).min(DISCARD_BLOCKS) as u32;
            match self.0.client.discard(self.0.client.root(), at, part).await {
                Ok(()) => {}
                Err(CallError::Operation(error)) => return Err(write_error(error, at)),
                Err(CallError::Failed { .. }) => return Err(DeviceError::Gone),
            }
        }
        Ok(())
    }
}

fn write_error(error: WriteError, first: u64) -> DeviceError {
    match error {
        WriteError::Io { errno, block } => DeviceError::Io { errno: errno as i32, block },
        WriteError::OutOfRange => DeviceError::OutOfRange { block: first },
        WriteError::NoSpace => DeviceError::NoSpace,
        WriteError::ReadOnly => DeviceError::ReadOnly,
    }
}
