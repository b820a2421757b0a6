//! One connection: what it sends next, when it may receive, and how it ends.
//!
//! * At most one piece is with the kernel at a time: independent sends on one socket may overtake each other. What a short
//!   send leaves is sent next.
//! * Nothing of a send is forgotten: each accepted send ends in exactly one `Released`, and `Closed` comes after all of them.
//! * Before pages are submitted again after a short send, their lease must still be live; else the connection is reset.
//!   While their lender is between two epochs they wait.
//! * Receiving stops while [`RECEIVE_WINDOW`] bytes wait to be consumed, or the client's event queue is full.
//! * An orderly end sends everything, shuts the sending side, discards what the peer still says until its end of stream (else
//!   the kernel would answer with a reset that destroys the last bytes on their way), and closes.
//! * A peer that takes less than [`Limits::progress_bytes`] in [`Limits::stall`] while bytes wait for it is reset: its leases
//!   are somebody else's cache.

use std::collections::VecDeque;
use std::time::Duration;

use kernel_ipc::lease::Liveness;

use protocol::net::{RECEIVE_WINDOW, Reason, Released, SendError, SendFlags};

use super::events::{Entry, EventQueue, MAX_INLINE_BYTES, Occurrence};
use super::zero_copy::{Policy, ZeroCopy};

/// Bytes to be sent: a copied header or leased pages. Clones are further claims to the same bytes.
pub trait Chunk: Clone {
    /// Bytes left.
    fn length(&self) -> usize;
    /// Drops the first `bytes` of what is left.
    fn advance(&mut self, bytes: usize);
    /// Leased pages, and not copied bytes.
    fn is_pages(&self) -> bool;
    /// Whether the lease can still be read (copied bytes can).
    fn liveness(&self) -> Liveness;
}

/// What bounds a connection, and how it sends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sends that wait or are under way, notifications included.
    pub sends: usize,
    /// Most bytes of accepted sends that the kernel has not taken.
    pub bytes: u64,
    /// Time without progress after which the connection is reset.
    pub stall: Duration,
    /// What the peer must take in that time.
    pub progress_bytes: u64,
    /// Time for the peer's end of stream after everything was delivered and this side was shut.
    pub linger: Duration,
    /// Which pages are sent without a copy.
    pub zero_copy: Policy,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sends: 16,
            bytes: 16 << 20,
            stall: Duration::from_secs(60),
            progress_bytes: 16 << 10,
            linger: Duration::from_secs(5),
            zero_copy: Policy::default(),
        }
    }
}

/// How the kernel used the pages of a zero-copy piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The pages themselves went out.
    ZeroCopy,
    /// It copied them after all.
    Copied,
    /// It did not say.
    Unknown,
}

/// What goes to the kernel in one operation.
#[derive(Debug)]
pub struct Piece<C> {
    /// The send that it belongs to.
    pub send: u64,
    /// The bytes; one chunk of pages if `zero_copy`.
    pub chunks: Vec<C>,
    /// More follows at once.
    pub more: bool,
    /// Send without copying.
    pub zero_copy: bool,
}

/// A step of the end of a connection, for the shell to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Shut the sending side. Once.
    ShutdownWrite,
    /// Reset the connection, so that the operations that are under way end. Once.
    Abort,
    /// No operation is under way: close the descriptor (zero-copy notifications may follow). Once.
    Close,
}

#[derive(Debug)]
struct Outgoing<C> {
    id: u64,
    flags: SendFlags,
    bytes: u64,
    /// What the kernel has not taken, in order.
    chunks: VecDeque<C>,
    /// Zero-copy pieces whose notification is missing.
    notifications: u32,
    how: Released,
    /// `Sent` was reported.
    sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Told to close; the queue is being sent.
    Draining,
    /// Sending side shut, all sent; waiting for the peer's end of stream.
    Lingering,
    /// Over for `Reason`; waiting for operations that are under way.
    Ending(Reason),
    /// The descriptor is closed; waiting for notifications.
    Closing(Reason),
    Over,
}

/// See the module's contract.
#[derive(Debug)]
pub struct Connection<C> {
    id: u64,
    limits: Limits,
    phase: Phase,
    outgoing: VecDeque<Outgoing<C>>,
    queued_bytes: u64,
    sending: bool,
    /// The client said FIN: nothing more is accepted.
    finished: bool,
    shutdown: Step,
    abort: Step,
    receiving: bool,
    unconsumed: usize,
    input_ended: bool,
    zero_copy: ZeroCopy,
    sent_bytes: u64,
    progress: Progress,
    /// When the peer was first seen to have everything.
    lingering_since: Option<Duration>,
    over: Option<Reason>,
}

/// An action of the shell that happens at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    NotYet,
    Due,
    Taken,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    since: Duration,
    delivered: u64,
}

impl<C: Chunk> Connection<C> {
    /// A connection accepted at `now`; `local` when the peer is on this machine.
    pub fn new(id: u64, limits: Limits, local: bool, now: Duration) -> Connection<C> {
        Connection {
            id,
            limits,
            phase: Phase::Open,
            outgoing: VecDeque::new(),
            queued_bytes: 0,
            sending: false,
            finished: false,
            shutdown: Step::NotYet,
            abort: Step::NotYet,
            receiving: false,
            unconsumed: 0,
            input_ended: false,
            zero_copy: ZeroCopy::new(limits.zero_copy, local),
            sent_bytes: 0,
            progress: Progress { since: now, delivered: 0 },
            lingering_since: None,
            over: None,
        }
    }

    /// Whether everything has ended and been told.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Why it is over, once it is.
    pub fn over(&self) -> Option<Reason> {
        self.over
    }

    /// Whether it is neither ending nor over.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether everything is sent and it only waits for its end, or is ending.
    pub fn is_finishing(&self) -> bool {
        !matches!(self.phase, Phase::Open | Phase::Draining)
    }

    /// Whether nothing will be received any more.
    pub fn is_deaf(&self) -> bool {
        self.input_ended || matches!(self.phase, Phase::Ending(_) | Phase::Closing(_) | Phase::Over)
    }

    /// Whether [`Self::next_end`] or [`Self::is_over`] has news.
    pub fn has_end(&self) -> bool {
        self.shutdown == Step::Due
            || self.abort == Step::Due
            || self.is_over()
            || (matches!(self.phase, Phase::Ending(_)) && !self.sending && !self.receiving)
    }

    /// Whether [`Self::tick`] has something to watch.
    pub fn needs_ticks(&self) -> bool {
        match self.phase {
            Phase::Open => !self.outgoing.is_empty(),
            Phase::Draining | Phase::Lingering => true,
            Phase::Ending(_) | Phase::Closing(_) | Phase::Over => false,
        }
    }

    // Receiving.

    /// Says whether to receive now; if so a receive counts as under way. `full`: the client's event queue is full.
    pub fn begin_receive(&mut self, full: bool) -> bool {
        let wanted = match self.phase {
            Phase::Open => !full && self.unconsumed < RECEIVE_WINDOW,
            // What comes is discarded, so there is no reason to wait.
            Phase::Draining | Phase::Lingering => true,
            _ => false,
        };
        let begin = wanted && !self.receiving && !self.input_ended;
        self.receiving |= begin;
        begin
    }

    /// A receive has ended with bytes; none means the end of the stream.
    pub fn received(&mut self, bytes: &[u8], events: &mut EventQueue) {
        self.receiving = false;
        if bytes.is_empty() {
            self.input_ended = true;
            if self.phase == Phase::Open {
                events.push(Entry::new(self.id, Occurrence::Finished));
            }
        } else if self.phase == Phase::Open {
            self.unconsumed += bytes.len();
            for piece in bytes.chunks(MAX_INLINE_BYTES) {
                events.push(Entry::new(self.id, Occurrence::Received(piece.to_vec())));
            }
        }
        self.settle(events);
    }

    /// A receive has failed: the connection is gone.
    pub fn receive_failed(&mut self, events: &mut EventQueue) {
        self.receiving = false;
        self.abort(Reason::Reset, events);
        self.settle(events);
    }

    /// The client has consumed so many received bytes.
    pub fn consumed(&mut self, bytes: usize) {
        self.unconsumed = self.unconsumed.saturating_sub(bytes);
    }

    // Sending.

    /// Whether a send would be accepted; asked before its leases are pinned.
    ///
    /// # Errors
    /// `Closed` or `Full`.
    pub fn may_send(&self) -> Result<(), SendError> {
        if self.phase != Phase::Open || self.finished {
            return Err(SendError::Closed);
        }
        if self.outgoing.len() >= self.limits.sends || self.queued_bytes >= self.limits.bytes {
            return Err(SendError::Full);
        }
        Ok(())
    }

    /// Accepts a send.
    ///
    /// # Errors
    /// As [`Self::may_send`]; nothing was accepted then.
    pub fn send(&mut self, id: u64, flags: SendFlags, chunks: Vec<C>, now: Duration) -> Result<(), SendError> {
        self.may_send()?;
        if self.queued_bytes == 0 {
            // Time without anything to send was no stall.
            self.progress.since = now;
        }
        let chunks: VecDeque<C> = chunks.into_iter().filter(|chunk| chunk.length() > 0).collect();
        let bytes = chunks.iter().map(|chunk| chunk.length() as u64).sum();
        self.queued_bytes += bytes;
        self.finished |= flags.contains(SendFlags::FIN) || flags.contains(SendFlags::CLOSE);
        if flags.contains(SendFlags::CLOSE) {
            self.phase = Phase::Draining;
        }
        self.outgoing.push_back(Outgoing {
            id,
            flags,
            bytes,
            chunks,
            notifications: 0,
            how: Released::Copied,
            sent: false,
        });
        Ok(())
    }

    /// The next piece for the kernel, if none is under way. Reports sends that have nothing to give to it.
    pub fn next_piece(&mut self, events: &mut EventQueue) -> Option<Piece<C>> {
        if self.sending || matches!(self.phase, Phase::Ending(_) | Phase::Closing(_) | Phase::Over) {
            return None;
        }
        self.settle(events);
        let at = self.outgoing.iter().position(|outgoing| !outgoing.sent)?;
        let outgoing = self.outgoing.get_mut(at)?;
        if outgoing.chunks.iter().any(|chunk| chunk.liveness() == Liveness::Waiting) {
            return None;
        }
        if outgoing.chunks.iter().any(|chunk| chunk.liveness() == Liveness::Ended) {
            self.abort(Reason::StaleLease, events);
            self.settle(events);
            return None;
        }
        let mut chunks = Vec::with_capacity(outgoing.chunks.len());
        let mut zero_copy = false;
        while let Some(chunk) = outgoing.chunks.front() {
            if chunk.is_pages() && self.zero_copy.choose(chunk.length()) {
                // A zero-copy piece is one chunk of its own, so that one notification belongs to it.
                zero_copy = chunks.is_empty();
                if zero_copy {
                    chunks.extend(outgoing.chunks.pop_front());
                }
                break;
            }
            chunks.extend(outgoing.chunks.pop_front());
        }
        let more = !outgoing.chunks.is_empty() || outgoing.flags.contains(SendFlags::MORE);
        self.sending = true;
        Some(Piece { send: outgoing.id, chunks, more, zero_copy })
    }

    /// The piece under way has ended: the kernel took `bytes` of it, or the connection is gone (`Err`). `piece` has the
    /// chunks as they were submitted; of a zero-copy piece that the kernel will still notify about, `notifies` is true.
    pub fn sent(
        &mut self,
        piece: Piece<C>,
        result: Result<usize, ()>,
        notifies: bool,
        now: Duration,
        events: &mut EventQueue,
    ) {
        self.sending = false;
        let taken = result.unwrap_or(0);
        self.sent_bytes += taken as u64;
        self.queued_bytes = self.queued_bytes.saturating_sub(taken as u64);
        if let Some(outgoing) = self.outgoing.iter_mut().find(|outgoing| outgoing.id == piece.send && !outgoing.sent) {
            outgoing.notifications += u32::from(notifies);
            let mut left = taken;
            let mut rest = Vec::new();
            for mut chunk in piece.chunks {
                let step = left.min(chunk.length());
                left -= step;
                chunk.advance(step);
                if chunk.length() > 0 {
                    rest.push(chunk);
                }
            }
            for chunk in rest.into_iter().rev() {
                outgoing.chunks.push_front(chunk);
            }
        }
        match result {
            Ok(_) => {
                if self.queued_bytes == 0 {
                    self.progress.since = now;
                }
            }
            Err(()) => self.abort(Reason::Reset, events),
        }
        self.settle(events);
    }

    /// The kernel has let go of the pages of one zero-copy piece of `send`.
    pub fn notified(&mut self, send: u64, usage: Usage, events: &mut EventQueue) {
        self.zero_copy.learn(usage);
        if let Some(outgoing) =
            self.outgoing.iter_mut().find(|outgoing| outgoing.id == send && outgoing.notifications > 0)
        {
            outgoing.notifications -= 1;
            if usage == Usage::ZeroCopy && outgoing.how == Released::Copied {
                outgoing.how = Released::ZeroCopy;
            }
        }
        self.settle(events);
    }

    // Ending.

    /// Closes in order, after what was accepted is sent.
    pub fn close(&mut self, now: Duration, events: &mut EventQueue) {
        if self.phase == Phase::Open {
            self.finished = true;
            self.phase = Phase::Draining;
            self.progress.since = now;
        }
        self.settle(events);
    }

    /// Ends at once; the peer sees a reset.
    pub fn reset(&mut self, reason: Reason, events: &mut EventQueue) {
        self.abort(reason, events);
        self.settle(events);
    }

    /// The next step of the end, if one is due. `undelivered` is what the socket holds that the peer has not acknowledged;
    /// it is asked only at the end of a connection.
    pub fn next_end(&mut self, undelivered: impl FnOnce() -> u64, events: &mut EventQueue) -> Option<End> {
        self.settle(events);
        if self.shutdown == Step::Due {
            self.shutdown = Step::Taken;
            return Some(End::ShutdownWrite);
        }
        if self.abort == Step::Due {
            self.abort = Step::Taken;
            return Some(End::Abort);
        }
        // The descriptor stays open until the last notification, and until the peer has everything: with the lingering time
        // of zero that these sockets have, closing throws away what is queued.
        if self.phase == Phase::Lingering && self.input_ended && self.outgoing.is_empty() && undelivered() == 0 {
            self.phase = Phase::Ending(Reason::Closed);
        }
        if let Phase::Ending(reason) = self.phase
            && !self.sending
            && !self.receiving
        {
            self.phase = Phase::Closing(reason);
            self.settle(events);
            return Some(End::Close);
        }
        None
    }

    /// Watches time. `undelivered` as in [`Self::next_end`].
    pub fn tick(&mut self, now: Duration, undelivered: u64, events: &mut EventQueue) {
        if !self.needs_ticks() {
            return;
        }
        let delivered = self.sent_bytes.saturating_sub(undelivered);
        if delivered >= self.progress.delivered.saturating_add(self.limits.progress_bytes) {
            self.progress = Progress { since: now, delivered };
        }
        if self.phase == Phase::Lingering && undelivered == 0 {
            let since = *self.lingering_since.get_or_insert(now);
            if now.saturating_sub(since) >= self.limits.linger {
                self.abort(Reason::Closed, events);
            }
        } else if now.saturating_sub(self.progress.since) >= self.limits.stall {
            self.abort(Reason::TimedOut, events);
        }
        self.settle(events);
    }

    fn abort(&mut self, reason: Reason, events: &mut EventQueue) {
        if matches!(self.phase, Phase::Ending(_) | Phase::Closing(_) | Phase::Over) {
            return;
        }
        // A peer that goes away while this side only waits for its end of stream has everything that matters.
        let reason = if self.phase == Phase::Lingering && reason == Reason::Reset { Reason::Closed } else { reason };
        self.phase = Phase::Ending(reason);
        self.abort = Step::Due;
        self.shutdown = Step::Taken;
        self.settle(events);
    }

    /// Draws every conclusion of what is known: reports sends, moves on to the next phase.
    fn settle(&mut self, events: &mut EventQueue) {
        self.report_sends(events);
        let all_sent = !self.sending && self.outgoing.iter().all(|outgoing| outgoing.sent);
        if self.finished && all_sent && self.shutdown == Step::NotYet {
            self.shutdown = Step::Due;
        }
        if self.phase == Phase::Draining && all_sent {
            self.phase = Phase::Lingering;
        }
        if let Phase::Closing(reason) = self.phase
            && self.outgoing.is_empty()
        {
            self.phase = Phase::Over;
            self.over = Some(reason);
            events.push(Entry::new(self.id, Occurrence::Closed(reason)));
        }
    }

    /// Reports what is sent, in order, and what is released, in any order.
    fn report_sends(&mut self, events: &mut EventQueue) {
        let ended = matches!(self.phase, Phase::Ending(_) | Phase::Closing(_));
        // While a piece is under way its chunks are with the kernel; its send is the first that is not sent.
        let mut waiting = self.sending;
        for outgoing in &mut self.outgoing {
            if outgoing.sent || waiting {
                continue;
            }
            if outgoing.chunks.is_empty() {
                outgoing.sent = true;
                events.push(Entry::new(self.id, Occurrence::Sent { send: outgoing.id, bytes: outgoing.bytes }));
            } else if ended {
                outgoing.chunks.clear();
                outgoing.sent = true;
                outgoing.how = Released::Dropped;
            } else {
                waiting = true;
            }
        }
        self.outgoing.retain(|outgoing| {
            let released = outgoing.sent && outgoing.notifications == 0;
            if released {
                events.push(Entry::new(self.id, Occurrence::Released { send: outgoing.id, how: outgoing.how }));
            }
            !released
        });
    }
}

mod recovered;

pub use recovered::{Recovered, RecoveredSend};

#[cfg(test)]
mod tests;
