//! `atoll move COMPONENT NODE --dry-run`: what moving a component to another node would take.

use std::time::Duration;

use kernel_ipc::component::Context;
use protocol::control::{self, Carrier, MovePlan, PlanError, StopKind};
use serde_json::{Value, json};

use crate::args::Common;
use crate::control::ask;
use crate::node::{connect, visit};
use crate::output::{self, Align, Failed, Table, duration};
use crate::upgrade::Probe;
use crate::why::{Words, why};

/// How many calls over shared memory are made: the shortest time counts.
const CALLS: u32 = 20;

/// Says what stands against it, and what becomes of the sessions with others. Fails if something does stand against it.
pub fn dry_run(common: &Common, component: &str, node: &str) -> Result<(), Failed> {
    let (plan, local) = visit(common, async |context| {
        let plan = plan(&context, component, node).await?;
        let local = match Probe::of(&context, component).await {
            Some(client) => client.shortest(CALLS).await,
            None => None,
        };
        Ok((plan, local))
    })?;
    match common.json {
        true => output::json(&facts(component, node, &plan, local))?,
        false => output::write(page(component, node, &plan, local).as_bytes())?,
    }
    if plan.stops.is_empty() { Ok(()) } else { Err(Failed::told()) }
}

async fn plan(context: &Context, component: &str, node: &str) -> Result<MovePlan, Failed> {
    let control: control::Client = connect(context, "control").await?;
    let mut whole: Option<MovePlan> = None;
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let page = ask(async || control.plan_move(control.root(), component, node, at).await).await;
        let mut page = page.map_err(|error| why(&format_args!("moving {component} to {node}"), &error))?;
        cursor = page.next;
        match &mut whole {
            None => whole = Some(page),
            Some(whole) => {
                whole.stops.append(&mut page.stops);
                whole.edges.append(&mut page.edges);
            }
        }
    }
    Ok(whole.unwrap_or_default())
}

fn facts(component: &str, node: &str, plan: &MovePlan, local: Option<Duration>) -> Value {
    let stops = plan.stops.iter().map(|stop| json!({ "kind": kind(stop.kind), "what": stop.what }));
    let edges = plan.edges.iter().map(|edge| {
        json!({
            "client": edge.client,
            "endpoint": edge.endpoint,
            "interface": edge.interface,
            "sessions": edge.sessions,
            "now": carrier(edge.now),
            "then": carrier(edge.then),
        })
    });
    json!({
        "component": component,
        "from": plan.from,
        "to": node,
        "stops": stops.collect::<Vec<_>>(),
        "edges": edges.collect::<Vec<_>>(),
        "call_to_node_us": (plan.round_trip_us > 0).then_some(plan.round_trip_us),
        "call_here_us": local.map(|local| local.as_micros() as u64),
    })
}

fn page(component: &str, node: &str, plan: &MovePlan, local: Option<Duration>) -> String {
    let mut text = match plan.stops.is_empty() {
        true => format!("nothing stands against moving {component} from node {} to {node}\n", plan.from),
        false => format!("{component} cannot be moved from node {} to {node}:\n", plan.from),
    };
    for stop in &plan.stops {
        text.push_str(&format!("  {}\n", stop.what));
    }
    let columns = [("client", Align::Left), ("uses", Align::Left), ("sessions", Align::Right)];
    let columns = [&columns[..], &[("now", Align::Left), ("then", Align::Left)]].concat();
    let mut table = Table::new(&columns);
    for edge in &plan.edges {
        let sessions = edge.sessions.to_string();
        let carriers = [edge.now, edge.then].map(|one| carrier(one).to_owned());
        table.row([vec![edge.client.clone(), edge.endpoint.clone(), sessions], carriers.to_vec()].concat());
    }
    if !plan.edges.is_empty() {
        text.push('\n');
        text.push_str(&table.render(output::stdout_colours()));
    }
    let took = |time: Duration| duration(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    if plan.round_trip_us > 0 {
        let there = took(Duration::from_micros(plan.round_trip_us));
        let here = local.map_or_else(String::new, |local| format!(", one to {component} here {}", took(local)));
        text.push_str(&format!("\na call to the supervisor of node {node} took {there}{here}: the shortest of some\n"));
    }
    text
}

fn kind(kind: StopKind) -> &'static str {
    match kind {
        StopKind::NotReady => "not-ready",
        StopKind::KeepsNothing => "keeps-nothing",
        StopKind::KernelSocket => "kernel-socket",
        StopKind::Path => "path",
        StopKind::Manifest => "manifest",
        StopKind::Unreachable => "unreachable",
    }
}

fn carrier(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::SharedMemory => "shared memory",
        Carrier::Socket => "socket",
    }
}

impl Words for PlanError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::BadCursor => ("it changed while it was read".into(), Some("try again")),
            Self::NoSuchComponent => {
                ("no such component runs on this node".into(), Some("`atoll ps` shows where it is"))
            }
            Self::Stopping => ("the system is going down".into(), None),
            Self::NoCluster => {
                ("this state directory is no node of a cluster".into(), Some("`atoll node` makes it one"))
            }
            Self::NoSuchNode => ("there is no such node".into(), Some("`atoll node ls` lists the nodes")),
            Self::SameNode => ("it runs on that node".into(), None),
        }
    }
}
