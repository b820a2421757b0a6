//! One connection: its requests, one after the other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::CallError;
use kernel_ipc::interface::{Cap, Lease, LeasePart};
use kernel_ipc::runtime::{self, Signal};
use kernel_ipc::trace::work;
use protocol::net::{Connection, SendError, SendFlags, SendName};

use super::super::input::{Input, Phase, Step};
use super::super::request::{After, Message};
use super::super::response::{self, Reply};
use super::super::status::Status;
use super::budget::Share;
use super::files::{Content, Found, find};
use super::resume::Resumed;
use super::{Server, transfer};

/// Bytes of requests that may wait while one is answered; who sends more without reading answers is cut off.
const MAX_WAITING_BYTES: usize = 256 << 10;

/// The connection cannot be used any more.
pub(super) struct Gone;

/// What events change and the connection's task looks at.
pub(super) struct Peer {
    capability: Cap<Connection>,
    input: RefCell<Input>,
    /// The client will send nothing more.
    finished: Cell<bool>,
    /// Nothing can be sent to it any more.
    closed: Cell<bool>,
    /// Sends whose leases the network still uses, oldest first.
    unreleased: RefCell<VecDeque<Sent>>,
    next_send: Cell<u64>,
    /// The answer that the last run of this server has begun.
    resumed: RefCell<Option<Resumed>>,
    /// Raised when input came or ended.
    news: Signal,
    /// Raised when the network has let go of a send.
    room: Signal,
}

struct Sent {
    number: u64,
    /// Kept until the network has released them.
    _leases: Vec<Lease>,
    _share: Option<Rc<Share>>,
}

impl Peer {
    pub(super) fn new(capability: Cap<Connection>) -> Peer {
        Peer {
            capability,
            input: RefCell::default(),
            finished: Cell::new(false),
            closed: Cell::new(false),
            unreleased: RefCell::default(),
            next_send: Cell::new(1),
            resumed: RefCell::default(),
            news: Signal::default(),
            room: Signal::default(),
        }
    }

    /// Bytes came in. False: there are too many of them.
    pub(super) fn received(&self, bytes: &[u8]) -> bool {
        let mut input = self.input.borrow_mut();
        input.push(bytes);
        self.news.raise();
        input.waiting() <= MAX_WAITING_BYTES
    }

    /// The last run of this server had it, and had sent this much of an answer. Comes before anything is received.
    pub(super) fn resumed(&self, request: u64, resumed: Resumed) {
        self.input.borrow_mut().begin_at(request);
        *self.resumed.borrow_mut() = Some(resumed);
    }

    /// Whether a part of the next answer was sent by the last run.
    fn has_begun(&self) -> bool {
        self.resumed.borrow().as_ref().is_some_and(Resumed::has_begun)
    }

    /// The date of the next answer.
    fn date(&self, server: &Server) -> Rc<str> {
        let begun = self.resumed.borrow().as_ref().and_then(Resumed::date);
        begun.unwrap_or_else(|| server.clock.date())
    }

    /// Leaves of an answer what the last run has not sent. Says whether that is anything.
    fn cut(&self, reply: &mut Reply) -> Result<bool, Gone> {
        match self.resumed.take() {
            Some(resumed) => resumed.cut(reply),
            None => Ok(true),
        }
    }

    /// The client sends nothing more.
    pub(super) fn finished(&self) {
        self.finished.set(true);
        self.news.raise();
    }

    /// The connection is over: nothing is used by the network any more.
    pub(super) fn closed(&self) {
        self.closed.set(true);
        self.unreleased.borrow_mut().clear();
        self.news.raise();
        self.room.raise();
    }

    /// The network no longer uses the leases of a send.
    pub(super) fn released(&self, number: u64) {
        let mut unreleased = self.unreleased.borrow_mut();
        if let Some(at) = unreleased.iter().position(|sent| sent.number == number) {
            unreleased.remove(at);
        }
        self.room.raise();
    }

    /// How many sends with leases the network still uses.
    pub(super) fn unreleased(&self) -> usize {
        self.unreleased.borrow().len()
    }

    /// Waits until the network has let go of a send, or the connection is closed.
    pub(super) async fn room(&self) {
        self.room.wait().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends `header`, then all of `leases`, which are kept until they are released.
    pub(super) async fn send(
        &self,
        server: &Server,
        header: &[u8],
        leases: Vec<Lease>,
        share: Option<Rc<Share>>,
        close: bool,
    ) -> Result<(), Gone> {
        let flags = if close { SendFlags::CLOSE } else { SendFlags::default() };
        let pages: Vec<LeasePart> = leases.iter().map(Lease::forward).collect();
        let request = self.input.borrow().request();
        let number = self.next_send.get();
        self.next_send.set(number + 1);
        if !leases.is_empty() {
            // Before the call: the release may be told before its answer is looked at.
            self.unreleased.borrow_mut().push_back(Sent { number, _leases: leases, _share: share });
        }
        loop {
            if self.is_closed() {
                return Err(Gone);
            }
            match server.net.send(&self.capability, SendName { number, request }, flags, header, &pages).await {
                Ok(()) => return Ok(()),
                Err(CallError::Operation(SendError::Full)) => self.room().await,
                Err(_) => {
                    self.released(number);
                    return Err(Gone);
                }
            }
        }
    }

    /// Resets the connection, unless it is over.
    pub(super) async fn reset(&self, server: &Server) {
        if !self.is_closed() {
            // One that the network does not know any more needs no reset.
            let _ = server.net.close(&self.capability).await;
        }
    }
}

/// Serves a connection until it ends. Returns when nothing more will be sent on it.
pub(super) async fn serve(server: Rc<Server>, peer: Rc<Peer>) {
    if serve_requests(&server, &peer).await.is_err() {
        // Its client may wait for the rest of an answer that cannot be sent.
        peer.reset(&server).await;
    }
}

/// Tells one client too many to come again.
pub(super) async fn turn_away(server: Rc<Server>, peer: Rc<Peer>) {
    if refuse(&server, &peer, Status::ServiceUnavailable).await.is_err() {
        peer.reset(&server).await;
    }
}

async fn serve_requests(server: &Rc<Server>, peer: &Rc<Peer>) -> Result<(), Gone> {
    // When the present phase of waiting began.
    let mut waiting: Option<(Phase, Instant)> = None;
    loop {
        let step = peer.input.borrow_mut().next_step();
        match step {
            Step::Message(message) => {
                waiting = None;
                if work(|| name(&message), answer(server, peer, &message)).await? {
                    return Ok(());
                }
            }
            Step::Broken(status) => return refuse(server, peer, status).await,
            Step::Abandon => return peer.send(server, &[], Vec::new(), None, true).await,
            Step::Wait(phase) => {
                if peer.is_closed() {
                    return Err(Gone);
                }
                if peer.finished.get() {
                    return peer.send(server, &[], Vec::new(), None, true).await;
                }
                let since = match waiting {
                    Some((same, since)) if same == phase => since,
                    _ => Instant::now(),
                };
                waiting = Some((phase, since));
                let limit = match phase {
                    Phase::Idle => server.limits.idle(),
                    Phase::Head => server.limits.head(),
                    Phase::Body => server.limits.body(),
                };
                if !wait_until(peer, since + limit).await {
                    return match phase {
                        // Between requests there is nothing to answer.
                        Phase::Idle => peer.send(server, &[], Vec::new(), None, true).await,
                        Phase::Head | Phase::Body => refuse(server, peer, Status::RequestTimeout).await,
                    };
                }
            }
        }
    }
}

/// Waits for news; false if there is none until `deadline`.
async fn wait_until(peer: &Peer, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    left > Duration::ZERO && runtime::timeout(left, peer.news.wait()).await.is_ok()
}

/// Answers a request with an error; the connection closes.
async fn refuse(server: &Server, peer: &Peer, status: Status) -> Result<(), Gone> {
    let mut reply = response::error(status, false, After::Close, &peer.date(server));
    peer.cut(&mut reply)?;
    peer.send(server, &reply.head, Vec::new(), None, true).await
}

/// What a trace calls a request.
fn name(message: &Message) -> String {
    let method = if message.head_only { "HEAD" } else { "GET" };
    match &message.ask {
        Ok(ask) => format!("{method} /{}", String::from_utf8_lossy(ask.path.as_bytes())),
        Err(status) => format!("{method} {status:?}"),
    }
}

/// Answers a request; true if the connection closes.
async fn answer(server: &Rc<Server>, peer: &Rc<Peer>, message: &Message) -> Result<bool, Gone> {
    let date = peer.date(server);
    let error = |status| (response::error(status, message.head_only, message.after, &date), None);
    let (reply, content) = match &message.ask {
        Err(status) => error(*status),
        // What is left of an answer is a part of a file.
        Ok(ask) => match find(server, ask, message.head_only || peer.has_begun()).await {
            Ok(Found::File { file, path, content }) => {
                (response::file(message, ask, path.as_bytes(), &file, &date), Some(content))
            }
            Ok(Found::Directory) => (response::moved(message, ask, &date), None),
            Err(status) => error(status),
        },
    };
    let mut reply = reply;
    let more = peer.cut(&mut reply)?;
    let Reply { head, body, close } = reply;
    if !more && !close {
        return Ok(close);
    }
    match (body, content) {
        (Some(span), Some(Content::Open(node))) => transfer::send(server, peer, node, head, span, close).await?,
        // Only whole files are fetched, so that the body is all of the lease.
        (Some(_), Some(Content::Leased(lease, share))) => {
            peer.send(server, &head, vec![lease], Some(Rc::new(share)), close).await?;
        }
        _ => peer.send(server, &head, Vec::new(), None, close).await?,
    }
    Ok(close)
}
