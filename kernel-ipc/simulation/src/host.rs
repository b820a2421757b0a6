//! The host's program: it listens, serves sessions over memory with their ledgers, makes its state durable now and then, and
//! goes on where its last run died.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::ledger::Records;
use kernel_ipc::link::socket::listen::{Admitted, Awaited, KeptSession, Listener, Options};
use kernel_ipc::runtime;
use kernel_ipc::session::{ComponentLedger, Heritage, HostSession, Ledgers, Served, SessionInfo};
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::{Epoch, Incarnation, SessionId};

use crate::service::{Counter, IN_MEMORY, KEPT, OVER_SOCKET, Truth, number, root};
use crate::trace::Trace;

/// What a run of the host is started with.
pub struct Start {
    pub seed: u64,
    pub epoch: u64,
    pub address: SocketAddr,
    pub options: Options,
    pub checkpoint_ns: u64,
    pub refuse_after: Option<Duration>,
    pub ring: OwnedFd,
    /// Sessions that were there, and their ledgers.
    pub sessions: Vec<(u64, OwnedFd)>,
    /// If sessions over connections survive: their ledgers.
    pub beyond: Option<Beyond>,
    pub truth: Rc<Truth>,
    pub next_session: Rc<Cell<u64>>,
    pub trace: Trace,
}

/// Memory that the keeper keeps, by session.
pub type Beyond = Rc<RefCell<BTreeMap<u64, OwnedFd>>>;

/// One run of the host.
pub struct Host {
    pub epoch: u64,
    counter: Rc<Counter>,
    served: Served<Counter>,
    component: ComponentLedger,
    sessions: RefCell<BTreeMap<u64, HostSession>>,
    heritage: RefCell<BTreeMap<u64, Heritage>>,
    /// Sessions that were begun by this run.
    begun: Rc<Cell<u64>>,
    /// Of those that had ended before it.
    closed_before: u64,
    refuse_after: Option<Duration>,
}

fn info(id: u64, name: &str, epoch: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(id),
        epoch: Epoch(epoch),
        client: Incarnation(id),
        client_name: name.into(),
        attenuation: serde_json::Value::Null,
    }
}

/// Fresh memory for the ledger of a session.
pub fn ledger_memory() -> OwnedFd {
    let fd = segment::memfd("ledger").expect("memory");
    segment::set_len(&fd, Ledgers::BYTES).expect("memory");
    fd
}

/// The sessions over connections that were there, as far as their clients can know of them.
fn awaited(
    beyond: &Beyond,
    epoch: u64,
    committed: &BTreeMap<(u64, u16), u64>,
    component: &ComponentLedger,
) -> Result<Vec<Awaited>, String> {
    let mut awaited = Vec::new();
    for (id, memory) in &*beyond.borrow() {
        let again = || memory.try_clone().map_err(|error| error.to_string());
        if Heritage::is_blank(again()?).map_err(|error| error.to_string())? {
            continue;
        }
        let wrong = |poisoned| format!("the ledger of session {id}, over a connection: {poisoned:?}");
        let committed = |slot| committed.get(&(*id, slot)).copied().unwrap_or(0);
        let heritage = Heritage::check(again()?, SessionId(*id), committed, None).map_err(wrong)?;
        let note = heritage.note().map_err(wrong)?;
        if note.is_empty() {
            continue;
        }
        let secret = note.try_into().map_err(|_| format!("the note of session {id} is no secret"))?;
        let (info, ended) = (info(*id, KEPT, epoch), ended(beyond, *id));
        awaited.push(Awaited { info, heritage, component: Some(component.clone()), secret, party: None, ended });
    }
    let theirs = |id: &u64, _: &mut OwnedFd| awaited.iter().any(|awaited| awaited.info.id.get() == *id);
    beyond.borrow_mut().retain(theirs);
    Ok(awaited)
}

/// A session has ended: nothing of it is kept.
fn ended(beyond: &Beyond, id: u64) -> Box<dyn FnOnce()> {
    let beyond = beyond.clone();
    Box::new(move || {
        // What is dropped while its process dies has no say.
        if !std::thread::panicking() {
            beyond.borrow_mut().remove(&id);
        }
    })
}

impl Host {
    /// Begins: in its process. `Err`: what the ledgers say is impossible.
    pub fn start(start: Start) -> Result<Rc<Host>, String> {
        let Start { seed, epoch, ring, sessions, truth, trace, .. } = start;
        let memory = SegmentWriter::open_kept(ring).map_err(|error| error.to_string())?;
        let closed_before = truth.closed.get();
        let mut list = truth.disk.borrow().0.clone();
        let mut committed: BTreeMap<(u64, u16), u64> = BTreeMap::new();
        let records = if epoch == 1 {
            Records::create(memory).map_err(|poisoned| format!("a fresh ring: {poisoned:?}"))?
        } else {
            let (records, found) = Records::recover(memory).map_err(|poisoned| format!("the ring: {poisoned:?}"))?;
            let durable = truth.disk.borrow().1;
            for record in found {
                if record.end > durable {
                    list.push(number(&record.effect));
                }
                if let Some((session, slot, seq)) = record.call {
                    let last = committed.entry((session.get(), slot)).or_default();
                    *last = seq.max(*last);
                }
            }
            records
        };
        trace.note(format_args!("starts, epoch {epoch}, with {} effects", list.len()));
        let counter = Rc::new(Counter { truth, list: list.into(), served: RefCell::default(), seed, trace });
        let served = Served::from(counter.clone());
        let mut heritage = BTreeMap::new();
        for (id, memory) in sessions {
            let committed = |slot| committed.get(&(id, slot)).copied().unwrap_or(0);
            let checked = Heritage::check(memory, SessionId(id), committed, None);
            heritage.insert(id, checked.map_err(|poisoned| format!("the ledger of session {id}: {poisoned:?}"))?);
        }
        let component: ComponentLedger = Rc::new(RefCell::new(records));
        let awaited = match &start.beyond {
            Some(beyond) => awaited(beyond, epoch, &committed, &component)?,
            None => Vec::new(),
        };
        let in_memory = heritage.iter().map(|(id, heritage)| (info(*id, IN_MEMORY, epoch), heritage));
        let beyond = awaited.iter().map(|awaited| (awaited.info.clone(), &awaited.heritage));
        served.inherit(in_memory.chain(beyond), None);
        let host = Rc::new(Host {
            epoch,
            counter,
            served: served.clone(),
            component: component.clone(),
            begun: Rc::new(Cell::new((heritage.len() + awaited.len()) as u64)),
            sessions: RefCell::default(),
            heritage: heritage.into(),
            closed_before,
            refuse_after: start.refuse_after,
        });
        let listener = Listener::bind(start.address).map_err(|error| error.to_string())?;
        let (begun, next_session) = (host.begun.clone(), start.next_session);
        let admit = move |_: &_, secret: &[u8; 32]| {
            begun.set(begun.get() + 1);
            let id = next_session.replace(next_session.get() + 1);
            let kept = start.beyond.as_ref().map(|beyond| {
                let session = ledger_memory();
                beyond.borrow_mut().insert(id, session.try_clone().expect("a descriptor"));
                let ledgers = Ledgers { session, component: Some(component.clone()) };
                KeptSession { ledgers, note: secret.to_vec(), ended: ended(beyond, id) }
            });
            let name = if kept.is_some() { KEPT } else { OVER_SOCKET };
            Some(Admitted { root: root(), info: info(id, name, epoch), kept })
        };
        runtime::spawn(listener.serve_on(served, None, start.options, awaited, admit));
        runtime::spawn(host.clone().make_durable(Duration::from_nanos(start.checkpoint_ns)));
        Ok(host)
    }

    /// Now and then what was recorded becomes durable elsewhere, and its records go.
    async fn make_durable(self: Rc<Self>, every: Duration) {
        loop {
            runtime::sleep(every).await;
            let position = self.component.borrow().position();
            *self.counter.truth.disk.borrow_mut() = (self.list(), position);
            kernel_ipc::steps::reach("simulated/durable");
            self.component.borrow_mut().trim(position);
        }
    }

    /// It has nothing more to do: all its answers stand where their clients see them.
    pub fn has_published(&self) {
        self.counter.truth.published.borrow_mut().extend(self.counter.served.take());
    }

    /// Its effects, in their order.
    pub fn list(&self) -> Vec<u64> {
        self.counter.list.borrow().clone()
    }

    /// Serves a session over memory: a new one, or one that was there. Gives its segment.
    pub fn open(&self, id: u64, client_segment: OwnedFd, ledger: OwnedFd) -> Result<OwnedFd, String> {
        let info = info(id, IN_MEMORY, self.epoch);
        let component = Some(self.component.clone());
        let heritage = self.heritage.borrow_mut().remove(&id);
        let opened = match heritage {
            Some(heritage) => HostSession::go_on(client_segment, heritage, self.served.clone(), info, None, component),
            None => {
                self.begun.set(self.begun.get() + 1);
                let ledgers = Ledgers { session: ledger, component };
                HostSession::start_surviving(client_segment, root(), self.served.clone(), info, None, ledgers)
            }
        };
        let session = opened.map_err(|error| format!("the host cannot open session {id}: {error}"))?;
        session.refuse_after(self.refuse_after);
        let segment = session.fd().expect("it is in shared memory").try_clone_to_owned();
        self.sessions.borrow_mut().insert(id, session);
        segment.map_err(|error| error.to_string())
    }

    /// A client over memory is dead.
    pub fn client_died(&self, id: u64) {
        let session = self.sessions.borrow_mut().remove(&id);
        if let Some(session) = session {
            session.client_died();
        } else if self.heritage.borrow_mut().remove(&id).is_some() {
            self.served.forsake(&info(id, IN_MEMORY, self.epoch));
            self.begun.set(self.begun.get() - 1);
        }
    }

    /// What clients did to end their sessions: nothing, if they are honest.
    pub fn violation(&self) -> Option<String> {
        let sessions = self.sessions.borrow();
        let (id, violation) = sessions.iter().find_map(|(id, session)| Some((id, session.violation()?)))?;
        Some(format!("the host ended session {id}: {violation:?}"))
    }

    /// Sessions that have not ended.
    pub fn open_sessions(&self) -> u64 {
        self.begun.get() - (self.counter.truth.closed.get() - self.closed_before)
    }
}
