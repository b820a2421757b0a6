//! Sessions that outlive their host, over shared memory and over a socket: this test program starts itself again as the host, kills it at random moments, and
//! gives the next one what a keeper would. Every call is answered, and each effect is there exactly once.

mod capabilities;
#[path = "../common/mod.rs"]
mod common;
mod dependent;
mod host;
mod leased;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use common::run;
use host::{ADD, ADD_ONCE, FAIL, LIST, LONG, Node, OPEN, READ, kills, number, request};
use kernel_ipc::runtime;
use kernel_ipc::session::{ClientSession, Messages, Request};
use kernel_ipc::{Cause, Executed, Handle};

/// Where a segment says how many messages its side has published.
const TAIL: u64 = 64;

async fn list(client: &ClientSession) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let from = (all.len() as u64).to_le_bytes();
        let reply = client.call(request(client.root(), LIST, &from)).await.expect("idempotent");
        if reply.payload.is_empty() {
            return all;
        }
        all.extend(reply.payload.chunks_exact(8).map(number));
    }
}

/// Makes calls from several places while the host is killed again and again. A call has a number, adds it to the host's list and
/// says where it stands there: all of them do, once each.
pub async fn through_kills(
    node: Node,
    call: impl AsyncFn(&ClientSession, u64) -> u64 + Clone + 'static,
) -> (Node, ClientSession) {
    let client = node.open().await;
    let stop = Rc::new(Cell::new(false));
    let answers = Rc::new(RefCell::new(HashMap::new()));
    let next = Rc::new(Cell::new(1u64));
    let callers: Vec<_> = (0..12)
        .map(|_| {
            let (client, stop, answers, next) = (client.clone(), stop.clone(), answers.clone(), next.clone());
            let call = call.clone();
            runtime::spawn(async move {
                while !stop.get() && next.get() < 100_000 {
                    let n = next.replace(next.get() + 1);
                    let at = call(&client, n).await;
                    assert!(answers.borrow_mut().insert(n, at).is_none());
                    runtime::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    for kill in 0..kills() {
        runtime::sleep(Duration::from_micros(u64::from(kill * 7919 % 9000))).await;
        node.replace(&client);
    }
    stop.set(true);
    for caller in callers {
        caller.await.expect("not cancelled");
    }
    let list = list(&client).await;
    let answers = answers.borrow();
    assert_eq!(list.len(), answers.len(), "as many effects as answered calls");
    for (at, n) in list.iter().enumerate() {
        assert_eq!(answers.get(n), Some(&(at as u64)), "the effect of {n} is where its answer says");
    }
    drop(answers);
    (node, client)
}

/// Runs a test with a client in the next process, and with one beyond a socket.
fn over_both(test: impl AsyncFn(Node)) {
    for node in [Node::new, Node::beyond] {
        run(async { test(node()).await });
    }
}

#[test]
fn no_call_is_lost_and_none_runs_twice_however_often_the_host_is_killed() {
    over_both(async |node| {
        let adds = async |client: &ClientSession, n: u64| {
            let reply = client.call(request(client.root(), ADD, &n.to_le_bytes())).await.expect("answered");
            assert_eq!(number(&reply.payload[8..16]), n);
            number(&reply.payload[..8])
        };
        let (_node, client) = through_kills(node, adds).await;
        // Of those that were outstanding some had happened, and are answered by what is kept.
        assert!(client.resumed().repeated > 0, "{:?}", client.resumed());
    });
}

#[test]
fn messages_that_nobody_waits_for_happen_once_each_however_often_the_host_is_killed() {
    over_both(async |node| {
        let client = node.open().await;
        let stop = Rc::new(Cell::new(false));
        let sender = runtime::spawn({
            let (client, stop) = (client.clone(), stop.clone());
            async move {
                let mut sent = 0u64;
                while !stop.get() && sent < 50_000 {
                    sent += 1;
                    client.post(request(client.root(), ADD, &sent.to_le_bytes())).await.expect("sent");
                    if sent.is_multiple_of(16) {
                        runtime::sleep(Duration::from_millis(1)).await;
                    }
                }
                sent
            }
        });
        for kill in 0..kills() {
            runtime::sleep(Duration::from_micros(u64::from(kill * 7919 % 9000))).await;
            node.replace(&client);
        }
        stop.set(true);
        let sent = sender.await.expect("not cancelled");
        assert_eq!(client.settled().await, Messages { under_way: 0, done: sent, failed: 0 });
        let mut list = list(&client).await;
        list.sort_unstable();
        assert_eq!(list, (1..=sent).collect::<Vec<u64>>());
    });
}

#[test]
fn handles_are_valid_across_deaths_and_released_ones_stay_gone() {
    over_both(async |node| {
        let client = node.open().await;
        let mut handles = Vec::new();
        for n in 1..=6u64 {
            let reply = client.call(request(client.root(), OPEN, &n.to_le_bytes())).await.expect("granted");
            handles.push((n, reply.capabilities[0]));
            if n == 3 {
                client.release_handle(handles.remove(0).1);
            }
            node.replace(&client);
            for (n, handle) in &handles {
                let reply = client.call(request(*handle, READ, b"")).await.expect("still granted");
                assert_eq!(number(&reply.payload), *n);
            }
        }
        let stale = client.call(request(Handle { index: 1, generation: 1 }, READ, b"")).await.unwrap_err();
        assert_eq!((stale.cause, stale.executed), (Cause::StaleHandle, Executed::No));
    });
}

#[test]
fn what_may_not_run_twice_says_that_nobody_knows() {
    over_both(async |node| {
        let client = node.open().await;
        // Sleeps in its handler when the host dies.
        let call = |n: u64| {
            let client = client.clone();
            runtime::spawn(async move { client.call(request(client.root(), ADD_ONCE, &n.to_le_bytes())).await })
        };
        let begun = call(LONG);
        runtime::yield_now().await;
        client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        node.replace(&client);
        let failure = begun.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::PeerDied, Executed::Unknown));
        // One that is refused did not run, and says so again after a death.
        let reply = client.call(request(client.root(), FAIL, b"")).await.expect("an answer");
        assert_eq!(reply.operation_error, Some(42));
    });
}

/// No interface of the tree has an operation that may not be sent again, and every other answer can be had once more: only here does
/// it matter that the old segment is looked at.
#[test]
fn an_answer_that_stood_in_the_dead_hosts_segment_is_delivered() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let answers = || {
            let mut published = [0; 8];
            let segment = node.segment.borrow();
            segment.as_ref().expect("it is open").read_exact_at(&mut published, TAIL).expect("the host's segment");
            u64::from_le_bytes(published)
        };
        let before = answers();
        let called = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), ADD_ONCE, &1u64.to_le_bytes())).await }
        });
        runtime::yield_now().await;
        runtime::yield_now().await;
        // This thread does nothing else, so nobody takes the answer before the host is dead.
        while answers() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        node.replace(&client);
        let reply = called.await.expect("not cancelled").expect("it was answered");
        assert_eq!((number(&reply.payload[..8]), number(&reply.payload[8..16])), (0, 1));
    });
}

#[test]
fn a_host_that_is_not_started_again_ends_the_session() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let waits = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), ADD, &LONG.to_le_bytes())).await }
        });
        client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        node.kill();
        client.suspend();
        let late = runtime::spawn({
            let client = client.clone();
            async move {
                let deadline = Some(Duration::from_millis(20));
                client.call(Request { deadline, ..request(client.root(), ADD, b"") }).await
            }
        });
        let failure = late.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::Deadline, Executed::No), "it never went out");
        client.give_up();
        let failure = waits.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::PeerDied, Executed::Unknown));
        let failure = client.call(request(client.root(), READ, b"")).await.unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::StaleEpoch, Executed::No));
    });
}
