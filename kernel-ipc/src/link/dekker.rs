//! The protocol that never loses a wake-up, apart from the memory it runs on, so that a model can run it too.
//!
//! ```text
//! producer                       sleeper
//! P1 store tail  (release)       S1 store wants = odd
//! P2 fence       (SeqCst)        S2 fence (SeqCst)
//! P3 load wants                  S3 load tail (acquire)
//! P4 odd: wake whoever waits     S4 tail is new: go on. Else wait while tail == what S3 saw
//! ```
//!
//! One of the fences comes first. If P2, S3 sees the new tail; if S2, P3 sees the announcement, and the wake either
//! finds the sleeper waiting or comes before its wait, which then fails because the tail has changed (P1 before P4).
//! Without P2 both loads may see old values; `tests/dekker_model.rs` finds that. Without S2 too, where the wait compares
//! nothing (the eventfd twin); a futex wait compares again under a barrier of the kernel's own.

/// The producer's view of the words.
pub trait Producer {
    /// Stores its own tail, with release.
    fn store_tail(&self, tail: u64);
    /// Loads the sleeper's announcement.
    fn load_wants(&self) -> u64;
    /// A sequentially consistent fence.
    fn fence(&self);
    /// Wakes whoever waits for the tail to change. False if nobody waits (yet).
    fn wake(&self) -> bool;
}

/// The sleeper's view of the words.
pub trait Sleeper {
    /// Stores its own announcement.
    fn store_wants(&self, wants: u64);
    /// Loads the producer's tail, with acquire.
    fn load_tail(&self) -> u64;
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// P1 to P4. `rung` is the announcement that was answered last: nobody is woken twice for one sleep. Gives the new
/// value of `rung`.
///
/// Only a wake that found a waiter answers an announcement. A consumer that watches the messages themselves can have
/// taken all that this tail counts before it announced its sleep; it then waits on this very tail, perhaps after the wake,
/// which found nobody: the next message must wake it.
#[inline]
pub fn ring(words: &impl Producer, tail: u64, rung: u64) -> u64 {
    words.store_tail(tail);
    words.fence();
    let wants = words.load_wants();
    if wants % 2 == 1 && wants != rung && words.wake() { wants } else { rung }
}

/// S1 to S3: the tail that the sleeper may wait on, if it has seen everything up to there. `wants` is the next odd
/// number above every one announced before.
#[inline]
pub fn announce(words: &impl Sleeper, wants: u64) -> u64 {
    words.store_wants(wants);
    words.fence();
    words.load_tail()
}
