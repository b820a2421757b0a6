//! Going on where a dead run of this process ended.
//!
//! 1. What was kept says which sessions and connections there were; their sockets lie in the berths.
//! 2. A connection whose session does not go on is reset; one of which no client had heard waits at its listener.
//! 3. Of every other one the socket says where it stands. What its record and its socket cannot both say loses it: it is reset,
//!    and its client is told so. Sends go on at the byte that the kernel has not got; their leases are pinned anew.
//! 4. What the client has not consumed is told again: the last batch as it was, the rest in new ones.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::capability::Grant;
use kernel_ipc::interface::Granted;
use kernel_ipc::runtime;
use kernel_ipc::runtime::io::File;
use kernel_ipc::session::SessionInfo;
use protocol::net::{Reason, Released};

use super::chunk::{Bytes, Inherited};
use super::connection::{Connection, RECEIVE_BYTES, hand_over, tell_again, tell_received};
use super::farewell::farewell;
use super::kept::{KeptSession, how};
use super::listener::Listener;
use super::session::{Session, Shared};
use super::socket;
use super::stack::ConnectionNumber;
use crate::core::connection::{self as core, Chunk, RecoveredSend};
use crate::core::events::{Entry, EventQueue, MAX_INLINE_BYTES, Occurrence};
use crate::core::position::Position;
use crate::ledger::{BatchEntry, ConnectionRecord, Flags, KeptSend, Kind, Recovered, SessionRecord, reason};
use crate::sys;

/// What a dead run left, beside what is in [`Shared`].
pub(crate) struct Left {
    pub(crate) recovered: Recovered,
    /// Sockets of connections, by serial.
    pub(crate) sockets: HashMap<u64, OwnedFd>,
    /// Sessions that go on, with their capabilities.
    pub(crate) sessions: Vec<(SessionInfo, Vec<Grant>)>,
}

/// What the last batch of a session said of one connection.
#[derive(Default)]
struct InBatch {
    accepted: bool,
    resumed: bool,
    received: u64,
    finished: bool,
    sent: HashSet<u64>,
    released: HashSet<u64>,
    closed: bool,
}

/// Restores every session that goes on; gives them.
pub(crate) fn restore(shared: &Rc<Shared>, left: Left) -> Vec<(SessionInfo, Rc<Session>)> {
    let Left { recovered, mut sockets, sessions } = left;
    let mut of_session: HashMap<u64, Vec<(ConnectionRecord, Option<File>)>> = HashMap::new();
    for record in recovered.connections {
        let socket = sockets.remove(&record.serial()).map(File::from);
        if let (Some(keeping), Some(socket)) = (&shared.keeping, &socket) {
            keeping.berths.know(record.serial(), socket);
        }
        of_session.entry(record.session()).or_default().push((record, socket));
    }
    let mut records: HashMap<u64, SessionRecord> =
        recovered.sessions.into_iter().map(|record| (record.id(), record)).collect();
    let mut restored = Vec::new();
    for (info, grants) in sessions {
        // A session that never listened has no record, and no connections.
        if let Some(record) = records.remove(&info.id.get()) {
            let connections = of_session.remove(&info.id.get()).unwrap_or_default();
            restored.push((info.clone(), restore_session(shared, &info, &grants, record, connections)));
        }
    }
    for record in records.into_values() {
        record.free();
    }
    for (record, socket) in of_session.into_values().flatten() {
        forsake(shared, &restored, record, socket);
    }
    restored
}

/// The session of this connection does not go on.
fn forsake(shared: &Shared, restored: &[(SessionInfo, Rc<Session>)], record: ConnectionRecord, socket: Option<File>) {
    let own = socket.as_ref().and_then(socket::own_address);
    // Its client's next run may listen already: the connection was on its way to it when the dead run of this process died.
    let served = |own| restored.iter().find_map(|(_, session)| session.listener_at(own));
    let listener = own.and_then(|own| shared.vacant.at(own).or_else(|| served(own)));
    match (socket, &shared.keeping) {
        (Some(socket), Some(keeping)) if is_ending(&record, &socket) => {
            drop(runtime::spawn(farewell(socket, record, keeping.clone(), shared.options.limits)));
        }
        (Some(socket), Some(keeping)) => hand_over(socket, record, listener.as_deref(), keeping),
        _ => record.free(),
    }
}

/// Whether everything is sent and the connection only waits for its end.
fn is_ending(record: &ConnectionRecord, socket: &File) -> bool {
    let flags = record.flags();
    let is_lost = flags.has(Flags::RESET) || flags.has(Flags::LOST) || flags.over().is_some();
    let position = sys::socket_state(socket.as_fd()).ok().and_then(|state| state.position());
    !is_lost && position.is_some_and(|at| at.shut)
}

fn restore_session(
    shared: &Rc<Shared>,
    info: &SessionInfo,
    grants: &[Grant],
    record: SessionRecord,
    connections: Vec<(ConnectionRecord, Option<File>)>,
) -> Rc<Session> {
    let batch = record.batch().unwrap_or_else(|| {
        tracing::error!("the last events of {} make no sense", info.client_name);
        Vec::new()
    });
    let mut in_batch: HashMap<u64, InBatch> = HashMap::new();
    for entry in &batch {
        in_batch.entry(entry.connection).or_default().add(entry);
    }
    let by_number: HashMap<u64, &ConnectionRecord> =
        connections.iter().map(|(record, _)| (record.number(), record)).collect();
    let answered: Vec<Entry> = batch.iter().map(|entry| told_again(entry, by_number.get(&entry.connection))).collect();
    let events = EventQueue::recovered(shared.options.event_bytes, record.consumed(), answered);
    let listeners = record.listeners();
    let last_number = record.last_number();
    let session = Session::restored(info, shared.clone(), events, KeptSession::new(record), last_number);
    for (number, bound) in listeners {
        let known = shared.vacant.take(&info.client_name, bound);
        // One that was not held is opened again, if it can be.
        let opened = known
            .or_else(|| Listener::open(&info.client_name, bound, shared.holding.clone(), shared.keeping.clone()).ok());
        match opened {
            Some(listener) => session.serve(number, listener),
            None => tracing::error!("{} listens at {bound} no more", info.client_name),
        }
    }
    for (record, socket) in connections {
        let number = record.number();
        let held = grants.iter().filter(|grant| grant.kind == super::stack::CONNECTION_KIND);
        let its = held.filter(|grant| Granted::<ConnectionNumber>::new(grant).object == ConnectionNumber::of(number));
        let known = in_batch.remove(&number).unwrap_or_default();
        restore_connection(&session, shared, record, socket, &known, its.count());
    }
    session
}

impl InBatch {
    fn add(&mut self, entry: &BatchEntry) {
        match entry.kind {
            Kind::Accepted => self.accepted = true,
            Kind::Resumed => self.resumed = true,
            Kind::Received => self.received = self.received.max(entry.end),
            Kind::Finished => self.finished = true,
            Kind::Sent => drop(self.sent.insert(entry.send)),
            Kind::Released => drop(self.released.insert(entry.send)),
            Kind::Closed => self.closed = true,
        }
    }
}

/// An event of the last batch, as it was told.
fn told_again(entry: &BatchEntry, record: Option<&&ConnectionRecord>) -> Entry {
    let occurrence = match (entry.kind, record) {
        (Kind::Accepted, Some(record)) => Occurrence::Accepted { peer: record.peer() },
        (Kind::Received, Some(record)) => {
            let length = entry.length.min(MAX_INLINE_BYTES as u64);
            Occurrence::Received(record.bytes(entry.end.saturating_sub(length), entry.end))
        }
        (Kind::Resumed, Some(record)) => {
            let head = record.resumed().map(|(_, _, head)| head).unwrap_or_default();
            Occurrence::Resumed { request: entry.send, sent: entry.number, head }
        }
        (Kind::Sent, _) => Occurrence::Sent { send: entry.send, bytes: entry.number },
        (Kind::Released, _) => Occurrence::Released { send: entry.send, how: how(entry.number) },
        (Kind::Closed, _) => Occurrence::Closed(reason(entry.number)),
        // A record is freed only when its batch is consumed, so these are never asked for again.
        (Kind::Finished | Kind::Accepted | Kind::Resumed | Kind::Received, _) => Occurrence::Finished,
    };
    Entry { connection: entry.connection, occurrence }
}

fn restore_connection(
    session: &Rc<Session>,
    shared: &Rc<Shared>,
    record: ConnectionRecord,
    socket: Option<File>,
    known: &InBatch,
    grants: usize,
) {
    let (number, flags) = (record.number(), record.flags());
    let told = record.consumed().max(known.received);
    if let Some(kept) = session.kept() {
        kept.add(record.clone(), told);
    }
    let sends: Vec<KeptSend> = record.sends().into_iter().filter(|kept| !known.released.contains(&kept.id)).collect();
    if let Some(reason) = flags.over() {
        // Its end was on its way to the client.
        if !known.closed {
            session.with_events(|events| {
                for kept in &sends {
                    events.push(Entry::new(number, Occurrence::Released { send: kept.id, how: Released::Dropped }));
                }
                events.push(Entry::new(number, Occurrence::Closed(reason)));
            });
        }
        return;
    }
    let heard = flags.has(Flags::HEARD);
    let all = record.sends();
    let flag_of = |flag| all.iter().any(|kept| kept.flags.contains(flag));
    let closing = flags.has(Flags::CLOSING) || flag_of(protocol::net::SendFlags::CLOSE);
    let finished = closing || flags.has(Flags::FINISHED) || flag_of(protocol::net::SendFlags::FIN);
    let end = all.iter().map(KeptSend::end).fold(record.freed_end(), u64::max);
    let state = socket.as_ref().and_then(|socket| sys::socket_state(socket.as_fd()).ok());
    let position = state.and_then(|state| state.position());
    let possible = position.filter(|at| is_possible(&record, &all, at, end, closing));
    if position.is_some() && possible.is_none() {
        tracing::error!("connection {number} cannot go on: its record and its socket disagree");
    }
    let over = match possible {
        _ if flags.has(Flags::RESET) => Some(Reason::Closed),
        _ if flags.has(Flags::LOST) => Some(Reason::Reset),
        Some(_) => None,
        None if closing && state.is_some_and(|state| state.has_acknowledged(end)) => Some(Reason::Closed),
        None => Some(Reason::Reset),
    };
    let at = possible.unwrap_or(Position { sent: end, taken: record.received(), delivered: end, shut: true });
    let open = over.is_none() && !closing;
    if over.is_none() {
        record.set_received(at.taken);
    }
    let left = |kept: KeptSend| {
        let told = kept.told || known.sent.contains(&kept.id);
        let left = if over.is_some() && !told {
            unsent(shared, session, &kept, kept.begin)
        } else {
            unsent(shared, session, &kept, at.sent)
        };
        RecoveredSend { id: kept.id, flags: kept.flags, bytes: kept.bytes, left, told }
    };
    let recovered = core::Recovered {
        sends: sends.into_iter().map(left).collect(),
        finished,
        closing,
        over,
        shut: at.shut,
        input_ended: flags.has(Flags::INPUT_ENDED) || known.finished,
        unconsumed: usize::try_from(record.received().saturating_sub(record.consumed())).unwrap_or(0),
        sent: at.sent,
        delivered: at.delivered,
    };
    let local = socket.as_ref().and_then(|socket| socket::peer(socket).ok()).is_none_or(|(_, local)| local);
    let core = session.with_events(|events| {
        if !heard && !known.accepted {
            events.push(Entry::new(number, Occurrence::Accepted { peer: record.peer() }));
        }
        if open && known.resumed {
            // It is in the last batch, and not to be told once more.
            tell_received(number, &record, told, events);
        } else if open {
            tell_again(number, &record, told, events);
        }
        core::Connection::recovered(number, session.options().limits, local, session.now(), recovered, events)
    });
    let own = socket.as_ref().and_then(socket::own_address);
    let connection = Connection::over(session, number, core, socket, Some(record));
    if let Some(listener) = own.and_then(|own| session.listener_at(own)) {
        connection.came_in_at(&listener);
    }
    if heard {
        connection.is_heard(u32::try_from(grants).unwrap_or(u32::MAX));
        if grants == 0 && !closing {
            // The client has dropped it, and this was not written down any more.
            connection.close();
        }
    }
    connection.run();
    session.watch_time();
}

/// Whether record and socket tell the same story.
fn is_possible(record: &ConnectionRecord, sends: &[KeptSend], at: &Position, end: u64, closing: bool) -> bool {
    // What a closing connection received was thrown away, and not counted.
    let received = closing || record.can_have_received(at.taken, RECEIVE_BYTES);
    let mut next = at.sent;
    let unsent = sends.iter().filter(|kept| kept.end() > at.sent);
    let without_gap = unsent.fold(true, |so_far, kept| {
        let follows = kept.begin <= next && kept.end() >= next;
        next = kept.end();
        so_far && follows
    });
    let whole = |kept: &KeptSend| {
        kept.parts.iter().map(|part| part.length).try_fold(kept.header.len() as u64, u64::checked_add)
            == Some(kept.bytes)
    };
    received && without_gap && next == end && at.sent >= record.freed_end() && sends.iter().all(whole)
}

/// What is left of a send when the kernel has everything before `position`.
fn unsent(shared: &Shared, session: &Session, kept: &KeptSend, position: u64) -> VecDeque<Bytes> {
    let mut skip = usize::try_from(position.saturating_sub(kept.begin)).unwrap_or(usize::MAX);
    let header = Bytes::Header { bytes: Rc::new(kept.header.clone()), start: 0 };
    let pages = kept.parts.iter().map(|part| Bytes::Inherited {
        part: Rc::new(Inherited::new(*part, session.client(), shared.mapper.clone())),
        start: 0,
    });
    let mut left = VecDeque::new();
    for mut chunk in std::iter::once(header).chain(pages) {
        let step = skip.min(chunk.length());
        skip -= step;
        chunk.advance(step);
        if chunk.length() > 0 {
            left.push_back(chunk);
        }
    }
    left
}
