//! One-way messages: calls whose answer nobody waits for.
//!
//! - A message takes a slot until it is answered, so the slots are its credit: who sends faster than the host serves waits
//!   for one, in turn with all other callers.
//! - Unlike a call that was given up it is not cancelled, and when a host dies it is sent again as its retry class allows.
//! - What its answer brings is given back. Whether it failed is counted.

use std::cell::Cell;

use super::waits::{Answered, Sent};
use super::{ClientSession, Inner};
use crate::error::Failure;
use crate::runtime::Changes;
use crate::session::Request;

/// What became of a session's one-way messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Sent, and not answered yet.
    pub under_way: u64,
    /// Answered: the operation succeeded.
    pub done: u64,
    /// Answered by an error of the operation, refused, or lost with the host.
    pub failed: u64,
}

#[derive(Default)]
pub(super) struct Mailbox {
    messages: Cell<Messages>,
    /// Happens when one is answered.
    answers: Changes,
}

impl Mailbox {
    fn count(&self, count: impl FnOnce(&mut Messages)) {
        let mut messages = self.messages.get();
        count(&mut messages);
        self.messages.set(messages);
    }
}

impl ClientSession {
    /// Sends one message as soon as there is a slot for it. Leases and capabilities among the arguments have to be kept
    /// until it is [settled](Self::settled).
    ///
    /// # Errors
    /// It was not sent.
    pub async fn post(&self, request: Request<'_>) -> Result<(), Failure> {
        let inner = &self.0.inner;
        let (extent, deadline) = inner.admit(&request)?;
        inner.turn(&request, deadline).await?;
        self.submitted(inner.submit(&request, extent, deadline)?, deadline).post();
        inner.look_at_once();
        Ok(())
    }

    /// What became of the messages so far.
    pub fn messages(&self) -> Messages {
        self.0.inner.mailbox.messages.get()
    }

    /// Waits until every message that was sent is answered.
    pub async fn settled(&self) -> Messages {
        let mailbox = &self.0.inner.mailbox;
        while mailbox.messages.get().under_way > 0 {
            mailbox.answers.next().await;
        }
        mailbox.messages.get()
    }
}

impl Sent {
    /// Nobody waits for the answer.
    pub(crate) fn post(self) {
        let (session, slot) = self.unwanted();
        let inner = &session.0.inner;
        inner.mailbox.count(|messages| messages.under_way += 1);
        if !inner.slots.borrow_mut().post(slot) {
            let answered = inner.cells[slot].answer.take();
            inner.settle(&answered);
        }
    }
}

impl Inner {
    /// A message was answered: its slot is free.
    pub(super) fn settle(&self, answered: &Answered) {
        self.release(answered);
        let failed = match answered {
            Answered::Inline { operation_error, .. } => operation_error.is_some(),
            Answered::Reply(reply) => reply.operation_error.is_some(),
            Answered::Failed(_) | Answered::Nothing => true,
        };
        self.mailbox.count(|messages| {
            messages.under_way -= 1;
            match failed {
                true => messages.failed += 1,
                false => messages.done += 1,
            }
        });
        self.mailbox.answers.happen();
        self.slot_is_free();
    }
}
