//! Sleeping: on futex words alone, or in the ring together with I/O.
//!
//! | what is waited for              | how                                                                  |
//! |---------------------------------|----------------------------------------------------------------------|
//! | one session's word              | `futex`                                                              |
//! | words only                      | `futex_waitv`                                                        |
//! | words and I/O or descriptors    | `io_uring_enter`, the words by `IORING_OP_FUTEX_WAITV` (Linux 6.7)   |
//! | the same on an older kernel     | `io_uring_enter`, the words by a thread that waits for them ([`Watcher`]) |
//!
//! A wait that was left armed in the ring or with a watcher (because something else woke the thread) may take
//! the only wake of a peer, so as long as there may be one the thread sleeps in the ring.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::Core;
use super::remote::ON_BELL;
use super::source::Sleep;
use crate::sys::futex::{self, WAIT_MAX, Wait};
use crate::sys::ring::Released;
use crate::sys::watcher::Watcher;

/// Scratch memory of a sleep, and the watchers of an old kernel.
#[derive(Default)]
pub(super) struct Park {
    waits: RefCell<Vec<Wait>>,
    events: RefCell<Vec<RawFd>>,
    watchers: RefCell<Vec<Watcher>>,
}

impl Park {
    /// A source goes: nothing that was armed for it may be taken for a wait on what comes after it.
    pub fn forget(&self, core: &Core) {
        core.ring.borrow_mut().disarm();
        for watcher in self.watchers.borrow_mut().iter_mut() {
            watcher.watch(&[]);
        }
    }
}

/// Sleeps until there may be something to do.
pub(super) fn park(core: &Core) {
    let mut prepared = 0;
    let mut sleeps = core.tasks.remote.prepare_sleep();
    let mut waits = core.park.waits.borrow_mut();
    let mut events = core.park.events.borrow_mut();
    waits.clear();
    events.clear();
    waits.push(Wait { word: core.tasks.remote.bell(), expected: ON_BELL });
    while sleeps && let Some(source) = core.sources.at(prepared) {
        prepared += 1;
        match source.prepare_sleep() {
            Sleep::Work => sleeps = false,
            // Nobody else's: a doorbell.
            Sleep::Futex { word, expected } => waits.push(Wait { word, expected }),
            Sleep::EventFd(event) => events.push(event),
            Sleep::Nothing => {}
        }
    }
    // Looking again may have made tasks ready.
    if sleeps && core.tasks.ready_count() == 0 {
        let next = core.timers.borrow().next();
        let rest = core.rest.borrow().clone();
        if let Some(rest) = &rest {
            rest.begins();
        }
        sleep(core, &waits, &mut events, next.map(|deadline| deadline.saturating_duration_since(Instant::now())));
        if let Some(rest) = &rest {
            rest.ends();
        }
    }
    core.tasks.remote.cancel_sleep();
    for position in 0..prepared {
        if let Some(source) = core.sources.at(position) {
            source.cancel_sleep();
        }
    }
}

fn sleep(core: &Core, waits: &[Wait], events: &mut Vec<RawFd>, timeout: Option<Duration>) {
    let mut ring = core.ring.borrow_mut();
    let watched = !core.park.watchers.borrow().is_empty();
    if ring.is_idle() && !watched && events.is_empty() && waits.len() <= WAIT_MAX {
        // A word that is not mapped any more belongs to a source that will find out when it is polled.
        let _ = match waits {
            [_bell, wait] if !core.tasks.remote.prepare_sleep_on(wait.word) => Ok(()),
            [_bell, wait] => futex::wait_one(*wait, timeout),
            _ => futex::wait_any(waits, timeout),
        };
        return;
    }
    if ring.features().futex {
        ring.arm(waits, events);
    } else {
        let mut watchers = core.park.watchers.borrow_mut();
        let chunks = waits.chunks(Watcher::WORDS_MAX);
        while watchers.len() < chunks.len() {
            watchers.push(Watcher::start().expect("a thread and an eventfd for words on a kernel before 6.7"));
        }
        for (watcher, chunk) in watchers.iter_mut().zip(chunks) {
            watcher.watch(chunk);
        }
        events.extend(watchers.iter().map(|watcher| watcher.as_raw_fd()));
        ring.arm(&[], events);
    }
    let mut released = Released::default();
    ring.sleep(timeout, &mut released);
    drop(ring);
    released.finish();
}
