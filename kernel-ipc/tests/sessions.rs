//! Both ends of a session, over every carrier.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::*;
use kernel_ipc::lease::Lender;
use kernel_ipc::runtime;
use kernel_ipc::session::{self, ClientSession, HostSession, Request};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Executed, Failure, Handle};

type Opener = fn(Shape, u64, &Rc<Thing>, &Rc<RefCell<Lender>>) -> (ClientSession, HostSession);

fn in_process(shape: Shape, id: u64, thing: &Rc<Thing>, lender: &Rc<RefCell<Lender>>) -> (ClientSession, HostSession) {
    session::in_process(shape, root(), thing.clone(), info(id), Some(lender.clone()))
}

fn socket(shape: Shape, id: u64, thing: &Rc<Thing>, lender: &Rc<RefCell<Lender>>) -> (ClientSession, HostSession) {
    over_socket(shape, id, thing, Some(lender.clone()))
}

/// One session over a carrier, and what stands around it.
struct Fixture {
    client: ClientSession,
    host: HostSession,
    thing: Rc<Thing>,
    lender: Rc<RefCell<Lender>>,
}

/// Runs a test over each carrier.
fn over_each_carrier(shape: Shape, test: impl AsyncFn(Fixture)) {
    for open in [shm as Opener, in_process, socket] {
        run(async {
            let (thing, lender) = (Rc::default(), lender());
            let (client, host) = open(shape, 1, &thing, &lender);
            test(Fixture { client, host, thing, lender }).await;
        });
    }
}

fn no(cause: Cause) -> Failure {
    Failure { cause, executed: Executed::No }
}

#[test]
fn payloads_of_every_size_come_back() {
    over_each_carrier(Shape::default(), async |f| {
        for size in [0, 1, 15, 16, 17, 64, 65, 255, 256, 1000, 4096] {
            let payload = bytes(size);
            let reply = f.client.call(request(f.client.root(), ECHO, &payload)).await.expect("echo");
            assert_eq!(*reply.payload, payload[..], "{size} bytes");
            assert_eq!(reply.operation_error, None);
        }
        let too_long = f.client.call(request(f.client.root(), ECHO, &bytes(4097))).await;
        assert_eq!(too_long.unwrap_err(), no(Cause::BadArguments));
        assert!(f.client.is_open());
    });
}

#[test]
fn an_operations_own_error_carries_its_number_and_fields() {
    over_each_carrier(Shape::default(), async |f| {
        let reply = f.client.call(request(f.client.root(), FAIL, b"fields of the error")).await.expect("a reply");
        assert_eq!((reply.operation_error, &*reply.payload), (Some(42), &b"fields of the error"[..]));
    });
}

#[test]
fn what_the_host_can_check_never_reaches_the_service() {
    over_each_carrier(Shape::default(), async |f| {
        let root = f.client.root();
        let call = async |request: Request<'_>| f.client.call(request).await.map(|_| ()).unwrap_err();
        assert_eq!(call(request(root, 99, b"")).await, no(Cause::UnknownOperation));
        assert_eq!(call(request(root, WRITE, b"")).await, no(Cause::RightsMissing));
        assert_eq!(call(request(Handle { index: 7, ..root }, ECHO, b"")).await, no(Cause::StaleHandle));
        assert_eq!(call(request(Handle { generation: 9, ..root }, ECHO, b"")).await, no(Cause::StaleHandle));
        assert_eq!(call(request(root, JOIN, b"")).await, no(Cause::BadArguments));
        let surplus = Request { capabilities: &[root], ..request(root, ECHO, b"") };
        assert_eq!(call(surplus).await, no(Cause::BadArguments));
        let wrong_kind = Request { capabilities: &[root], ..request(root, JOIN, b"") };
        assert_eq!(call(wrong_kind).await, no(Cause::WrongKind));
        assert_eq!(f.thing.begun.get(), 0);
    });
}

#[test]
fn a_capability_is_used_given_as_an_argument_and_released() {
    over_each_carrier(Shape::default(), async |f| {
        let root = f.client.root();
        let reply = f.client.call(request(root, OPEN, &[2, 3])).await.expect("opened");
        assert_eq!(reply.capabilities.len(), 3);
        let join = Request { capabilities: &reply.capabilities[2..], ..request(root, JOIN, b"") };
        assert_eq!(*f.client.call(join).await.expect("joined").payload, 2u64.to_le_bytes());
        let wrong_kind = f.client.call(request(reply.capabilities[0], ECHO, b"")).await;
        assert_eq!(wrong_kind.unwrap_err(), no(Cause::WrongKind));

        f.client.release_handle(reply.capabilities[2]);
        f.client.release_handle(reply.capabilities[0]);
        f.client.release_handle(reply.capabilities[0]);
        settle().await;
        let dropped: Vec<u64> = f.thing.dropped.borrow().iter().map(|grant| grant.object[1]).collect();
        assert_eq!(dropped, [2, 0]);
        assert_eq!(f.client.call(join).await.unwrap_err(), no(Cause::StaleHandle));
    });
}

#[test]
fn leases_are_lent_released_and_taken_back_at_the_end() {
    over_each_carrier(Shape::default(), async |f| {
        let reply = f.client.call(request(f.client.root(), LEND, &[3])).await.expect("lent");
        assert_eq!(reply.leases.len(), 3);
        assert_eq!((reply.leases[0].length, f.lender.borrow().lent_count()), (4096, 3));
        f.client.release_lease(reply.leases[0]);
        f.client.release_lease(reply.leases[0]);
        settle().await;
        assert_eq!(f.lender.borrow().lent_count(), 2);
        f.client.close();
        settle().await;
        assert_eq!(f.lender.borrow().lent_count(), 0);
    });
}

#[test]
fn one_session_cannot_release_what_another_was_lent() {
    run(async {
        let (thing, lender) = (Rc::default(), lender());
        let (one, _host) = shm(Shape::default(), 1, &thing, &lender);
        let (other, _host_of_other) = shm(Shape::default(), 2, &thing, &lender);
        let lent = one.call(request(one.root(), LEND, &[1])).await.expect("lent").leases;
        other.release_lease(lent[0]);
        settle().await;
        assert_eq!(lender.borrow().lent_count(), 1);
    });
}

#[test]
fn a_reply_that_does_not_fit_says_so_and_gives_nothing() {
    over_each_carrier(Shape::default(), async |f| {
        let root = f.client.root();
        let ran = |cause| Failure { cause, executed: Executed::Yes };
        let big = f.client.call(request(root, BIG, b"")).await;
        assert_eq!(big.unwrap_err(), ran(Cause::ReplyTooLarge));
        let many = f.client.call(request(root, OPEN, &[1, 17])).await;
        assert_eq!(many.unwrap_err(), ran(Cause::ReplyTooLarge));
        assert_eq!(f.thing.dropped.borrow().len(), 17);
        let leases = f.client.call(request(root, LEND, &[9])).await;
        assert_eq!(leases.unwrap_err(), ran(Cause::ReplyTooLarge));
        assert_eq!(f.lender.borrow().lent_count(), 0);
    });
}

#[test]
fn calls_complete_out_of_order_and_wait_for_slots_in_order() {
    let two = Shape { slots: 2, ..Shape::default() };
    over_each_carrier(two, async |f| {
        let client = &f.client;
        let hanging = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), HANG, b"")).await.map(|_| ()) }
        });
        settle().await;
        let order = Rc::new(RefCell::new(Vec::new()));
        let calls: Vec<_> = (0..20u8)
            .map(|n| {
                let (client, order) = (client.clone(), order.clone());
                runtime::spawn(async move {
                    let reply = client.call(request(client.root(), ECHO, &[n])).await.expect("echo");
                    order.borrow_mut().push(reply.payload[0]);
                })
            })
            .collect();
        for call in calls {
            call.await.expect("not cancelled");
        }
        assert_eq!(*order.borrow(), (0..20).collect::<Vec<u8>>());
        assert!(!hanging.is_finished());
    });
}

#[test]
fn a_dropped_call_is_cancelled_and_its_slot_parked_until_its_answer() {
    let one = Shape { slots: 1, ..Shape::default() };
    over_each_carrier(one, async |f| {
        let dropped = runtime::timeout(Duration::from_millis(5), f.client.call(request(f.client.root(), HANG, b"")));
        assert!(dropped.await.is_err());
        // The only slot is parked; the cancel goes out, the handler ends, and the slot comes back.
        let reply = f.client.call(request(f.client.root(), ECHO, b"x")).await.expect("echo");
        assert_eq!(*reply.payload, *b"x");
        assert_eq!(f.thing.cancelled.get(), 1);
        settle().await;
        // The late reply brought a capability, which nobody wanted.
        assert_eq!(f.thing.dropped.borrow().len(), 1);
    });
}

#[test]
fn a_deadline_gives_unknown_for_a_published_call_and_no_for_a_waiting_one() {
    let one = Shape { slots: 1, ..Shape::default() };
    over_each_carrier(one, async |f| {
        let root = f.client.root();
        let soon = |operation, millis| Request {
            deadline: Some(Duration::from_millis(millis)),
            ..request(root, operation, &[200])
        };
        assert_eq!(f.client.call(soon(ECHO, 0)).await.unwrap_err(), no(Cause::Deadline));
        let late = f.client.call(soon(SLEEP, 20)).await;
        assert_eq!(late.unwrap_err(), Failure { cause: Cause::Deadline, executed: Executed::Unknown });
        assert_eq!(f.client.call(soon(ECHO, 20)).await.unwrap_err(), no(Cause::Deadline));
        assert_eq!(*f.client.call(soon(ECHO, 5000)).await.expect("in time").payload, [200]);
    });
}

#[test]
fn the_end_of_a_session_ends_its_calls_drops_its_capabilities_and_tells_the_service() {
    over_each_carrier(Shape::default(), async |f| {
        f.client.call(request(f.client.root(), OPEN, &[1, 4])).await.expect("opened");
        let hanging = runtime::spawn({
            let client = f.client.clone();
            async move { client.call(request(client.root(), HANG, b"")).await.map(|_| ()) }
        });
        settle().await;
        f.host.close();
        let failure = hanging.await.expect("not cancelled").unwrap_err();
        assert_eq!(failure, Failure { cause: Cause::SessionClosed, executed: Executed::Unknown });
        assert!(!f.client.is_open());
        let after = f.client.call(request(f.client.root(), ECHO, b"")).await;
        assert_eq!(after.unwrap_err(), no(Cause::SessionClosed));
        settle().await;
        // Root, four opened, and what the cancelled handler still gave.
        assert_eq!((f.thing.dropped.borrow().len(), f.thing.closed.get(), f.thing.cancelled.get()), (6, 1, 1));
    });
}

#[test]
fn a_dead_hosts_unread_calls_did_not_run_and_read_ones_are_unknown() {
    over_each_carrier(Shape::default(), async |f| {
        let call = |operation| {
            let client = f.client.clone();
            runtime::spawn(async move { client.call(request(client.root(), operation, b"")).await.map(|_| ()) })
        };
        let read = call(HANG);
        settle().await;
        let unread = call(HANG);
        let late = f.client.clone();
        // Both are tasks of one turn: the call is published, then the host "dies" before it is polled again.
        let death = runtime::spawn(async move { late.host_died() });
        death.await.expect("not cancelled");
        let died = |executed| Failure { cause: Cause::PeerDied, executed };
        assert_eq!(read.await.expect("not cancelled").unwrap_err(), died(Executed::Unknown));
        assert_eq!(unread.await.expect("not cancelled").unwrap_err(), died(Executed::No));
        let after = f.client.call(request(f.client.root(), ECHO, b"")).await;
        assert_eq!(after.unwrap_err(), no(Cause::StaleEpoch));
    });
}

#[test]
fn a_thousand_releases_travel_in_a_few_control_calls() {
    over_each_carrier(Shape::default(), async |f| {
        let mut handles = Vec::new();
        for _ in 0..63 {
            handles.extend(f.client.call(request(f.client.root(), OPEN, &[1, 16])).await.expect("opened").capabilities);
        }
        for handle in &handles {
            f.client.release_handle(*handle);
        }
        settle().await;
        assert_eq!(f.thing.dropped.borrow().len(), handles.len());
    });
}
