use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use super::ring::{BEGUN, Begun, SPANS, record_at, span};
use super::{Kind, Outcome, Span, Within, carried, current, of_call, of_guest, work};
use crate::Epoch;
use crate::logbook::{BYTES, Logbook, Reader, monotonic};
use crate::runtime::{Options, Runtime, spawn, yield_now};
use crate::sys::segment::{self, SegmentWriter};

fn memory() -> OwnedFd {
    let memory = segment::memfd("atoll-logbook").unwrap();
    segment::set_len(&memory, BYTES).unwrap();
    memory
}

fn reader(memory: &OwnedFd) -> Reader {
    let again = SegmentWriter::open_kept_for_readers(memory.try_clone().unwrap()).unwrap();
    Reader::open(again.fd().try_clone_to_owned().unwrap()).unwrap()
}

fn open(memory: &OwnedFd, epoch: u64) -> Rc<Logbook> {
    Logbook::open(memory.try_clone().unwrap(), Epoch(epoch)).unwrap()
}

fn all(reader: &Reader) -> Vec<Span> {
    let begun = reader.spans_begun();
    (begun.saturating_sub(Reader::SPANS)..begun).filter_map(|position| reader.span(position)).collect()
}

fn call(book: &Logbook, seq: u64) -> super::Open {
    let begun = Begun {
        kind: Kind::Call,
        trace: 7,
        session: 3,
        seq,
        slot: 1,
        operation: 2,
        begun_ns: monotonic(),
        ..Begun::default()
    };
    book.begin_span(begun, ["fs.root", "atoll.fs/1", ""])
}

#[test]
fn a_span_is_read_from_its_beginning_on_and_says_how_it_ended() {
    let memory = memory();
    let (book, reader) = (open(&memory, 5), reader(&memory));
    let under_way = call(&book, 9);
    let seen = &all(&reader)[0];
    assert_eq!((seen.call, seen.operation, seen.trace, seen.epoch), ((3, 1, 9), 2, 7, 5));
    assert_eq!((seen.endpoint.as_str(), seen.peer.as_str(), seen.ended), ("fs.root", "atoll.fs/1", None));
    book.end_span(&under_way, ["fs.root", "atoll.fs/1", ""], Outcome::OperationError(4));
    let ended = &all(&reader)[0];
    assert!(ended.ended.is_some_and(|(at, how)| Some(at) >= ended.started_ns && how == Outcome::OperationError(4)));
    assert_eq!(ended.id, seen.id);
}

#[test]
fn a_ring_keeps_the_last_ones_and_what_ends_after_a_lap_has_its_number_still() {
    let memory = memory();
    let (book, reader) = (open(&memory, 1), reader(&memory));
    let long = call(&book, 1);
    for seq in 0..SPANS as u64 + 10 {
        call(&book, seq + 2);
    }
    assert_eq!(reader.span(0), None);
    assert_eq!(all(&reader).len(), SPANS);
    book.end_span(&long, ["fs.root", "atoll.fs/1", ""], Outcome::Done);
    let last = all(&reader).pop().unwrap();
    assert_eq!((last.id, last.call.2, last.ended.map(|(_, how)| how)), (1, 1, Some(Outcome::Done)));
}

#[test]
fn a_run_that_dies_leaves_its_spans_and_the_next_one_goes_on_behind_them() {
    let memory = memory();
    let reader = {
        let first = open(&memory, 1);
        first.trace(3);
        let reader = reader(&memory);
        assert_eq!(reader.traced(), 3);
        call(&first, 1);
        reader
    };
    let second = open(&memory, 2);
    assert_eq!((reader.traced(), reader.epoch()), (0, 2));
    call(&second, 2);
    let seen: Vec<_> = all(&reader).into_iter().map(|span| (span.id, span.epoch, span.ended)).collect();
    assert_eq!(seen, [(1, 1, None), (2, 2, None)]);
    second.trace(0);
}

#[test]
fn nonsense_is_no_span() {
    let memory = memory();
    let (book, reader) = (open(&memory, 1), reader(&memory));
    let good = |seq| {
        let under_way = call(&book, seq);
        book.end_span(&under_way, ["fs.root", "atoll.fs/1", ""], Outcome::Done);
        let position = reader.spans_begun() - 1;
        assert!(reader.span(position).is_some());
        position
    };
    for (field, value) in [
        (span::STAMP, 0),
        (span::STAMP, u64::MAX),
        (span::ID, 0),
        (span::ID, u64::MAX),
        (span::TRACE, 0),
        (span::WHAT, 0),
        (span::WHAT, 77),
        // Above itself, and later than itself.
        (span::PARENT, u64::MAX),
        (span::STARTED, 0),
        (span::STARTED, u64::MAX),
        (span::SEEN, 1),
        (span::ENDED, 1),
        // Neither a status nor given up.
        (span::OUTCOME, 0xFF),
    ] {
        let position = good(field as u64);
        book.store(record_at(position) + field, value);
        assert_eq!(reader.span(position), None, "{field} = {value}");
    }
    let noise: Vec<u8> = (0..BYTES - record_at(0)).map(|at| (at as u8).wrapping_mul(31) | 1).collect();
    book.memory().copy_in(record_at(0), &noise).unwrap();
    book.memory().store_u64(BEGUN, u64::MAX, Relaxed);
    assert!(all(&reader).is_empty());
}

#[test]
fn a_logbook_without_room_for_spans_is_read_and_written_all_the_same() {
    let memory = segment::memfd("atoll-logbook").unwrap();
    segment::set_len(&memory, crate::logbook::REST_BYTES).unwrap();
    let (book, reader) = (open(&memory, 1), reader(&memory));
    book.trace(1);
    assert!(!super::is_on());
    assert_eq!((reader.traced(), reader.spans_begun(), reader.span(0)), (0, 0, None));
    assert_eq!(reader.read().unwrap().epoch, 1);
}

#[test]
fn one_in_so_many_beginnings_is_traced_and_off_is_off() {
    let memory = memory();
    let book = open(&memory, 1);
    book.trace(3);
    let traced: Vec<bool> = (0..9).map(|_| of_call().is_some()).collect();
    assert_eq!(traced, [true, false, false, true, false, false, true, false, false]);
    let keys: std::collections::BTreeSet<u64> = (0..9).filter_map(|_| of_guest()).collect();
    assert_eq!(keys.len(), 3);
    // Said again, it goes on counting.
    book.trace(3);
    assert!(of_call().is_some());
    book.trace(0);
    assert!(!super::is_on());
}

#[test]
fn what_began_before_it_was_switched_on_belongs_to_no_trace_that_begins_later() {
    let memory = memory();
    let book = open(&memory, 1);
    let span = Within::span(&call(&book, 1));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut stands = |carried: &mut std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        STOOD.set(Within::NOBODY);
        assert!(carried.as_mut().poll(&mut cx).is_pending());
        STOOD.get()
    };
    thread_local!(static STOOD: std::cell::Cell<Within> = const { std::cell::Cell::new(Within::NOBODY) });
    let watched = || -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(carried(
            span,
            std::future::poll_fn(|_| {
                STOOD.set(current());
                std::task::Poll::Pending
            }),
        ))
    };

    let mut before = watched();
    book.trace(1);
    let mut during = watched();
    assert_eq!((stands(&mut before), stands(&mut during)), (Within::NOBODY, span));
    // Said again, it is the same time still.
    book.trace(2);
    assert_eq!(stands(&mut during), span);
    book.trace(0);
    assert_eq!(stands(&mut during), Within::NOBODY);
    book.trace(1);
    assert_eq!((stands(&mut before), stands(&mut during)), (Within::NOBODY, Within::NOBODY));
    assert_eq!(stands(&mut watched()), span);
    book.trace(0);
}

#[test]
fn what_a_work_calls_and_spawns_belongs_to_it_and_to_nothing_else() {
    let memory = memory();
    let (book, reader) = (open(&memory, 1), reader(&memory));
    let runtime = Runtime::new(Options::default()).unwrap();
    let of_task = runtime.block_on(async {
        // Nobody has asked for it: the name is not even made.
        work(|| unreachable!(), async {}).await;
        book.trace(2);
        let outer = work(|| "GET /".into(), async {
            yield_now().await;
            let task = spawn(async {
                yield_now().await;
                of_call()
            });
            assert_eq!(task.await.unwrap(), of_call());
            let inner = work(|| "inner".into(), async { of_call() }).await;
            assert_ne!(inner, of_call());
            assert_eq!(inner.map(|(trace, _)| trace), of_call().map(|(trace, _)| trace));
            of_call()
        })
        .await;
        assert_eq!(current(), Within::NOBODY);
        // Of this one nobody wants to know, so nothing that it calls begins a trace either.
        let second = work(|| unreachable!(), async { (of_call(), spawn(async { of_call() }).await.unwrap()) }).await;
        assert_eq!(second, (None, None));
        let dropped = work(|| "dropped".into(), std::future::pending::<()>());
        assert!(crate::runtime::timeout(std::time::Duration::from_millis(1), dropped).await.is_err());
        // A task that was spawned when it was on ends when it is off.
        let late = spawn(carried(Within::UNTRACED, async { yield_now().await }));
        book.trace(0);
        late.await.unwrap();
        outer
    });
    let seen = all(&reader);
    let shown: Vec<_> = seen.iter().map(|span| (span.text.as_str(), span.ended.unwrap().1, span.parent)).collect();
    let first = seen[0].id;
    assert_eq!(
        shown,
        [("GET /", Outcome::Done, None), ("inner", Outcome::Done, Some(first)), ("dropped", Outcome::GivenUp, None)]
    );
    assert_eq!(of_task, Some((seen[0].trace, first)));
}
