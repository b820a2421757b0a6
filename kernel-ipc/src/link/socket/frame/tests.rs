use proptest::prelude::*;

use super::super::inbox::{Frame, Inbox};
use super::super::outbox::Outbox;
use super::*;
use crate::id::LenderId;
use crate::link::Body;
use crate::wire::{LeaseName, MAX_CAPABILITIES, MAX_LEASES, Submission};

const SHAPE: Shape = Shape { slots: 4, window_bytes: 4096 };

fn hello() -> Hello {
    let interface = interface_bytes("atoll.fs/1").expect("a name");
    Hello { shape: SHAPE, session: SessionId(7), number: 3, outstanding: 2, secret: [9; SECRET_BYTES], interface }
}

fn a_welcome() -> Welcome {
    let root = Handle { index: 1, generation: 2 };
    Welcome { shape: SHAPE, session: SessionId(7), epoch: Epoch(4), root, number: 3 }
}

/// The bytes of a message, as an outbox writes them.
fn message(seq: u64, slot: u16, payload: &[u8], leases: &[LeaseName], capabilities: &[Handle]) -> Vec<u8> {
    let extent =
        Extent { length: payload.len() as u32, capabilities: capabilities.len() as u8, leases: leases.len() as u8 };
    let inline = crate::wire::inline_words(payload);
    let submission = Submission { slot, seq, extent, inline, ..Submission::default() };
    let payload = if extent.is_inline() { &[] } else { payload };
    let mut outbox = Outbox::new(SHAPE);
    outbox.push(&submission.to_raw(), slot, &Body { leases, capabilities, payload }, 0).expect("room");
    outbox.unsent().to_vec()
}

/// What an inbox makes of bytes that come in pieces.
fn received(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut inbox = Inbox::new(SHAPE);
    let (mut left, mut frames) = (bytes, Vec::new());
    loop {
        while let Some(frame) = inbox.next()? {
            frames.push(frame);
        }
        if left.is_empty() {
            return Ok(frames);
        }
        let _ = inbox.fill(|room| {
            let count = piece.min(room.len()).min(left.len());
            room[..count].copy_from_slice(&left[..count]);
            left = &left[count..];
            Ok::<_, ()>(count)
        });
    }
}

#[test]
fn greetings_have_the_drawn_bytes_and_come_back() {
    let bytes = hello().to_bytes();
    assert_eq!(bytes[..8], *b"ATOLL-N1");
    assert_eq!(bytes[8..24], [3, 0, 0, 0, 4, 0, 4, 0, 0, 16, 0, 0, 2, 0, 0, 0]);
    assert_eq!(bytes[24..40], [7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((bytes[40], bytes[71], &bytes[72..83]), (9, 9, &b"atoll.fs/1\0"[..]));
    assert_eq!(Hello::check(&bytes), Ok(hello()));
    assert_eq!(Welcome::check(&a_welcome().to_bytes(), &hello()), Ok(a_welcome()));
    for number in 0..=9 {
        let bytes = u64::to_le_bytes(number);
        let refusal = Refusal::check(bytes);
        assert_eq!(refusal.is_ok(), (1..=8).contains(&number), "{number}");
        assert_eq!(refusal.map_or(bytes, Refusal::to_bytes), bytes);
    }
    assert!(Refusal::check((2u64 | 1 << 40).to_le_bytes()).is_err(), "a detail where none belongs");
}

#[test]
fn a_secret_is_never_printed() {
    assert!(!format!("{:?}", hello()).contains('9'));
}

#[test]
fn a_hello_with_an_impossible_field_is_refused() {
    let broken = |at: usize, byte: u8| {
        let mut bytes = hello().to_bytes();
        bytes[at] = byte;
        Hello::check(&bytes)
    };
    assert_eq!(broken(0, 0), Err(BadHello::Frame(FrameError::Magic)));
    assert_eq!(broken(8, 9), Err(BadHello::Version(9)));
    for (at, byte) in [(12, 0), (12, 65), (13, 1), (14, 3), (16, 1), (18, 2)] {
        assert_eq!(broken(at, byte), Err(BadHello::Shape), "{at}");
    }
    assert_eq!(broken(20, 5), Err(BadHello::Frame(FrameError::Extent)), "more outstanding than slots");
    assert_eq!(broken(24, 0), Err(BadHello::Frame(FrameError::Extent)), "outstanding calls of a new session");
    assert_eq!(broken(22, 1), Err(BadHello::Frame(FrameError::NotZero)));
    assert!(
        interface_bytes(&"x".repeat(65)).is_err() && interface_bytes("").is_err() && interface_bytes("a\0").is_err()
    );
}

#[test]
fn a_welcome_to_somebody_else_is_none() {
    let broken = |at: usize, byte: u8| {
        let mut bytes = a_welcome().to_bytes();
        bytes[at] = byte;
        Welcome::check(&bytes, &hello())
    };
    assert_eq!(broken(1, 0), Err(FrameError::Magic));
    assert_eq!(broken(8, 2), Err(FrameError::Magic));
    assert_eq!(broken(20, 1), Err(FrameError::NotZero));
    for at in [12, 14, 17, 24, 48] {
        assert_eq!(broken(at, 9), Err(FrameError::NotAnAnswer), "{at}");
    }
    assert_eq!(broken(24, 0), Err(FrameError::NotAnAnswer), "session 0");
}

#[test]
fn each_kind_has_its_lengths() {
    let check = |kind: u16, length: usize| Header::check(header(kind, length), SHAPE.window_bytes);
    for (kind, least, most) in [
        (kind::HELLO, 136, 136),
        (kind::WELCOME, 56, 56),
        (kind::REFUSED, 8, 8),
        (kind::MESSAGE, 64, 64 + 4096),
        (kind::HEARTBEAT, 0, 0),
        (kind::BYE, 8, 8),
        (kind::BULK, 64, 64),
        (kind::READY, 0, 0),
        (kind::PULL, 32, 32),
        (kind::PIECE, 8, 8 + CHUNK),
    ] {
        for length in [least, most] {
            assert_eq!(check(kind, length), Ok(Header { kind, length }));
        }
        let too_long = u32::try_from(most + 1).expect("small");
        assert_eq!(check(kind, most + 1), Err(FrameError::Length { kind, length: too_long }));
        assert!(least == 0 || check(kind, least - 1).is_err());
        assert!(check(kind, u32::MAX as usize).is_err());
    }
    assert_eq!(check(0, 0), Err(FrameError::Kind(0)));
    assert_eq!(check(11, 0), Err(FrameError::Kind(11)));
    let mut odd = header(kind::HEARTBEAT, 0);
    odd[7] = 1;
    assert_eq!(Header::check(odd, SHAPE.window_bytes), Err(FrameError::NotZero));
}

#[test]
fn a_message_must_be_as_long_as_its_descriptor_says() {
    let good = message(1, 2, &[5; 100], &[], &[]);
    assert_eq!(received(&good, 9).map(|frames| frames.len()), Ok(1));
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        received(&bytes, 1000).map(|frames| frames.len())
    };
    assert_eq!(broken(&|bytes| bytes[0] += 1), Ok(0), "a byte is awaited that never comes");
    assert_eq!(
        broken(&|bytes| {
            bytes[0] += 1;
            bytes.push(0);
        }),
        Err(FrameError::Tail { said: 165, meant: 164 })
    );
    assert_eq!(broken(&|bytes| bytes[8 + 16] = 101), Err(FrameError::Tail { said: 164, meant: 165 }));
    assert_eq!(broken(&|bytes| bytes[8 + 19] = 1), Err(FrameError::Extent));
    assert_eq!(broken(&|bytes| bytes[8 + 20] = 17), Err(FrameError::Extent), "17 capabilities");
    assert_eq!(broken(&|bytes| bytes[8 + 21] = 9), Err(FrameError::Extent), "9 leases");
    assert_eq!(broken(&|bytes| bytes[8 + 22] = 1), Err(FrameError::NotZero));
    assert_eq!(broken(&|bytes| bytes[8] = 1), Err(FrameError::NotZero), "a lap");
    assert_eq!(
        broken(&|bytes| bytes[4] = kind::HELLO as u8),
        Err(FrameError::Length { kind: kind::HELLO, length: 164 })
    );
}

#[test]
fn what_is_asked_of_leases_comes_back_as_it_was_written() {
    let bulk = Bulk { session: SessionId(7), way: Way::ToClient, number: 3, secret: [9; SECRET_BYTES] };
    for bulk in [bulk, Bulk { way: Way::ToHost, ..bulk }] {
        assert_eq!(Bulk::check(&bulk.to_bytes()).map(|checked| checked == bulk), Ok(true));
    }
    let broken = |at: usize, byte: u8| {
        let mut bytes = bulk.to_bytes();
        bytes[at] = byte;
        Bulk::check(&bytes).err()
    };
    assert_eq!(broken(0, 0), Some(BadHello::Frame(FrameError::Magic)));
    assert_eq!(broken(8, 9), Some(BadHello::Version(9)));
    assert_eq!(broken(12, 2), Some(BadHello::Frame(FrameError::Way(2))));
    assert_eq!(broken(13, 1), Some(BadHello::Frame(FrameError::Way(256))));

    let pull = Pull { lender: LenderId(1), index: 2, generation: 3, offset: 4, length: 5, tag: 6 };
    assert_eq!(Pull::check(&pull.to_bytes()), Ok(pull));
    for (length, fits) in [(0, false), (1, true), (CHUNK as u32, true), (CHUNK as u32 + 1, false), (u32::MAX, false)] {
        assert_eq!(Pull::check(&Pull { length, ..pull }.to_bytes()).is_ok(), fits, "{length}");
    }
}

#[test]
fn what_belongs_to_other_connections_is_refused_in_an_open_session() {
    for (kind, length) in [(kind::BULK, BULK_BYTES), (kind::READY, 0), (kind::PULL, PULL_BYTES), (kind::PIECE, 8)] {
        let bytes = [&header(kind, length)[..], &vec![0; length]].concat();
        assert_eq!(received(&bytes, 1000), Err(FrameError::Kind(kind)));
    }
}

#[test]
fn a_greeting_in_an_open_session_is_refused() {
    let hello = [&header(kind::HELLO, HELLO_BYTES)[..], &hello().to_bytes()].concat();
    assert_eq!(received(&hello, 1000), Err(FrameError::Kind(kind::HELLO)));
}

fn a_message() -> impl Strategy<Value = Vec<u8>> {
    let lease =
        (any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(lender, index, generation, length)| {
            LeaseName { lender: LenderId(lender), index, generation, length }
        });
    let handle = (any::<u32>(), any::<u32>()).prop_map(|(index, generation)| Handle { index, generation });
    let names =
        (proptest::collection::vec(lease, 0..=MAX_LEASES), proptest::collection::vec(handle, 0..=MAX_CAPABILITIES));
    (1u64.., 0..SHAPE.all_slots(), proptest::collection::vec(any::<u8>(), 0..3000), names)
        .prop_map(|(seq, slot, payload, (leases, capabilities))| message(seq, slot, &payload, &leases, &capabilities))
}

proptest! {
    /// However a stream is cut into pieces, its frames come whole, in order and unchanged.
    #[test]
    fn frames_come_as_they_were_sent(messages in proptest::collection::vec(a_message(), 1..20), piece in 1usize..5000) {
        let frames = received(&messages.concat(), piece).expect("a correct peer");
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, bytes) in frames.iter().zip(&messages) {
            let Frame::Message(descriptor) = frame else { panic!("{frame:?}") };
            prop_assert_eq!(&descriptor_bytes(descriptor)[..], &bytes[8..72]);
        }
    }

    /// Whatever a peer sends, at worst the session ends.
    #[test]
    fn no_bytes_do_more_than_end_the_session(bytes in proptest::collection::vec(any::<u8>(), 0..5000), piece in 1usize..5000) {
        let _ = received(&bytes, piece);
    }

    /// A byte that was changed on the way is seen, or names something else; it never moves the frames after it into each
    /// other unseen: what is understood after it is at most as many frames as were sent.
    #[test]
    fn a_flipped_byte_makes_no_more_frames(
        messages in proptest::collection::vec(a_message(), 1..6),
        at in any::<proptest::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut bytes = messages.concat();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(frames) = received(&bytes, 700) {
            let plain = frames.iter().filter(|frame| matches!(frame, Frame::Message(_))).count();
            prop_assert!(plain <= messages.len());
        }
    }

    /// Greetings are checked whatever their bytes.
    #[test]
    fn no_greeting_panics(hello in any::<[u8; 32]>(), fill in any::<u8>(), at in 0usize..100) {
        let mut bytes = [fill; HELLO_BYTES];
        bytes[at..at + 32].copy_from_slice(&hello);
        let _ = Hello::check(&bytes);
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        if let Ok(checked) = Hello::check(&bytes) {
            prop_assert!(checked.outstanding <= checked.shape.slots);
        }
        let mut bytes = [fill; WELCOME_BYTES];
        let at = at.min(24);
        bytes[at..at + 32].copy_from_slice(&hello);
        let _ = Welcome::check(&bytes, &self::hello());
    }
}
