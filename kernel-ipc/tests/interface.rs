//! `#[interface]`: each annotation does something, and both ends agree on what travels.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::interface::{
    Cap, Connect, Connection, Granted, Lease, LeasePart, NewCap, Object, OperationError, Retry, Wire, interface,
};
use kernel_ipc::lease::Lend;
use kernel_ipc::runtime;
use kernel_ipc::session::{
    Call, ClientSession, Grant, HostSession, Offer, Request, Response, Service, SessionInfo, in_process,
};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Executed, Failure, Handle, LeaseName, LenderId, RegionId, Rights};

use common::{info, lender, settle};

/// Shelves of books.
#[interface("atoll.shelf/1")]
pub trait Library {
    /// A shelf.
    type Shelf;
    /// A book.
    type Book;

    /// Read a book.
    const READ: Rights;
    /// Write in a book.
    const WRITE: Rights;
    /// Find a book.
    const LOOKUP: Rights = 8;

    /// Opens a book.
    #[op(1, requires = LOOKUP, retry = cached, deadline = "5s")]
    fn open(shelf: Shelf, title: &str, want: Rights) -> Result<(Cap<Book>, u32), OpenError>;

    /// Lends a page, if there is one.
    #[op(2, requires = READ | WRITE, retry = idempotent, deadline = "30s")]
    fn page(book: Book, number: u64, bytes: u32) -> Result<Option<Lease>, PageError>;

    /// Copies one book into another.
    #[op(3, requires = WRITE, retry = cached, deadline = "250ms")]
    fn copy(to: Book, note: &[u8], #[requires(READ)] from: Book, pages: &[LeasePart]) -> Result<Copied, PageError>;

    /// Waits until the caller is gone.
    #[op(4, retry = idempotent, deadline = none)]
    fn linger(shelf: Shelf) -> Result<(), PageError>;

    /// As `linger`.
    #[op(5, retry = cached, deadline = "20ms")]
    fn linger_cached(shelf: Shelf) -> Result<(), PageError>;

    /// As `linger`.
    #[op(60, retry = never, deadline = "20ms")]
    fn linger_never(shelf: Shelf) -> Result<(), PageError>;

    /// Opens several books.
    #[op(7, requires = LOOKUP, retry = cached, deadline = "5s")]
    fn several(shelf: Shelf, count: u8) -> Result<(Vec<Cap<Book>>, Vec<u64>), OpenError>;
}

/// What was copied.
#[derive(Debug, PartialEq, Eq, Wire)]
pub struct Copied {
    from: u64,
    note: Vec<u8>,
    parts: Vec<(u64, u64)>,
}

/// Why a book does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum OpenError {
    /// No such book. Ask somebody.
    NotFound = 1,
    /// Somebody has it.
    Lent {
        /// Who.
        reader: u64,
        /// How long already.
        for_days: u32,
    } = 515,
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum PageError {
    /// The page is torn.
    Torn(u64) = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShelfNumber(u64);

impl Object for ShelfNumber {
    type Kind = Shelf;

    fn to_words(&self) -> [u64; 2] {
        [self.0, 0]
    }

    fn from_words(words: [u64; 2]) -> Self {
        ShelfNumber(words[0])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BookNumber(u64);

impl Object for BookNumber {
    type Kind = Book;

    fn to_words(&self) -> [u64; 2] {
        [0, self.0]
    }

    fn from_words(words: [u64; 2]) -> Self {
        BookNumber(words[1])
    }
}

/// What the host saw.
#[derive(Default)]
struct Seen {
    calls: Cell<u32>,
    deadline: Cell<Option<Duration>>,
    dropped_books: RefCell<Vec<u64>>,
    dropped_shelves: Cell<u32>,
    closed: Cell<u32>,
}

struct Librarian(Rc<Seen>);

impl Librarian {
    fn saw(&self, call: &Call) {
        self.0.calls.set(self.0.calls.get() + 1);
        self.0.deadline.set(call.deadline().map(|deadline| deadline - Instant::now()));
    }

    async fn wait(&self, call: &Call) -> Result<(), CallError<PageError>> {
        self.saw(call);
        call.until_cancelled().await;
        Err(Failure::not_executed(Cause::Cancelled).into())
    }
}

impl Handler for Librarian {
    type Shelf = ShelfNumber;
    type Book = BookNumber;

    async fn open(
        &self,
        call: &Call,
        shelf: Granted<ShelfNumber>,
        title: &str,
        want: Rights,
    ) -> Result<(NewCap<BookNumber>, u32), CallError<OpenError>> {
        self.saw(call);
        match title {
            "missing" => Err(OpenError::NotFound.into()),
            "lent" => Err(OpenError::Lent { reader: shelf.badge, for_days: 3 }.into()),
            "busy" => Err(Failure::not_executed(Cause::BUSY).into()),
            _ => Ok((NewCap::new(BookNumber(title.len() as u64), want).with_badge(9), shelf.object.0 as u32)),
        }
    }

    async fn page(
        &self,
        call: &Call,
        book: Granted<BookNumber>,
        number: u64,
        bytes: u32,
    ) -> Result<Option<Lend>, CallError<PageError>> {
        self.saw(call);
        match number {
            0 => Ok(None),
            13 => Err(PageError::Torn(book.badge).into()),
            _ => Ok(Some(Lend {
                region: RegionId(5),
                offset: number,
                length: bytes.into(),
                source: None,
                keep: Rc::new(()),
            })),
        }
    }

    async fn copy(
        &self,
        call: &Call,
        _to: Granted<BookNumber>,
        note: &[u8],
        from: Granted<BookNumber>,
        pages: Vec<LeasePart>,
    ) -> Result<Copied, CallError<PageError>> {
        self.saw(call);
        let parts = pages.iter().map(|part| (part.offset, part.length)).collect();
        Ok(Copied { from: from.object.0, note: note.to_vec(), parts })
    }

    async fn linger(&self, call: &Call, _: Granted<ShelfNumber>) -> Result<(), CallError<PageError>> {
        self.wait(call).await
    }

    async fn linger_cached(&self, call: &Call, _: Granted<ShelfNumber>) -> Result<(), CallError<PageError>> {
        self.wait(call).await
    }

    async fn linger_never(&self, call: &Call, _: Granted<ShelfNumber>) -> Result<(), CallError<PageError>> {
        self.wait(call).await
    }

    async fn several(
        &self,
        call: &Call,
        _: Granted<ShelfNumber>,
        count: u8,
    ) -> Result<(Vec<NewCap<BookNumber>>, Vec<u64>), CallError<OpenError>> {
        self.saw(call);
        let numbers = || 1..=u64::from(count);
        let books = numbers().map(|number| NewCap::new(BookNumber(number), Rights::READ)).collect();
        Ok((books, numbers().collect()))
    }

    fn book_dropped(&self, _: &SessionInfo, book: Granted<BookNumber>) {
        self.0.dropped_books.borrow_mut().push(book.object.0);
    }

    fn shelf_dropped(&self, _: &SessionInfo, _: Granted<ShelfNumber>) {
        self.0.dropped_shelves.set(self.0.dropped_shelves.get() + 1);
    }

    fn closed(&self, _: &SessionInfo) {
        self.0.closed.set(self.0.closed.get() + 1);
    }
}

const ROOT_RIGHTS: Rights = Rights::from_bits_retain(LOOKUP.bits() | READ.bits());

fn session_of<S: Service>(service: S, id: u64, rights: Rights) -> (ClientSession, HostSession) {
    let root = NewCap::new(ShelfNumber(42), rights).with_badge(77).to_grant();
    in_process(Shape::default(), root, Rc::new(service), info(id), Some(lender()))
}

/// The same between two ends that could be two processes.
fn shared_session_of<S: Service>(service: S, id: u64, rights: Rights) -> (ClientSession, HostSession) {
    let root = NewCap::new(ShelfNumber(42), rights).with_badge(77).to_grant();
    let offer = Offer::new(Shape::default()).expect("a segment");
    let segment = offer.fd().try_clone_to_owned().expect("a descriptor");
    let host = HostSession::start(segment, root, Rc::new(service), info(id), Some(lender())).expect("served");
    let segment = host.fd().expect("a segment").try_clone_to_owned().expect("a descriptor");
    let client = offer.open(segment, host.info().id, host.info().epoch).expect("opened");
    (client, host)
}

struct Ends {
    client: Client,
    session: ClientSession,
    host: HostSession,
    seen: Rc<Seen>,
}

fn ends(id: u64, rights: Rights) -> Ends {
    let seen = Rc::new(Seen::default());
    let (session, host) = session_of(Dispatcher(Librarian(seen.clone())), id, rights);
    Ends { client: Client::from_connection(Connection::fixed(session.clone())), session, host, seen }
}

/// Runs a test with both ends of a session.
fn with_ends(test: impl AsyncFnOnce(Ends)) {
    common::run(async { test(ends(1, ROOT_RIGHTS)).await });
}

fn failed<E>(cause: Cause, executed: Executed) -> CallError<E> {
    CallError::Failed { cause, executed }
}

#[test]
fn a_call_carries_arguments_there_and_a_result_back() {
    with_ends(async |Ends { client, .. }| {
        let (book, shelf) = client.open(client.root(), "title", READ | WRITE).await.expect("opened");
        assert_eq!(shelf, 42);
        let lease = client.page(&book, 7, 4096).await.expect("a page").expect("there is one");
        assert_eq!(lease.len(), 4096);
        assert!(client.page(&book, 0, 4096).await.expect("no page").is_none());

        let other = client.open(client.root(), "other title", READ).await.expect("opened").0;
        let parts = [lease.forward(), lease.part(100..=199), lease.part(4000..)];
        let copied = client.copy(&book, b"a note", &other, &parts).await.expect("copied");
        let expected = Copied { from: 11, note: b"a note".to_vec(), parts: vec![(0, 4096), (100, 100), (4000, 96)] };
        assert_eq!(copied, expected);

        let (books, numbers) = client.several(client.root(), 3).await.expect("opened");
        assert_eq!((books.len(), numbers), (3, vec![1, 2, 3]));
    });
}

#[test]
fn an_operations_own_errors_keep_number_and_fields() {
    with_ends(async |Ends { client, .. }| {
        let error = client.open(client.root(), "lent", READ).await.expect_err("lent");
        assert_eq!(error, CallError::Operation(OpenError::Lent { reader: 77, for_days: 3 }));
        assert_eq!(error.to_string(), "somebody has it (reader 77, for days 3)");
        let error = client.open(client.root(), "missing", READ).await.expect_err("missing");
        assert_eq!(error.to_string(), "no such book");
        let book = client.open(client.root(), "x", READ | WRITE).await.expect("opened").0;
        let error = client.page(&book, 13, 1).await.expect_err("torn");
        assert_eq!(error, CallError::Operation(PageError::Torn(9)));
        assert_eq!(OpenError::Lent { reader: 0, for_days: 0 }.number(), 515);
    });
}

#[test]
fn a_handler_can_fail_the_call_itself() {
    with_ends(async |Ends { client, .. }| {
        let error = client.open(client.root(), "busy", READ).await.expect_err("busy");
        assert_eq!(error, failed(Cause::BUSY, Executed::No));
    });
}

#[test]
fn requires_is_checked_before_the_handler_sees_the_call() {
    common::run(async {
        let Ends { client, seen, host: _host, .. } = ends(1, READ);
        let error = client.open(client.root(), "title", READ).await.expect_err("no LOOKUP");
        assert_eq!(error, failed(Cause::RightsMissing, Executed::No));
        assert_eq!(seen.calls.get(), 0);

        // All of several rights are required.
        let Ends { client, seen, host: _host, .. } = ends(2, ROOT_RIGHTS);
        let book = client.open(client.root(), "title", READ).await.expect("opened").0;
        let error = client.page(&book, 1, 1).await.expect_err("no WRITE");
        assert_eq!(error, failed(Cause::RightsMissing, Executed::No));
        assert_eq!(seen.calls.get(), 1);
    });
}

#[test]
fn requires_of_an_argument_is_checked_too() {
    with_ends(async |Ends { client, seen, .. }| {
        let to = client.open(client.root(), "to", WRITE).await.expect("opened").0;
        let from = client.open(client.root(), "from", WRITE).await.expect("opened").0;
        let error = client.copy(&to, b"", &from, &[]).await.expect_err("`from` has no READ");
        assert_eq!(error, failed(Cause::RightsMissing, Executed::No));
        assert_eq!(seen.calls.get(), 2);
        let from = client.open(client.root(), "from", READ).await.expect("opened").0;
        client.copy(&to, b"", &from, &[]).await.expect("now it has");
    });
}

#[test]
fn the_deadline_is_the_operations_unless_the_caller_says_otherwise() {
    with_ends(async |Ends { client, seen, .. }| {
        let seconds = |limit: Duration| (limit.as_secs_f64() * 10.0).round() / 10.0;
        client.open(client.root(), "title", READ).await.expect("opened");
        assert_eq!(seen.deadline.get().map(seconds), Some(5.0));
        client.open(client.root(), "title", READ).deadline(Duration::from_secs(60)).await.expect("opened");
        assert_eq!(seen.deadline.get().map(seconds), Some(60.0));
        client.open(client.root(), "title", READ).no_deadline().await.expect("opened");
        assert_eq!(seen.deadline.get(), None);

        let error = client.linger_cached(client.root()).await.expect_err("20 ms are over");
        assert_eq!(error, failed(Cause::Deadline, Executed::Unknown));
        let error = client.linger(client.root()).deadline(Duration::from_millis(10)).await.expect_err("10 ms are over");
        assert_eq!(error, failed(Cause::Deadline, Executed::Unknown));
        assert!(seen.deadline.get().is_some());
    });
}

#[test]
fn a_call_without_a_deadline_stands_until_it_is_dropped() {
    with_ends(async |Ends { client, seen, .. }| {
        let standing = runtime::timeout(Duration::from_millis(50), client.linger(client.root()).into_future()).await;
        assert!(standing.is_err(), "it has not ended by itself");
        assert_eq!((seen.calls.get(), seen.deadline.get()), (1, None));
    });
}

#[test]
fn what_is_dropped_is_released() {
    with_ends(async |Ends { client, seen, .. }| {
        let (book, _) = client.open(client.root(), "title", READ | WRITE).await.expect("opened");
        let lease = client.page(&book, 1, 4096).await.expect("a page").expect("there is one");
        let name = lease.name();
        drop(lease);
        let (books, _) = client.several(client.root(), 2).await.expect("opened");
        drop((book, books));
        settle().await;
        assert_eq!(*seen.dropped_books.borrow(), [5, 1, 2]);
        assert_eq!(seen.dropped_shelves.get(), 0);

        // The lender has the index back: it is lent again, with the next generation.
        let (book, _) = client.open(client.root(), "title", READ | WRITE).await.expect("opened");
        let again = client.page(&book, 1, 4096).await.expect("a page").expect("there is one").name();
        assert_eq!((again.index, again.generation), (name.index, name.generation + 1));
    });
}

#[test]
fn an_ended_session_drops_its_root_and_tells_the_handler() {
    with_ends(async |Ends { client, session, host, seen }| {
        let _book = client.open(client.root(), "title", READ).await.expect("opened").0;
        host.close();
        settle().await;
        assert_eq!((seen.dropped_shelves.get(), seen.closed.get()), (1, 1));
        assert_eq!(*seen.dropped_books.borrow(), [5]);
        assert!(!session.is_open());
        let error = client.open(client.root(), "title", READ).await.expect_err("closed");
        assert_eq!(error, failed(Cause::SessionClosed, Executed::No));
    });
}

#[test]
fn a_capability_of_another_session_is_no_argument() {
    common::run(async {
        let (one, two) = (ends(1, ROOT_RIGHTS), ends(2, ROOT_RIGHTS));
        let mine = one.client.open(one.client.root(), "mine", WRITE).await.expect("opened").0;
        let other = two.client.open(two.client.root(), "other", READ).await.expect("opened").0;
        let error = one.client.copy(&mine, b"", &other, &[]).await.expect_err("of another session");
        assert_eq!(error, failed(Cause::StaleHandle, Executed::No));
        assert_eq!((one.seen.calls.get(), two.seen.calls.get()), (1, 1));
    });
}

fn request(operation: u16, handle: Handle, payload: &[u8]) -> Request<'_> {
    Request { operation, handle, payload, capabilities: &[], leases: &[], deadline: None, retry: Retry::Never }
}

#[test]
fn a_raw_call_that_the_interface_does_not_know_reaches_no_handler() {
    with_ends(async |Ends { session, seen, .. }| {
        let refused = async |operation, payload: &[u8]| {
            session.call(request(operation, session.root(), payload)).await.expect_err("refused")
        };
        assert_eq!(refused(99, &[]).await, Failure::not_executed(Cause::UnknownOperation));
        assert_eq!(refused(6, &[]).await, Failure::not_executed(Cause::UnknownOperation));
        assert_eq!(refused(2, &[]).await, Failure::not_executed(Cause::WrongKind));
        let good = [1, 0, 0, 0, 1, 0, 0, 0, b'x'];
        assert_eq!(refused(1, &good[..8]).await, Failure::not_executed(Cause::BadArguments));
        assert_eq!(refused(1, &[&good[..], &[0]].concat()).await, Failure::not_executed(Cause::BadArguments));
        assert_eq!(refused(1, &[1, 0, 0, 0, 1, 0, 0, 0, 0xff]).await, Failure::not_executed(Cause::BadArguments));
        let lease = LeaseName { lender: LenderId(1), index: 0, generation: 1, length: 10 };
        let surplus = Request { leases: &[lease], ..request(1, session.root(), &good) };
        let error = session.call(surplus).await.expect_err("a lease that nobody asked for");
        assert_eq!(error, Failure::not_executed(Cause::BadArguments));
        assert_eq!(seen.calls.get(), 0);
        session.call(request(1, session.root(), &good)).await.expect("as the client would have sent it");
        assert_eq!(seen.calls.get(), 1);
    });
}

/// Answers every call with the same bytes, whatever the interface says.
struct Liar {
    payload: Vec<u8>,
    operation_error: Option<u16>,
    dropped: Rc<Cell<u32>>,
}

impl Service for Liar {
    const INTERFACE: &'static kernel_ipc::interface::Description = &DESCRIPTION;

    async fn serve(&self, _: &mut Call) -> Response {
        let grant = NewCap::new(BookNumber(1), Rights::READ).to_grant();
        let payload = self.payload.as_slice().into();
        Response { operation_error: self.operation_error, payload, grants: vec![grant; 2], ..Response::default() }
    }

    fn dropped(&self, _: &SessionInfo, grant: &Grant) {
        self.dropped.set(self.dropped.get() + u32::from(grant.kind == 2));
    }
}

#[test]
fn a_reply_that_the_interface_does_not_know_ends_the_session() {
    common::run(async {
        let lies =
            [(None, vec![1, 2]), (None, vec![0; 4]), (None, vec![0; 5]), (Some(2), vec![]), (Some(515), vec![0])];
        for (operation_error, payload) in lies {
            let dropped = Rc::new(Cell::new(0));
            let liar = Liar { payload, operation_error, dropped: dropped.clone() };
            let (session, _host) = session_of(liar, 1, ROOT_RIGHTS);
            let client = Client::from_connection(Connection::fixed(session.clone()));
            let error = client.open(client.root(), "title", READ).await.expect_err("a lie");
            assert_eq!(error, failed(Cause::ProtocolViolation, Executed::Yes));
            assert!(!session.is_open());
            settle().await;
            assert_eq!(dropped.get(), 2, "what came with it is given back");
        }
    });
}

/// A connection whose host can be killed, and which then finds its next incarnation.
struct Mortal {
    client: Client,
    /// What each incarnation saw.
    seen: Rc<RefCell<Vec<Rc<Seen>>>>,
    sessions: Rc<RefCell<Vec<(ClientSession, HostSession)>>>,
}

impl Mortal {
    fn new() -> Mortal {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sessions = Rc::new(RefCell::new(Vec::new()));
        let start = {
            let (seen, sessions) = (seen.clone(), sessions.clone());
            move || {
                let saw = Rc::new(Seen::default());
                seen.borrow_mut().push(saw.clone());
                let id = seen.borrow().len() as u64;
                let ends = shared_session_of(Dispatcher(Librarian(saw)), id, ROOT_RIGHTS);
                let session = ends.0.clone();
                sessions.borrow_mut().push(ends);
                session
            }
        };
        let first = start();
        let reopen = Box::new(move || {
            let session = start();
            Box::pin(async move { Ok(session) }) as std::pin::Pin<Box<dyn Future<Output = _>>>
        });
        Mortal { client: Client::from_connection(Connection::lasting(first, reopen)), seen, sessions }
    }

    fn kill_host(&self) {
        let (session, host) = self.sessions.borrow_mut().pop().expect("one lives");
        session.host_died();
        host.close();
    }

    fn calls(&self) -> Vec<u32> {
        self.seen.borrow().iter().map(|seen| seen.calls.get()).collect()
    }

    fn sum(&self) -> usize {
        self.calls().iter().sum::<u32>() as usize
    }

    /// Lets a call go on until handlers have had so many.
    async fn runs<T>(&self, mut call: std::pin::Pin<&mut impl Future<Output = T>>, calls: usize) {
        while self.sum() < calls {
            assert!(runtime::timeout(Duration::from_millis(10), call.as_mut()).await.is_err(), "it runs");
        }
    }

    /// Makes a call, kills its host when the handler has it, and gives the call some time with the next incarnation.
    async fn killed<T>(
        &self,
        call: impl Future<Output = Result<T, CallError<PageError>>>,
    ) -> Option<CallError<PageError>> {
        let mut call = std::pin::pin!(call);
        self.runs(call.as_mut(), self.sum() + 1).await;
        self.kill_host();
        match runtime::timeout(Duration::from_millis(10), call).await {
            Ok(result) => Some(result.err().expect("the handlers never succeed")),
            Err(_) => None,
        }
    }
}

#[test]
fn an_idempotent_call_runs_again_when_its_host_dies_but_only_once() {
    common::run(async {
        let mortal = Mortal::new();
        let client = mortal.client.clone();
        let mut call = std::pin::pin!(client.linger(client.root()).into_future());
        for incarnations in [1, 2] {
            mortal.runs(call.as_mut(), incarnations).await;
            assert_eq!(mortal.calls(), vec![1; incarnations]);
            mortal.kill_host();
        }
        assert_eq!(call.await, Err(failed(Cause::PeerDied, Executed::Unknown)));
        assert_eq!(mortal.calls(), [1, 1]);
    });
}

#[test]
fn a_call_that_may_have_run_is_not_run_again_unless_it_is_idempotent() {
    common::run(async {
        let mortal = Mortal::new();
        let client = mortal.client.clone();
        let long = Duration::from_secs(60);
        let error = mortal.killed(client.linger_cached(client.root()).deadline(long).into_future()).await;
        assert_eq!(error, Some(failed(Cause::PeerDied, Executed::Unknown)));
        assert_eq!(mortal.calls(), [1]);
        let error = mortal.killed(client.linger_never(client.root()).deadline(long).into_future()).await;
        assert_eq!(error, Some(failed(Cause::PeerDied, Executed::Unknown)));
        assert_eq!(mortal.calls(), [1, 1], "the next call found the next incarnation");
    });
}

#[test]
fn a_call_that_was_never_read_is_sent_again_if_it_is_cached_and_not_if_it_is_never() {
    common::run(async {
        for (cached, expected) in [(true, None), (false, Some(failed(Cause::PeerDied, Executed::No)))] {
            let mortal = Mortal::new();
            let client = mortal.client.clone();
            let long = Duration::from_secs(60);
            let call = async {
                if cached {
                    client.linger_cached(client.root()).deadline(long).await
                } else {
                    client.linger_never(client.root()).deadline(long).await
                }
            };
            let mut call = std::pin::pin!(call);
            // Published, but the host's end has not been polled since.
            std::future::poll_fn(|cx| {
                assert!(call.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            mortal.kill_host();
            let ended = runtime::timeout(Duration::from_millis(20), call).await;
            assert_eq!(ended.ok().map(|result| result.expect_err("the handlers never succeed")), expected);
            assert_eq!(mortal.calls(), if cached { vec![0, 1] } else { vec![0] });
        }
    });
}

#[test]
fn after_its_host_died_a_capability_is_stale_and_the_root_is_not() {
    common::run(async {
        let mortal = Mortal::new();
        let client = &mortal.client;
        let book = client.open(client.root(), "title", READ | WRITE).await.expect("opened").0;
        mortal.kill_host();
        let error = client.page(&book, 1, 1).await.expect_err("stale");
        assert_eq!(error, failed(Cause::StaleEpoch, Executed::No));
        let book = client.open(client.root(), "title", READ | WRITE).await.expect("opened").0;
        client.page(&book, 1, 1).await.expect("valid again");
        assert_eq!(mortal.calls(), [1, 2]);
    });
}

#[test]
fn the_blocking_client_has_the_same_operations_without_await() {
    let Ends { client, host, .. } = kernel_ipc::blocking(async { ends(1, ROOT_RIGHTS) });
    let fs = client.blocking();
    let (book, shelf) = fs.open(client.root(), "title", READ | WRITE).expect("opened");
    assert_eq!(shelf, 42);
    assert_eq!(fs.page(&book, 5, 10).expect("a page").map(|lease| lease.len()), Some(10));
    let error = fs.deadline(Duration::from_millis(5)).linger(client.root()).expect_err("5 ms are over");
    assert_eq!(error, failed(Cause::Deadline, Executed::Unknown));
    kernel_ipc::blocking(async move { drop((book, client, host)) });
}

#[test]
fn the_description_says_what_the_trait_says() {
    assert_eq!(DESCRIPTION.name, "atoll.shelf/1");
    assert_eq!(<Client as Connect>::INTERFACE, "atoll.shelf/1");
    assert_eq!(DESCRIPTION.kinds, ["Shelf", "Book"]);
    assert_eq!(DESCRIPTION.right("lookup"), Some(LOOKUP));
    assert_eq!(DESCRIPTION.right("write"), Some(Rights::WRITE));
    assert_eq!(DESCRIPTION.right("grant"), None);
    assert_eq!(DESCRIPTION.all_rights(), READ | WRITE | LOOKUP);
    let numbers: Vec<u16> = DESCRIPTION.operations.iter().map(|operation| operation.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 7, 60]);
    for operation in DESCRIPTION.operations {
        assert_eq!(DESCRIPTION.operation(operation.number), Some(operation));
    }
    for number in [0, 6, 8, 59, 61, u16::MAX] {
        assert_eq!(DESCRIPTION.operation(number), None);
    }

    let copy = DESCRIPTION.operation(3).expect("it is there");
    assert_eq!((copy.name, copy.target_kind, copy.requires), ("copy", 2, WRITE));
    assert_eq!((copy.retry, copy.deadline), (Retry::Cached, Some(Duration::from_millis(250))));
    let [from] = copy.handles else { panic!("one handle beside the target") };
    assert_eq!((from.name, from.kind, from.requires), ("from", 2, READ));
    assert_eq!(copy.signature, "(to: Book, note: &[u8], from: Book, pages: &[LeasePart]) -> Result<Copied, PageError>");
    let linger = DESCRIPTION.operation(4).expect("it is there");
    assert_eq!((linger.retry, linger.deadline, linger.requires), (Retry::Idempotent, None, Rights::empty()));
}
