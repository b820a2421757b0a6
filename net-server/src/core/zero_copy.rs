//! Whether a connection's pages are sent with or without a copy by the kernel.
//!
//! On a path that stays in this machine the kernel copies each zero-copy send after all, which costs more than a plain send. So
//! local peers get plain sends; others get zero-copy sends, until their notifications say that the kernel copied. Who wants to see
//! that the pages stay what they are while the kernel has them can have zero-copy sends always.

use super::connection::Usage;

/// Smaller pieces are cheaper to copy than to pin page by page.
pub const MIN_BYTES: usize = 16 << 10;
/// After so many notifications in a row that say *copied*, the connection sends plainly.
const GIVE_UP_AFTER: u32 = 4;
/// After so many plain pieces, zero copy is tried once more: routes change.
const TRY_AGAIN_AFTER: u32 = 1024;

/// By what it is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// By where the peer is and what notifications say: what is fastest.
    #[default]
    Learned,
    /// Every piece of pages that is not small, whatever the path.
    Always,
}

/// The choice of one connection.
#[derive(Debug)]
pub struct ZeroCopy {
    policy: Policy,
    local: bool,
    copied_in_a_row: u32,
    plain_since: u32,
}

impl ZeroCopy {
    /// The choice for a peer on this machine (`local`) or elsewhere.
    pub fn new(policy: Policy, local: bool) -> ZeroCopy {
        ZeroCopy { policy, local, copied_in_a_row: 0, plain_since: 0 }
    }

    /// Whether the next piece, `length` bytes of pages, is sent without a copy.
    pub fn choose(&mut self, length: usize) -> bool {
        if length < MIN_BYTES {
            return false;
        }
        if self.policy == Policy::Always {
            return true;
        }
        if self.local {
            return false;
        }
        if self.copied_in_a_row < GIVE_UP_AFTER {
            return true;
        }
        self.plain_since += 1;
        if self.plain_since < TRY_AGAIN_AFTER {
            return false;
        }
        self.plain_since = 0;
        true
    }

    /// Learns from a notification.
    pub fn learn(&mut self, usage: Usage) {
        match usage {
            Usage::ZeroCopy => self.copied_in_a_row = 0,
            Usage::Copied => self.copied_in_a_row = self.copied_in_a_row.saturating_add(1),
            Usage::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_peers_and_small_pieces_are_sent_plainly() {
        assert!(!ZeroCopy::new(Policy::Learned, true).choose(1 << 20));
        assert!(!ZeroCopy::new(Policy::Learned, false).choose(MIN_BYTES - 1));
        assert!(ZeroCopy::new(Policy::Learned, false).choose(MIN_BYTES));
    }

    #[test]
    fn a_path_that_copies_is_given_up_and_rarely_tried_again() {
        let mut choice = ZeroCopy::new(Policy::Learned, false);
        for _ in 0..GIVE_UP_AFTER {
            assert!(choice.choose(MIN_BYTES));
            choice.learn(Usage::Copied);
        }
        let tries = (0..2 * TRY_AGAIN_AFTER).filter(|_| choice.choose(MIN_BYTES)).count();
        assert_eq!(tries, 2);
        choice.learn(Usage::ZeroCopy);
        assert!(choice.choose(MIN_BYTES));
    }

    #[test]
    fn who_always_wants_zero_copy_gets_it_on_every_path() {
        let mut choice = ZeroCopy::new(Policy::Always, true);
        for _ in 0..2 * GIVE_UP_AFTER {
            assert!(choice.choose(MIN_BYTES) && !choice.choose(MIN_BYTES - 1));
            choice.learn(Usage::Copied);
        }
    }
}
