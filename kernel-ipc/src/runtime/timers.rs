//! One heap of timers, each of which can be removed.
//!
//! - No system calls and no clock: the caller says what time it is.
//! - Insertion, removal and expiry cost O(log n); a timer later than all others is inserted in O(1).
//! - Memory is bounded by the largest number of timers that ever existed at a time.

use std::task::Waker;
use std::time::Instant;

/// Names a timer until it has expired or was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimerKey {
    slot: u32,
    generation: u32,
}

struct Slot {
    generation: u32,
    /// Where in the heap, while the timer is armed.
    position: usize,
    waker: Option<Waker>,
}

/// See the module's contract.
#[derive(Default)]
pub(super) struct Timers {
    heap: Vec<(Instant, u32)>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Timers {
    /// Arms a timer.
    pub fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, position: 0, waker: None });
            u32::try_from(self.slots.len() - 1).expect("memory holds less than 2^32 timers")
        });
        self.slots[slot as usize].waker = Some(waker);
        self.heap.push((deadline, slot));
        self.rise(self.heap.len() - 1);
        TimerKey { slot, generation: self.slots[slot as usize].generation }
    }

    /// Replaces the waker of a timer that has not expired. False when it has.
    pub fn renew(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.armed(key) {
            Some(slot) => {
                match &mut slot.waker {
                    Some(old) => old.clone_from(waker),
                    None => slot.waker = Some(waker.clone()),
                }
                true
            }
            None => false,
        }
    }

    /// Disarms a timer; nothing happens when it has expired.
    pub fn remove(&mut self, key: TimerKey) {
        if let Some(slot) = self.armed(key) {
            let position = slot.position;
            self.take(position);
        }
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out the next timer that is due at `now`.
    pub fn expire(&mut self, now: Instant) -> Option<Waker> {
        if self.next()? > now {
            return None;
        }
        self.take(0)
    }

    fn armed(&mut self, key: TimerKey) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation && slot.waker.is_some())
    }

    /// Takes the timer at a heap position out of heap and slots.
    fn take(&mut self, position: usize) -> Option<Waker> {
        let (_, slot) = self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.sink(position);
            self.rise(position);
        }
        let freed = &mut self.slots[slot as usize];
        freed.generation = freed.generation.wrapping_add(1);
        self.free.push(slot);
        freed.waker.take()
    }

    fn place(&mut self, position: usize) {
        let slot = self.heap[position].1;
        self.slots[slot as usize].position = position;
    }

    fn rise(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].0 <= self.heap[position].0 {
                break;
            }
            self.heap.swap(parent, position);
            self.place(position);
            position = parent;
        }
        self.place(position);
    }

    fn sink(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            let Some(smaller) = [left, left + 1]
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by_key(|child| self.heap[*child].0)
            else {
                break;
            };
            if self.heap[position].0 <= self.heap[smaller].0 {
                break;
            }
            self.heap.swap(position, smaller);
            self.place(position);
            position = smaller;
        }
        self.place(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    proptest! {
        /// The heap beside a sorted map, under any mix of insertions, removals and expiries.
        #[test]
        fn timers_expire_in_order_and_removed_ones_never(steps in prop::collection::vec((0u8..3, 0u64..50), 1..300)) {
            let start = Instant::now();
            let mut timers = Timers::default();
            let mut model: BTreeMap<(Instant, u64), TimerKey> = BTreeMap::new();
            for (number, (what, value)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        let deadline = start + Duration::from_millis(value);
                        model.insert((deadline, number as u64), timers.insert(deadline, Waker::noop().clone()));
                    }
                    _ if value % 2 == 0 => {
                        let victim = model.keys().nth(value as usize % model.len().max(1)).copied();
                        if let Some(victim) = victim {
                            let key = model.remove(&victim).expect("just found");
                            timers.remove(key);
                            timers.remove(key);
                            prop_assert!(!timers.renew(key, Waker::noop()));
                        }
                    }
                    _ => {
                        let now = start + Duration::from_millis(value);
                        while timers.expire(now).is_some() {}
                        model.retain(|(deadline, _), _| *deadline > now);
                    }
                }
                prop_assert_eq!(timers.next(), model.keys().next().map(|(deadline, _)| *deadline));
                for key in model.values() {
                    prop_assert!(timers.renew(*key, Waker::noop()));
                }
            }
        }
    }
}
