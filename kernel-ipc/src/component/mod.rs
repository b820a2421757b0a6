//! A component's view of its node: who it is, what it may connect to, what it provides.
//!
//! - Law 11: a component starts with the sessions that its manifest names and no other authority; all of them come
//!   through its [`Context`].
//! - A program is `component::run(serve)` with `async fn serve(cx: Context) -> Result<(), component::Error>`. It
//!   provides its endpoints, says [`Context::ready`], and returns after [`Context::stopped`]; dropping its services
//!   before it returns is its own affair.
//! - A guest (the command line, a user's client) gets a `Context` by [`Context::guest`] inside a runtime of its own.
//! - A guest is here as long as a clone of its `Context`, a session that it opened or a client lives; when the last of them is
//!   dropped, the supervisor ends all that was the guest's. A session that is dropped ends at once on both sides.
//! - Everything here belongs to one thread. Nothing is on the data path: a `Context` opens sessions and hears of deaths.
//!
//! ```ignore
//! pub async fn serve(cx: Context) -> Result<(), component::Error> {
//!     let config: Config = cx.config()?;
//!     let disk: block::Client = cx.connect("disk").await?;
//!     let volume = Rc::new(Volume::mount(disk, cx.lender()).await?);
//!     cx.provide("root", volume.service(), move |session| volume.root_for(session))?;
//!     cx.ready();
//!     cx.stopped().await;
//!     volume.sync().await?;
//!     Ok(())
//! }
//! ```

mod adoption;
mod beyond;
mod confine;
mod connection;
mod control;
mod endpoint;
mod hand_over;
mod heritage;
mod introductions;
mod look;
mod opening;
mod program;
mod pulse;
mod reactors;
mod start;
pub mod waits;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::broker::{Channel, CounterValues, OpenError, Outbox, REGIONS_PER_INCARNATION, ToSupervisor, Welcome};
use crate::lease::{Holder, Lender, Mapper, Region, StatusReader};
use crate::logbook::Logbook;
use crate::session::{ClientSession, Grant, HostSession, Served, Service, SessionInfo};
use crate::steps;
use crate::{Epoch, Incarnation, RegionId, SessionId};

use introductions::Introductions;
use waits::Event;

pub use connection::{Connection, Reopen};
pub use heritage::Survived;
pub use program::{manifest, program};
pub use reactors::{MoveError, Reactor};
pub use start::run;

/// What ends a component. Its text goes to the component's log and to whoever waits for it to start.
pub type Error = Box<dyn std::error::Error>;

/// A generated client: what [`Context::connect`] makes of an opened session.
pub trait Client {
    /// The interface with version, `"atoll.fs/1"`.
    const INTERFACE: &'static str;

    /// Takes over a connection whose root capability is of this interface.
    fn from_connection(connection: Connection) -> Self;
}

/// Why a session was not opened.
#[derive(Debug)]
pub enum ConnectError {
    /// The supervisor or the host said no.
    Refused {
        /// The name that was asked for.
        name: String,
        /// What they said.
        error: OpenError,
    },
    /// The segments could not be made or mapped, or the supervisor is gone.
    Io(std::io::Error),
}

/// Why a `Context` cannot do what was asked.
#[derive(Debug)]
pub enum ContextError {
    /// This process was not started by a keeper: there is no control socket.
    NotAComponent,
    /// No node runs on this state directory.
    NothingRunning,
    /// The supervisor refused this guest. Says why.
    Rejected(String),
    /// The manifest gives no endpoint of this name, or another interface.
    UnknownEndpoint(String),
    /// The supervisor is gone or does not speak our protocol.
    Supervisor(String),
    /// What only a component with one reactor can have, and this one has several.
    OneReactor {
        /// What it is.
        what: String,
        /// How many the manifest says.
        reactors: u32,
    },
    /// The manifest's `config` does not fit. Says which field.
    Config(String),
    /// The system refused a resource.
    Io(std::io::Error),
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConnectError::Refused { name, error } => write!(f, "cannot connect to {name}: {error}"),
            ConnectError::Io(error) => write!(f, "cannot open a session: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl std::fmt::Display for ContextError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ContextError::NotAComponent => f.write_str("this process was not started by an Atoll keeper"),
            ContextError::NothingRunning => f.write_str("nothing runs there"),
            ContextError::Rejected(reason) => write!(f, "the supervisor refused: {reason}"),
            ContextError::UnknownEndpoint(name) => write!(f, "the manifest gives no endpoint {name}"),
            ContextError::Supervisor(what) => write!(f, "supervisor: {what}"),
            ContextError::OneReactor { what, reactors } => {
                write!(f, "{what}: that is made for one reactor, and the manifest says reactors = {reactors}")
            }
            ContextError::Config(what) => write!(f, "config: {what}"),
            ContextError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ContextError {}

impl From<std::io::Error> for ContextError {
    fn from(error: std::io::Error) -> Self {
        ContextError::Io(error)
    }
}

/// What a component did with payload, for `atoll ps --io`. Add to it where the bytes go by.
#[derive(Debug, Default)]
pub struct Counters {
    leased: Cell<u64>,
    verified: Cell<u64>,
    copied: Cell<u64>,
}

impl Counters {
    /// Bytes that were lent.
    pub fn add_leased(&self, bytes: u64) {
        self.leased.set(self.leased.get().wrapping_add(bytes));
    }

    /// Bytes that were read once to check them.
    pub fn add_verified(&self, bytes: u64) {
        self.verified.set(self.verified.get().wrapping_add(bytes));
    }

    /// Bytes that were copied in user space.
    pub fn add_copied(&self, bytes: u64) {
        self.copied.set(self.copied.get().wrapping_add(bytes));
    }

    /// All of them.
    pub fn values(&self) -> CounterValues {
        CounterValues { leased: self.leased.get(), verified: self.verified.get(), copied: self.copied.get() }
    }
}

/// How often a run looks whether its predecessors are fenced.
const FENCE_INTERVAL: Duration = Duration::from_millis(1);

/// A component's or guest's connection to its node. Clones are the same connection.
#[derive(Clone)]
pub struct Context(Rc<Inner>);

struct Inner {
    welcome: Welcome,
    channel: Rc<Channel>,
    /// To the supervisor.
    outbox: Rc<Outbox<ToSupervisor>>,
    status: StatusReader,
    counters: Rc<Counters>,
    pulse: Rc<pulse::Pulse>,
    stop: Event,
    /// Provided endpoints, by name.
    endpoints: RefCell<HashMap<String, Rc<dyn endpoint::Endpoint>>>,
    /// Sessions that are about to be served, each with its client.
    serving: RefCell<HashMap<SessionId, (Incarnation, Wanted)>>,
    /// Sessions that this component serves.
    hosted: RefCell<HashMap<SessionId, HostSession>>,
    /// Sessions that it has opened, while somebody keeps them open.
    used: RefCell<HashMap<SessionId, opening::Used>>,
    /// What the last run left, until it is looked at.
    left: RefCell<heritage::Left>,
    /// What the next run will go on from.
    survival: heritage::Survival,
    /// Memory that was asked to be kept, and how much of it.
    keeping: RefCell<HashMap<String, (usize, waits::Answer<std::os::fd::OwnedFd>)>>,
    /// Sessions that it has asked for, by request.
    asked: RefCell<HashMap<u64, opening::Asked>>,
    /// Logbooks that were asked for, by request.
    books: RefCell<HashMap<u64, look::Asked>>,
    /// Sessions that were asked for, by request.
    sessions_asked: RefCell<HashMap<u64, look::SessionAsked>>,
    /// Ends the tracing.
    tracing: RefCell<Option<crate::runtime::JoinHandle<()>>>,
    /// Regions whose introduction is awaited.
    publishing: RefCell<HashMap<RegionId, Publishing>>,
    /// What was reported, the latest of each.
    reported: RefCell<HashMap<String, Value>>,
    next_request: Cell<u64>,
    next_region: Cell<u64>,
    lender: RefCell<Option<Rc<RefCell<Lender>>>>,
    introductions: Introductions,
    ready: Cell<bool>,
    /// The control socket has ended.
    lost: Event,
    /// What others can see of this run; of a guest there is none.
    logbook: Option<Rc<Logbook>>,
    /// Where its sessions are, if it has several reactors.
    places: Option<reactors::Places>,
    /// One of its reactors cannot go on, and why.
    failed: Event,
    failure: RefCell<Option<String>>,
    /// What it has to do with other nodes.
    beyond: beyond::Beyond,
    /// A guest's fence.
    fence: RefCell<Option<std::os::fd::OwnedFd>>,
}

/// A region whose introduction is awaited.
struct Publishing {
    memory: std::os::fd::OwnedFd,
    /// Other nodes' leases land in it.
    landed: bool,
    answer: waits::Answer<()>,
}

/// Whether somebody waits for a session that is about to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Yes,
    /// Its client is gone: nobody will ever use what was lent on it.
    No,
    /// Its client is dead and survives: the next run inherits what was lent on it.
    ByHeirs,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The tasks that read and write the socket end by it; for a guest's supervisor it is the guest's end.
        self.outbox.close();
        self.channel.shut_down();
    }
}

/// Entries of a lease table: 4 MiB of it when all are used.
const LEASES: u32 = 65_536;

impl Context {
    /// Connects to the node on a state directory as a guest called `program`. Needs a runtime; blocks for the greeting.
    ///
    /// # Errors
    /// [`ContextError::NothingRunning`], [`ContextError::Rejected`], or what went wrong.
    pub fn guest(state: &Path, program: &str) -> Result<Context, ContextError> {
        start::guest(state, program)
    }

    /// The component's name in the manifest.
    pub fn name(&self) -> &str {
        &self.0.welcome.name
    }

    /// This run.
    pub fn incarnation(&self) -> Incarnation {
        self.0.welcome.incarnation
    }

    /// The epoch of this component's endpoints.
    pub fn epoch(&self) -> Epoch {
        self.0.welcome.epoch
    }

    /// Waits until the kernel has let go of everything that this component's dead runs gave it: requests may otherwise land
    /// in a region that outlived them, or on a device, after this run has begun. Whoever gives the kernel nothing but what
    /// it pins needs not wait: others heed its pins until then.
    pub async fn last_run_fenced(&self) {
        let Some(line) = self.0.status.endpoint(self.0.welcome.status_entry) else { return };
        // A few tens of milliseconds, once in a run, and nobody is woken by it: the page has no word for that.
        while line.fenced_epoch().get() + 1 < self.epoch().get() {
            crate::runtime::sleep(FENCE_INTERVAL).await;
        }
    }

    /// The state directory: what relative paths of `config` are relative to.
    pub fn state_dir(&self) -> &Path {
        Path::new(&self.0.welcome.state_dir)
    }

    /// The manifest's `config` of this component.
    ///
    /// # Errors
    /// [`ContextError::Config`] names the field.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ContextError> {
        T::deserialize(&self.0.welcome.config).map_err(|error| ContextError::Config(error.to_string()))
    }

    /// Opens a session: with what the manifest calls `uses.NAME`; a guest names `component.endpoint`, or `control`.
    /// Waits while the host is starting. Calls after the host's death reach its next incarnation through the same client:
    /// the root capability is valid again, every other handle and lease gives `StaleEpoch`, not executed.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect<C: Client>(&self, name: &str) -> Result<C, ConnectError> {
        Ok(C::from_connection(self.connection(name, C::INTERFACE).await?))
    }

    /// As [`connect`](Context::connect), without a generated client.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connection(&self, name: &str, interface: &str) -> Result<Connection, ConnectError> {
        opening::connect(self, name, interface).await
    }

    /// Serves an endpoint of this component's manifest entry. For each session that is opened, `root` says what its
    /// first capability is: object and kind (rights beyond the manifest's are dropped), or why there is none, in words
    /// for people. What the manifest says beyond rights (a path, an address) is in [`SessionInfo::attenuation`].
    ///
    /// # Errors
    /// [`ContextError::UnknownEndpoint`] if the manifest has no such endpoint of this interface; [`ContextError::OneReactor`] if
    /// this component has several reactors, which needs [`provide_on_each`](Context::provide_on_each).
    pub fn provide<S, F>(&self, name: &str, service: Rc<S>, root: F) -> Result<(), ContextError>
    where
        S: Service,
        F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
    {
        self.knows_endpoint::<S>(name)?;
        if self.0.places.is_some() {
            return Err(self.one_reactor(&format!("endpoint {name}")));
        }
        let served = Served::from(service);
        let left = self.0.survival.sessions.borrow();
        let its = left.values().filter(|(serve, _)| serve.endpoint == name);
        let lender = self.0.lender.borrow().clone();
        served.inherit(its.map(|(serve, heritage)| (endpoint::info(serve), heritage)), lender.as_ref());
        drop(left);
        beyond::listen(self, name, &served);
        self.0.endpoints.borrow_mut().insert(name.to_owned(), Rc::new(endpoint::Provided { served, root }));
        let survives = S::SURVIVES && self.0.survival.records.borrow().is_some();
        let interface = S::INTERFACE.name.to_owned();
        self.send(&ToSupervisor::Provides { endpoint: name.to_owned(), interface, survives }, &[]);
        Ok(())
    }

    fn knows_endpoint<S: Service>(&self, name: &str) -> Result<(), ContextError> {
        let interface = S::INTERFACE.name;
        let mut provides = self.0.welcome.provides.iter();
        match provides.any(|known| known.name == name && known.interface == interface) {
            true => Ok(()),
            false => Err(ContextError::UnknownEndpoint(format!("{name} of {interface}"))),
        }
    }

    /// A name for a region of this run, for `Region::create`; each call gives another one.
    ///
    /// # Panics
    /// After [`REGIONS_PER_INCARNATION`] calls.
    pub fn new_region_id(&self) -> RegionId {
        let number = self.0.next_region.replace(self.0.next_region.get() + 1);
        assert!(number < REGIONS_PER_INCARNATION, "a run has at most {REGIONS_PER_INCARNATION} regions");
        RegionId(self.0.welcome.first_region.get() + number)
    }

    /// Says that leases of this run may name `region`. Waits until everybody whom the manifest lets map it has mapped it:
    /// from then on it may be lent from.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if the supervisor is gone.
    pub async fn publish_region(&self, region: &Region) -> Result<(), ContextError> {
        self.publish(region, false).await
    }

    /// The same; `landed`: it is where other nodes' leases land.
    async fn publish(&self, region: &Region, landed: bool) -> Result<(), ContextError> {
        // The supervisor introduces regions to those who have met the lender.
        self.lender();
        self.0.beyond.publishes(region, self.0.logbook.is_none());
        let (published, answer) = waits::question();
        let memory = region.fd().try_clone_to_owned().map_err(ContextError::Io)?;
        self.0.publishing.borrow_mut().insert(region.id(), Publishing { memory, landed, answer });
        self.send(&ToSupervisor::Region { region: region.id(), landed }, &[region.fd()]);
        let lost = || ContextError::Supervisor("it is gone".into());
        if self.0.lost.has_happened() { Err(lost()) } else { published.await.ok_or_else(lost) }
    }

    /// This run's lender. The first call makes its table and publishes it.
    ///
    /// # Panics
    /// If the kernel refuses the table's memory.
    pub fn lender(&self) -> Rc<RefCell<Lender>> {
        let known = self.0.lender.borrow().clone();
        known.unwrap_or_else(|| {
            let Welcome { lender, epoch, .. } = self.0.welcome;
            self.lends(Lender::new(lender, epoch, LEASES).expect("a table of 65,536 entries is mapped lazily"))
        })
    }

    /// Publishes this run's table.
    fn lends(&self, lender: Lender) -> Rc<RefCell<Lender>> {
        if let Err(error) = self.0.introductions.meet_itself(&lender) {
            tracing::warn!("what lands here cannot be read here: {error}");
        }
        self.send(&ToSupervisor::Lends { capacity: LEASES }, &[lender.table_fd()]);
        let lender = Rc::new(RefCell::new(lender));
        self.0.lender.replace(Some(lender.clone()));
        lender
    }

    /// Who serves a session that this run opened: the holder of what is lent to it. `None` once that one has died.
    pub fn host_of(&self, session: &ClientSession) -> Option<Incarnation> {
        // Sessions of other nodes have numbers of theirs.
        session.host_beyond().or_else(|| self.0.used.borrow().get(&session.id()).map(|used| used.host))
    }

    /// What this run may give to the kernel of its peers' leases. The supervisor's introductions arrive in it by
    /// themselves, always before the session on which such a lease can come.
    pub fn mapper(&self) -> Rc<RefCell<Mapper>> {
        self.0.introductions.mapper()
    }

    /// What this run may read of the leases that it holds. Introductions arrive as in [`mapper`](Context::mapper).
    pub fn holder(&self) -> Rc<RefCell<Holder>> {
        self.0.introductions.holder()
    }

    /// Says that everything works: dependants start, sessions are opened. Further calls do nothing.
    pub fn ready(&self) {
        if !self.0.ready.replace(true) {
            steps::reach("restart/serving");
            self.take_back_beyond();
            self.send(&ToSupervisor::Ready, &[]);
            steps::reach("restart/ready");
        }
    }

    /// Waits until the supervisor asks this component to end in order. May be called any number of times.
    pub async fn stopped(&self) {
        self.0.stop.wait().await;
    }

    /// Tells a fact about this component for `atoll ps`, such as `listen`.
    pub fn report(&self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.0.reported.borrow_mut().insert(key.to_owned(), value.clone());
        self.send(&ToSupervisor::Report { key: key.to_owned(), value }, &[]);
    }

    /// What an earlier run of this component told last under `key`, if there was one since the node came up.
    pub fn reported_before(&self, key: &str) -> Option<&Value> {
        self.0.welcome.reported.get(key)
    }

    /// The counters that `atoll ps --io` shows.
    pub fn counters(&self) -> Rc<Counters> {
        self.0.counters.clone()
    }
}
