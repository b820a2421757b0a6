//! Traces for people: a tree in the first column of a table.

use super::Hop;
use super::tape::Written;
use crate::args::Trace;
use crate::output::{Align, Table, duration, stdout_colours};

/// The traces that took longest, in the order in which they began.
pub fn show(traces: &[Hop], tapes: &[Written], what: &Trace) -> String {
    let mut shown: Vec<&Hop> = traces.iter().collect();
    // What has not ended took longest of all.
    shown.sort_by_key(|hop| std::cmp::Reverse(hop.took_ns().unwrap_or(u64::MAX)));
    shown.truncate(what.limit);
    shown.sort_by_key(|hop| hop.first_ns());
    let mut text = String::new();
    if !shown.is_empty() {
        use Align::{Left, Right};
        let times = ["at", "took", "there", "wait", "handler", "back"].map(|name| (name, Right));
        let mut table = Table::new(&[&[("call", Left)][..], &times, &[("end", Left)]].concat());
        for (number, hop) in shown.iter().enumerate() {
            if number > 0 {
                table.row(Vec::new());
            }
            rows(&mut table, hop, hop.first_ns(), 0);
        }
        text.push_str(&table.render(stdout_colours()));
        text.push('\n');
    }
    text.push_str(&match (traces.len(), shown.len()) {
        (0, _) => "no traces\n".to_owned(),
        (1, 1) => "1 trace\n".to_owned(),
        (all, some) if all == some => format!("{all} traces\n"),
        (all, some) => format!("{all} traces, of which the {some} that took longest are shown\n"),
    });
    for tape in tapes.iter().filter(|tape| tape.lost > 0) {
        text.push_str(&format!("{}: {} spans were not read: trace fewer, with --every\n", tape.component, tape.lost));
    }
    text
}

fn rows(table: &mut Table, hop: &Hop, begin_ns: u64, depth: usize) {
    let indent = "  ".repeat(depth);
    let call = match &hop.callee {
        Some(callee) => format!("{indent}{} -> {} {}", hop.client, callee.endpoint, hop.name),
        None => format!("{indent}{} {}", hop.client, hop.name),
    };
    let between = |from: Option<u64>, to: Option<u64>| match (from, to) {
        (Some(from), Some(to)) => duration(to.saturating_sub(from)),
        _ => "-".to_owned(),
    };
    let served = hop.served.last();
    let (seen, began) = (served.map(|served| served.seen_ns), served.and_then(|served| served.began_ns));
    let handled = served.and_then(|served| served.ended.as_ref()).map(|(at, _)| *at);
    let replied = hop.ended.as_ref().filter(|_| hop.callee.is_some()).map(|(at, _)| *at);
    table.row(vec![
        call,
        duration(hop.first_ns().saturating_sub(begin_ns)),
        hop.took_ns().map_or_else(|| "-".to_owned(), duration),
        between(hop.started_ns, seen),
        between(seen, began),
        between(began, handled),
        between(handled.filter(|_| hop.started_ns.is_some()), replied),
        end(hop),
    ]);
    hop.below.iter().for_each(|next| rows(table, next, begin_ns, depth + 1));
}

/// How it ended, and who died over it.
pub fn end(hop: &Hop) -> String {
    let served = hop.served.last();
    let ended = match &hop.ended {
        None if hop.started_ns.is_none() => served.and_then(|served| served.ended.as_ref()),
        ended => ended.as_ref(),
    };
    let mut words = match (ended, hop.died) {
        (Some((_, words)), _) => words.clone(),
        (None, Some(epoch)) => format!("run {epoch} of {} died", hop.client),
        (None, None) if served.is_some_and(|served| served.died) => "not answered".to_owned(),
        (None, None) => "under way".to_owned(),
    };
    let host = hop.callee.as_ref().map_or("", |callee| &callee.component);
    for served in hop.served.iter().filter(|served| served.died) {
        words.push_str(&format!("; run {} of {host} died", served.epoch));
    }
    words
}
