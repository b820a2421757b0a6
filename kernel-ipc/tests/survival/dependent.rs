//! Calls that depend on others which are not answered yet, through the deaths of the host.

use std::future::{Future, poll_fn};
use std::task::Poll;

use kernel_ipc::runtime;
use kernel_ipc::session::{ClientSession, Earlier};
use kernel_ipc::{Cause, Executed, Failure, Handle};

use super::common::run;
use super::host::{ADD, ADD_ONCE, LONG, Node, OPEN, READ, number, request};
use super::{over_both, through_kills};

async fn open_ahead(client: &ClientSession, on: Handle, n: u64) -> Earlier {
    client.call_ahead(request(on, OPEN, &n.to_le_bytes())).await.expect("on its way")
}

/// Opens a chain of nodes, each by the one before, adds a number by the last one and asks that which node it is; none of these
/// calls waits for another one's answer. Gives where the number stands.
async fn open_and_add(client: &ClientSession, n: u64) -> u64 {
    let first = open_ahead(client, client.root(), n).await;
    let second = open_ahead(client, first.expected(0).handle().expect("it comes"), n + 1).await;
    let expected = second.expected(0);
    let node = expected.handle().expect("it comes");
    let bytes = n.to_le_bytes();
    let (added, read) = (request(node, ADD, &bytes), request(node, READ, b""));
    let reading = runtime::spawn({
        let client = client.clone();
        async move { client.call(read).await }
    });
    let reply = client.call(added).await.expect("added");
    assert_eq!(number(&reply.payload[8..16]), n);
    let read = reading.await.expect("not cancelled").expect("read");
    assert_eq!(number(&read.payload), n + 1, "it is the one that was opened last");
    let handle = second.await.expect("opened").capabilities[0];
    assert_eq!(expected.handle(), Ok(handle));
    client.release_handle(first.await.expect("opened").capabilities[0]);
    number(&reply.payload[..8])
}

#[test]
fn dependent_calls_happen_once_and_in_their_order_however_often_the_host_is_killed() {
    over_both(async |node| {
        let (_node, client) = through_kills(node, open_and_add).await;
        assert!(client.resumed().repeated > 0, "some were sent again");
    });
}

#[test]
fn one_whose_earlier_call_is_answered_is_sent_again_by_its_handle() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let earlier = open_ahead(&client, client.root(), 5).await;
        let expected = earlier.expected(0);
        let bytes = LONG.to_le_bytes();
        // Sleeps in its handler when the host dies, whose next run has never heard of the earlier call.
        let adding = runtime::spawn({
            let (client, node) = (client.clone(), expected.handle().expect("it comes"));
            async move { client.call(request(node, ADD, &bytes)).await }
        });
        let opened = earlier.await.expect("opened").capabilities[0];
        // The slot of the earlier call is used again.
        for _ in 0..10 {
            client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        }
        node.replace(&client);
        let reply = adding.await.expect("not cancelled").expect("added");
        assert_eq!(number(&reply.payload[..8]), 0);
        let read = client.call(request(opened, READ, b"")).await.expect("still granted");
        assert_eq!(number(&read.payload), 5);
    });
}

#[test]
fn one_is_sent_again_also_when_nobody_expects_anything_of_its_earlier_call_any_more() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let earlier = open_ahead(&client, client.root(), 5).await;
        let name = earlier.expected(0).handle().expect("it comes");
        let bytes = LONG.to_le_bytes();
        let adding = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(name, ADD, &bytes)).await }
        });
        runtime::yield_now().await;
        // The books of the earlier call are closed; its handle is the caller's.
        let opened = earlier.await.expect("opened").capabilities[0];
        client.call(request(client.root(), READ, b"")).await.expect("so the calls before it were read");
        node.replace(&client);
        let reply = adding.await.expect("not cancelled").expect("added");
        assert_eq!(number(&reply.payload[..8]), 0);
        let read = client.call(request(opened, READ, b"")).await.expect("still granted");
        assert_eq!(number(&read.payload), 5);
    });
}

#[test]
fn one_that_waits_is_sent_again_behind_the_call_that_it_waits_for() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        // Sleeps before it grants.
        let earlier = open_ahead(&client, client.root(), LONG).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("it comes");
        let read = |name| {
            let client = client.clone();
            runtime::spawn(
                async move { client.call(request(name, READ, b"")).await.map(|reply| number(&reply.payload)) },
            )
        };
        let before = read(name);
        client.call(request(client.root(), READ, b"")).await.expect("so the calls before it were read");
        node.kill();
        client.suspend();
        let offer = client.offer().expect("memory");
        node.resume(&client, offer);
        // Made while nobody has said yet whether the earlier call is known: it goes out behind that.
        let after = read(name);
        assert_eq!(before.await.expect("not cancelled"), Ok(LONG));
        assert_eq!(after.await.expect("not cancelled"), Ok(LONG));
        assert_eq!(client.resumed().repeated, 2, "the call and the one that waited for it");
        assert!(earlier.await.is_ok());
    });
}

#[test]
fn who_waits_for_a_verdict_is_counted_among_those_that_wait() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let earlier = open_ahead(&client, client.root(), LONG).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("it comes");
        client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        node.kill();
        client.suspend();
        let offer = client.offer().expect("memory");
        node.resume(&client, offer);
        client.limit_waiters(2);
        let read = async || client.call(request(name, READ, b"")).await.map(|reply| number(&reply.payload));
        // Nobody has said yet whether the host knows the earlier call; and nobody is heard before all three have begun.
        let mut reads: [_; 3] = std::array::from_fn(|_| Box::pin(read()));
        let mut ended = [None; 3];
        poll_fn(|cx| {
            for (read, ended) in reads.iter_mut().zip(&mut ended).filter(|(_, ended)| ended.is_none()) {
                if let Poll::Ready(result) = read.as_mut().poll(cx) {
                    *ended = Some(result);
                }
            }
            if ended.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let busy = Failure { cause: Cause::Busy { retry_after_us: 0 }, executed: Executed::No };
        assert_eq!(ended, [Some(Ok(LONG)), Some(Ok(LONG)), Some(Err(busy))]);
        assert_eq!(read().await, Ok(LONG), "nobody waits any more");
        assert!(earlier.await.is_ok());
    });
}

#[test]
fn one_whose_earlier_call_is_lost_fails_with_it_and_did_not_run() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        // Of a class that is never sent again; what it would bring does not matter.
        let bytes = LONG.to_le_bytes();
        let earlier = client.call_ahead(request(client.root(), ADD_ONCE, &bytes)).await.expect("on its way");
        let expected = earlier.expected(0);
        let read = runtime::spawn({
            let (client, name) = (client.clone(), expected.handle().expect("not answered"));
            async move { client.call(request(name, READ, b"")).await.map(drop) }
        });
        client.call(request(client.root(), READ, b"")).await.expect("so the calls before it were read");
        node.replace(&client);
        let lost = Failure { cause: Cause::PeerDied, executed: Executed::Unknown };
        assert_eq!(earlier.await.map(drop), Err(lost));
        assert_eq!(read.await.expect("not cancelled"), Err(Failure { executed: Executed::No, ..lost }));
    });
}
