//! A thread that waits for futex words on behalf of a ring that cannot (Linux before 6.7), and makes an
//! eventfd readable when one of them changes.
//!
//! - It sleeps between orders and while nothing changes; it exists only where a ring without futex operations
//!   has to wait for words and for I/O together.
//! - It looks at no word itself: the kernel compares.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::futex::{self, WAIT_MAX, Wait, WordAddress};

struct Shared {
    /// Rises with every order; the first word of each wait.
    orders: AtomicU32,
    /// What to wait for; `None`: end.
    order: Mutex<Option<Vec<Wait>>>,
    event: EventFd,
}

/// See the module's contract.
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    watched: Vec<Wait>,
}

impl Watcher {
    /// How many words one watcher can wait for beside its own.
    pub const WORDS_MAX: usize = WAIT_MAX - 1;

    /// Starts the thread.
    ///
    /// # Errors
    /// No descriptor or no thread to be had.
    pub fn start() -> io::Result<Watcher> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { orders: AtomicU32::new(0), order: Mutex::new(Some(Vec::new())), event });
        let thread = std::thread::Builder::new().name("atoll-watcher".into()).spawn({
            let shared = Arc::clone(&shared);
            move || watch(&shared)
        })?;
        Ok(Watcher { shared, thread: Some(thread), watched: Vec::new() })
    }

    /// Waits for these words from now on (at most [`Watcher::WORDS_MAX`]), and forgets an event of earlier ones.
    pub fn watch(&mut self, waits: &[Wait]) {
        // A count that is read is a count that is gone; nobody else reads it.
        let _ = self.shared.event.read();
        // A wait that has fired is not repeated by the thread, so even the same words are a new order.
        self.watched = waits.to_vec();
        self.order(Some(self.watched.clone()));
    }

    fn order(&self, order: Option<Vec<Wait>>) {
        *self.shared.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
        // Release pairs with the Acquire in `watch`.
        self.shared.orders.fetch_add(1, Ordering::Release);
        futex::wake(WordAddress::of(&self.shared.orders), 1);
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.order(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared) {
    loop {
        let orders = shared.orders.load(Ordering::Acquire);
        let Some(mut waits) = shared.order.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        let ours = Wait { word: WordAddress::of(&shared.orders), expected: orders };
        let watching = !waits.is_empty();
        waits.insert(0, ours);
        if futex::wait_any(&waits, None).is_err() {
            // A word is not mapped any more: its owner is told, and gives the next order.
            let _ = futex::wait_any(&[ours], Some(std::time::Duration::ZERO));
        }
        if watching && shared.orders.load(Ordering::Acquire) == orders {
            let _ = shared.event.write(1);
            // One event per order.
            while shared.orders.load(Ordering::Acquire) == orders {
                let _ = futex::wait_any(&[ours], None);
            }
        }
    }
}
