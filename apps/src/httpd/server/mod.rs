//! The shell of httpd: a client of a file system and of a network.
//!
//! * One standing `next_events` call feeds everything; one task per connection reads requests and answers them.
//! * Payload goes by lease only: a file's leases are named in sends and held until the network says *released*. This
//!   process maps no region of anybody.
//! * Bounded: connections, bytes that a peer sends before they are looked at, leases in flight per connection and in all,
//!   time for a head, a body, an idle connection.
//! * When this process dies, its next run goes on with its connections: the network keeps them, and what was received from the
//!   request on that is being answered; each send says which request that is.
//! * A network server that dies goes on with its connections. One that is given up and started anew has none; httpd listens
//!   again at the same address. When the file system has died, the request in progress is repeated once.

mod budget;
mod clock;
mod files;
mod listening;
mod peer;
mod resume;
mod transfer;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::component::{self, Context};
use kernel_ipc::runtime;
use protocol::{fs, net};
use serde::Deserialize;

use budget::Budget;
use clock::Clock;
use listening::Peers;

/// The manifest's `config` of an `httpd`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Where to listen: the address that the manifest's `tcp` allows.
    pub listen: String,
    /// What bounds it.
    #[serde(flatten)]
    pub limits: Limits,
}

/// What bounds an httpd.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Most connections; further ones are told to come again.
    pub connections: usize,
    /// Seconds for a whole request head, from its first byte.
    pub head_seconds: u64,
    /// Seconds for a body that nobody wants, from the end of its head.
    pub body_seconds: u64,
    /// Seconds that a connection may stay open without a request.
    pub idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 1000, head_seconds: 10, body_seconds: 10, idle_seconds: 60 }
    }
}

/// Bytes of files that may be on their way to clients at a time, all connections together: a part of the file system's
/// cache that slow readers cannot exceed.
const IN_FLIGHT_BYTES: u64 = 32 << 20;

/// What all connections share.
struct Server {
    fs: fs::Client,
    net: net::Client,
    limits: Limits,
    budget: Rc<Budget>,
    clock: Clock,
    peers: Peers,
}

/// The component `httpd`.
///
/// # Errors
/// A bad configuration, or an address that cannot be listened on.
pub async fn serve(cx: Context) -> Result<(), component::Error> {
    let config: Config = cx.config()?;
    cx.confine(false);
    let fs: fs::Client = cx.connect("root").await?;
    let net: net::Client = cx.connect("net").await?;
    let report = cx.clone();
    let report = Rc::new(move |bound: &str| report.report("listen", bound));
    let httpd = Httpd::new(fs, net, config.limits);
    let again = match listened_before(&cx, &config.listen) {
        Some(before) => httpd.listen(&before, report.clone()).await.inspect_err(|error| tracing::warn!("{error}")).ok(),
        None => None,
    };
    let listening = match again {
        Some(listening) => listening,
        None => httpd.listen(&config.listen, report).await?,
    };
    cx.ready();
    let task = runtime::spawn(listening);
    cx.stopped().await;
    task.cancel();
    Ok(())
}

/// Where the run before this one listened, if the port is anyone's choice: whoever was told that one still knows it.
fn listened_before(cx: &Context, configured: &str) -> Option<String> {
    let configured: SocketAddr = configured.parse().ok()?;
    let before: SocketAddr = cx.reported_before("listen")?.as_str()?.parse().ok()?;
    (configured.port() == 0 && before.ip() == configured.ip()).then(|| before.to_string())
}

/// A server that does not listen yet.
#[derive(Clone)]
pub struct Httpd(Rc<Server>);

impl Httpd {
    /// A server of the files below the root of `fs`.
    pub fn new(fs: fs::Client, net: net::Client, limits: Limits) -> Httpd {
        let (budget, clock, peers) = (Rc::new(Budget::new(IN_FLIGHT_BYTES)), Clock::default(), Peers::default());
        Httpd(Rc::new(Server { fs, net, limits, budget, clock, peers }))
    }

    /// Listens at `address`, and tells `report` where that is, now and after each restart of the network server. What it
    /// gives serves for ever.
    ///
    /// # Errors
    /// In words: why it cannot listen.
    pub async fn listen(
        &self,
        address: &str,
        report: Rc<dyn Fn(&str)>,
    ) -> Result<impl Future<Output = ()> + use<>, String> {
        listening::listen(self.0.clone(), address, report).await
    }
}

impl Limits {
    fn head(&self) -> Duration {
        Duration::from_secs(self.head_seconds)
    }

    fn body(&self) -> Duration {
        Duration::from_secs(self.body_seconds)
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
}
