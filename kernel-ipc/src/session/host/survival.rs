//! A host whose sessions outlive its process: what it writes into the ledgers, and how its next incarnation goes on.
//!
//! - Only calls of the class `cached` keep their reply. One whose handler said what it [did](super::Call::effect) is
//!   committed by its record in the component's ring; any other by its cell, before it is answered.
//! - A refusal and an operation's own error change nothing, so they are not kept: the call runs again.
//! - A call of another class keeps no reply. What it grants counts from just before it is answered; if the answer was lost all
//!   the same, that goes back before the call runs again, without a word to the service: nobody has had it.
//! - The handler's contract: between its effect on the host's state and its return it does not wait, so that nobody sees
//!   an effect whose record may never come.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{HostSession, Inner, Lent, Served};
use crate::capability::Member;
use crate::error::{Cause, Executed, Failure};
use crate::interface::Retry;
use crate::lease::Lender;
use crate::ledger::{CRASHES_MAX, NOTE_BYTES, Poisoned, Records, Recovered, SessionLedger};
use crate::link::{Body, Link, shm};
use crate::session::{Call, Grant, OpenError, Service, SessionInfo};
use crate::steps;
use crate::sys::segment::SegmentWriter;
use crate::wire::{
    Completion, Handle, LeaseName, Outstanding, RawDescriptor, Shape, Status, Submission, Violation, flag,
};

/// The ring of a component, shared by its sessions.
pub type ComponentLedger = Rc<RefCell<Records<SegmentWriter>>>;

/// What a session that survives is served with.
#[derive(Debug)]
pub struct Ledgers {
    /// Fresh memory that the keeper keeps, of [`Ledgers::BYTES`].
    pub session: OwnedFd,
    /// The component's ring, if its handlers have effects to record.
    pub component: Option<ComponentLedger>,
}

impl Ledgers {
    /// Memory for the ledger of a session of any shape; its pages are taken as they are used.
    pub const BYTES: usize = 4 << 20;
    /// Longest [note](HostSession::over_surviving).
    pub const NOTE_BYTES: usize = NOTE_BYTES;
}

/// A session that a dead incarnation served, as its ledger tells it.
#[derive(Debug)]
pub struct Heritage {
    pub(super) ledger: Rc<SessionLedger<SegmentWriter>>,
    pub(super) recovered: Recovered,
}

impl Heritage {
    /// Checks the ledger of a session. `committed` gives for each slot the last seq that has a record in the component's
    /// ring; `crash` is the number of the crash that ended the last run, if one did.
    ///
    /// # Errors
    /// [`Poisoned`]: the session is lost.
    pub fn check(
        memory: OwnedFd,
        session: crate::SessionId,
        committed: impl Fn(u16) -> u64,
        crash: Option<u64>,
    ) -> Result<Heritage, Poisoned> {
        let memory = SegmentWriter::open_kept(memory).map_err(|_| Poisoned("its memory cannot be mapped"))?;
        let (ledger, mut recovered) = SessionLedger::recover(memory, session, committed)?;
        if let Some(number) = crash {
            ledger.crashed(number, &mut recovered.cells);
        }
        Ok(Heritage { ledger: Rc::new(ledger), recovered })
    }

    /// Whether nobody ever began a session in this memory: whoever was to do it died before.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn is_blank(memory: OwnedFd) -> std::io::Result<bool> {
        Ok(SessionLedger::is_blank(&SegmentWriter::open_kept(memory)?))
    }

    /// What was noted of a session over a socket when it was [opened](HostSession::over_surviving).
    ///
    /// # Errors
    /// [`Poisoned`]: it makes no sense.
    pub fn note(&self) -> Result<Vec<u8>, Poisoned> {
        self.ledger.noted()
    }

    /// The number of its last connection.
    pub(crate) fn connection(&self) -> u64 {
        self.ledger.connection()
    }

    /// Its measures.
    pub(crate) fn shape(&self) -> Shape {
        self.recovered.shape
    }

    /// What the session was granted and that is held by somebody, or was when the host died: the service hears when it
    /// [is gone](Service::dropped). Copies do not count.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        let entries = self.recovered.entries.iter().filter_map(|restored| restored.entry.as_ref());
        entries.filter(|(_, standing)| !standing.is_copy).map(|(grant, _)| grant)
    }
}

/// The ledgers of a session, while it is served.
pub(super) struct Survival {
    session: Rc<SessionLedger<SegmentWriter>>,
    component: Option<ComponentLedger>,
    /// RESUMEs that have not come yet.
    awaited: Cell<u32>,
}

impl HostSession {
    /// As [`start`](Self::start), with ledgers from which the next incarnation can [go on](Self::go_on).
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn start_surviving<S: Service>(
        client_segment: OwnedFd,
        root: Grant,
        service: impl Into<Served<S>>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
        ledgers: Ledgers,
    ) -> Result<HostSession, OpenError> {
        let link = shm::ShmLink::host(client_segment, info.id, info.epoch, super::ROOT)?;
        let segment = link.fd().try_clone_to_owned()?;
        Self::begin_surviving(link, Some(segment), root, service.into(), info, lender, ledgers, &[])
    }

    /// The same over a socket. The next incarnation finds `note` in the [ledger](Heritage::note): by whom and how it was opened.
    ///
    /// # Errors
    /// [`OpenError::Io`]: the memory cannot be used, or the note is longer than [`Ledgers::NOTE_BYTES`].
    pub fn over_surviving<S: Service>(
        link: impl Link + 'static,
        root: Grant,
        service: impl Into<Served<S>>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
        ledgers: Ledgers,
        note: &[u8],
    ) -> Result<HostSession, OpenError> {
        Self::begin_surviving(link, None, root, service.into(), info, lender, ledgers, note)
    }

    #[expect(clippy::too_many_arguments, reason = "what the two ways to open have in common")]
    fn begin_surviving<S: Service>(
        link: impl Link + 'static,
        segment: Option<OwnedFd>,
        root: Grant,
        served: Served<S>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
        ledgers: Ledgers,
        note: &[u8],
    ) -> Result<HostSession, OpenError> {
        let memory = SegmentWriter::open_kept(ledgers.session)?;
        let other = |what| OpenError::Io(std::io::Error::other(what));
        let session = SessionLedger::create(memory, info.id, link.shape(), super::CAPABILITIES, super::ROOT)
            .map_err(|_| other("the ledger's memory is not fresh"))?;
        let (session, info) = (Rc::new(session), Rc::new(info));
        let member = served.begin(&info, root, Some(&session));
        // The last of all: whoever finds a note finds everything else too.
        if !session.note(note) {
            served.forsake(&info);
            return Err(other("the note is too long"));
        }
        let survival = Survival { session, component: ledgers.component, awaited: Cell::new(0) };
        Ok(Self::serve(link, segment, served, (info, member), lender, Some(survival)))
    }

    /// Goes on with a session of a dead incarnation: handles are what they were, and each call that was outstanding is
    /// answered for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn go_on<S: Service>(
        client_segment: OwnedFd,
        heritage: Heritage,
        service: impl Into<Served<S>>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
        component: Option<ComponentLedger>,
    ) -> Result<HostSession, OpenError> {
        let served = service.into();
        let member = Self::member_again(&served, &info, &heritage, lender.as_ref());
        steps::reach("resume/inherited");
        let opened = Self::link_again(client_segment, &info, &heritage.recovered);
        let (link, awaited, segment) = opened.inspect_err(|_| served.forsake(&info))?;
        let known = (Rc::new(info), member);
        Ok(Self::serve_again(link, Some(segment), awaited, heritage, served, known, lender, component))
    }

    /// The same over a socket, with a link of the session's measures whose next connection is its client's.
    pub(crate) fn go_on_over<S: Service>(
        link: impl Link + 'static,
        heritage: Heritage,
        served: Served<S>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
        component: Option<ComponentLedger>,
    ) -> HostSession {
        let member = Self::member_again(&served, &info, &heritage, lender.as_ref());
        let host = Self::serve_again(link, None, 0, heritage, served, (Rc::new(info), member), lender, component);
        host.inner.inherited();
        host
    }

    /// The session among those that were inherited.
    fn member_again<S: Service>(
        served: &Served<S>,
        info: &SessionInfo,
        heritage: &Heritage,
        lender: Option<&Rc<RefCell<Lender>>>,
    ) -> Member {
        let known = served.0.realm.borrow().member(info.id);
        known.unwrap_or_else(|| {
            served.inherit([(info.clone(), heritage)], lender);
            served.0.realm.borrow().member(info.id).expect("it has come this moment")
        })
    }

    #[expect(clippy::too_many_arguments, reason = "what the two ways to go on have in common")]
    fn serve_again<S: Service>(
        link: impl Link + 'static,
        segment: Option<OwnedFd>,
        awaited: u32,
        heritage: Heritage,
        served: Served<S>,
        known: (Rc<SessionInfo>, Member),
        lender: Option<Rc<RefCell<Lender>>>,
        component: Option<ComponentLedger>,
    ) -> HostSession {
        let Heritage { ledger, recovered } = heritage;
        let survival = Survival { session: ledger, component, awaited: Cell::new(awaited) };
        let host = Self::serve(link, segment, served, known, lender, Some(survival));
        host.inner.recovered(&recovered);
        host
    }

    /// The session goes on over the connection of this number.
    pub(crate) fn connected(&self, number: u64) {
        self.inner.connected(number);
    }

    /// The carrier of a session that goes on, how many RESUMEs its client owes, and the segment to be sent to it.
    fn link_again(
        client_segment: OwnedFd,
        info: &SessionInfo,
        recovered: &Recovered,
    ) -> Result<(shm::ShmLink, u32, OwnedFd), OpenError> {
        let (link, awaited) = shm::ShmLink::host_resuming(client_segment, info.id, info.epoch, recovered.root)?;
        if link.shape() != recovered.shape {
            return Err(Violation::Segment.into());
        }
        let segment = link.fd().try_clone_to_owned()?;
        Ok((link, awaited, segment))
    }
}

impl HostSession {
    /// Ends the session of a client that has died and survives: what was lent to it waits for its next incarnation, which
    /// [inherits](Lender::inherit) it.
    pub fn abandon(&self) {
        self.inner.abandon();
        self.close();
    }

    /// The client holds these leases of a session before this one, by index and generation.
    pub fn holds(&self, leases: &[(u32, u32)]) {
        self.inner.holds(leases);
    }
}

impl<S: Service> Inner<S> {
    /// A call is about to run.
    pub(super) fn begun(&self, call: &Submission, retry: Retry) {
        let cell = &self.cells[call.slot];
        cell.retry.set(retry);
        cell.stands.set(retry == Retry::Idempotent && call.deadline == 0);
        if let Some(survival) = &self.survival {
            survival.session.begin(call.slot, call.seq, call.operation, retry);
        }
    }

    /// A call runs now. Of one that was under way at a crash the request is kept.
    pub(super) fn runs(&self, slot: u16, call: &Call) {
        if let Some(survival) = &self.survival
            && survival.session.is_suspect(slot)
        {
            survival.session.keep_request(slot, call.target.object, &call.payload);
        }
    }

    /// Keeps the reply of a `cached` call that was served, and commits the call.
    ///
    /// # Errors
    /// It could not be kept: the effect may be lost with this process, so the caller must not hear that it is there.
    pub(super) fn commit(
        &self,
        call: &Submission,
        target: Handle,
        effect: &RefCell<Option<Vec<u8>>>,
        (leases, handles): (&[LeaseName], &[Handle]),
        payload: &[u8],
    ) -> Result<(), Failure> {
        let Some(survival) = &self.survival else { return Ok(()) };
        let unknown = |cause| Failure { cause, executed: Executed::Unknown };
        let completion = self.completion(call, Status::Done, leases, handles, payload);
        let leases: Vec<[u8; LeaseName::BYTES]> = leases.iter().map(|name| name.to_bytes()).collect();
        let handles: Vec<[u8; Handle::BYTES]> = handles.iter().map(|handle| handle.to_word().to_le_bytes()).collect();
        let completion = completion.ok_or(unknown(Cause::ReplyTooLarge))?;
        let payload = if completion.extent.is_inline() { &[] } else { payload };
        if !survival.session.prepare(target, &completion, &[leases.as_flattened(), handles.as_flattened(), payload]) {
            return Err(unknown(Cause::ReplyTooLarge));
        }
        steps::reach("reply/kept");
        if let Some(effect) = &*effect.borrow() {
            let records = survival.component.as_ref().ok_or(unknown(Cause::Refused))?;
            let call = Some((self.info.id, call.slot, call.seq));
            records.borrow_mut().append(call, &[effect]).map_err(|_| unknown(Cause::Quota))?;
        } else {
            survival.session.done(call.slot, call.seq);
        }
        steps::reach("reply/recorded");
        Ok(())
    }

    /// Records an effect whose answer nobody waits for any more.
    pub(super) fn remember(&self, effect: Option<Vec<u8>>) {
        let component = self.survival.as_ref().and_then(|survival| survival.component.as_ref());
        if let (Some(component), Some(effect)) = (component, effect) {
            // Without room it is lost with this process, as it may be: nobody was told of it.
            let _ = component.borrow_mut().append(None, &[&effect]);
        }
    }

    /// The committed call's answer is published: the cell counts.
    pub(super) fn applied(&self, slot: u16, seq: u64) {
        if let Some(survival) = &self.survival {
            survival.session.done(slot, seq);
        }
    }

    /// RESUMEs that the client owes before its first call.
    pub(super) fn awaits_resume(&self) -> bool {
        self.survival.as_ref().is_some_and(|survival| survival.awaited.get() > 0)
    }

    /// Answers for one call that was outstanding when the last incarnation died.
    pub(super) fn resume(&self, raw: &RawDescriptor) -> Result<(), Violation> {
        let survival = self.survival.as_ref().ok_or(Violation::Reserved)?;
        if raw.flags() != flag::RESUME {
            return Err(Violation::Reserved);
        }
        survival.awaited.set(survival.awaited.get().saturating_sub(1));
        self.resume_one(survival, Outstanding::check(raw, self.shape)?)
    }

    /// The same for this one.
    pub(super) fn resume_one(&self, survival: &Survival, outstanding: Outstanding) -> Result<(), Violation> {
        let Outstanding { slot, seq } = outstanding;
        let cell = survival.session.cell(slot).map_err(|_| Violation::Slot)?;
        if seq < cell.begun || seq < cell.done {
            return Err(Violation::Seq);
        }
        if cell.done == seq && cell.retry == Some(Retry::Cached) {
            return self.repeat(survival, slot, seq);
        }
        for handle in survival.session.granted_by(slot, seq) {
            // Nobody has had it, so nobody hears of it.
            let _ = self.shared.realm.borrow_mut().release(self.member, handle);
        }
        // What the lost answer would have brought goes back before the client hears of it (R18).
        self.reclaim(slot, seq);
        if cell.begun == seq && cell.crashes >= CRASHES_MAX {
            return self.quarantine(slot, seq, &cell);
        }
        let verdict = match cell.retry {
            _ if cell.begun < seq => flag::NOT_SEEN,
            // Its commit would be its effect, and there is none.
            Some(Retry::Cached) => flag::NOT_SEEN,
            _ => flag::LOST,
        };
        // The client sends it again with the same seq, or never.
        self.slots.borrow_mut().recovered(slot, seq - 1);
        self.link.send(&outstanding.to_raw(verdict), slot, &Body::default())?;
        steps::reach("resume/answered");
        Ok(())
    }

    /// A call on which the host has crashed too often does not run again.
    fn quarantine(&self, slot: u16, seq: u64, cell: &crate::ledger::Cell) -> Result<(), Violation> {
        tracing::error!("a call of {} is quarantined, operation {}", self.info.client_name, cell.operation);
        // The commit of one whose answer is kept would be its effect, and there is none.
        let executed = if cell.retry == Some(Retry::Cached) { Executed::No } else { Executed::Unknown };
        let crash = self.survival.as_ref().map_or(0, |survival| survival.session.last_crash());
        let cause = Cause::Poisoned { crash: u32::try_from(crash).unwrap_or(0) };
        let failure = Failure { cause, executed };
        self.slots.borrow_mut().recovered(slot, seq);
        self.slots.borrow_mut().answered(slot, seq, Err(failure));
        let call = Submission { slot, seq, operation: cell.operation, ..Submission::default() };
        let refused = self.completion(&call, Status::Failed(failure), &[], &[], &[]).ok_or(Violation::Length)?;
        self.link.send(&refused.to_raw(), slot, &Body::default())
    }

    fn reclaim(&self, slot: u16, seq: u64) {
        let Some(lender) = &self.lender else { return };
        let id = lender.borrow().id();
        let lent = lender.borrow().lent_by(self.info.id, slot, seq);
        let names: Vec<LeaseName> = lent
            .into_iter()
            .map(|(index, generation)| LeaseName { lender: id, index, generation, length: 0 })
            .collect();
        self.take_back(&names).for_each(drop);
    }

    /// Answers with the reply that was kept.
    fn repeat(&self, survival: &Survival, slot: u16, seq: u64) -> Result<(), Violation> {
        let kept = survival.session.reply(slot, seq).ok().flatten().ok_or(Violation::Seq)?;
        let is_usable = self.shared.realm.borrow().inspect(self.member, kept.used).is_ok_and(|used| !used.is_revoked);
        if !is_usable {
            let failure = Failure { cause: Cause::Revoked, executed: Executed::Yes };
            let refused = Completion { extent: Default::default(), status: Status::Failed(failure), ..kept.completion };
            self.slots.borrow_mut().answered(slot, seq, Err(failure));
            return self.link.send(&refused.to_raw(), slot, &Body::default());
        }
        // What it brought, for calls that depend on it.
        let extent = kept.completion.extent;
        let brought = kept.window[extent.capabilities_offset()..extent.payload_offset()].as_chunks().0;
        let brought: Vec<Handle> = brought.iter().map(|word| Handle::from_word(u64::from_le_bytes(*word))).collect();
        self.slots.borrow_mut().answered(slot, seq, Ok(&brought));
        // The names and the payload, as they stood.
        self.link.send(&kept.completion.to_raw(), slot, &Body { payload: &kept.window, ..Body::default() })?;
        steps::reach("resume/repeated");
        Ok(())
    }
}

/// What a recovered ledger says, for a session whose service's type is forgotten.
pub(super) trait Recovering {
    fn recovered(&self, recovered: &Recovered);
    fn connected(&self, number: u64);
    /// The client holds these leases, by index and generation.
    fn holds(&self, leases: &[(u32, u32)]);
    /// The session ends, and what was lent on it stays lent.
    fn abandon(&self);
}

impl<S: Service> Recovering for Inner<S> {
    fn recovered(&self, recovered: &Recovered) {
        let mut slots = self.slots.borrow_mut();
        for (slot, cell) in (0..).zip(&recovered.cells) {
            slots.recovered(slot, cell.begun);
        }
        if let Some(lender) = &self.lender {
            for (index, generation, by) in lender.borrow().brought_on(self.info.id, 0..usize::MAX) {
                // Counted when the entries were inherited.
                self.has_out(index, generation, by.map(|by| by.index));
            }
        }
    }

    fn connected(&self, number: u64) {
        if let Some(survival) = &self.survival {
            survival.session.connected(number);
        }
    }

    fn holds(&self, leases: &[(u32, u32)]) {
        for (index, generation) in leases {
            self.has_lent(*index, *generation, None);
        }
    }

    fn abandon(&self) {
        let lent = std::mem::take(&mut *self.lent.borrow_mut());
        for by in lent.iter().filter_map(Lent::by) {
            self.shared.realm.borrow_mut().came_back(self.member, by);
        }
    }
}
