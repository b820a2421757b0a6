//! The other process: the host of the null calls, or the other end of the raw ping-pong.
//!
//! * One process for all rows of a run; a row is a task. Task and C-segment come over a socket, the process's standard
//!   input; S-segment and, at the end, its account go back. At the socket's end it exits.
//! * Its account (processor time, system calls) covers the calls and nothing before the session stood.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::atomic::Ordering::Release;

use kernel_ipc::interface::NewCap;
use kernel_ipc::lease::Lender;
use kernel_ipc::ledger::Records;
use kernel_ipc::link::socket::listen::{self, Listener, Peer};
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime, Waiting, system_calls};
use kernel_ipc::session::{ComponentLedger, HostSession, Ledgers, Offer, SessionInfo};
use kernel_ipc::sys::descriptors;
use kernel_ipc::sys::segment::{self, SegmentReader, SegmentWriter};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Incarnation, Rights, SessionId};
use nix::time::ClockId;
use serde::{Deserialize, Serialize};

use super::floor::{Line, RawMode, STOP};
use super::lent::{self, Store};
use super::null::{Dispatcher, Nothing, TheThing};
use super::places::Identity;

pub(super) const SESSION: SessionId = SessionId(1);
pub(super) const EPOCH: Epoch = Epoch(1);

/// What the host is to do for one row.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// The processor to stay on.
    pub core: Option<usize>,
    pub kind: TaskKind,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum TaskKind {
    /// Answer words until [`STOP`].
    Raw(RawMode),
    /// Serve a session until it ends.
    Calls(Waiting),
    /// The same, beside other sessions that do nothing.
    Crowd { waiting: Waiting, others: u16 },
    /// Answer messages of so many bytes with others, over the first connection of the listener that comes instead of a
    /// segment.
    Tcp { mode: RawMode, bytes: usize, reply: usize },
    /// Serve the first session that comes to the listener, until it ends; over TLS if keys come with it.
    Socket(Waiting),
}

/// What the task cost the host.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    pub cpu_ns: u64,
    pub system_calls: u64,
    pub calls: u64,
}

/// The running host, as the client sees it.
pub(super) struct Host {
    process: Child,
    socket: UnixDatagram,
}

impl Host {
    /// Starts `command`, which must end in [`main`].
    pub fn start(mut command: Command) -> io::Result<Host> {
        let (socket, theirs) = UnixDatagram::pair()?;
        let process = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        // A host that dies must not leave us waiting for ever.
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
        Ok(Host { process, socket })
    }

    /// Begins a task: gives the host's segment.
    pub fn begin(&self, task: Task, segment: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.begin_all(task, &[segment])?
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::other("the host opened no session"))
    }

    /// The same, with all descriptors that go with it and come back.
    pub fn begin_all(&self, task: Task, passed: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
        let text = serde_json::to_vec(&task)?;
        descriptors::send(self.socket.as_fd(), &text, passed, true)?;
        let packet = descriptors::receive(self.socket.as_fd(), &mut [0; 64], true)?;
        Ok(packet.descriptors.into_iter().collect())
    }

    /// What the task cost, once it has ended.
    pub fn end(&self) -> io::Result<Account> {
        let mut text = [0; 256];
        let packet = descriptors::receive(self.socket.as_fd(), &mut text, true)?;
        Ok(serde_json::from_slice(&text[..packet.length])?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It is our child and not waited for yet.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The host's program: does one task after the other until its client is gone.
pub fn main() -> ExitCode {
    let socket = io::stdin();
    loop {
        let mut text = [0; 256];
        let Ok(packet) = descriptors::receive(socket.as_fd(), &mut text, true) else { return ExitCode::FAILURE };
        let mut passed = packet.descriptors.into_iter();
        let Some(segment) = passed.next() else { return ExitCode::SUCCESS };
        let done = serde_json::from_slice(&text[..packet.length])
            .map_err(io::Error::from)
            .and_then(|task: Task| perform(task, (segment, passed.next()), socket.as_fd()))
            .and_then(|account| Ok(serde_json::to_vec(&account)?))
            .and_then(|account| descriptors::send(socket.as_fd(), &account, &[], true));
        if let Err(error) = done {
            eprintln!("the host of the measurement failed: {error}");
            return ExitCode::FAILURE;
        }
    }
}

fn perform(
    task: Task,
    (client_segment, keys): (OwnedFd, Option<OwnedFd>),
    socket: BorrowedFd<'_>,
) -> io::Result<Account> {
    let before = super::pin(task.core);
    let account = match task.kind {
        TaskKind::Raw(mode) => answer_words(mode, client_segment, socket),
        TaskKind::Calls(waiting) => serve(waiting, client_segment, socket, 0),
        TaskKind::Crowd { waiting, others } => serve(waiting, client_segment, socket, others),
        TaskKind::Tcp { mode, bytes, reply } => super::places::answer(mode, (bytes, reply), client_segment, socket),
        TaskKind::Socket(waiting) => serve_socket(waiting, (client_segment, keys), socket),
    };
    super::unpin(before);
    account
}

fn answer_words(mode: RawMode, client_segment: OwnedFd, socket: BorrowedFd<'_>) -> io::Result<Account> {
    let mine = SegmentWriter::create("raw-host", Line::SEGMENT_BYTES)?;
    let theirs = SegmentReader::open(client_segment, Line::SEGMENT_BYTES)?;
    descriptors::send(socket, b"s", &[mine.fd()], true)?;
    let began = thread_cpu();
    let (mut seen, mut calls) = (0, 0);
    while seen != STOP {
        seen = mode.wait_while(&theirs, seen);
        mine.store_u32(Line::WORD, seen, Release);
        mode.wake(&mine);
        calls += 1;
    }
    Ok(Account { cpu_ns: thread_cpu() - began, calls, system_calls: 0 })
}

fn serve(waiting: Waiting, client_segment: OwnedFd, socket: BorrowedFd<'_>, others: u16) -> io::Result<Account> {
    let runtime = Runtime::new(RuntimeOptions { waiting, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        // Their clients never look at the answers, for there are none.
        let idle = |_| {
            let offer = Offer::new(Shape::default())?;
            let session = open(offer.fd().try_clone_to_owned()?, Nothing::default())?;
            Ok((offer, session))
        };
        let _others = (0..others).map(idle).collect::<io::Result<Vec<_>>>()?;
        let store = Store::new()?;
        let (lender, beside) = (store.lender(), store.descriptors()?);
        let service = Nothing { store: Some(store), ..Nothing::default() };
        let (served, closed) = (service.served.clone(), service.closed.clone());
        let session = open_lending(client_segment, service, Some(lender))?;
        let fd = session.fd().ok_or_else(|| io::Error::other("no segment"))?;
        descriptors::send(socket, b"s", &lent::beside(fd, &beside), true)?;
        let (began, before) = (thread_cpu(), system_calls());
        closed.wait().await;
        let system_calls = system_calls().since(before).total();
        Ok(Account { cpu_ns: thread_cpu() - began, system_calls, calls: served.get() })
    })
}

fn serve_socket(
    waiting: Waiting,
    (listener, keys): (OwnedFd, Option<OwnedFd>),
    socket: BorrowedFd<'_>,
) -> io::Result<Account> {
    let runtime = Runtime::new(RuntimeOptions { waiting, ..RuntimeOptions::default() })?;
    let (served, closed, sessions) = (Rc::default(), Rc::default(), Cell::new(0));
    let store = Store::new()?;
    let lending = store.lending()?;
    let service = Nothing { served: Rc::clone(&served), closed: Rc::clone(&closed), store: Some(store), effects: None };
    descriptors::send(socket, b"s", &[listener.as_fd()], true)?;
    let listener = match keys {
        None => Listener::adopt(listener),
        Some(keys) => Listener::adopt_secured(listener, Identity::from_memory(keys)?.keys()?),
    };
    let listener = listener.map_err(io::Error::other)?;
    runtime.block_on(async {
        let admit = move |_: &Peer, _: &_| {
            sessions.set(sessions.get() + 1);
            Some((root(), SessionInfo { id: SessionId(sessions.get()), ..info() }))
        };
        let (began, before) = (thread_cpu(), system_calls());
        let options = listen::Options::default();
        let serving = runtime::spawn(listener.serve(Rc::new(Dispatcher(service)), Some(lending), options, admit));
        closed.wait().await;
        let system_calls = system_calls().since(before).total();
        serving.cancel();
        Ok(Account { cpu_ns: thread_cpu() - began, system_calls, calls: served.get() })
    })
}

/// The host end of a session over shared memory.
pub(super) fn open(client_segment: OwnedFd, service: Nothing) -> io::Result<HostSession> {
    open_lending(client_segment, service, None)
}

fn open_lending(
    client_segment: OwnedFd,
    service: Nothing,
    lender: Option<Rc<RefCell<Lender>>>,
) -> io::Result<HostSession> {
    HostSession::start(client_segment, root(), Rc::new(Dispatcher(service)), info(), lender).map_err(io::Error::other)
}

/// The same for a session that outlives its host; the component's ring, if the service has one, is `service.effects`.
pub(super) fn open_surviving(client_segment: OwnedFd, service: Nothing) -> io::Result<HostSession> {
    let ledgers = Ledgers { session: memory(Ledgers::BYTES)?, component: service.effects.clone() };
    let service = Rc::new(Dispatcher(service));
    HostSession::start_surviving(client_segment, root(), service, info(), None, ledgers).map_err(io::Error::other)
}

/// A ring for effects.
pub(super) fn ring() -> io::Result<ComponentLedger> {
    let memory = SegmentWriter::open_kept(memory(Records::<SegmentWriter>::bytes(1 << 20))?)?;
    let ring = Records::create(memory).map_err(|poisoned| io::Error::other(format!("{poisoned:?}")))?;
    Ok(Rc::new(std::cell::RefCell::new(ring)))
}

pub(super) fn memory(bytes: usize) -> io::Result<OwnedFd> {
    let memory = segment::memfd("bench-ledger")?;
    segment::set_len(&memory, bytes)?;
    Ok(memory)
}

pub(super) fn root() -> kernel_ipc::session::Grant {
    NewCap::new(TheThing, Rights::READ).to_grant()
}

pub(super) fn info() -> SessionInfo {
    SessionInfo {
        id: SESSION,
        epoch: EPOCH,
        client: Incarnation(2),
        client_name: "bench".into(),
        attenuation: serde_json::Value::Null,
    }
}

/// Processor time of this thread, nanoseconds.
pub(super) fn thread_cpu() -> u64 {
    ClockId::CLOCK_THREAD_CPUTIME_ID
        .now()
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
