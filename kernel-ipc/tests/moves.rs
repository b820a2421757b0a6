//! A session moved to and fro between two threads of its host, while its client calls: every call is answered once, and they
//! are begun in the order in which they were made.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{info, request, run_waiting, settle};
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::runtime::{self, Mailbox, Waiting, mailbox};
use kernel_ipc::session::capability::Minting;
use kernel_ipc::session::{
    Call, ClientSession, Grant, HostSession, Movable, Offer, Parted, Response, Served, Service, SessionInfo,
};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Epoch, Rights, SessionId};

/// Takes the number in its payload, which has to be the next one of its session.
const NEXT: u16 = 1;
/// Grants an object of the number in its payload.
const OPEN: u16 = 2;
/// The number of its target.
const READ: u16 = 3;
/// Ends when it is cancelled.
const HANG: u16 = 4;

const fn operation(number: u16, name: &'static str) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::READ,
        retry: Retry::Never,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

const COUNTING: Description = Description {
    name: "counting/1",
    kinds: &["Thing"],
    rights: &[("read", Rights::READ)],
    operations: &[operation(NEXT, "next"), operation(OPEN, "open"), operation(READ, "read"), operation(HANG, "hang")],
    details: kernel_ipc::described::Details::none,
};

fn number(payload: &[u8]) -> u64 {
    payload.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

fn grant(object: u64) -> Grant {
    Grant { object: [object, 0], kind: 1, rights: Rights::READ | Rights::GRANT, badge: 0 }
}

/// One instance of the service.
#[derive(Default)]
struct Counting {
    /// What is known of each session that is served here: its next number.
    next: RefCell<HashMap<SessionId, u64>>,
    closed: Cell<u32>,
    dropped: RefCell<Vec<u64>>,
}

impl Service for Counting {
    const INTERFACE: &'static Description = &COUNTING;

    async fn serve(&self, call: &mut Call) -> Response {
        let n = number(call.payload());
        match call.operation() {
            NEXT => {
                let id = call.session().id;
                let expected = self.next.borrow_mut().insert(id, n + 1);
                if expected != Some(n) {
                    return Response { operation_error: Some(1), ..Response::default() };
                }
                match n % 50 {
                    7 => runtime::sleep(Duration::from_micros(n % 300)).await,
                    9 => runtime::yield_now().await,
                    _ => {}
                }
                Response { payload: n.to_le_bytes().as_slice().into(), ..Response::default() }
            }
            OPEN => Response { grants: vec![grant(n)], ..Response::default() },
            READ => {
                Response { payload: call.target().object[0].to_le_bytes().as_slice().into(), ..Response::default() }
            }
            _ => {
                call.until_cancelled().await;
                Response::default()
            }
        }
    }

    fn dropped(&self, _: &SessionInfo, capability: &Grant) {
        self.dropped.borrow_mut().push(capability.object[0]);
    }

    fn closed(&self, _: &SessionInfo) {
        self.closed.set(self.closed.get() + 1);
    }
}

impl Movable for Counting {
    type State = u64;

    fn leave(&self, session: &SessionInfo) -> u64 {
        self.next.borrow_mut().remove(&session.id).expect("it is served here")
    }

    fn arrive(&self, session: &SessionInfo, state: u64) {
        assert!(self.next.borrow_mut().insert(session.id, state).is_none());
    }
}

enum Order {
    Open(std::os::fd::OwnedFd),
    Arrive(Parted, u64),
    /// Give it up, if that is possible within so many looks.
    Leave(u32),
    /// What its service has seen of ends and drops.
    Account,
    Stop,
}

enum News {
    Segment(std::os::fd::OwnedFd),
    Left(Option<(Parted, u64)>),
    Arrived,
    Account(u32, Vec<u64>),
}

/// A host's thread, with at most one session.
struct Host {
    orders: runtime::Sender<Order>,
    news: Receiver<News>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn start(waiting: Waiting) -> Host {
        let (orders, mailbox) = mailbox();
        let (tell, news) = channel();
        let thread = std::thread::spawn(move || run_waiting(waiting, serve(mailbox, tell)));
        Host { orders, news, thread: Some(thread) }
    }

    fn tell(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "the thread lives");
    }

    async fn hear(&self) -> News {
        loop {
            match self.news.try_recv() {
                Ok(news) => return news,
                Err(_) => runtime::yield_now().await,
            }
        }
    }

    /// Moves the session to another host. False: it stays.
    async fn move_to(&self, other: &Host, looks: u32) -> bool {
        self.tell(Order::Leave(looks));
        let News::Left(left) = self.hear().await else { panic!("it was asked to give it up") };
        let Some((parted, state)) = left else { return false };
        other.tell(Order::Arrive(parted, state));
        assert!(matches!(other.hear().await, News::Arrived));
        true
    }

    async fn account(&self) -> (u32, Vec<u64>) {
        self.tell(Order::Account);
        match self.hear().await {
            News::Account(closed, dropped) => (closed, dropped),
            _ => panic!("it was asked for that"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || joined.is_some_and(|joined| joined.is_ok()), "the host's thread failed");
    }
}

async fn serve(orders: Mailbox<Order>, news: Sender<News>) {
    let served = Served::one_of_many(Rc::new(Counting::default()));
    let service = served.service().clone();
    let mut session: Option<HostSession> = None;
    loop {
        let told = match orders.next().await {
            Order::Open(segment) => {
                service.arrive(&info(1), 0);
                let opened = HostSession::start(segment, grant(0), served.clone(), info(1), None).expect("a session");
                let fd = opened.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                session = Some(opened);
                News::Segment(fd)
            }
            Order::Arrive(parted, state) => {
                service.arrive(parted.info(), state);
                session = Some(HostSession::arrive(parted, served.clone()));
                News::Arrived
            }
            Order::Leave(looks) => {
                let leaving = session.take().expect("it is here");
                match leave(leaving, looks).await {
                    Ok(parted) => {
                        let state = service.leave(parted.info());
                        News::Left(Some((parted, state)))
                    }
                    Err(stays) => {
                        session = Some(stays);
                        News::Left(None)
                    }
                }
            }
            Order::Account => News::Account(service.closed.get(), service.dropped.borrow().clone()),
            Order::Stop => return,
        };
        let _ = news.send(told);
    }
}

/// Takes a session out of this thread as soon as nothing is in progress.
async fn leave(session: HostSession, looks: u32) -> Result<Parted, HostSession> {
    session.hold(true);
    for _ in 0..looks {
        if session.is_drained() {
            return session.part();
        }
        runtime::sleep(Duration::from_micros(100)).await;
    }
    session.hold(false);
    Err(session)
}

async fn open(host: &Host, shape: Shape) -> ClientSession {
    let offer = Offer::new(shape).expect("a segment");
    host.tell(Order::Open(offer.fd().try_clone_to_owned().expect("dup")));
    let News::Segment(segment) = host.hear().await else { panic!("it was asked to open it") };
    offer.open(segment, SessionId(1), Epoch(1)).expect("opened")
}

/// Keeps 64 calls outstanding until `done`, each with the next number. Gives how many were made.
async fn call_on(client: &ClientSession, done: Rc<Cell<bool>>) -> u64 {
    let next = Rc::new(Cell::new(0u64));
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (client, done, next) = (client.clone(), done.clone(), next.clone());
            runtime::spawn(async move {
                while !done.get() {
                    // There are as many slots as callers, so it is sent in the same moment.
                    let n = next.replace(next.get() + 1);
                    let reply = client.call(request(client.root(), NEXT, &n.to_le_bytes())).await.expect("an answer");
                    assert_eq!(reply.operation_error, None, "call {n} was not begun in its turn");
                    assert_eq!(number(&reply.payload), n);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("not cancelled");
    }
    next.get()
}

#[test]
fn no_call_is_lost_repeated_or_out_of_order_while_its_session_is_moved() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        run_waiting(waiting, async {
            let hosts = [Host::start(waiting), Host::start(waiting)];
            let client = open(&hosts[0], Shape { slots: 64, ..Shape::default() }).await;
            let done = Rc::new(Cell::new(false));
            let calling = runtime::spawn({
                let (client, done) = (client.clone(), done.clone());
                async move { call_on(&client, done).await }
            });
            let mut at = 0;
            let mut took = Vec::new();
            for n in 0..400 {
                let began = std::time::Instant::now();
                assert!(hosts[at].move_to(&hosts[1 - at], u32::MAX).await);
                took.push(began.elapsed());
                at = 1 - at;
                if n % 16 == 0 {
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            }
            done.set(true);
            let made = calling.await.expect("not cancelled");
            assert!(made > 1000, "only {made} calls met 400 moves");
            took.sort();
            println!("{waiting:?}: {made} calls, a move took {:?} (p50), {:?} (p99)", took[200], took[396]);
            // One that was not made by any caller is the next one still.
            client.call(request(client.root(), NEXT, &made.to_le_bytes())).await.expect("an answer");
            client.close();
            settle().await;
            while hosts[at].account().await.0 == 0 {
                runtime::yield_now().await;
            }
            assert_eq!(hosts[1 - at].account().await.0, 0, "it ended where it was, and only there");
        });
    }
}

#[test]
fn a_sleeping_client_and_sleeping_hosts_lose_no_wake_up_over_a_move() {
    run_waiting(Waiting::Block, async {
        let hosts = [Host::start(Waiting::Block), Host::start(Waiting::Block)];
        let client = open(&hosts[0], Shape::default()).await;
        for n in 0..60u64 {
            let at = (n % 2) as usize;
            let reply = client.call(request(client.root(), NEXT, &n.to_le_bytes())).await.expect("an answer");
            assert_eq!((reply.operation_error, number(&reply.payload)), (None, n));
            if n % 3 == 0 {
                // Both sides are asleep on each other's words when it is moved.
                runtime::sleep(Duration::from_millis(2)).await;
            }
            assert!(hosts[at].move_to(&hosts[1 - at], u32::MAX).await);
        }
    });
}

#[test]
fn capabilities_go_along_and_their_drops_are_told_where_they_are() {
    run_waiting(Waiting::Adaptive, async {
        let hosts = [Host::start(Waiting::Adaptive), Host::start(Waiting::Adaptive)];
        let client = open(&hosts[0], Shape::default()).await;
        let opened = |n: u64| {
            let client = client.clone();
            async move {
                let reply = client.call(request(client.root(), OPEN, &n.to_le_bytes())).await.expect("an answer");
                reply.capabilities[0]
            }
        };
        let (one, other) = (opened(11).await, opened(12).await);
        client.release_handle(other);
        settle().await;
        assert!(hosts[0].move_to(&hosts[1], u32::MAX).await);
        let read = client.call(request(one, READ, b"")).await.expect("it is what it was");
        assert_eq!(number(&read.payload), 11);
        let stale = client.call(request(other, READ, b"")).await.expect_err("it was given back");
        assert_eq!(stale.cause, Cause::StaleHandle);
        let third = opened(13).await;
        assert!(third != one && third != other);
        client.release_handle(one);
        settle().await;
        assert!(hosts[1].move_to(&hosts[0], u32::MAX).await);
        assert_eq!(hosts[0].account().await, (0, vec![12]));
        assert_eq!(hosts[1].account().await, (0, vec![11]));
        client.close();
        settle().await;
        while hosts[0].account().await.0 == 0 {
            runtime::yield_now().await;
        }
        assert_eq!(hosts[0].account().await.1, [12, 0, 13]);
    });
}

#[test]
fn a_session_whose_calls_do_not_end_stays_and_is_served_on() {
    run_waiting(Waiting::Adaptive, async {
        let hosts = [Host::start(Waiting::Adaptive), Host::start(Waiting::Adaptive)];
        let client = open(&hosts[0], Shape::default()).await;
        let hanging = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), HANG, b"")).await.map(drop) }
        });
        settle().await;
        let reply = client.call(request(client.root(), NEXT, &0u64.to_le_bytes())).await.expect("an answer");
        assert_eq!(reply.operation_error, None);
        assert!(!hosts[0].move_to(&hosts[1], 3).await, "it has a call in progress");
        let reply = client.call(request(client.root(), NEXT, &1u64.to_le_bytes())).await.expect("an answer");
        assert_eq!(reply.operation_error, None);
        hanging.cancel();
        settle().await;
        // Its cancel waits in the ring behind the hold; when that is over it is read.
        while !hosts[0].move_to(&hosts[1], 3).await {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        let reply = client.call(request(client.root(), NEXT, &2u64.to_le_bytes())).await.expect("an answer");
        assert_eq!(reply.operation_error, None);
    });
}

#[test]
fn what_a_client_that_breaks_the_protocol_or_goes_away_does_during_a_move_is_found_where_it_arrives() {
    run_waiting(Waiting::Adaptive, async {
        let hosts = [Host::start(Waiting::Adaptive), Host::start(Waiting::Adaptive)];
        let client = open(&hosts[0], Shape::default()).await;
        hosts[0].tell(Order::Leave(u32::MAX));
        let News::Left(Some((parted, state))) = hosts[0].hear().await else { panic!("nothing is in progress") };
        client.close();
        hosts[1].tell(Order::Arrive(parted, state));
        assert!(matches!(hosts[1].hear().await, News::Arrived));
        while hosts[1].account().await.0 == 0 {
            runtime::yield_now().await;
        }
        assert_eq!(hosts[0].account().await.0, 0);
    });
}

#[test]
fn a_session_can_promise_nothing_to_another_one_that_may_be_elsewhere() {
    run_waiting(Waiting::Adaptive, async {
        let host = Host::start(Waiting::Adaptive);
        let client = open(&host, Shape::default()).await;
        let refused = client.provide(client.root(), "other", Minting::with(Rights::READ), Duration::from_secs(1)).await;
        assert_eq!(refused.expect_err("refused").cause, Cause::Refused);
    });
}
