//! Every interleaving, and every value that the memory model allows, of two ends that share rings and windows.
//!
//! * The models run the shipped ends of a [`ring`](super::ring), the shipped order of a line's words
//!   ([`line`]) and the shipped [slots](crate::slots) over loom's memory.
//! * Of a line only the first word is an atomic here. The others, and the windows, are cells that loom watches: two
//!   accesses that nothing orders are a violation, whatever the values. So a descriptor that could be torn is found
//!   though no run tears it.
//! * A model must hold, and must break when one rule is taken away ([`Without`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::ring::{Incoming, Laps, Outgoing, Receiver, Sender};
use crate::slots::{ClientSlots, Ended, HostSlots};
use crate::sys::line::{self, Words};
use crate::wire::Shape;

/// The rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The first word of a line is stored without release.
    LineRelease,
    /// It is loaded without acquire.
    LineAcquire,
    /// It is stored before the rest of the line.
    FirstWordLast,
    /// A reader takes whatever line was ever written there.
    Lap,
    /// The head is stored without release, or loaded without acquire.
    HeadRelease,
    HeadAcquire,
    /// The producer believes that all was read.
    Room,
    /// A caller that leaves frees its slot at once, and not when the host confirms (R13).
    Confirmation,
    /// An answer's window is read after its slot was used again.
    TakeBeforeNextCall,
    /// A cancel names a slot, and not a call of it.
    SeqOfCancel,
    /// The host answers a call when its cancel is read, and not when its handler has ended.
    HandlerEnds,
}

/// Entries of the modelled rings: the fewest in which a producer waits for room, and a stale line can be met.
const ENTRIES: u32 = 2;
/// Most switches from a thread that could go on.
const PREEMPTIONS: usize = 3;

/// One line of a ring.
struct Line {
    first: AtomicU64,
    rest: Cell<[u64; 7]>,
    without: Without,
}

impl Words for Line {
    fn load(&self, word: usize, order: Ordering) -> u64 {
        match word {
            0 => self.first.load(if self.without == Without::LineAcquire { Relaxed } else { order }),
            _ => self.rest.get()[word - 1],
        }
    }

    fn store(&self, word: usize, value: u64, order: Ordering) {
        match word {
            0 => self.first.store(value, if self.without == Without::LineRelease { Relaxed } else { order }),
            _ => {
                let mut rest = self.rest.get();
                rest[word - 1] = value;
                self.rest.set(rest);
            }
        }
    }
}

/// One direction: a ring, and the head of whoever reads it.
struct Direction {
    lines: Vec<Line>,
    head: AtomicU64,
    /// By slot.
    windows: Vec<Cell<u64>>,
    without: Without,
}

impl Direction {
    fn new(entries: u32, without: Without) -> Direction {
        let line = |_| Line { first: AtomicU64::new(0), rest: Cell::new([0; 7]), without };
        Direction {
            lines: (0..entries).map(line).collect(),
            head: AtomicU64::new(0),
            windows: vec![Cell::new(0)],
            without,
        }
    }
}

impl Outgoing for Direction {
    fn store_line(&self, entry: usize, line: &[u64; 8]) {
        if self.without == Without::FirstWordLast {
            self.lines[entry].store(0, line[0], Release);
        }
        line::store(&self.lines[entry], line);
    }

    fn prepare_line(&self, _: usize) {}

    fn load_head(&self) -> u64 {
        match self.without {
            Without::Room => u64::MAX,
            Without::HeadAcquire => self.head.load(Relaxed),
            _ => self.head.load(Acquire),
        }
    }
}

impl Incoming for Direction {
    fn load_line(&self, entry: usize, wanted: impl FnOnce(u64) -> bool) -> Option<[u64; 8]> {
        let line = &self.lines[entry];
        if self.without == Without::Lap { line::load(line, |first| first != 0) } else { line::load(line, wanted) }
    }

    fn load_first(&self, entry: usize) -> u64 {
        self.lines[entry].load(0, Acquire)
    }

    fn store_head(&self, head: u64) {
        self.head.store(head, if self.without == Without::HeadRelease { Relaxed } else { Release });
    }
}

/// A producer that sends `turns`, so many messages in each, and a consumer that takes them all.
fn every_message_comes_once_and_whole(without: Without, turns: &'static [u64]) {
    let ring = Arc::new(Direction::new(ENTRIES, without));
    let message = |number: u64| {
        let mut line = [number; 8];
        line[0] = number << 16;
        line
    };
    let producer = thread::spawn({
        let ring = ring.clone();
        move || {
            let sender = Sender::new(Laps::of(ENTRIES));
            for turn in turns {
                for _ in 0..*turn {
                    while !sender.has_room(&*ring) {
                        sender.publish(&*ring);
                        thread::yield_now();
                    }
                    sender.send(&*ring, message(sender.sent()));
                }
                sender.publish(&*ring);
            }
        }
    });
    let receiver = Receiver::new(Laps::of(ENTRIES));
    for number in 0..turns.iter().sum() {
        let line = loop {
            match receiver.receive(&*ring) {
                Some(line) => break line,
                None => thread::yield_now(),
            }
        };
        assert_eq!(line, message(number));
    }
    producer.join().expect("the producer is right");
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

fn breaks(without: Without, model: impl Fn() + Send + Sync + 'static) {
    let run = AssertUnwindSafe(|| check(model));
    assert!(catch_unwind(run).is_err(), "the model does not notice that {without:?} is missing");
}

#[test]
fn no_descriptor_is_torn_stale_or_lost() {
    for turns in [&[1, 1, 1, 1][..], &[2, 2], &[1, 3], &[3, 2]] {
        check(move || every_message_comes_once_and_whole(Without::Nothing, turns));
    }
    let needed = [
        Without::LineRelease,
        Without::LineAcquire,
        Without::FirstWordLast,
        Without::Lap,
        Without::HeadRelease,
        Without::HeadAcquire,
        Without::Room,
    ];
    for without in needed {
        breaks(without, move || every_message_comes_once_and_whole(without, &[1, 3]));
    }
}

/// What a client does with its first call, before it makes a second one on the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It waits for the answer.
    Stays,
    /// It leaves; the cancel goes out at once.
    Leaves,
    /// It leaves; the cancel goes out after the second call, as one that waited for a control slot does.
    LeavesAndIsLate,
}

const SHAPE: Shape = Shape { slots: 1, window_bytes: 4096 };
const SLOT: u16 = 0;
/// Of the calls of the one slot.
const SEQS: [u64; 2] = [1, 2];

/// A call or its answer: which slot, which call of it; a cancel says of which call.
fn message(slot: u16, seq: u64, cancels: u64) -> [u64; 8] {
    [u64::from(slot) << 16, seq, cancels, 0, 0, 0, 0, 0]
}

fn slot_of(message: &[u64; 8]) -> u16 {
    (message[0] >> 16) as u16
}

struct Session {
    to_host: Direction,
    to_client: Direction,
    without: Without,
}

struct Client<'a> {
    session: &'a Session,
    slots: ClientSlots,
    sender: Sender,
    receiver: Receiver,
    /// Ends of the calls of the normal slot.
    ended: [u32; 2],
    control_ended: bool,
}

impl Client<'_> {
    fn send(&self, line: [u64; 8]) {
        self.sender.send(&self.session.to_host, line);
        self.sender.publish(&self.session.to_host);
    }

    /// Begins the next call, when the slot is free.
    fn call(&mut self) -> u64 {
        loop {
            if let Some((slot, seq)) = self.slots.begin(self.sender.sent()) {
                self.session.to_host.windows[usize::from(slot)].set(seq);
                self.send(message(slot, seq, 0));
                return seq;
            }
            self.look();
        }
    }

    fn cancel(&mut self, seq: u64) {
        let (slot, control_seq) = self.slots.begin_control(self.sender.sent()).expect("none is taken");
        self.send(message(slot, control_seq, seq));
    }

    fn look(&mut self) {
        let Some(line) = self.receiver.receive(&self.session.to_client) else { return thread::yield_now() };
        let (slot, seq) = (slot_of(&line), line[1]);
        let ended = self.slots.complete(slot, seq).expect("the host answers what was asked, once");
        if SHAPE.is_control(slot) {
            self.slots.take(slot);
            self.control_ended = true;
        } else {
            self.ended[seq as usize - 1] += 1;
            assert!(ended == Ended::Discard || line[2] == 0, "a call that is waited for was cancelled");
        }
    }

    fn answer(&mut self, seq: u64) -> u64 {
        while self.ended[seq as usize - 1] == 0 {
            self.look();
        }
        self.session.to_client.windows[usize::from(SLOT)].get()
    }

    fn run(mut self, plan: Plan) {
        let without = self.session.without;
        let first = self.call();
        let mut left = false;
        match plan {
            Plan::Stays => {
                let answer = (without != Without::TakeBeforeNextCall).then(|| self.answer(first));
                while self.ended[0] == 0 {
                    self.look();
                }
                self.slots.take(SLOT);
                assert_eq!(answer.unwrap_or(first), first);
            }
            Plan::Leaves | Plan::LeavesAndIsLate => {
                left = self.slots.park(SLOT);
                if left && without == Without::Confirmation {
                    self.slots.complete(SLOT, first).expect("it is outstanding");
                }
            }
        }
        if left && plan == Plan::Leaves {
            self.cancel(first);
        }
        let second = self.call();
        if left && plan == Plan::LeavesAndIsLate {
            self.cancel(first);
        }
        if without == Without::TakeBeforeNextCall {
            self.answer(first);
        }
        assert_eq!(self.answer(second), second, "the answer is of another call");
        self.slots.take(SLOT);
        while left && !self.control_ended {
            self.look();
        }
        assert_eq!(self.ended, [1, 1]);
    }
}

/// A host with one handler at a time, which ends after so many turns, cancelled or not.
struct Host<'a> {
    session: &'a Session,
    slots: HostSlots,
    sender: Sender,
    receiver: Receiver,
    /// The call whose handler runs, the turns that are left of it, and whether it was cancelled.
    running: Option<(u64, u32, bool)>,
    answered: u32,
}

impl Host<'_> {
    fn answer(&mut self, slot: u16, seq: u64, cancelled: bool) {
        self.slots.finish(slot);
        if slot == SLOT {
            self.session.to_client.windows[usize::from(slot)].set(seq);
            self.answered += 1;
        }
        self.sender.send(&self.session.to_client, message(slot, seq, u64::from(cancelled)));
        self.sender.publish(&self.session.to_client);
    }

    fn cancel(&mut self, seq: u64) {
        let without = self.session.without;
        let in_progress = self.slots.in_progress(SLOT);
        let is_meant = in_progress == Some(seq) || (in_progress.is_some() && without == Without::SeqOfCancel);
        let Some((running, _, cancelled)) = self.running.as_mut().filter(|_| is_meant) else { return };
        *cancelled = true;
        let running = *running;
        if without == Without::HandlerEnds {
            self.answer(SLOT, running, true);
        }
    }

    fn run(mut self, cancels: bool, handler_turns: u32) {
        let mut cancel_read = !cancels;
        while self.answered < SEQS.len() as u32 || !cancel_read {
            let received = self.receiver.receive(&self.session.to_host);
            if let Some(line) = received {
                let (slot, seq) = (slot_of(&line), line[1]);
                self.slots.accept(slot, seq).expect("the client keeps the rules");
                if SHAPE.is_control(slot) {
                    self.cancel(line[2]);
                    self.answer(slot, seq, false);
                    cancel_read = true;
                } else {
                    assert_eq!(self.session.to_host.windows[usize::from(slot)].get(), seq, "arguments of another call");
                    self.running = Some((seq, handler_turns, false));
                }
            }
            match &mut self.running {
                Some((seq, 0, cancelled)) => {
                    let (seq, cancelled) = (*seq, *cancelled);
                    self.running = None;
                    self.answer(SLOT, seq, cancelled);
                }
                Some((_, turns, _)) => *turns -= 1,
                None if received.is_none() => thread::yield_now(),
                None => {}
            }
        }
    }
}

/// Two calls on one slot. The first one's caller may leave.
fn each_call_ends_once(without: Without, plan: Plan, handler_turns: u32) {
    let laps = || Laps::of(SHAPE.ring_entries());
    let direction = || Direction::new(SHAPE.ring_entries(), without);
    let session = Arc::new(Session { to_host: direction(), to_client: direction(), without });
    let host = thread::spawn({
        let session = session.clone();
        move || {
            let (slots, sender, receiver) = (HostSlots::new(SHAPE), Sender::new(laps()), Receiver::new(laps()));
            let host = Host { session: &session, slots, sender, receiver, running: None, answered: 0 };
            host.run(plan != Plan::Stays, handler_turns);
        }
    });
    let (slots, sender, receiver) = (ClientSlots::new(SHAPE), Sender::new(laps()), Receiver::new(laps()));
    Client { session: &session, slots, sender, receiver, ended: [0; 2], control_ended: false }.run(plan);
    host.join().expect("the host is right");
}

#[test]
fn a_call_ends_once_and_its_slot_comes_back_only_then() {
    for plan in [Plan::Stays, Plan::Leaves, Plan::LeavesAndIsLate] {
        for handler_turns in [0, 2] {
            check(move || each_call_ends_once(Without::Nothing, plan, handler_turns));
        }
    }
    let needed = [
        (Without::LineRelease, Plan::Stays),
        (Without::LineAcquire, Plan::Stays),
        (Without::TakeBeforeNextCall, Plan::Stays),
        (Without::Confirmation, Plan::Leaves),
        (Without::Confirmation, Plan::LeavesAndIsLate),
        (Without::SeqOfCancel, Plan::LeavesAndIsLate),
        (Without::HandlerEnds, Plan::Leaves),
    ];
    for (without, plan) in needed {
        breaks(without, move || each_call_ends_once(without, plan, 2));
    }
}
