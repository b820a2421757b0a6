//! The server: `fs-server` as a component. It mounts the volume of `disk` and serves it as `root`.
//!
//! A blank device gets a volume first, with the welcome page in `/www`; any other that has none is refused. In order it
//! ends with everything durable that it has answered.

mod check;
mod device;
mod handler;
mod journal;
mod replay;
mod survival;

use crate::device::{Environment, Task};
use crate::{Error, FormatOptions, MountOptions, NodeId, Volume};
use device::LeasedDevice;
use handler::Server;
use journal::Effects;
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::NewCap;
use kernel_ipc::lease::{Pool, Region};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime;
use kernel_ipc::session::{Grant, SessionInfo};
use kernel_ipc::steps;
use kernel_ipc::sys::random::random_words;
use protocol::{block, fs};
use replay::Replay;
use serde::Deserialize;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a new volume has in `/www/index.html`.
const WELCOME: &[u8] = include_bytes!("../../../systems/welcome/index.html");
/// Leases that the driver grants one holder are bounded (16,384, `HolderLimits`); nodes on their way in need some too.
const CACHE_ENTRIES: usize = 15_000;
/// Written data that may wait in memory.
const STAGED_BYTES: u64 = 8 << 20;
/// Memory of our own that the driver writes from: what waits, what is on its way, and a checkpoint.
const REGION_BYTES: usize = 28 << 20;

/// How long calls that are under way are waited for at the end. Whoever ends this component waits for 30 s, and the last checkpoint is
/// still to be written then.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The manifest's `config` of `fs-server`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bytes of the driver's region that are held as cache.
    #[serde(default = "default_cache")]
    pub cache: u64,
}

fn default_cache() -> u64 {
    MountOptions::default().cache_bytes
}

/// The component: mounts, provides `root`, serves until it is asked to stop.
///
/// # Errors
/// There is no volume on the device, or it is damaged; says what.
pub async fn serve(cx: Context) -> Result<(), component::Error> {
    let config: Config = cx.config()?;
    cx.confine(false);
    // The driver answers while what the last run left is read.
    let connecting = runtime::spawn({
        let cx = cx.clone();
        async move { cx.connect::<block::Client>("disk").await }
    });
    runtime::yield_now().await;
    let survived = cx.survive(journal::RING_BYTES).await?;
    let client = connecting.await.expect("nobody cancels it")?;
    // Before anything is read: what only the last run's cache held is memory that the mount may need.
    survival::hold_leases(&cx, &client, &survived.leases).await?;
    steps::reach("restart/held");
    let region = Region::create("fs", cx.new_region_id(), REGION_BYTES)?;
    cx.publish_region(&region).await?;
    let info = client.info(client.root()).await.map_err(|error| format!("the block driver: {error:?}"))?;
    let pool = Pool::new(region, crate::device::BLOCK_SIZE);
    let device = LeasedDevice::new(&cx, client.clone(), pool, info.blocks);
    let environment = Rc::new(RuntimeEnvironment::new());
    let options = MountOptions {
        cache_bytes: config.cache,
        cache_entries: CACHE_ENTRIES,
        staged_bytes: STAGED_BYTES,
        ..MountOptions::default()
    };
    let mounted = Volume::mount_to_read(device.clone(), environment.clone(), options).await;
    let volume = match mounted {
        Err(Error::NotAVolume(_)) if info.blank => make(device, environment, options).await,
        Err(Error::Unfinished) => make(device, environment, options).await,
        mounted => mounted,
    }
    .map_err(|error| format!("the volume of {}: {error}", "disk"))?;
    steps::reach("restart/mounted");
    if volume.damaged_copies() > 0 {
        tracing::warn!("{} structures of the volume have only one good copy left", volume.damaged_copies());
    }

    let effects = Effects::new(cx.lender().borrow().id().get(), survived.records.ok_or("no memory for effects")?);
    let (replay, lacking) = Replay::new(&volume, &effects, survived.effects);
    let nodes = survival::nodes(&survived.sessions);
    let server = Server::new(volume.clone(), cx.clone(), effects.clone(), replay.clone());
    let (roots, names) = (volume.clone(), replay.clone());
    let root = async move |session: &SessionInfo| {
        names.names().await;
        root_of(&roots, session).await
    };
    cx.provide("root", Rc::new(fs::Dispatcher(server)), root)?;
    cx.ready();
    replay.run(nodes, lacking, &volume, &effects).await?;
    steps::reach("restart/repeated");
    cx.stopped().await;
    // Guests call on: what is answered while the last checkpoint is written would be in no checkpoint.
    let finished = runtime::timeout(LAST_CALLS, cx.finish_calls()).await;
    volume.sync().await.map_err(|error| format!("the last checkpoint: {error}"))?;
    finished.map_err(|_| "calls were under way for too long: what they answered last is in no checkpoint".into())
}

/// Makes a volume with the welcome page.
async fn make(
    device: LeasedDevice,
    environment: Rc<RuntimeEnvironment>,
    options: MountOptions,
) -> Result<Volume<LeasedDevice>, Error> {
    let volume = Volume::format(device, environment, &FormatOptions::default(), options).await?;
    let www = volume.mkdir(volume.root(), b"www").await?;
    let index = volume.create(www.id, b"index.html").await?;
    volume.write(index.id, 0, WELCOME).await?;
    volume.sync().await?;
    Ok(volume)
}

/// The directory that a session cannot leave.
async fn root_of(volume: &Volume<LeasedDevice>, session: &SessionInfo) -> Result<Grant, String> {
    let path = session.attenuation.get("path").and_then(|path| path.as_str()).unwrap_or("/");
    let path = path.trim_matches('/');
    let root = match path {
        "" => volume.root(),
        _ => volume.lookup(volume.root(), path.as_bytes()).await.map_err(|error| format!("/{path}: {error}"))?.id,
    };
    volume.hold(root);
    Ok(NewCap::new(root, Rights::all()).to_grant())
}

impl kernel_ipc::interface::Object for NodeId {
    type Kind = fs::Node;

    fn to_words(&self) -> [u64; 2] {
        [self.inode, self.generation]
    }

    fn from_words([inode, generation]: [u64; 2]) -> Self {
        Self { inode, generation }
    }
}

/// The runtime as the core's environment.
#[derive(Debug)]
struct RuntimeEnvironment {
    last_ns: Cell<u64>,
    /// The time at which something was done that is done again.
    stopped: Cell<Option<u64>>,
    started: Instant,
}

impl RuntimeEnvironment {
    fn new() -> Self {
        Self { last_ns: Cell::default(), stopped: Cell::default(), started: Instant::now() }
    }
}

impl Environment for RuntimeEnvironment {
    fn reach(&self, step: &'static str) {
        steps::reach(step);
    }

    fn now_ns(&self) -> u64 {
        if let Some(at) = self.stopped.get() {
            return at;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        // Times are versions, too: no two are the same, and none goes back while this runs.
        self.last_ns.set(now.max(self.last_ns.get() + 1));
        self.last_ns.get()
    }

    fn elapsed_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn stop_clock(&self, at_ns: Option<u64>) {
        self.stopped.set(at_ns);
        self.last_ns.set(self.last_ns.get().max(at_ns.unwrap_or(0)));
    }

    fn random(&self) -> u64 {
        random_words().expect("every Linux has random bytes")[0]
    }

    fn spawn(&self, task: Task) {
        // Dropping the handle detaches the task.
        drop(runtime::spawn(task));
    }

    fn sleep(&self, time: Duration) -> Task {
        if time.is_zero() { Box::pin(runtime::yield_now()) } else { Box::pin(runtime::sleep(time)) }
    }
}
