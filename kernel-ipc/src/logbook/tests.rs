//! Logbooks between a writer, its next run and a reader.

use super::layout::{ROWS, header};
use super::*;
use crate::described::{Details, Types};
use crate::interface::{Description, Operation, Retry};
use crate::session::{Response, SessionInfo};
use crate::sys::segment;
use crate::{Failure, Incarnation, Rights, SessionId};

const fn operation(number: u16, name: &'static str) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::empty(),
        retry: Retry::Idempotent,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

static SHELVES: Description = Description {
    name: "atoll.shelves/1",
    kinds: &["Shelf"],
    rights: &[],
    operations: &[operation(1, "take"), operation(2, "put")],
    details: |_: &mut Types| -> Details { unreachable!("nobody asks") },
};

fn memory() -> OwnedFd {
    let memory = segment::memfd("logbook-test").unwrap();
    segment::set_len(&memory, BYTES).unwrap();
    memory
}

fn read(memory: &OwnedFd) -> Snapshot {
    let again = SegmentWriter::open_kept_for_readers(memory.try_clone().unwrap()).unwrap();
    Reader::open(again.fd().try_clone_to_owned().unwrap()).unwrap().read().unwrap()
}

fn session(book: &Rc<Logbook>, id: u64, client: &str) -> SessionLog {
    let info = SessionInfo {
        id: SessionId(id),
        epoch: Epoch(1),
        client: Incarnation(id),
        client_name: client.into(),
        attenuation: serde_json::Value::Null,
    };
    SessionLog::new(book, "hall", &info, &SHELVES)
}

/// A call that took so long.
fn call(log: &SessionLog, operation: u16, ns: u64, response: &Response) {
    let row = log.received(operation);
    let measured = log.is_measured(row);
    log.ended(row, response.into());
    if measured {
        log.took(row, ns);
    }
}

#[test]
fn calls_are_counted_by_session_and_operation_and_how_they_ended() {
    let memory = memory();
    let book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let (fs, guest) = (session(&book, 7, "fs"), session(&book, 8, "guest atoll"));
    call(&fs, 1, 50_000, &Response::default());
    call(&fs, 1, 70_000, &Response { operation_error: Some(3), ..Response::default() });
    call(&fs, 2, 50_000, &Response::failed(Failure::unknown(crate::Cause::BUSY)));
    call(&guest, 1, 9_000_000, &Response::default());
    guest.received(1);
    guest.refused(2);
    guest.refused(77);
    let seen = read(&memory);
    let rows: Vec<_> = seen
        .rows
        .iter()
        .map(|row| {
            let counted = [row.received, row.done, row.operation_errors, row.failed, row.refused, row.in_progress()];
            (row.client.as_str(), row.name.as_str(), counted)
        })
        .collect();
    let wanted = [
        ("fs", "take", [2, 1, 1, 0, 0, 0]),
        ("fs", "put", [1, 0, 0, 1, 0, 0]),
        ("guest atoll", "take", [2, 1, 0, 0, 0, 1]),
        ("guest atoll", "put", [0, 0, 0, 0, 1, 0]),
        ("guest atoll", "?", [0, 0, 0, 0, 1, 0]),
    ];
    assert_eq!(rows, wanted);
    assert!(seen.rows.iter().all(|row| row.endpoint == "hall" && row.open));
    assert_eq!(seen.rows[2].longest_ns, 9_000_000);
}

#[test]
fn short_calls_are_sampled_and_stand_for_the_others_long_ones_are_all_measured() {
    let memory = memory();
    let book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let log = session(&book, 7, "fs");
    let measured = |ns: u64, calls: u64| {
        (0..calls).for_each(|_| call(&log, 1, ns, &Response::default()));
        read(&memory).rows[0].buckets.iter().sum::<u64>()
    };
    // The first, then every sixteenth, which counts sixteen times.
    assert_eq!(measured(300, 1 + 160), 1 + 160);
    assert_eq!(measured(300, 15), 1 + 160);
    // Counts for the fifteen that were not measured, and from then on each for itself.
    assert_eq!(measured(20_000, 1), 177);
    assert_eq!(measured(20_000, 10), 187);
    let row = &read(&memory).rows[0];
    assert!((270..330).contains(&row.quantile(500)), "{}", row.quantile(500));
    assert!((17_500..=20_000).contains(&row.quantile(990)), "{}", row.quantile(990));
    assert_eq!(row.done, 1 + 160 + 15 + 11);
}

#[test]
fn figures_outlive_the_run_and_what_was_under_way_is_lost() {
    let memory = memory();
    let first = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let log = session(&first, 7, "fs");
    call(&log, 1, 50_000, &Response::default());
    log.received(1);
    let using = UseLog::new(&first, SessionId(9), "disk.disk", "atoll.block/1").unwrap();
    using.called(3, 2, 1234);
    first.store(header::RUNNING, Place { row: 1, slot: 5 }.to_word());
    let dead = read(&memory);
    assert_eq!(dead.rows[0].in_progress(), 1);
    assert_eq!(dead.running, Some(Place { row: 1, slot: 5 }));
    let outstanding = Outstanding { slot: 3, operation: 2, since_ns: 1234, caller: None };
    assert_eq!(dead.uses[0].outstanding, [outstanding]);
    // It was killed: nothing is dropped.
    std::mem::forget((log, using));

    let second = Logbook::open(memory.try_clone().unwrap(), Epoch(2)).unwrap();
    let seen = read(&memory);
    assert_eq!((seen.epoch, seen.since_ns), (2, dead.since_ns));
    assert_eq!((seen.rows[0].lost, seen.rows[0].in_progress(), seen.rows[0].open), (1, 0, false));
    assert!(seen.uses.is_empty() && seen.running.is_none());
    // Of a session that survives, the row goes on.
    let log = session(&second, 7, "fs");
    call(&log, 1, 50_000, &Response::default());
    let seen = read(&memory);
    assert_eq!((seen.rows.len(), seen.rows[0].received, seen.rows[0].open), (1, 3, true));
}

#[test]
fn rows_of_ended_sessions_are_summed_up_when_there_are_no_others_and_then_all_else_is_others() {
    let memory = memory();
    let book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    for id in 1..=ROWS as u64 * 3 {
        call(&session(&book, id, "guest atoll"), 1, 50_000, &Response::default());
    }
    let seen = read(&memory);
    assert!(seen.rows.len() < ROWS && seen.rows.iter().all(|row| row.index != 0));
    assert_eq!(seen.rows.iter().map(|row| row.done).sum::<u64>(), ROWS as u64 * 3);
    let open: Vec<SessionLog> = (1000..1000 + ROWS as u64).map(|id| session(&book, id, "fs")).collect();
    open.iter().for_each(|log| call(log, 2, 50_000, &Response::default()));
    let seen = read(&memory);
    assert_eq!(seen.rows.len(), ROWS);
    assert_eq!(seen.rows.iter().map(|row| row.received).sum::<u64>(), ROWS as u64 * 4);
    // The first row is everybody's; one more is what is left of all the guests.
    let others = &seen.rows[0];
    assert_eq!((others.index, others.done, others.name.as_str()), (0, 2, ""));
    // What the others have left can be had again.
    drop(open);
    call(&session(&book, 5000, "net"), 1, 50_000, &Response::default());
    assert!(read(&memory).rows.iter().any(|row| row.client == "net"));
}

#[test]
fn a_call_knows_which_handler_has_made_it() {
    let memory = memory();
    let book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let using = UseLog::new(&book, SessionId(9), "disk.disk", "atoll.block/1").unwrap();
    book.running.set(watch::Running { place: 1, session: 7, slot: 63 });
    using.called(0, 2, 5);
    assert_eq!(read(&memory).uses[0].outstanding[0].caller, Some((7, 63)));
    using.ended(0);
    using.called(200, 2, 5);
    assert!(read(&memory).uses[0].outstanding.is_empty());
    drop(using);
    assert!(read(&memory).uses.is_empty());
}

#[test]
fn sessions_beyond_those_that_have_room_are_counted() {
    let memory = memory();
    let book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let uses: Vec<Option<UseLog>> =
        (0..USES as u64 + 2).map(|id| UseLog::new(&book, SessionId(id + 1), "disk.disk", "atoll.block/1")).collect();
    assert_eq!(uses.iter().filter(|using| using.is_none()).count(), 2);
    assert_eq!(read(&memory).uses_missed, 2);
}

#[test]
fn what_makes_no_sense_is_begun_anew_and_read_as_nothing() {
    let memory = memory();
    let writer = SegmentWriter::open_kept(memory.try_clone().unwrap()).unwrap();
    let noise: Vec<u8> = (0..BYTES).map(|at| (at as u8).wrapping_mul(31) | 1).collect();
    writer.copy_in(0, &noise).unwrap();
    let again = SegmentWriter::open_kept_for_readers(memory.try_clone().unwrap()).unwrap();
    let reader = Reader::open(again.fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(reader.read().is_none());
    // Noise behind a right beginning: numbers and names of no sense, and nothing worse.
    writer.store_u64(header::MAGIC, layout::MAGIC, Relaxed);
    writer.store_u64(header::VERSION, layout::VERSION, Relaxed);
    let seen = reader.read().unwrap();
    assert!(seen.rows.iter().all(|row| row.in_progress() < u64::MAX && row.quantile(500) <= row.longest_ns));
    writer.store_u64(header::VERSION, 77, Relaxed);
    drop(writer);
    let _book = Logbook::open(memory.try_clone().unwrap(), Epoch(1)).unwrap();
    let seen = reader.read().unwrap();
    assert!(seen.rows.is_empty() && seen.waits.is_empty() && seen.uses.is_empty() && seen.running.is_none());
}
