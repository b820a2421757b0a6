//! `atoll stuck`: who waits for whom, since when, and the cycle if there is one.
//!
//! * A wait is a call that is outstanding: its client's logbook has it, or, for a guest, who writes none, its host's.
//! * What waits by design (a call without a deadline) and what has only begun to wait is left out, unless it is asked for.

use std::time::Duration;

use kernel_ipc::logbook::{Outstanding, Place, Row, Snapshot, Use, monotonic};
use protocol::control::State;
use serde_json::{Value, json};

use super::{Book, books, named, operation};
use crate::args::{Common, Stuck};
use crate::control::word;
use crate::node::visit;
use crate::output::{self, Align, Failed, Table, duration, stdout_colours};

/// Between two looks: a handler that has the thread at both has it all the time.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// `atoll stuck [--older MS] [--standing]`.
pub fn stuck(common: &Common, what: &Stuck) -> Result<(), Failed> {
    let seen = visit(common, async |context| {
        let books = books(&context, None).await?;
        let first: Vec<_> = books.iter().map(|book| book.read().and_then(|read| read.running)).collect();
        kernel_ipc::runtime::sleep(LOOK_AGAIN).await;
        Ok(books.iter().zip(first).filter_map(|(book, before)| look(book, before)).collect::<Vec<Component>>())
    })?;
    let now = monotonic();
    let older = Duration::from_millis(what.older).as_nanos() as u64;
    let mut waits = waits(&seen, now);
    waits.retain(|wait| wait.for_ns >= older && (what.standing || !wait.standing));
    let cycle = cycle(&waits);
    if common.json {
        return output::json(&json!({
            "waits": waits.iter().map(facts).collect::<Vec<_>>(),
            "components": seen.iter().filter_map(|one| one.trouble().map(|what| (one.name.clone(), Value::from(what))))
                .collect::<serde_json::Map<_, _>>(),
            "cycle": cycle,
        }));
    }
    output::write(show(&seen, &waits, cycle.as_deref()).as_bytes())
}

/// A component at this moment.
struct Component {
    name: String,
    state: State,
    snapshot: Snapshot,
    /// The call whose handler has the thread, and had it at the look before.
    runs: Option<Place>,
}

impl Component {
    /// Why it answers nobody, if it does not.
    fn trouble(&self) -> Option<String> {
        let within = self
            .runs
            .and_then(|place| self.snapshot.row(place))
            .map(|row| format!("in its handler of {} for {}", row.name, row.client));
        match (self.state, within) {
            (State::Ready, None) => None,
            (State::Ready, Some(within)) => Some(format!("runs {within}")),
            (state, within) => Some(format!("{} {}", word(state), within.unwrap_or_default()).trim_end().to_owned()),
        }
    }
}

fn look(book: &Book, before: Option<Place>) -> Option<Component> {
    let snapshot = book.read()?;
    let runs = snapshot.running.filter(|now| before == Some(*now));
    Some(Component { name: book.component.name.clone(), state: book.component.state, snapshot, runs })
}

/// Where a call stands that is being served and waits.
const HANDLER_WAITS: &str = "its handler waits";

/// Which call: a session and a slot.
type Call = (u64, u16);

/// Somebody waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    client: String,
    /// The component that is to answer.
    host: String,
    /// As `component.endpoint`.
    endpoint: String,
    operation: String,
    call: Call,
    for_ns: u64,
    /// The call that the client serves by it.
    serves: Option<Call>,
    /// Where it stands at the host.
    there: &'static str,
    /// It is meant to wait.
    standing: bool,
}

fn waits(seen: &[Component], now: u64) -> Vec<Wait> {
    let mut waits = Vec::new();
    for client in seen {
        for using in &client.snapshot.uses {
            waits.extend(using.outstanding.iter().map(|call| of_component(seen, client, using, call, now)));
        }
    }
    for host in seen {
        for (place, since) in &host.snapshot.waits {
            let Some(row) = host.snapshot.row(*place) else { continue };
            let call = (row.session, place.slot);
            if !waits.iter().any(|wait| wait.call == call) {
                waits.push(of_guest(host, row, call, now.saturating_sub(*since)));
            }
        }
    }
    waits.sort_by(|a, b| b.for_ns.cmp(&a.for_ns).then_with(|| a.call.cmp(&b.call)));
    waits
}

fn of_component(seen: &[Component], client: &Component, using: &Use, outstanding: &Outstanding, now: u64) -> Wait {
    let name = using.endpoint.split('.').next().unwrap_or_default();
    let host = seen.iter().find(|host| host.name == name);
    let call = (using.session, outstanding.slot);
    let is_at = |host: &Component, place: Place| {
        place.slot == call.1 && host.snapshot.row(place).is_some_and(|row| row.session == call.0)
    };
    let there = match host {
        Some(host) if host.runs.is_some_and(|place| is_at(host, place)) => "its handler runs",
        Some(host) if host.snapshot.waits.iter().any(|(place, _)| is_at(host, *place)) => HANDLER_WAITS,
        _ => "not received",
    };
    let (operation, standing) = operation(&using.interface, outstanding.operation);
    Wait {
        client: client.name.clone(),
        host: name.to_owned(),
        endpoint: using.endpoint.clone(),
        operation,
        call,
        for_ns: now.saturating_sub(outstanding.since_ns),
        serves: outstanding.caller,
        there,
        standing,
    }
}

fn of_guest(host: &Component, row: &Row, call: Call, for_ns: u64) -> Wait {
    Wait {
        client: row.client.clone(),
        host: host.name.clone(),
        endpoint: format!("{}.{}", host.name, row.endpoint),
        operation: row.name.clone(),
        call,
        for_ns,
        serves: None,
        there: HANDLER_WAITS,
        standing: named(&row.name, row.operation).is_some_and(|(_, operation)| operation.deadline.is_none()),
    }
}

/// Components that wait for each other in a circle, the first one named again at the end.
fn cycle(waits: &[Wait]) -> Option<Vec<String>> {
    fn walk<'a>(waits: &'a [Wait], path: &mut Vec<&'a str>, done: &mut Vec<&'a str>) -> Option<usize> {
        let at = *path.last()?;
        for wait in waits.iter().filter(|wait| wait.client == at) {
            let next = wait.host.as_str();
            if let Some(begin) = path.iter().position(|known| *known == next) {
                path.push(next);
                return Some(begin);
            }
            if !done.contains(&next) {
                path.push(next);
                if let Some(begin) = walk(waits, path, done) {
                    return Some(begin);
                }
                path.pop();
            }
        }
        done.push(at);
        None
    }
    let mut done = Vec::new();
    waits.iter().find_map(|wait| {
        let mut path = vec![wait.client.as_str()];
        let begin = walk(waits, &mut path, &mut done)?;
        Some(path[begin..].iter().map(|name| (*name).to_owned()).collect())
    })
}

fn show(seen: &[Component], waits: &[Wait], cycle: Option<&[String]>) -> String {
    use Align::{Left, Right};
    let troubles: Vec<String> =
        seen.iter().filter_map(|one| Some(format!("{}: {}\n", one.name, one.trouble()?))).collect();
    if waits.is_empty() && troubles.is_empty() {
        return "nobody waits\n".into();
    }
    let mut text = String::new();
    if !waits.is_empty() {
        let mut table = Table::new(&[
            ("client", Left),
            ("waits for", Left),
            ("operation", Left),
            ("since", Right),
            ("there", Left),
        ]);
        for wait in waits {
            let cells = [&wait.client, &wait.endpoint, &wait.operation, &duration(wait.for_ns), wait.there];
            table.row(cells.map(ToString::to_string).to_vec());
        }
        text.push_str(&table.render(stdout_colours()));
        text.push('\n');
        text.push_str(&tree(seen, waits));
        text.push('\n');
    }
    text.extend(troubles);
    match cycle {
        Some(cycle) => text.push_str(&format!("cycle: {}\n", cycle.join(" waits for "))),
        None => text.push_str("no cycle\n"),
    }
    text
}

/// The calls that are made for this one. If none of them is known to be, those that its host makes in tasks of its own may be.
fn below<'a>(waits: &'a [Wait], wait: &Wait) -> Vec<&'a Wait> {
    let of_host = |serves: Option<Call>| {
        waits.iter().filter(|next| next.client == wait.host && next.serves == serves).collect::<Vec<&Wait>>()
    };
    let known = of_host(Some(wait.call));
    if known.is_empty() && wait.there == HANDLER_WAITS { of_host(None) } else { known }
}

/// Each call below the one that it is made for.
fn tree(seen: &[Component], waits: &[Wait]) -> String {
    let is_below = |wait: &Wait| waits.iter().any(|above| below(waits, above).contains(&wait));
    let mut tree = Tree { seen, waits, drawn: Vec::new(), text: String::new() };
    waits.iter().filter(|wait| !is_below(wait)).for_each(|wait| tree.draw(wait, 0));
    // In a circle each is below another one.
    waits.iter().for_each(|wait| tree.draw(wait, 0));
    tree.text
}

struct Tree<'a> {
    seen: &'a [Component],
    waits: &'a [Wait],
    drawn: Vec<(String, Call)>,
    text: String,
}

impl Tree<'_> {
    fn draw(&mut self, wait: &Wait, depth: usize) {
        let this = (wait.host.clone(), wait.call);
        if self.drawn.contains(&this) {
            return;
        }
        self.drawn.push(this);
        let Wait { client, endpoint, operation, .. } = wait;
        let indent = "  ".repeat(depth);
        self.text.push_str(&format!("{indent}{client} -> {endpoint} {operation}, {}", duration(wait.for_ns)));
        if depth > 0 && wait.serves.is_none() {
            self.text.push_str(&format!(", by a task of {client}"));
        }
        let below = below(self.waits, wait);
        let host = self.seen.iter().find(|one| one.name == wait.host);
        if let Some(trouble) = host.and_then(Component::trouble).filter(|_| below.is_empty()) {
            self.text.push_str(&format!(": {} {trouble}", wait.host));
        }
        self.text.push('\n');
        below.into_iter().for_each(|next| self.draw(next, depth + 1));
    }
}

fn facts(wait: &Wait) -> Value {
    let call = |(session, slot): Call| json!({"session": session, "slot": slot});
    json!({
        "client": wait.client,
        "host": wait.host,
        "endpoint": wait.endpoint,
        "operation": wait.operation,
        "session": wait.call.0,
        "slot": wait.call.1,
        "for_ns": wait.for_ns,
        "serves": wait.serves.map(call),
        "there": wait.there,
        "standing": wait.standing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(client: &str, host: &str, call: u64, serves: Option<u64>) -> Wait {
        Wait {
            client: client.into(),
            host: host.into(),
            endpoint: format!("{host}.x"),
            operation: "read".into(),
            call: (call, 0),
            for_ns: 1_000_000 * (10 - call),
            serves: serves.map(|session| (session, 0)),
            there: HANDLER_WAITS,
            standing: false,
        }
    }

    #[test]
    fn a_cycle_is_found_whoever_is_looked_at_first_and_a_diamond_is_none() {
        let diamond =
            [wait("a", "b", 1, None), wait("a", "c", 2, None), wait("b", "d", 3, None), wait("c", "d", 4, None)];
        assert_eq!(cycle(&diamond), None);
        let mut round = diamond.to_vec();
        round.push(wait("d", "c", 5, None));
        assert_eq!(cycle(&round), Some(vec!["d".into(), "c".into(), "d".into()]));
        round.rotate_left(3);
        assert_eq!(cycle(&round), Some(vec!["c".into(), "d".into(), "c".into()]));
        assert_eq!(cycle(&[wait("a", "a", 1, None)]), Some(vec!["a".into(), "a".into()]));
    }

    #[test]
    fn a_call_stands_below_the_one_that_it_is_made_for_also_in_a_cycle() {
        let waits = [wait("guest", "fs", 1, None), wait("fs", "disk", 2, Some(1)), wait("fs", "disk", 3, None)];
        let drawn = "guest -> fs.x read, 9.00 ms\n  fs -> disk.x read, 8.00 ms\nfs -> disk.x read, 7.00 ms\n";
        assert_eq!(tree(&[], &waits), drawn);
        // One that a task of fs makes may be for anybody who waits for fs.
        let task = [wait("guest", "fs", 1, None), wait("fs", "disk", 2, None)];
        assert_eq!(tree(&[], &task), "guest -> fs.x read, 9.00 ms\n  fs -> disk.x read, 8.00 ms, by a task of fs\n");
        let round = [wait("guest", "a", 1, None), wait("a", "b", 2, Some(1)), wait("b", "a", 3, Some(2))];
        assert_eq!(tree(&[], &round).lines().count(), 3);
        // Each is below the other one, and it ends all the same.
        let closed = [wait("a", "b", 2, Some(3)), wait("b", "a", 3, Some(2))];
        assert_eq!(tree(&[], &closed), "a -> b.x read, 8.00 ms\n  b -> a.x read, 7.00 ms\n");
    }
}
