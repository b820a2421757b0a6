//! Calls that depend on others which are not answered yet: one round trip for all of them, and through cuts of the connection.

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::Retry;
use kernel_ipc::link::socket::dial;
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::{ClientSession, Earlier, Request, Service};
use kernel_ipc::{Cause, Executed, Failure, Handle};

use super::common::random::Random;
use super::common::{ECHO, OPEN, TEST, Thing, request, run};
use super::lost::{COUNT, Counter, GRANT, SLOW, dial_through_cuts};
use super::relay::{Framing, Relay};
use super::world::{Host, SHAPE, hasty, until};

#[test]
fn calls_that_depend_on_each_other_all_go_out_before_the_first_answer_comes() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let relay = Relay::start(host.address, 3, 0, Framing::Frames);
        let client = dial::connect(relay.address, TEST.name, SHAPE, Options::default()).await.expect("a session");
        relay.hold_answers(true);
        let first = client.call_ahead(request(client.root(), OPEN, &[1, 1])).await.expect("on its way");
        let name = first.expected(0).handle().expect("not answered");
        let second = client.call_ahead(request(name, OPEN, &[1, 1])).await.expect("on its way");
        let name = second.expected(0).handle().expect("not answered");
        let echo = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(name, ECHO, b"x")).await.map(drop) }
        });
        // The client hears nothing, and the host has served all of them.
        until(|| thing.served.get() == 3 && relay.held() == 3).await;
        assert!(!echo.is_finished());
        // What was held passes with the next thing that the host says.
        relay.hold_answers(false);
        assert_eq!(echo.await.expect("not cancelled"), Ok(()));
    });
}

async fn grant(client: &ClientSession, on: Handle, number: u64) -> Earlier {
    let bytes = number.to_le_bytes();
    let made = Request { retry: Retry::Cached, ..request(on, GRANT, &bytes) };
    client.call_ahead(made).await.unwrap_or_else(|failure| panic!("{number}: {failure}"))
}

/// Chains of calls through a relay that cuts every few frames. Gives how often it did.
async fn chains_through_cuts(seed: u64, chains: u64) -> u64 {
    let counter: Rc<Counter> = Rc::default();
    let host = Host::start(&counter, Options::default());
    let relay = Relay::start(host.address, seed, 30, Framing::Frames);
    let client = dial_through_cuts(relay.address.into()).await;
    let mut random = Random(seed ^ 1);
    // More callers than slots.
    let callers: Vec<_> = (0..6u64)
        .map(|caller| {
            let (client, mut random) = (client.clone(), Random(random.next()));
            runtime::spawn(async move {
                for n in 0..chains {
                    let number = |of: u64| caller << 32 | n << 8 | of;
                    let first = grant(&client, client.root(), number(0)).await;
                    let of_first = first.expected(0);
                    let second = grant(&client, of_first.handle().expect("it comes"), number(1)).await;
                    let of_second = second.expected(0);
                    let name = of_second.handle().expect("it comes");
                    if random.below(3) == 0 {
                        // For nobody: what is expected of it holds it.
                        drop(first);
                    }
                    for (of, operation, retry) in [(2, COUNT, Retry::Never), (3, SLOW, Retry::Cached)] {
                        let bytes = number(of).to_le_bytes();
                        let reply = client.call(Request { retry, ..request(name, operation, &bytes) }).await;
                        let reply = reply.unwrap_or_else(|failure| panic!("SEED={seed} {}: {failure}", number(of)));
                        assert_eq!(*reply.payload, bytes);
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("not cancelled");
    }
    counter.has_counted(6 * chains * 4, (&relay, &client), seed).await;
    relay.cuts()
}

#[test]
fn every_dependent_call_runs_once_however_often_the_connection_is_cut() {
    let seeds: Vec<u64> = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=12).collect(),
    };
    for seed in seeds {
        // What a failure is repeated with.
        println!("SEED={seed}");
        let cuts = run(chains_through_cuts(seed, 40));
        assert!(cuts > 5, "SEED={seed}: only {cuts} cuts");
    }
}

#[test]
fn a_lost_connection_that_is_not_made_again_ends_them() {
    run(async {
        let counter: Rc<Counter> = Rc::default();
        let host = Host::start(&counter, hasty());
        let relay = Relay::start(host.address, 3, 0, Framing::Frames);
        let client = dial::connect(relay.address, Counter::INTERFACE.name, SHAPE, hasty()).await.expect("a session");
        relay.hold_answers(true);
        let earlier = grant(&client, client.root(), 1).await;
        let expected = earlier.expected(0);
        let name = expected.handle().expect("not answered");
        until(|| counter.granted.get() == 1).await;
        relay.refuse();
        relay.cut_all();
        // Waits for a slot, which there is none while nobody hears.
        runtime::sleep(Duration::from_millis(50)).await;
        let lost = |executed| Failure { cause: Cause::LinkLost, executed };
        let waits = client.call(request(name, COUNT, b"")).await.map(drop);
        assert_eq!(waits, Err(lost(Executed::No)), "it never went out");
        assert_eq!(earlier.await.map(drop), Err(lost(Executed::Unknown)));
        assert_eq!(expected.handle(), Err(lost(Executed::No)));
    });
}
