//! What `atoll.net/1` looks like on the wire.

mod common;

use kernel_ipc::interface::{Granted, LeasePart, NewCap, Object};
use kernel_ipc::session::Call;
use kernel_ipc::{CallError, Rights};
use protocol::net::*;

#[derive(Clone, Copy, Object)]
#[kind(Stack)]
struct Host;

#[derive(Clone, Copy, Object)]
#[kind(Listener)]
struct Door(u64);

#[derive(Clone, Copy, Object)]
#[kind(Connection)]
struct Wire(u64);

struct Network;

impl Handler for Network {
    type Stack = Host;
    type Listener = Door;
    type Connection = Wire;

    async fn listen(
        &self,
        _: &Call,
        _: Granted<Host>,
        address: &str,
    ) -> Result<(NewCap<Door>, String), CallError<ListenError>> {
        match address {
            "nonsense" => Err(ListenError::BadAddress.into()),
            "0.0.0.0:1" => Err(ListenError::NotAllowed.into()),
            "127.0.0.1:2" => Err(ListenError::InUse.into()),
            "127.0.0.1:3" => Err(ListenError::System { errno: 99 }.into()),
            _ => Ok((NewCap::new(Door(1), Rights::empty()), "127.0.0.1:8080".into())),
        }
    }

    async fn next_events(
        &self,
        _: &Call,
        _: Granted<Host>,
        cursor: u64,
        _: u32,
    ) -> Result<(EventBatch, Vec<NewCap<Wire>>), CallError<EventsError>> {
        match cursor {
            1 => return Err(EventsError::BadCursor.into()),
            2 => return Err(EventsError::AlreadyOpen.into()),
            _ => {}
        }
        let mut batch = EventBatch { next: cursor + 7, bytes: Vec::new() };
        for event in [
            Event::Accepted { connection: 1, capability: 0, peer: "10.0.0.1:999" },
            Event::Resumed { connection: 1, request: 8, sent: 9, head: b"HTTP/1.1" },
            Event::Received { connection: 1, bytes: b"GET /" },
            Event::Finished { connection: 1 },
            Event::Sent { connection: 1, send: 2, bytes: 3 },
            Event::Released { connection: 1, send: 2, how: Released::ZeroCopy },
            Event::Closed { connection: 1, reason: Reason::Reset },
        ] {
            assert!(batch.push(&event, EventBatch::LIMIT));
        }
        Ok((batch, vec![NewCap::new(Wire(1), Rights::empty())]))
    }

    async fn send(
        &self,
        _: &Call,
        _: Granted<Wire>,
        send: SendName,
        _: SendFlags,
        _: &[u8],
        _: Vec<LeasePart>,
    ) -> Result<(), CallError<SendError>> {
        match send.number {
            1 => Err(SendError::Closed.into()),
            2 => Err(SendError::Full.into()),
            3 => Err(SendError::StaleLease.into()),
            _ => Ok(()),
        }
    }

    async fn close(&self, _: &Call, _: Granted<Wire>) -> Result<(), CallError<CloseError>> {
        Ok(())
    }
}

#[test]
fn the_bytes_of_every_operation_are_those_of_the_golden_file() {
    let root = NewCap::new(Host, LISTEN).to_grant();
    common::compare("net", Dispatcher(Network), root, async |client: &Client| {
        let stack = client.root();
        client.listen(stack, "127.0.0.1:8080").await.expect("listening");
        for address in ["nonsense", "0.0.0.0:1", "127.0.0.1:2", "127.0.0.1:3"] {
            client.listen(stack, address).await.expect_err("each error");
        }
        for cursor in [1, 2] {
            client.next_events(stack, cursor, 64).await.expect_err("each error");
        }
        let (_, mut connections) = client.next_events(stack, 0, 64).await.expect("events");
        let connection = connections.pop().expect("one connection");
        let pages = [LeasePart::whole(common::lease(4096)), LeasePart::of(common::lease(4096), 10..20)];
        let flags = SendFlags::MORE | SendFlags::CLOSE;
        client
            .send(&connection, SendName { number: 4, request: 7 }, flags, b"HTTP/1.1 200 OK\r\n", &pages)
            .await
            .expect("accepted");
        for number in 1..=3 {
            let send = SendName { number, request: NO_REQUEST };
            client.send(&connection, send, SendFlags::default(), b"", &[]).await.expect_err("each error");
        }
        client.close(&connection).await.expect("closed");
    });
}
