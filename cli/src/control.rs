//! What an operator asks the supervisor: `ps`, `logs`, `down`. What is done to one component is in `hold`.

use kernel_ipc::component::Context;
use kernel_ipc::{CallError, Cause};
use protocol::control::{
    self, ComponentStatus, DownError, LogsError, PsError, SignalError, State, SupervisorError, SupervisorStatus,
};
use serde_json::{Value, json};
use supervisor::ended::Ended;

use crate::args::Common;
use crate::node::{LOCK, connect, visit};
use crate::output::{self, Align, Colour, Failed, NOTHING_RUNNING, Table, paint, size};
use crate::why::{Words, why};

/// `atoll ps [--io]`.
pub fn ps(common: &Common, io: bool) -> Result<(), Failed> {
    let (components, supervisor) = visit(common, async |context| {
        let components = components(&context).await?;
        Ok((components, supervisor(&context).await?))
    })?;
    if common.json {
        let components = components.iter().map(|one| facts(one, io)).collect::<Vec<_>>();
        return output::json(&json!({
            "components": components,
            "supervisor": {"pid": supervisor.pid, "restarts": supervisor.restarts},
        }));
    }
    output::write(table(&components, io, Some(supervisor)).as_bytes())
}

/// How often the supervisor is asked again if it is replaced before it answers.
const REPLACED: u32 = 100;

/// Asks the supervisor; the next one, if it dies before it answers. What is asked must bear being done twice.
pub async fn ask<T, E>(call: impl AsyncFn() -> Result<T, CallError<E>>) -> Result<T, CallError<E>> {
    for _ in 0..REPLACED {
        match call().await {
            Err(CallError::Failed { cause: Cause::PeerDied | Cause::StaleEpoch, .. }) => {}
            answer => return answer,
        }
    }
    call().await
}

/// The supervisor that answers now.
pub async fn supervisor(context: &Context) -> Result<SupervisorStatus, Failed> {
    let control: control::Client = connect(context, "control").await?;
    ask(async || control.supervisor(control.root()).await).await.map_err(|error| why(&"the supervisor", &error))
}

/// `atoll supervisor restart`: returns when another one has taken over.
pub fn replace_supervisor(common: &Common) -> Result<(), Failed> {
    let (before, after) = visit(common, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        let before = supervisor(&context).await?;
        match control.replace_supervisor(control.root()).await {
            // Whoever was to answer may have gone already.
            Ok(_) | Err(CallError::Failed { cause: Cause::PeerDied | Cause::StaleEpoch, .. }) => {}
            Err(error) => return Err(why(&"the supervisor", &error)),
        }
        loop {
            let after = supervisor(&context).await?;
            if after.restarts != before.restarts {
                return Ok((before, after));
            }
            // The one that was asked gives its answers time to arrive.
            kernel_ipc::runtime::sleep(std::time::Duration::from_millis(2)).await;
        }
    })?;
    if common.json {
        return output::json(&json!({"pid": after.pid, "restarts": after.restarts, "before": before.pid}));
    }
    output::line(&format!("supervisor {} has taken over from {}", after.pid, before.pid))
}

/// All components of the node.
pub async fn components(context: &Context) -> Result<Vec<ComponentStatus>, Failed> {
    let control: control::Client = connect(context, "control").await?;
    let mut all = Vec::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let page = ask(async || control.ps(control.root(), at).await).await;
        let page = page.map_err(|error| why(&"the list of components", &error))?;
        all.extend(page.components);
        cursor = page.next;
    }
    Ok(all)
}

/// One component as `--json` shows it.
pub fn facts(component: &ComponentStatus, io: bool) -> Value {
    let mut facts = json!({
        "name": component.name,
        "pid": if component.pid == 0 { Value::Null } else { json!(component.pid) },
        "state": word(component.state),
        "epoch": component.epoch,
        "restarts": component.restarts,
        "place": component.place,
    });
    if !component.listen.is_empty() {
        facts["listen"] = json!(component.listen);
    }
    if !component.trouble.is_empty() {
        facts["trouble"] = json!(component.trouble);
    }
    if io {
        facts["leased"] = json!(component.leased_bytes);
        facts["verified"] = json!(component.verified_bytes);
        facts["copied"] = json!(component.copied_bytes);
    }
    facts
}

/// The components for people.
pub fn table(components: &[ComponentStatus], io: bool, supervisor: Option<SupervisorStatus>) -> String {
    use Align::{Left, Right};
    let mut columns = vec![("name", Left), ("state", Left), ("pid", Right), ("epoch", Right), ("restarts", Right)];
    columns.push(("place", Left));
    if io {
        columns.extend([("leased", Right), ("verified", Right), ("copied", Right)]);
    }
    columns.push(("listen", Left));
    let mut table = Table::new(&columns);
    for one in components {
        let pid = if one.pid == 0 { "-".to_string() } else { one.pid.to_string() };
        let mut row =
            vec![one.name.clone(), word(one.state).into(), pid, one.epoch.to_string(), one.restarts.to_string()];
        row.push(one.place.clone());
        if io {
            row.extend([one.leased_bytes, one.verified_bytes, one.copied_bytes].map(size));
        }
        row.push(one.listen.clone());
        table.row(row);
    }
    if let Some(SupervisorStatus { pid, restarts }) = supervisor {
        let mut row = vec!["supervisor".into(), word(State::Ready).into(), pid.to_string(), "-".into()];
        row.extend([restarts.to_string(), "process".into()]);
        row.resize(columns.len(), String::new());
        table.row(row);
    }
    let mut text = table.render(output::stdout_colours());
    for one in components.iter().filter(|one| !one.trouble.is_empty()) {
        let name = paint(&one.name, Colour::Yellow, output::stdout_colours());
        text.push_str(&format!("{name}: {}\n", one.trouble.trim_end()));
    }
    text
}

/// A state, as `atoll ps` shows it.
pub fn word(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Stopping => "stopping",
        State::Ended => "ended",
        State::Restarting => "restarting",
        State::Quarantined => "quarantined",
        State::Stopped => "stopped",
        State::Hung => "hung",
        State::Blocked => "blocked",
        State::Down => "down",
        State::Frozen => "frozen",
    }
}

/// `atoll logs [COMPONENT]`: from the supervisor, or after the system's end from what it has left.
pub fn logs(common: &Common, component: Option<&str>) -> Result<(), Failed> {
    match live_logs(common, component) {
        Err(failed) if failed.code == NOTHING_RUNNING => left_logs(common, component).unwrap_or(Err(failed)),
        done => done,
    }
}

/// The log files of a system that runs no more. `None`: there never was one here.
fn left_logs(common: &Common, component: Option<&str>) -> Option<Result<(), Failed>> {
    let logs = common.state.join("logs");
    let path = match component {
        None => common.state.join("system.log"),
        Some(name) => logs.join(format!("{name}.log")),
    };
    if !logs.is_dir() {
        return None;
    }
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && component.is_none() => Vec::new(),
        Err(error) => return Some(Err(Failed::new(format!("{}: {error}", path.display())))),
    };
    Some(match common.json {
        true => {
            let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_string).collect();
            output::json(&json!({"lines": lines}))
        }
        false => output::write(&text),
    })
}

fn live_logs(common: &Common, component: Option<&str>) -> Result<(), Failed> {
    visit(common, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        let name = component.unwrap_or_default();
        let mut lines = Vec::new();
        let mut cursor = 0;
        loop {
            let page = ask(async || control.logs(control.root(), name, cursor, LOG_PAGE).await)
                .await
                .map_err(|error| why(&if name.is_empty() { "the logs" } else { name }, &error))?;
            if common.json {
                lines.extend(String::from_utf8_lossy(&page.text).lines().map(str::to_string));
            } else {
                output::write(&page.text)?;
            }
            // A page that gives nothing and does not end would be asked for ever.
            if page.end || page.next == cursor {
                break;
            }
            cursor = page.next;
        }
        if common.json { output::json(&json!({"lines": lines})) } else { Ok(()) }
    })
}

/// Bytes of log asked for at a time; the reply must fit a window.
const LOG_PAGE: u32 = 3072;

/// `atoll down`: returns when the node has ended.
pub fn down(common: &Common) -> Result<(), Failed> {
    visit(common, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        match ask(async || control.down(control.root()).await).await {
            Ok(()) | Err(CallError::Operation(DownError::Stopping)) => Ok(()),
            // It may have ended before its answer was read, or before another one was asked: the lock below says.
            Err(CallError::Failed { cause: Cause::SessionClosed | Cause::NotConnected, .. }) => Ok(()),
            Err(error) => Err(why(&"the system", &error)),
        }
    })?;
    wait_for_end(&common.state)?;
    let troubles = troubles(&common.state);
    if common.json {
        output::json(&json!({"stopped": true, "clean": troubles.is_empty(), "troubles": troubles}))?;
    }
    if !troubles.is_empty() {
        return Err(out_of_order(&common.state, &troubles));
    }
    if common.json { Ok(()) } else { output::line("stopped, the disk is clean") }
}

/// What did not go in order at the end of the node that has just ended.
pub fn troubles(state: &std::path::Path) -> Vec<String> {
    match Ended::read(state) {
        Some(ended) => ended.troubles,
        None => vec!["the keeper died before everything had ended".into()],
    }
}

/// The node has ended, but not as it should.
pub fn out_of_order(state: &std::path::Path, troubles: &[String]) -> Failed {
    let log = state.join("logs/supervisor.log");
    Failed::new(format!("stopped, but not in order\n  {}", troubles.join("\n  ")))
        .help(format!("what was synced is on the disk; {} may say more", log.display()))
}

/// Waits until the node lets go of its state directory, which is the last thing it does.
fn wait_for_end(state: &std::path::Path) -> Result<(), Failed> {
    match std::fs::File::open(state.join(LOCK)).and_then(|lock| lock.lock()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failed::new(format!("cannot see whether the system on {} has ended: {error}", state.display())))
        }
        _ => Ok(()),
    }
}

impl Words for PsError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::BadCursor => ("it changed while it was read".into(), Some("try again")),
        }
    }
}

impl Words for LogsError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::BadCursor => ("the log was cut while it was read".into(), Some("try again")),
            Self::NoSuchComponent => ("no such component".into(), Some("`atoll ps` lists the components")),
            Self::Io => ("the log cannot be read".into(), None),
        }
    }
}

impl Words for SignalError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSuchComponent => ("no such component".into(), Some("`atoll ps` lists the components")),
            Self::NotRunning => ("it does not run at this moment".into(), None),
        }
    }
}

impl Words for SupervisorError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::Stopping => ("the system is going down".into(), None),
        }
    }
}

impl Words for DownError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::Stopping => ("it is going down already".into(), None),
        }
    }
}
