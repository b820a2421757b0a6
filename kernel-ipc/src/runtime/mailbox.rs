//! What the threads of one process tell each other: a queue that any of them fills and a task of one of them empties.
//!
//! A lock for the moment of a push or a pop, and a wake-up if the reader sleeps: for what happens now and then, not for calls.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Fills a [`Mailbox`]. Clones fill the same one.
pub struct Sender<T>(Arc<Shared<T>>);

/// The reader's end.
pub struct Mailbox<T>(Arc<Shared<T>>);

struct Shared<T>(Mutex<Queue<T>>);

struct Queue<T> {
    /// `None`: nobody will read any more.
    letters: Option<VecDeque<T>>,
    reader: Option<Waker>,
}

/// A mailbox, and what fills it.
pub fn mailbox<T>() -> (Sender<T>, Mailbox<T>) {
    let shared = Arc::new(Shared(Mutex::new(Queue { letters: Some(VecDeque::new()), reader: None })));
    (Sender(shared.clone()), Mailbox(shared))
}

impl<T> Shared<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        // Nothing in here can panic with the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    /// Adds a letter. From any thread; those of one thread are read in this order.
    ///
    /// # Errors
    /// The letter comes back if nobody will read it: the mailbox is gone.
    pub fn send(&self, letter: T) -> Result<(), T> {
        let reader = {
            let mut queue = self.0.queue();
            match &mut queue.letters {
                Some(letters) => letters.push_back(letter),
                None => return Err(letter),
            }
            queue.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone())
    }
}

impl<T> Mailbox<T> {
    /// Waits for the next letter. One task waits at a time.
    pub fn next(&self) -> impl Future<Output = T> + '_ {
        poll_fn(|cx| {
            let mut queue = self.0.queue();
            if let Some(letter) = queue.letters.as_mut().and_then(VecDeque::pop_front) {
                return Poll::Ready(letter);
            }
            queue.reader = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        // What was not read is dropped without the lock: it may hold what fills this very mailbox.
        let unread = self.0.queue().letters.take();
        drop(unread);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::runtime::{Options, Runtime, Waiting};

    #[test]
    fn every_letter_of_every_thread_arrives_in_its_threads_order_however_the_reader_waits() {
        const LETTERS: u32 = 2000;
        for waiting in [Waiting::Adaptive, Waiting::Block] {
            let (sender, mailbox) = mailbox();
            let writers = [0usize, 1].map(|writer| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for letter in 0..LETTERS {
                        assert_eq!(sender.send((writer, letter)), Ok(()));
                        if letter.is_multiple_of(64) {
                            // The reader falls asleep meanwhile.
                            std::thread::sleep(std::time::Duration::from_micros(200));
                        }
                    }
                })
            });
            let runtime = Runtime::new(Options { waiting, ..Options::default() }).expect("io_uring");
            runtime.block_on(async {
                let mut expected = [0; 2];
                for _ in 0..2 * LETTERS {
                    let (writer, letter) = mailbox.next().await;
                    assert_eq!(letter, expected[writer]);
                    expected[writer] += 1;
                }
            });
            writers.into_iter().for_each(|writer| writer.join().expect("it has sent all"));
        }
    }

    #[test]
    fn a_letter_to_nobody_comes_back() {
        let (sender, mailbox) = mailbox();
        assert_eq!(sender.send(1), Ok(()));
        drop(mailbox);
        assert_eq!(sender.send(2), Err(2));
    }
}
