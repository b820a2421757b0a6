//! Random bytes from the kernel.

use std::io;

/// 128 bits that nobody can guess. Waits for the kernel's first entropy, once, after a machine's start.
///
/// # Errors
/// What the kernel says: none on Linux since 3.17, unless a filter forbids the call.
pub fn random_words() -> io::Result<[u64; 2]> {
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
