//! `atoll check`: what is wrong with a manifest, or what it would start.

use std::path::Path;

use serde_json::json;
use supervisor::manifest::{Checked, Manifest, Origin};
use supervisor::report::Report;

use crate::args::Common;
use crate::output::{self, Align, Failed, Table};

/// Checks `manifest` with `sets` applied.
pub fn check(common: &Common, manifest: &Path, sets: &[String]) -> Result<(), Failed> {
    match Manifest::load(Origin::Path(manifest), sets) {
        Ok(checked) if common.json => output::json(&json!({"ok": true, "system": checked})),
        Ok(checked) => show(manifest, &checked),
        Err(report) if common.json => {
            output::json(&json!({"ok": false, "problems": report.facts()}))?;
            Err(Failed::told())
        }
        Err(report) => Err(refused(&report)),
    }
}

/// Prints what is wrong with a manifest.
pub fn refused(report: &Report) -> Failed {
    output::message(report.render(output::stderr_colours()).trim_end());
    Failed::told()
}

fn show(manifest: &Path, checked: &Checked) -> Result<(), Failed> {
    let mut table = Table::new(&[("component", Align::Left), ("runs", Align::Left), ("uses", Align::Left)]);
    for component in &checked.components {
        let uses: Vec<String> =
            component.uses.iter().map(|used| format!("{}.{}", used.component, used.endpoint)).collect();
        table.row(vec![component.name.clone(), component.run.to_string(), uses.join(", ")]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())?;
    let count = match checked.components.len() {
        1 => "1 component".to_owned(),
        count => format!("{count} components"),
    };
    output::line(&format!("{}: good, {count}", manifest.display()))
}
