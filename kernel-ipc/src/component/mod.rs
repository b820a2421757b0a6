//! A component's view of its node: who it is, what it may connect to, what it provides.
//!
//! - Law 11: a component starts with the sessions that its manifest names and no other authority; all of them come
//!   through its [`Context`].
//! - A program is `component::run(serve)` with `async fn serve(cx: Context) -> Result<(), component::Error>`. It
//!   provides its endpoints, says [`Context::ready`], and returns after [`Context::stopped`]; dropping its services
//!   before it returns is its own affair.
//! - A guest (the command line, a user's client) gets a `Context` by [`Context::guest`] inside a runtime of its own.
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

mod connection;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::broker::{CounterValues, OpenError};
use crate::lease::{Lender, Mapper, Region};
use crate::session::{Grant, Service, SessionInfo};
use crate::{Epoch, Incarnation, RegionId};

pub use connection::{Connection, Reopen};

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
    /// The manifest's `config` does not fit. Says which field.
    Config(String),
    /// The system refused a resource.
    Io(std::io::Error),
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

/// A component's or guest's connection to its node. Clones are the same connection.
#[derive(Clone)]
pub struct Context(Rc<Inner>);

struct Inner {}

/// Runs a component's program: takes the control socket, makes the runtime (with this run's fence), runs `serve`, and
/// tells the supervisor if it fails. The whole of a component's `main`.
pub fn run<F, R>(serve: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), Error>>,
{
    todo!()
}

impl Context {
    /// Connects to the node on a state directory as a guest called `program`. Needs a runtime; blocks for the greeting.
    ///
    /// # Errors
    /// [`ContextError::NothingRunning`], [`ContextError::Rejected`], or what went wrong.
    pub fn guest(state: &Path, program: &str) -> Result<Context, ContextError> {
        todo!()
    }

    /// The component's name in the manifest.
    pub fn name(&self) -> &str {
        todo!()
    }

    /// This run.
    pub fn incarnation(&self) -> Incarnation {
        todo!()
    }

    /// The epoch of this component's endpoints.
    pub fn epoch(&self) -> Epoch {
        todo!()
    }

    /// The state directory: what relative paths of `config` are relative to.
    pub fn state_dir(&self) -> &Path {
        todo!()
    }

    /// The manifest's `config` of this component.
    ///
    /// # Errors
    /// [`ContextError::Config`] names the field.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ContextError> {
        todo!()
    }

    /// Opens a session: with what the manifest calls `uses.NAME`; a guest names `component.endpoint`, or `control`.
    /// Waits while the host is starting. Calls after the host's death reach its next incarnation through the same client:
    /// the root capability is valid again, every other handle and lease gives `StaleEpoch`, not executed.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect<C: Client>(&self, name: &str) -> Result<C, ConnectError> {
        todo!()
    }

    /// Serves an endpoint of this component's manifest entry. For each session that is opened, `root` says what its
    /// first capability is: object and kind (rights beyond the manifest's are dropped), or why there is none, in words
    /// for people. What the manifest says beyond rights (a path, an address) is in [`SessionInfo::attenuation`].
    ///
    /// # Errors
    /// [`ContextError::UnknownEndpoint`] if the manifest has no such endpoint of this interface.
    pub fn provide<S, F>(&self, name: &str, service: Rc<S>, root: F) -> Result<(), ContextError>
    where
        S: Service,
        F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
    {
        todo!()
    }

    /// A name for a region of this run, for `Region::create`; each call gives another one.
    pub fn new_region_id(&self) -> RegionId {
        todo!()
    }

    /// Says that leases of this run may name `region`: whoever the manifest lets map it gets it. Before it is lent from.
    pub fn publish_region(&self, region: &Region) {
        todo!()
    }

    /// This run's lender. The first call makes its table and publishes it.
    pub fn lender(&self) -> Rc<RefCell<Lender>> {
        todo!()
    }

    /// What this run may map of its peers' leases. The supervisor's introductions arrive in it by themselves, always
    /// before the session on which such a lease can come.
    pub fn mapper(&self) -> Rc<RefCell<Mapper>> {
        todo!()
    }

    /// Says that everything works: dependants start, sessions are opened. Once.
    pub fn ready(&self) {
        todo!()
    }

    /// Waits until the supervisor asks this component to end in order. May be called any number of times.
    pub async fn stopped(&self) {
        todo!()
    }

    /// Tells a fact about this component for `atoll ps`, such as `listen`.
    pub fn report(&self, key: &str, value: impl Into<Value>) {
        todo!()
    }

    /// The counters that `atoll ps --io` shows.
    pub fn counters(&self) -> Rc<Counters> {
        todo!()
    }
}
