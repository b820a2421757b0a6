//! The same through a generated client.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kernel_ipc::interface::{Cap, Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::session::{Call, HostSession, Offer, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Epoch, Rights, SessionId, runtime};

use super::common::{info, run, settle};

/// Shelves with books.
#[interface("atoll.shelf/1")]
pub trait Shelf {
    /// A shelf, or a book.
    type Item;

    /// Look at it.
    const READ: Rights;

    /// Takes an item from a shelf, and says how long it is.
    #[op(1, requires = READ, retry = cached, deadline = "30s")]
    fn take(shelf: Item, title: &str) -> Result<(Cap<Item>, u64), TakeError>;

    /// The title of an item, and of another one.
    #[op(2, requires = READ, retry = idempotent, deadline = "30s")]
    fn titles(item: Item, #[requires(READ)] other: Item) -> Result<String, TitlesError>;

    /// The title of an item.
    #[op(3, requires = READ, retry = idempotent, deadline = "30s")]
    fn title(item: Item) -> Result<String, TitlesError>;
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum TakeError {
    /// There is none of that title.
    NoSuchTitle = 7,
}

/// Why there are no titles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum TitlesError {
    /// It has none.
    Untitled = 1,
}

#[derive(Clone, Copy, Object)]
#[kind(Item)]
struct Taken(u64);

#[derive(Default)]
struct Library {
    titles: RefCell<Vec<String>>,
    dropped: Cell<u64>,
}

struct Host(Rc<Library>);

impl Handler for Host {
    type Item = Taken;

    async fn take(
        &self,
        _: &Call,
        _: Granted<Taken>,
        title: &str,
    ) -> Result<(NewCap<Taken>, u64), CallError<TakeError>> {
        if title.is_empty() {
            return Err(TakeError::NoSuchTitle.into());
        }
        if title == "far away" {
            runtime::yield_now().await;
        }
        let mut titles = self.0.titles.borrow_mut();
        titles.push(title.to_owned());
        Ok((NewCap::new(Taken(titles.len() as u64), Rights::READ), title.len() as u64))
    }

    async fn titles(
        &self,
        _: &Call,
        item: Granted<Taken>,
        other: Granted<Taken>,
    ) -> Result<String, CallError<TitlesError>> {
        let titles = self.0.titles.borrow();
        let title = |taken: Taken| titles.get(taken.0 as usize - 1).cloned().unwrap_or_default();
        Ok(format!("{}, {}", title(item.object), title(other.object)))
    }

    async fn title(&self, _: &Call, item: Granted<Taken>) -> Result<String, CallError<TitlesError>> {
        Ok(self.0.titles.borrow()[item.object.0 as usize - 1].clone())
    }

    fn item_dropped(&self, _: &SessionInfo, _: Granted<Taken>) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
}

fn ends(near: bool, library: &Rc<Library>) -> (Client, HostSession) {
    let root = NewCap::new(Taken(0), Rights::READ).to_grant();
    let service = Rc::new(Dispatcher(Host(library.clone())));
    let (session, host) = if near {
        in_process(Shape::default(), root, service, info(1), None)
    } else {
        let offer = Offer::new(Shape::default()).expect("a segment");
        let segment = offer.fd().try_clone_to_owned().expect("dup");
        let host = HostSession::start(segment, root, service, info(1), None).expect("opened");
        let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
        (offer.open(segment, SessionId(1), Epoch(1)).expect("opened"), host)
    };
    (Client::from_connection(Connection::fixed(session)), host)
}

fn over_both(test: impl AsyncFn(Client, Rc<Library>)) {
    for near in [true, false] {
        run(async {
            let library: Rc<Library> = Rc::default();
            let (client, _host) = ends(near, &library);
            test(client, library).await;
        });
    }
}

#[test]
fn a_thread_without_an_executor_sends_calls_ahead_as_well() {
    for near in [true, false] {
        let library: Rc<Library> = Rc::default();
        let (client, _host) = kernel_ipc::blocking(async { ends(near, &library) });
        let taken = client.take(client.root(), "one").ahead_blocking().expect("sent");
        let other = client.take(client.root(), "other").ahead_blocking().expect("sent");
        let (item, other) = (taken.capability(), other.capability());
        assert_eq!(client.titles(&item, &other).wait(), Ok("one, other".to_owned()));
        let (_same, length) = taken.wait().expect("taken");
        assert_eq!(length, 3);
        let refused = client.take(client.root(), "").ahead_blocking().expect("sent");
        assert!(matches!(refused.wait(), Err(CallError::Operation(TakeError::NoSuchTitle))));
    }
}

#[test]
fn what_a_call_brings_is_used_before_its_answer() {
    over_both(async |client, library| {
        let root = client.root();
        let (one, other) = (
            client.take(root, "one").ahead().await.expect("sent"),
            client.take(root, "other").ahead().await.expect("sent"),
        );
        let (first, second) = (one.capability(), other.capability());
        let titles = client.titles(&first, &second).await;
        assert_eq!(titles, Ok("one, other".to_owned()));
        let (same, length) = one.await.expect("taken");
        assert_eq!(length, 3);
        drop(first);
        settle().await;
        assert_eq!(library.dropped.get(), 0, "the result has it still");
        assert_eq!(client.titles(&same, &second).await, Ok("one, other".to_owned()));
        drop(same);
        settle().await;
        assert_eq!(library.dropped.get(), 1);
        // Not awaited: what it brought is held by who expected it.
        drop(other);
        settle().await;
        assert_eq!(library.dropped.get(), 1);
        drop(second);
        settle().await;
        assert_eq!(library.dropped.get(), 2);
    });
}

#[test]
fn what_is_asked_for_after_the_answer_is_the_same_that_the_answer_brought() {
    over_both(async |client, library| {
        let mut taken = client.take(client.root(), "one").ahead().await.expect("sent");
        let (item, _) = (&mut taken).await.expect("taken");
        let again = taken.capability();
        drop(item);
        settle().await;
        assert_eq!(library.dropped.get(), 0, "it is held still");
        assert_eq!(client.titles(&again, &again).await, Ok("one, one".to_owned()));
        drop((again, taken));
        settle().await;
        assert_eq!(library.dropped.get(), 1);
    });
}

#[test]
fn a_result_that_nobody_expected_is_its_callers_alone() {
    over_both(async |client, library| {
        let taken = client.take(client.root(), "one").ahead().await.expect("sent");
        let (item, _) = taken.await.expect("taken");
        drop(item);
        settle().await;
        assert_eq!(library.dropped.get(), 1);
    });
}

#[test]
fn a_call_on_what_a_handler_that_waits_will_bring_waits_for_it() {
    over_both(async |client, _| {
        let taken = client.take(client.root(), "far away").ahead().await.expect("sent");
        assert_eq!(client.title(&taken.capability()).await, Ok("far away".to_owned()));
        // Also if it was made before and is sent after.
        let other = client.take(client.root(), "far away").ahead().await.expect("sent");
        let item = other.capability();
        let title = client.title(&item);
        settle().await;
        assert_eq!(title.await, Ok("far away".to_owned()));
    });
}

#[test]
fn an_error_of_the_operation_is_its_callers_and_a_number_to_the_others() {
    over_both(async |client, _| {
        let taken = client.take(client.root(), "").ahead().await.expect("sent");
        let item = taken.capability();
        let titles = client.titles(&item, &item).await;
        let failed = |cause| CallError::Failed { cause, executed: kernel_ipc::Executed::No };
        assert_eq!(titles, Err(failed(Cause::EarlierError { error: 7 })));
        assert_eq!(taken.await.map(drop), Err(CallError::Operation(TakeError::NoSuchTitle)));
        assert_eq!(client.titles(&item, &item).await, Err(failed(Cause::EarlierError { error: 7 })));
    });
}

#[test]
fn capabilities_of_two_sessions_are_not_mixed() {
    over_both(async |client, _| {
        over_both_inner(&client).await;
    });
}

async fn over_both_inner(client: &Client) {
    let library: Rc<Library> = Rc::default();
    let root = NewCap::new(Taken(0), Rights::READ).to_grant();
    let (session, _host) = in_process(Shape::default(), root, Rc::new(Dispatcher(Host(library))), info(2), None);
    let other = Client::from_connection(Connection::fixed(session));
    let (here, there) =
        (client.take(client.root(), "here").ahead().await, other.take(other.root(), "there").ahead().await);
    let (here, there) = (here.expect("sent").capability(), there.expect("sent").capability());
    let mixed = client.titles(&here, &there).await;
    assert_eq!(mixed, Err(CallError::Failed { cause: Cause::StaleHandle, executed: kernel_ipc::Executed::No }));
}
