//! The part of a runtime that other threads see: which tasks they have woken, and how its sleep is ended.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use std::time::Duration;

use super::ready::ReadySet;
use crate::sys::futex::{self, WordAddress};

/// The runtime is awake, or wakes by itself.
const AWAKE: u32 = 0;
/// It sleeps on the bell, perhaps beside other words: changing it ends the sleep, or prevents it.
pub(super) const ON_BELL: u32 = 1;
/// It sleeps on one word alone, a peer's: a `FUTEX_WAIT` costs 0.5 µs less than a `futex_waitv` of two words (measured on
/// one core). Nobody here can change that word, so whoever wakes has to ring until the sleep has begun.
const ON_WORD: u32 = 2;

/// See the module's contract.
pub(super) struct Remote {
    ready: ReadySet,
    bell: AtomicU32,
    /// The word's address while the bell is [`ON_WORD`].
    word: AtomicUsize,
}

impl Remote {
    pub fn new() -> Remote {
        Remote { ready: ReadySet::new(), bell: AtomicU32::new(AWAKE), word: AtomicUsize::new(0) }
    }

    /// A task may be woken from now on.
    pub fn reserve(&self, index: u32) {
        self.ready.reserve(index);
    }

    /// Takes what was woken.
    pub fn drain(&self, ready: impl FnMut(u32)) {
        self.ready.drain(ready);
    }

    /// The word that ends a sleep on the bell.
    pub fn bell(&self) -> WordAddress {
        WordAddress::of(&self.bell)
    }

    /// Announces a sleep on the bell. False when there is work already.
    pub fn prepare_sleep(&self) -> bool {
        self.announce(ON_BELL)
    }

    /// Announces instead that `word` alone will be slept on. False when there is work already.
    pub fn prepare_sleep_on(&self, word: WordAddress) -> bool {
        self.word.store(word.as_ptr().addr(), Ordering::Relaxed);
        self.announce(ON_WORD)
    }

    fn announce(&self, sleep: u32) -> bool {
        // Release: whoever sees the announcement sees the word.
        self.bell.store(sleep, Ordering::Release);
        // Dekker with `wake`: either it sees the announcement, or we see its task.
        fence(Ordering::SeqCst);
        self.ready.is_empty()
    }

    /// The sleep has ended.
    pub fn cancel_sleep(&self) {
        self.bell.store(AWAKE, Ordering::Relaxed);
    }

    /// Wakes a task.
    pub fn wake(&self, index: u32) {
        self.ready.insert(index);
        fence(Ordering::SeqCst);
        match self.bell.load(Ordering::Acquire) {
            ON_BELL if self.bell.swap(AWAKE, Ordering::Relaxed) == ON_BELL => {
                futex::wake(self.bell(), 1);
            }
            ON_WORD => self.ring_until_awake(),
            _ => {}
        }
    }

    /// Ends a sleep that has been announced and may not have begun.
    #[cold]
    fn ring_until_awake(&self) {
        let mut patience = 0;
        while self.bell.load(Ordering::Acquire) == ON_WORD {
            // An address that is not mapped any more wakes nobody, and then the bell has another value.
            let word = WordAddress::new(std::ptr::without_provenance(self.word.load(Ordering::Relaxed)));
            if word.is_some_and(|word| futex::wake(word, i32::MAX) > 0) {
                return;
            }
            // It is a few instructions away from its sleep, or from having ended it, if it is given a core.
            patience += 1;
            if patience < 16 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_micros(20)) }
        }
    }
}
