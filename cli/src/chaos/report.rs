//! What was done to the system and what its users felt, for people and for programs.

use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::session::Resumed;
use protocol::control::ComponentStatus;
use serde_json::{Value, json};

use super::probes::{Call, stall};
use super::work::Tally;
use super::{Done, Kind};
use crate::output::{Align, Colour, Table, duration, paint};

/// What is reported about.
pub struct Facts {
    pub seed: u64,
    pub seconds: Duration,
    /// The components that were disturbed.
    pub victims: Vec<String>,
    pub done: Vec<Done>,
    /// Of each user.
    pub calls: Vec<Vec<Call>>,
    pub tally: Rc<Tally>,
    pub resumed: Resumed,
    /// Requests to the web server that had no whole answer.
    pub broken: u64,
    pub before: Vec<ComponentStatus>,
    pub after: Vec<ComponentStatus>,
    /// How often the supervisor was started again.
    pub supervisors: u32,
}

/// Disturbances of one kind of one component.
struct Row {
    kind: Kind,
    component: usize,
    /// What whoever waited longest waited, for each of them, shortest first.
    stalls: Vec<Duration>,
}

/// See [`Facts`].
pub struct Report {
    facts: Facts,
    rows: Vec<Row>,
    missed: usize,
}

impl Report {
    pub fn new(facts: Facts) -> Report {
        let mut done: Vec<(Instant, Kind, usize)> = facts
            .done
            .iter()
            .filter_map(|one| Some((one.at?, one.disturbance.kind, one.disturbance.component)))
            .collect();
        done.sort_by_key(|(at, ..)| *at);
        let mut rows: Vec<Row> = Vec::new();
        for (index, &(at, kind, component)) in done.iter().enumerate() {
            // A stall ends with the next disturbance at the latest: from then on it is that one's.
            let until = done.get(index + 1).map_or(at + Duration::from_secs(60), |(next, ..)| *next);
            let felt = facts.calls.iter().map(|calls| stall(calls, at, until)).max().unwrap_or_default();
            match rows.iter_mut().find(|row| row.kind == kind && row.component == component) {
                Some(row) => row.stalls.push(felt),
                None => rows.push(Row { kind, component, stalls: vec![felt] }),
            }
        }
        rows.iter_mut().for_each(|row| row.stalls.sort());
        rows.sort_by_key(|row| (row.kind, row.component));
        let missed = facts.done.len() - done.len();
        Report { facts, rows, missed }
    }

    /// Whether no call failed and nothing was wrong.
    pub fn is_right(&self) -> bool {
        self.facts.tally.failed.get() == 0 && self.facts.tally.wrong.borrow().is_empty()
    }

    /// How often each component was started again meanwhile.
    fn restarts(&self) -> Vec<(&str, u32)> {
        let of = |all: &[ComponentStatus], name: &str| all.iter().find(|one| one.name == name).map(|one| one.restarts);
        let names = self.facts.after.iter().map(|one| one.name.as_str());
        names
            .map(|name| {
                let before = of(&self.facts.before, name).unwrap_or_default();
                (name, of(&self.facts.after, name).unwrap_or_default().saturating_sub(before))
            })
            .chain([(super::SUPERVISOR, self.facts.supervisors)])
            .collect()
    }

    pub fn json(&self) -> Value {
        let facts = &self.facts;
        let rows = self.rows.iter().map(|row| {
            json!({
                "kind": row.kind.name(),
                "component": facts.victims[row.component],
                "count": row.stalls.len(),
                "stall_p50_ns": nanoseconds(percentile(&row.stalls, 50)),
                "stall_p99_ns": nanoseconds(percentile(&row.stalls, 99)),
                "stall_max_ns": nanoseconds(percentile(&row.stalls, 100)),
            })
        });
        json!({
            "seed": facts.seed,
            "seconds": facts.seconds.as_secs_f64(),
            "disturbances": rows.collect::<Vec<_>>(),
            "missed": self.missed,
            "restarts": self.restarts().into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect::<serde_json::Map<_, _>>(),
            "calls": facts.tally.answered.get(),
            "failed": facts.tally.failed.get(),
            "failures": *facts.tally.failures.borrow(),
            "wrong": *facts.tally.wrong.borrow(),
            "repeated": facts.resumed.repeated,
            "from_ledger": facts.resumed.from_ledger,
            "requests": facts.calls.last().map_or(0, Vec::len),
            "broken_connections": facts.broken,
        })
    }

    pub fn text(&self, colours: bool) -> String {
        use Align::{Left, Right};
        let facts = &self.facts;
        let columns =
            [("done", Left), ("to", Left), ("times", Right), ("stall p50", Right), ("p99", Right), ("max", Right)];
        let mut table = Table::new(&columns);
        for row in &self.rows {
            let mut cells =
                vec![row.kind.name().into(), facts.victims[row.component].clone(), row.stalls.len().to_string()];
            cells.extend([50, 99, 100].map(|percent| duration(nanoseconds(percentile(&row.stalls, percent)))));
            table.row(cells);
        }
        let mut text = table.render(colours);
        let restarts: Vec<String> = self.restarts().iter().map(|(name, count)| format!("{name} {count}")).collect();
        text.push_str(&format!("\nrestarts     {}\n", restarts.join(", ")));
        let (answered, failed) = (facts.tally.answered.get(), facts.tally.failed.get());
        let Resumed { repeated, from_ledger, .. } = facts.resumed;
        text.push_str(&format!(
            "calls        {answered} answered, {failed} failed; {repeated} repeated, {from_ledger} answered from a ledger\n"
        ));
        let requests = facts.calls.last().map_or(0, Vec::len);
        text.push_str(&format!("web server   {requests} requests, {} broken\n", facts.broken));
        let wrong = facts.tally.wrong.borrow();
        let verdict = match (wrong.len(), failed) {
            (0, 0) => paint("every effect once, every byte right", Colour::Green, colours),
            (0, _) => paint("every effect once, every byte right; calls failed", Colour::Yellow, colours),
            (count, _) => paint(&format!("{count} wrong"), Colour::Red, colours),
        };
        text.push_str(&format!("effects      {verdict}\n"));
        for line in wrong.iter().chain(&*facts.tally.failures.borrow()) {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str(&format!("seed {}, {:.1} s", facts.seed, facts.seconds.as_secs_f64()));
        text.push_str(&match self.missed {
            0 => "\n".to_owned(),
            missed => format!("; {missed} disturbances found nobody alive\n"),
        });
        text
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Of a row in order; that of none is nothing.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let row: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let of = |percent| percentile(&row, percent).as_millis();
        assert_eq!((of(50), of(99), of(100)), (100, 198, 200));
        assert_eq!((percentile(&[], 99), percentile(&row[..1], 50)), (Duration::ZERO, Duration::from_millis(1)));
    }
}
