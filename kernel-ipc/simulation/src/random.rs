//! Numbers that a seed decides.

use kernel_ipc::sys::random;

/// A sequence; every seed is as good as any other.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed that is for `purpose`.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mut state = seed ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03);
        random::next(&mut state);
        Random(state)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        random::next(&mut self.0)
    }

    /// The next one below `n`; 0 if that is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// The next one from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}
