//! Traces in the format of Chrome's tracing, which Perfetto and others read: slices of components, and arrows between them.
//!
//! * A component is a process of it. Its slices lie in lanes, the threads: in each, a slice is beside the one before, or in it.
//! * A call is two slices: at its client from submitting it to seeing the answer, and at its host from reading it to the end of
//!   its handler; an arrow leads from one to the other.

use serde_json::{Value, json};

use super::Hop;
use super::show::end;
use super::tape::Written;

/// All traces. What has not ended lasts until `until_ns`.
pub fn json(traces: &[Hop], tapes: &[Written], until_ns: u64) -> Value {
    let mut drawing = Drawing { components: Vec::new(), slices: Vec::new(), arrows: Vec::new(), until_ns };
    for tape in tapes {
        drawing.component(&tape.component);
    }
    traces.iter().for_each(|hop| drawing.hop(hop));
    let lost: serde_json::Map<String, Value> =
        tapes.iter().filter(|tape| tape.lost > 0).map(|tape| (tape.component.clone(), tape.lost.into())).collect();
    json!({
        "traceEvents": drawing.events(),
        "displayTimeUnit": "ns",
        "otherData": {"lost": lost, "traces": traces.len()},
    })
}

struct Drawing {
    /// Processes: number n is entry n - 1.
    components: Vec<String>,
    slices: Vec<Slice>,
    /// From one slice to another, by index, and when it arrives.
    arrows: Vec<(usize, usize, u64)>,
    until_ns: u64,
}

struct Slice {
    process: usize,
    name: String,
    kind: &'static str,
    begin_ns: u64,
    end_ns: u64,
    details: Value,
}

impl Drawing {
    fn component(&mut self, name: &str) -> usize {
        let known = self.components.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.components.push(name.to_owned());
            self.components.len() - 1
        })
    }

    fn slice(
        &mut self,
        of: &str,
        name: String,
        kind: &'static str,
        times: (u64, Option<u64>),
        details: Value,
    ) -> usize {
        let process = self.component(of);
        let end_ns = times.1.unwrap_or(self.until_ns).max(times.0);
        self.slices.push(Slice { process, name, kind, begin_ns: times.0, end_ns, details });
        self.slices.len() - 1
    }

    fn hop(&mut self, hop: &Hop) {
        let trace = format!("{:016x}", hop.trace);
        let calls = hop.started_ns.map(|started| {
            let (kind, name) = match &hop.callee {
                Some(callee) => ("call", format!("{} {}", callee.endpoint, hop.name)),
                None => ("work", hop.name.clone()),
            };
            let details = json!({"trace": trace, "end": end(hop)});
            self.slice(&hop.client, name, kind, (started, hop.ended.as_ref().map(|(at, _)| *at)), details)
        });
        for served in &hop.served {
            let component = hop.callee.as_ref().map_or("", |callee| &callee.component);
            let end_ns = served.ended.as_ref().map(|(at, _)| *at);
            let details = json!({
                "trace": trace,
                "client": hop.client,
                "run": served.epoch,
                "wait_ns": served.began_ns.map(|began| began - served.seen_ns),
                "handler_ns": served.began_ns.zip(end_ns).map(|(began, end)| end.saturating_sub(began)),
                "end": match &served.ended {
                    Some((_, words)) => words,
                    None if served.died => "died",
                    None => "under way",
                },
            });
            // The end of a run that died is not known: nothing of its is drawn behind the next run's beginning.
            let next = hop.served.iter().map(|other| other.seen_ns).find(|seen| *seen > served.seen_ns);
            let times = (served.seen_ns, end_ns.or(next.filter(|_| served.died)));
            let slice = self.slice(component, hop.name.clone(), "served", times, details);
            if let Some(calls) = calls {
                self.arrows.push((calls, slice, served.seen_ns));
            }
        }
        hop.below.iter().for_each(|next| self.hop(next));
    }

    fn events(&self) -> Vec<Value> {
        let lanes = self.lanes();
        let mut events: Vec<Value> = (1..)
            .zip(&self.components)
            .map(|(pid, name)| json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}))
            .collect();
        for (slice, lane) in self.slices.iter().zip(&lanes) {
            events.push(json!({
                "ph": "X",
                "name": slice.name,
                "cat": slice.kind,
                "pid": slice.process + 1,
                "tid": lane + 1,
                "ts": microseconds(slice.begin_ns),
                "dur": microseconds(slice.end_ns - slice.begin_ns),
                "args": slice.details,
            }));
        }
        for (id, (from, to, at_ns)) in (1..).zip(&self.arrows) {
            let (begin, end) = (&self.slices[*from], &self.slices[*to]);
            let at = |phase: &str, slice: &Slice, lane: usize, ts: u64| {
                let (pid, tid) = (slice.process + 1, lane + 1);
                json!({"ph": phase, "name": "call", "cat": "call", "id": id, "pid": pid, "tid": tid, "ts": microseconds(ts)})
            };
            events.push(at("s", begin, lanes[*from], begin.begin_ns));
            let mut arrives = at("f", end, lanes[*to], *at_ns);
            arrives["bp"] = "e".into();
            events.push(arrives);
        }
        events
    }

    /// For each slice a lane of its process in which it is inside or beside every other one.
    fn lanes(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.slices.len()).collect();
        // One that is inside another one comes behind it.
        order.sort_by_key(|at| (self.slices[*at].begin_ns, std::cmp::Reverse(self.slices[*at].end_ns)));
        // By process, by lane: the ends of the slices that are open, the innermost last.
        let mut open: Vec<Vec<Vec<u64>>> = vec![Vec::new(); self.components.len()];
        let mut lanes = vec![0; self.slices.len()];
        for at in order {
            let slice = &self.slices[at];
            let of_process = &mut open[slice.process];
            for ends in of_process.iter_mut() {
                while ends.last().is_some_and(|end| *end <= slice.begin_ns) {
                    ends.pop();
                }
            }
            let fits = |ends: &Vec<u64>| ends.last().is_none_or(|end| *end >= slice.end_ns);
            let lane = of_process.iter().position(fits).unwrap_or_else(|| {
                of_process.push(Vec::new());
                of_process.len() - 1
            });
            of_process[lane].push(slice.end_ns);
            lanes[at] = lane;
        }
        lanes
    }
}

/// The format's unit.
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
