//! When a client is worth waking: for an answer, and not for hearing that a release was read.
//!
//! - Nobody waits for the answer of a release or a cancel, only for its control slot, and only when all are taken. So
//!   such answers lie in the ring until something else is sent, or until there are as many as control slots: a client
//!   without a free one has been told of one then.
//! - A client that is awake sees them at once, for it reads the ring and not its tail.

use std::cell::Cell;

use crate::wire::{CONTROL_SLOTS, control};

/// Counts the answers that nobody waits for.
#[derive(Default)]
pub(super) struct Quiet {
    /// Messages sent when the client was last woken.
    told: Cell<u64>,
    /// Quiet answers since.
    answers: Cell<u64>,
}

impl Quiet {
    /// A control call was answered.
    pub fn answered(&self, operation: u16) {
        if matches!(operation, control::CANCEL | control::RELEASE_HANDLES | control::RELEASE_LEASES) {
            self.answers.set(self.answers.get() + 1);
        }
    }

    /// Whether to wake the client, if it sleeps, when so many messages have been sent in all; if so it counts as told.
    pub fn is_over(&self, sent: u64) -> bool {
        let untold = sent.wrapping_sub(self.told.get());
        let over = untold > self.answers.get() || self.answers.get() >= u64::from(CONTROL_SLOTS);
        if over {
            self.told.set(sent);
            self.answers.set(0);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_alone_wakes_nobody_and_an_answer_brings_it_along() {
        let quiet = Quiet::default();
        assert!(!quiet.is_over(0));
        quiet.answered(control::RELEASE_LEASES);
        assert!(!quiet.is_over(1));
        assert!(!quiet.is_over(1));
        assert!(quiet.is_over(2), "an answer");
        assert!(!quiet.is_over(2));
        quiet.answered(control::CANCEL);
        assert!(!quiet.is_over(3));
    }

    #[test]
    fn a_client_without_a_control_slot_is_woken() {
        let quiet = Quiet::default();
        for sent in 1..u64::from(CONTROL_SLOTS) {
            quiet.answered(control::RELEASE_HANDLES);
            assert!(!quiet.is_over(sent));
        }
        quiet.answered(control::RELEASE_HANDLES);
        assert!(quiet.is_over(u64::from(CONTROL_SLOTS)));
    }

    #[test]
    fn a_ping_is_waited_for() {
        let quiet = Quiet::default();
        quiet.answered(control::PING);
        assert!(quiet.is_over(1));
    }
}
