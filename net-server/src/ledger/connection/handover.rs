//! What a client's next run has to know of a connection.
//!
//! - Each send names the request that it answers. Of the last answer whose first send is over the record remembers where it
//!   begins, and its head; of later ones the sends themselves are there.
//! - So the position at which our stream stopped says which answer it stands in, and how much of that is sent.

use protocol::net::NO_REQUEST;

use super::{ConnectionRecord, Flags, KeptSend, MAX_HEAD, RING, at};
use crate::core::position::Position;

/// An answer: where its request begins in the peer's stream, where it begins in ours, and its first send's header.
struct Answer {
    request: u64,
    begin: u64,
    head: Vec<u8>,
}

impl ConnectionRecord {
    /// Remembers where the answer begins that this send is a part of, and how.
    pub(super) fn remember_answer(&self, kept: &KeptSend) {
        let Some(known) = self.answer() else { return };
        let begins = known.request != kept.request || (known.head.is_empty() && !kept.header.is_empty());
        if begins && known.begin <= kept.begin {
            let head = kept.header.get(..MAX_HEAD).unwrap_or(&kept.header);
            let known_whole = kept.header.len() <= MAX_HEAD;
            self.set_answer(if known_whole { kept.request } else { NO_REQUEST }, kept.begin, head);
        }
    }

    fn set_answer(&self, request: u64, begin: u64, head: &[u8]) {
        // Nothing can be gone on with until all of it is there.
        self.store(at::REQUEST, NO_REQUEST);
        self.store(at::ANSWER, begin);
        self.store(at::HEAD_LENGTH, head.len() as u64);
        self.ledger.write(self.base() + at::HEAD, head);
        self.store(at::REQUEST, request);
    }

    /// The answer whose first send is over; before any, one of no bytes to the first request. `None`: it makes no sense.
    fn answer(&self) -> Option<Answer> {
        let length = usize::try_from(self.load(at::HEAD_LENGTH)).ok().filter(|length| *length <= MAX_HEAD)?;
        let mut head = vec![0; length];
        self.ledger.read(self.base() + at::HEAD, &mut head);
        Some(Answer { request: self.load(at::REQUEST), begin: self.load(at::ANSWER), head })
    }

    /// Makes a connection whose client has died ready for the client's next run: everything that the kernel has not taken of
    /// the answers is forgotten, and what is received counts again from the request on whose answer it stopped. Nobody else
    /// uses the connection. False: it cannot be gone on with.
    pub(crate) fn hand_over(&self, at: &Position) -> bool {
        let sends = self.sends();
        let flags = self.flags();
        let lost = [Flags::RESET, Flags::LOST, Flags::CLOSING, Flags::FINISHED].into_iter().any(|flag| flags.has(flag));
        if lost || flags.over().is_some() || at.shut {
            return false;
        }
        let Some(Answer { request, begin, head }) = self.answer_at(&sends, at.sent) else { return false };
        let received = self.can_have_received(at.taken, RING);
        let sent = at.sent.checked_sub(begin);
        let (Some(sent), true) = (sent, received && request <= at.taken && request >= self.load(at::TRIMMED)) else {
            return false;
        };
        if head.len() > MAX_HEAD || (sent > 0 && head.is_empty()) {
            return false;
        }
        self.belongs_to(0, 0);
        // An answer of which nothing is sent may become another one.
        self.set_answer(request, begin, if sent > 0 { &head } else { &[] });
        for kept in &sends {
            self.forget_send(kept.id);
        }
        self.store(at::FREED_END, at.sent);
        self.store(at::FREED_ID, 0);
        self.store(at::RECEIVED, at.taken);
        self.store(at::CONSUMED, request);
        self.store(at::RESUMED, sent);
        self.store(at::FLAGS, Flags::HANDED_OVER.0 | Flags::RESUMED.0);
        true
    }

    /// The answer in which our stream stands at a position.
    fn answer_at(&self, sends: &[KeptSend], position: u64) -> Option<Answer> {
        let known = self.answer();
        let Some(present) = sends.iter().rev().find(|kept| kept.begin <= position) else {
            return known.filter(|known| known.request != NO_REQUEST);
        };
        if present.request == NO_REQUEST {
            return None;
        }
        let first = sends.iter().find(|kept| kept.request == present.request)?;
        match known.filter(|known| known.request == present.request && !known.head.is_empty()) {
            Some(known) => Some(known),
            None => Some(Answer { request: first.request, begin: first.begin, head: first.header.clone() }),
        }
    }

    /// What the client has to be told of its last run: the position of a request, how many bytes of its answer are sent, and how
    /// that began.
    pub(crate) fn resumed(&self) -> Option<(u64, u64, Vec<u8>)> {
        let answer = self.answer().filter(|_| self.flags().has(Flags::RESUMED))?;
        Some((answer.request, self.load(at::RESUMED), answer.head))
    }

    /// The client knows it.
    pub(crate) fn resumed_told(&self) {
        self.store(at::FLAGS, self.flags().0 & !Flags::RESUMED.0);
    }
}
