//! What moving a component to another node would take: what stands against it, and what becomes of each edge between it and others.
//!
//! Nothing is changed by it, and nobody is asked but the other node, whether it answers.

use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::broker::{EXPORT, SESSION};
use kernel_ipc::link::socket::keys::NodeName;
use kernel_ipc::runtime::timeout;
use protocol::control::{Carrier, Edge, MovePlan, PlanError, Stop, StopKind};

use super::control::shortened;
use super::state::State;
use super::{Component, Node, Phase};
use crate::cluster::directory::Directory;
use crate::manifest::{self, Manifest, Origin, Run, Use};
use crate::policy;

/// How long the other node may take to answer, and how often it is asked for each page: the shortest time counts.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
const ASKED: u32 = 5;

/// Stops and edges in one page: a page fits into a window.
const PAGE: usize = 8;

impl Node {
    /// What moving a component to a node would take, from the `cursor`th of all that there is to say on.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub(super) async fn plan_move(
        self: &Rc<Self>,
        component: &str,
        node: &str,
        cursor: u32,
    ) -> Result<MovePlan, PlanError> {
        let component = self.find(component).ok_or(PlanError::NoSuchComponent)?;
        let directory = self.directory.as_ref().ok_or(PlanError::NoCluster)?;
        let target = NodeName::new(node).ok_or(PlanError::NoSuchNode)?;
        if *directory.home().name() == target {
            return Err(PlanError::SameNode);
        }
        match directory.node(&target) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(PlanError::NoSuchNode),
            Err(error) => {
                eprintln!("supervisor: {error}");
                return Err(PlanError::NoSuchNode);
            }
        }
        let here = directory.home().name().to_string();
        let round_trip = self.round_trip(&target).await;
        let mut stops = self.stops(component, &here, node);
        if let Err(why) = &round_trip {
            stops.push(stop(StopKind::Unreachable, why));
        }
        let edges = self.edges(&component.entry, node);
        let (first, all) = (cursor as usize, stops.len() + edges.len());
        if first > all {
            return Err(PlanError::BadCursor);
        }
        let edges: Vec<Edge> = edges.into_iter().skip(first.saturating_sub(stops.len())).collect();
        let stops: Vec<Stop> = stops.into_iter().skip(first).take(PAGE).collect();
        let edges: Vec<Edge> = edges.into_iter().take(PAGE - stops.len()).collect();
        let next = first + stops.len() + edges.len();
        Ok(MovePlan {
            from: here,
            round_trip_us: u64::try_from(round_trip.unwrap_or_default().as_micros()).unwrap_or(u64::MAX),
            stops,
            edges,
            next: (next < all).then_some(next as u32),
        })
    }

    /// How long a call to the supervisor of another node takes.
    ///
    /// # Errors
    /// Why it does not answer, for people.
    async fn round_trip(self: &Rc<Self>, target: &NodeName) -> Result<Duration, String> {
        let mut shortest = ANSWERED_WITHIN;
        for _ in 0..ASKED {
            let asked = async {
                let neighbour = self.neighbour_called(target).await?;
                let begun = Instant::now();
                // That there is no component without a name is an answer, too.
                neighbour.status("").await.map(|_| begun.elapsed()).map_err(|error| error.to_string())
            };
            let answered = timeout(ANSWERED_WITHIN, asked).await;
            shortest = shortest.min(answered.map_err(|_| format!("node {target} does not answer"))??);
        }
        Ok(shortest)
    }

    /// What stands against it.
    fn stops(&self, component: &Component, here: &str, there: &str) -> Vec<Stop> {
        let entry = &component.entry;
        let mut stops = Vec::new();
        if component.phase.get() != Phase::Ready {
            stops.push(stop(StopKind::NotReady, "it does not serve: there is nothing to be moved"));
        } else if !component.estate.survives() {
            stops.push(stop(StopKind::KeepsNothing, "its runs keep nothing for the next one"));
        }
        for name in component.holdings.names() {
            if ![EXPORT, SESSION].iter().any(|ours| name.starts_with(ours)) {
                stops.push(stop(StopKind::KernelSocket, &format!("it holds a kernel socket: {name}")));
            }
        }
        let paths = entry.run.builtin().and_then(policy::builtin).map_or(&[][..], |builtin| builtin.config);
        for field in paths.iter().filter(|field| field.kind == policy::Kind::HostPath) {
            if let Some(path) = entry.config.get(field.name).and_then(serde_json::Value::as_str) {
                stops.push(stop(StopKind::Path, &format!("its `{}` is a path on node {here}: {path}", field.name)));
            }
        }
        if let Run::Program(path) = &entry.run {
            stops.push(stop(StopKind::Path, &format!("its program is a path on node {here}: {}", path.display())));
        }
        let manifest = State::manifest(self.state.path());
        let problems = Manifest::problems_if_moved(Origin::Path(&manifest), &self.sets, &entry.name, there);
        stops.extend(problems.iter().map(|problem| stop(StopKind::Manifest, problem)));
        stops
    }

    /// What becomes of each edge.
    fn edges(&self, entry: &manifest::Component, there: &str) -> Vec<Edge> {
        let sessions = self.sessions.borrow();
        let carrier = |one: Option<&str>, other: Option<&str>| match one == other {
            true => Carrier::SharedMemory,
            false => Carrier::Socket,
        };
        let here = entry.node.as_deref();
        let edges = self.all_edges(entry).into_iter().map(|(client, used)| {
            let other = self.node_of(other(client, used, entry));
            let open = sessions.values().filter(|session| {
                let of_host = session.endpoint.as_ref().is_some_and(|(host, endpoint)| {
                    self.components[*host].entry.name == used.component && *endpoint == used.endpoint
                });
                of_host && self.peer(session.client).is_some_and(|peer| peer.name == client.name)
            });
            Edge {
                client: client.name.clone(),
                endpoint: format!("{}.{}", used.component, used.endpoint),
                interface: used.interface.clone(),
                sessions: open.count() as u32,
                now: carrier(here, other),
                then: carrier(Some(there), other),
            }
        });
        edges.collect()
    }

    /// Who uses a component, and what it uses.
    fn all_edges(&self, entry: &manifest::Component) -> Vec<(&manifest::Component, &Use)> {
        let all = self.components.iter().map(|component| &component.entry).chain(&self.elsewhere);
        let edges = all.flat_map(|client| client.uses.iter().map(move |used| (client, used)));
        edges.filter(|(client, used)| (client.name == entry.name) != (used.component == entry.name)).collect()
    }

    fn node_of(&self, name: &str) -> Option<&str> {
        let all = self.components.iter().map(|component| &component.entry).chain(&self.elsewhere);
        all.into_iter().find(|entry| entry.name == name)?.node.as_deref()
    }
}

/// The component at the other end of an edge.
fn other<'a>(client: &'a manifest::Component, used: &'a Use, entry: &manifest::Component) -> &'a str {
    if client.name == entry.name { &used.component } else { &client.name }
}

fn stop(kind: StopKind, what: &str) -> Stop {
    Stop { kind, what: shortened(what) }
}
