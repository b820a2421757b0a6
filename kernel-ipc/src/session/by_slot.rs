//! Something for each normal slot of a session. A session that is never used deep does not pay for its depth: slots are used
//! from the lowest on, and what belongs to eight of them is made when one is first used.

use std::cell::OnceCell;
use std::ops::Index;

use crate::wire::MAX_SLOTS;

/// Slots for which it is made together.
const TOGETHER: usize = 8;

pub(super) struct BySlot<T> {
    groups: Box<[OnceCell<Box<[T; TOGETHER]>>]>,
    make: Box<dyn Fn() -> T>,
}

const _: () = assert!(MAX_SLOTS as u32 <= u64::BITS);

/// The bit of a normal slot in a word that has one for each; of any other number 0, or that of a slot which is not there.
#[inline]
pub(super) fn bit(slot: u16) -> u64 {
    1u64.checked_shl(slot.into()).unwrap_or(0)
}

impl<T> BySlot<T> {
    /// For slots below `slots`, rounded up; `make` makes what one begins with.
    pub(super) fn new(slots: u16, make: impl Fn() -> T + 'static) -> BySlot<T> {
        let groups = (0..usize::from(slots).div_ceil(TOGETHER)).map(|_| OnceCell::new()).collect();
        BySlot { groups, make: Box::new(make) }
    }

    /// Those of all slots that may have been used.
    pub(super) fn used(&self) -> impl Iterator<Item = (u16, &T)> {
        let groups = (0u16..).step_by(TOGETHER).zip(&self.groups);
        groups.flat_map(|(first, group)| (first..).zip(group.get().into_iter().flat_map(|made| made.iter())))
    }

    #[cold]
    fn begin(&self) -> Box<[T; TOGETHER]> {
        Box::new(std::array::from_fn(|_| (self.make)()))
    }
}

/// # Panics
/// If the session has no such slot.
impl<T> Index<u16> for BySlot<T> {
    type Output = T;

    #[inline]
    fn index(&self, slot: u16) -> &T {
        let slot = usize::from(slot);
        &self.groups[slot / TOGETHER].get_or_init(|| self.begin())[slot % TOGETHER]
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn it_is_made_for_slots_that_are_used_and_keeps_what_it_holds() {
        let made = Rc::new(Cell::new(0));
        let cells = BySlot::new(20, {
            let made = made.clone();
            move || {
                made.set(made.get() + 1);
                Cell::new(0)
            }
        });
        assert_eq!((cells.used().count(), made.get()), (0, 0));
        cells[19].set(19);
        cells[0].set(7);
        assert_eq!(made.get(), 16, "the eight in the middle are nobody's yet");
        let held: Vec<(u16, u32)> =
            cells.used().map(|(slot, cell)| (slot, cell.get())).filter(|held| held.1 != 0).collect();
        assert_eq!(held, [(0, 7), (19, 19)]);
        cells[0].set(8);
        assert_eq!((cells[0].get(), made.get()), (8, 16), "once");
    }
}
