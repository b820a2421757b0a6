//! How one line of eight words is written and read by two who share it, apart from the memory, so that a model can run it.
//!
//! - The first word is stored last and loaded first. A reader that likes it has the whole line as it was written with it.
//! - Until a reader likes the first word, it touches no other.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

/// The words of a line.
pub trait Words {
    /// Loads one of the eight.
    fn load(&self, word: usize, order: Ordering) -> u64;
    /// Stores one of the eight.
    fn store(&self, word: usize, value: u64, order: Ordering);
}

/// Writes a line, the first word last.
#[inline]
pub fn store(words: &impl Words, line: &[u64; 8]) {
    for (word, value) in line.iter().enumerate().skip(1) {
        words.store(word, *value, Relaxed);
    }
    // Release pairs with the Acquire load in `load`.
    words.store(0, line[0], Release);
}

/// Reads a line once, if `wanted` likes its first word.
#[inline]
pub fn load(words: &impl Words, wanted: impl FnOnce(u64) -> bool) -> Option<[u64; 8]> {
    // Acquire pairs with the Release store in `store`.
    let first = words.load(0, Acquire);
    wanted(first).then(|| {
        let mut line = [first; 8];
        for (word, value) in line.iter_mut().enumerate().skip(1) {
            *value = words.load(word, Relaxed);
        }
        line
    })
}

impl Words for [AtomicU64; 8] {
    #[inline]
    fn load(&self, word: usize, order: Ordering) -> u64 {
        self[word].load(order)
    }

    #[inline]
    fn store(&self, word: usize, value: u64, order: Ordering) {
        self[word].store(value, order);
    }
}
