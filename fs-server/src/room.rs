//! The device as the volume uses it: a read for which the driver has no memory finds some.
//!
//! - What a read brings stays in the driver's memory while it is held, and most of what is held is our own cache. So a
//!   read that the device refuses as busy makes the cache let go, oldest first, twice as much each time, and asks
//!   again: it is never refused while anything is held that nobody reads.
//! - With all the rest being read, one that may be shorter asks for less (memory may be free in small pieces only).
//! - Then it waits, a bounded while, for slow readers; and is refused truthfully.
//! - One read at a time makes room; others that are refused wait behind it, so that what one let go of is its own.

use crate::device::{Device, DeviceError, Environment};
use crate::sync::Gate;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How long a read waits for memory that others read.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(64);

/// Who holds memory of the device that it can do without.
pub(crate) trait Holds {
    /// Lets go of at least `blocks`, if there are as many that nobody reads. Says whether it did of any.
    fn let_go(&self, blocks: u64) -> bool;
}

/// See the module's contract.
pub(crate) struct Roomy<D> {
    device: D,
    environment: Rc<dyn Environment>,
    holder: RefCell<Option<Rc<dyn Holds>>>,
    turn: Rc<Gate>,
}

impl<D> Roomy<D> {
    pub(crate) fn new(device: D, environment: Rc<dyn Environment>) -> Self {
        Self { device, environment, holder: RefCell::default(), turn: Rc::default() }
    }

    /// From now on `holder` makes room.
    pub(crate) fn set_holder(&self, holder: Rc<dyn Holds>) {
        *self.holder.borrow_mut() = Some(holder);
    }

    /// The device itself.
    pub(crate) fn device(&self) -> &D {
        &self.device
    }

    fn let_go(&self, blocks: u64) -> bool {
        let holder = self.holder.borrow().clone();
        holder.is_some_and(|holder| holder.let_go(blocks))
    }
}

impl<D: Device> Roomy<D> {
    /// Reads `count` blocks, or fewer but at least `least` if there is memory for no more.
    pub(crate) async fn read_some(&self, block: u64, count: u32, least: u32) -> Result<D::Extent, DeviceError> {
        match self.device.read(block, count).await {
            Err(DeviceError::Busy) => {}
            other => return other,
        }
        let until = self.environment.elapsed_ns() + PATIENCE.as_nanos() as u64;
        let _turn = self.turn.enter_alone().await;
        let mut amount = u64::from(count);
        let mut ask = count;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.device.read(block, ask).await {
                Err(DeviceError::Busy) => {}
                other => return other,
            }
            if self.let_go(amount) {
                amount *= 2;
                // What was let go of must have reached the driver.
                self.environment.sleep(Duration::ZERO).await;
            } else if ask > least {
                ask = (ask / 2).max(least);
            } else if self.environment.elapsed_ns() < until {
                self.environment.sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
                ask = count;
            } else {
                return Err(DeviceError::Busy);
            }
        }
    }
}

impl<D: Device> Device for Roomy<D> {
    type Extent = D::Extent;
    type Staging = D::Staging;

    fn blocks(&self) -> u64 {
        self.device.blocks()
    }

    async fn read(&self, block: u64, count: u32) -> Result<D::Extent, DeviceError> {
        self.read_some(block, count, count).await
    }

    async fn stage(&self, count: u32) -> D::Staging {
        self.device.stage(count).await
    }

    async fn write(&self, block: u64, staged: &D::Staging, first: u32, count: u32) -> Result<(), DeviceError> {
        self.device.write(block, staged, first, count).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush().await
    }

    async fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.device.discard(block, count).await
    }
}
