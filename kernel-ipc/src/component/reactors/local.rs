//! One reactor: its thread, and the sessions that it serves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::rc::{Rc, Weak};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::balance::Load;
use super::rest::{Rests, Slept};
use super::share::Branch;
use super::{MoveError, Moved, News, Order, Reactor, Said};
use crate::SessionId;
use crate::broker::Serve;
use crate::logbook::Logbook;
use crate::runtime::{self, Mailbox, Options, Runtime, Sender, mailbox, spawn, tell_of_rest};
use crate::session::HostSession;
use crate::steps;
use crate::wire::Violation;

/// How long a session that is to be moved may wait for its calls, while new ones of it are held back.
const DRAINS_WITHIN: Duration = Duration::from_millis(20);
/// How often it is looked at meanwhile: calls that do not wait for anything have ended at the first look.
const DRAIN_INTERVAL: Duration = Duration::from_micros(100);

/// The threads of all reactors but the first, and how they are spoken to.
pub(in crate::component) struct Threads {
    pub(super) orders: Vec<Sender<Order>>,
    pub(super) rests: Rests,
    /// Of the first reactor.
    own: RefCell<Option<Mailbox<Order>>>,
    tell: Sender<Said>,
    /// What all of them say.
    news: RefCell<Option<Mailbox<Said>>>,
    /// See [`HostSession::refuse_after`].
    refuse_after: Option<Duration>,
    threads: RefCell<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts the threads, and waits until each has its own ring, with this run's fence in it. They have nothing to do yet.
    ///
    /// # Errors
    /// The system has no thread, descriptor or ring for one of them.
    pub(in crate::component) fn start(
        name: &str,
        count: u32,
        refuse_after: Option<Duration>,
        fence: BorrowedFd<'_>,
        control: BorrowedFd<'_>,
    ) -> io::Result<Threads> {
        let (tell, news) = mailbox();
        let (first, own) = mailbox();
        let rests = Rests::new(count, control.try_clone_to_owned()?);
        let mut orders = vec![first];
        let mut threads = Vec::new();
        let (begins, begun) = mpsc::channel();
        for index in 1..count {
            let (sender, mailbox) = mailbox();
            let (fence, tell, rests) = (fence.try_clone_to_owned()?, tell.clone(), rests.clone());
            let begins = begins.clone();
            let reactor = Reactor { index, count };
            // The kernel shows 15 bytes of a name.
            let mut name = name.to_owned();
            name.truncate(11);
            let thread = std::thread::Builder::new().name(format!("{name}/{index}"));
            threads.push(thread.spawn(move || {
                let runtime = Runtime::new(Options { fence: Some(fence), ..Options::default() });
                // Whoever starts it waits for all of them, unless another one has failed.
                let runtime = match runtime {
                    Ok(runtime) => begins.send(Ok(())).map(|()| runtime),
                    Err(error) => return drop(begins.send(Err(error))),
                };
                let Ok(runtime) = runtime else { return };
                let told = tell.clone();
                let obey = || runtime.block_on(Local::new(reactor, refuse_after, tell, None, rests).obey(mailbox));
                // It ends the component; its text is on standard error already.
                if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(obey)) {
                    // If the first one does not hear it any more, the component ends anyway.
                    let _ = told.send((index, News::Failed(said(&*panic))));
                }
            })?);
            orders.push(sender);
        }
        for _ in 1..count {
            begun.recv().map_err(|_| io::Error::other("a thread has not begun"))??;
        }
        let (own, news) = (RefCell::new(Some(own)), RefCell::new(Some(news)));
        let threads = RefCell::new(threads);
        Ok(Threads { orders, rests, own, tell, news, refuse_after, threads })
    }

    /// The first reactor's part, on this thread's runtime. Gives what all of them say. Once.
    pub(super) fn begin(&self, logbook: Option<Rc<Logbook>>) -> Mailbox<Said> {
        let (orders, news) = (self.own.take(), self.news.take());
        let (orders, news) = orders.zip(news).expect("it begins once");
        let reactor = Reactor { index: 0, count: self.orders.len() as u32 };
        let local = Local::new(reactor, self.refuse_after, self.tell.clone(), logbook, self.rests.clone());
        spawn(local.obey(orders));
        news
    }

    /// Ends the other reactors: their sessions are closed when this returns. Blocks for what their handlers do.
    pub(in crate::component) fn stop(&self) {
        for orders in &self.orders {
            // One that has failed reads nothing any more.
            let _ = orders.send(Order::Stop);
        }
        for thread in self.threads.take() {
            let _ = thread.join();
        }
    }
}

/// What a panic has said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no words".into()))
}

/// What a reactor serves.
struct Local {
    this: Weak<Local>,
    reactor: Reactor,
    /// See [`HostSession::refuse_after`].
    refuse_after: Option<Duration>,
    news: Sender<Said>,
    /// Its part of each endpoint, by name.
    branches: RefCell<HashMap<String, Rc<dyn Branch>>>,
    /// Sessions that are being opened; whether the client has died of one that is not wanted any more.
    opening: RefCell<HashMap<SessionId, Option<bool>>>,
    hosted: RefCell<HashMap<SessionId, Hosted>>,
    logbook: Option<Rc<Logbook>>,
    slept: Rc<Slept>,
    /// When the load was asked for last, and how long the thread had slept then.
    asked: Cell<(Instant, Duration)>,
}

/// A session that is served here.
struct Hosted {
    endpoint: String,
    session: HostSession,
    /// Messages of it that are part of a load already.
    counted: u64,
}

impl Local {
    fn new(
        reactor: Reactor,
        refuse_after: Option<Duration>,
        news: Sender<Said>,
        logbook: Option<Rc<Logbook>>,
        rests: Rests,
    ) -> Rc<Local> {
        Rc::new_cyclic(|this| Local {
            this: this.clone(),
            reactor,
            refuse_after,
            news,
            branches: RefCell::default(),
            opening: RefCell::default(),
            hosted: RefCell::default(),
            logbook,
            slept: rests.of_thread(),
            asked: Cell::new((Instant::now(), Duration::ZERO)),
        })
    }

    /// Does what it is told, until that is to stop.
    async fn obey(self: Rc<Self>, orders: Mailbox<Order>) {
        tell_of_rest(self.slept.clone());
        loop {
            match orders.next().await {
                Order::Provide { endpoint, make } => {
                    let branch = make(self.reactor);
                    self.branches.borrow_mut().insert(endpoint, branch);
                }
                Order::Open { serve, segment } => {
                    self.opening.borrow_mut().insert(serve.session, None);
                    spawn(self.clone().open(*serve, segment));
                }
                Order::Gone { session, died } => self.gone(session, died),
                Order::Leave { session } => {
                    spawn(self.clone().leave(session));
                }
                Order::Arrive(moved) => self.arrive(*moved),
                Order::Beat { ends_period } => {
                    let load = if ends_period { self.load() } else { Load::default() };
                    self.tell(News::Beat(load));
                }
                Order::Stop => break,
            }
        }
        // In the runtime, which closing may need; with nothing borrowed.
        let hosted = self.hosted.take();
        drop(hosted);
    }

    fn tell(&self, news: News) {
        // The first reactor hears everything as long as there is a component.
        let _ = self.news.send((self.reactor.index, news));
    }

    fn branch(&self, endpoint: &str) -> Option<Rc<dyn Branch>> {
        self.branches.borrow().get(endpoint).cloned()
    }

    async fn open(self: Rc<Self>, serve: Serve, segment: OwnedFd) {
        let (id, endpoint) = (serve.session, serve.endpoint.clone());
        let opened = match self.branch(&endpoint) {
            Some(branch) => branch.open(serve, segment).await,
            None => Err("no such endpoint is provided".to_owned()),
        };
        let gone = self.opening.borrow_mut().remove(&id).flatten();
        let opened = match (opened, gone) {
            (Ok(session), Some(died)) => return end(&session, died),
            (Err(_), Some(_)) => return,
            (Ok(session), None) => {
                session.refuse_after(self.refuse_after);
                let memory = session.fd().map(|fd| fd.try_clone_to_owned());
                let memory = memory.unwrap_or_else(|| Err(io::ErrorKind::Unsupported.into()));
                self.serve(endpoint, session);
                memory.map_err(|error| error.to_string())
            }
            (Err(reason), None) => Err(reason),
        };
        if opened.is_err() {
            drop(self.take(id));
        }
        self.tell(News::Opened { session: id, opened });
    }

    /// Keeps a session that is served here from now on.
    fn serve(&self, endpoint: String, session: HostSession) {
        let (id, local) = (session.info().id, self.this.clone());
        if let Some(book) = &self.logbook {
            session.log_to(book, &endpoint);
        }
        self.hosted.borrow_mut().insert(id, Hosted { endpoint, session, counted: 0 });
        if let Some(hosted) = self.hosted.borrow().get(&id) {
            hosted.session.on_end(move |violation| ended(&local, id, violation));
        }
    }

    fn take(&self, session: SessionId) -> Option<Hosted> {
        self.hosted.borrow_mut().remove(&session)
    }

    fn gone(&self, session: SessionId, died: bool) {
        if let Some(opening) = self.opening.borrow_mut().get_mut(&session) {
            *opening = Some(died);
        }
        if let Some(hosted) = self.take(session) {
            end(&hosted.session, died);
        }
    }

    /// Gives a session up to another reactor, as soon as it has no call in progress.
    async fn leave(self: Rc<Self>, session: SessionId) {
        steps::reach("move/begun");
        let until = Instant::now() + DRAINS_WITHIN;
        let left = loop {
            match self.give_up(session) {
                Err(MoveError::Busy) if Instant::now() < until => runtime::sleep(DRAIN_INTERVAL).await,
                left => break left,
            }
        };
        if left.is_err()
            && let Some(hosted) = self.hosted.borrow().get(&session)
        {
            hosted.session.hold(false);
        }
        steps::reach("move/left");
        self.tell(News::Left { session, left: left.map(Box::new) });
    }

    /// # Errors
    /// [`MoveError::NoSession`], [`MoveError::Busy`]: it is held, and can be tried again.
    fn give_up(&self, session: SessionId) -> Result<Moved, MoveError> {
        let is_drained = {
            let hosted = self.hosted.borrow();
            let hosted = hosted.get(&session).ok_or(MoveError::NoSession)?;
            hosted.session.hold(true);
            hosted.session.is_drained()
        };
        if !is_drained {
            return Err(MoveError::Busy);
        }
        let Hosted { endpoint, session: leaving, counted } = self.take(session).ok_or(MoveError::NoSession)?;
        let branch = self.branch(&endpoint).ok_or(MoveError::NoSession)?;
        branch.leave(&endpoint, leaving).map_err(|stays| {
            // It may have ended just now, and its hook finds it here.
            let is_open = stays.is_open();
            self.hosted.borrow_mut().insert(session, Hosted { endpoint, session: stays, counted });
            if is_open { MoveError::Busy } else { MoveError::NoSession }
        })
    }

    fn arrive(&self, moved: Moved) {
        let (endpoint, session) = (moved.endpoint.clone(), moved.parted.info().id);
        let branch = self.branch(&endpoint).expect("every reactor provides what one of them does");
        self.serve(endpoint, branch.arrive(moved));
        steps::reach("move/arrived");
        self.tell(News::Arrived { session });
    }

    /// What there was to do since it was asked last.
    fn load(&self) -> Load {
        let now = (Instant::now(), self.slept.total());
        let (since, before) = self.asked.replace(now);
        let rested = (now.1 - before).as_secs_f64() / (now.0 - since).as_secs_f64().max(1e-9);
        let mut calls = Vec::new();
        for (id, hosted) in &mut *self.hosted.borrow_mut() {
            let received = hosted.session.received();
            calls.push((*id, received - std::mem::replace(&mut hosted.counted, received)));
        }
        Load { busy: 1.0 - rested, calls }
    }
}

/// Ends a session whose client is gone.
fn end(session: &HostSession, died: bool) {
    if died { session.client_died() } else { session.close() }
}

/// A session has ended by itself.
fn ended(local: &Weak<Local>, id: SessionId, violation: Option<Violation>) {
    let Some(local) = local.upgrade() else { return };
    // A task of its own: this runs inside the session, which the task drops.
    spawn(async move {
        // Otherwise its end was wanted.
        if local.take(id).is_some() {
            let violation = violation.map(|violation| format!("{violation:?}"));
            local.tell(News::Ended { session: id, violation });
        }
    });
}
