//! What a caller waits for: a free slot, then its answer.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{ClientSession, Inner, Waiter};
use crate::error::{Cause, Failure};
use crate::session::{Payload, Reply, Request, now};
use crate::wire::{INLINE_BYTES, inline_bytes};

/// Waits for a free slot.
pub(super) struct FreeSlot<'a> {
    pub(super) session: &'a Inner,
    pub(super) deadline: u64,
    pub(super) ticket: Option<u64>,
}

impl Future for FreeSlot<'_> {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let session = self.session;
        if let Some(refusal) = session.ended.get() {
            self.ticket = None;
            return Poll::Ready(Err(Failure::not_executed(refusal)));
        }
        let mut waiters = session.waiters.borrow_mut();
        let first = waiters.front().map(|waiter| waiter.ticket);
        if first == self.ticket && session.slots.borrow().has_free() && !session.suspended.get() {
            if self.ticket.take().is_some() {
                waiters.pop_front();
                drop(waiters);
                // There may be more free slots than this caller takes.
                session.slot_is_free();
            }
            return Poll::Ready(Ok(()));
        }
        if self.deadline != 0 && self.deadline <= now() {
            return Poll::Ready(Err(Failure::not_executed(Cause::Deadline)));
        }
        match self.ticket {
            Some(ticket) => {
                if let Ok(place) = place(&waiters, ticket) {
                    waiters[place].waker.clone_from(cx.waker());
                }
            }
            None if waiters.len() + session.early.get() >= session.waiters_max.get() => {
                return Poll::Ready(Err(Failure::not_executed(Cause::BUSY)));
            }
            None => {
                let ticket = session.next_ticket.get();
                session.next_ticket.set(ticket + 1);
                waiters.push_back(Waiter { ticket, waker: cx.waker().clone(), deadline: self.deadline });
                self.ticket = Some(ticket);
                if self.deadline < session.timer_at.get() && self.deadline != 0 {
                    session.arm(self.deadline);
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for FreeSlot<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut waiters = self.session.waiters.borrow_mut();
            if let Ok(place) = place(&waiters, ticket) {
                waiters.remove(place);
            }
            drop(waiters);
            if self.session.slots.borrow().has_free() {
                self.session.slot_is_free();
            }
        }
    }
}

/// Where a ticket stands. Tickets rise.
fn place(waiters: &VecDeque<Waiter>, ticket: u64) -> Result<usize, usize> {
    waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket)
}

/// What stands in a slot's cell for its caller.
#[derive(Default)]
pub(super) enum Answered {
    /// Nothing yet.
    #[default]
    Nothing,
    /// A reply that came whole in its descriptor, as most do: so short that it is copied once, when it is used.
    Inline { operation_error: Option<u16>, words: [u64; 2], length: u8 },
    /// Any other.
    Reply(Reply),
    /// The call failed.
    Failed(Failure),
}

/// A call that was published and has not ended for its caller. Dropping it parks its slot and sends a cancel.
pub(crate) struct Sent {
    session: ClientSession,
    slot: u16,
    seq: u64,
    /// As on the wire.
    deadline: u64,
    taken: bool,
}

impl ClientSession {
    /// Publishes a call at once, if there is a free slot and nobody waits for one.
    ///
    /// # Errors
    /// As [`call`](ClientSession::call).
    #[inline]
    pub(crate) fn begin(&self, request: &Request<'_>) -> Result<Option<Sent>, Failure> {
        let inner = &self.0.inner;
        let (extent, deadline) = inner.admit(request)?;
        if !inner.has_turn() || inner.is_early(request) {
            return Ok(None);
        }
        let sent = self.submitted(inner.submit(request, extent, deadline)?, deadline);
        inner.look_at_once();
        Ok(Some(sent))
    }

    pub(super) fn submitted(&self, (slot, seq): (u16, u64), deadline: u64) -> Sent {
        Sent { session: self.clone(), slot, seq, deadline, taken: false }
    }
}

impl Inner {
    /// Ready when the request can be published: a slot is free, it is this caller's turn, and what it depends on is with the
    /// host.
    pub(super) async fn turn(&self, request: &Request<'_>, deadline: u64) -> Result<(), Failure> {
        self.free_slot(deadline).await?;
        while self.is_early(request) {
            self.waits_early()?.of(self.next_verdict(deadline)).await?;
            self.free_slot(deadline).await?;
        }
        Ok(())
    }

    /// One more caller waits before its call has a slot, for something else than that.
    ///
    /// # Errors
    /// Too many wait.
    fn waits_early(&self) -> Result<Early<'_>, Failure> {
        if self.waiters.borrow().len() + self.early.get() >= self.waiters_max.get() {
            return Err(Failure::not_executed(Cause::BUSY));
        }
        self.early.set(self.early.get() + 1);
        Ok(Early(self))
    }
}

/// A caller that is counted among those that wait, until this is dropped.
struct Early<'a>(&'a Inner);

impl Early<'_> {
    async fn of<T>(self, wait: impl Future<Output = T>) -> T {
        wait.await
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        self.0.early.set(self.0.early.get() - 1);
    }
}

impl Sent {
    /// Its slot and seq.
    pub(super) fn call(&self) -> (u16, u64) {
        (self.slot, self.seq)
    }

    /// What is left of its deadline.
    pub(crate) fn left(&self) -> Option<Duration> {
        (self.deadline != 0).then(|| Duration::from_nanos(self.deadline.saturating_sub(now())))
    }

    /// Hands the answer, when it is there, to `short` (the operation's error and the payload of a reply that brought
    /// nothing else and is at most [`INLINE_BYTES`] long) or to `other`.
    ///
    /// Two ways, because a short reply must not be copied as a part of something larger: a load that is wider than the
    /// stores before it waits until they have left for the cache, behind every line that another core still has.
    #[inline]
    pub(crate) fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        short: impl FnOnce(&ClientSession, Option<u16>, &[u8]) -> T,
        other: impl FnOnce(&ClientSession, Result<Reply, Failure>) -> T,
    ) -> Poll<T> {
        let cell = &self.session.0.inner.cells[self.slot];
        let mut answer = cell.answer.borrow_mut();
        if let Answered::Inline { operation_error, words, length } = &*answer {
            let (operation_error, words, length) = (*operation_error, *words, usize::from(*length));
            *answer = Answered::Nothing;
            drop(answer);
            self.end();
            return Poll::Ready(short(
                &self.session,
                operation_error,
                &inline_bytes(words)[..length.min(INLINE_BYTES)],
            ));
        }
        let ended = match std::mem::take(&mut *answer) {
            Answered::Reply(reply) => Ok(reply),
            Answered::Failed(failure) => Err(failure),
            Answered::Nothing | Answered::Inline { .. } => {
                drop(answer);
                return self.wait(cx).map(|failure| other(&self.session, Err(failure)));
            }
        };
        drop(answer);
        self.end();
        Poll::Ready(other(&self.session, ended))
    }

    /// Takes the call from its caller: where the answer will stand.
    pub(super) fn unwanted(mut self) -> (ClientSession, u16) {
        self.taken = true;
        self.session.0.inner.cells[self.slot].deadline.set(0);
        (self.session.clone(), self.slot)
    }

    /// The answer is out of the cell: the slot is free.
    #[inline]
    fn end(&mut self) {
        let inner = &self.session.0.inner;
        inner.cells[self.slot].deadline.set(0);
        inner.slots.borrow_mut().take(self.slot);
        self.taken = true;
        inner.slot_is_free();
    }

    /// There is no answer: the deadline has passed, or the caller is woken when there is one.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let inner = &self.session.0.inner;
        let cell = &inner.cells[self.slot];
        if cell.is_late.get() {
            self.taken = true;
            inner.give_up(self.slot, self.seq);
            return Poll::Ready(Failure::unknown(Cause::Deadline));
        }
        cell.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        Poll::Pending
    }
}

impl Future for Sent {
    type Output = Result<Reply, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let short = |_: &_, operation_error, payload: &[u8]| {
            Ok(Reply { operation_error, payload: Payload::from(payload), ..Reply::default() })
        };
        self.poll_with(cx, short, |_, other| other)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.taken {
            self.session.0.inner.give_up(self.slot, self.seq);
        }
    }
}
