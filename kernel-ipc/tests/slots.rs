//! The slot machine against a model: random histories of calls, answers, deaths of callers and lies.

use std::collections::HashMap;

use kernel_ipc::slots::{ClientSlots, ClientState, Ended, HostSlots};
use kernel_ipc::wire::{Shape, Violation};
use proptest::prelude::*;

const SHAPE: Shape = Shape { slots: 3, window_bytes: 4096 };

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin,
    BeginControl,
    /// The host answers the n-th of the calls in flight.
    Complete(usize),
    /// The caller of the n-th outstanding call goes away.
    Park(usize),
    /// The n-th of them becomes a message: nobody waits for its answer, and it is wanted.
    Post(usize),
    /// The caller of the n-th answered call takes its answer.
    Take(usize),
    /// The host answers what nobody asked.
    Lie {
        slot: u16,
        seq: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Begin),
        1 => Just(Event::BeginControl),
        4 => (0..8usize).prop_map(Event::Complete),
        2 => (0..8usize).prop_map(Event::Park),
        2 => (0..8usize).prop_map(Event::Post),
        4 => (0..8usize).prop_map(Event::Take),
        1 => (0..9u16, 0..9u64).prop_map(|(slot, seq)| Event::Lie { slot, seq }),
    ]
}

/// What a correct client must believe about one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Wanted,
    Parked,
    Posted,
    Answered,
}

proptest! {
    #[test]
    fn each_call_is_answered_once_and_no_slot_carries_two(events in prop::collection::vec(event(), 1..200)) {
        let mut client = ClientSlots::new(SHAPE);
        let mut host = HostSlots::new(SHAPE);
        let mut calls: HashMap<(u16, u64), Call> = HashMap::new();
        let mut last: HashMap<u16, u64> = HashMap::new();
        let mut position = 0;

        for event in events {
            let of = |states: &[Call], n: usize| {
                let mut found: Vec<_> =
                    calls.iter().filter(|(_, state)| states.contains(state)).map(|(call, _)| *call).collect();
                found.sort_unstable();
                (!found.is_empty()).then(|| found[n % found.len()])
            };
            match event {
                Event::Begin | Event::BeginControl => {
                    let control = matches!(event, Event::BeginControl);
                    let busy = calls.keys().filter(|(slot, _)| SHAPE.is_control(*slot) == control).count();
                    let all = if control { usize::from(SHAPE.all_slots() - SHAPE.slots) } else { usize::from(SHAPE.slots) };
                    let begun = if control { client.begin_control(position) } else { client.begin(position) };
                    prop_assert_eq!(begun.is_some(), busy < all, "a slot is free exactly when none of its kind is left");
                    let Some((slot, seq)) = begun else { continue };
                    position += 1;
                    prop_assert!(calls.keys().all(|(busy, _)| *busy != slot), "a busy slot was used again");
                    prop_assert!(seq > last.insert(slot, seq).unwrap_or(0));
                    prop_assert_eq!(host.accept(slot, seq), Ok(()), "a correct client never breaks the host's rules");
                    calls.insert((slot, seq), Call::Wanted);
                }
                Event::Complete(n) => {
                    let Some((slot, seq)) = of(&[Call::Wanted, Call::Parked, Call::Posted], n) else { continue };
                    prop_assert_eq!(host.in_progress(slot), Some(seq));
                    prop_assert_eq!(host.accept(slot, seq + 1), Err(Violation::Seq), "a busy slot takes no call");
                    host.finish(slot);
                    prop_assert_eq!(host.accept(slot, seq), Err(Violation::Seq), "no call runs twice");
                    let ended = client.complete(slot, seq);
                    match calls[&(slot, seq)] {
                        Call::Wanted => {
                            prop_assert_eq!(ended, Ok(Ended::Deliver));
                            calls.insert((slot, seq), Call::Answered);
                        }
                        was => {
                            let expected = if was == Call::Posted { Ended::Settle } else { Ended::Discard };
                            prop_assert_eq!(ended, Ok(expected));
                            calls.remove(&(slot, seq));
                        }
                    }
                }
                Event::Park(n) => {
                    let Some((slot, seq)) = of(&[Call::Wanted, Call::Answered], n) else { continue };
                    let cancel = client.park(slot);
                    if calls[&(slot, seq)] == Call::Wanted {
                        prop_assert!(cancel);
                        calls.insert((slot, seq), Call::Parked);
                    } else {
                        prop_assert!(!cancel);
                        calls.remove(&(slot, seq));
                    }
                }
                Event::Post(n) => {
                    let Some((slot, seq)) = of(&[Call::Wanted, Call::Answered], n) else { continue };
                    let to_come = client.post(slot);
                    prop_assert_eq!(to_come, calls[&(slot, seq)] == Call::Wanted);
                    match to_come {
                        true => calls.insert((slot, seq), Call::Posted),
                        false => calls.remove(&(slot, seq)),
                    };
                }
                Event::Take(n) => {
                    let Some((slot, seq)) = of(&[Call::Answered], n) else { continue };
                    client.take(slot);
                    calls.remove(&(slot, seq));
                }
                Event::Lie { slot, seq } => {
                    let outstanding = matches!(calls.get(&(slot, seq)), Some(Call::Wanted | Call::Parked | Call::Posted));
                    if !outstanding {
                        prop_assert!(client.complete(slot, seq).is_err(), "an answer to nothing was taken");
                    }
                }
            }
        }

        // The end of the session answers those that wait or are messages, and only those; afterwards every slot is free or answered.
        let mut waiting: Vec<u16> = client.end().into_iter().map(|(slot, _)| slot).collect();
        waiting.sort_unstable();
        let mut expected: Vec<u16> =
            calls.iter().filter(|(_, state)| matches!(state, Call::Wanted | Call::Posted)).map(|((slot, _), _)| *slot).collect();
        expected.sort_unstable();
        prop_assert_eq!(waiting, expected);
        for slot in 0..SHAPE.all_slots() {
            prop_assert!(matches!(client.state(slot), ClientState::Free | ClientState::Answered));
        }
    }

    #[test]
    fn a_host_takes_a_call_exactly_when_its_slot_is_idle_and_its_seq_is_new(
        calls in prop::collection::vec((0..9u16, 0..6u64, any::<bool>()), 1..200),
    ) {
        let mut host = HostSlots::new(SHAPE);
        let mut model: HashMap<u16, (u64, bool)> = HashMap::new();
        for (slot, seq, finish) in calls {
            let (last, busy) = model.get(&slot).copied().unwrap_or((0, false));
            let expected = match () {
                () if slot >= SHAPE.all_slots() => Err(Violation::Slot),
                () if busy || seq <= last => Err(Violation::Seq),
                () => Ok(()),
            };
            prop_assert_eq!(host.accept(slot, seq), expected);
            if expected.is_ok() {
                model.insert(slot, (seq, true));
            }
            if finish && model.get(&slot).is_some_and(|(_, busy)| *busy) {
                host.finish(slot);
                model.entry(slot).and_modify(|(_, busy)| *busy = false);
            }
        }
    }
}
