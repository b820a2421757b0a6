//! `atoll capabilities`: who holds what on whom, and what it was derived from.
//!
//! * The supervisor reads it in the sessions' ledgers, which their hosts write and the keeper keeps: a host is not asked, so it
//!   may hang or be dead. A session without a ledger is only counted.
//! * Each ledger is read at its own time. What a capability was derived from may be gone by then.

use std::collections::{BTreeMap, HashMap, HashSet};

use kernel_ipc::broker::SessionFacts;
use kernel_ipc::capability::State;
use kernel_ipc::component::Context;
use kernel_ipc::interface::Description;
use kernel_ipc::ledger::Capability;
use kernel_ipc::logbook::monotonic;
use kernel_ipc::{Handle, Rights, SessionId};
use serde_json::{Value, json};

use super::books;
use crate::args::{Capabilities, Common};
use crate::node::visit;
use crate::output::{self, Align, Failed, Table, duration, stdout_colours};

/// `atoll capabilities [COMPONENT]`.
pub fn capabilities(common: &Common, what: &Capabilities) -> Result<(), Failed> {
    let sessions = visit(common, async |context| {
        if what.component.is_some() {
            // One that is not there is named, as for `stat`.
            books(&context, what.component.as_deref()).await?;
        }
        sessions(&context).await
    })?;
    let services = services(sessions, what.component.as_deref());
    let now = monotonic();
    if common.json {
        return output::json(&json!({"endpoints": services.iter().map(|one| one.facts(now)).collect::<Vec<_>>()}));
    }
    let mut text = services.iter().map(|one| one.show(now)).collect::<Vec<_>>().join("\n");
    if text.is_empty() {
        text = "nobody holds anything\n".into();
    }
    output::write(text.as_bytes())
}

async fn sessions(context: &Context) -> Result<Vec<SessionFacts>, Failed> {
    let mut sessions = Vec::new();
    let mut after = SessionId(0);
    while let Some(session) = context.session_after(after).await.map_err(|error| Failed::new(error.to_string()))? {
        after = session.session;
        sessions.push(session);
    }
    Ok(sessions)
}

/// An endpoint with all its sessions: what is held on it is one forest.
struct Service {
    /// As `component.endpoint`; `?` for an endpoint that is not known any more.
    name: String,
    interface: Option<&'static Description>,
    interface_name: String,
    sessions: Vec<SessionFacts>,
    /// In the order of the forest.
    held: Vec<Held>,
}

/// A capability in the forest.
struct Held {
    session: SessionId,
    holder: String,
    depth: usize,
    /// What it came from is not there (any more).
    is_orphan: bool,
    capability: Capability,
}

/// The endpoints on which a component holds something, or others on it; all, if none is named.
fn services(sessions: Vec<SessionFacts>, of: Option<&str>) -> Vec<Service> {
    let mut by_name: BTreeMap<String, Vec<SessionFacts>> = BTreeMap::new();
    for session in sessions {
        let endpoint = if session.endpoint.is_empty() { "?" } else { &session.endpoint };
        let name = match &session.host {
            Some(host) => format!("{host}.{endpoint}"),
            None => endpoint.to_owned(),
        };
        by_name.entry(name).or_default().push(session);
    }
    let services = by_name.into_iter().map(|(name, sessions)| {
        let interface_name = sessions.first().map(|one| one.interface.clone()).unwrap_or_default();
        let known = protocol::INTERFACES.iter().find(|known| known.description.name == interface_name);
        let mut held = forest(&sessions);
        let is_host = sessions.first().is_some_and(|one| one.host.as_deref() == of);
        let wanted = |holder: &str| of.is_none_or(|of| is_host || holder == of);
        held.retain(|one| wanted(&one.holder));
        let sessions = sessions.into_iter().filter(|one| wanted(&one.client)).collect();
        Service { name, interface: known.map(|known| known.description), interface_name, sessions, held }
    });
    services.filter(|service| !service.sessions.is_empty()).collect()
}

type Name = (SessionId, Handle);

/// Each capability below the one that it was derived from.
fn forest(sessions: &[SessionFacts]) -> Vec<Held> {
    let mut all: Vec<(Name, &str, Capability)> = Vec::new();
    for session in sessions {
        let Some(Ok(holdings)) = &session.holdings else { continue };
        let named = |one: &Capability| ((session.session, one.handle), session.client.as_str(), *one);
        all.extend(holdings.capabilities.iter().map(named));
    }
    let names: HashSet<Name> = all.iter().map(|(name, ..)| *name).collect();
    let mut below: HashMap<Name, Vec<usize>> = HashMap::new();
    let mut stack: Vec<(usize, usize, bool)> = Vec::new();
    for (at, (_, _, capability)) in all.iter().enumerate() {
        match capability.standing.parent {
            Some(parent) if names.contains(&parent) => below.entry(parent).or_default().push(at),
            parent => stack.push((at, 0, parent.is_some())),
        }
    }
    stack.reverse();
    let mut forest = Vec::with_capacity(all.len());
    let mut drawn = vec![false; all.len()];
    // Those that say that they are below each other come last.
    let mut rest = 0..all.len();
    while let Some((at, depth, is_orphan)) = stack.pop().or_else(|| Some((rest.find(|at| !drawn[*at])?, 0, true))) {
        if std::mem::replace(&mut drawn[at], true) {
            continue;
        }
        let ((session, handle), holder, capability) = all[at];
        forest.push(Held { session, holder: holder.to_owned(), depth, is_orphan, capability });
        let next = below.remove(&(session, handle)).unwrap_or_default();
        stack.extend(next.into_iter().rev().map(|at| (at, depth + 1, false)));
    }
    forest
}

impl Service {
    fn kind(&self, kind: u8) -> String {
        let known = self.interface.and_then(|interface| interface.kinds.get(usize::from(kind).wrapping_sub(1)));
        known.map_or_else(|| format!("kind {kind}"), |name| (*name).to_owned())
    }

    /// The names of rights; of bits that the interface gives no name, their numbers.
    fn rights(&self, rights: Rights) -> Vec<String> {
        let known = self.interface.map_or(&[][..], |interface| interface.rights);
        let named = known.iter().filter(|(_, right)| rights.contains(*right)).map(|(name, _)| (*name).to_owned());
        let of_names = known.iter().fold(Rights::empty(), |all, (_, right)| all | *right);
        let generic =
            [("read", Rights::READ), ("write", Rights::WRITE), ("grant", Rights::GRANT), ("map", Rights::MAP)];
        let generic = generic.into_iter().filter(|(_, right)| rights.contains(*right) && !of_names.contains(*right));
        let all = generic.clone().fold(of_names, |all, (_, right)| all | right).bits();
        let bits = (0..32).filter(|bit| rights.bits() >> bit & 1 == 1 && all >> bit & 1 == 0);
        let generic = generic.map(|(name, _)| name.to_owned());
        named.chain(generic).chain(bits.map(|bit| format!("bit {bit}"))).collect()
    }

    fn show(&self, now: u64) -> String {
        use Align::{Left, Right};
        let mut text = format!("{} {}\n", self.name, self.interface_name).trim_end().to_owned() + "\n";
        if !self.held.is_empty() {
            let mut table = Table::new(&[
                ("capability", Left),
                ("object", Left),
                ("held by", Left),
                ("session", Right),
                ("handle", Right),
                ("rights", Left),
                ("badge", Right),
                ("expires", Right),
                ("limit", Right),
                ("state", Left),
            ]);
            for Held { session, holder, depth, is_orphan, capability } in &self.held {
                let Capability { handle, grant, standing } = capability;
                let or_none = |some: bool, text: String| if some { text } else { "-".to_owned() };
                let rights = match grant.rights.bits() {
                    u32::MAX => "all".to_owned(),
                    0 => "none".to_owned(),
                    _ => self.rights(grant.rights).join(","),
                };
                let mut state = vec![word(standing.state)];
                state.extend(standing.is_copy.then_some("copy"));
                state.extend(is_orphan.then_some("its origin is gone"));
                table.row(vec![
                    format!("{}{}", "  ".repeat(*depth), self.kind(grant.kind)),
                    object(grant.object),
                    holder.clone(),
                    session.get().to_string(),
                    format!("{}.{}", handle.index, handle.generation),
                    rights,
                    or_none(grant.badge != 0, grant.badge.to_string()),
                    match standing.expires {
                        0 => "-".to_owned(),
                        at if at <= now => "over".to_owned(),
                        at => duration(at - now),
                    },
                    standing.limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
                    state.join(", "),
                ]);
            }
            text.push_str(&table.render(stdout_colours()));
        }
        for session in &self.sessions {
            let SessionFacts { session: id, client, suspended, holdings, .. } = session;
            match holdings {
                None => {
                    text.push_str(&format!("session {id} of {client}: no ledger, only its host knows what it holds\n"))
                }
                Some(Err(why)) => text.push_str(&format!("session {id} of {client}: {why}\n")),
                Some(Ok(_)) if *suspended => {
                    text.push_str(&format!(
                        "session {id} of {client}: its host is dead, the next run goes on with it\n"
                    ));
                }
                Some(Ok(_)) => {}
            }
        }
        text
    }

    fn facts(&self, now: u64) -> Value {
        let session = |one: &SessionFacts| {
            let holdings = one.holdings.as_ref();
            json!({
                "session": one.session.get(),
                "client": one.client,
                "suspended": one.suspended,
                "ledger": holdings.is_some(),
                "damaged": holdings.and_then(|holdings| holdings.as_ref().err()),
                "held": holdings.and_then(|holdings| Some(holdings.as_ref().ok()?.capabilities.len())),
                "quota": holdings.and_then(|holdings| Some(holdings.as_ref().ok()?.quota)),
            })
        };
        let name = |(session, handle): Name| json!({"session": session.get(), "index": handle.index, "generation": handle.generation});
        let held = |one: &Held| {
            let Capability { handle, grant, standing } = one.capability;
            let mut facts = name((one.session, handle));
            let more = json!({
                "holder": one.holder,
                "kind": self.kind(grant.kind),
                "object": grant.object,
                "rights": self.rights(grant.rights),
                "badge": (grant.badge != 0).then_some(grant.badge),
                "expires_in_ns": (standing.expires != 0).then(|| standing.expires.saturating_sub(now)),
                "limit": standing.limit,
                "state": word(standing.state),
                "revoked": standing.state.is_revoked(),
                "copy": standing.is_copy,
                "depth": one.depth,
                "parent": standing.parent.map(name),
                "orphan": one.is_orphan,
            });
            if let (Value::Object(facts), Value::Object(more)) = (&mut facts, more) {
                facts.extend(more);
            }
            facts
        };
        json!({
            "endpoint": self.name,
            "interface": self.interface_name,
            "sessions": self.sessions.iter().map(session).collect::<Vec<_>>(),
            "capabilities": self.held.iter().map(held).collect::<Vec<_>>(),
        })
    }
}

/// In its host's own terms.
fn object([first, second]: [u64; 2]) -> String {
    format!("{first:x}:{second:x}")
}

fn word(state: State) -> &'static str {
    match state {
        State::Free => "free",
        State::Live => "live",
        State::Revoked => "revoked",
        State::Kept => "kept for others",
        State::KeptRevoked => "kept for others, revoked",
        State::Promised => "promised",
        State::PromisedRevoked => "promised, revoked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::capability::{Grant, Standing};
    use kernel_ipc::ledger::Holdings;

    fn session(id: u64, client: &str, held: &[(u32, Option<(u64, u32)>)]) -> SessionFacts {
        let handle = |index| Handle { index, generation: 1 };
        let capability = |(index, parent): &(u32, Option<(u64, u32)>)| Capability {
            handle: handle(*index),
            grant: Grant {
                object: [5, 2],
                kind: 1,
                rights: Rights::READ | Rights::from_bits_retain(1 << 30),
                badge: 0,
            },
            standing: Standing {
                parent: parent.map(|(session, index)| (SessionId(session), handle(index))),
                ..Standing::FIRST
            },
        };
        let capabilities = held.iter().map(capability).collect();
        SessionFacts {
            session: SessionId(id),
            host: Some("fs".into()),
            endpoint: "root".into(),
            interface: "atoll.fs/1".into(),
            client: client.into(),
            suspended: false,
            holdings: Some(Ok(Holdings { capabilities, quota: 8, next: None })),
        }
    }

    fn drawn(services: &[Service]) -> Vec<(u64, u32, usize, bool)> {
        let held = services.iter().flat_map(|service| &service.held);
        held.map(|one| (one.session.get(), one.capability.handle.index, one.depth, one.is_orphan)).collect()
    }

    #[test]
    fn each_stands_below_what_it_came_from_also_on_another_session() {
        let sessions = || {
            vec![
                session(1, "httpd", &[(0, None), (1, Some((1, 0))), (2, Some((1, 1))), (3, Some((1, 0)))]),
                session(2, "b", &[(0, None), (1, Some((1, 1))), (2, Some((9, 9)))]),
            ]
        };
        let all = services(sessions(), None);
        let expected = [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 1, 2), (1, 3, 1), (2, 0, 0), (2, 2, 0)];
        assert_eq!(
            drawn(&all),
            expected.map(|(session, index, depth)| (session, index, depth, (session, index) == (2, 2)))
        );
        // What one holds is shown where it stands.
        assert_eq!(drawn(&services(sessions(), Some("b"))), [(2, 1, 2, false), (2, 0, 0, false), (2, 2, 0, true)]);
        assert_eq!(drawn(&services(sessions(), Some("fs"))).len(), 7);
        assert!(services(sessions(), Some("nobody")).is_empty());
    }

    #[test]
    fn those_that_a_ledger_has_below_each_other_are_drawn_once() {
        let round = vec![session(1, "a", &[(0, None), (1, Some((1, 2))), (2, Some((1, 1))), (3, Some((1, 3)))])];
        let expected = [(1, 0, 0, false), (1, 1, 0, true), (1, 2, 1, false), (1, 3, 0, true)];
        assert_eq!(drawn(&services(round, None)), expected);
    }

    #[test]
    fn rights_have_the_names_of_their_interface_and_bits_without_one_their_number() {
        let all = services(vec![session(1, "a", &[(0, None)])], None);
        let text = all[0].show(0);
        assert!(text.contains("Node") && text.contains("read,bit 30") && text.contains("5:2"), "{text}");
    }

    #[test]
    fn an_endpoint_that_is_not_known_any_more_is_a_question() {
        let unknown =
            SessionFacts { endpoint: String::new(), interface: String::new(), ..session(1, "a", &[(0, None)]) };
        let all = services(vec![unknown], None);
        assert!(all[0].show(0).starts_with("fs.?\n"), "{}", all[0].show(0));
    }
}
