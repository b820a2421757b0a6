//! How many system calls this thread has made to wait, to wake and to do I/O: a busy server needs far less than one for
//! each call that it serves, and `tests/cost.rs` holds it to that.

use std::cell::Cell;

/// System calls of one thread since its start, by what they were for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemCalls {
    /// `io_uring_enter`: I/O submitted and reaped, and sleeping for I/O and peers together.
    pub ring: u64,
    /// `futex_waitv`, and clearing an `eventfd`: sleeping for peers alone.
    pub sleeps: u64,
    /// `futex` and `eventfd`: waking peers.
    pub wakes: u64,
    /// `sched_yield`.
    pub yields: u64,
    /// `send` and `recv` on the connections of sessions over sockets.
    pub sockets: u64,
}

impl SystemCalls {
    /// All of them.
    pub fn total(self) -> u64 {
        self.ring + self.sleeps + self.wakes + self.yields + self.sockets
    }

    /// Those since `before`.
    pub fn since(self, before: SystemCalls) -> SystemCalls {
        SystemCalls {
            ring: self.ring - before.ring,
            sleeps: self.sleeps - before.sleeps,
            wakes: self.wakes - before.wakes,
            yields: self.yields - before.yields,
            sockets: self.sockets - before.sockets,
        }
    }
}

thread_local! {
    static MADE: Cell<SystemCalls> = const { Cell::new(SystemCalls { ring: 0, sleeps: 0, wakes: 0, yields: 0, sockets: 0 }) };
}

/// What this thread has made so far.
pub fn made() -> SystemCalls {
    MADE.with(Cell::get)
}

/// Counts a call. Never in a hot path without one: the system call is dearer by far.
pub(crate) fn count(add: impl FnOnce(&mut SystemCalls)) {
    MADE.with(|made| {
        let mut now = made.get();
        add(&mut now);
        made.set(now);
    });
}
