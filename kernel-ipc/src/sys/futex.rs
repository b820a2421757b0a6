//! Futex words: the address of a 32-bit word that some process changes, and the system calls to sleep on it.
//!
//! - A wait or a wake never writes the word, so both work through a read-only mapping (measured).
//! - The kernel only reads the word, and answers `EFAULT` when nothing is mapped at its address: a
//!   [`WordAddress`] that outlives its mapping is a wrong wake-up, never unsound memory.
//! - All calls use the shared form, which works for private memory as well.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use io_uring::types::FutexWaitV;

/// The address of a 32-bit word in memory that is shared with a peer. A value, not a reference:
/// nothing is read through it except by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WordAddress(NonNull<u32>);

// SAFETY: an address is a number here; only the kernel looks at what is there.
unsafe impl Send for WordAddress {}

impl WordAddress {
    /// The word at `address`, or `None` when the address is null or not a multiple of four.
    pub fn new(address: *const u32) -> Option<WordAddress> {
        NonNull::new(address.cast_mut()).filter(|word| word.is_aligned()).map(WordAddress)
    }

    /// The word of this process behind `word`.
    pub fn of(word: &AtomicU32) -> WordAddress {
        WordAddress(NonNull::from(word).cast())
    }

    /// The word's address in this process.
    pub fn as_ptr(self) -> *const u32 {
        self.0.as_ptr()
    }
}

/// One word to sleep on, and the value it has while there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The word.
    pub word: WordAddress,
    /// Its value when there was no work.
    pub expected: u32,
}

impl Wait {
    /// The kernel's form, the same for `futex_waitv(2)` and `IORING_OP_FUTEX_WAITV`.
    pub(crate) fn to_kernel(self) -> FutexWaitV {
        /// `FUTEX2_SIZE_U32` of linux/futex.h.
        const SIZE_U32: u32 = 2;
        FutexWaitV::new().uaddr(self.word.as_ptr().addr() as u64).val(u64::from(self.expected)).flags(SIZE_U32)
    }
}

/// How many words one wait may name (`FUTEX_WAITV_MAX` of linux/futex.h; 129 were refused when measured).
pub const WAIT_MAX: usize = 128;

/// Sleeps until `wait` is woken, has another value than expected, or `timeout` has passed. Also returns for no reason.
///
/// # Errors
/// What `futex(2)` refuses: nothing is mapped at the word.
pub fn wait_one(wait: Wait, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX / 2),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    super::calls::count(|made| made.sleeps += 1);
    let timeout_ptr = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let word = wait.word.as_ptr();
    // SAFETY: FUTEX_WAIT reads the word and answers EFAULT if it is not mapped; the time outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, wait.expected, timeout_ptr) };
    slept(result)
}

/// What a system call that sleeps has said.
fn slept(result: libc::c_long) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT) => Ok(()),
        _ => Err(error),
    }
}

/// Sleeps until one of `waits` is woken, has another value than expected, or `timeout` has passed. Also
/// returns for no reason (a signal): the caller looks for work and sleeps again.
///
/// # Errors
/// What `futex_waitv(2)` refuses: more than [`WAIT_MAX`] words, or none; nothing mapped at a word.
pub fn wait_any(waits: &[Wait], timeout: Option<Duration>) -> io::Result<()> {
    // Most threads wait for a few words, and again for each call: that must not allocate.
    const FEW: usize = 8;
    let (mut few, many): ([FutexWaitV; FEW], Vec<FutexWaitV>);
    let waits = if waits.len() <= FEW {
        few = [FutexWaitV::new(); FEW];
        few.iter_mut().zip(waits).for_each(|(kernel, wait)| *kernel = wait.to_kernel());
        &few[..waits.len()]
    } else {
        many = waits.iter().map(|wait| wait.to_kernel()).collect();
        &many[..]
    };
    let deadline = timeout.map(monotonic_after);
    super::calls::count(|made| made.sleeps += 1);
    let deadline_ptr = deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `FutexWaitV` is transparent over the kernel's `struct futex_waitv`; array and time outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_futex_waitv, waits.as_ptr(), waits.len(), 0, deadline_ptr, libc::CLOCK_MONOTONIC)
    };
    slept(result)
}

/// Wakes up to `count` waiters of `word`, in this and every other process that maps it; how many.
pub fn wake(word: WordAddress, count: i32) -> u32 {
    super::calls::count(|made| made.wakes += 1);
    // SAFETY: FUTEX_WAKE uses the address as a key only; the kernel answers EFAULT for one that is not mapped,
    // and then nobody can wait there.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count, 0, 0, 0) };
    u32::try_from(woken).unwrap_or(0)
}

/// `CLOCK_MONOTONIC` now plus `timeout`.
fn monotonic_after(timeout: Duration) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let nanos = now.tv_nsec + i64::from(timeout.subsec_nanos());
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX / 2);
    libc::timespec {
        tv_sec: now.tv_sec.saturating_add(seconds).saturating_add(nanos / 1_000_000_000),
        tv_nsec: nanos % 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_word_with_another_value_does_not_put_the_thread_to_sleep() {
        let word = AtomicU32::new(1);
        wait_any(&[Wait { word: WordAddress::of(&word), expected: 0 }], None).expect("futex_waitv of one word");
    }

    #[test]
    fn a_wake_on_the_last_of_128_words_ends_the_wait_of_all() {
        let words: Arc<Vec<AtomicU32>> = Arc::new((0..WAIT_MAX).map(|_| AtomicU32::new(0)).collect());
        let waits: Vec<Wait> = words.iter().map(|word| Wait { word: WordAddress::of(word), expected: 0 }).collect();
        let waker = std::thread::spawn({
            let words = Arc::clone(&words);
            move || {
                words[WAIT_MAX - 1].store(1, Ordering::SeqCst);
                wake(WordAddress::of(&words[WAIT_MAX - 1]), 1);
            }
        });
        while words[WAIT_MAX - 1].load(Ordering::SeqCst) == 0 {
            wait_any(&waits, None).expect("futex_waitv of 128 words");
        }
        waker.join().expect("the waker does not panic");
    }

    #[test]
    fn a_wait_for_nothing_ends_with_its_timeout() {
        let word = AtomicU32::new(0);
        wait_any(&[Wait { word: WordAddress::of(&word), expected: 0 }], Some(Duration::from_millis(1)))
            .expect("a timeout is no error");
    }
}
