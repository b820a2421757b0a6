//! What a client writes by hand in the place of a handle: whatever it names, it hurts nobody, and is told.

use kernel_ipc::Cause;
use std::cell::Cell;

use kernel_ipc::link::{Body, Link};
use kernel_ipc::session::{HostSession, Served};
use kernel_ipc::wire::{
    Completion, ExpectedHandle, Extent, Handle, Status, Submission, control, inline_bytes, inline_words,
};

use super::common::settle;
use super::tree::{JOIN, NODE, OPEN, READ, SHAPE, WAITS, WRITE, no, number, over_each_bare_link};

const ROOT: Handle = HostSession::ROOT;

fn expected(slot: u16, seq: u32, number: u16) -> Handle {
    ExpectedHandle { slot, seq, number }.to_handle()
}

/// A call with these bytes, as it is written.
fn call(slot: u16, seq: u64, operation: u16, handle: Handle, payload: &[u8]) -> Submission {
    let extent = Extent { length: payload.len() as u32, ..Extent::default() };
    Submission { slot, seq, operation, extent, handle, inline: inline_words(payload), ..Submission::default() }
}

fn send(link: &dyn Link, call: Submission, capabilities: &[Handle]) {
    let extent = Extent { capabilities: capabilities.len() as u8, ..call.extent };
    let raw = Submission { extent, ..call }.to_raw();
    link.send(&raw, call.slot, &Body { capabilities, ..Body::default() }).expect("there is room");
    link.flush();
}

/// The next answer, whichever call it is to.
async fn answer(link: &dyn Link) -> Completion {
    loop {
        match link.receive() {
            Some(raw) => return Completion::check(&raw, SHAPE).expect("a completion"),
            None => settle().await,
        }
    }
}

/// How the call of this slot ends.
async fn status(link: &dyn Link, slot: u16) -> Status {
    let answer = answer(link).await;
    assert_eq!(answer.slot, slot);
    answer.status
}

fn failed(cause: Cause) -> Status {
    Status::Failed(no(cause))
}

/// The handle that an `OPEN` has brought.
fn brought(link: &dyn Link, answer: &Completion) -> Handle {
    let mut handle = [0; Handle::BYTES];
    link.read_window(answer.slot, answer.extent.capabilities_offset(), &mut handle);
    Handle::from_word(u64::from_le_bytes(handle))
}

#[test]
fn what_no_earlier_call_brings_is_refused_and_the_session_goes_on() {
    over_each_bare_link(async |link, host, tree| {
        // Calls that stand there: one that waits, one that was answered, one that has used the slot of another again.
        send(link, call(0, 5, OPEN, ROOT, &[WAITS, NODE, 1]), &[]);
        send(link, call(1, 1, OPEN, ROOT, &[0, NODE, 2]), &[]);
        send(link, call(2, 1, OPEN, ROOT, &[0, NODE, 1]), &[]);
        for slot in [1, 2] {
            assert_eq!(status(link, slot).await, Status::Done);
        }
        send(link, call(2, 2, READ, ROOT, b""), &[]);
        assert_eq!(status(link, 2).await, Status::Done);
        let control = SHAPE.slots;
        let names = [
            ("itself", expected(7, 1, 0)),
            ("a later call of a slot", expected(0, 6, 0)),
            ("an earlier call of a slot that is busy", expected(0, 4, 0)),
            ("a call whose slot was used again", expected(2, 1, 0)),
            ("a call that brought nothing", expected(2, 2, 0)),
            ("a slot that was never used", expected(9, 1, 0)),
            ("a call before the first", expected(9, 0, 0)),
            ("more than the answer has", expected(1, 1, 2)),
            ("more than any answer has", expected(1, 1, 0x7FFF)),
            ("a control slot", expected(control, 1, 0)),
            ("no slot", expected(u16::MAX, u32::MAX, 0x7FFF)),
        ];
        let begun = tree.begun().len();
        for (seq, (what, name)) in (1..).zip(names) {
            let name = if what == "itself" { expected(7, seq as u32, 0) } else { name };
            send(link, call(7, seq, READ, name, b""), &[]);
            assert_eq!(status(link, 7).await, failed(Cause::NotBrought), "{what}");
        }
        for (seq, (what, name)) in (100..).zip(names) {
            let name = if what == "itself" { expected(7, seq as u32, 0) } else { name };
            send(link, call(7, seq, JOIN, ROOT, b""), &[name]);
            assert_eq!(status(link, 7).await, failed(Cause::NotBrought), "{what}, as an argument");
        }
        // The answer's second one is there as long as the slot is not used again.
        send(link, call(7, 1000, READ, expected(1, 1, 1), b""), &[]);
        assert_eq!(number(&inline_bytes(answer(link).await.inline)), 2);
        assert_eq!(tree.begun().len(), begun + 1, "nothing else has run");
        assert!(host.is_open());
    });
}

#[test]
fn a_call_that_was_refused_brings_its_failure() {
    over_each_bare_link(async |link, _host, _| {
        for (seq, operation, cause) in [(1, WRITE, Cause::RightsMissing), (2, 999, Cause::UnknownOperation)] {
            send(link, call(0, seq, operation, ROOT, b""), &[]);
            send(link, call(1, seq, READ, expected(0, seq as u32, 0), b""), &[]);
            for slot in [0, 1] {
                assert_eq!(status(link, slot).await, failed(cause));
            }
        }
    });
}

#[test]
fn two_calls_cannot_wait_for_each_other() {
    over_each_bare_link(async |link, host, _| {
        send(link, call(0, 1, READ, expected(1, 1, 0), b""), &[]);
        send(link, call(1, 1, READ, expected(0, 1, 0), b""), &[]);
        for slot in [0, 1] {
            assert_eq!(status(link, slot).await, failed(Cause::NotBrought));
        }
        assert!(host.is_open());
    });
}

#[test]
fn what_was_released_or_revoked_before_the_call_begins_is_not_there() {
    const REVOKE: u16 = kernel_ipc::session::capability::operation::REVOKE;
    over_each_bare_link(async |link, _host, tree| {
        for (round, cause) in (1u64..).zip([Cause::StaleHandle, Cause::Revoked]) {
            tree.close_gate();
            send(link, call(0, round, OPEN, ROOT, &[0, NODE, 1]), &[]);
            let opened = answer(link).await;
            let opened = brought(link, &opened);
            // It depends on two: what the first has brought is gone when the second comes.
            send(link, call(1, round, OPEN, ROOT, &[WAITS, NODE, 1]), &[]);
            let name = |slot| expected(slot, round as u32, 0);
            send(link, call(2, round, JOIN, name(0), b""), &[name(1)]);
            settle().await;
            match cause {
                Cause::StaleHandle => {
                    let (slot, handle) = (SHAPE.slots, opened.to_word().to_le_bytes());
                    send(link, call(slot, 1, control::RELEASE_HANDLES, Handle::NONE, &handle), &[]);
                }
                // All that was derived from the root.
                _ => send(link, call(3, 1, REVOKE, ROOT, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), &[]),
            }
            settle().await;
            tree.open_gate();
            let joined = loop {
                let answer = answer(link).await;
                if answer.slot == 2 {
                    break answer.status;
                }
            };
            // A revoked entry is taken out soon after.
            assert!([failed(cause), failed(Cause::StaleHandle)].contains(&joined), "{joined:?}");
        }
        assert!(!tree.begun().contains(&JOIN));
    });
}

#[test]
fn a_call_that_waits_neither_keeps_its_arguments_nor_takes_another_for_them() {
    const REVOKE: u16 = kernel_ipc::session::capability::operation::REVOKE;
    over_each_bare_link(async |link, _host, tree| {
        send(link, call(0, 1, OPEN, ROOT, &[0, NODE, 1]), &[]);
        let opened = answer(link).await;
        let first = brought(link, &opened);
        // Its target is to come, its argument is there.
        send(link, call(1, 1, OPEN, ROOT, &[WAITS, NODE, 1]), &[]);
        send(link, call(2, 1, JOIN, expected(1, 1, 0), b""), &[first]);
        settle().await;
        let (slot, handle) = (SHAPE.slots, first.to_word().to_le_bytes());
        send(link, call(slot, 1, control::RELEASE_HANDLES, Handle::NONE, &handle), &[]);
        send(link, call(0, 2, OPEN, ROOT, &[0, NODE, 1]), &[]);
        assert_eq!(answer(link).await.slot, slot);
        let opened = answer(link).await;
        let second = brought(link, &opened);
        assert_eq!(second.index, first.index, "it stands where the argument stood");
        send(link, call(3, 1, JOIN, expected(1, 1, 0), b""), &[second]);
        settle().await;
        // A revoke waits for calls that run, and these do not.
        send(link, call(4, 1, REVOKE, ROOT, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), &[]);
        assert_eq!(status(link, 4).await, Status::Done);
        tree.open_gate();
        let mut answers = Vec::new();
        while answers.len() < 3 {
            answers.push(answer(link).await);
        }
        let of = |slot| answers.iter().find(|answer| answer.slot == slot).expect("answered").status;
        assert_eq!(of(1), Status::Done);
        assert_eq!(of(2), failed(Cause::StaleHandle));
        // A revoked entry is taken out soon after.
        assert!([failed(Cause::Revoked), failed(Cause::StaleHandle)].contains(&of(3)), "{:?}", of(3));
        assert!(!tree.begun().contains(&JOIN));
    });
}

#[test]
fn a_violation_of_the_protocol_stays_one_while_calls_wait() {
    over_each_bare_link(async |link, host, tree| {
        send(link, call(0, 1, OPEN, ROOT, &[WAITS, NODE, 1]), &[]);
        send(link, call(1, 1, READ, expected(0, 1, 0), b""), &[]);
        settle().await;
        // The slot of a call that waits is as busy as any.
        send(link, call(1, 2, READ, ROOT, b""), &[]);
        settle().await;
        assert_eq!(host.violation(), Some(kernel_ipc::wire::Violation::Seq));
        tree.open_gate();
        settle().await;
        assert_eq!(tree.begun(), [OPEN]);
    });
}

#[test]
fn what_an_earlier_call_brought_is_known_where_the_session_moves_to() {
    let moved = Cell::new(0);
    over_each_bare_link(async |link, host, tree| {
        send(link, call(0, 1, OPEN, ROOT, &[0, NODE, 1]), &[]);
        assert_eq!(status(link, 0).await, Status::Done);
        host.hold(true);
        send(link, call(1, 1, READ, expected(0, 1, 0), b""), &[]);
        settle().await;
        assert_eq!(tree.begun(), [OPEN], "it stays in the ring");
        // Only what two processes share can move.
        let host = match host.part() {
            Ok(parted) => {
                moved.set(moved.get() + 1);
                HostSession::arrive(parted, Served::one_of_many(tree.clone()))
            }
            Err(host) => host,
        };
        host.hold(false);
        assert_eq!(number(&inline_bytes(answer(link).await.inline)), 1);
    });
    assert_eq!(moved.get(), 1);
}
