//! What the sessions of one service share: the capabilities of all of them, and the turns of those who revoke.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use super::tickets::Tickets;
use super::{CAPABILITIES, Heritage, Inner, ROOT};
use crate::capability::{Gone, Member, Realm, Restored};
use crate::id::SessionId;
use crate::lease::{Lender, reclaim_later};
use crate::ledger::SessionLedger;
use crate::runtime::signal::{Changes, Turns};
use crate::session::{Grant, Service, SessionInfo};
use crate::sys::segment::SegmentWriter;
use crate::wire::Handle;

/// A service, and what all its sessions share. Sessions that are opened with clones of one value can give each other
/// capabilities; each `Rc` of a service that becomes one is a family of its own.
pub struct Served<S>(pub(super) Rc<Shared<S>>);

impl<S> Clone for Served<S> {
    fn clone(&self) -> Self {
        Served(self.0.clone())
    }
}

impl<S> From<Rc<S>> for Served<S> {
    fn from(service: Rc<S>) -> Self {
        Served::new(service, false)
    }
}

impl<S> Served<S> {
    fn new(service: Rc<S>, is_spread: bool) -> Served<S> {
        Served(Rc::new(Shared {
            service,
            is_spread,
            realm: RefCell::default(),
            members: RefCell::default(),
            tickets: Tickets::default(),
            turns: Turns::default(),
            answered: Changes::default(),
            is_waited_for: Cell::new(0),
            is_held: Cell::new(false),
        }))
    }
}

pub(super) struct Shared<S> {
    pub(super) service: Rc<S>,
    /// It serves some of its endpoint's sessions, and others the rest: what one session promised, another one could not find.
    pub(super) is_spread: bool,
    pub(super) realm: RefCell<Realm>,
    pub(super) members: RefCell<HashMap<Member, Session<S>>>,
    /// What sessions promised to others.
    pub(super) tickets: Tickets,
    /// One marks or sweeps at a time.
    pub(super) turns: Turns,
    /// A call on a capability that is revoked, or was given back, has been answered.
    answered: Changes,
    /// How many wait for such.
    is_waited_for: Cell<u32>,
    /// Sessions that come are held.
    pub(super) is_held: Cell<bool>,
}

/// A session that has come, and is served if its client is there.
pub(super) struct Session<S> {
    info: Rc<SessionInfo>,
    pub(super) inner: Weak<Inner<S>>,
    /// Of one that a dead run has served, until it is served again: who knows what it was lent.
    lender: Option<Rc<RefCell<Lender>>>,
}

impl<S: Service> Served<S> {
    /// One of several instances of a service, each with its part of the sessions: they come and go
    /// ([`HostSession::arrive`](super::HostSession::arrive)). A session can give nothing to another one: whether that has the
    /// same instance is none of its business.
    pub fn one_of_many(service: Rc<S>) -> Served<S> {
        Served::new(service, true)
    }

    /// The service.
    pub fn service(&self) -> &Rc<S> {
        &self.0.service
    }

    /// Takes over sessions that a dead incarnation served, all of one endpoint at once and before any of them is served: what
    /// one of them gave to another is known only so. Tells the service what is gone with sessions that are not among them.
    /// `lender` is the one that follows that incarnation's, with every pin segment attached that is not fenced: what was lent
    /// on these sessions by a capability that is not there any more goes back, as of a revoke that was half done.
    pub fn inherit<'a>(
        &self,
        sessions: impl IntoIterator<Item = (SessionInfo, &'a Heritage)>,
        lender: Option<&Rc<RefCell<Lender>>>,
    ) {
        let mut entries: Vec<(Member, &[Restored])> = Vec::new();
        let mut lent = Vec::new();
        for (info, heritage) in sessions {
            let session = info.id;
            let member = self.0.join(Rc::new(info), Some(&heritage.ledger));
            entries.push((member, &heritage.recovered.entries));
            if let Some(lender) = lender {
                self.0.was_lent_by(member, Some(lender.clone()));
                let brought = lender.borrow().brought_on(session, 0..usize::MAX);
                lent.extend(
                    brought
                        .into_iter()
                        .filter_map(|(index, generation, by)| Some(((member, by?), (index, generation)))),
                );
            }
        }
        let by: Vec<(Member, Handle)> = lent.iter().map(|(by, _)| *by).collect();
        let gone = self.0.realm.borrow_mut().restore(&entries, &by);
        lent.retain(|((member, by), _)| !self.0.realm.borrow().is_there(*member, *by));
        if let Some(lender) = lender {
            for (_, (index, generation)) in lent {
                let taken = lender.borrow_mut().take_back(index, generation);
                taken.expect("it has just said that it is lent");
            }
            reclaim_later(lender);
        }
        self.0.dropped(&gone);
    }

    /// The client of a session that was [inherited](Self::inherit) and not gone on with will not come.
    pub fn forsake(&self, info: &SessionInfo) {
        let member = self.0.realm.borrow().member(info.id);
        if let Some(member) = member {
            self.0.left(member);
        }
    }

    /// The session's first capability is entered.
    pub(super) fn begin(
        &self,
        info: &Rc<SessionInfo>,
        root: Grant,
        ledger: Option<&Rc<SessionLedger<SegmentWriter>>>,
    ) -> Member {
        let member = self.0.join(info.clone(), ledger);
        let handle = self.0.realm.borrow_mut().first(member, root).expect("an empty table has room");
        debug_assert_eq!(handle, ROOT);
        member
    }
}

impl<S: Service> Shared<S> {
    fn join(&self, info: Rc<SessionInfo>, ledger: Option<&Rc<SessionLedger<SegmentWriter>>>) -> Member {
        let entries = ledger.map(|ledger| ledger.clone() as Rc<dyn crate::capability::Entries>);
        let member = self.realm.borrow_mut().join(info.id, CAPABILITIES, entries);
        self.members.borrow_mut().insert(member, Session { info, inner: Weak::new(), lender: None });
        member
    }

    /// A session goes to another instance, with all that it holds. `None`: something hangs on that.
    pub(super) fn carry(&self, member: Member) -> Option<Vec<Restored>> {
        let carried = self.realm.borrow_mut().carry(member)?;
        self.members.borrow_mut().remove(&member);
        Some(carried)
    }

    /// A session comes from another instance.
    pub(super) fn arrive(&self, info: Rc<SessionInfo>, carried: &[Restored]) -> Member {
        let member = self.join(info, None);
        // What is gone was told where it came from.
        self.realm.borrow_mut().restore(&[(member, carried)], &[]);
        member
    }

    /// The session is served from now on.
    pub(super) fn attach(&self, member: Member, inner: Weak<Inner<S>>) {
        if let Some(inner) = inner.upgrade().filter(|_| self.is_held.get()) {
            inner.is_held.set(true);
        }
        if let Some(session) = self.members.borrow_mut().get_mut(&member) {
            session.inner = inner;
            session.lender = None;
        }
    }

    /// A dead run has lent on this session, which is not served yet; `None`: nobody looks after that any more.
    fn was_lent_by(&self, member: Member, lender: Option<Rc<RefCell<Lender>>>) {
        if let Some(session) = self.members.borrow_mut().get_mut(&member) {
            session.lender = lender;
        }
    }

    /// The session's number and who knows what it was lent, if it is one that a dead run has served and nobody serves yet.
    pub(super) fn left_with(&self, member: Member) -> Option<(SessionId, Rc<RefCell<Lender>>)> {
        let members = self.members.borrow();
        let session = members.get(&member)?;
        Some((session.info.id, session.lender.clone()?))
    }

    /// The session, if it is served.
    pub(super) fn inner(&self, member: Member) -> Option<Rc<Inner<S>>> {
        self.members.borrow().get(&member)?.inner.upgrade()
    }

    /// The session has ended: its capabilities are gone, and what it gave to others is revoked.
    pub(super) fn left(self: &Rc<Self>, member: Member) {
        self.end_tickets(member);
        self.was_lent_by(member, None);
        let (gone, gave) = self.realm.borrow_mut().leave(member);
        self.dropped(&gone);
        if gave {
            super::revoke::end_heirs(self.clone(), member);
        }
    }

    /// Tells the service what is gone. With nothing borrowed.
    pub(super) fn dropped(&self, gone: &[Gone]) {
        for Gone { member, grant } in gone {
            let info = self.members.borrow().get(member).map(|session| session.info.clone());
            if let Some(info) = info {
                self.service.dropped(&info, grant);
            }
        }
    }

    /// A call has been answered that somebody may wait for.
    #[cold]
    pub(super) fn was_answered(&self) {
        if self.is_waited_for.get() > 0 {
            self.answered.happen();
        }
    }

    /// Waits for the next call of those to be answered.
    pub(super) async fn until_answered(&self) {
        let _waits = Waits::one_more(&self.is_waited_for);
        self.answered.next().await;
    }
}

/// Somebody waits, until this is dropped: also if he gives up, as after a grace.
struct Waits<'a>(&'a Cell<u32>);

impl<'a> Waits<'a> {
    fn one_more(count: &'a Cell<u32>) -> Waits<'a> {
        count.set(count.get() + 1);
        Waits(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::described::Details;
    use crate::interface::Description;
    use crate::session::{Call, Response};

    struct Nothing;

    impl Service for Nothing {
        const INTERFACE: &'static Description =
            &Description { name: "nothing/1", kinds: &[], rights: &[], operations: &[], details: Details::none };

        async fn serve(&self, _: &mut Call) -> Response {
            Response::default()
        }
    }

    #[test]
    fn who_gives_up_waiting_for_answers_is_not_waited_for_any_more() {
        let Served(shared) = Served::from(Rc::new(Nothing));
        let mut cx = Context::from_waker(Waker::noop());
        {
            let mut waits = pin!(shared.until_answered());
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            assert_eq!(shared.is_waited_for.get(), 1);
        }
        assert_eq!(shared.is_waited_for.get(), 0, "its grace is over");
        let mut waits = pin!(shared.until_answered());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        shared.was_answered();
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(shared.is_waited_for.get(), 0);
    }
}
