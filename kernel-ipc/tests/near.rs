//! A server in its client's thread: a call of it is a function call, and nobody can tell by what it does.

mod common;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use common::*;
use kernel_ipc::interface::{Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::runtime::{self, clock};
use kernel_ipc::session::{Call, HostSession, Offer, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Executed, Failure, Rights};

/// What a handler can do while its caller has not returned.
#[interface("atoll.near/1")]
pub trait Near {
    /// Something to call.
    type Thing;

    /// Call it.
    const READ: Rights;
    /// Change it.
    const WRITE: Rights;

    /// Writes the number down. 13 is refused.
    #[op(1, requires = READ, retry = idempotent, deadline = "30s")]
    fn note(thing: Thing, number: u64) -> Result<u64, NearError>;

    /// Calls `note` on the session that this came on, so many times one inside of the other.
    #[op(2, requires = READ, retry = idempotent, deadline = "30s")]
    fn nest(thing: Thing, depth: u64) -> Result<u64, NearError>;

    /// Ends the session under its own caller.
    #[op(3, requires = READ, retry = never, deadline = "30s")]
    fn hang_up(thing: Thing, by_host: bool) -> Result<(), NearError>;

    /// Never ends by itself.
    #[op(4, requires = READ, retry = never, deadline = "30s")]
    fn stand(thing: Thing) -> Result<(), NearError>;

    /// Needs a right that the root has not.
    #[op(5, requires = WRITE, retry = never, deadline = "30s")]
    fn change(thing: Thing) -> Result<(), NearError>;

    /// Text, as long as it is asked for.
    #[op(6, requires = READ, retry = idempotent, deadline = "30s")]
    fn text(thing: Thing, bytes: u32) -> Result<String, NearError>;

    /// Writes the number down, at once. 13 is refused.
    #[op(7, requires = READ, retry = idempotent, deadline = "30s", at_once)]
    fn note_at_once(thing: Thing, number: u64) -> Result<u64, NearError>;

    /// Text, at once.
    #[op(8, requires = READ, retry = idempotent, deadline = "30s", at_once)]
    fn text_at_once(thing: Thing, bytes: u32) -> Result<String, NearError>;

    /// Needs a right that the root has not, and is refused at once.
    #[op(9, requires = WRITE, retry = never, deadline = "30s", at_once)]
    fn change_at_once(thing: Thing) -> Result<(), NearError>;

    /// Ends the session under its own caller, at once.
    #[op(10, requires = READ, retry = never, deadline = "30s", at_once)]
    fn hang_up_at_once(thing: Thing, by_host: bool) -> Result<(), NearError>;

    /// How long its caller waits, in milliseconds.
    #[op(11, requires = READ, retry = idempotent, deadline = "30s", at_once)]
    fn limit(thing: Thing) -> Result<u64, NearError>;
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NearError {
    /// That number is not written down.
    Unlucky = 1,
}

#[derive(Clone, Copy, Object)]
#[kind(Thing)]
struct TheThing;

#[derive(Default)]
struct Seen {
    notes: RefCell<Vec<u64>>,
    client: RefCell<Option<Client>>,
    host: RefCell<Option<HostSession>>,
    cancelled: Cell<bool>,
    left: Cell<Option<Duration>>,
}

struct Host(Rc<Seen>);

impl Handler for Host {
    type Thing = TheThing;

    async fn note(&self, _: &Call, _: Granted<TheThing>, number: u64) -> Result<u64, CallError<NearError>> {
        self.note_down(number)
    }

    async fn nest(&self, _: &Call, _: Granted<TheThing>, depth: u64) -> Result<u64, CallError<NearError>> {
        let client = self.0.client.borrow().clone().expect("set by the test");
        let inner = match depth {
            0 => Box::pin(async { client.note(client.root(), 0).await }).await,
            _ => Box::pin(async { client.nest(client.root(), depth - 1).await }).await,
        };
        Ok(inner? + 1)
    }

    async fn hang_up(&self, _: &Call, _: Granted<TheThing>, by_host: bool) -> Result<(), CallError<NearError>> {
        self.end(by_host);
        Ok(())
    }

    async fn stand(&self, call: &Call, _: Granted<TheThing>) -> Result<(), CallError<NearError>> {
        self.0.left.set(call.deadline().map(|deadline| deadline.saturating_duration_since(clock::now())));
        call.until_cancelled().await;
        self.0.cancelled.set(true);
        Ok(())
    }

    async fn change(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NearError>> {
        Ok(())
    }

    async fn text(&self, _: &Call, _: Granted<TheThing>, bytes: u32) -> Result<String, CallError<NearError>> {
        Ok("x".repeat(bytes as usize))
    }

    fn note_at_once(&self, _: &Call, _: Granted<TheThing>, number: u64) -> Result<u64, CallError<NearError>> {
        self.note_down(number)
    }

    fn text_at_once(&self, _: &Call, _: Granted<TheThing>, bytes: u32) -> Result<String, CallError<NearError>> {
        Ok("x".repeat(bytes as usize))
    }

    fn change_at_once(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NearError>> {
        Ok(())
    }

    fn hang_up_at_once(&self, call: &Call, _: Granted<TheThing>, by_host: bool) -> Result<(), CallError<NearError>> {
        self.end(by_host);
        self.0.cancelled.set(call.cancelled());
        Ok(())
    }

    fn limit(&self, call: &Call, _: Granted<TheThing>) -> Result<u64, CallError<NearError>> {
        let deadline = call.deadline().expect("it has one");
        Ok(deadline.saturating_duration_since(clock::now()).as_millis() as u64)
    }

    fn closed(&self, _: &SessionInfo) {}
}

impl Host {
    fn note_down(&self, number: u64) -> Result<u64, CallError<NearError>> {
        self.0.notes.borrow_mut().push(number);
        if number == 13 { Err(NearError::Unlucky.into()) } else { Ok(number) }
    }

    fn end(&self, by_host: bool) {
        match by_host {
            true => self.0.host.borrow().as_ref().expect("set by the test").close(),
            false => self.0.client.borrow().as_ref().expect("set by the test").root().session().close(),
        }
    }
}

fn ends(slots: u16) -> (Client, Rc<Seen>) {
    let seen = Rc::new(Seen::default());
    let shape = Shape { slots, window_bytes: 4096 };
    let root = NewCap::new(TheThing, Rights::READ).to_grant();
    let (session, host) = in_process(shape, root, Rc::new(Dispatcher(Host(seen.clone()))), info(1), None);
    let client = Client::from_connection(Connection::fixed(session));
    seen.host.replace(Some(host));
    seen.client.replace(Some(client.clone()));
    (client, seen)
}

/// The same with shared memory between them.
fn apart(slots: u16) -> (Client, Rc<Seen>) {
    let seen = Rc::new(Seen::default());
    let root = NewCap::new(TheThing, Rights::READ).to_grant();
    let offer = Offer::new(Shape { slots, window_bytes: 4096 }).expect("a segment");
    let segment = offer.fd().try_clone_to_owned().expect("dup");
    let service = Rc::new(Dispatcher(Host(seen.clone())));
    let host = HostSession::start(segment, root, service, info(1), None).expect("opened");
    let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
    let session = offer.open(segment, info(1).id, info(1).epoch).expect("opened");
    let client = Client::from_connection(Connection::fixed(session));
    seen.host.replace(Some(host));
    seen.client.replace(Some(client.clone()));
    (client, seen)
}

/// Both know each other through what the test holds.
fn part(seen: &Seen) {
    seen.client.take();
    let host = seen.host.take();
    drop(host);
}

fn failed<T>(result: Result<T, CallError<NearError>>) -> Failure {
    match result {
        Err(CallError::Failed { cause, executed }) => Failure { cause, executed },
        _ => panic!("it did not fail"),
    }
}

#[test]
fn an_answer_that_is_there_needs_no_turn_of_the_thread() {
    common::run(async {
        let (client, seen) = ends(4);
        let turns = Rc::new(Cell::new(0u32));
        let counts = turns.clone();
        let others = runtime::spawn(async move {
            loop {
                counts.set(counts.get() + 1);
                runtime::yield_now().await;
            }
        });
        for number in 20..60 {
            assert_eq!(client.note(client.root(), number).await, Ok(number));
        }
        assert_eq!(client.note(client.root(), 13).await, Err(NearError::Unlucky.into()));
        assert_eq!(client.text(client.root(), 4000).await.map(|text| text.len()), Ok(4000));
        let refused = failed(client.change(client.root()).await);
        assert_eq!(refused, Failure { cause: Cause::RightsMissing, executed: Executed::No });
        assert_eq!(turns.get(), 0, "nobody else had the thread");
        for number in 0..1000 {
            let _ = client.note(client.root(), number).await;
        }
        assert!(turns.get() > 0, "who never stops calling does not keep it");
        others.cancel();
        part(&seen);
    });
}

#[test]
fn what_was_sent_before_is_served_before() {
    common::run(async {
        let (client, seen) = ends(32);
        // No more are answered at once before others have had their turn: from then on calls stay in the ring.
        let in_the_ring = loop {
            let mut call = client.text(client.root(), 0).into_future();
            let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut call).poll(cx))).await;
            match polled {
                Poll::Ready(text) => drop(text.expect("text")),
                Poll::Pending => break call,
            }
        };
        for number in 101..=112 {
            client.note(client.root(), number).post().await.expect("sent");
        }
        assert_eq!(seen.notes.borrow().len(), 0, "they lie in the ring");
        // The host reads a few of them in one turn.
        runtime::yield_now().await;
        assert!((1..12).contains(&seen.notes.borrow().len()), "{:?}", seen.notes.borrow());
        assert_eq!(client.note(client.root(), 1).await, Ok(1));
        assert_eq!(*seen.notes.borrow(), (101..=112).chain([1]).collect::<Vec<u64>>());
        in_the_ring.await.expect("text");
        part(&seen);
    });
}

#[test]
fn a_handler_calls_the_session_that_it_serves() {
    common::run(async {
        let (client, seen) = ends(4);
        // Four slots: the innermost call has the last one.
        assert_eq!(client.nest(client.root(), 2).await, Ok(3));
        assert_eq!(*seen.notes.borrow(), [0]);
        // One more would wait for a slot that only its end can free.
        let call = client.nest(client.root(), 3).deadline(Duration::from_millis(50));
        let failure = failed(call.await);
        assert_eq!(failure.cause, Cause::Deadline);
        part(&seen);
    });
}

#[test]
fn a_session_that_its_handler_ends_does_not_answer() {
    for by_host in [true, false] {
        common::run(async move {
            let (client, seen) = ends(4);
            let failure = failed(client.hang_up(client.root(), by_host).await);
            assert_eq!(failure, Failure { cause: Cause::SessionClosed, executed: Executed::Unknown }, "{by_host}");
            assert!(!client.root().session().is_open());
            part(&seen);
        });
    }
}

#[test]
fn a_call_that_waits_has_the_deadline_that_it_was_made_with_and_can_be_dropped() {
    common::run(async {
        let (client, seen) = ends(4);
        let failure = failed(client.stand(client.root()).deadline(Duration::from_millis(30)).await);
        assert_eq!(failure, Failure { cause: Cause::Deadline, executed: Executed::Unknown });
        let left = seen.left.take().expect("it has one");
        assert!(left >= Duration::from_millis(20), "{left:?} of 30 ms left as it began");
        settle().await;
        assert!(seen.cancelled.replace(false), "the handler hears of it");

        let stands = client.stand(client.root()).no_deadline().into_future();
        let waited = runtime::timeout(Duration::from_millis(10), stands).await;
        assert!(waited.is_err());
        assert_eq!(seen.left.take(), None);
        settle().await;
        assert!(seen.cancelled.get(), "and of its caller's going");
        assert_eq!(client.note(client.root(), 7).await, Ok(7), "its slot is free again");
        part(&seen);
    });
}

#[test]
fn what_is_answered_at_once_is_checked_and_answered_like_any_other() {
    for ends in [ends as fn(u16) -> (Client, Rc<Seen>), apart] {
        common::run(async move {
            let (client, seen) = ends(4);
            assert_eq!(client.note_at_once(client.root(), 7).await, Ok(7));
            assert_eq!(client.note_at_once(client.root(), 13).await, Err(NearError::Unlucky.into()));
            assert_eq!(*seen.notes.borrow(), [7, 13]);
            let refused = failed(client.change_at_once(client.root()).await);
            assert_eq!(refused, Failure { cause: Cause::RightsMissing, executed: Executed::No });
            assert_eq!(client.text_at_once(client.root(), 4000).await.map(|text| text.len()), Ok(4000));
            let too_long = failed(client.text_at_once(client.root(), 5000).await);
            assert_eq!(too_long, Failure { cause: Cause::ReplyTooLarge, executed: Executed::Yes });
            let left = client.limit(client.root()).deadline(Duration::from_millis(5000)).await.expect("an answer");
            assert!((4000..=5100).contains(&left), "{left} ms of 5000");
            assert_eq!(client.note_at_once(client.root(), 8).await, Ok(8), "it goes on after all of that");
            part(&seen);
        });
    }
}

#[test]
fn what_is_answered_at_once_in_one_thread_needs_no_slot() {
    common::run(async {
        let (client, seen) = ends(1);
        let mut stands = client.stand(client.root()).no_deadline().into_future();
        let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut stands).poll(cx))).await;
        assert!(polled.is_pending(), "it has the only slot");
        assert_eq!(client.note_at_once(client.root(), 7).await, Ok(7));
        let mut waits = client.note(client.root(), 8).no_deadline().into_future();
        let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut waits).poll(cx))).await;
        assert!(polled.is_pending(), "there is no slot for it");
        // Nor does it overtake one that waits.
        let behind = failed(client.note_at_once(client.root(), 9).deadline(Duration::from_millis(20)).await);
        assert_eq!(behind, Failure { cause: Cause::Deadline, executed: Executed::No });
        drop(stands);
        assert_eq!(waits.await, Ok(8));
        assert_eq!(*seen.notes.borrow(), [7, 8]);
        part(&seen);
    });
}

#[test]
fn a_session_that_ends_while_it_is_answered_at_once_does_not_answer() {
    for ends in [ends as fn(u16) -> (Client, Rc<Seen>), apart] {
        for by_host in [true, false] {
            common::run(async move {
                let (client, seen) = ends(4);
                let failure = failed(client.hang_up_at_once(client.root(), by_host).await);
                assert_eq!(failure, Failure { cause: Cause::SessionClosed, executed: Executed::Unknown }, "{by_host}");
                assert!(seen.cancelled.get() || !by_host, "its handler sees that nobody waits any more");
                part(&seen);
            });
        }
    }
}
