//! The client's side: opens a session over a connection, and makes the connection again when it is lost.
//!
//! - A lost connection suspends the session: callers wait. The next one begins with each call that is outstanding, and the
//!   host says what became of it ([`session`](crate::session)); no call is lost or run twice.
//! - It is dialled again at once, then less and less often, until [`Options::give_up`] has passed ([`Patience`]). Then
//!   outstanding calls end with [`LinkLost`](crate::Cause::LinkLost), `Unknown` if the host can have seen them. When the host
//!   answers that it has no such session, they end at once, as by its death.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::bulk::land::{Bay, Landing};
use super::bulk::offer::{Arguments, Offering};
use super::frame::{Bulk, FrameError, Hello, Refusal, SECRET_BYTES, Way, Welcome, interface_bytes};
use super::greeting::{self, Unanswered};
use super::keys::{Keys, NodeName, Party};
use super::nodes::Nodes;
use super::stream::Stream;
use super::{SocketLink, Standing};
use crate::id::SessionId;
use crate::runtime::{self, clock};
use crate::session::{ClientSession, WeakSession};
use crate::sys::random::random_words;
use crate::wire::Shape;

/// How patient the two ends of a link are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long greetings may take.
    pub greeting: Duration,
    /// How often an end that has nothing to say lets the other know that it lives.
    pub heartbeat: Duration,
    /// After how much silence a connection counts as lost.
    pub dead_after: Duration,
    /// How long a lost connection may take to be made again.
    pub give_up: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Options { greeting: seconds(5), heartbeat: seconds(1), dead_after: seconds(5), give_up: seconds(30) }
    }
}

/// Between two attempts, after the first one and at most.
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_millis(200);

/// Why there is no session.
#[derive(Debug)]
pub enum DialError {
    /// The address is beyond this machine, and nothing protects the bytes on their way.
    InTheClear(SocketAddr),
    /// The interface has no name that can be sent.
    Interface,
    /// The host cannot be reached, or the connection was lost.
    Io(SocketAddr, io::Error),
    /// It did not answer in time.
    Silent(SocketAddr),
    /// What answers there breaks the protocol.
    Frame(SocketAddr, FrameError),
    /// The host does not want us.
    Refused(SocketAddr, Refusal),
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DialError::InTheClear(address) => write!(
                f,
                "will not call {address} over a {}: it is beyond this machine. Use keys, or a loopback address",
                super::IN_THE_CLEAR
            ),
            DialError::Interface => f.write_str("the interface's name is empty or longer than 64 bytes"),
            DialError::Io(address, error) => write!(f, "cannot reach {address}: {error}"),
            DialError::Silent(address) => write!(f, "{address} accepted the connection and did not answer in time"),
            DialError::Frame(address, what) => write!(f, "{address} is no Atoll of this release: it sent {what}"),
            DialError::Refused(address, refusal) => write!(f, "{address} refused the session: {refusal}"),
        }
    }
}

impl std::error::Error for DialError {}

/// A host beyond a socket. An address alone is one in the clear.
#[derive(Clone, Debug)]
pub struct Remote {
    address: SocketAddr,
    /// Our keys, and who it has to be.
    secured: Option<(Keys, Party)>,
    /// What the host knows the session by before it is opened.
    ticket: Option<[u8; SECRET_BYTES]>,
    /// Who are nodes, if it has to be the machine that is of its name now.
    nodes: Option<Nodes>,
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Remote {
        Remote { address, secured: None, ticket: None, nodes: None }
    }
}

impl Remote {
    /// The host at this address, if it proves to be this node.
    pub fn node(address: SocketAddr, node: NodeName, keys: Keys) -> Remote {
        Remote::party(address, node.into(), keys)
    }

    /// The same for any party.
    pub fn party(address: SocketAddr, party: Party, keys: Keys) -> Remote {
        Remote { address, secured: Some((keys, party)), ticket: None, nodes: None }
    }

    /// With a ticket, which the host was told of: it is the session's secret.
    pub fn with_ticket(self, ticket: [u8; SECRET_BYTES]) -> Remote {
        Remote { ticket: Some(ticket), ..self }
    }

    /// And only the machine that is its node when it is called.
    pub fn among(self, nodes: &Nodes) -> Remote {
        Remote { nodes: Some(nodes.clone()), ..self }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection, on which nothing has been said but who the ends are.
    pub(super) async fn dial(&self, dead_after: Duration) -> io::Result<Stream> {
        let stream = Stream::connect(self.address, dead_after).await?;
        match &self.secured {
            None => Ok(stream),
            Some((keys, party)) => {
                let stream = stream.secured(keys.call(party)?, Some(party)).await?;
                let issuer = stream.issuer().map(|issuer| &**issuer);
                match self.nodes.as_ref().is_none_or(|nodes| nodes.admits(&party.node, issuer)) {
                    true => Ok(stream),
                    // It was removed, and perhaps another one has its name.
                    false => {
                        stream.abort();
                        let what = format!("the machine there is not node {} of the cluster (any more)", party.node);
                        Err(io::Error::new(io::ErrorKind::InvalidData, what))
                    }
                }
            }
        }
    }
}

/// Opens a session with the endpoint that `remote` serves and that speaks `interface`. No lease is brought over it, in either direction.
///
/// # Errors
/// See [`DialError`]. Nothing is left behind.
pub async fn connect(
    remote: impl Into<Remote>,
    interface: &str,
    shape: Shape,
    options: Options,
) -> Result<ClientSession, DialError> {
    connect_carrying(remote, interface, shape, options, Cargo::default()).await
}

/// The same with a place for leased bytes: replies come when what they lend has landed.
///
/// # Errors
/// See [`DialError`].
pub async fn connect_landing(
    remote: impl Into<Remote>,
    interface: &str,
    shape: Shape,
    options: Options,
    landing: Landing,
) -> Result<ClientSession, DialError> {
    let cargo = Cargo { landing: Some(landing), ..Cargo::default() };
    connect_carrying(remote, interface, shape, options, cargo).await
}

/// What leases a session carries.
#[derive(Clone, Default)]
pub struct Cargo {
    /// Where that lands which replies lend. Without it such a reply has its leases under the host's names, good for nothing here.
    pub landing: Option<Landing>,
    /// What calls can lend. Without it a call that does fails with [`StaleLease`](crate::Cause::StaleLease), not executed.
    pub offering: Option<Offering>,
}

/// As [`connect`], with leases.
///
/// # Errors
/// See [`DialError`].
pub async fn connect_carrying(
    remote: impl Into<Remote>,
    interface: &str,
    shape: Shape,
    options: Options,
    Cargo { landing, offering }: Cargo,
) -> Result<ClientSession, DialError> {
    let remote = remote.into();
    let address = remote.address;
    if remote.secured.is_none() && !is_loopback(address) {
        return Err(DialError::InTheClear(address));
    }
    let interface = interface_bytes(interface).map_err(|_| DialError::Interface)?;
    let secret = remote.ticket.map_or_else(secret, Ok).map_err(|error| DialError::Io(address, error))?;
    let hello = Hello { shape, session: SessionId(0), number: 1, outstanding: 0, secret, interface };
    let (stream, welcome) = greeted(&remote, &hello, &options).await?;
    let link = SocketLink::new(shape);
    link.attach(stream);
    let session = ClientSession::over_socket(link.clone(), welcome.root, welcome.session, welcome.epoch);
    let bay = landing.map(|landing| Bay::new(landing, options.give_up));
    let hello_for = |way| Bulk { session: welcome.session, way, number: 0, secret };
    let told = |of: SocketLink| move |what| of.break_with(what);
    if let Some(bay) = &bay {
        session.land_in(bay.clone());
        let hello = hello_for(Way::ToClient);
        runtime::spawn(bay.clone().fetch(remote.clone(), hello, options, told(link.clone())));
    }
    let arguments = offering.map(Arguments::new);
    if let Some(arguments) = &arguments {
        session.lend_by(arguments.clone());
        let hello = hello_for(Way::ToHost);
        runtime::spawn(arguments.clone().offer(remote.clone(), hello, options, told(link.clone())));
    }
    let hello = Hello { session: welcome.session, ..hello };
    let patience = Patience::new(options.give_up);
    let keeper = Keeper { remote, options, link, session: session.downgrade(), hello, patience };
    runtime::spawn(async move {
        keeper.keep().await;
        if let Some(bay) = bay {
            bay.end();
        }
        if let Some(arguments) = arguments {
            arguments.end();
        }
    });
    Ok(session)
}

/// Whether an address is this machine's own, and no other machine can be behind it.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn secret() -> io::Result<[u8; SECRET_BYTES]> {
    let words = [random_words()?, random_words()?];
    let mut secret = [0; SECRET_BYTES];
    for (to, from) in secret.as_chunks_mut::<8>().0.iter_mut().zip(words.as_flattened()) {
        *to = from.to_le_bytes();
    }
    Ok(secret)
}

/// A connection on which the host has answered.
async fn greeted(remote: &Remote, hello: &Hello, options: &Options) -> Result<(Stream, Welcome), DialError> {
    let address = remote.address;
    let greet = async {
        let stream = remote.dial(options.dead_after).await?;
        let welcome = greeting::greet(&stream, hello).await?;
        Ok((stream, welcome))
    };
    match runtime::timeout(options.greeting, greet).await {
        Ok(Ok(greeted)) => Ok(greeted),
        Ok(Err(Unanswered::Io(error))) => Err(DialError::Io(address, error)),
        Ok(Err(Unanswered::Frame(what))) => Err(DialError::Frame(address, what)),
        Ok(Err(Unanswered::Refused(refusal))) => Err(DialError::Refused(address, refusal)),
        Err(runtime::Elapsed) => Err(DialError::Silent(address)),
    }
}

/// Sees to it that a session has a connection.
struct Keeper {
    remote: Remote,
    options: Options,
    link: SocketLink,
    session: WeakSession,
    /// Of the last connection.
    hello: Hello,
    patience: Patience,
}

impl Keeper {
    async fn keep(mut self) {
        loop {
            match self.link.standing() {
                Standing::Connected => {
                    let connected = clock::now();
                    watch(&self.link, &self.options).await;
                    if self.link.was_of_use()
                        || clock::now().saturating_duration_since(connected) >= self.options.heartbeat
                    {
                        self.patience = Patience::new(self.options.give_up);
                    }
                }
                Standing::Cut => {
                    let Some(session) = self.session.upgrade() else { return };
                    session.cut();
                    drop(session);
                    if !self.again().await {
                        return;
                    }
                }
                Standing::Closed | Standing::Broken(_) => return,
            }
        }
    }

    /// Makes the connection again. False: the session is over.
    async fn again(&mut self) -> bool {
        let mut why = String::from("each connection ends at once");
        loop {
            let Some(pause) = self.patience.before_next(clock::now()) else {
                tracing::warn!("the session with {} is given up: {why}", self.remote.address);
                return self.over(ClientSession::link_lost);
            };
            if !pause.is_zero() {
                runtime::sleep(pause).await;
            }
            // The session may have been closed while we were at it.
            let Some(session) = self.session.upgrade().filter(ClientSession::is_open) else { return false };
            self.hello.number += 1;
            self.hello.outstanding = session.outstanding();
            drop(session);
            match greeted(&self.remote, &self.hello, &self.options).await {
                Ok((stream, welcome)) => {
                    let Some(session) = self.session.upgrade().filter(ClientSession::is_open) else { return false };
                    self.link.attach(stream);
                    // A host that broke a rule so early ends the session by it.
                    return session.reconnected(welcome.root, welcome.epoch, self.hello.outstanding);
                }
                Err(DialError::Refused(_, Refusal::NoSuchSession | Refusal::Interface | Refusal::Version(_))) => {
                    return self.over(ClientSession::host_is_gone);
                }
                Err(error) => {
                    tracing::debug!("not yet: {error}");
                    why = error.to_string();
                }
            }
        }
    }

    fn over(&self, end: impl FnOnce(&ClientSession)) -> bool {
        if let Some(session) = self.session.upgrade() {
            end(&session);
        }
        false
    }
}

/// How long to wait before a lost connection is dialled again, and how often. One that was made and lost again counts as an
/// attempt like one that was not made, unless it was of use or lasted: a host that welcomes and cuts at once is not dialled
/// without end, nor without pauses.
struct Patience {
    give_up: Duration,
    /// When the first attempt began.
    since: Option<Instant>,
    /// Before the next.
    pause: Duration,
}

impl Patience {
    fn new(give_up: Duration) -> Patience {
        Patience { give_up, since: None, pause: Duration::ZERO }
    }

    /// How long to wait before the next attempt. `None`: there will be none.
    fn before_next(&mut self, now: Instant) -> Option<Duration> {
        let begun = *self.since.get_or_insert(now);
        let pause = self.pause;
        self.pause = (2 * pause).clamp(RETRY_FIRST, RETRY_MOST);
        (pause.is_zero() || now.saturating_duration_since(begun) < self.give_up).then_some(pause)
    }
}

/// Returns when the link may stand otherwise. Cuts it after too much silence.
pub(super) async fn watch(link: &SocketLink, options: &Options) {
    let beats = (options.dead_after.as_nanos() / options.heartbeat.as_nanos().max(1)).max(1);
    let mut silent = 0;
    while link.standing() == Standing::Connected {
        if runtime::timeout(options.heartbeat, link.until_changed()).await.is_ok() {
            return;
        }
        silent = if link.beat() { 0 } else { silent + 1 };
        if silent >= beats {
            tracing::warn!("nothing was heard for {:?}: the connection counts as lost", options.dead_after);
            link.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for (address, is) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("[::ffff:10.0.0.1]:1", false),
            ("128.0.0.1:1", false),
        ] {
            assert_eq!(is_loopback(address.parse().expect("an address")), is, "{address}");
        }
    }

    #[test]
    fn attempts_become_rarer_and_end() {
        let begun = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(1));
        let mut at = |millis| patience.before_next(begun + Duration::from_millis(millis));
        let pauses: Vec<_> = (0..11).map(|attempt| at(attempt).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 200, 200].map(Some));
        assert_eq!((at(999), at(1000)), (Some(RETRY_MOST), None));
        // However little patience there is, one attempt is made.
        let mut hasty = Patience::new(Duration::ZERO);
        assert_eq!((hasty.before_next(begun), hasty.before_next(begun)), (Some(Duration::ZERO), None));
    }

    #[test]
    fn two_secrets_differ() {
        assert_ne!(secret().expect("random bytes"), secret().expect("random bytes"));
    }
}
