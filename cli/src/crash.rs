//! `atoll crash`: what is kept of crashes.
//!
//! * List and show read the bundles in the state directory: they work when nothing runs, too.
//! * Replay makes a quarantined call once more on the running system, on purpose: to see whether a new build bears it.

use kernel_ipc::interface::Retry;
use kernel_ipc::session::Request;
use serde_json::json;
use supervisor::crash::{self, CrashBundle, CrashedCall};

use crate::args::{Common, Crash};
use crate::interface;
use crate::node::visit;
use crate::output::{self, Align, Failed, Table};
use crate::why::lost;

/// Bytes of a request that are kept; one that has as many may have been longer.
const KEPT: usize = 432;

/// Does what was asked.
pub fn crash(common: &Common, what: &Crash) -> Result<(), Failed> {
    match what {
        Crash::List => list(common),
        Crash::Show { number } => show(common, *number),
        Crash::Replay { number, call } => replay(common, *number, *call),
    }
}

fn read(common: &Common, number: u64) -> Result<CrashBundle, Failed> {
    crash::read(&common.state, number).map_err(|error| {
        let what = format!("crash {number} of {}: {}", common.state.display(), output::reason(&error));
        Failed::new(what).help("`atoll crash list` lists the crashes that are kept")
    })
}

fn list(common: &Common) -> Result<(), Failed> {
    let bundles: Vec<CrashBundle> = crash::numbers(&common.state)
        .into_iter()
        .filter_map(|number| crash::read(&common.state, number).ok())
        .collect();
    if common.json {
        return output::json(&json!({ "crashes": bundles }));
    }
    use Align::{Left, Right};
    let columns = [("crash", Right), ("when", Left), ("component", Left), ("epoch", Right), ("calls", Right)];
    let mut table = Table::new(&[&columns[..], &[("quarantined", Right), ("how", Left)]].concat());
    for bundle in &bundles {
        let quarantined = bundle.calls.iter().filter(|call| call.quarantined).count();
        table.row(vec![
            bundle.crash.to_string(),
            output::time(bundle.unix_seconds.saturating_mul(1_000_000_000)),
            bundle.component.clone(),
            bundle.epoch.to_string(),
            bundle.calls.len().to_string(),
            quarantined.to_string(),
            bundle.how.lines().next().unwrap_or_default().chars().take(60).collect(),
        ]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

fn show(common: &Common, number: u64) -> Result<(), Failed> {
    let bundle = read(common, number)?;
    if common.json {
        return output::json(&bundle);
    }
    let time = output::time(bundle.unix_seconds.saturating_mul(1_000_000_000));
    output::line(&format!("{} of epoch {}, {time}: {}", bundle.component, bundle.epoch, bundle.how))?;
    for (index, call) in bundle.calls.iter().enumerate() {
        output::line(&format!("call {}: {}", index + 1, words(call)))?;
        if let Some(request) = &call.request {
            let on =
                if request.on_root { "the session's root".into() } else { format!("object {:x?}", request.object) };
            let cut = if request.payload.len() >= KEPT { " (the first of them)" } else { "" };
            output::line(&format!("  on {on}, {} bytes{cut}: {}", request.payload.len(), hex(&request.payload)))?;
            if let Some(arguments) = interface::arguments(&call.interface, call.operation, &request.payload) {
                output::line(&format!("  asked for {} {arguments}", call.name))?;
            }
        }
    }
    for line in &bundle.last_lines {
        output::line(&format!("  | {line}"))?;
    }
    Ok(())
}

fn words(call: &CrashedCall) -> String {
    let name = if call.name.is_empty() { format!("operation {}", call.operation) } else { call.name.clone() };
    let state = if call.quarantined { ", quarantined" } else { "" };
    let plural = if call.crashes == 1 { "crash" } else { "crashes" };
    format!("{name} of {} by {}, under way at {} {plural}{state}", call.endpoint, call.client, call.crashes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn replay(common: &Common, number: u64, which: usize) -> Result<(), Failed> {
    let bundle = read(common, number)?;
    let call = bundle.calls.get(which.wrapping_sub(1)).ok_or_else(|| {
        Failed::usage(format!("crash {number} has {} calls, and no call {which}", bundle.calls.len()))
    })?;
    let request = call.request.as_ref().ok_or_else(|| {
        Failed::new(format!("what call {which} of crash {number} asked was not kept"))
            .help("a request is kept from its second crash on")
    })?;
    if request.payload.len() >= KEPT {
        return Err(Failed::new("only the first bytes of the request were kept"));
    }
    if !request.on_root {
        return Err(Failed::new("it was made on an object of its client's session, which nobody else can name"));
    }
    let answer = visit(common, async |context| {
        let failed = |error: &dyn std::fmt::Display| Failed::new(format!("{}: {error}", call.endpoint));
        let connection = context.connection(&call.endpoint, &call.interface).await.map_err(|error| failed(&error))?;
        let session = connection.session().await.map_err(|failure| failed(&failure))?;
        let request = Request {
            operation: call.operation,
            handle: session.root(),
            payload: &request.payload,
            capabilities: &[],
            leases: &[],
            deadline: Some(std::time::Duration::from_secs(30)),
            // Once, whatever comes of it.
            retry: Retry::Never,
        };
        session.call(request).await.map_err(|failure| lost(&words(call), failure.cause, failure.executed))
    })?;
    if common.json {
        return output::json(&json!({
            "answered": true,
            "operation_error": answer.operation_error,
            "payload": hex(&answer.payload),
        }));
    }
    match answer.operation_error {
        Some(error) => output::line(&format!("answered: the operation's error {error}")),
        None => output::line(&format!("answered: {} bytes {}", answer.payload.len(), hex(&answer.payload))),
    }
}
