//! A link over a TCP connection, between two processes that share nothing. The bytes are drawn in [`frame`].
//!
//! - What is sent in a turn leaves in one system call, by [`flush`](Link::flush), and nothing leaves before that; what has
//!   come is taken in one, of one buffer at most, when the frames before it are used up: a peer gets one such look a turn,
//!   and another for each message that was in it. A thread that spins for answers asks the socket itself; one that sleeps has its ring
//!   poll it. A socket that was asked in vain for too long is left to the ring also while the thread is busy, so that a
//!   thousand sessions at rest cost nothing.
//! - The link outlives its connection. One that is lost is *cut*: messages are kept ([`outbox`]), nothing arrives, and
//!   whoever dialled or listens ([`dial`], [`listen`]) hears of it and [attaches](SocketLink::attach) the next. What becomes
//!   of the calls that were outstanding is the sessions' business, by the protocol of a restart.
//! - Memory is bounded: a fixed buffer for what comes, a ring of messages for what goes, and one message kept per slot. A
//!   peer that reads nothing is an overrun, or its own session waits; one that trickles costs a look when bytes come.
//! - With [`keys`] it is TLS 1.3 and each end knows which node the other is. Without, nothing is encrypted and nobody is
//!   authenticated, so [`dial`] and [`listen`] refuse every address but loopback's.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{Body, Link};
use crate::runtime::simulated::Pipe;
use crate::runtime::{self, Signal, Sleep};
use crate::session::now;
use crate::wire::{RawDescriptor, Shape, Violation};

pub mod bulk;
mod carrier;
pub mod dial;
pub mod frame;
mod greeting;
mod inbox;
pub mod keys;
pub mod listen;
pub mod nodes;
mod outbox;
mod stream;
mod tls;
pub mod warnings;

use carrier::Carrier;
use frame::{FrameError, kind};
use inbox::{Frame, Inbox};
use outbox::Outbox;
pub use stream::Stream;

/// What every output calls a session over such a link without keys.
pub const IN_THE_CLEAR: &str = "socket (in the clear)";
/// And with them.
pub const ENCRYPTED: &str = "socket (TLS 1.3)";

/// A round trip takes a spinning thread some twenty looks on loopback; a look takes a third of a microsecond.
const COLD_AFTER: u32 = 256;

/// What a peer did that no correct peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub peer: SocketAddr,
    /// What.
    pub what: FrameError,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sent {}", self.peer, self.what)
    }
}

impl std::error::Error for Fault {}

/// How a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has a connection.
    Connected,
    /// It had one, or waits for its first.
    Cut,
    /// It needs none any more: one end has closed the session.
    Closed,
    /// The peer has broken a rule.
    Broken(Fault),
}

/// One end of a session over TCP. Clones are the same end.
#[derive(Clone, Debug)]
pub struct SocketLink(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    shape: Shape,
    /// `None`: cut, or over.
    stream: RefCell<Option<Stream>>,
    inbox: RefCell<Inbox>,
    outbox: RefCell<Outbox>,
    /// Messages sent since the link was made.
    sent: Cell<u64>,
    /// How many of them before the present connection.
    sent_before: Cell<u64>,
    /// Messages taken from the present connection, and what the peer says of ours in its farewell.
    taken: Cell<u64>,
    taken_by_peer: Cell<Option<u64>>,
    /// The last look at the socket emptied it: so many more are not worth a system call.
    dry_looks: Cell<u8>,
    /// The thread has slept since it looked: it does so after each call, and looks twice in vain before it does again.
    has_slept: Cell<bool>,
    /// Looks in vain since something came; after [`COLD_AFTER`] of them a task waits instead.
    vain_looks: Cell<u32>,
    is_cold: Cell<bool>,
    /// The kernel takes no more for now, and a task waits for it.
    is_blocked: Cell<bool>,
    closed: Cell<bool>,
    closed_by_peer: Cell<bool>,
    /// Of the present connection, or the last: who is named when what it has sent turns out wrong.
    peer: Cell<Option<SocketAddr>>,
    fault: Cell<Option<Fault>>,
    /// It is cut, closed or broken.
    changed: Signal,
    /// Something came, or went, since the last [`SocketLink::beat`].
    heard: Cell<bool>,
    spoke: Cell<bool>,
    system_calls: Cell<u64>,
}

/// Both ends of a new link over this machine's loopback, for a program that is client and host.
///
/// # Errors
/// The kernel's.
pub fn pair(shape: Shape) -> io::Result<(SocketLink, SocketLink)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (host, _) = listener.accept()?;
    Ok((SocketLink::over(client.into(), shape)?, SocketLink::over(host.into(), shape)?))
}

impl SocketLink {
    /// An end over a connection that has been greeted on, or needs no greeting. Nobody makes it again when it is lost.
    ///
    /// # Errors
    /// It is not a TCP connection, or is one no more.
    pub fn over(socket: OwnedFd, shape: Shape) -> io::Result<SocketLink> {
        SocketLink::carried(Carrier::Socket(socket.into()), shape)
    }

    /// The same over a connection of a simulated network.
    pub fn simulated(pipe: Pipe, shape: Shape) -> SocketLink {
        SocketLink::carried(Carrier::Simulated(pipe), shape).expect("a pipe refuses no option")
    }

    fn carried(carrier: Carrier, shape: Shape) -> io::Result<SocketLink> {
        let link = SocketLink::new(shape);
        link.attach(Stream::new(carrier, dial::Options::default().dead_after)?);
        Ok(link)
    }

    /// An end without a connection.
    pub fn new(shape: Shape) -> SocketLink {
        SocketLink(Rc::new(Inner {
            shape,
            stream: RefCell::new(None),
            inbox: RefCell::new(Inbox::new(shape)),
            outbox: RefCell::new(Outbox::new(shape)),
            sent: Cell::new(0),
            sent_before: Cell::new(0),
            taken: Cell::new(0),
            taken_by_peer: Cell::new(None),
            dry_looks: Cell::new(0),
            has_slept: Cell::new(false),
            vain_looks: Cell::new(0),
            is_cold: Cell::new(false),
            is_blocked: Cell::new(false),
            closed: Cell::new(false),
            closed_by_peer: Cell::new(false),
            peer: Cell::new(None),
            fault: Cell::new(None),
            changed: Signal::default(),
            heard: Cell::new(false),
            spoke: Cell::new(false),
            system_calls: Cell::new(0),
        }))
    }

    /// Goes on over this connection, whose greetings were exchanged. Nothing of an earlier one is looked at again (R21).
    /// Refused by a link that is over: then the connection ends.
    pub fn attach(&self, stream: Stream) {
        self.detach();
        if self.standing() != Standing::Cut {
            return stream.abort();
        }
        self.0.peer.set(Some(stream.peer()));
        *self.0.stream.borrow_mut() = Some(stream);
        self.0.sent_before.set(self.0.sent.get());
        self.0.taken.set(0);
        self.0.heard.set(true);
        self.0.changed.raise();
    }

    /// Drops the connection with everything unread in it and everything unsent for it (R20).
    pub fn detach(&self) {
        self.0.inbox.borrow_mut().clear();
        self.0.outbox.borrow_mut().clear();
        self.0.dry_looks.set(0);
        self.0.vain_looks.set(0);
        self.0.is_cold.set(false);
        self.0.is_blocked.set(false);
        self.0.cut();
    }

    /// Whether the session has other measures than these.
    fn shape_is_not(&self, shape: Shape) -> bool {
        self.0.shape != shape
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        match self.0.fault.get() {
            Some(fault) => Standing::Broken(fault),
            None if self.0.closed.get() || self.0.closed_by_peer.get() => Standing::Closed,
            None if self.0.stream.borrow().is_some() => Standing::Connected,
            None => Standing::Cut,
        }
    }

    /// Waits until it may stand otherwise. One waiter.
    pub async fn until_changed(&self) {
        self.0.changed.wait().await;
    }

    /// A while has passed. Tells the peer that we live, if nothing else has told it: by what lies unsent, such as an answer
    /// that was not worth a system call of its own, or else by a heartbeat. Gives whether the peer has said anything meanwhile.
    pub fn beat(&self) -> bool {
        if !self.0.spoke.get() && self.standing() == Standing::Connected {
            if self.0.outbox.borrow().unsent().is_empty() {
                self.0.outbox.borrow_mut().push_frame(kind::HEARTBEAT, &[]);
            }
            self.0.flush(self);
        }
        self.0.spoke.set(false);
        self.0.heard.replace(false)
    }

    /// Whether the present connection, or the last, has brought a message: then the peer did more than to greet.
    fn was_of_use(&self) -> bool {
        self.0.taken.get() > 0
    }

    /// The peer has broken a rule, if not on this connection then on the one for leased bytes.
    fn break_with(&self, what: FrameError) {
        self.0.broken(what);
    }

    /// The connection is as good as lost.
    pub fn cut(&self) {
        self.0.cut();
    }
}

impl Inner {
    /// The connection is lost. What was received whole is still handed out.
    #[cold]
    fn cut(&self) {
        let stream = self.stream.borrow_mut().take();
        if let Some(stream) = stream {
            stream.abort();
            self.changed.raise();
        }
    }

    /// Looks at the socket. True if something was there.
    fn fill(&self, link: &SocketLink) -> bool {
        if self.dry_looks.get() > 0 {
            self.dry_looks.set(self.dry_looks.get() - 1);
            return false;
        }
        if self.is_cold.get() {
            return false;
        }
        let stream = self.stream.borrow();
        let Some(connection) = &*stream else { return false };
        self.system_calls.set(self.system_calls.get() + 1);
        let received = self.inbox.borrow_mut().fill(|room| connection.receive(room));
        drop(stream);
        match received {
            Ok((1.., was_all)) => {
                self.dry_looks.set(if was_all { 1 + u8::from(self.has_slept.replace(false)) } else { 0 });
                self.vain_looks.set(0);
                self.heard.set(true);
                return true;
            }
            Err(error) if is_for_now(&error) => {
                self.vain_looks.set(self.vain_looks.get() + 1);
                if self.vain_looks.get() >= COLD_AFTER {
                    link.look_later();
                }
                return false;
            }
            // The peer's end without a farewell, or its kernel's: it may come back.
            Ok((0, _)) => self.cut(),
            Err(error) => {
                // It was changed on its way; the session goes on over another connection.
                if error.kind() == io::ErrorKind::InvalidData {
                    tracing::warn!("what came from {:?} is not what was sent: {error}", self.peer.get());
                }
                self.cut();
            }
        }
        false
    }

    fn next(&self) -> Result<Option<Frame>, FrameError> {
        self.inbox.borrow_mut().next()
    }

    #[cold]
    fn broken(&self, what: FrameError) {
        // The connection may be gone already; what came over it is as wrong as before.
        if let Some(peer) = self.peer.get() {
            self.fault.set(Some(Fault { peer, what }));
            tracing::warn!("the session with {peer} ends: it sent {what}");
        }
        self.cut();
        self.changed.raise();
    }

    fn flush(&self, link: &SocketLink) {
        let mut outbox = self.outbox.borrow_mut();
        if self.is_blocked.get() {
            return;
        }
        let stream = self.stream.borrow();
        let Some(connection) = &*stream else { return };
        while !outbox.unsent().is_empty() || connection.has_unsent() {
            self.system_calls.set(self.system_calls.get() + 1);
            match connection.send(outbox.unsent()) {
                Ok(bytes) => {
                    outbox.took(bytes);
                    self.spoke.set(true);
                }
                Err(error) if is_for_now(&error) => return link.flush_later(connection),
                Err(_) => {
                    drop((outbox, stream));
                    return self.cut();
                }
            }
        }
    }
}

impl SocketLink {
    /// Looks again when something has come.
    #[cold]
    fn look_later(&self) {
        let carrier = self.0.stream.borrow().as_ref().map(|stream| stream.carrier().clone());
        let Some(carrier) = carrier.filter(|_| runtime::is_running()) else { return };
        self.0.is_cold.set(true);
        let this = Rc::downgrade(&self.0);
        runtime::spawn(async move {
            let _ = carrier.readable().await;
            if let Some(this) = this.upgrade() {
                this.is_cold.set(false);
                this.vain_looks.set(0);
            }
        });
    }

    /// Sends the rest when the kernel takes it. Outside a runtime nobody would: there the next flush tries again.
    #[cold]
    fn flush_later(&self, stream: &Stream) {
        if !runtime::is_running() {
            return;
        }
        self.0.is_blocked.set(true);
        let (this, carrier) = (Rc::downgrade(&self.0), stream.carrier().clone());
        runtime::spawn(async move {
            let _ = carrier.writable().await;
            let Some(this) = this.upgrade().map(SocketLink) else { return };
            this.0.is_blocked.set(false);
            this.0.flush(&this);
        });
    }
}

/// Whether the socket works, and only has nothing now.
fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Link for SocketLink {
    fn shape(&self) -> Shape {
        self.0.shape
    }

    fn sent(&self) -> u64 {
        self.0.sent.get()
    }

    #[inline]
    fn send(&self, descriptor: &RawDescriptor, slot: u16, body: &Body<'_>) -> Result<(), Violation> {
        let left = match descriptor.0[4] {
            0 => 0,
            // A deadline that has passed is not the same as none.
            deadline => deadline.saturating_sub(now()).max(1),
        };
        self.0.outbox.borrow_mut().push(descriptor, slot, body, left)?;
        self.0.sent.set(self.0.sent.get() + 1);
        Ok(())
    }

    fn repeat(&self, slot: u16, seq: u64) -> Result<bool, Violation> {
        let repeated = self.0.outbox.borrow_mut().repeat(slot, seq)?;
        self.0.sent.set(self.0.sent.get() + u64::from(repeated));
        Ok(repeated)
    }

    /// Nothing: it would take a system call.
    fn publish(&self) {}

    #[inline]
    fn flush(&self) {
        self.0.flush(self);
    }

    #[inline]
    fn receive(&self) -> Option<RawDescriptor> {
        if self.0.closed.get() || self.0.closed_by_peer.get() {
            return None;
        }
        let mut has_looked = false;
        loop {
            match self.0.next() {
                Ok(Some(Frame::Message(mut descriptor))) => {
                    self.0.taken.set(self.0.taken.get() + 1);
                    if descriptor.0[4] != 0 {
                        descriptor.0[4] = now().saturating_add(descriptor.0[4]);
                    }
                    return Some(descriptor);
                }
                Ok(Some(Frame::Heartbeat)) => {}
                Ok(Some(Frame::Bye(taken))) => {
                    self.0.taken_by_peer.set(Some(taken));
                    self.0.closed_by_peer.set(true);
                    self.0.changed.raise();
                    return None;
                }
                // Once: whoever sends nothing but heartbeats, without end, keeps no thread with them.
                Ok(None) if !has_looked && self.0.fill(self) => has_looked = true,
                Ok(None) => return None,
                Err(what) => {
                    self.0.broken(what);
                    return None;
                }
            }
        }
    }

    fn unread(&self) -> u64 {
        // What is in the kernel is not counted: to know it would be to read it.
        self.0.inbox.borrow().frames().min(self.0.shape.ring_entries().into())
    }

    #[inline]
    fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        self.0.inbox.borrow().read_window(slot, offset, bytes);
    }

    fn read_own_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        self.0.outbox.borrow().read_window(slot, offset, bytes);
    }

    /// All that the kernel has taken a byte of, or TLS; after the peer's farewell, what that says.
    fn read_by_peer(&self) -> u64 {
        let given = self.0.sent.get() - self.0.outbox.borrow().untouched();
        match self.0.taken_by_peer.get() {
            Some(taken) => self.0.sent_before.get().saturating_add(taken).min(given),
            None => given,
        }
    }

    fn close(&self) {
        if self.0.closed.replace(true) {
            return;
        }
        self.0.outbox.borrow_mut().push_frame(kind::BYE, &self.0.taken.get().to_le_bytes());
        self.0.flush(self);
        let stream = self.0.stream.borrow_mut().take();
        if let Some(stream) = stream {
            stream.retire(self.0.outbox.borrow().unsent().to_vec());
        }
        self.0.changed.raise();
    }

    fn is_closed_by_peer(&self) -> bool {
        self.0.closed_by_peer.get()
    }

    fn broken(&self) -> Option<Violation> {
        self.0.fault.get().map(|fault| fault.what.violation())
    }

    fn prepare_sleep(&self) -> Result<Sleep, Violation> {
        self.0.dry_looks.set(0);
        if self.0.inbox.borrow().has_frame() || self.0.closed_by_peer.get() || self.0.fault.get().is_some() {
            return Ok(Sleep::Work);
        }
        Ok(match &*self.0.stream.borrow() {
            // What was decrypted and not taken makes no descriptor readable.
            Some(stream) if stream.holds_more() => Sleep::Work,
            Some(stream) if !self.0.is_cold.get() => stream.sleep(),
            // A task waits for it, or for the next connection.
            _ => Sleep::Nothing,
        })
    }

    fn cancel_sleep(&self) {
        self.0.has_slept.set(true);
    }

    fn system_calls(&self) -> u64 {
        self.0.system_calls.get()
    }
}
