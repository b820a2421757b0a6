//! Random bytes from the kernel; on a thread that simulates, from its seed.

use std::cell::Cell;
use std::io;

thread_local! {
    /// Where the numbers of a simulation have come to; `None`: they are the kernel's.
    static SIMULATED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread's random words follow from this seed; `None`: they are the kernel's again.
pub fn simulate(seed: Option<u64>) {
    SIMULATED.set(seed);
}

/// The next number of a sequence that its state decides (SplitMix64).
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 128 bits that nobody can guess. Waits for the kernel's first entropy, once, after a machine's start.
///
/// # Errors
/// What the kernel says: none on Linux since 3.17, unless a filter forbids the call.
pub fn random_words() -> io::Result<[u64; 2]> {
    if let Some(mut state) = SIMULATED.get() {
        let words = [next(&mut state), next(&mut state)];
        SIMULATED.set(Some(state));
        return Ok(words);
    }
    let mut words = [0u64; 2];
    let bytes = size_of_val(&words);
    // SAFETY: `getrandom` writes at most `bytes` bytes to a place that holds as many and that nobody else uses.
    let written = unsafe { libc::getrandom(words.as_mut_ptr().cast(), bytes, 0) };
    match usize::try_from(written) {
        // Up to 256 bytes come whole (getrandom(2)).
        Ok(written) if written == bytes => Ok(words),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_never_the_same() {
        let mut seen = std::collections::HashSet::new();
        assert!((0..100).all(|_| seen.insert(super::random_words().expect("Linux has it"))));
    }
}
