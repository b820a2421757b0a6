//! What components and guests say to the supervisor.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::broker::{ChannelError, PROTOCOL, ToComponent, ToSupervisor};
use kernel_ipc::runtime::{spawn, yield_now};
use kernel_ipc::steps;

use super::Node;
use super::holdings::NotHeld;
use super::peer::{Peer, Published, Who};
use super::records::{Kind, NumbersTag};
use crate::keeper::wire::Ask;

/// Most regions of one run. The first ids would allow more; a page of them is plenty.
const MAX_REGIONS: usize = 256;

/// Most sessions that one run may have asked for and not heard of. Each holds a descriptor and a task here.
const MAX_OPENING: usize = 64;

/// Most sessions that one run may have open as a client.
pub const MAX_SESSIONS: usize = 1024;

/// Reads a peer's messages until its socket ends.
pub async fn listen(node: Rc<Node>, peer: Rc<Peer>) {
    read(&node, &peer).await;
    peer.silent.happen();
}

/// The same for one that has said its greeting to us before it was this run.
pub async fn greet_and_listen(node: Rc<Node>, peer: Rc<Peer>) {
    if let Err(fault) = greet(&node, &peer, PROTOCOL).await {
        node.end_for_fault(&peer, &fault);
    }
    listen(node, peer).await;
}

async fn read(node: &Rc<Node>, peer: &Rc<Peer>) {
    let mut provided = BTreeSet::new();
    loop {
        match peer.channel.look().await {
            // A guest that was shown out may go on talking.
            Ok(_) if peer.ended.has_happened() && peer.who == Who::Guest => return,
            Ok((message, given)) => {
                let heard = hear(node, peer, &mut provided, message, given).await;
                // If we die before this, the next supervisor finds it once more.
                peer.channel.done();
                if let Err(fault) = heard {
                    return node.end_for_fault(peer, &fault);
                }
                // Whoever says much does not keep the others from being heard.
                yield_now().await;
            }
            Err(ChannelError::Closed) => {
                // A component's death is the keeper's news; a guest is its connection.
                if peer.who == Who::Guest {
                    node.gone(peer);
                }
                return;
            }
            Err(error) => return node.end_for_fault(peer, &error.to_string()),
        }
    }
}

/// Acts on one message as far as its peer is in a state to say anything.
///
/// # Errors
/// As [`handle`].
async fn hear(
    node: &Rc<Node>,
    peer: &Rc<Peer>,
    provided: &mut BTreeSet<String>,
    message: ToSupervisor,
    given: Vec<OwnedFd>,
) -> Result<(), String> {
    let (is_dead, accounted) = (peer.ended.has_happened(), peer.accounted.get());
    match message {
        // The news of its death came before its last words.
        ToSupervisor::Failed { reason } if is_dead => {
            peer.trouble.borrow_mut().get_or_insert(reason);
        }
        // Its next run may wait for it; whoever has broken a rule by it is dead already, or will do so again.
        ToSupervisor::Hold { .. } | ToSupervisor::LetGo { .. } if is_dead || !accounted => {
            let _ = hold(node, peer, message, given);
        }
        // One that the last supervisor has left: its account comes first.
        _ if !accounted => node.hear_account(peer, message)?,
        _ if is_dead => {}
        _ => {
            peer.slow.set(false);
            handle(node, peer, provided, message, given).await?;
        }
    }
    Ok(())
}

/// Acts on one message.
///
/// # Errors
/// What is wrong with it: the peer is ended.
async fn handle(
    node: &Rc<Node>,
    peer: &Rc<Peer>,
    provided: &mut BTreeSet<String>,
    message: ToSupervisor,
    given: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut given = given.into_iter();
    let mut descriptor = || given.next().ok_or_else(|| "a descriptor is missing".to_owned());
    let greeted = peer.greeting.borrow().is_none();
    match message {
        ToSupervisor::Hello { protocol, .. } => return greet(node, peer, protocol).await,
        _ if !greeted => return Err("its first message was no greeting".into()),
        ToSupervisor::Lends { capacity } => {
            let table = descriptor()?;
            if peer.table.borrow().is_some() {
                // It says so again to another supervisor, which knows it.
                return if node.turn > 1 { Ok(()) } else { Err("it lends twice".into()) };
            }
            let tag = NumbersTag([capacity.into(), 0, 0, 0]);
            let table = node.records.hold(Kind::Table, peer.slot, peer.incarnation.get(), &tag, table);
            *peer.table.borrow_mut() = Some((table.map_err(|error| error.to_string())?, capacity));
            node.introduce();
        }
        ToSupervisor::Region { region, landed } => {
            let memory = descriptor()?;
            if peer.table.borrow().is_none() || peer.regions.borrow().len() >= MAX_REGIONS {
                return Err("a region without a lease table, or too many".into());
            }
            let is_known = peer.regions.borrow().iter().any(|known| known.id == region);
            // Or it says so again to another supervisor.
            if !(is_known && node.turn > 1) {
                if !node.owns(peer, region) {
                    return Err(format!("region {region} is not its own to publish"));
                }
                let tag = NumbersTag([peer.incarnation.get(), landed.into(), 0, 0]);
                let memory = node.records.hold(Kind::Region, peer.slot, region.get(), &tag, memory);
                let memory = Rc::new(memory.map_err(|error| error.to_string())?);
                if let Some(component) = node.component_of(peer) {
                    component.estate.published(region, &memory, peer);
                }
                peer.regions.borrow_mut().push(Published { id: region, memory, landed });
            }
            let (node, peer) = (node.clone(), peer.clone());
            spawn(async move {
                node.introduced().await;
                node.send(&peer, &ToComponent::RegionPublished { region }, &[]);
            });
        }
        ToSupervisor::Provides { endpoint, interface, survives } => {
            let Who::Component(index) = peer.who else { return Err("a guest provides nothing".into()) };
            let known = &node.components[index].entry.provides;
            if !known.iter().any(|known| known.name == endpoint && known.interface == interface) {
                return Err(format!("the manifest gives it no endpoint {endpoint} of {interface}"));
            }
            if !survives && node.components[index].estate.has_sessions_of(&endpoint) {
                node.may_begin_anew(peer)?;
            }
            if survives {
                node.components[index].estate.keeps_sessions_of(&endpoint);
                node.components[index].keep();
            }
            provided.insert(endpoint);
        }
        ToSupervisor::Keep { name, bytes } => {
            let memory = node.keep(peer, &name, bytes)?;
            node.send(peer, &ToComponent::Kept { name }, &[memory.as_fd()]);
        }
        message @ (ToSupervisor::Hold { .. } | ToSupervisor::LetGo { .. }) => {
            hold(node, peer, message, given.collect())?;
        }
        ToSupervisor::Forget => {
            let Who::Component(index) = peer.who else { return Err("a guest leaves nothing".into()) };
            node.may_begin_anew(peer)?;
            node.give_up(index);
        }
        ToSupervisor::Ready => {
            let Who::Component(index) = peer.who else { return Err("a guest is never ready".into()) };
            let known = &node.components[index].entry.provides;
            if let Some(missing) = known.iter().find(|known| !provided.contains(&known.name)) {
                return Err(format!("it is ready without providing {}", missing.name));
            }
            if peer.said_ready.replace(true) {
                return Err("it is ready twice".into());
            }
            let (node, peer) = (node.clone(), peer.clone());
            spawn(async move {
                node.introduced().await;
                peer.ready.happen();
            });
        }
        ToSupervisor::Open { request, endpoint, interface, resumes } => {
            let segment = descriptor()?;
            // All sessions of a client are resumed at once, and each of them counts already.
            let resumed = resumes.is_some_and(|session| node.is_awaited(peer, session));
            if !resumed && (peer.opening.get() >= MAX_OPENING || node.sessions_of(peer) >= MAX_SESSIONS) {
                return Err("it opens too many sessions".into());
            }
            peer.opening.set(peer.opening.get() + 1);
            let (node, peer) = (node.clone(), peer.clone());
            spawn(async move {
                node.open(peer.clone(), request, endpoint, interface, resumes, segment).await;
                peer.opening.set(peer.opening.get() - 1);
            });
        }
        ToSupervisor::Serving { session } => {
            let was_asked = peer.asked.serve.answer(&session, Ok(descriptor()?));
            if !was_asked && !node.is_known(session) {
                // Asked for by a supervisor that is dead, or that did not wait any longer: its client has not heard of it, and
                // what it inherited with it stays the client's, or its next run's.
                let client = peer.incarnation;
                node.send(peer, &ToComponent::ClientGone { session, client, died: false, survives: true }, &[]);
            }
        }
        ToSupervisor::Expects { session } => drop(peer.asked.expects.answer(&session, Ok(()))),
        ToSupervisor::Refused { session, reason } => {
            peer.asked.expects.answer(&session, Err(reason.clone()));
            peer.asked.serve.answer(&session, Err(reason));
        }
        ToSupervisor::Close { session, violation } => node.close(peer, session, violation.as_deref()),
        ToSupervisor::PinsAdopted { lender } => drop(peer.asked.adopt.answer(&lender, Ok(()))),
        ToSupervisor::PinsAttached { mapper } => drop(peer.asked.attach.answer(&mapper, Ok(()))),
        ToSupervisor::LenderMet { lender, region, error } => {
            let result = error.map_or(Ok(()), Err);
            if region.is_none() {
                // A mapper that cannot adopt its pins says so here too.
                peer.asked.adopt.answer(&lender, result.clone());
            }
            peer.asked.meet.answer(&(lender, region), result);
        }
        ToSupervisor::Report { key, value } => {
            if let Some(component) = node.component_of(peer) {
                component.report(&node.records, key, value);
            }
        }
        ToSupervisor::Look { request, component } => {
            if peer.who != Who::Guest {
                return Err("a component looks into another one's logbook".into());
            }
            let book = node.find(&component).and_then(|component| component.book.for_reading());
            node.send(peer, &ToComponent::Logbook { request }, book.as_ref().map(AsFd::as_fd).as_slice());
        }
        ToSupervisor::LookAtSession { request, after, from } => {
            if peer.who != Who::Guest {
                return Err("a component looks at sessions".into());
            }
            node.show_session(peer, request, after, from);
        }
        ToSupervisor::Trace { every, for_ms } => {
            if peer.who != Who::Guest {
                return Err("a component has others traced".into());
            }
            node.trace_all(every, for_ms);
        }
        ToSupervisor::Counters { request, counters } => drop(peer.asked.counters.answer(&request, counters)),
        ToSupervisor::Stays { calls } => drop(peer.asked.hand_over.answer(&(), calls)),
        ToSupervisor::Fits => return Err("it was not asked whether it can go on".into()),
        ToSupervisor::Pulse { request } => drop(peer.asked.pulse.answer(&request, ())),
        ToSupervisor::Rests => peer.pulse.rests(true),
        ToSupervisor::Wakes => peer.pulse.rests(false),
        ToSupervisor::Account(_) => return Err("it accounts for itself and was not asked to".into()),
        ToSupervisor::Failed { reason } => {
            *peer.trouble.borrow_mut() = Some(reason);
        }
    }
    Ok(())
}

/// Holds a descriptor for a component's later runs, or lets go of it.
///
/// # Errors
/// What is wrong with the message.
fn hold(node: &Rc<Node>, peer: &Rc<Peer>, message: ToSupervisor, given: Vec<OwnedFd>) -> Result<(), String> {
    let holdings = &node.component_of(peer).ok_or("a guest leaves nothing")?.holdings;
    match (message, given.into_iter().next()) {
        (ToSupervisor::Hold { name }, Some(descriptor)) => match holdings.hold(name, descriptor) {
            Err(NotHeld::NoPlace) => {
                eprintln!("supervisor: a session of {} ends with its run: too many are held", peer.name)
            }
            held => held?,
        },
        (ToSupervisor::LetGo { name }, _) => holdings.let_go(&name),
        _ => {}
    }
    Ok(())
}

/// Answers the first message: from now on the peer lives, for the status page too.
pub async fn greet(node: &Rc<Node>, peer: &Rc<Peer>, protocol: u32) -> Result<(), String> {
    if protocol != PROTOCOL {
        let reason = format!("it speaks protocol {protocol}, this node {PROTOCOL}");
        node.send(peer, &ToComponent::Rejected { reason: reason.clone() }, &[]);
        return Err(reason);
    }
    if peer.greeting.borrow().is_none() {
        return Err("it greets twice".into());
    }
    if matches!(peer.who, Who::Component(_)) {
        let lives = node.keeper.tell(Ask::Lives, peer.slot, peer.epoch.get()).await;
        lives.map_err(|error| format!("the keeper: {error}"))?;
    }
    steps::reach("restart/lives");
    // Only now: whoever has no greeting left may be introduced, and the greeting must come first. Gone: it died meanwhile.
    let Some((mut welcome, fence)) = peer.greeting.borrow_mut().take() else { return Ok(()) };
    let heritage = node.heritage(peer);
    welcome.ancestors = node.component_of(peer).map_or_else(Vec::new, |component| component.estate.ancestors());
    welcome.heirs = node.heirs(peer);
    match node.component_of(peer) {
        Some(component) if node.has_to_do_with_others(&component.entry) => welcome.nodes = node.known_nodes(),
        Some(_) => {}
        None => node.look_at_nodes(),
    }
    welcome.heritage = u32::try_from(heritage.len()).unwrap_or(u32::MAX);
    let book = node.component_of(peer).and_then(|component| match component.book.for_writing() {
        Ok(book) => Some(book),
        Err(error) => {
            eprintln!("supervisor: {} writes no logbook: {error}", peer.name);
            None
        }
    });
    let given = [Some(node.status.as_fd()), Some(fence.as_fd()), book.as_ref().map(AsFd::as_fd)];
    let given: Vec<_> = given.into_iter().flatten().collect();
    node.send(peer, &ToComponent::Welcome(Box::new(welcome)), &given);
    for (message, memory) in heritage {
        node.send(peer, &message, &[memory.as_fd()]);
    }
    peer.greeted();
    node.trace_too(peer);
    steps::reach("restart/greeted");
    Ok(())
}
