//! Batches of directory entries and events: what comes from a peer is checked, and never believed.

use kernel_ipc::codec::Malformed;
use proptest::prelude::*;
use protocol::fs::{BadPath, DirectoryEntry, DirectoryPage, Kind, Name, Path};
use protocol::net::{Event, EventBatch, Reason, Released};

fn entry(inode: u64, name: &str) -> DirectoryEntry<'_> {
    DirectoryEntry { inode, kind: Kind::File, name: Name::new(name).expect("a name") }
}

#[test]
fn a_full_page_refuses_an_entry_and_stays_as_it_was() {
    let mut page = DirectoryPage::default();
    let count = (0..).take_while(|inode| page.push(&entry(*inode, "name"), 100)).count();
    assert_eq!(count, 100 / 17);
    assert_eq!(page.entries().count(), count);
    assert!(page.push(&entry(9, "n"), 100), "a shorter one still fits");
}

#[test]
fn an_entry_with_a_bad_name_is_malformed() {
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 1];
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name);
        let page = DirectoryPage { next: None, bytes };
        assert_eq!(page.entries().collect::<Vec<_>>(), [Err(Malformed)]);
    }
}

#[test]
fn each_bad_path_says_why() {
    for (path, why) in [
        ("/a", BadPath::Empty),
        ("a/", BadPath::Empty),
        ("a//b", BadPath::Empty),
        ("a/./b", BadPath::Dots),
        ("..", BadPath::Dots),
        ("a/../../b", BadPath::Dots),
        ("a\0", BadPath::Byte),
        (&"n".repeat(256), BadPath::TooLong),
        (&"n/".repeat(2000), BadPath::TooLong),
    ] {
        assert_eq!(Path::new(path), Err(why), "{path}");
    }
    assert_eq!(Name::new("a/b"), Err(BadPath::Byte));
    assert_eq!(Path::new("").expect("the directory itself").names().count(), 0);
    let path = Path::new("a/...b/c").expect("a path");
    assert_eq!(path.names().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>(), [&b"a"[..], b"...b", b"c"]);
}

#[test]
fn an_event_has_one_form_only() {
    let event = Event::Closed { connection: 1, reason: Reason::Closed };
    let mut batch = EventBatch::default();
    assert!(batch.push(&event, EventBatch::LIMIT));
    assert_eq!(batch.events().collect::<Vec<_>>(), [Ok(event)]);
    // Kind, then the fields that a closed event does not have, an unknown reason, one that needs two bytes.
    for (at, value) in [(0, 0), (0, 8), (0, 2), (9, 1), (17, 0), (17, 99), (18, 1)] {
        let mut bad = batch.clone();
        bad.bytes[at] = value;
        assert_eq!(bad.events().collect::<Vec<_>>(), [Err(Malformed)], "byte {at} = {value}");
    }
    let longer = EventBatch { bytes: [&batch.bytes[..], &[0]].concat(), ..batch };
    assert_eq!(longer.events().collect::<Vec<_>>(), [Ok(event), Err(Malformed)]);
}

#[test]
fn a_full_batch_refuses_an_event() {
    let event = Event::Received { connection: 1, bytes: &[7; 100] };
    let mut batch = EventBatch::default();
    assert!(!batch.push(&event, event.packed_bytes() - 1));
    assert!(batch.bytes.is_empty());
    assert!(batch.push(&event, event.packed_bytes()));
}

#[derive(Clone, Debug)]
enum Owned {
    Accepted(u64, u8, String),
    Received(u64, Vec<u8>),
    Finished(u64),
    Sent(u64, u64, u64),
    Released(u64, u64, Released),
    Closed(u64, Reason),
}

impl Owned {
    fn event(&self) -> Event<'_> {
        match self {
            Owned::Accepted(connection, capability, peer) => {
                Event::Accepted { connection: *connection, capability: *capability, peer }
            }
            Owned::Received(connection, bytes) => Event::Received { connection: *connection, bytes },
            Owned::Finished(connection) => Event::Finished { connection: *connection },
            &Owned::Sent(connection, send, bytes) => Event::Sent { connection, send, bytes },
            &Owned::Released(connection, send, how) => Event::Released { connection, send, how },
            &Owned::Closed(connection, reason) => Event::Closed { connection, reason },
        }
    }
}

fn any_event() -> impl Strategy<Value = Owned> {
    let how = prop_oneof![Just(Released::Copied), Just(Released::ZeroCopy), Just(Released::Dropped)];
    let reason = prop_oneof![Just(Reason::Closed), Just(Reason::Reset), Just(Reason::TimedOut), Just(Reason::Overload)];
    prop_oneof![
        (any::<u64>(), any::<u8>(), ".{0,20}").prop_map(|(id, capability, peer)| Owned::Accepted(id, capability, peer)),
        (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(id, bytes)| Owned::Received(id, bytes)),
        any::<u64>().prop_map(Owned::Finished),
        any::<(u64, u64, u64)>().prop_map(|(id, send, bytes)| Owned::Sent(id, send, bytes)),
        (any::<u64>(), any::<u64>(), how).prop_map(|(id, send, how)| Owned::Released(id, send, how)),
        (any::<u64>(), reason).prop_map(|(id, reason)| Owned::Closed(id, reason)),
    ]
}

proptest! {
    #[test]
    fn events_come_out_as_they_went_in(events in proptest::collection::vec(any_event(), 0..20)) {
        let mut batch = EventBatch::default();
        for event in &events {
            prop_assert!(batch.push(&event.event(), EventBatch::LIMIT));
        }
        let out: Result<Vec<_>, _> = batch.events().collect();
        prop_assert_eq!(out, Ok(events.iter().map(Owned::event).collect()));
    }

    #[test]
    fn a_damaged_batch_gives_events_or_an_error_and_ends(
        events in proptest::collection::vec(any_event(), 1..10),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut batch = EventBatch::default();
        for event in &events {
            batch.push(&event.event(), EventBatch::LIMIT);
        }
        for (at, value) in damage {
            let at = at.index(batch.bytes.len());
            batch.bytes[at] = value;
        }
        batch.bytes.truncate(cut.index(batch.bytes.len() + 1));
        // Whatever was accepted is exactly the beginning of the batch.
        let mut again = EventBatch::default();
        for event in batch.events().map_while(Result::ok) {
            again.push(&event, usize::MAX);
        }
        prop_assert!(batch.bytes.starts_with(&again.bytes));
        prop_assert!(batch.events().count() <= batch.bytes.len());
    }

    #[test]
    fn random_bytes_are_never_too_much(bytes in proptest::collection::vec(0u8..12, 0..200)) {
        let page = DirectoryPage { next: None, bytes: bytes.clone() };
        let mut again = DirectoryPage::default();
        for entry in page.entries().map_while(Result::ok) {
            again.push(&entry, usize::MAX);
        }
        prop_assert!(page.bytes.starts_with(&again.bytes));
        let batch = EventBatch { next: 0, bytes };
        prop_assert!(batch.events().count() <= batch.bytes.len());
    }
}
