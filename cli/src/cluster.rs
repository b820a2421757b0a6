//! `atoll node`: this state directory as a node of a cluster.

use std::fs::DirBuilder;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, SystemTime};

use kernel_ipc::component::Context;
use kernel_ipc::link::socket::keys::NodeName;
use kernel_ipc::runtime::{Options, Runtime};
use protocol::node::Member;
use serde_json::{Value, json};
use supervisor::cluster::home::{Home, HomeError};
use supervisor::cluster::join::{self, JoinError};
use supervisor::cluster::{Listening, seconds};
use supervisor::manifest::Checked;
use supervisor::timestamp;

use crate::args::{Common, Node};
use crate::node::{is_held, no_runtime};
use crate::output::{self, Align, Failed, Table};

/// Runs a verb of `atoll node`.
pub fn node(common: &Common, what: &Node) -> Result<(), Failed> {
    match what {
        Node::Init { name, listening } => init(common, name, listening.into()),
        Node::Token { duration } => token(common, *duration),
        Node::Join { address, token, name, listening } => join_cluster(common, *address, token, name, listening.into()),
        Node::Ls => list(common),
        Node::Remove { name } => remove(common, name),
    }
}

fn init(common: &Common, name: &str, listening: Listening) -> Result<(), Failed> {
    let name = named(name)?;
    at_rest(common)?;
    let home = Home::init(&common.state, &name, listening).map_err(|error| refused(&error))?;
    if common.json {
        return output::json(&json!({"node": home.name().as_str(), "listen": listening.address.to_string()}));
    }
    output::line(&format!("node {name} begins a cluster; it listens on {} when its system is up", listening.own()))
}

fn token(common: &Common, duration: Duration) -> Result<(), Failed> {
    let home = Home::open(&common.state).map_err(|error| refused(&error))?;
    let until = SystemTime::now() + duration;
    let token = home.new_token(SystemTime::now(), until).map_err(|error| refused(&error))?;
    if common.json {
        return output::json(&json!({"token": token.to_string(), "until_s": seconds(until)}));
    }
    output::line(&token.to_string())
}

fn join_cluster(
    common: &Common,
    address: SocketAddr,
    token: &str,
    name: &str,
    listening: Listening,
) -> Result<(), Failed> {
    let name = named(name)?;
    let mut typed = String::new();
    if token == "-" {
        std::io::stdin().read_to_string(&mut typed)?;
    }
    let token = if token == "-" { typed.trim() } else { token };
    at_rest(common)?;
    let runtime = Runtime::new(Options::default()).map_err(|error| no_runtime(&error))?;
    let (home, known) = runtime
        .block_on(async {
            let home = join::join(&common.state, &name, listening, address, token).await?;
            let known = join::learn(&home).await;
            Ok((home, known))
        })
        .map_err(|error| not_joined(&error))?;
    let known = known.map_err(|error| Failed::new(format!("this is node {name} now, and yet: {error}")))?;
    if common.json {
        return output::json(&json!({"node": home.name().as_str(), "nodes": facts(&known)}));
    }
    let (count, own) = (known.len(), listening.own());
    output::line(&format!("node {name} is one of {count} nodes; it listens on {own} when its system is up"))
}

fn list(common: &Common) -> Result<(), Failed> {
    let home = Home::open(&common.state).map_err(|error| refused(&error))?;
    let runtime = Runtime::new(Options::default()).map_err(|error| no_runtime(&error))?;
    let learnt = runtime.block_on(join::learn(&home));
    drop(runtime);
    tell_supervisor(common);
    let known = match &learnt {
        Ok(known) => known.clone(),
        Err(error) => {
            output::message(&format!("{error}; what was known last:"));
            home.known().map_err(|error| refused(&error))?
        }
    };
    if common.json {
        return output::json(&json!({"node": home.name().as_str(), "current": learnt.is_ok(), "nodes": facts(&known)}));
    }
    let columns = [
        ("node", Align::Left),
        ("address", Align::Left),
        ("since", Align::Left),
        ("certificate until", Align::Left),
        ("", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for member in &known {
        let mut what = Vec::new();
        what.extend(member.authority.then_some("lets others in"));
        what.extend((member.name == home.name().as_str()).then_some("this one"));
        let [since, until] = [member.since_s, member.until_s].map(day);
        table.row(vec![member.name.clone(), member.address.clone(), since, until, what.join(", ")]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

/// Asks who is a node now, if the system that is about to start is on several. Without an answer what is known last has to do.
pub fn refresh(common: &Common, system: &Checked) {
    let is_placed = system.components.iter().any(|component| component.node.is_some());
    let home = Home::find(&common.state).ok().flatten().filter(|_| is_placed);
    if let (Some(home), Ok(runtime)) = (home, Runtime::new(Options::default()))
        && let Err(error) = runtime.block_on(join::learn(&home))
    {
        output::message(&format!("{error}; it goes on with the nodes that were known last"));
    }
}

fn remove(common: &Common, name: &str) -> Result<(), Failed> {
    let name = named(name)?;
    let home = Home::open(&common.state).map_err(|error| refused(&error))?;
    let removed = home.remove(&name).map_err(|error| refused(&error))?;
    tell_supervisor(common);
    match removed {
        true if common.json => output::json(&json!({"removed": name.as_str()})),
        true => output::line(&format!("node {name} is none of the cluster's any more")),
        false => Err(Failed::new(format!("the cluster has no node {name}")).help("`atoll node ls` lists them")),
    }
}

/// Lets the system here, if it is up, see who is a node now: its supervisor looks when a guest comes, and otherwise once a minute.
fn tell_supervisor(common: &Common) {
    if let Ok(runtime) = Runtime::new(Options::default()) {
        let _ = runtime.block_on(async { Context::guest(&common.state, "atoll node").map(drop) });
    }
}

impl From<&crate::args::Listen> for Listening {
    fn from(given: &crate::args::Listen) -> Self {
        Listening { address: given.listen, bind: given.bind, ports: given.ports }
    }
}

/// A name that a node can have.
fn named(name: &str) -> Result<NodeName, Failed> {
    NodeName::new(name).ok_or_else(|| {
        let name = name.escape_debug();
        Failed::usage(format!("`{name}` is no name of a node: 1 to 63 lower-case letters, digits and hyphens"))
    })
}

/// The state directory, made if need be, on which nothing runs: a supervisor reads at its start which node it is.
fn at_rest(common: &Common) -> Result<(), Failed> {
    let state = common.state.display();
    if is_held(&common.state) {
        return Err(Failed::new(format!("a system runs on {state}")).help("end it first: `atoll down`"));
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&common.state);
    made.map_err(|error| Failed::new(format!("{state}: {}", output::reason(&error))))
}

fn refused(error: &HomeError) -> Failed {
    let failed = Failed::new(error.to_string());
    match error {
        HomeError::NoNode => {
            failed.help("`atoll node init NAME` begins a cluster, `atoll node join` makes it one of another's")
        }
        HomeError::AlreadyANode(_) => failed.help("use another state directory: --state DIR"),
        _ => failed,
    }
}

fn not_joined(error: &JoinError) -> Failed {
    match error {
        JoinError::Home(error) => refused(error),
        JoinError::Token(_) => Failed::usage(error.to_string()).help("`atoll node token` on the first node makes one"),
        JoinError::Refused(_, _, protocol::node::JoinError::UsedToken | protocol::node::JoinError::ExpiredToken) => {
            Failed::new(error.to_string()).help("`atoll node token` on the first node makes another one")
        }
        _ => Failed::new(error.to_string()),
    }
}

fn facts(members: &[Member]) -> Vec<Value> {
    let fact = |member: &Member| {
        json!({
            "name": member.name,
            "address": member.address,
            "since_s": member.since_s,
            "until_s": member.until_s,
            "authority": member.authority,
        })
    };
    members.iter().map(fact).collect()
}

/// `2026-11-27`.
fn day(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.map_or_else(|| "?".to_owned(), |time| timestamp(time).chars().take(10).collect())
}
