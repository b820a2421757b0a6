//! What a host tells unasked, and what a client says without waiting for an answer, over each carrier.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use common::{info, run, settle};
use kernel_ipc::events::{AlreadyOpen, BadCursor, BatchLimits, Event, Producer, Queue, Stream};
use kernel_ipc::interface::{Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::runtime;
use kernel_ipc::session::{Call, ClientSession, HostSession, Messages, Offer, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Executed, Failure, Rights};

/// A list of numbers that is written by messages and read as a stream.
#[interface("atoll.list/1")]
pub trait List {
    /// The list.
    type Numbers;

    /// Read it.
    const READ: Rights;
    /// Write it.
    const WRITE: Rights;

    /// Adds a number. Refuses 13. Takes its time for each that is divisible by 10.
    #[op(1, requires = WRITE, retry = cached, deadline = "50ms")]
    fn add(list: Numbers, number: u64) -> Result<(), AddError>;

    /// The standing call: all numbers from 0 on, one by one.
    #[op(2, requires = READ, retry = idempotent, deadline = none)]
    fn next(list: Numbers, cursor: u64, most: u32) -> Result<(u64, Vec<u64>), NextError>;
}

/// Why a number is not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum AddError {
    /// Nobody wants it.
    Unlucky = 1,
}

/// Why there is no next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NextError {
    /// The cursor is neither the last one nor the one before.
    BadCursor = 1,
    /// Another such call is open.
    AlreadyOpen = 2,
}

#[derive(Clone, Copy)]
struct TheList;

impl Object for TheList {
    type Kind = Numbers;

    fn to_words(&self) -> [u64; 2] {
        [0; 2]
    }

    fn from_words(_: [u64; 2]) -> Self {
        TheList
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Number(u64);

impl Event for Number {
    fn bytes(&self) -> usize {
        8
    }
}

/// Bytes of numbers that a client may leave unread.
const CREDIT: usize = 10 * 8;

struct Host {
    added: RefCell<Vec<u64>>,
    under_way: Cell<usize>,
    producer: Producer<Number>,
}

struct Serving(Rc<Host>);

impl Handler for Serving {
    type Numbers = TheList;

    async fn add(&self, _: &Call, _: Granted<TheList>, number: u64) -> Result<(), CallError<AddError>> {
        self.0.under_way.set(self.0.under_way.get() + 1);
        if number.is_multiple_of(10) {
            runtime::sleep(Duration::from_millis(30)).await;
        }
        self.0.under_way.set(self.0.under_way.get() - 1);
        if number == 13 {
            return Err(AddError::Unlucky.into());
        }
        self.0.added.borrow_mut().push(number);
        Ok(())
    }

    async fn next(
        &self,
        call: &Call,
        _: Granted<TheList>,
        cursor: u64,
        most: u32,
    ) -> Result<(u64, Vec<u64>), CallError<NextError>> {
        let standing = self.0.producer.stand().map_err(|AlreadyOpen| NextError::AlreadyOpen)?;
        standing.consume(cursor, |_| ()).map_err(|BadCursor| NextError::BadCursor)?;
        let limits = BatchLimits { events: most as usize, bytes: 1000, capabilities: 0 };
        let batch = call.unless_cancelled(standing.batch(limits)).await;
        let batch = batch.ok_or(Failure::not_executed(Cause::Cancelled))?;
        Ok((batch.next, batch.events.iter().map(|number| number.0).collect()))
    }

    fn closed(&self, _: &SessionInfo) {}
}

struct Ends {
    client: Client,
    session: ClientSession,
    host: Rc<Host>,
    _serving: HostSession,
}

const SHAPE: Shape = Shape { slots: 8, window_bytes: 4096 };

fn over_each_carrier(test: impl AsyncFn(Ends)) {
    for shared in [true, false] {
        run(async {
            let host = Rc::new(Host {
                added: RefCell::default(),
                under_way: Cell::new(0),
                producer: Producer::new(Queue::new(CREDIT)),
            });
            let service = Rc::new(Dispatcher(Serving(host.clone())));
            let root = NewCap::new(TheList, Rights::READ | Rights::WRITE).to_grant();
            let (session, serving) = match shared {
                true => {
                    let offer = Offer::new(SHAPE).expect("a segment");
                    let segment = offer.fd().try_clone_to_owned().expect("dup");
                    let serving = HostSession::start(segment, root, service, info(1), None).expect("opened");
                    let segment = serving.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                    (offer.open(segment, info(1).id, info(1).epoch).expect("opened"), serving)
                }
                false => in_process(SHAPE, root, service, info(1), None),
            };
            let client = Client::from_connection(Connection::fixed(session.clone()));
            test(Ends { client, session, host, _serving: serving }).await;
        });
    }
}

#[test]
fn a_stream_gives_each_result_once_and_its_producer_is_never_further_ahead_than_its_credit() {
    over_each_carrier(async |ends| {
        let made = Rc::new(Cell::new(0));
        let producing = runtime::spawn({
            let (host, made) = (ends.host.clone(), made.clone());
            async move {
                for number in 0..500 {
                    host.producer.send(Number(number)).await;
                    made.set(number + 1);
                }
                host.producer.end();
            }
        });
        let client = &ends.client;
        let mut stream = Stream::new(async |cursor| client.next(client.root(), cursor, 7).await);
        let mut taken = 0;
        while let Some(number) = stream.next().await.expect("the next one") {
            assert_eq!(number, taken);
            taken += 1;
            settle().await;
            // What it may leave unread, and a batch that is here.
            assert!(made.get() <= taken + 10 + 7, "{} made, {taken} taken", made.get());
        }
        assert_eq!(taken, 500);
        assert_eq!(stream.next().await, Ok(None), "the end is told as often as it is asked for");
        producing.await.expect("not cancelled");
    });
}

#[test]
fn a_queue_that_filled_up_while_the_call_stood_says_that_it_has_room_again() {
    run(async {
        let producer = Rc::new(Producer::new(Queue::new(CREDIT)));
        let take = |most: usize| {
            let producer = producer.clone();
            runtime::spawn(async move {
                let standing = producer.stand().expect("the only one");
                let limits = BatchLimits { events: most, bytes: 1000, capabilities: 0 };
                let batch = standing.batch(limits).await;
                standing.consume(batch.next, |_| ()).expect("its own cursor");
                (batch.events.len(), batch.made_room)
            })
        };
        let push = |count: u64| producer.with(|queue| (0..count).for_each(|number| queue.push(Number(number))));

        let stands = take(4);
        settle().await;
        assert!(!producer.is_full() && producer.stand().is_err(), "it waits at a queue with room");
        push(10);
        assert!(producer.is_full());
        assert_eq!(stands.await, Ok((4, true)), "full while it stood, and not after it");

        assert_eq!(take(4).await, Ok((4, false)), "it had room all the time");
        push(20);
        assert_eq!(take(4).await, Ok((4, false)), "it is full still");
        assert_eq!(take(20).await, Ok((18, true)), "full before the call, and not after it");
    });
}

#[test]
fn a_batch_whose_answer_was_lost_comes_again() {
    over_each_carrier(async |ends| {
        let (client, producer) = (&ends.client, &ends.host.producer);
        (0..3).for_each(|number| producer.with(|queue| queue.push(Number(number))));
        assert_eq!(client.next(client.root(), 0, 2).await, Ok((2, vec![0, 1])));
        producer.with(|queue| queue.push(Number(3)));
        assert_eq!(client.next(client.root(), 0, 9).await, Ok((2, vec![0, 1])));
        assert_eq!(client.next(client.root(), 2, 9).await, Ok((4, vec![2, 3])));
        let cursor = client.next(client.root(), 3, 9).await;
        assert_eq!(cursor, Err(CallError::Operation(NextError::BadCursor)));
    });
}

#[test]
fn there_is_one_standing_call_and_giving_it_up_makes_room_for_the_next() {
    over_each_carrier(async |ends| {
        let standing = runtime::spawn({
            let client = ends.client.clone();
            async move { client.next(client.root(), 0, 9).await }
        });
        settle().await;
        let client = &ends.client;
        assert_eq!(client.next(client.root(), 0, 9).await, Err(CallError::Operation(NextError::AlreadyOpen)));
        standing.cancel();
        settle().await;
        ends.host.producer.with(|queue| queue.push(Number(5)));
        // The one that was cancelled has perhaps been answered: what it brought comes again.
        assert_eq!(client.next(client.root(), 0, 9).await, Ok((1, vec![5])));
    });
}

#[test]
fn messages_run_once_each_and_what_failed_is_counted() {
    over_each_carrier(async |ends| {
        for number in 0..100 {
            ends.client.add(ends.client.root(), number).no_deadline().post().await.expect("sent");
            assert!(ends.session.messages().under_way <= 8, "no more than slots");
        }
        assert_eq!(ends.session.settled().await, Messages { under_way: 0, done: 99, failed: 1 });
        let mut added = ends.host.added.borrow().clone();
        added.sort_unstable();
        assert_eq!(added, (0..100).filter(|number| *number != 13).collect::<Vec<u64>>());
    });
}

#[test]
fn who_sends_faster_than_the_host_serves_waits_for_a_slot_no_longer_than_the_deadline() {
    over_each_carrier(async |ends| {
        let client = &ends.client;
        let (_, others) = (0..8).fold((client, Vec::new()), |(client, mut waits), _| {
            let client_of_its_own = client.clone();
            waits.push(runtime::spawn(async move { client_of_its_own.next(client_of_its_own.root(), 0, 1).await }));
            (client, waits)
        });
        settle().await;
        // One stands, seven were refused: fill their slots with calls that take their time.
        while ends.session.messages().under_way < 7 {
            client.add(client.root(), 10).no_deadline().post().await.expect("a slot");
        }
        let late = client.add(client.root(), 1).deadline(Duration::from_millis(5)).post().await;
        assert_eq!(late, Err(Failure { cause: Cause::Deadline, executed: Executed::No }));
        client.add(client.root(), 2).no_deadline().post().await.expect("a slot becomes free");
        assert_eq!(ends.session.settled().await.failed, 0);
        assert!(!ends.host.added.borrow().contains(&1), "it was not sent");
        assert_eq!(ends.host.under_way.get(), 0);
        others.iter().for_each(|wait| wait.cancel());
    });
}

#[test]
fn messages_that_are_under_way_when_the_session_ends_have_failed() {
    over_each_carrier(async |ends| {
        for _ in 0..5 {
            ends.client.add(ends.client.root(), 10).no_deadline().post().await.expect("sent");
        }
        let before = ends.session.messages();
        ends.session.close();
        let after = ends.session.settled().await;
        assert_eq!((after.done, after.failed), (before.done, 5 - before.done));
        let late = ends.client.add(ends.client.root(), 1).post().await;
        assert_eq!(late.map_err(|failure| failure.executed), Err(Executed::No));
    });
}
