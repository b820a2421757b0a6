//! A block device in memory that can lose power, run out of space and fail, all from a seed; and an environment for it.
//!
//! - What was written since the last flush is lost, kept or torn (in units of 512 bytes), each write on its own, when the
//!   power is cut.
//! - With `yields`, operations finish in an order that the seed decides, so that tasks interleave.

use crate::device::{BLOCK_SIZE, Device, DeviceError, Environment, Task};
use crate::image::Bytes;
use crate::sync::{Tasks, block_on};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

const SECTOR: usize = 512;

/// A generator of random words (xorshift64*), the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.word() >> 11) % end
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

type Block = Rc<[u8; BLOCK_SIZE]>;

struct Simulation {
    blocks: u64,
    content: HashMap<u64, Block>,
    /// Content before the first write since the last flush; None = zeros.
    unflushed: Vec<(u64, Option<Block>, Block)>,
    random: Random,
    writes: u64,
    flushes: u64,
    reads: u64,
}

/// How a simulated device behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Operations wait for a random while.
    pub yields: bool,
    /// A flush makes durable what was written; false: it does nothing, as a device that lies.
    pub flush_works: bool,
    /// Blocks that can have content other than zeros; writes to more get [`DeviceError::NoSpace`].
    pub capacity_blocks: u64,
    /// Remembers what is not flushed, so that the power can be cut.
    pub records: bool,
    /// Reads and writes that still work; those after them fail.
    pub left: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { yields: false, flush_works: true, capacity_blocks: u64::MAX, records: false, left: u64::MAX }
    }
}

/// A device in memory. Clones are the same device.
#[derive(Clone)]
pub struct SimulatedDevice {
    simulation: Rc<RefCell<Simulation>>,
    behaviour: Rc<Cell<Behaviour>>,
}

impl std::fmt::Debug for SimulatedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedDevice").field("behaviour", &self.behaviour.get()).finish_non_exhaustive()
    }
}

impl SimulatedDevice {
    /// A device of zeros.
    #[must_use]
    pub fn new(blocks: u64, seed: u64, behaviour: Behaviour) -> Self {
        let simulation = Simulation {
            blocks,
            content: HashMap::new(),
            unflushed: Vec::new(),
            random: Random::new(seed),
            writes: 0,
            flushes: 0,
            reads: 0,
        };
        Self { simulation: Rc::new(RefCell::new(simulation)), behaviour: Rc::new(Cell::new(behaviour)) }
    }

    /// Changes how it behaves from here on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.set(behaviour);
    }

    /// A device with the same content; no power was cut.
    #[must_use]
    pub fn copy(&self) -> Self {
        let old = self.simulation.borrow();
        let copy = Self::new(old.blocks, 1, self.behaviour.get());
        copy.simulation.borrow_mut().content = old.content.clone();
        copy
    }

    /// A device with what is left of this one after a power cut.
    #[must_use]
    pub fn cut_power(&self, seed: u64) -> Self {
        let old = self.simulation.borrow();
        let mut random = Random::new(seed);
        let mut content = old.content.clone();
        for (block, before, _) in old.unflushed.iter().rev() {
            match before {
                Some(bytes) => content.insert(*block, Rc::clone(bytes)),
                None => content.remove(block),
            };
        }
        // One mood per cut: mostly lost, mostly kept, or evenly, so that extremes are seen too.
        let mood = random.below(5);
        let mut order: Vec<usize> = (0..old.unflushed.len()).collect();
        for index in (1..order.len()).rev() {
            order.swap(index, random.below(index as u64 + 1) as usize);
        }
        for index in order {
            let (block, _, after) = &old.unflushed[index];
            let kept = match mood {
                0 => false,
                1 => random.one_in(8),
                2 => !random.one_in(8),
                _ => random.one_in(2),
            };
            if !kept && !random.one_in(8) {
                continue;
            }
            let mut bytes = content.get(block).map_or([0; BLOCK_SIZE], |bytes| **bytes);
            if kept {
                bytes = **after;
            } else {
                for sector in 0..BLOCK_SIZE / SECTOR {
                    if random.one_in(2) {
                        let range = sector * SECTOR..(sector + 1) * SECTOR;
                        bytes[range.clone()].copy_from_slice(&after[range]);
                    }
                }
            }
            content.insert(*block, Rc::new(bytes));
        }
        let next = Self::new(old.blocks, random.word(), self.behaviour.get());
        next.simulation.borrow_mut().content = content;
        next
    }

    /// A device whose last blocks are missing.
    #[must_use]
    pub fn truncated(&self, blocks: u64) -> Self {
        let copy = self.copy();
        copy.simulation.borrow_mut().blocks = blocks;
        copy
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block(&self, block: u64) -> [u8; BLOCK_SIZE] {
        self.simulation.borrow().content.get(&block).map_or([0; BLOCK_SIZE], |bytes| **bytes)
    }

    /// Puts other bytes from `block` on, whole blocks; no write was seen.
    pub fn overwrite(&self, block: u64, bytes: &[u8]) {
        let (blocks, _) = bytes.as_chunks::<BLOCK_SIZE>();
        let mut simulation = self.simulation.borrow_mut();
        for (at, bytes) in (block..).zip(blocks) {
            simulation.content.insert(at, Rc::new(*bytes));
        }
    }

    /// Flips bits of one byte of a block.
    pub fn flip(&self, block: u64, byte: usize, bits: u8) {
        let mut bytes = self.block(block);
        bytes[byte % BLOCK_SIZE] ^= bits;
        self.simulation.borrow_mut().content.insert(block, Rc::new(bytes));
    }

    /// Blocks that were ever written.
    #[must_use]
    pub fn written_blocks(&self) -> Vec<u64> {
        let mut blocks: Vec<u64> = self.simulation.borrow().content.keys().copied().collect();
        blocks.sort_unstable();
        blocks
    }

    /// Blocks read, blocks written and flushes so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let simulation = self.simulation.borrow();
        (simulation.reads, simulation.writes, simulation.flushes)
    }

    async fn pause(&self) {
        let mut turns = match self.behaviour.get().yields {
            true => self.simulation.borrow_mut().random.below(4),
            false => 0,
        };
        poll_fn(|cx| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn works(&self, block: u64) -> Result<(), DeviceError> {
        let mut behaviour = self.behaviour.get();
        behaviour.left = behaviour.left.checked_sub(1).ok_or(DeviceError::Io { errno: 5, block })?;
        self.behaviour.set(behaviour);
        Ok(())
    }

    fn in_range(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        let end = block.checked_add(count);
        if end.is_none_or(|end| end > self.simulation.borrow().blocks) {
            return Err(DeviceError::OutOfRange { block });
        }
        Ok(())
    }

    fn store(&self, block: u64, bytes: Option<Block>) -> Result<(), DeviceError> {
        let behaviour = self.behaviour.get();
        let mut simulation = self.simulation.borrow_mut();
        let full = simulation.content.len() as u64 >= behaviour.capacity_blocks;
        if full && bytes.is_some() && !simulation.content.contains_key(&block) {
            return Err(DeviceError::NoSpace);
        }
        let after = bytes.clone().unwrap_or_else(|| Rc::new([0; BLOCK_SIZE]));
        let before = match bytes {
            Some(bytes) => simulation.content.insert(block, bytes),
            None => simulation.content.remove(&block),
        };
        if behaviour.records {
            simulation.unflushed.push((block, before, after));
        }
        Ok(())
    }
}

impl Device for SimulatedDevice {
    type Extent = Bytes;
    type Staging = Bytes;

    fn blocks(&self) -> u64 {
        self.simulation.borrow().blocks
    }

    async fn read(&self, block: u64, count: u32) -> Result<Bytes, DeviceError> {
        self.in_range(block, u64::from(count))?;
        self.pause().await;
        self.works(block)?;
        let mut bytes = Vec::with_capacity(count as usize * BLOCK_SIZE);
        for block in block..block + u64::from(count) {
            match self.simulation.borrow().content.get(&block) {
                Some(content) => bytes.extend_from_slice(&content[..]),
                None => bytes.resize(bytes.len() + BLOCK_SIZE, 0),
            }
        }
        self.simulation.borrow_mut().reads += u64::from(count);
        Ok(Bytes(bytes))
    }

    async fn stage(&self, count: u32) -> Bytes {
        self.pause().await;
        Bytes(vec![0xa5; count as usize * BLOCK_SIZE])
    }

    async fn write(&self, block: u64, staged: &Bytes, first: u32, count: u32) -> Result<(), DeviceError> {
        self.in_range(block, u64::from(count))?;
        self.pause().await;
        self.works(block)?;
        for index in 0..count as usize {
            let mut bytes = [0; BLOCK_SIZE];
            bytes.copy_from_slice(&staged.0[(first as usize + index) * BLOCK_SIZE..][..BLOCK_SIZE]);
            self.store(block + index as u64, Some(Rc::new(bytes)))?;
        }
        self.simulation.borrow_mut().writes += u64::from(count);
        self.pause().await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.pause().await;
        if self.behaviour.get().flush_works {
            self.simulation.borrow_mut().unflushed.clear();
        }
        self.simulation.borrow_mut().flushes += 1;
        Ok(())
    }

    async fn discard(&self, block: u64, count: u64) -> Result<(), DeviceError> {
        self.in_range(block, count)?;
        self.pause().await;
        for block in block..block + count {
            self.store(block, None)?;
        }
        Ok(())
    }
}

/// Time that goes on by itself, random words from a seed, tasks of one thread.
#[derive(Debug)]
pub struct SimulatedEnvironment {
    tasks: Tasks,
    now_ns: Cell<u64>,
    stopped: Cell<Option<u64>>,
    random: RefCell<Random>,
}

impl SimulatedEnvironment {
    /// Begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            tasks: Tasks::default(),
            now_ns: Cell::new(1_700_000_000_000_000_000),
            stopped: Cell::default(),
            random: RefCell::new(Random::new(seed)),
        })
    }

    /// Runs a future to its end, and what it spawned as far as it comes meanwhile.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.tasks, future)
    }

    /// Runs a future and stops everything in the middle, after so many steps; `None` if it had not finished.
    pub fn run_for<T>(&self, steps: u64, future: impl Future<Output = T>) -> Option<T> {
        let mut left = steps;
        let mut future = std::pin::pin!(future);
        block_on(
            &self.tasks,
            poll_fn(move |cx| {
                if let Poll::Ready(value) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(value));
                }
                if left == 0 {
                    return Poll::Ready(None);
                }
                left -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }),
        )
    }

    /// Forgets every task, as the end of the process does.
    pub fn crash(&self) {
        self.tasks.clear();
    }
}

impl Environment for SimulatedEnvironment {
    fn reach(&self, _: &'static str) {}

    fn now_ns(&self) -> u64 {
        if let Some(at) = self.stopped.get() {
            return at;
        }
        self.now_ns.set(self.now_ns.get() + 1);
        self.now_ns.get()
    }

    fn elapsed_ns(&self) -> u64 {
        self.now_ns.set(self.now_ns.get() + 1);
        self.now_ns.get()
    }

    fn stop_clock(&self, at_ns: Option<u64>) {
        self.stopped.set(at_ns);
        self.now_ns.set(self.now_ns.get().max(at_ns.unwrap_or(0)));
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().word()
    }

    fn spawn(&self, task: Task) {
        self.tasks.spawn(task);
    }

    fn sleep(&self, time: Duration) -> Task {
        self.now_ns.set(self.now_ns.get() + time.as_nanos() as u64);
        let mut slept = false;
        Box::pin(poll_fn(move |cx| {
            if std::mem::replace(&mut slept, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}
