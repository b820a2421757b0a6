//! Spans of several components put together: each call with what its host says of it, below the one that it was made for.
//!
//! * A call is known by session, slot and seq. The word of its client and that of its host belong together if each names the
//!   other: so a component that writes what is not so can spoil what is shown of its own calls, and nobody else's.
//! * Within a component a span is below an earlier one; between two components the host saw a call after its client submitted
//!   it. What is not so is not put together.

use std::collections::{HashMap, HashSet};

use kernel_ipc::described::Interface;
use kernel_ipc::trace::{Kind, Outcome, Span};

use super::super::{named, operation};
use super::tape::Written;

/// Calls below each other that are followed: more is nonsense.
const DEEPEST: usize = 64;

/// A call or a work, and what was called for it.
#[derive(Debug)]
pub struct Hop {
    pub trace: u64,
    /// Who calls, or works.
    pub client: String,
    /// Whom: none for a work.
    pub callee: Option<Callee>,
    /// The operation, or what the work is.
    pub name: String,
    /// A call that is meant to wait.
    pub standing: bool,
    /// When it was submitted, or begun; none: a guest's, who tells nobody.
    pub started_ns: Option<u64>,
    /// When its answer was seen, or it was done, and in which words it ended.
    pub ended: Option<(u64, String)>,
    /// The run of its client that died over it.
    pub died: Option<u64>,
    /// What its host says, once for each run that had it.
    pub served: Vec<Served>,
    pub below: Vec<Hop>,
}

/// Whom a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callee {
    pub component: String,
    /// As `component.endpoint`.
    pub endpoint: String,
}

/// A run that served a call.
#[derive(Debug)]
pub struct Served {
    pub epoch: u64,
    pub seen_ns: u64,
    /// When its handler began; none: it was refused before.
    pub began_ns: Option<u64>,
    pub ended: Option<(u64, String)>,
    /// The run died over it.
    pub died: bool,
}

impl Hop {
    /// When it begins, as far as it is known.
    pub fn first_ns(&self) -> u64 {
        let seen = self.served.iter().map(|served| served.seen_ns).min();
        self.started_ns.or(seen).unwrap_or_default()
    }

    /// When it ends, as far as it is known.
    pub fn last_ns(&self) -> Option<u64> {
        let served = self.served.last().filter(|_| self.started_ns.is_none());
        self.ended.as_ref().or(served.and_then(|served| served.ended.as_ref())).map(|(at, _)| *at)
    }

    /// How long it took.
    pub fn took_ns(&self) -> Option<u64> {
        self.last_ns().map(|last| last.saturating_sub(self.first_ns()))
    }

    /// Whether a component has a part in it.
    pub fn involves(&self, component: &str) -> bool {
        let is_callee = self.callee.as_ref().is_some_and(|callee| callee.component == component);
        self.client == component || is_callee || self.below.iter().any(|hop| hop.involves(component))
    }
}

/// Which call, as both its ends say: client, host, session, slot and seq.
type Key<'a> = (&'a str, &'a str, (u64, u16, u64));

/// All traces, in the order in which they began.
pub fn assemble(tapes: &[Written]) -> Vec<Hop> {
    let mut all = All { tapes, below: HashMap::new(), served: HashMap::new(), drawn: HashSet::new() };
    let mut calls: HashSet<Key<'_>> = HashSet::new();
    for (tape, span) in all.spans() {
        match span.kind {
            Kind::Served => all.served.entry((&span.peer, &tape.component, span.call)).or_default().push((tape, span)),
            Kind::Call => drop(calls.insert((&tape.component, host_of(span), span.call))),
            Kind::Work => {}
        }
        if let Some(parent) = span.parent {
            all.below.entry((&tape.component, parent)).or_default().push((tape, span));
        }
    }
    let mut traces = Vec::new();
    for (tape, span) in all.spans() {
        let is_root = match span.kind {
            Kind::Served => !calls.contains(&(span.peer.as_str(), tape.component.as_str(), span.call)),
            _ => span.parent.is_none_or(|parent| !tape.spans.contains_key(&parent)),
        };
        if is_root {
            traces.extend(all.hop(tape, span, 0));
        }
    }
    traces.sort_by_key(Hop::first_ns);
    traces
}

/// The component that a call is made to.
fn host_of(span: &Span) -> &str {
    span.endpoint.split('.').next().unwrap_or_default()
}

struct All<'a> {
    tapes: &'a [Written],
    /// By component and the id of the span above.
    below: HashMap<(&'a str, u64), Vec<(&'a Written, &'a Span)>>,
    served: HashMap<Key<'a>, Vec<(&'a Written, &'a Span)>>,
    /// What is in a tree already: nothing is in two, and none is below itself.
    drawn: HashSet<(&'a str, u64)>,
}

impl<'a> All<'a> {
    fn spans(&self) -> impl Iterator<Item = (&'a Written, &'a Span)> + use<'a> {
        self.tapes.iter().flat_map(|tape| tape.spans.values().map(move |span| (tape, span)))
    }

    fn hop(&mut self, tape: &'a Written, span: &'a Span, depth: usize) -> Option<Hop> {
        if depth > DEEPEST || !self.drawn.insert((&tape.component, span.id)) {
            return None;
        }
        let died = (span.ended.is_none() && span.epoch < tape.epoch).then_some(span.epoch);
        let (trace, started_ns) = (span.trace, span.started_ns);
        let mut hop = match span.kind {
            Kind::Work => {
                let ended = span.ended.map(|(at, outcome)| (at, words(outcome, None)));
                let (client, name) = (tape.component.clone(), span.text.clone());
                let (callee, standing, served, below) = (None, false, Vec::new(), self.below(tape, span, depth));
                Hop { trace, client, callee, name, standing, started_ns, ended, died, served, below }
            }
            Kind::Call => {
                let (name, standing) = operation(&span.peer, span.operation);
                let ended = span.ended.map(|(at, outcome)| (at, words(outcome, error(&name, span, outcome))));
                let callee = Callee { component: host_of(span).to_owned(), endpoint: span.endpoint.clone() };
                let client = tape.component.clone();
                let (callee, served, below) = (Some(callee), Vec::new(), Vec::new());
                let mut hop = Hop { trace, client, callee, name, standing, started_ns, ended, died, served, below };
                let key = (tape.component.as_str(), host_of(span), span.call);
                let theirs: Vec<_> = self.served.get(&key).into_iter().flatten().copied().collect();
                for (host, served) in theirs.into_iter().filter(|(_, served)| Some(served.seen_ns) >= started_ns) {
                    if self.drawn.insert((&host.component, served.id)) {
                        // An interface that this program does not know.
                        hop.name.clone_from(&served.text);
                        self.serve(&mut hop, host, served, depth);
                    }
                }
                hop
            }
            Kind::Served => {
                let endpoint = format!("{}.{}", tape.component, span.endpoint);
                let callee = Some(Callee { component: tape.component.clone(), endpoint });
                let (client, name) = (span.peer.clone(), span.text.clone());
                let standing = named(&span.text, span.operation).is_some_and(|(_, known)| known.deadline.is_none());
                let (started_ns, ended, died, served, below) = (None, None, None, Vec::new(), Vec::new());
                let mut hop = Hop { trace, client, callee, name, standing, started_ns, ended, died, served, below };
                self.serve(&mut hop, tape, span, depth);
                hop
            }
        };
        hop.served.sort_by_key(|served| served.seen_ns);
        hop.below.sort_by_key(Hop::first_ns);
        Some(hop)
    }

    /// Adds what a host says of a call, and what it called for it.
    fn serve(&mut self, hop: &mut Hop, host: &'a Written, span: &'a Span, depth: usize) {
        hop.served.push(Served {
            epoch: span.epoch,
            seen_ns: span.seen_ns,
            began_ns: span.started_ns,
            ended: span.ended.map(|(at, outcome)| (at, words(outcome, error(&span.text, span, outcome)))),
            died: span.ended.is_none() && span.epoch < host.epoch,
        });
        hop.below.extend(self.below(host, span, depth));
    }

    fn below(&mut self, tape: &'a Written, span: &'a Span, depth: usize) -> Vec<Hop> {
        let below = self.below.remove(&(tape.component.as_str(), span.id)).unwrap_or_default();
        below.into_iter().filter_map(|(tape, span)| self.hop(tape, span, depth + 1)).collect()
    }
}

/// The name of an operation's error.
fn error(name: &str, span: &Span, outcome: Outcome) -> Option<String> {
    let Outcome::OperationError(number) = outcome else { return None };
    let (description, operation) = named(name, span.operation)?;
    let described = Interface::of(description);
    let set = &described.operations.iter().find(|known| known.number == operation.number)?.error;
    Some(described.errors.get(set)?.iter().find(|variant| variant.number == number)?.name.clone())
}

fn words(outcome: Outcome, error: Option<String>) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::OperationError(number) => error.unwrap_or_else(|| format!("error {number}")),
        Outcome::Failed(failure) => format!("failed: {:?}", failure.cause),
        Outcome::GivenUp => "given up".into(),
    }
}
