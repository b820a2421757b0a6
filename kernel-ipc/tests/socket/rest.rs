//! Sessions that have nothing to do.

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::link::socket::dial;
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::ClientSession;

use super::common::*;
use super::relay::{Framing, Relay};
use super::world::*;

#[test]
fn sessions_at_rest_cost_a_busy_thread_no_system_calls() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let slow = Options { heartbeat: Duration::from_secs(600), dead_after: Duration::from_secs(6000), ..hasty() };
        let host = Host::start(&thing, slow);
        let resting: Vec<ClientSession> = {
            let mut sessions = Vec::new();
            for _ in 0..20 {
                sessions.push(host.connect(slow).await);
            }
            sessions
        };
        // More turns than a socket is asked in vain for.
        for _ in 0..600 {
            runtime::yield_now().await;
        }
        let before: Vec<u64> = resting.iter().map(ClientSession::system_calls).collect();
        for _ in 0..1000 {
            runtime::yield_now().await;
        }
        assert_eq!(resting.iter().map(ClientSession::system_calls).collect::<Vec<_>>(), before);
        for session in &resting {
            let reply = session.call(request(session.root(), ECHO, b"awake")).await.expect("echo");
            assert_eq!(*reply.payload, *b"awake");
        }
    });
}

#[test]
fn a_session_at_rest_stays_open() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let relay = Relay::start(host.address, 3, 0, Framing::Frames);
        let client = dial::connect(relay.address, TEST.name, SHAPE, hasty()).await.expect("a session");
        // Nobody waits for the answer of a release, so it lies unsent at the host when the rest begins.
        let opened = client.call(request(client.root(), OPEN, b"")).await.expect("opened").capabilities;
        client.release_handle(opened[0]);
        until(|| thing.dropped.borrow().len() == 1).await;
        // Three times what counts as dead.
        runtime::sleep(3 * hasty().dead_after).await;
        client.call(request(client.root(), ECHO, b"")).await.expect("echo");
        assert_eq!((thing.closed.get(), client.resumed()), (0, Default::default()));
        assert_eq!(relay.connections(), 1, "none had to be made again");
    });
}
