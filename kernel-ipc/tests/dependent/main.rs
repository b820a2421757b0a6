//! Calls that depend on earlier ones which are not answered yet, over every carrier.

#[path = "../common/mod.rs"]
mod common;
mod named;
mod tree;
mod typed;
mod wakes;

use std::time::Duration;

use common::*;
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{Earlier, Reply, Request};
use kernel_ipc::{Cause, Executed, Failure, Handle, Rights};

use tree::{DENY, Fixture, JOIN, NODE, OPEN, OTHER, READ, WAITS, WRITE, no, number, over_each_carrier};

/// A call of the test that goes on by itself.
fn begin(f: &Fixture, handle: Handle, operation: u16, payload: &[u8]) -> JoinHandle<Result<Reply, Failure>> {
    begin_with(f, Request { capabilities: &[], ..request(handle, operation, payload) })
}

fn begin_with(f: &Fixture, made: Request<'_>) -> JoinHandle<Result<Reply, Failure>> {
    let (client, payload, capabilities) = (f.client.clone(), made.payload.to_vec(), made.capabilities.to_vec());
    let (handle, operation, deadline) = (made.handle, made.operation, made.deadline);
    runtime::spawn(async move {
        let made = Request { capabilities: &capabilities, deadline, ..request(handle, operation, &payload) };
        client.call(made).await
    })
}

async fn ended(call: JoinHandle<Result<Reply, Failure>>) -> Result<u64, Failure> {
    call.await.expect("not cancelled").map(|reply| number(&reply.payload))
}

async fn ahead(f: &Fixture, handle: Handle, payload: &[u8]) -> Earlier {
    f.client.call_ahead(request(handle, OPEN, payload)).await.expect("on its way")
}

#[test]
fn a_dependent_call_waits_in_its_slot_and_begins_when_what_it_names_is_there() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 2]).await;
        let second = earlier.expected(1);
        let read = begin(&f, second.handle().expect("not answered"), READ, b"x");
        settle().await;
        assert_eq!(f.tree.begun(), [OPEN], "the dependent call has not begun");
        f.tree.open_gate();
        assert_eq!(ended(read).await, Ok(f.tree.last_object()));
        let brought = earlier.await.expect("opened").capabilities;
        assert_eq!(second.handle(), Ok(brought[1]), "its name is a handle now");
        assert_eq!(ended(begin(&f, brought[1], READ, b"x")).await, Ok(f.tree.last_object()));
        assert_eq!(f.tree.begun(), [OPEN, READ, READ]);
    });
}

#[test]
fn it_is_begun_at_once_where_the_answer_is_there_before_it() {
    over_each_carrier(async |f| {
        // Both are published before the host looks, or it answers the first one at once.
        let earlier = ahead(&f, f.client.root(), &[0, NODE, 1]).await;
        let read = begin(&f, earlier.expected(0).handle().expect("it comes"), READ, b"");
        assert_eq!(ended(read).await, Ok(f.tree.last_object()));
        assert_eq!(f.tree.begun(), [OPEN, READ]);
        drop(earlier);
        settle().await;
        assert_eq!(f.tree.dropped(), 1);
    });
}

/// More than a session may begin in one turn.
const CHAIN: usize = 30;

#[test]
fn a_chain_of_dependent_calls_is_served_in_its_order() {
    for waits in [0, WAITS] {
        over_each_carrier(async |f| {
            let mut chain = vec![ahead(&f, f.client.root(), &[waits, NODE, 1]).await];
            let mut held = Vec::new();
            for _ in 1..CHAIN {
                held.push(chain[chain.len() - 1].expected(0));
                let next = ahead(&f, held[held.len() - 1].handle().expect("it comes"), &[0, NODE, 1]).await;
                chain.push(next);
            }
            let last = chain[CHAIN - 1].expected(0);
            let read = begin(&f, last.handle().expect("it comes"), READ, b"");
            settle().await;
            f.tree.open_gate();
            assert_eq!(ended(read).await, Ok(f.tree.last_object()));
            assert_eq!(f.tree.depth(f.tree.last_object()), CHAIN as u64, "each was opened by the one before");
            drop((chain, held, last));
            settle().await;
            assert_eq!(f.tree.dropped(), CHAIN as u64);
        });
    }
}

#[test]
fn what_is_expected_can_be_an_argument_and_of_several_calls() {
    over_each_carrier(async |f| {
        let root = f.client.root();
        let (one, other) = (ahead(&f, root, &[WAITS, NODE, 1]).await, ahead(&f, root, &[WAITS, NODE, 1]).await);
        let (target, argument) = (one.expected(0), other.expected(0));
        let (target, argument) = (target.handle().expect("it comes"), [argument.handle().expect("it comes")]);
        // With a payload that needs the window, which other messages follow.
        let payload = bytes(700);
        let join = begin_with(&f, Request { capabilities: &argument, ..request(target, JOIN, &payload) });
        for size in [20, 3000] {
            assert!(begin(&f, root, READ, &bytes(size)).await.expect("not cancelled").is_ok());
        }
        f.tree.open_gate();
        let reply = join.await.expect("not cancelled").expect("joined");
        assert_eq!(number(&reply.payload[..8]), 1 << 32 | 2, "both of its objects, in their order");
        assert_eq!(reply.payload[8..], payload[..], "what it said when it was read");
    });
}

#[test]
fn a_call_that_fails_fails_those_that_depend_on_it_and_they_do_not_run() {
    let refused = Failure { cause: Cause::busy_for(Duration::from_micros(5)), executed: Executed::Unknown };
    for (payload, cause) in [
        (vec![WAITS, DENY], Cause::EarlierError { error: 42 }),
        (vec![WAITS, OTHER, 0], Cause::NotBrought),
        (vec![WAITS, tree::REFUSE], refused.cause),
    ] {
        over_each_carrier(async |f| {
            let earlier = ahead(&f, f.client.root(), &payload).await;
            let expected = earlier.expected(0);
            let name = expected.handle().expect("not answered");
            let middle = ahead(&f, name, &[0, NODE, 1]).await;
            let calls =
                [name, middle.expected(0).handle().expect("not answered")].map(|name| begin(&f, name, READ, b""));
            settle().await;
            f.tree.open_gate();
            for call in calls {
                assert_eq!(ended(call).await, Err(no(cause)));
            }
            assert_eq!(middle.await.map(drop), Err(no(cause)));
            assert_eq!(f.tree.begun(), [OPEN]);
            // Once that is known nothing goes out, and says the same.
            assert_eq!(expected.handle(), Err(no(cause)));
            assert_eq!(ended(begin(&f, name, READ, b"")).await, Err(no(cause)));
            assert_eq!(f.tree.begun(), [OPEN]);
            let answer = earlier.await.map(|reply| (reply.operation_error, reply.capabilities.len()));
            match cause {
                Cause::EarlierError { .. } => assert_eq!(answer, Ok((Some(42), 0)), "its own caller hears it in full"),
                Cause::NotBrought => assert_eq!(answer, Ok((None, 0))),
                _ => assert_eq!(answer, Err(refused)),
            }
        });
    }
}

#[test]
fn what_comes_is_checked_as_anything_that_is_named() {
    over_each_carrier(async |f| {
        let of_other_kind = ahead(&f, f.client.root(), &[WAITS, OTHER, 1]).await;
        let without_write = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let (other, node) = (of_other_kind.expected(0), without_write.expected(0));
        let (other, node) = (other.handle().expect("it comes"), node.handle().expect("it comes"));
        let call = |handle, operation, capabilities: &[Handle]| {
            begin_with(&f, Request { capabilities, ..request(handle, operation, b"") })
        };
        let calls = [
            (call(other, READ, &[]), Cause::WrongKind),
            (call(node, WRITE, &[]), Cause::RightsMissing),
            (call(node, JOIN, &[other]), Cause::WrongKind),
            (call(node, JOIN, &[node, node]), Cause::BadArguments),
            (call(node, 999, &[]), Cause::UnknownOperation),
        ];
        settle().await;
        f.tree.open_gate();
        for (call, cause) in calls {
            assert_eq!(ended(call).await, Err(no(cause)));
        }
        assert_eq!(f.tree.begun(), [OPEN, OPEN]);
    });
}

#[test]
fn capabilities_themselves_can_be_asked_for_behind_an_earlier_call() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("it comes");
        let minted = runtime::spawn({
            let client = f.client.clone();
            async move { client.mint(name, kernel_ipc::session::capability::Minting::with(Rights::READ)).await }
        });
        settle().await;
        f.tree.open_gate();
        let minted = minted.await.expect("not cancelled").expect("minted");
        assert_eq!(ended(begin(&f, minted, READ, b"")).await, Ok(f.tree.last_object()));
        assert_eq!(f.client.inspect(expected.handle().expect("here")).await.expect("held").derived, 1);
    });
}

#[test]
fn a_dependent_call_is_cancelled_while_it_waits_and_its_slot_is_free() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let name = earlier.expected(0).handle().expect("it comes");
        let behind = ahead(&f, name, &[0, NODE, 1]).await;
        let last = begin(&f, behind.expected(0).handle().expect("it comes"), READ, b"");
        settle().await;
        // Nobody holds what it brings, so it goes with its caller.
        drop(behind);
        assert_eq!(ended(last).await, Err(no(Cause::Cancelled)), "it has not run, nor does what depends on it");
        let late = Request { deadline: Some(Duration::from_millis(20)), ..request(name, READ, b"") };
        let late = begin_with(&f, late);
        assert_eq!(ended(late).await, Err(Failure { cause: Cause::Deadline, executed: Executed::Unknown }));
        settle().await;
        f.tree.open_gate();
        assert!(earlier.await.is_ok());
        settle().await;
        assert_eq!(f.tree.begun(), [OPEN], "what was cancelled does not begin any more");
        // Every slot can be used again.
        let calls: Vec<_> = (0..100).map(|_| begin(&f, f.client.root(), READ, b"")).collect();
        for call in calls {
            assert!(ended(call).await.is_ok());
        }
    });
}

#[test]
fn what_is_given_back_behind_the_answer_is_given_back_behind_those_that_waited_for_it() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("it comes");
        // More than begin together.
        let reads: Vec<_> = (0..20).map(|_| begin(&f, name, READ, b"")).collect();
        settle().await;
        f.tree.open_gate();
        assert!(earlier.await.is_ok());
        drop(expected);
        for read in reads {
            assert_eq!(ended(read).await, Ok(f.tree.last_object()));
        }
        settle().await;
        assert_eq!(f.tree.dropped(), 1);
    });
}

#[test]
fn an_earlier_call_that_nobody_waits_for_ends_at_its_deadline_all_the_same() {
    over_each_carrier(async |f| {
        let late = Request { deadline: Some(Duration::from_millis(20)), ..request(f.client.root(), OPEN, b"") };
        let earlier = f.client.call_ahead(Request { payload: &[WAITS, NODE, 1], ..late }).await.expect("on its way");
        let expected = earlier.expected(0);
        drop(earlier);
        let name = expected.handle().expect("not answered");
        let read = begin_with(&f, Request { deadline: None, ..request(name, READ, b"") });
        assert_eq!(ended(read).await, Err(no(Cause::Cancelled)));
        assert_eq!(expected.handle(), Err(no(Cause::Deadline)));
        assert_eq!(f.tree.begun(), [OPEN]);
    });
}

#[test]
fn a_call_that_is_cancelled_takes_those_that_depend_on_it_along() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let read = begin(&f, earlier.expected(0).handle().expect("it comes"), READ, b"");
        settle().await;
        drop(earlier);
        assert_eq!(ended(read).await, Err(no(Cause::Cancelled)));
        assert_eq!(f.tree.begun(), [OPEN]);
    });
}

#[test]
fn who_expects_a_capability_keeps_the_call_that_brings_it_and_gives_it_back() {
    over_each_carrier(async |f| {
        let root = f.client.root();
        // The answer is for nobody, and comes all the same.
        let earlier = ahead(&f, root, &[WAITS, NODE, 2]).await;
        let (held, again) = (earlier.expected(1), earlier.expected(1));
        drop(earlier);
        settle().await;
        f.tree.open_gate();
        settle().await;
        assert_eq!(f.tree.dropped(), 1, "of the two that came one is expected");
        let handle = held.handle().expect("here");
        drop(again);
        assert!(ended(begin(&f, handle, READ, b"")).await.is_ok());
        drop(held);
        settle().await;
        assert_eq!(f.tree.dropped(), 2);
        assert_eq!(ended(begin(&f, handle, READ, b"")).await, Err(no(Cause::StaleHandle)));

        // Nobody expects it any more when it comes: it belongs to the caller of the call.
        f.tree.close_gate();
        let earlier = ahead(&f, root, &[WAITS, NODE, 1]).await;
        drop(earlier.expected(0));
        f.tree.open_gate();
        let brought = earlier.await.expect("opened").capabilities;
        settle().await;
        assert_eq!(f.tree.dropped(), 2);
        assert!(ended(begin(&f, brought[0], READ, b"")).await.is_ok());
        f.client.release_handle(brought[0]);
        settle().await;
        assert_eq!(f.tree.dropped(), 3);

        // Nobody wants anything of it: it is given up, and what comes goes back.
        f.tree.close_gate();
        let earlier = ahead(&f, root, &[WAITS | tree::DEAF, NODE, 1]).await;
        let expected = earlier.expected(0);
        settle().await;
        drop((earlier, expected));
        settle().await;
        f.tree.open_gate();
        settle().await;
        assert_eq!(f.tree.dropped(), 4);
    });
}

#[test]
fn an_answer_that_nobody_takes_keeps_no_slot() {
    over_each_carrier(async |f| {
        let mut held = Vec::new();
        // More than there are slots.
        for _ in 0..40 {
            let earlier = ahead(&f, f.client.root(), &[0, NODE, 1]).await;
            held.push((earlier.expected(0), earlier));
        }
        assert!(ended(begin(&f, f.client.root(), READ, b"")).await.is_ok());
        for (expected, earlier) in held {
            let brought = earlier.await.expect("opened").capabilities;
            assert_eq!(expected.handle(), Ok(brought[0]));
        }
    });
}

#[test]
fn all_slots_can_wait_and_others_wait_for_them() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let name = earlier.expected(0).handle().expect("it comes");
        let calls: Vec<_> = (0..40).map(|_| begin(&f, name, READ, b"")).collect();
        settle().await;
        assert_eq!(f.tree.begun(), [OPEN]);
        f.tree.open_gate();
        for call in calls {
            // The later ones were published when the name was a handle already.
            assert_eq!(ended(call).await, Ok(f.tree.last_object()));
        }
    });
}

#[test]
fn a_one_way_message_can_depend_on_an_earlier_call() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("it comes");
        f.client.post(request(name, READ, b"")).await.expect("sent");
        settle().await;
        assert_eq!(f.tree.begun(), [OPEN]);
        f.tree.open_gate();
        let settled = f.client.settled().await;
        assert_eq!((settled.done, settled.failed), (1, 0));
        assert_eq!(f.tree.begun(), [OPEN, READ]);
    });
}

#[test]
fn an_end_of_the_session_ends_those_that_wait() {
    over_each_carrier(async |f| {
        let earlier = ahead(&f, f.client.root(), &[WAITS, NODE, 1]).await;
        let expected = earlier.expected(0);
        let read = begin(&f, expected.handle().expect("it comes"), READ, b"");
        settle().await;
        f.host.close();
        let closed = Failure { cause: Cause::SessionClosed, executed: Executed::Unknown };
        assert_eq!(ended(read).await, Err(closed));
        assert_eq!(expected.handle(), Err(no(Cause::SessionClosed)));
        assert_eq!(earlier.await.map(drop), Err(closed));
        f.tree.open_gate();
        settle().await;
        assert_eq!(f.tree.begun(), [OPEN]);
    });
}
