use std::os::fd::OwnedFd;

use kernel_ipc::interface::LeasePart;
use kernel_ipc::runtime::IoMemory;
use kernel_ipc::sys::segment;
use kernel_ipc::{LeaseName, LenderId};
use protocol::net::{NO_REQUEST, Reason, SendFlags};

use super::*;
use crate::core::position::Position;

/// Memory that one run after the other maps.
struct Kept(OwnedFd);

impl Kept {
    fn new(connections: usize) -> Kept {
        let memory = segment::memfd("ledger").unwrap();
        segment::set_len(&memory, Ledger::bytes(connections)).unwrap();
        Kept(memory)
    }

    fn map(&self) -> SegmentWriter {
        SegmentWriter::open_kept(self.0.try_clone().unwrap()).unwrap()
    }

    fn next_run(&self) -> Recovered {
        Ledger::recover(self.map()).unwrap()
    }
}

fn part(n: u64) -> LeasePart {
    let name = LeaseName { lender: LenderId(n), index: n as u32, generation: 3, length: 100 * n };
    LeasePart { name, offset: n, length: 10 * n }
}

/// Bytes come in, as the kernel would write them.
fn receive(record: &ConnectionRecord, bytes: &[u8], longest: usize) {
    let mut left = bytes;
    while !left.is_empty() {
        let mut landing = record.landing(longest).expect("room");
        let (now, later) = left.split_at(left.len().min(landing.io_len()));
        landing.fill(now);
        record.set_received(record.received() + now.len() as u64);
        left = later;
    }
}

#[test]
fn the_next_run_finds_what_this_one_wrote() {
    let kept = Kept::new(4);
    let ledger = Ledger::create(kept.map(), 4).unwrap().ledger;
    let record = ConnectionRecord::create(&ledger, "127.0.0.1:9").unwrap();
    record.belongs_to(77, 5);
    receive(&record, b"hello", 4096);
    record.set_consumed(2);
    assert!(record.keep_send(1, SendFlags::MORE, 0, 0, b"head", &[part(1), part(2)]));
    assert!(record.keep_send(2, SendFlags::CLOSE, 34, 0, b"", &[]));
    record.told(1);
    record.set(Flags::HEARD);
    let session = SessionRecord::create(&ledger, 77).unwrap();
    session.set_last_number(5);
    assert!(session.keep_listener(3, "127.0.0.1:80".parse().unwrap()));
    for _ in 0..3 {
        assert!(session.keep_listener(4, "[::1]:81".parse().unwrap()));
    }
    session.forget_listener(3);
    let entry = BatchEntry { kind: Kind::Received, connection: 5, send: 0, number: 0, end: 5, length: 5 };
    session.keep_batch(1, &[entry]);
    let serial = record.serial();
    drop((record, session, ledger));

    let next = kept.next_run();
    let [record] = &next.connections[..] else { panic!("one connection") };
    assert_eq!((record.serial(), record.session(), record.number()), (serial, 77, 5));
    assert_eq!((record.received(), record.consumed(), record.peer().as_str()), (5, 2, "127.0.0.1:9"));
    assert_eq!(record.bytes(2, 5), b"llo");
    assert!(record.flags().has(Flags::HEARD) && !record.flags().has(Flags::CLOSING));
    let sends = record.sends();
    let expected = KeptSend {
        id: 1,
        flags: SendFlags::MORE,
        begin: 0,
        bytes: 34,
        request: 0,
        header: b"head".to_vec(),
        parts: vec![part(1), part(2)],
        told: true,
    };
    assert_eq!(sends[0], expected);
    assert_eq!((sends[1].id, sends[1].begin, sends[1].end(), sends[1].told), (2, 34, 34, false));
    assert_eq!(record.last_send(), Some(2));
    let [session] = &next.sessions[..] else { panic!("one session") };
    assert_eq!((session.id(), session.last_number(), session.consumed()), (77, 5, 0));
    assert_eq!(session.listeners(), [(4, "[::1]:81".parse().unwrap())]);
    assert_eq!(session.batch(), Some(vec![entry]));
    // What is freed is not there any more, and what it was is remembered.
    record.free_send(2);
    assert_eq!((record.last_send(), record.freed_end()), (Some(2), 34));
    assert!(record.flags().has(Flags::FINISHED) && record.flags().has(Flags::CLOSING));
    session.set_consumed(1);
    assert_eq!(session.batch(), Some(Vec::new()));
    record.set_over(Reason::TimedOut);
    assert_eq!(kept.next_run().connections[0].flags().over(), Some(Reason::TimedOut));
    record.free();
    session.free();
    let last = kept.next_run();
    assert!(last.connections.is_empty() && last.sessions.is_empty());
    let again = ConnectionRecord::create(&last.ledger, "").unwrap();
    assert!(again.serial() > serial, "a serial names one connection for ever");
    assert!(again.sends().is_empty() && again.last_send().is_none() && again.flags() == Flags(0));
}

#[test]
fn received_bytes_keep_their_places_around_the_ring() {
    let kept = Kept::new(1);
    let ledger = Ledger::create(kept.map(), 1).unwrap().ledger;
    let record = ConnectionRecord::create(&ledger, "").unwrap();
    let byte = |position: u64| (position % 251) as u8;
    let mut position = 0;
    for step in [1, 4096, 5000, 100, 12_000, 7, 16_384, 9999, 16_000, 3] {
        let bytes: Vec<u8> = (position..position + step).map(byte).collect();
        receive(&record, &bytes, 4096);
        assert_eq!(record.bytes(position, position + step), bytes);
        position += step;
        record.set_consumed(position);
    }
    assert!(record.can_have_received(position, 4096) && record.can_have_received(position + 4096, 4096));
    assert!(!record.can_have_received(position + 4097, 4096) && !record.can_have_received(position - 1, 4096));
    receive(&record, &vec![0; 48 << 10], 4096);
    assert!(record.landing(1).is_none(), "nothing that is not consumed is overwritten");
}

#[test]
fn there_is_a_bound_of_everything() {
    let kept = Kept::new(2);
    let ledger = Ledger::create(kept.map(), 2).unwrap().ledger;
    let record = ConnectionRecord::create(&ledger, &"x".repeat(500)).unwrap();
    let other = ConnectionRecord::create(&ledger, "").unwrap();
    assert!(!ledger.has_room() && ConnectionRecord::create(&ledger, "").is_none());
    other.free();
    assert!(ledger.has_room());
    // The next run has room where nobody has been, and where somebody was.
    let next = Kept::new(2);
    drop(ConnectionRecord::create(&Ledger::create(next.map(), 2).unwrap().ledger, ""));
    let found = next.next_run();
    assert_eq!((found.connections.len(), found.ledger.in_use()), (1, 1));
    let second = ConnectionRecord::create(&found.ledger, "").unwrap();
    assert!(!found.ledger.has_room());
    second.free();
    assert!(next.next_run().ledger.has_room() && next.next_run().ledger.in_use() == 1);
    assert!(!record.keep_send(1, SendFlags(0), 0, 0, &[0; 5000], &[]));
    assert!(!record.keep_send(1, SendFlags(0), 0, 0, b"", &[part(1); 9]));
    let accepted = (1..100).filter(|id| record.keep_send(*id, SendFlags(0), 0, 0, &[0; 4096], &[part(1); 8])).count();
    assert_eq!(accepted, 32);
    record.free_send(7);
    assert!(record.keep_send(100, SendFlags(0), 0, 0, b"", &[]));
    assert_eq!((0..100).filter_map(|id| SessionRecord::create(&ledger, id + 1)).count(), SESSIONS);
}

#[test]
fn memory_that_makes_no_sense_is_not_believed() {
    let kept = Kept::new(3);
    assert!(Ledger::recover(kept.map()).is_err(), "it was never begun");
    assert!(Ledger::create(kept.map(), 4).is_err(), "it is too small");
    let ledger = Ledger::create(kept.map(), 3).unwrap().ledger;
    assert!(Ledger::create(kept.map(), 3).is_err(), "it is used");
    let session = SessionRecord::create(&ledger, 9).unwrap();
    for (next, entries, word) in [(1u64 << 40, 2u64, 2u64), (2, 257, 2), (3, 2, 2), (2, 2, 8), (2, 2, 0)] {
        let at = header::BYTES;
        ledger.store(at + 16, next);
        ledger.store(at + 24, entries);
        ledger.store(at + 4096, word);
        ledger.store(at + 4096 + 48, word);
        assert_eq!(session.batch(), None, "{next} {entries} {word}");
    }
    ledger.store(header::TOUCHED, 4);
    assert!(Ledger::recover(kept.map()).is_err(), "more were in use than there are");
    ledger.store(header::TOUCHED, 0);
    ledger.store(header::CONNECTIONS, 4);
    assert!(Ledger::recover(kept.map()).is_err(), "more than there is room for");
    ledger.store(header::CONNECTIONS, u64::MAX);
    assert!(Ledger::recover(kept.map()).is_err());
}

/// Where a connection stands.
fn at(sent: u64, taken: u64) -> Position {
    Position { sent, taken, delivered: 0, shut: false }
}

/// What the next run of a client is told of a connection: request, bytes sent of its answer, its head; and what it receives.
fn handed_over(record: &ConnectionRecord, sent: u64) -> Option<(u64, u64, Vec<u8>, Vec<u8>)> {
    if !record.hand_over(&at(sent, record.received())) {
        return None;
    }
    let (request, sent_of_it, head) = record.resumed()?;
    assert_eq!((record.session(), record.consumed(), record.last_send()), (0, request, None));
    assert!(record.sends().is_empty() && record.freed_end() == sent && !record.flags().has(Flags::HEARD));
    Some((request, sent_of_it, head, record.bytes(record.consumed(), record.received())))
}

/// A connection with two requests of ten bytes, and answers of 5 + 20 bytes in two sends, and of 7 bytes in one.
fn answered(ledger: &Rc<Ledger>) -> ConnectionRecord {
    let record = ConnectionRecord::create(ledger, "").unwrap();
    record.belongs_to(9, 1);
    record.set(Flags::HEARD);
    receive(&record, b"request 1 request 2 more", 4096);
    record.set_consumed(24);
    assert!(record.keep_send(1, SendFlags(0), 0, 0, b"head1", &[part(1)]));
    assert!(record.keep_send(2, SendFlags(0), 15, 0, b"", &[part(1)]));
    assert!(record.keep_send(3, SendFlags(0), 25, 10, b"answer2", &[]));
    record
}

#[test]
fn a_client_goes_on_with_the_answer_in_which_the_kernel_stopped() {
    let kept = Kept::new(40);
    let ledger = Ledger::create(kept.map(), 40).unwrap().ledger;
    let (one, two) = (b"request 1 request 2 more".to_vec(), b"request 2 more".to_vec());
    for freed in 0..=3 {
        for (sent, expected) in [
            (0, (0, 0, b"head1".to_vec(), one.clone())),
            (3, (0, 3, b"head1".to_vec(), one.clone())),
            (24, (0, 24, b"head1".to_vec(), one.clone())),
            (25, (10, 0, b"answer2".to_vec(), two.clone())),
            (31, (10, 6, b"answer2".to_vec(), two.clone())),
            (32, (10, 7, b"answer2".to_vec(), two.clone())),
        ] {
            let record = answered(&ledger);
            // What is over was taken by the kernel.
            let ends = [0, 15, 25, 32];
            if ends[freed] > sent {
                record.free();
                continue;
            }
            (1..=freed as u64).for_each(|id| record.free_send(id));
            let (request, of_it, head, bytes) = handed_over(&record, sent).unwrap();
            let (wanted_request, wanted_of_it, wanted_head, wanted_bytes) = expected;
            if freed == 2 && sent == 25 {
                // Of the second answer nothing was begun, and the first is whole: either may be gone on with.
                assert!(request == 10 || (request, of_it) == (0, 25));
            } else {
                assert_eq!((request, of_it), (wanted_request, wanted_of_it), "{freed} freed, {sent} sent");
                assert_eq!(bytes, wanted_bytes);
            }
            assert!(of_it == 0 || head == wanted_head);
            // The next run dies at once, and the one after it hears the same.
            assert_eq!(handed_over(&record, sent), Some((request, of_it, head, bytes)));
            record.free();
        }
    }
}

#[test]
fn a_connection_that_cannot_be_gone_on_with_is_not_handed_over() {
    let kept = Kept::new(20);
    let ledger = Ledger::create(kept.map(), 20).unwrap().ledger;
    let refused = |change: &dyn Fn(&ConnectionRecord) -> Position| {
        let record = answered(&ledger);
        let position = change(&record);
        assert!(!record.hand_over(&position));
        record.free();
    };
    for flag in [Flags::RESET, Flags::LOST, Flags::CLOSING, Flags::FINISHED] {
        refused(&|record| {
            record.set(flag);
            at(3, 24)
        });
    }
    refused(&|record| {
        record.set_over(Reason::Closed);
        at(3, 24)
    });
    refused(&|_| Position { shut: true, ..at(32, 24) });
    // A client that does not go on.
    refused(&|record| {
        assert!(record.keep_send(4, SendFlags(0), 32, NO_REQUEST, b"x", &[]));
        at(33, 24)
    });
    refused(&|record| {
        assert!(record.keep_send(4, SendFlags(0), 32, NO_REQUEST, b"x", &[]));
        (1..=4).for_each(|id| record.free_send(id));
        at(33, 24)
    });
    // The request is overwritten.
    refused(&|record| {
        for _ in 0..20 {
            receive(record, &[0; 4096], 4096);
            record.set_consumed(record.received());
        }
        at(3, record.received())
    });
    // An answer that has no head.
    refused(&|record| {
        (1..=3).for_each(|id| record.free_send(id));
        assert!(record.keep_send(4, SendFlags(0), 32, 20, b"", &[part(1)]));
        at(33, 24)
    });
    // The socket says what cannot be.
    refused(&|_| at(3, 23));
    refused(&|_| at(3, 1 << 40));
}
