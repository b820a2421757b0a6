//! Many calls at a time from one place.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::{
    Connect, Connection, Granted, NewCap, Object, OperationError, call_many, call_many_blocking, interface,
};
use kernel_ipc::session::{Call, HostSession, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Rights, runtime};

use common::{info, settle};

/// A number that is not answered until its caller is gone.
const FOR_EVER: u64 = 1 << 40;

/// Numbers.
#[interface("atoll.numbers/1")]
pub trait Numbers {
    /// A thing that can count.
    type Counter;

    /// Count.
    const READ: Rights;

    /// Twice a number, after a while. Odd ones come sooner; 13 is refused.
    #[op(1, requires = READ, retry = idempotent, deadline = "30s")]
    fn double(counter: Counter, number: u64) -> Result<u64, NumberError>;
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NumberError {
    /// That number is not doubled.
    Unlucky = 1,
}

#[derive(Clone, Copy, Object)]
#[kind(Counter)]
struct TheCounter;

#[derive(Default)]
struct Seen {
    now: Cell<usize>,
    most: Cell<usize>,
    order: RefCell<Vec<u64>>,
    cancelled: Cell<usize>,
}

struct Host(Rc<Seen>);

impl Handler for Host {
    type Counter = TheCounter;

    async fn double(&self, call: &Call, _: Granted<TheCounter>, number: u64) -> Result<u64, CallError<NumberError>> {
        let seen = &self.0;
        seen.now.set(seen.now.get() + 1);
        seen.most.set(seen.most.get().max(seen.now.get()));
        for _ in 0..number % 2 * 3 {
            runtime::yield_now().await;
        }
        if number == FOR_EVER {
            call.until_cancelled().await;
            seen.cancelled.set(seen.cancelled.get() + 1);
        }
        seen.now.set(seen.now.get() - 1);
        seen.order.borrow_mut().push(number);
        if number == 13 { Err(NumberError::Unlucky.into()) } else { Ok(2 * number) }
    }

    fn closed(&self, _: &SessionInfo) {}
}

fn ends() -> (Client, HostSession, Rc<Seen>) {
    let seen = Rc::new(Seen::default());
    let root = NewCap::new(TheCounter, Rights::READ).to_grant();
    let service = Rc::new(Dispatcher(Host(seen.clone())));
    let (session, host) = in_process(Shape::default(), root, service, info(1), None);
    (Client::from_connection(Connection::fixed(session)), host, seen)
}

#[test]
fn results_come_in_the_order_of_the_calls_whoever_ends_first() {
    common::run(async {
        let (client, _host, seen) = ends();
        let results = call_many((0..300).map(|number| client.double(client.root(), number))).await;
        for (number, result) in (0..).zip(&results) {
            let expected = if number == 13 { Err(NumberError::Unlucky.into()) } else { Ok(2 * number) };
            assert_eq!(*result, expected);
        }
        assert_eq!(results.len(), 300);
        assert!((2..=64).contains(&seen.most.get()), "{} at a time", seen.most.get());
        assert!(!seen.order.borrow().is_sorted(), "they end in their own order");
        assert!(call_many(std::iter::empty::<()>().map(|()| client.double(client.root(), 1))).await.is_empty());
    });
}

#[test]
fn a_thread_without_an_executor_makes_many_calls_as_well() {
    let (client, _host, seen) = kernel_ipc::blocking(async { ends() });
    let results = call_many_blocking((1..=100).map(|number| client.double(client.root(), 2 * number)));
    assert!(results.into_iter().zip(1..).all(|(result, number)| result == Ok(4 * number)));
    assert_eq!(seen.order.borrow().len(), 100);
}

#[test]
fn dropping_it_cancels_what_is_under_way_and_begins_no_more() {
    common::run(async {
        let (client, _host, seen) = ends();
        let calls = call_many((0..1000).map(|_| client.double(client.root(), FOR_EVER)));
        assert!(runtime::timeout(Duration::from_millis(20), calls).await.is_err(), "none ends by itself");
        settle().await;
        assert_eq!((seen.cancelled.get(), seen.now.get()), (64, 0));
        assert_eq!(client.double(client.root(), 21).await, Ok(42), "the slots are free again");
    });
}
