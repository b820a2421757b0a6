//! How often a client wakes its host, counted.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use kernel_ipc::runtime::{self, Signal, Waiting};
use kernel_ipc::session::{ClientSession, HostSession, Offer};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, SessionId};

use super::common::{info, request, run_waiting};
use super::tree::{NODE, OPEN, READ, Tree, root};

const ROUNDS: u64 = 50;

/// Serves one session to its end, in a thread of its own that sleeps when there is nothing to do.
fn serve(client_segment: OwnedFd, segment: &mpsc::Sender<OwnedFd>) {
    run_waiting(Waiting::Block, async {
        let tree: Rc<Tree> = Rc::default();
        let host = HostSession::start(client_segment, root(), tree, info(1), None).expect("opened");
        let ended = Rc::new(Signal::default());
        host.on_end({
            let ended = ended.clone();
            move |_| ended.raise()
        });
        segment.send(host.fd().expect("shared memory").try_clone_to_owned().expect("dup")).expect("the client waits");
        ended.wait().await;
    });
}

async fn one_behind_the_other(client: &ClientSession) {
    let opened = client.call(request(client.root(), OPEN, &[0, NODE, 1])).await.expect("opened").capabilities[0];
    client.call(request(opened, READ, b"")).await.expect("read");
    client.release_handle(opened);
}

async fn together(client: &ClientSession) {
    let earlier = client.call_ahead(request(client.root(), OPEN, &[0, NODE, 1])).await.expect("on its way");
    let expected = earlier.expected(0);
    client.call(request(expected.handle().expect("it comes"), READ, b"")).await.expect("read");
    drop((earlier, expected));
}

/// System calls with which the client wakes a host that sleeps before each round.
fn wakes(round: impl AsyncFn(&ClientSession)) -> u64 {
    let offer = Offer::new(Shape::default()).expect("a segment");
    let client_segment = offer.fd().try_clone_to_owned().expect("dup");
    let (send, receive) = mpsc::channel();
    let host = std::thread::spawn(move || serve(client_segment, &send));
    let segment = receive.recv().expect("the host opens the session");
    let wakes = run_waiting(Waiting::Block, async {
        let client = offer.open(segment, SessionId(1), Epoch(1)).expect("a session");
        let mut wakes = 0;
        for _ in 0..ROUNDS {
            // What was given back has been heard, and the host sleeps.
            runtime::sleep(Duration::from_millis(5)).await;
            let before = client.system_calls();
            round(&client).await;
            wakes += client.system_calls() - before;
        }
        wakes
    });
    host.join().expect("the host does not panic");
    wakes
}

#[test]
fn a_call_and_those_that_depend_on_it_wake_their_host_once() {
    let apart = wakes(one_behind_the_other);
    let together = wakes(together);
    println!("{ROUNDS} times open and read: {apart} wake-ups one behind the other, {together} together");
    assert!(together <= ROUNDS, "{together} wake-ups for {ROUNDS} rounds");
    assert!(together > 0, "nothing is counted");
}
