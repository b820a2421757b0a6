//! `atoll lab`: two nodes on this machine, `a` and `b`, joined as `atoll node` does it, with a network between them ([`network`])
//! that a relay can make worse ([`relay`]).
//!
//! * It runs in the foreground, as `atoll up` does. However it ends, the nodes end with it; what it made of the machine's network is
//!   removed at its end, or, if it was killed, by the next `atoll lab up` or `down` on the same state directory.
//! * The disk images stay, and the next lab goes on with them. The cluster is a new one each time.

mod network;
mod nodes;
mod relay;
mod schedule;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::control::ComponentStatus;
use serde::{Deserialize, Serialize};
use serde_json::json;
use supervisor::cluster::{Listening, Ports};
use supervisor::manifest::{Checked, Manifest, Origin};

use crate::args::{Common, Lab as Verb, LabUp};
use crate::output::{self, Colour, Failed, NOTHING_RUNNING, paint};
use crate::{check, control, node, up};
use network::{Namespaces, Network};
use nodes::{Event, Nodes};
use relay::{Gate, Relay};
use schedule::Faults;

/// What runs if no manifest is given.
const MANIFEST: &str = include_str!("../../../systems/lab.toml");
/// The nodes, in the order of their numbers.
pub const NAMES: [&str; 2] = ["a", "b"];
/// Where their supervisors are called.
const PORT: u16 = 7700;
/// Where their components are, behind a relay: it has to know.
const PORTS: Ports = Ports { first: 7701, last: 7732 };

/// Runs a verb of `atoll lab`.
pub fn lab(common: &Common, what: &Verb) -> Result<(), Failed> {
    match what {
        Verb::Up(options) => lab_up(common, options),
        Verb::Exec { node, command } => exec(common, node, command),
        Verb::Down => down(common),
    }
}

fn lab_up(common: &Common, options: &LabUp) -> Result<(), Failed> {
    if options.loss.is_some() {
        let refused =
            Failed::usage("packets cannot be lost in this version: what is between the nodes is a relay of streams");
        return Err(refused.help(
            "--delay, --rate and --cut-every are what it can do; `tc` may lose packets of the namespaces' device",
        ));
    }
    let room = Room::take(common)?;
    let manifest = match &options.manifest {
        Some(path) => path.clone(),
        None => room.write("system.toml", MANIFEST.as_bytes())?,
    };
    let checked = Manifest::load(Origin::Path(&manifest), &options.sets).map_err(|report| check::refused(&report))?;
    check_places(&checked)?;
    let events = up::wait_for_signals(Event::Signal)?;
    let namespaces = match options.loopback {
        true => Err("as was asked for".into()),
        false => Namespaces::make(),
    };
    // Dropped in the other order: first the nodes, then what is between them.
    let network = Network { namespaces };
    let faults = Faults {
        delay: Duration::from_millis(options.delay),
        rate: options.rate,
        cut_every: options.cut_every.map(Duration::from_millis),
        seed: options.seed,
    };
    let mut relay = (!faults.are_none()).then(|| Relay::new(faults));
    let listening = [0, 1].map(|node| listening(&network, relay.is_some(), node));
    let sides = [network.side(0)?, network.side(1)?];
    if let Some(relay) = &mut relay {
        for (node, side) in sides.iter().enumerate() {
            let (gate, there) = (gate(listening[node]), relay.opener());
            let open = side.run(move || there.open(node, &gate));
            relay.add(open.map_err(|error| Failed::new(format!("a relay cannot listen on {error}")))?);
        }
    }
    let mut nodes = Nodes::new(&room.directory, sides, events);
    nodes.join(listening)?;
    nodes.start(&manifest, &options.sets)?;
    if let Some(relay) = &mut relay {
        relay.be_bad();
    }
    let of_b = Common { state: room.directory.join(NAMES[1]), json: common.json };
    let components = node::visit(&of_b, async |context| control::components(&context).await)?;
    show(common, &room, &network, listening, relay.is_some().then_some(faults), &components)?;
    nodes.run()?;
    let counts = relay.as_mut().map(|relay| {
        // The nodes take leave of each other undisturbed.
        relay.be_good();
        relay.counts()
    });
    let ended = nodes.end();
    if let Some(relay::Counts { connections, cut, bytes }) = counts {
        match common.json {
            true => output::json(&json!({"relay": {"connections": connections, "cut": cut, "bytes": bytes}}))?,
            false => {
                let bytes = output::size(bytes);
                output::line(&format!(
                    "the relay has passed on {bytes} of {connections} connections, of which it cut {cut}"
                ))?;
            }
        }
    }
    ended
}

/// Runs a command on a node, in place of this program.
fn exec(common: &Common, node: &str, command: &[OsString]) -> Result<(), Failed> {
    let directory = std::path::absolute(common.state.join("lab"))?;
    let facts = Facts::of_running(common, &directory)?;
    let number = NAMES.iter().position(|name| *name == node).unwrap_or_default();
    network::enter(&facts.namespaces[number])?;
    let (program, arguments) = command.split_first().ok_or_else(|| Failed::usage("no command"))?;
    let error = Command::new(program).args(arguments).env("ATOLL_STATE", directory.join(node)).exec();
    Err(Failed::new(format!("{}: {}", program.display(), output::reason(&error))))
}

/// Stops a lab in another terminal.
fn down(common: &Common) -> Result<(), Failed> {
    let directory = common.state.join("lab");
    let facts = Facts::of_running(common, &directory)?;
    let lock = File::open(directory.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {
            facts.clear(&directory);
            return output::line("no lab runs; what one has left behind is removed");
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    // It is the one that holds the lock, so its number is nobody else's.
    kill(Pid::from_raw(facts.pid), Signal::SIGTERM).map_err(std::io::Error::from)?;
    lock.lock()?;
    output::line("stopped")
}

/// The directory of a lab, which is this process's as long as this is there.
struct Room {
    directory: PathBuf,
    _lock: File,
}

/// What has to be removed if a lab is killed.
#[derive(Serialize, Deserialize)]
struct Facts {
    pid: i32,
    namespaces: [String; 2],
}

impl Facts {
    fn read(directory: &Path) -> Option<Facts> {
        serde_json::from_slice(&fs::read(directory.join("facts")).ok()?).ok()
    }

    /// Of a lab that runs there, or has left something behind.
    fn of_running(common: &Common, directory: &Path) -> Result<Facts, Failed> {
        let nothing =
            || Failed { code: NOTHING_RUNNING, ..Failed::new(format!("no lab runs on {}", common.state.display())) };
        Facts::read(directory).ok_or_else(nothing)
    }

    /// Removes what is still there.
    fn clear(self, directory: &Path) {
        drop(Namespaces::left(self.namespaces));
        let _ = fs::remove_file(directory.join("facts"));
    }
}

impl Room {
    fn take(common: &Common) -> Result<Room, Failed> {
        let directory = std::path::absolute(common.state.join("lab"))?;
        let cannot =
            |error: std::io::Error| Failed::new(format!("{}: {}", directory.display(), output::reason(&error)));
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(cannot)?;
        let lock = File::create(directory.join("lock")).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failed::new(format!("a lab runs on {} already", common.state.display()))
                    .help("`atoll lab down` stops it; --state DIR names another place"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        if let Some(facts) = Facts::read(&directory) {
            facts.clear(&directory);
        }
        let room = Room { directory: directory.clone(), _lock: lock };
        let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let facts = serde_json::to_vec(&Facts { pid, namespaces: Namespaces::names() });
        room.write("facts", &facts.expect("it has text and numbers only"))?;
        Ok(room)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Failed> {
        let path = self.directory.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| Failed::new(format!("{}: {}", path.display(), output::reason(&error))))?;
        Ok(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.join("facts"));
    }
}

/// Every component is on one of the nodes that there are.
fn check_places(checked: &Checked) -> Result<(), Failed> {
    let elsewhere = checked.components.iter().find(|component| {
        let node = component.node.as_deref();
        node.is_none_or(|node| !NAMES.contains(&node))
    });
    match elsewhere {
        None => Ok(()),
        Some(component) => Err(Failed::new(format!("component {} is on neither node of the lab", component.name))
            .help("say place = \"node:a\" or place = \"node:b\"")),
    }
}

fn listening(network: &Network, has_relay: bool, node: usize) -> Listening {
    let address = SocketAddr::new(network.called(node), PORT);
    match has_relay {
        true => Listening { address, bind: Some(network.behind_relay(node)), ports: Some(PORTS) },
        false => address.into(),
    }
}

/// What a relay is to listen on for a node behind it.
fn gate(listening: Listening) -> Gate {
    let at = |ip: IpAddr| (PORT..=PORTS.last).map(move |port| SocketAddr::new(ip, port)).collect();
    Gate { called: at(listening.address.ip()), own: at(listening.own().ip()) }
}

/// Says what there is.
fn show(
    common: &Common,
    room: &Room,
    network: &Network,
    listening: [Listening; 2],
    faults: Option<Faults>,
    components: &[ComponentStatus],
) -> Result<(), Failed> {
    let states = NAMES.map(|name| room.directory.join(name));
    let why = network.namespaces.as_ref().err();
    if common.json {
        let node = |node: usize| {
            json!({
                "name": NAMES[node],
                "state": states[node].to_string_lossy(),
                "namespace": network.namespace(node),
                "address": listening[node].address.to_string(),
                "own": listening[node].own().to_string(),
            })
        };
        let relay = faults.map(|faults| {
            json!({
                "of": "streams",
                "delay_ms": faults.delay.as_millis() as u64,
                "rate": faults.rate,
                "cut_every_ms": faults.cut_every.map(|every| every.as_millis() as u64),
                "seed": faults.seed,
                "ports": [PORTS.first, PORTS.last],
            })
        });
        let components: Vec<_> = components.iter().map(|one| control::facts(one, false)).collect();
        return output::json(&json!({
            "network": if why.is_some() { "loopback" } else { "namespaces" },
            "why": why,
            "nodes": [node(0), node(1)],
            "relay": relay,
            "components": components,
        }));
    }
    match (why, network.namespace(0), network.namespace(1)) {
        (None, Some(a), Some(b)) => output::line(&format!("nodes a and b are in the network namespaces {a} and {b}"))?,
        (why, ..) => {
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            output::line(&format!("nodes a and b are on addresses of the loopback{why}"))?;
        }
    }
    match faults {
        None => output::line("nothing is between them")?,
        Some(faults) => output::line(&format!("between them is a relay of streams: {}", words(&faults)))?,
    }
    output::line("")?;
    output::write(control::table(components, false, None).as_bytes())?;
    let colours = output::stdout_colours();
    for one in components.iter().filter(|one| !one.listen.is_empty()) {
        let url = paint(&format!("http://{}/", one.listen), Colour::Cyan, colours);
        let node = one.place.strip_prefix("node:").filter(|_| why.is_none());
        let inside = node.map_or_else(String::new, |node| format!(" in its network: atoll lab exec {node} curl {url}"));
        output::line(&format!("\n{} serves {url}{inside}", one.name))?;
    }
    output::line("`atoll lab exec a COMMAND…` runs a command on node a, with its network and state")?;
    output::line("Ctrl-C stops both")
}

/// What a relay does.
fn words(faults: &Faults) -> String {
    let mut words = Vec::new();
    if !faults.delay.is_zero() {
        words.push(format!("{} ms each way", faults.delay.as_millis()));
    }
    words.extend(faults.rate.map(|rate| format!("{} a second", output::size(rate))));
    words.extend(
        faults
            .cut_every
            .map(|every| format!("everything is cut every {} ms on average (seed {})", every.as_millis(), faults.seed)),
    );
    words.join(", ")
}
