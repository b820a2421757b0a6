//! `atoll apply`: a running system follows a changed manifest.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use kernel_ipc::component::Context;
use kernel_ipc::runtime::sleep;
use kernel_ipc::{CallError, Cause};
use protocol::control::{self, ApplyError, Change, ChangeKind, ComponentStatus, State};
use serde_json::{Value, json};

use crate::args::{Apply, Common};
use crate::control::{ask, components, facts, table};
use crate::init;
use crate::node::{connect, visit};
use crate::output::{self, Align, Failed, Table};
use crate::why::{Words, why};

/// Between two looks at how far it has come.
const PERIOD: Duration = Duration::from_millis(10);

/// What a manifest comes to.
struct Plan {
    fingerprint: u64,
    /// What is wrong with it, for people.
    problems: String,
    changes: Vec<Change>,
}

/// Shows what would change, and changes it.
pub fn apply(common: &Common, options: &Apply) -> Result<(), Failed> {
    let manifest = init::meant(options.manifest.as_deref()).ok_or_else(|| {
        Failed::usage("no manifest is named, and there is none here").help("`atoll init` writes ./atoll.toml")
    })?;
    let whole = std::path::absolute(&manifest)?;
    let Some(path) = whole.to_str() else {
        return Err(Failed::usage(format!(
            "{}: the supervisor is told paths as text, and this is not UTF-8",
            manifest.display()
        )));
    };
    let plan = visit(common, async |context| plan(&context, path).await)?;
    if !plan.problems.is_empty() {
        match common.json {
            true => output::json(&json!({"ok": false, "problems": plan.problems}))?,
            false => output::message(plan.problems.trim_end()),
        }
        return Err(Failed::told());
    }
    if !common.json {
        show(&plan)?;
    }
    let goes_ahead = !options.dry_run && !plan.is_done();
    if goes_ahead && !(options.yes || common.json) && !is_wanted()? {
        return Err(Failed::new("nothing was changed"));
    }
    let after = match goes_ahead {
        true => Some(visit(common, async |context| carry_out(&context, path, &plan).await)?),
        false => None,
    };
    if common.json {
        let changes: Vec<Value> = plan.changes.iter().map(fact).collect();
        let after = after.as_ref().map(|all| all.iter().map(|one| facts(one, false)).collect::<Vec<_>>());
        output::json(&json!({"ok": true, "applied": after.is_some(), "changes": changes, "components": after}))?;
    } else if let Some(all) = &after {
        output::write(format!("\n{}", table(all, false, None)).as_bytes())?;
    }
    let serves = |one: &&ComponentStatus| !matches!(one.state, State::Quarantined | State::Restarting);
    match after.iter().flatten().find(|one| plan.starts(&one.name) && !serves(one)) {
        Some(one) => Err(Failed::new(format!("{} does not serve: {}", one.name, one.trouble))
            .help(format!("`atoll logs {}` says more; the manifest is the new one", one.name))),
        None => Ok(()),
    }
}

impl Plan {
    /// Whether it is what runs.
    fn is_done(&self) -> bool {
        self.changes.iter().all(|change| change.kind == ChangeKind::Unchanged)
    }

    /// Whether this component is started by it.
    fn starts(&self, component: &str) -> bool {
        let starts = |change: &&Change| matches!(change.kind, ChangeKind::Added | ChangeKind::Restarted);
        self.changes.iter().filter(starts).any(|change| change.component == component)
    }
}

/// Asks what the manifest at this path would change.
async fn plan(context: &Context, path: &str) -> Result<Plan, Failed> {
    try_plan(context, path).await?.map_err(|error| why(&path, &error))
}

async fn try_plan(context: &Context, path: &str) -> Result<Result<Plan, CallError<ApplyError>>, Failed> {
    let control: control::Client = connect(context, "control").await?;
    let mut plan = Plan { fingerprint: 0, problems: String::new(), changes: Vec::new() };
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let page = match ask(async || control.plan_apply(control.root(), path, at).await).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        (plan.fingerprint, plan.problems, cursor) = (page.fingerprint, page.problems, page.next);
        plan.changes.extend(page.changes);
    }
    Ok(Ok(plan))
}

/// Has it applied, and waits until it is, and until what is started by it serves or does not come to.
async fn carry_out(context: &Context, path: &str, wanted: &Plan) -> Result<Vec<ComponentStatus>, Failed> {
    let control: control::Client = connect(context, "control").await?;
    let mut is_asked_for = false;
    loop {
        if !is_asked_for {
            match control.apply(control.root(), path, wanted.fingerprint).await {
                // Whoever was to answer may have gone. What has become of it the next one knows.
                Ok(()) | Err(CallError::Failed { cause: Cause::PeerDied | Cause::StaleEpoch, .. }) => {
                    is_asked_for = true
                }
                Err(error) => return Err(why(&path, &error)),
            }
        }
        match try_plan(context, path).await? {
            Err(CallError::Operation(ApplyError::UnderWay)) => sleep(PERIOD).await,
            Err(error) => return Err(why(&path, &error)),
            Ok(now) if now.problems.is_empty() && now.is_done() => break,
            // It was not heard before its supervisor died.
            Ok(now) if now.fingerprint == wanted.fingerprint => is_asked_for = false,
            Ok(_) => return Err(why(&path, &CallError::Operation(ApplyError::Changed))),
        }
    }
    loop {
        let all = components(context).await?;
        let is_settled = |one: &ComponentStatus| match one.state {
            State::Waiting | State::Starting | State::Stopping => false,
            State::Restarting => !one.trouble.is_empty(),
            _ => true,
        };
        if all.iter().all(|one| !wanted.starts(&one.name) || is_settled(one)) {
            return Ok(all);
        }
        sleep(PERIOD).await;
    }
}

fn show(plan: &Plan) -> Result<(), Failed> {
    if plan.is_done() {
        return output::line("nothing changes: this is what runs");
    }
    let mut table = Table::new(&["component", "change", "why"].map(|column| (column, Align::Left)));
    for Change { component, kind, why } in &plan.changes {
        table.row(vec![component.clone(), name(*kind).into(), why.clone()]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

fn fact(change: &Change) -> Value {
    let mut fact = json!({"component": change.component, "change": name(change.kind)});
    if !change.why.is_empty() {
        fact["why"] = json!(change.why);
    }
    fact
}

fn name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Unchanged => "unchanged",
        ChangeKind::Adjusted => "goes on",
        ChangeKind::Restarted => "restarted",
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
    }
}

/// Asks a person. Whoever is none has decided.
fn is_wanted() -> Result<bool, Failed> {
    if !std::io::stdin().is_terminal() {
        return Ok(true);
    }
    output::write(b"\napply this? [y/N] ")?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

impl Words for ApplyError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::BadCursor => ("it changed while it was read".into(), Some("try again")),
            Self::Io => ("the state directory cannot be written".into(), Some("`atoll logs` says why")),
            Self::Stopping => ("the system is going down".into(), None),
            Self::UnderWay => ("another change of the system is under way".into(), Some("try again when it is done")),
            Self::NotUp => ("the system is still coming up".into(), Some("try again when it is up")),
            Self::Changed => {
                ("it is not any more what was shown, or another one was applied meanwhile".into(), Some("try again"))
            }
        }
    }
}
