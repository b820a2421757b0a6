//! Traces of one connection: what the shell reports on the left, what the connection does about it on the right.

use kernel_ipc::events::BatchLimits;
use kernel_ipc::lease::Liveness;

use super::*;
use proptest::prelude::*;

/// Bytes that know whether they are leased and still live.
#[derive(Clone, Debug)]
struct Bytes {
    bytes: std::rc::Rc<Vec<u8>>,
    start: usize,
    pages: bool,
    live: std::rc::Rc<std::cell::Cell<Liveness>>,
}

impl Chunk for Bytes {
    fn length(&self) -> usize {
        self.bytes.len() - self.start
    }
    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
    }
    fn is_pages(&self) -> bool {
        self.pages
    }
    fn liveness(&self) -> Liveness {
        self.live.get()
    }
}

fn chunk(bytes: &[u8], pages: bool) -> Bytes {
    Bytes {
        bytes: std::rc::Rc::new(bytes.to_vec()),
        start: 0,
        pages,
        live: std::rc::Rc::new(std::cell::Cell::new(Liveness::Live)),
    }
}

const START: Duration = Duration::from_secs(100);

struct Peer {
    connection: Connection<Bytes>,
    events: EventQueue,
    now: Duration,
}

impl Peer {
    fn new(local: bool) -> Peer {
        Peer {
            connection: Connection::new(1, Limits::default(), local, START),
            events: EventQueue::new(1 << 20),
            now: START,
        }
    }

    fn send(&mut self, id: u64, flags: SendFlags, chunks: Vec<Bytes>) -> Result<(), SendError> {
        self.connection.send(id, flags, chunks, self.now)
    }

    fn piece(&mut self) -> Option<Piece<Bytes>> {
        self.connection.next_piece(&mut self.events)
    }

    fn sent(&mut self, piece: Piece<Bytes>, result: Result<usize, ()>) {
        let notifies = piece.zero_copy;
        self.connection.sent(piece, result, notifies, self.now, &mut self.events);
    }

    fn received(&mut self, bytes: &[u8]) {
        assert!(self.connection.begin_receive(false));
        self.connection.received(bytes, &mut self.events);
    }

    fn end(&mut self) -> Option<End> {
        self.connection.next_end(|| 0, &mut self.events)
    }

    /// Everything that the client hears now.
    fn hears(&mut self) -> Vec<String> {
        let limits = BatchLimits { events: 1000, bytes: 1 << 20, capabilities: 16 };
        let heard = self.events.batch(limits).iter().map(|entry| match &entry.occurrence {
            Occurrence::Received(bytes) => format!("received {}", bytes.len()),
            Occurrence::Sent { send, bytes } => format!("sent {send} {bytes}"),
            Occurrence::Released { send, how } => format!("released {send} {how:?}"),
            Occurrence::Closed(reason) => format!("closed {reason:?}"),
            other => format!("{other:?}"),
        });
        let heard = heard.collect();
        let cursor = self.events.next_cursor();
        let connection = &mut self.connection;
        self.events.consume(cursor, |entry| connection.consumed(entry.received_bytes())).unwrap();
        heard
    }
}

fn length(piece: &Piece<Bytes>) -> usize {
    piece.chunks.iter().map(Bytes::length).sum()
}

#[test]
fn header_and_pages_go_out_in_one_piece_and_are_released_once() {
    let mut peer = Peer::new(true);
    peer.send(7, SendFlags(0), vec![chunk(b"head", false), chunk(b"body", true)]).unwrap();
    let piece = peer.piece().unwrap();
    assert_eq!((length(&piece), piece.more, piece.zero_copy), (8, false, false));
    assert!(peer.piece().is_none(), "one piece at a time");
    peer.sent(piece, Ok(8));
    assert_eq!(peer.hears(), ["sent 7 8", "released 7 Copied"]);
}

#[test]
fn a_short_send_goes_on_where_the_kernel_stopped() {
    let mut peer = Peer::new(true);
    peer.send(1, SendFlags(0), vec![chunk(b"head", false), chunk(b"body", true)]).unwrap();
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(6));
    assert!(peer.hears().is_empty());
    let piece = peer.piece().unwrap();
    assert_eq!((length(&piece), piece.chunks.len(), piece.chunks[0].start), (2, 1, 2));
    peer.sent(piece, Ok(2));
    assert_eq!(peer.hears(), ["sent 1 8", "released 1 Copied"]);
}

#[test]
fn a_lease_that_was_taken_back_during_a_short_send_resets_the_connection() {
    let mut peer = Peer::new(true);
    let pages = chunk(b"body", true);
    peer.send(1, SendFlags(0), vec![pages.clone()]).unwrap();
    let piece = peer.piece().unwrap();
    pages.live.set(Liveness::Ended);
    peer.sent(piece, Ok(2));
    assert!(peer.piece().is_none());
    assert_eq!((peer.end(), peer.end(), peer.end()), (Some(End::Abort), Some(End::Close), None));
    assert_eq!(peer.hears(), ["released 1 Dropped", "closed StaleLease"]);
}

#[test]
fn pages_whose_lender_is_between_two_epochs_wait() {
    let mut peer = Peer::new(true);
    let pages = chunk(b"body", true);
    peer.send(1, SendFlags(0), vec![pages.clone()]).unwrap();
    let piece = peer.piece().unwrap();
    pages.live.set(Liveness::Waiting);
    peer.sent(piece, Ok(2));
    assert!(peer.piece().is_none() && peer.end().is_none());
    pages.live.set(Liveness::Live);
    let piece = peer.piece().unwrap();
    assert_eq!((length(&piece), piece.chunks[0].start), (2, 2));
    peer.sent(piece, Ok(2));
    assert_eq!(peer.hears(), ["sent 1 4", "released 1 Copied"]);
}

#[test]
fn zero_copy_pieces_are_released_by_their_notification() {
    let mut peer = Peer::new(false);
    let big = vec![0; 100_000];
    peer.send(1, SendFlags(0), vec![chunk(b"head", false), chunk(&big, true)]).unwrap();
    let head = peer.piece().unwrap();
    assert_eq!((length(&head), head.more, head.zero_copy), (4, true, false));
    peer.sent(head, Ok(4));
    let body = peer.piece().unwrap();
    assert_eq!((length(&body), body.zero_copy), (100_000, true));
    peer.sent(body, Ok(60_000));
    let rest = peer.piece().unwrap();
    assert_eq!((length(&rest), rest.zero_copy), (40_000, true));
    peer.sent(rest, Ok(40_000));
    assert_eq!(peer.hears(), ["sent 1 100004"]);
    peer.connection.notified(1, Usage::ZeroCopy, &mut peer.events);
    assert!(peer.hears().is_empty());
    peer.connection.notified(1, Usage::ZeroCopy, &mut peer.events);
    assert_eq!(peer.hears(), ["released 1 ZeroCopy"]);
}

#[test]
fn a_reset_waits_for_operations_and_notifications_before_it_says_closed() {
    let mut peer = Peer::new(false);
    let big = vec![0; 100_000];
    peer.send(1, SendFlags(0), vec![chunk(&big, true)]).unwrap();
    peer.send(2, SendFlags(0), vec![chunk(b"x", false)]).unwrap();
    assert!(peer.connection.begin_receive(false));
    let piece = peer.piece().unwrap();
    peer.connection.reset(Reason::Overload, &mut peer.events);
    assert_eq!((peer.end(), peer.end()), (Some(End::Abort), None));
    peer.sent(piece, Ok(50_000));
    assert!(peer.piece().is_none());
    assert_eq!(peer.end(), None, "a receive is still under way");
    peer.connection.receive_failed(&mut peer.events);
    assert_eq!(peer.end(), Some(End::Close));
    assert_eq!(peer.hears(), ["released 2 Dropped"]);
    assert!(!peer.connection.is_over());
    peer.connection.notified(1, Usage::ZeroCopy, &mut peer.events);
    assert_eq!(peer.hears(), ["released 1 Dropped", "closed Overload"]);
    assert!(peer.connection.is_over());
}

#[test]
fn receiving_stops_at_the_window_and_goes_on_when_it_is_consumed() {
    let mut peer = Peer::new(true);
    for _ in 0..4 {
        peer.received(&[0; RECEIVE_WINDOW / 4]);
    }
    assert!(!peer.connection.begin_receive(false));
    assert_eq!(peer.hears().len(), 8);
    assert!(!peer.connection.begin_receive(true), "the client's queue is full");
    assert!(peer.connection.begin_receive(false));
    assert!(!peer.connection.begin_receive(false), "one receive at a time");
}

#[test]
fn a_closing_send_is_followed_by_the_shutdown_and_the_peers_end() {
    let mut peer = Peer::new(true);
    peer.send(1, SendFlags::CLOSE, vec![chunk(b"bye", false)]).unwrap();
    assert_eq!(peer.send(2, SendFlags(0), vec![chunk(b"more", false)]), Err(SendError::Closed));
    assert_eq!(peer.end(), None);
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(3));
    assert_eq!((peer.end(), peer.end()), (Some(End::ShutdownWrite), None));
    peer.received(b"what nobody wants to hear");
    assert_eq!(peer.end(), None);
    peer.received(b"");
    let Peer { connection, events, .. } = &mut peer;
    assert_eq!(connection.next_end(|| 5, events), None, "the peer does not have everything");
    assert_eq!(peer.end(), Some(End::Close));
    assert_eq!(peer.hears(), ["sent 1 3", "released 1 Copied", "closed Closed"]);
}

#[test]
fn a_peer_that_ends_its_side_first_still_gets_the_answer() {
    let mut peer = Peer::new(true);
    peer.received(b"GET");
    peer.received(b"");
    assert!(!peer.connection.begin_receive(false));
    peer.send(1, SendFlags::CLOSE, vec![chunk(b"bye", false)]).unwrap();
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(3));
    assert_eq!((peer.end(), peer.end()), (Some(End::ShutdownWrite), Some(End::Close)));
    assert_eq!(peer.hears(), ["received 3", "Finished", "sent 1 3", "released 1 Copied", "closed Closed"]);
}

#[test]
fn an_empty_closing_send_and_a_plain_close_end_in_order_too() {
    for by_flag in [true, false] {
        let mut peer = Peer::new(true);
        if by_flag {
            peer.send(1, SendFlags::CLOSE, vec![]).unwrap();
            assert!(peer.piece().is_none());
            assert_eq!(peer.hears(), ["sent 1 0", "released 1 Copied"]);
        } else {
            peer.connection.close(START, &mut peer.events);
        }
        assert_eq!(peer.end(), Some(End::ShutdownWrite));
        peer.received(b"");
        assert_eq!(peer.end(), Some(End::Close));
        assert_eq!(peer.hears(), ["closed Closed"]);
    }
}

#[test]
fn after_fin_receiving_goes_on_and_sending_does_not() {
    let mut peer = Peer::new(true);
    peer.send(1, SendFlags::FIN, vec![chunk(b"bye", false)]).unwrap();
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(3));
    assert_eq!((peer.end(), peer.end()), (Some(End::ShutdownWrite), None));
    peer.received(b"thanks");
    assert_eq!(peer.hears(), ["sent 1 3", "released 1 Copied", "received 6"]);
    assert_eq!(peer.connection.may_send(), Err(SendError::Closed));
}

#[test]
fn too_many_sends_or_bytes_are_refused_until_some_are_sent() {
    let mut peer = Peer::new(true);
    for id in 0..Limits::default().sends as u64 {
        peer.send(id, SendFlags(0), vec![chunk(b"x", false)]).unwrap();
    }
    assert_eq!(peer.send(99, SendFlags(0), vec![]), Err(SendError::Full));
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(1));
    peer.hears();
    peer.send(99, SendFlags(0), vec![]).unwrap();
}

#[test]
fn a_reader_without_progress_is_reset_and_a_slow_one_is_not() {
    let limits = Limits::default();
    let mut peer = Peer::new(true);
    let big = vec![0; 1 << 20];
    peer.send(1, SendFlags(0), vec![chunk(&big, true)]).unwrap();
    let piece = peer.piece().unwrap();
    peer.sent(piece, Ok(500_000));
    let piece = peer.piece().unwrap();
    // Slow: a little more than the least progress in each stall time.
    let mut undelivered = 400_000;
    for round in 1..5 {
        peer.connection.tick(START + limits.stall * round - Duration::from_secs(1), undelivered, &mut peer.events);
        undelivered -= limits.progress_bytes;
    }
    assert_eq!(peer.end(), None);
    // Then one byte a second.
    peer.connection.tick(START + limits.stall * 6, undelivered, &mut peer.events);
    peer.connection.tick(START + limits.stall * 7, undelivered - 60, &mut peer.events);
    assert_eq!(peer.end(), Some(End::Abort));
    peer.sent(piece, Err(()));
    assert_eq!(peer.end(), Some(End::Close));
    assert_eq!(peer.hears(), ["released 1 Dropped", "closed TimedOut"]);
}

#[test]
fn a_peer_that_never_ends_its_side_is_closed_after_the_lingering_time() {
    let mut peer = Peer::new(true);
    peer.connection.close(START, &mut peer.events);
    assert_eq!(peer.end(), Some(End::ShutdownWrite));
    assert!(peer.connection.begin_receive(false));
    peer.connection.tick(START + Duration::from_secs(2), 1, &mut peer.events);
    peer.connection.tick(START + Duration::from_secs(4), 0, &mut peer.events);
    peer.connection.tick(START + Duration::from_secs(8), 0, &mut peer.events);
    assert_eq!(peer.end(), None);
    peer.connection.tick(START + Duration::from_secs(9), 0, &mut peer.events);
    assert_eq!(peer.end(), Some(End::Abort));
    peer.connection.received(b"", &mut peer.events);
    assert_eq!(peer.end(), Some(End::Close));
    assert_eq!(peer.hears(), ["closed Closed"]);
}

/// What a random peer and a random client do.
#[derive(Clone, Debug)]
enum Deed {
    Send { flags: u8, chunks: Vec<(usize, bool)> },
    Sent { part: u8, error: bool },
    Notify,
    Receive(usize),
    ReceiveFails,
    Close,
    Reset,
    Tick(u64),
    Revoke,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0u8..16, proptest::collection::vec((0usize..40_000, any::<bool>()), 0..4)).prop_map(|(flags, chunks)| Deed::Send { flags: if flags < 8 { flags & 1 } else { flags & 7 }, chunks }),
        8 => (any::<u8>(), proptest::bool::weighted(0.05)).prop_map(|(part, error)| Deed::Sent { part, error }),
        4 => Just(Deed::Notify),
        4 => (0usize..5000).prop_map(Deed::Receive),
        1 => Just(Deed::ReceiveFails),
        1 => Just(Deed::Close),
        1 => Just(Deed::Reset),
        1 => (0u64..100).prop_map(Deed::Tick),
        1 => Just(Deed::Revoke),
    ]
}

proptest! {
    /// Bytes go out in order, each send is released exactly once, after it was let go of; `Closed` is last.
    #[test]
    fn whatever_happens_every_send_is_released_once_and_closed_comes_last(local in any::<bool>(), deeds in proptest::collection::vec(deed(), 0..60)) {
        let mut peer = Peer::new(local);
        let mut piece: Option<Piece<Bytes>> = None;
        let mut notifications: VecDeque<u64> = VecDeque::new();
        let mut accepted: Vec<u64> = Vec::new();
        let mut promised: Vec<u8> = Vec::new();
        let mut wire: Vec<u8> = Vec::new();
        let mut live = Vec::new();
        let mut heard = Vec::new();
        let mut receiving = false;
        let mut closed_descriptor = false;
        let finish = [Deed::Reset, Deed::Sent { part: 0, error: true }, Deed::ReceiveFails];
        let notify_all = vec![Deed::Notify; 400];
        for deed in deeds.iter().chain(&finish).chain(&notify_all) {
            match deed {
                Deed::Send { flags, chunks } => {
                    let id = accepted.len() as u64;
                    let chunks: Vec<Bytes> = chunks.iter().map(|(length, pages)| chunk(&vec![id as u8; *length], *pages)).collect();
                    if peer.send(id, SendFlags(*flags), chunks.clone()).is_ok() {
                        accepted.push(id);
                        promised.extend(chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()));
                        live.extend(chunks.iter().map(|chunk| chunk.live.clone()));
                    }
                }
                Deed::Sent { part, error } => {
                    if let Some(piece) = piece.take() {
                        prop_assert!(!closed_descriptor);
                        let taken = if *error { 0 } else { (length(&piece) * (usize::from(*part) + 1)).div_ceil(256) };
                        let bytes: Vec<u8> = piece.chunks.iter().flat_map(|chunk| chunk.bytes[chunk.start..].iter().copied()).take(taken).collect();
                        wire.extend(bytes);
                        if piece.zero_copy {
                            notifications.push_back(piece.send);
                        }
                        peer.sent(piece, if *error { Err(()) } else { Ok(taken) });
                    }
                }
                Deed::Notify => if let Some(send) = notifications.pop_front() {
                    peer.connection.notified(send, Usage::Copied, &mut peer.events);
                }
                Deed::Receive(length) => if receiving {
                    receiving = false;
                    peer.connection.received(&vec![0; *length], &mut peer.events);
                }
                Deed::ReceiveFails => if receiving {
                    receiving = false;
                    peer.connection.receive_failed(&mut peer.events);
                }
                Deed::Close => peer.connection.close(peer.now, &mut peer.events),
                Deed::Reset => peer.connection.reset(Reason::Overload, &mut peer.events),
                Deed::Tick(seconds) => {
                    peer.now += Duration::from_secs(*seconds);
                    peer.connection.tick(peer.now, 0, &mut peer.events);
                }
                Deed::Revoke => for lease in &live {
                    lease.set(Liveness::Ended);
                },
            }
            // The shell's loop.
            if piece.is_none() {
                piece = peer.piece();
                if let Some(piece) = &piece {
                    prop_assert!(!closed_descriptor && length(piece) > 0);
                    prop_assert!(piece.chunks.iter().all(|chunk| chunk.liveness() == Liveness::Live));
                    prop_assert!(!piece.zero_copy || (piece.chunks.len() == 1 && piece.chunks[0].pages && !local));
                }
            }
            receiving |= peer.connection.begin_receive(false);
            while let Some(end) = peer.end() {
                if end == End::Close {
                    prop_assert!(piece.is_none() && !receiving && !closed_descriptor);
                    closed_descriptor = true;
                }
            }
            heard.extend(peer.hears());
        }
        prop_assert!(promised.starts_with(&wire), "bytes were lost, doubled or overtook each other");
        prop_assert!(peer.connection.is_over() && closed_descriptor);
        prop_assert!(heard.pop().unwrap().starts_with("closed"));
        let mut released: Vec<u64> = heard.iter().filter_map(|event| event.strip_prefix("released ")?.split(' ').next()?.parse().ok()).collect();
        released.sort_unstable();
        prop_assert_eq!(released, accepted);
        prop_assert!(!heard.iter().any(|event| event.starts_with("closed")));
    }
}
