//! One end of a link by itself.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use kernel_ipc::link::socket::frame::{FrameError, kind};
use kernel_ipc::link::socket::{self, SocketLink, Standing};
use kernel_ipc::link::{Body, Link};
use kernel_ipc::wire::Violation;

use super::common::run;
use super::world::*;

/// A link's end, and its peer, who speaks by hand.
fn beside_a_peer() -> (SocketLink, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
    let (socket, _) = listener.accept().expect("a connection");
    (SocketLink::over(socket.into(), SHAPE).expect("a link"), peer)
}

#[test]
fn a_flood_of_heartbeats_does_not_keep_the_thread() {
    let (link, mut peer) = beside_a_peer();
    peer.set_nonblocking(true).expect("an option");
    let beats = framed(kind::HEARTBEAT, b"").repeat(8192);
    let mut sent = 0;
    while let Ok(bytes) = peer.write(&beats[sent % 8..]) {
        sent += bytes;
    }
    assert!(sent > 256 * 1024, "the kernel holds only {sent} bytes");
    let before = link.system_calls();
    assert_eq!(link.receive(), None);
    let made = link.system_calls() - before;
    assert!((1..8).contains(&made), "{made} looks at {sent} bytes");
}

#[test]
fn garbage_behind_a_good_message_is_a_fault_though_the_connection_is_gone_meanwhile() {
    let (link, mut peer) = beside_a_peer();
    peer.write_all(&[message(&echo(0, 1)), framed(11, b"")].concat()).expect("sent");
    while link.receive().is_none() {}
    link.cut();
    assert_eq!(link.receive(), None);
    let Standing::Broken(fault) = link.standing() else { panic!("{:?}", link.standing()) };
    assert_eq!((fault.peer, fault.what), (peer.local_addr().expect("an address"), FrameError::Kind(11)));
    assert_eq!(link.broken(), Some(Violation::Reserved));
}

#[test]
fn outside_a_runtime_what_the_kernel_does_not_take_waits_for_the_next_flush() {
    let (client, host) = socket::pair(SHAPE).expect("loopback");
    let call = echo(0, 1).to_raw();
    let mut sent = 0;
    while client.send(&call, 0, &Body::default()).is_ok() {
        client.flush();
        sent += 1;
    }
    let mut received = 0;
    while received < sent {
        match host.receive() {
            Some(_) => received += 1,
            None => client.flush(),
        }
    }
    assert_eq!(client.read_by_peer(), sent);
}

#[test]
fn who_waits_for_a_link_hears_that_its_connection_was_dropped() {
    run(async {
        let (link, _peer) = beside_a_peer();
        // Of the connection itself.
        link.until_changed().await;
        link.detach();
        link.until_changed().await;
        assert_eq!(link.standing(), Standing::Cut);
    });
}
