//! How a call names a capability that the answer of an earlier call of its session is to bring.
//!
//! ```text
//! in the place of a handle       63                 32 31 30        16 15         0
//!                               ┌─────────────────────┬──┬────────────┬────────────┐
//!                               │ seq, its lower half │ 1│ number     │ slot       │
//!                               └─────────────────────┴──┴────────────┴────────────┘
//!                                                        the answer's capabilities are numbered from 0
//! ```
//!
//! No index of a table has bit 31, so a host that looks such a word up as a handle finds nothing. Every pattern is a name,
//! though not of something that is there: what a call cannot name is refused when the host resolves it.

use super::Handle;

/// The bit of an index that no entry of a table has.
pub const EXPECTED: u32 = 1 << 31;
/// The number, where it stands in an index.
const NUMBER: u32 = 0x7FFF << 16;

/// A capability of the answer to a call, by that call's slot and seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpectedHandle {
    /// The call's slot.
    pub slot: u16,
    /// The lower half of the call's seq: of all calls of a slot only the last can be named.
    pub seq: u32,
    /// Which of the answer's capabilities.
    pub number: u16,
}

impl ExpectedHandle {
    /// As it stands in the place of a handle. `number` is below 2^15: a message has at most
    /// [`MAX_CAPABILITIES`](super::MAX_CAPABILITIES).
    pub const fn to_handle(self) -> Handle {
        let number = ((self.number as u32) << 16) & NUMBER;
        Handle { index: EXPECTED | number | self.slot as u32, generation: self.seq }
    }
}

impl Handle {
    /// Whether it stands for a capability that an answer is to bring.
    #[inline]
    pub const fn is_expected(self) -> bool {
        self.index & EXPECTED != 0
    }

    /// What it stands for, if it is no handle.
    pub const fn expected(self) -> Option<ExpectedHandle> {
        let number = ((self.index & NUMBER) >> 16) as u16;
        match self.is_expected() {
            true => Some(ExpectedHandle { slot: self.index as u16, seq: self.generation, number }),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MAX_CAPABILITIES;

    #[test]
    fn it_has_the_drawn_bits_and_comes_back() {
        let last = ExpectedHandle { slot: 63, seq: 7, number: MAX_CAPABILITIES as u16 - 1 };
        assert_eq!(last.to_handle().to_word(), 0x0000_0007_800F_003F);
        for expected in [last, ExpectedHandle { slot: u16::MAX, seq: u32::MAX, number: 0x7FFF }] {
            assert_eq!(expected.to_handle().expected(), Some(expected));
        }
        for handle in [Handle::NONE, Handle { index: EXPECTED - 1, generation: u32::MAX }] {
            assert_eq!((handle.is_expected(), handle.expected()), (false, None));
        }
    }
}
