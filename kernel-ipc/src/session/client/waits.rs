//! What a caller waits for: a free slot, then its answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{Inner, Waiter};
use crate::error::{Cause, Failure};
use crate::session::{Reply, now};

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
                if let Some(waiter) = waiters.iter_mut().find(|waiter| waiter.ticket == ticket) {
                    waiter.waker.clone_from(cx.waker());
                }
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
            self.session.waiters.borrow_mut().retain(|waiter| waiter.ticket != ticket);
            if self.session.slots.borrow().has_free() {
                self.session.slot_is_free();
            }
        }
    }
}

/// Waits for the answer to a published call.
pub(super) struct Answer<'a> {
    pub(super) session: &'a Inner,
    pub(super) slot: u16,
    pub(super) seq: u64,
    pub(super) taken: bool,
}

impl Future for Answer<'_> {
    type Output = Result<Reply, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let cell = &self.session.cells[usize::from(self.slot)];
        let answer = cell.answer.take();
        if let Some(answer) = answer {
            cell.deadline.set(0);
            self.session.slots.borrow_mut().take(self.slot);
            self.taken = true;
            self.session.slot_is_free();
            return Poll::Ready(answer);
        }
        if cell.is_late.get() {
            self.taken = true;
            self.session.give_up(self.slot, self.seq);
            return Poll::Ready(Err(Failure::unknown(Cause::Deadline)));
        }
        cell.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        Poll::Pending
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.session.give_up(self.slot, self.seq);
        }
    }
}
