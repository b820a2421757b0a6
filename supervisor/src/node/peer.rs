//! One run of a component or guest, as the supervisor knows it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::broker::{Channel, ChannelError, CounterValues, Outbox, ToComponent, Welcome};
use kernel_ipc::component::waits::{Answer, Event, question};
use kernel_ipc::runtime::{JoinHandle, timeout};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};

use super::pulse::Pulse;
use super::records::{Kept, PeerTag, cut};
use super::watchdog::Watch;

/// How long a peer may take to answer the supervisor.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Who a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The component with this index.
    Component(usize),
    /// A guest: the operator.
    Guest,
}

/// A region that a run has published.
pub struct Published {
    pub id: RegionId,
    pub memory: Rc<Kept>,
    /// What other nodes lend lands in it.
    pub landed: bool,
}

/// One run of a component or guest.
pub struct Peer {
    /// Which component it is, or a guest.
    pub who: Who,
    /// Its name.
    pub name: String,
    /// Its slot at the keeper, and its line of the status page.
    pub slot: u32,
    /// Its epoch in that slot.
    pub epoch: Epoch,
    /// This run.
    pub incarnation: Incarnation,
    /// Its lender, if it lends.
    pub lender: LenderId,
    /// The first of the region ids that were dealt to it.
    pub first_region: RegionId,
    /// Its process; 0 for a guest.
    pub pid: u32,
    /// Its control socket.
    pub channel: Rc<Channel>,
    /// What is said to it.
    pub outbox: Rc<Outbox<ToComponent>>,
    /// What it will be greeted with; gone when it has been.
    pub greeting: RefCell<Option<(Welcome, OwnedFd)>>,
    /// What the next supervisor will know of it.
    pub record: Rc<Kept>,
    /// It has said what it knows to this supervisor, or has always had this one.
    pub accounted: Cell<bool>,
    /// Its lease table and how many entries it has, once it lends.
    pub table: RefCell<Option<(Kept, u32)>>,
    /// The regions that it has published.
    pub regions: RefCell<Vec<Published>>,
    /// When it began, as far as this supervisor knows.
    pub begun: Instant,
    /// It says that it serves.
    pub ready: Event,
    /// It has said so; its introductions may still go on.
    pub said_ready: Cell<bool>,
    /// Sessions that it has asked for and not heard of.
    pub opening: Cell<usize>,
    /// It is being ended: that it serves says nothing any more.
    pub doomed: Cell<bool>,
    /// It is dead, or a guest's connection has ended.
    pub ended: Event,
    /// When that was.
    pub ended_at: Cell<Option<Instant>>,
    /// Nothing more comes from its control socket.
    pub silent: Event,
    /// How its process ended.
    pub wait_status: Cell<Option<i32>>,
    /// When it was ready.
    pub ready_at: Cell<Option<Instant>>,
    /// Why it failed, in its own words or the supervisor's.
    pub trouble: RefCell<Option<String>>,
    /// It broke the protocol: its death is of its own making.
    pub at_fault: Cell<bool>,
    /// The task that captures its output, until its last words are waited for.
    pub output: RefCell<Option<JoinHandle<()>>>,
    /// It is long overdue with an answer, and has said nothing since: nobody waits for it.
    pub slow: Cell<bool>,
    /// What it was asked.
    pub asked: Asked,
    /// Whether it looks at anything while it uses the processor.
    pub watch: Watch,
    /// Whether it has something to do, and does it.
    pub pulse: Pulse,
}

/// Questions to which a peer has not answered. All of them end unanswered when it is gone.
#[derive(Default)]
pub struct Asked {
    /// `Serve`.
    pub serve: Questions<SessionId, Result<OwnedFd, String>>,
    /// `ServeBeyond`.
    pub expects: Questions<SessionId, Result<(), String>>,
    /// `AdoptPins`.
    pub adopt: Questions<LenderId, Result<(), String>>,
    /// `AttachPins`.
    pub attach: Questions<Incarnation, Result<(), String>>,
    /// `MeetLender` and `MeetRegion`.
    pub meet: Questions<(LenderId, Option<RegionId>), Result<(), String>>,
    /// `AskCounters`.
    pub counters: Questions<u64, CounterValues>,
    /// `AskPulse`.
    pub pulse: Questions<u64, ()>,
    /// `HandOver`, which is answered only by one who stays: for how many calls.
    pub hand_over: Questions<(), u32>,
}

impl Asked {
    /// Nobody will answer any more.
    pub fn clear(&self) {
        self.serve.0.borrow_mut().clear();
        self.expects.0.borrow_mut().clear();
        self.adopt.0.borrow_mut().clear();
        self.attach.0.borrow_mut().clear();
        self.meet.0.borrow_mut().clear();
        self.counters.0.borrow_mut().clear();
        self.pulse.0.borrow_mut().clear();
        self.hand_over.0.borrow_mut().clear();
    }
}

/// Unanswered questions of one kind.
pub struct Questions<K, V>(RefCell<HashMap<K, Answer<V>>>);

impl<K, V> Default for Questions<K, V> {
    fn default() -> Self {
        Questions(RefCell::default())
    }
}

impl<K: Eq + Hash, V> Questions<K, V> {
    /// The peer's answer. One to a question that was not asked is ignored, and that is said.
    pub fn answer(&self, key: &K, value: V) -> bool {
        let answer = self.0.borrow_mut().remove(key);
        answer.is_some_and(|answer| {
            let _ = answer.give(value);
            true
        })
    }
}

/// What a peer is from its first moment on.
pub struct Identity {
    /// As [`Peer::who`].
    pub who: Who,
    /// As [`Peer::name`].
    pub name: String,
    /// As [`Peer::slot`].
    pub slot: u32,
    /// As [`Peer::epoch`].
    pub epoch: Epoch,
    /// As [`Peer::incarnation`].
    pub incarnation: Incarnation,
    /// As [`Peer::lender`].
    pub lender: LenderId,
    /// As [`Peer::first_region`].
    pub first_region: RegionId,
}

impl Identity {
    /// What the next supervisor has to know of it.
    pub fn tag(&self, pid: u32, greeted: bool) -> PeerTag {
        let guest = if self.who == Who::Guest { self.name.as_str() } else { "" };
        PeerTag {
            epoch: self.epoch.get(),
            lender: self.lender.get(),
            first_region: self.first_region.get(),
            pid,
            greeted: greeted.into(),
            name: cut(guest),
        }
    }
}

impl Peer {
    /// A peer that has yet to be greeted, or that the last supervisor has greeted.
    pub fn new(
        identity: Identity,
        pid: u32,
        channel: Rc<Channel>,
        record: Rc<Kept>,
        greeting: Option<(Welcome, OwnedFd)>,
        output: Option<JoinHandle<()>>,
    ) -> Rc<Peer> {
        let Identity { who, name, slot, epoch, incarnation, lender, first_region } = identity;
        let watch = if pid == 0 { Watch::default() } else { Watch::of(pid, slot) };
        Rc::new(Peer {
            who,
            name,
            slot,
            epoch,
            incarnation,
            lender,
            first_region,
            pid,
            outbox: Rc::new(Outbox::new(channel.clone())),
            channel,
            accounted: Cell::new(greeting.is_some()),
            greeting: RefCell::new(greeting),
            record,
            table: RefCell::default(),
            regions: RefCell::default(),
            begun: Instant::now(),
            ready: Event::default(),
            said_ready: Cell::new(false),
            opening: Cell::new(0),
            doomed: Cell::new(false),
            ended: Event::default(),
            ended_at: Cell::new(None),
            silent: Event::default(),
            wait_status: Cell::new(None),
            ready_at: Cell::new(None),
            trouble: RefCell::default(),
            at_fault: Cell::new(false),
            output: RefCell::new(output),
            slow: Cell::new(false),
            asked: Asked::default(),
            watch,
            pulse: Pulse::default(),
        })
    }

    /// It has been greeted.
    pub fn greeted(&self) {
        let Peer { who, ref name, slot, epoch, incarnation, lender, first_region, .. } = *self;
        let name = name.clone();
        let identity = Identity { who, name, slot, epoch, incarnation, lender, first_region };
        if let Err(error) = self.record.tell(&identity.tag(self.pid, true)) {
            eprintln!("supervisor: the keeper: {error}");
        }
    }

    /// Sends a message, now or when it makes room. Never blocks.
    ///
    /// # Errors
    /// It is gone.
    pub fn send(&self, message: &ToComponent, given: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.outbox.send(message, given)
    }

    /// Waits until what is sent next goes out at once. Everything that others can cause without end waits for it: so what a
    /// peer has not read is bounded by what it has agreed to, and whoever wants something of a busy peer is slowed down.
    ///
    /// # Errors
    /// Why there is no room, for people.
    pub async fn room(&self) -> Result<(), String> {
        match timeout(PATIENCE, self.outbox.emptied()).await {
            Ok(()) if !self.ended.has_happened() => Ok(()),
            Ok(()) => Err(format!("{} is gone", self.name)),
            Err(_) => Err(format!("{} does not read its control socket", self.name)),
        }
    }

    /// Asks something and waits for the answer.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn ask<K: Clone + Eq + Hash, V>(
        &self,
        questions: &Questions<K, V>,
        key: K,
        message: &ToComponent,
        given: &[BorrowedFd<'_>],
    ) -> Result<V, String> {
        self.ask_within(PATIENCE, questions, key, message, given).await
    }

    /// The same with another patience than the usual.
    ///
    /// # Errors
    /// As [`ask`](Peer::ask).
    pub async fn ask_within<K: Clone + Eq + Hash, V>(
        &self,
        patience: Duration,
        questions: &Questions<K, V>,
        key: K,
        message: &ToComponent,
        given: &[BorrowedFd<'_>],
    ) -> Result<V, String> {
        let answer = timeout(patience, self.put(questions, key.clone(), message, given)).await;
        answer.unwrap_or_else(|_| {
            // Nobody waits for it any more.
            questions.0.borrow_mut().remove(&key);
            Err(format!("{} does not answer", self.name))
        })
    }

    /// Asks something that has to be done some day, and waits for the answer as long as the peer lives. When it is overdue
    /// the peer becomes `slow`, and `overdue` is called.
    ///
    /// # Errors
    /// It is gone.
    pub async fn ask_until_gone<K: Clone + Eq + Hash, V>(
        &self,
        questions: &Questions<K, V>,
        key: K,
        message: &ToComponent,
        given: &[BorrowedFd<'_>],
        overdue: impl FnOnce(),
    ) -> Result<V, String> {
        let mut answer = pin!(self.put(questions, key, message, given));
        match timeout(PATIENCE, answer.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                self.slow.set(true);
                overdue();
                answer.await
            }
        }
    }

    async fn put<K: Clone + Eq + Hash, V>(
        &self,
        questions: &Questions<K, V>,
        key: K,
        message: &ToComponent,
        given: &[BorrowedFd<'_>],
    ) -> Result<V, String> {
        let gone = || format!("{} is gone", self.name);
        self.outbox.emptied().await;
        if self.ended.has_happened() {
            return Err(gone());
        }
        let (reply, answer) = question();
        questions.0.borrow_mut().insert(key.clone(), answer);
        if let Err(error) = self.send(message, given) {
            questions.0.borrow_mut().remove(&key);
            if matches!(error, ChannelError::Closed) {
                // It is dead, and the news of that is on its way: whoever asks goes by it.
                self.ended.wait().await;
                return Err(gone());
            }
            return Err(format!("{}: {error}", self.name));
        }
        reply.await.ok_or_else(gone)
    }

    /// Whether it was greeted and lives: it can be asked to end.
    pub fn is_greeted(&self) -> bool {
        self.greeting.borrow().is_none() && !self.ended.has_happened()
    }

    /// Whether everything may be said to it: this supervisor also knows what it knows.
    pub fn is_introducible(&self) -> bool {
        self.is_greeted() && self.accounted.get()
    }
}
