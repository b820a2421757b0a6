//! The keeper's and the supervisor's part: what is kept, who hears of whose death, which segment goes to whom.
//!
//! A client hears what concerns it in the order in which it happened; everything takes its time, and the host may die between
//! any two of these, or in the middle of one.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use kernel_ipc::ledger::Records;
use kernel_ipc::session::Offer;
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::{Epoch, SessionId};

use super::{HOST, World, address};
use crate::host::{Start, ledger_memory};
use crate::plan::{Carrier, Fault, MS, S};

/// Bytes of the host's ring: more than a run records.
const RING: usize = 64 << 10;

/// Something that happens at a time.
pub(super) enum Due {
    Fault(Fault),
    /// A process that was to die by steps which it does not take dies now.
    Deadline(usize, u32),
    StartHost,
    /// A client is to be introduced to the host.
    Introduce(usize),
    /// The host of this epoch gets the segment of a client.
    Serve(usize, u64, Offer),
    /// A client hears the next word that it was told.
    Hear(usize),
    /// The host hears that a client is.
    ClientGone(usize),
}

/// What a client is told.
enum Word {
    /// The host of this epoch has answered its offer by this segment.
    Answered(u64, Offer, OwnedFd),
    /// The host is dead.
    HostGone,
}

/// What is kept of a client over memory.
#[derive(Default)]
pub(super) struct Kept {
    /// Its session and that one's ledger.
    ledger: Option<(u64, OwnedFd)>,
    /// The client waits for a host's segment: for its first, or because it is suspended.
    is_answered: bool,
    /// It has that.
    has_segment: bool,
    /// It will hear that the host is dead.
    will_hear: bool,
    /// What it was told and has not heard.
    words: VecDeque<Word>,
    /// The segment of a host that is dead.
    stale: Option<OwnedFd>,
}

/// Memory for the host's ring.
pub(super) fn ring_memory() -> OwnedFd {
    let fd = segment::memfd("ring").expect("memory");
    segment::set_len(&fd, Records::<SegmentWriter>::bytes(RING)).expect("memory");
    fd
}

fn twin(fd: &OwnedFd) -> OwnedFd {
    fd.try_clone().expect("a descriptor")
}

impl World {
    /// What the next run of the host is started with.
    pub(super) fn host_start(&self) -> Start {
        let kept = self.kept.iter().filter_map(|kept| kept.ledger.as_ref());
        Start {
            seed: self.seed,
            epoch: self.epoch,
            address: address(),
            options: self.plan.options,
            checkpoint_ns: self.plan.checkpoint_ns,
            refuse_after: self.plan.refuse_after,
            ring: twin(&self.component_ring),
            sessions: kept.map(|(id, ledger)| (*id, twin(ledger))).collect(),
            beyond: self.plan.keeps_sockets.then(|| self.beyond.clone()),
            truth: self.truth.clone(),
            next_session: self.next_session.clone(),
            trace: self.trace.clone(),
        }
    }

    /// The host has died: its clients over memory hear of it, and there will be another one.
    pub(super) fn host_died(&mut self) {
        for client in self.clients_in_memory() {
            if self.kept[client].is_answered && !std::mem::replace(&mut self.kept[client].will_hear, true) {
                self.tell(client, Word::HostGone);
            }
        }
        let most = self.random.pick(&[MS, 50 * MS, 3 * S]);
        self.later(0, most, Due::StartHost);
    }

    /// There is a host again.
    pub(super) fn host_started(&mut self) {
        for client in self.clients_in_memory() {
            if !self.kept[client].is_answered {
                self.later(0, 2 * MS, Due::Introduce(client));
            }
        }
    }

    /// Whether every client over memory that lives has a host.
    pub(super) fn all_are_introduced(&self) -> bool {
        let kept = |client: &usize| &self.kept[*client];
        self.clients_in_memory().iter().all(|client| kept(client).has_segment && !kept(client).will_hear)
    }

    fn clients_in_memory(&self) -> Vec<usize> {
        let is = |client: &usize| {
            self.plan.clients[*client].carrier == Carrier::Memory && !self.circumstances.is_dead[*client]
        };
        (0..self.plan.clients.len()).filter(is).collect()
    }

    /// A client hears something, behind everything that it was told before.
    fn tell(&mut self, client: usize, word: Word) {
        self.kept[client].words.push_back(word);
        self.later(0, 2 * MS, Due::Hear(client));
    }

    /// Whether a process has a turn now; else what is due to it comes later. `None`: it is dead.
    fn reach(&mut self, process: usize, due: Due) -> Option<Due> {
        let there = self.processes.get(process).filter(|there| there.is_alive)?;
        if there.runs(self.now) {
            return Some(due);
        }
        let at = there.paused_until;
        self.schedule(at, due);
        None
    }

    pub(super) fn broker(&mut self, due: Due) {
        match due {
            Due::Fault(fault) => self.fault(fault),
            Due::Deadline(process, owner) => {
                let there = &self.processes[process];
                if there.owner == owner && there.is_alive && there.dies_in.is_some() {
                    self.died(process);
                }
            }
            Due::StartHost => self.start_host(),
            Due::ClientGone(client) => self.client_gone(client),
            Due::Serve(client, epoch, offer) => {
                if epoch == self.epoch
                    && let Some(Due::Serve(client, epoch, offer)) = self.reach(HOST, Due::Serve(client, epoch, offer))
                {
                    self.serve(client, epoch, offer);
                }
            }
            Due::Introduce(client) => {
                if let Some(Due::Introduce(client)) = self.reach(client + 1, Due::Introduce(client)) {
                    self.introduce(client);
                }
            }
            Due::Hear(client) => {
                if self.reach(client + 1, Due::Hear(client)).is_some() {
                    match self.kept[client].words.pop_front() {
                        Some(Word::HostGone) => self.host_gone(client),
                        Some(Word::Answered(epoch, offer, segment)) => self.answered(client, epoch, offer, segment),
                        None => {}
                    }
                }
            }
        }
    }

    /// The client makes a segment for the present host.
    fn introduce(&mut self, client: usize) {
        if self.kept[client].is_answered || self.host.is_none() {
            return;
        }
        let (session, shape) = (self.clients[client].session(), self.plan.clients[client].shape);
        let made = self.act(client + 1, |stepped| {
            stepped.enter(|| match &session {
                None => Offer::new(shape),
                Some(session) => session.offer(),
            })
        });
        let Some(made) = made else { return };
        let offer = made.expect("memory");
        // A broker that is confused hands over the segment of a host that is dead.
        if let (Some(session), Some(stale)) = (&session, self.kept[client].stale.take())
            && self.random.one_in(3)
        {
            self.trace.note(format_args!("client {} gets the segment of a dead host", client + 1));
            let epoch = Epoch(self.epoch);
            let taken = self.act(client + 1, |stepped| stepped.enter(|| session.resume(offer, stale, epoch)));
            match taken {
                // It goes on with a host that is dead, and the rest of the run shows what comes of that.
                Some(Ok(())) => (self.kept[client].is_answered, self.kept[client].has_segment) = (true, true),
                Some(Err(_)) => self.later(0, MS, Due::Introduce(client)),
                None => {}
            }
            return;
        }
        self.later(0, MS, Due::Serve(client, self.epoch, offer));
    }

    /// The host opens the session.
    fn serve(&mut self, client: usize, epoch: u64, offer: Offer) {
        let Some(host) = self.host.clone() else { return };
        if self.kept[client].is_answered || self.circumstances.is_dead[client] {
            return;
        }
        let is_new = self.kept[client].ledger.is_none();
        if is_new {
            let id = self.next_session.replace(self.next_session.get() + 1);
            self.kept[client].ledger = Some((id, ledger_memory()));
        }
        let (id, ledger) =
            self.kept[client].ledger.as_ref().map(|(id, ledger)| (*id, twin(ledger))).expect("just made");
        let segment = offer.fd().try_clone_to_owned().expect("a descriptor");
        let opened = self.act(HOST, |stepped| stepped.enter(|| host.open(id, segment, ledger)));
        match opened {
            // The ledger may be anything; nobody knows of the session.
            None if is_new => self.kept[client].ledger = None,
            None => {}
            Some(Err(what)) => self.model.violated(what),
            Some(Ok(segment)) => {
                self.kept[client].is_answered = true;
                self.kept[client].stale = Some(twin(&segment));
                self.tell(client, Word::Answered(epoch, offer, segment));
            }
        }
    }

    /// The client has the host's segment.
    fn answered(&mut self, client: usize, epoch: u64, offer: Offer, segment: OwnedFd) {
        let Some((id, _)) = self.kept[client].ledger else { return };
        let there = self.clients[client].clone();
        let done = self.act(client + 1, |stepped| {
            there.trace.note(format_args!("gets the segment of epoch {epoch}"));
            stepped.enter(|| match there.session() {
                Some(session) => session.resume(offer, segment, Epoch(epoch)),
                None => offer.open_surviving(segment, SessionId(id), Epoch(epoch)).map(|session| there.has(session)),
            })
        });
        self.kept[client].has_segment = true;
        if let Some(Err(error)) = done {
            self.model.violated(format!("client {} cannot go on: {error}", client + 1));
        }
    }

    /// The client hears of the host's death.
    fn host_gone(&mut self, client: usize) {
        if let Some(session) = self.clients[client].session() {
            let trace = self.trace.clone();
            self.act(client + 1, |stepped| {
                trace.note(format_args!("hears that the host is dead"));
                stepped.enter(|| session.suspend());
            });
        }
        (self.kept[client].is_answered, self.kept[client].has_segment) = (false, false);
        self.kept[client].will_hear = false;
        if self.host.is_some() {
            self.later(0, MS, Due::Introduce(client));
        }
    }

    /// The host hears of a client's death.
    fn client_gone(&mut self, client: usize) {
        if self.host.is_some() && self.reach(HOST, Due::ClientGone(client)).is_none() {
            return;
        }
        let Some((id, _)) = self.kept[client].ledger.take() else { return };
        if let Some(host) = self.host.clone() {
            self.act(HOST, |stepped| stepped.enter(|| host.client_died(id)));
        }
    }
}
