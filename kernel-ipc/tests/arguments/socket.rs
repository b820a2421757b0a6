//! What becomes of leases that are arguments when connections are cut, ends go, or there is no room.

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::Description;
use kernel_ipc::lease::Pool;
use kernel_ipc::link::socket::dial::{self, Cargo};
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::Service;
use kernel_ipc::wire::LeaseName;
use kernel_ipc::{Cause, LenderId};

use super::authority::Authority;
use super::common::random::Random;
use super::common::{info, run};
use super::relay::{Framing, Relay};
use super::world::{
    COUNT, Carrier, Ends, Host, INTAKE_BYTES, PIN, READ, SHAPE, Sink, called, no, offering, sink, stores, sum_of, sums,
    until,
};

const NAME: &str = {
    const SINK: &Description = Sink::INTERFACE;
    SINK.name
};

#[test]
fn bytes_are_right_and_no_call_runs_twice_however_often_the_connections_are_cut() {
    for authority in [None, Some(Authority::new())] {
        for seed in 1..=4 {
            println!("seed {seed}, TLS: {}", authority.is_some());
            run(async { is_right_through_cuts(seed, authority.as_ref()).await });
        }
    }
}

async fn is_right_through_cuts(seed: u64, authority: Option<&Authority>) {
    let (sink, lending, pool) = sink();
    let host = Host::start(&sink, Some(lending), pool.clone(), authority.map(|of| of.keys("b")), Options::default());
    let (most, framing) = if authority.is_some() { (150, Framing::Tls) } else { (25, Framing::Frames) };
    let relay = Relay::start(host.address, seed, most, framing);
    let remote = called(relay.address, authority);
    let ends = Rc::new(Ends::dialled(remote, sink.clone(), None, Options::default()).await);
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let ends = ends.clone();
            runtime::spawn(async move {
                let mut random = Random(seed * 10 + caller);
                let mut expected = Vec::new();
                for _ in 0..12 {
                    let length = 1 + random.below(700_000) as usize;
                    let offset = random.below(1 << 20) as usize;
                    let name = ends.own.lend(ends.me, offset, length);
                    let sum = sum_of(offset, length);
                    assert_eq!(ends.sums(COUNT, &[(name, (0, length))]).await, Ok(vec![sum]));
                    ends.own.take_back(&name);
                    expected.push(sum);
                }
                expected
            })
        })
        .collect();
    let mut expected = Vec::new();
    for caller in callers {
        expected.extend(caller.await.expect("not cancelled"));
    }
    assert!(relay.cuts() > 3, "it has cut {}", relay.cuts());
    let mut counted = sink.counted.borrow().clone();
    counted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(counted, expected, "each once");
    relay.be_kind();
    ends.client.close();
    until(|| pool.free() == INTAKE_BYTES).await;
}

#[test]
fn who_has_no_way_for_leases_says_so_and_runs_nothing() {
    run(async {
        // A client that can lend nothing.
        let (sink, lending, pool) = sink();
        let host = Host::start(&sink, Some(lending), pool, None, Options::default());
        let client = dial::connect(host.address, NAME, SHAPE, Options::default()).await.expect("a session");
        let (own, other) = stores();
        let name = own.lend(info(1).client, 0, 10);
        let asked = [(name, (0, 10))];
        assert_eq!(sums(&client, PIN, &asked).await, Err(no(Cause::StaleLease)));
        assert_eq!(sums(&client, PIN, &[]).await, Ok(vec![]));
        // A host that takes nothing in, and knows a lender of that very number: names of another machine mean nothing here.
        let host = Host::start(&sink, None, Pool::new(other.region.clone(), 4096), None, Options::default());
        let cargo = Cargo { landing: None, offering: Some(offering(&own, &other, info(1).client)) };
        let client = dial::connect_carrying(host.address, NAME, SHAPE, Options::default(), cargo).await;
        let client = client.expect("a session");
        let served = sink.served.get();
        assert_eq!(sums(&client, READ, &asked).await, Err(no(Cause::StaleLease)));
        assert_eq!(sums(&client, PIN, &asked).await, Err(no(Cause::StaleLease)));
        assert_eq!(sink.served.get(), served);
        assert_eq!(sums(&client, PIN, &[]).await, Ok(vec![]));
    });
}

#[test]
fn too_much_is_refused_and_what_has_no_room_yet_waits() {
    run(async {
        let ends = Rc::new(Ends::over(Carrier::Socket).await);
        let most = 16 << 20;
        let large = ends.own.lend(ends.me, 0, most);
        let small = ends.own.lend(ends.me, 5, 100);
        for asked in [
            vec![(LeaseName { length: most as u64 + 1, ..large }, (0, 1))],
            vec![(LeaseName { length: u64::MAX, ..large }, (0, 1))],
            vec![(large, (0, 1)), (small, (0, 1))],
        ] {
            assert_eq!(ends.sums(PIN, &asked).await, Err(no(Cause::Quota)));
        }
        let nothing = LeaseName { length: 0, ..large };
        assert_eq!(ends.sums(PIN, &[(nothing, (0, 0))]).await, Err(no(Cause::StaleLease)));
        assert_eq!((ends.sink.served.get(), ends.intake()), (0, Some(INTAKE_BYTES)));
        // Together more than one client has.
        let calls: Vec<_> = (0..7)
            .map(|_| {
                let ends = ends.clone();
                runtime::spawn(async move { ends.sums(PIN, &[(large, (most - 1000, 1000))]).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await, Ok(Ok(vec![sum_of(most - 1000, 1000)])));
        }
        until(|| ends.intake() == Some(INTAKE_BYTES)).await;
    });
}

#[test]
fn a_small_call_does_not_wait_for_what_a_large_one_brings() {
    run(async {
        let ends = Rc::new(Ends::over(Carrier::Socket).await);
        let name = ends.own.lend(ends.me, 0, 8 << 20);
        let large = runtime::spawn({
            let ends = ends.clone();
            async move { ends.sums(PIN, &[(name, (0, 1))]).await }
        });
        let mut small = 0;
        while !large.is_finished() {
            assert_eq!(ends.sums(PIN, &[]).await, Ok(vec![]));
            small += 1;
        }
        assert!(small > 3, "{small}");
        assert_eq!(large.await, Ok(Ok(vec![sum_of(0, 1)])));
    });
}

#[test]
fn the_end_of_a_session_ends_what_is_on_its_way() {
    for by_client in [true, false] {
        run(async {
            let (sink, lending, pool) = sink();
            let host = Host::start(&sink, Some(lending), pool.clone(), None, Options::default());
            // What the client says on its second connection, the one for leased bytes, does not pass.
            let relay = Relay::start(host.address, 1, 0, Framing::Frames);
            let ends = Rc::new(Ends::dialled(relay.address.into(), sink.clone(), None, Options::default()).await);
            relay.refuse();
            let name = ends.own.lend(ends.me, 0, 1 << 20);
            let call = runtime::spawn({
                let ends = ends.clone();
                async move { ends.sums(PIN, &[(name, (0, 1))]).await }
            });
            until(|| pool.free() < INTAKE_BYTES).await;
            if by_client {
                ends.client.close()
            } else {
                drop(host)
            }
            let failure = call.await.expect("not cancelled").expect_err("it is over");
            assert_eq!(failure.cause, Cause::SessionClosed);
            until(|| pool.free() == INTAKE_BYTES).await;
            assert_eq!(sink.served.get(), 0);
        });
    }
}

#[test]
fn a_lease_that_ends_before_it_was_brought_fails_its_call() {
    run(async {
        let (sink, lending, pool) = sink();
        let host = Host::start(&sink, Some(lending), pool.clone(), None, Options::default());
        let relay = Relay::start(host.address, 1, 0, Framing::Frames);
        let ends = Rc::new(Ends::dialled(relay.address.into(), sink.clone(), None, Options::default()).await);
        let name = ends.own.lend(ends.me, 0, 1 << 20);
        relay.hold_answers(true);
        let call = runtime::spawn({
            let ends = ends.clone();
            async move { ends.sums(PIN, &[(name, (0, 1))]).await }
        });
        until(|| relay.held() > 0).await;
        ends.own.take_back(&name);
        relay.hold_answers(false);
        // What is held passes with the next word of the host's.
        runtime::sleep(Duration::from_millis(1)).await;
        relay.cut_all();
        assert_eq!(call.await, Ok(Err(no(Cause::StaleLease))));
        until(|| pool.free() == INTAKE_BYTES).await;
        let again = ends.own.lend(ends.me, 7, 1000);
        assert_eq!(again.lender, LenderId(50));
        assert_eq!(ends.sums(PIN, &[(again, (0, 1000))]).await, Ok(vec![sum_of(7, 1000)]));
    });
}
