//! A client's program: tasks that call, give up, post, hold what they were given, and give it back.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::Retry;
use kernel_ipc::link::socket::dial::{self, DialError, Options};
use kernel_ipc::runtime::{self, Changes, Signal};
use kernel_ipc::session::{ClientSession, Reply, Request};
use kernel_ipc::{Failure, Handle, SessionId};

use crate::model::{Model, Outcome};
use crate::plan::{Carrier, ClientPlan};
use crate::random::Random;
use crate::service::{ADD, AGAIN, COUNTER, ONCE, OPEN, READ, number};
use crate::trace::Trace;

/// One client, in its own process.
pub struct Client {
    pub index: usize,
    pub plan: ClientPlan,
    /// Its messages may be refused.
    may_be_refused: bool,
    pub model: Rc<Model>,
    pub trace: Trace,
    session: RefCell<Option<ClientSession>>,
    has_come: Changes,
    callers_left: Cell<u64>,
    /// What it was granted on which session, and by which number.
    held: RefCell<Vec<(SessionId, u64, Handle)>>,
    is_done: Cell<bool>,
}

fn retry(operation: u16) -> Retry {
    COUNTER.operation(operation).map(|operation| operation.retry).unwrap_or_default()
}

impl Client {
    pub fn new(index: usize, plan: ClientPlan, may_be_refused: bool, model: Rc<Model>, trace: Trace) -> Rc<Client> {
        Rc::new(Client {
            index,
            callers_left: Cell::new(plan.callers),
            plan,
            may_be_refused,
            model,
            trace,
            session: RefCell::default(),
            has_come: Changes::default(),
            held: RefCell::default(),
            is_done: Cell::new(false),
        })
    }

    /// Begins: in its process.
    pub fn start(self: &Rc<Self>, seed: u64, host: SocketAddr, options: Options) {
        if self.plan.carrier != Carrier::Memory {
            runtime::spawn(self.clone().stay_connected(host, options));
        }
        for caller in 0..self.plan.callers {
            let random = Random::new(seed, 100 + 100 * self.index as u64 + caller);
            runtime::spawn(self.clone().call_on(random));
        }
    }

    /// Whether all calls have ended, and everything was looked at.
    pub fn is_done(&self) -> bool {
        self.is_done.get()
    }

    /// The session, if there is one.
    pub fn session(&self) -> Option<ClientSession> {
        self.session.borrow().clone()
    }

    /// There is a session.
    pub fn has(&self, session: ClientSession) {
        self.trace.note(format_args!("has session {}", session.id()));
        self.session.replace(Some(session));
        self.has_come.happen();
    }

    /// Opens a session over a socket, and another one when that has ended.
    async fn stay_connected(self: Rc<Self>, host: SocketAddr, options: Options) {
        while !self.is_done.get() {
            match dial::connect(host, COUNTER.name, self.plan.shape, options).await {
                // Everything was over while it was made.
                Ok(session) if self.is_done.get() => session.close(),
                Ok(session) => {
                    let over: Rc<Signal> = Rc::default();
                    let ends = over.clone();
                    session.on_end(move || ends.raise());
                    self.has(session);
                    over.wait().await;
                    self.trace.note(format_args!("its session has ended"));
                    self.session.take();
                }
                Err(error @ (DialError::Io(..) | DialError::Silent(_) | DialError::Refused(..))) => {
                    self.trace.note(format_args!("{error}"));
                    runtime::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return self.model.violated(format!("client {}: {error}", self.index)),
            }
        }
    }

    async fn a_session(&self) -> ClientSession {
        loop {
            if let Some(session) = self.session().filter(ClientSession::is_open) {
                return session;
            }
            self.has_come.next().await;
        }
    }

    async fn call_on(self: Rc<Self>, mut random: Random) {
        for _ in 0..self.plan.calls {
            let pause = match random.below(4) {
                0 => 0,
                1 => random.below(100),
                2 => random.below(5_000),
                _ => random.below(50_000),
            };
            if pause > 0 {
                runtime::sleep(Duration::from_micros(pause)).await;
            }
            let session = self.a_session().await;
            match random.below(14) {
                0..=3 => self.call(&session, ADD, &mut random).await,
                4..=5 => self.call(&session, ONCE, &mut random).await,
                6..=7 => self.call(&session, AGAIN, &mut random).await,
                8..=9 => self.call(&session, OPEN, &mut random).await,
                10 => self.read_one(&session).await,
                11..=12 => self.call_ahead(&session, &mut random).await,
                _ => self.release_one(&session),
            }
        }
        self.callers_left.set(self.callers_left.get() - 1);
        if self.callers_left.get() == 0 {
            self.end().await;
        }
    }

    async fn call(&self, session: &ClientSession, operation: u16, random: &mut Random) {
        let deadline = match random.below(8) {
            0 => Some(Duration::from_millis(random.between(1, 300))),
            1 => Some(Duration::from_secs(3)),
            _ => None,
        };
        let n = self.model.begins(self.index, self.plan.carrier, operation, deadline.is_some());
        // Some fill more than a descriptor.
        let mut payload = n.to_le_bytes().to_vec();
        payload.resize(random.pick(&[8, 8, 16, 100, 3000]), 7);
        let request = Request { deadline, ..self.request(session.root(), operation, &payload) };
        self.trace.note(format_args!("calls {n}, operation {operation}, deadline {deadline:?}"));
        if operation == ADD && deadline.is_none() && random.one_in(6) {
            let outcome = session.post(request).await.map_or_else(Outcome::Failed, |()| Outcome::Posted);
            return self.ended(n, outcome);
        }
        let call = session.call(request);
        let patience = random.one_in(10).then(|| Duration::from_micros(random.below(200_000)));
        let reply = match patience {
            None => call.await,
            Some(patience) => match runtime::timeout(patience, call).await {
                Ok(reply) => reply,
                Err(runtime::Elapsed) => return self.ended(n, Outcome::GivenUp),
            },
        };
        if operation == OPEN
            && let Ok(reply) = &reply
        {
            match reply.capabilities[..] {
                [handle] => self.held.borrow_mut().push((session.id(), n, handle)),
                _ => self.model.violated(format!("call {n} brings {reply:?}, and no capability")),
            }
        }
        self.ended(n, self.outcome(n, operation, n, reply));
    }

    /// Calls what another call will bring, before that is answered.
    async fn call_ahead(&self, session: &ClientSession, random: &mut Random) {
        let operation = random.pick(&[READ, ADD, ONCE, AGAIN]);
        let n = self.model.begins(self.index, self.plan.carrier, OPEN, false);
        self.trace.note(format_args!("calls {n}, operation {OPEN}, ahead"));
        let earlier = match session.call_ahead(self.request(session.root(), OPEN, &n.to_le_bytes())).await {
            Ok(earlier) => earlier,
            Err(failure) => return self.ended(n, Outcome::Failed(failure)),
        };
        let expected = earlier.expected(0);
        let m = self.model.begins(self.index, self.plan.carrier, operation, false);
        self.trace.note(format_args!("calls {m}, operation {operation}, on what {n} brings"));
        let reply = match expected.handle() {
            Ok(handle) => session.call(self.request(handle, operation, &m.to_le_bytes())).await,
            Err(failure) => Err(failure),
        };
        let right = if operation == READ { n } else { m };
        self.ended(m, self.outcome(m, operation, right, reply));
        let answer = earlier.await.map(|_| Outcome::Answered(0));
        self.ended(n, answer.unwrap_or_else(Outcome::Failed));
        // And with this it goes back.
        drop(expected);
    }

    /// How a call ended that has to bring the number `right`.
    fn outcome(&self, n: u64, operation: u16, right: u64, reply: Result<Reply, Failure>) -> Outcome {
        match reply {
            Err(failure) => Outcome::Failed(failure),
            Ok(reply) => {
                if reply.operation_error.is_some() || number(&reply.payload) != right {
                    self.model.violated(format!("call {n} has to bring {right}, and brings {reply:?}"));
                }
                Outcome::Answered(if operation == ADD { reply.payload.get(8..).map_or(0, number) } else { 0 })
            }
        }
    }

    fn ended(&self, n: u64, outcome: Outcome) {
        self.trace.note(format_args!("{n} has ended: {outcome:?}"));
        self.model.ended(n, outcome);
    }

    fn request<'a>(&self, handle: Handle, operation: u16, payload: &'a [u8]) -> Request<'a> {
        let retry = retry(operation);
        Request { operation, handle, payload, capabilities: &[], leases: &[], deadline: None, retry }
    }

    /// Takes something that it holds on this session.
    fn take_held(&self, session: &ClientSession) -> Option<(SessionId, u64, Handle)> {
        let mut held = self.held.borrow_mut();
        let place = held.iter().position(|(of, ..)| *of == session.id())?;
        Some(held.remove(place))
    }

    fn release_one(&self, session: &ClientSession) {
        if let Some((_, n, handle)) = self.take_held(session) {
            self.trace.note(format_args!("releases what {n} gave"));
            session.release_handle(handle);
        }
    }

    async fn read_one(&self, session: &ClientSession) {
        let Some(held) = self.take_held(session) else { return };
        self.read(session, held).await;
        self.held.borrow_mut().push(held);
    }

    async fn read(&self, session: &ClientSession, (_, object, handle): (SessionId, u64, Handle)) {
        let n = self.model.begins(self.index, self.plan.carrier, READ, false);
        let reply = session.call(self.request(handle, READ, &n.to_le_bytes())).await;
        self.ended(n, self.outcome(n, READ, object, reply));
    }

    /// All calls have ended: what is held has to be good still.
    async fn end(&self) {
        if let Some(session) = self.session().filter(ClientSession::is_open) {
            let settles = async {
                while session.is_open() && session.messages().under_way > 0 {
                    runtime::sleep(Duration::from_millis(5)).await;
                }
            };
            settles.await;
            while let Some(held) = self.take_held(&session) {
                self.read(&session, held).await;
            }
            let messages = session.messages();
            if session.is_open() && messages.failed > 0 && self.plan.carrier == Carrier::Memory && !self.may_be_refused
            {
                self.model.violated(format!("client {}: of its messages {messages:?}", self.index));
            }
        }
        self.trace.note(format_args!("is done"));
        self.is_done.set(true);
    }
}
