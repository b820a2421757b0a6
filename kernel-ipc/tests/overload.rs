//! More calls than a host can serve: whose turn it is, who is refused, and that no queue grows without a bound.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use common::{ECHO, info, request, root, run, settle};
use kernel_ipc::interface::Description;
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{Call, ClientSession, HostSession, Offer, Request, Response, Service, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Executed, Failure};

/// Says whom it served, in order. A call with a byte of payload keeps the thread for so many milliseconds.
#[derive(Default)]
struct Worker {
    served: RefCell<Vec<u64>>,
}

impl Service for Worker {
    const INTERFACE: &'static Description = &common::TEST;

    async fn serve(&self, call: &mut Call) -> Response {
        self.served.borrow_mut().push(call.session().id.get());
        if let Some(millis) = call.payload().first() {
            std::thread::sleep(Duration::from_millis((*millis).into()));
        }
        Response { payload: call.payload().into(), ..Response::default() }
    }
}

impl Worker {
    fn served(&self, session: u64) -> usize {
        self.served.borrow().iter().filter(|id| **id == session).count()
    }
}

type Opener = fn(u64, &Rc<Worker>) -> (ClientSession, HostSession);

fn shm(id: u64, worker: &Rc<Worker>) -> (ClientSession, HostSession) {
    let offer = Offer::new(Shape::default()).expect("a segment");
    let segment = offer.fd().try_clone_to_owned().expect("dup");
    let host = HostSession::start(segment, root(), worker.clone(), info(id), None).expect("opened");
    let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
    (offer.open(segment, info(id).id, info(id).epoch).expect("opened"), host)
}

fn near(id: u64, worker: &Rc<Worker>) -> (ClientSession, HostSession) {
    in_process(Shape::default(), root(), worker.clone(), info(id), None)
}

fn over_each_carrier(test: impl AsyncFn(Opener)) {
    for open in [shm as Opener, near] {
        run(test(open));
    }
}

type Answer = Result<(), Failure>;

fn call(client: &ClientSession, payload: &'static [u8], deadline: Option<Duration>) -> JoinHandle<Answer> {
    let client = client.clone();
    runtime::spawn(async move {
        let request = Request { deadline, ..request(client.root(), ECHO, payload) };
        client.call(request).await.map(drop)
    })
}

async fn all(calls: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("not cancelled"));
    }
    answers
}

fn refused(answer: &Answer) -> bool {
    matches!(answer, Err(Failure { cause: Cause::Busy { .. }, executed: Executed::No }))
}

/// Keeps `depth` calls outstanding until told to stop.
fn flood(client: &ClientSession, depth: usize, stop: &Rc<Cell<bool>>) -> Vec<JoinHandle<()>> {
    let caller = || {
        let (client, stop) = (client.clone(), stop.clone());
        runtime::spawn(async move {
            while !stop.get() {
                client.call(request(client.root(), ECHO, b"")).await.expect("echo");
            }
        })
    };
    (0..depth).map(|_| caller()).collect()
}

#[test]
fn a_session_with_one_call_waits_for_a_few_of_the_64_of_another() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (greedy, _host) = open(1, &worker);
        let (modest, _other_host) = open(2, &worker);
        let stop = Rc::new(Cell::new(false));
        let flood = flood(&greedy, 64, &stop);
        for _ in 0..100 {
            modest.call(request(modest.root(), ECHO, b"")).await.expect("echo");
        }
        stop.set(true);
        for caller in flood {
            caller.await.expect("not cancelled");
        }
        // A round trip of one thread takes three turns: the call, the answer, who wanted it. In each the other has its eight.
        let served = worker.served.borrow();
        // After its last one the other is alone.
        let longest = served.rsplit(|id| *id == 2).skip(1).map(<[u64]>::len).max();
        assert!(longest <= Some(3 * 8), "{longest:?} calls of the other between two of this one");
        assert!(served.len() > 300, "the other one was served all the time: {}", served.len());
    });
}

#[test]
fn two_greedy_sessions_are_served_in_turns() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let sessions: Vec<_> = (1..=3).map(|id| open(id, &worker)).collect();
        let calls = sessions.iter().flat_map(|(client, _)| (0..64).map(|_| call(client, b"", None)));
        assert!(all(calls.collect()).await.iter().all(Result::is_ok));
        let rounds: Vec<u64> = [1, 2, 3].into_iter().flat_map(|id| [id; 8]).collect();
        assert_eq!(*worker.served.borrow(), rounds.repeat(8));
    });
}

#[test]
fn calls_that_waited_too_long_are_refused_without_the_handler_and_only_those() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (greedy, host) = open(1, &worker);
        let (modest, other_host) = open(2, &worker);
        // Whatever has to wait for a second turn has waited too long.
        host.refuse_after(Some(Duration::ZERO));
        other_host.refuse_after(Some(Duration::ZERO));
        let mut calls: Vec<_> = (0..64).map(|_| call(&greedy, b"", None)).collect();
        calls.push(call(&modest, b"", None));
        let answers = all(calls).await;
        let ran = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(worker.served(1) + worker.served(2), ran);
        // One turn, or two: a host that looks before the client's tail is stored knows of one call behind the first eight.
        assert!(ran == 8 + 1 || ran == 2 * 8 + 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| refused(answer)).count(), 65 - ran);
        assert_eq!(answers[64], Ok(()), "it waited for no second turn");

        // What comes after them is fresh, and the handlers are there for it.
        assert_eq!(call(&greedy, b"", None).await.expect("not cancelled"), Ok(()));

        host.refuse_after(None);
        assert!(all((0..64).map(|_| call(&greedy, b"", None)).collect()).await.iter().all(Result::is_ok));
    });
}

#[test]
fn a_refusal_says_how_long_others_have_waited() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (client, host) = open(1, &worker);
        host.refuse_after(Some(Duration::from_millis(5)));
        // Eight of these are a turn, in which the others get old.
        let answers = all((0..64).map(|_| call(&client, &[1], None)).collect()).await;
        let told = answers.iter().filter_map(|answer| match answer {
            Err(Failure { cause: Cause::Busy { retry_after_us }, .. }) => Some(*retry_after_us),
            _ => None,
        });
        let told: Vec<u32> = told.collect();
        assert!(!told.is_empty() && told.iter().all(|us| *us >= 5000), "{told:?}");
        assert_eq!(worker.served(1), 64 - told.len());
    });
}

#[test]
fn a_deadline_that_passes_while_the_call_waits_for_the_host_keeps_it_from_running() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (client, _host) = open(1, &worker);
        // The first keeps the host's thread for longer than the second's deadline and the lag of the clock.
        let calls = vec![call(&client, &[100], None), call(&client, b"", Some(Duration::from_millis(20)))];
        let answers = all(calls).await;
        assert_eq!(answers, [Ok(()), Err(Failure { cause: Cause::Deadline, executed: Executed::No })]);
        assert_eq!(worker.served(1), 1);
    });
}

#[test]
fn callers_beyond_the_bound_are_refused_at_home() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (client, _host) = open(1, &worker);
        client.limit_waiters(10);
        let answers = all((0..100).map(|_| call(&client, b"", None)).collect()).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 64 + 10);
        assert!(answers[74..].iter().all(refused), "{answers:?}");
        assert_eq!(worker.served(1), 74);
        // The bound is on those that wait: now nobody does.
        assert_eq!(call(&client, b"", None).await.expect("not cancelled"), Ok(()));
    });
}

#[test]
fn a_waiter_that_gives_up_makes_room_for_another() {
    over_each_carrier(async |open| {
        let worker = Rc::new(Worker::default());
        let (client, host) = open(1, &worker);
        let mut calls: Vec<_> = (0..64).map(|_| call(&client, b"", None)).collect();
        client.limit_waiters(3);
        let waiters: Vec<_> = (0..3).map(|_| call(&client, b"", None)).collect();
        // They queue up in the first turn; nothing of the host's runs before this task goes on.
        runtime::yield_now().await;
        waiters[1].cancel();
        calls.push(call(&client, b"", None));
        runtime::yield_now().await;
        assert!(all(calls).await.iter().all(Result::is_ok));
        settle().await;
        assert!(host.is_open());
    });
}
