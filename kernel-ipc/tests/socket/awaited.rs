//! Sessions of a dead run whose clients may come back, and of whom it becomes known that they will not.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::SessionId;
use kernel_ipc::link::socket::dial;
use kernel_ipc::link::socket::keys::Party;
use kernel_ipc::link::socket::listen::{Admitted, Awaited, KeptSession, Listener, Options, Peer};
use kernel_ipc::link::socket::nodes::{KnownNode, Nodes};
use kernel_ipc::runtime;
use kernel_ipc::session::{Heritage, Ledgers, Served};
use kernel_ipc::sys::segment;

use super::authority::node;
use super::common::{ECHO, TEST, Thing, info, request, root, run};
use super::world::{SHAPE, until};

fn memory() -> OwnedFd {
    let memory = segment::memfd("ledger").expect("memory");
    segment::set_len(&memory, Ledgers::BYTES).expect("memory");
    memory
}

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback")
}

/// A session's ledger as a run leaves it that is killed while it serves it.
fn left() -> OwnedFd {
    let (kept, left) = (memory(), memory());
    run(async {
        let (listener, again) = (listener(), kept.try_clone().expect("dup"));
        let address = listener.address();
        let admit = move |_: &Peer, _: &_| {
            let ledgers = Ledgers { session: again.try_clone().expect("dup"), component: None };
            let kept = KeptSession { ledgers, note: vec![7], ended: Box::new(|| ()) };
            Some(Admitted { root: root(), info: info(1), kept: Some(kept) })
        };
        let thing: Rc<Thing> = Rc::default();
        let serving = runtime::spawn(listener.serve_on(thing, None, Options::default(), Vec::new(), admit));
        let client = dial::connect(address, TEST.name, SHAPE, Options::default()).await.expect("a session");
        client.call(request(client.root(), ECHO, b"hello")).await.expect("an answer");
        let mut bytes = vec![0; Ledgers::BYTES];
        let (from, to) = (std::fs::File::from(kept.try_clone().expect("dup")), left.try_clone().expect("dup"));
        from.read_exact_at(&mut bytes, 0).expect("memory");
        std::fs::File::from(to).write_all_at(&bytes, 0).expect("memory");
        serving.cancel();
    });
    left
}

#[test]
fn nobody_awaits_the_client_of_a_node_that_is_removed() {
    let memories = [left(), left()];
    run(async {
        let (thing, nodes): (Rc<Thing>, _) = (Rc::default(), Nodes::default());
        for name in ["b", "c"] {
            nodes.learn(node(name), KnownNode::Certified([1; 32]));
        }
        let ended = [(); 2].map(|()| Rc::new(Cell::new(0)));
        let awaited =
            memories.into_iter().zip(["b", "c"]).zip(&ended).zip(1..).map(|(((memory, name), ended), number)| {
                let heritage = Heritage::check(memory, SessionId(1), |_| 0, None).expect("a good ledger");
                let party = Party::component(node(name), "client");
                let ended = ended.clone();
                let ended = Box::new(move || ended.set(ended.get() + 1));
                Awaited { info: info(number), heritage, component: None, secret: [7; 32], party, ended }
            });
        let (awaited, served) = (awaited.collect::<Vec<_>>(), Served::from(thing.clone()));
        served.inherit(awaited.iter().map(|awaited| (awaited.info.clone(), &awaited.heritage)), None);
        let admit = |_: &Peer, _: &_| None::<Admitted>;
        let serving =
            runtime::spawn(listener().among(&nodes).serve_on(served, None, Options::default(), awaited, admit));
        runtime::sleep(Duration::from_millis(5)).await;
        assert_eq!((ended[0].get(), ended[1].get(), thing.closed.get()), (0, 0, 0));
        nodes.learn(node("b"), KnownNode::Gone);
        until(|| ended[0].get() == 1).await;
        // The service hears of it; the other one may come still.
        assert_eq!((ended[1].get(), thing.closed.get()), (0, 1));
        nodes.learn(node("c"), KnownNode::Certified([2; 32]));
        runtime::sleep(Duration::from_millis(5)).await;
        assert_eq!((ended[0].get(), ended[1].get(), thing.closed.get()), (1, 0, 1));
        serving.cancel();
    });
}
