//! A client and its host as two simulated processes, over a network that delays and trickles.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use kernel_ipc::link::socket::listen::{Listener, Options, Peer};
use kernel_ipc::runtime::simulated::{Network, Stepped, UnusedRing, Weather};
use kernel_ipc::runtime::{self, clock};
use kernel_ipc::sys::random;

use super::common::{info, root};
use super::world::{Ends, sink};

const BEGIN: u64 = 1_000_000_000_000;
const ADDRESS: &str = "127.0.0.1:7000";
/// Turns that no test needs.
const TURNS_MAX: u64 = 20_000_000;

/// Runs a test as the client's process.
pub fn simulate(test: impl AsyncFn(Ends) + Copy + 'static) {
    clock::simulate(Some(BEGIN));
    random::simulate(Some(7));
    let ring = UnusedRing::new().expect("io_uring");
    let weather = Weather { delay_ns: (10_000, 200_000), capacity: 1 << 16, trickles: 3 };
    let network = Network::new(7, weather, |_| {});
    network.pass(BEGIN);
    let [host, client] = [1, 2].map(|owner| Stepped::new(&ring, network.nic(owner)));
    let address: SocketAddr = ADDRESS.parse().expect("an address");
    let sink = host.enter(|| {
        let (sink, lending, _) = sink();
        let last = Cell::new(0);
        let admit = move |_: &Peer, _: &_| {
            last.set(last.get() + 1);
            Some((root(), info(last.get())))
        };
        let listener = Listener::bind(address).expect("nobody listens there");
        drop(runtime::spawn(listener.serve(sink.clone(), Some(lending), Options::default(), admit)));
        sink
    });
    let done = Rc::new(Cell::new(false));
    client.enter(|| {
        let (done, sink) = (done.clone(), sink.clone());
        drop(runtime::spawn(async move {
            test(Ends::dialled(address.into(), sink, None, Options::default()).await).await;
            done.set(true);
        }));
    });
    let (mut now, mut turns) = (BEGIN, 0);
    while !done.get() {
        turns += 1;
        assert!(turns < TURNS_MAX, "it does not end");
        let mut busy = false;
        for process in [&host, &client] {
            process.expire_timers();
            for _ in 0..process.ready() {
                process.run(0);
                busy = true;
            }
            for nth in 0..process.sources() {
                busy |= process.look(nth);
            }
            busy |= process.nods_off();
        }
        if !busy {
            let timers = [&host, &client].iter().filter_map(|process| process.next_timer()).min();
            let timers = timers.map(|due| now + due.saturating_duration_since(clock::now()).as_nanos() as u64);
            now = [network.next(), timers].into_iter().flatten().min().expect("somebody waits for something").max(now);
            clock::simulate(Some(now));
            network.pass(now);
        }
    }
    host.enter(|| drop(sink));
    drop((client, host));
    clock::simulate(None);
    random::simulate(None);
}
