//! The set of tasks that other threads have woken.
//!
//! - [`ReadySet::insert`] takes no lock and allocates nothing: one bit per task, one per chunk of tasks.
//! - A task that was inserted before [`ReadySet::drain`] began is either drained by it or still in the set,
//!   which is then not [`ReadySet::is_empty`].

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(all(test, loom)))]
const WORDS_PER_CHUNK: usize = 64;
#[cfg(all(test, loom))]
const WORDS_PER_CHUNK: usize = 1;
const TASKS_PER_CHUNK: usize = WORDS_PER_CHUNK * 64;
const CHUNKS: usize = 64;

/// The most tasks that one runtime can have at a time.
pub(super) const TASKS_MAX: usize = TASKS_PER_CHUNK * CHUNKS;

/// See the module's contract.
pub(super) struct ReadySet {
    /// Bit `c` is set while chunk `c` may have bits set.
    dirty: AtomicU64,
    chunks: [OnceLock<Box<[AtomicU64; WORDS_PER_CHUNK]>>; CHUNKS],
}

impl ReadySet {
    pub fn new() -> ReadySet {
        ReadySet { dirty: AtomicU64::new(0), chunks: [const { OnceLock::new() }; CHUNKS] }
    }

    /// Makes room for task `index`. Called before a waker for it exists.
    pub fn reserve(&self, index: u32) {
        let chunk = index as usize / TASKS_PER_CHUNK;
        self.chunks[chunk].get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
    }

    /// Adds a task that was reserved.
    pub fn insert(&self, index: u32) {
        let index = index as usize;
        let chunk = index / TASKS_PER_CHUNK;
        if let Some(words) = self.chunks[chunk].get() {
            // Release pairs with the Acquire swap in `drain`: what the waking thread did is seen by the task.
            words[index % TASKS_PER_CHUNK / 64].fetch_or(1 << (index % 64), Ordering::Release);
            // After the task's bit, so that a drain that takes this bit also finds that one.
            self.dirty.fetch_or(1 << chunk, Ordering::Release);
        }
    }

    /// Whether a drain would find nothing. Sequentially consistent fences around it are the caller's.
    pub fn is_empty(&self) -> bool {
        self.dirty.load(Ordering::Acquire) == 0
    }

    /// Takes every task out and calls `wake` with each.
    pub fn drain(&self, mut wake: impl FnMut(u32)) {
        if self.is_empty() {
            return;
        }
        // Acquire pairs with the Release on `dirty` in `insert`: the task's bit was set before.
        let mut dirty = self.dirty.swap(0, Ordering::Acquire);
        while dirty != 0 {
            let chunk = dirty.trailing_zeros() as usize;
            dirty &= dirty - 1;
            let Some(words) = self.chunks[chunk].get() else { continue };
            for (number, word) in words.iter().enumerate() {
                if word.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let mut bits = word.swap(0, Ordering::Acquire);
                while bits != 0 {
                    let index = chunk * TASKS_PER_CHUNK + number * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    wake(index as u32);
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_inserted_task_is_drained_once() {
        let set = ReadySet::new();
        let tasks = [0, 63, 64, 4095, 4096, TASKS_MAX as u32 - 1];
        for task in tasks {
            set.reserve(task);
            set.insert(task);
            set.insert(task);
        }
        let mut seen = Vec::new();
        set.drain(|task| seen.push(task));
        assert_eq!(seen, tasks);
        set.drain(|task| panic!("task {task} was drained twice"));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, fence};
    use loom::thread;

    /// A waker and a sleeper: the sleeper either finds the task or is told to stay awake.
    #[test]
    fn a_wake_is_never_lost_between_the_last_look_and_the_sleep() {
        loom::model(|| {
            let set = Arc::new(ReadySet::new());
            let bell = Arc::new(AtomicU32::new(0));
            set.reserve(0);
            let waker = thread::spawn({
                let (set, bell) = (Arc::clone(&set), Arc::clone(&bell));
                move || {
                    set.insert(0);
                    fence(Ordering::SeqCst);
                    bell.load(Ordering::Relaxed) == 1 && bell.swap(0, Ordering::Relaxed) == 1
                }
            });
            let mut seen = false;
            set.drain(|_| seen = true);
            bell.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let sleeps = set.is_empty();
            let woken = waker.join().unwrap();
            assert!(!sleeps || woken || seen, "asleep with a task undone and nobody to wake it");
        });
    }

    /// Two threads wake tasks of one word while they are drained: whatever a drain misses is found by the next one.
    #[test]
    fn what_one_drain_misses_is_found_by_the_next() {
        loom::model(|| {
            let set = Arc::new(ReadySet::new());
            set.reserve(0);
            let waker = thread::spawn({
                let set = Arc::clone(&set);
                move || set.insert(1)
            });
            set.insert(0);
            let mut seen = 0u64;
            set.drain(|task| seen |= 1 << task);
            waker.join().unwrap();
            set.drain(|task| seen |= 1 << task);
            assert_eq!(seen, 0b11);
        });
    }
}
