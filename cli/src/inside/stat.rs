//! `atoll stat`: what was asked of whom, how it ended, and how long it took.

use std::time::Duration;

use kernel_ipc::logbook::{Row, SAMPLED, SHORT_NS, Snapshot};
use serde_json::{Value, json};

use super::{Book, books};
use crate::args::{Common, Stat};
use crate::node::visit;
use crate::output::{self, Align, Failed, Table, duration, stdout_colours, time};

/// Between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);

/// `atoll stat [COMPONENT] [--sessions] [--watch]`.
pub fn stat(common: &Common, what: &Stat) -> Result<(), Failed> {
    visit(common, async |context| {
        let books = books(&context, what.component.as_deref()).await?;
        let mut before = look(&books);
        if !what.watch {
            return show(common, what, &before, None);
        }
        loop {
            kernel_ipc::runtime::sleep(INTERVAL).await;
            let now = look(&books);
            show(common, what, &now, Some(&before))?;
            before = now;
        }
    })
}

/// One component, as its logbook says.
struct Seen {
    component: String,
    snapshot: Snapshot,
}

fn look(books: &[Book]) -> Vec<Seen> {
    let seen = |book: &Book| Some(Seen { component: book.component.name.clone(), snapshot: book.read()? });
    books.iter().filter_map(seen).collect()
}

/// Prints what there is; with `before`, what has happened since then.
fn show(common: &Common, what: &Stat, now: &[Seen], before: Option<&[Seen]>) -> Result<(), Failed> {
    let rows: Vec<(&Seen, Vec<Row>)> = now
        .iter()
        .map(|seen| {
            let mut rows = seen.snapshot.rows.clone();
            if let Some(last) = before.and_then(|before| before.iter().find(|last| last.component == seen.component)) {
                rows = rows.iter().map(|row| since(row, &last.snapshot.rows)).filter(has_happened).collect();
            }
            (seen, if what.sessions { rows } else { by_client(rows) })
        })
        .collect();
    if common.json {
        let components: Vec<Value> = rows.iter().map(|(seen, rows)| facts(seen, rows)).collect();
        let of_short_calls = json!({"below_ns": SHORT_NS, "one_in": SAMPLED});
        return output::json(&json!({"components": components, "measured": of_short_calls}));
    }
    let mut text = String::new();
    if before.is_some() && stdout_colours() {
        // Home, and clear what is below.
        text.push_str("\x1b[H\x1b[J");
    }
    text.push_str(&table(&rows, what.sessions).render(stdout_colours()));
    text.push('\n');
    if before.is_some() {
        text.push_str(&format!("in the last {}", duration(INTERVAL.as_nanos() as u64)));
    } else {
        let oldest = now.iter().map(|seen| seen.snapshot.since_ns).min();
        text.push_str(&oldest.map_or("nothing was started yet".into(), |oldest| format!("since {}", time(oldest))));
    }
    text.push_str(&format!("; of calls that take less than {} one in {SAMPLED} is measured\n", duration(SHORT_NS)));
    for seen in now.iter().filter(|seen| before.is_none() && seen.snapshot.epoch > 1) {
        let Snapshot { epoch, run_since_ns, .. } = seen.snapshot;
        text.push_str(&format!("{}: all {epoch} runs, the last since {}\n", seen.component, time(run_since_ns)));
    }
    output::write(text.as_bytes())
}

/// What has happened on a row since `before`.
fn since(row: &Row, before: &[Row]) -> Row {
    let same = |other: &&Row| (other.index, other.session, other.operation) == (row.index, row.session, row.operation);
    let Some(last) = before.iter().find(same) else { return row.clone() };
    let mut row = row.clone();
    let less = |now: &mut u64, last: u64| *now = now.saturating_sub(last);
    let in_progress = row.in_progress();
    less(&mut row.done, last.done);
    less(&mut row.operation_errors, last.operation_errors);
    less(&mut row.failed, last.failed);
    less(&mut row.refused, last.refused);
    less(&mut row.lost, last.lost);
    // Those that began before and are under way are shown too.
    row.received = row.done + row.operation_errors + row.failed + row.lost + in_progress;
    row.buckets.iter_mut().zip(last.buckets).for_each(|(now, last)| less(now, last));
    row.longest_ns = row.quantile(1000);
    row
}

fn has_happened(row: &Row) -> bool {
    row.received + row.refused > 0
}

/// The sessions of each client together.
fn by_client(rows: Vec<Row>) -> Vec<Row> {
    let mut sums: Vec<Row> = Vec::new();
    for row in rows {
        let same = |sum: &&mut Row| {
            (sum.index == 0) == (row.index == 0)
                && (&sum.endpoint, &sum.client, sum.operation) == (&row.endpoint, &row.client, row.operation)
        };
        match sums.iter_mut().find(same) {
            Some(sum) => sum.add(&row),
            None => sums.push(Row { session: 0, ..row }),
        }
    }
    sums.sort_by(|a, b| {
        (a.index == 0, &a.endpoint, &a.client, a.operation).cmp(&(b.index == 0, &b.endpoint, &b.client, b.operation))
    });
    sums
}

fn table(all: &[(&Seen, Vec<Row>)], sessions: bool) -> Table {
    use Align::{Left, Right};
    let mut columns = vec![("endpoint", Left), ("client", Left), ("operation", Left)];
    if sessions {
        columns.insert(2, ("session", Right));
    }
    columns
        .extend(["calls", "now", "errors", "failed", "refused", "lost", "p50", "p99", "max"].map(|name| (name, Right)));
    let mut table = Table::new(&columns);
    for (seen, rows) in all {
        for row in rows {
            let mut cells = match row.index {
                0 => vec![seen.component.clone(), "others".into(), String::new()],
                _ => vec![format!("{}.{}", seen.component, row.endpoint), row.client.clone(), row.name.clone()],
            };
            if sessions {
                let session = match row {
                    Row { session: 0, .. } => "ended".into(),
                    Row { open: false, session, .. } => format!("{session} ended"),
                    Row { session, .. } => session.to_string(),
                };
                cells.insert(2, session);
            }
            let counts = [row.in_progress(), row.operation_errors, row.failed, row.refused, row.lost];
            cells.push((row.received + row.refused).to_string());
            cells.extend(counts.map(|count| if count == 0 { "-".into() } else { count.to_string() }));
            let times = [row.quantile(500), row.quantile(990), row.longest_ns];
            cells.extend(times.map(|ns| if ns == 0 { "-".into() } else { duration(ns) }));
            table.row(cells);
        }
    }
    table
}

fn facts(seen: &Seen, rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "endpoint": row.endpoint,
            "client": row.client,
            "session": (row.session != 0).then_some(row.session),
            "open": row.open,
            "operation": row.name,
            "others": row.index == 0,
            "calls": row.received + row.refused,
            "in_progress": row.in_progress(),
            "operation_errors": row.operation_errors,
            "failed": row.failed,
            "refused": row.refused,
            "lost": row.lost,
            "p50_ns": row.quantile(500),
            "p99_ns": row.quantile(990),
            "max_ns": row.longest_ns,
        })
    };
    json!({
        "name": seen.component,
        "since_ns": seen.snapshot.since_ns,
        "epoch": seen.snapshot.epoch,
        "run_since_ns": seen.snapshot.run_since_ns,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
