//! Revoking at the host: a turn's worth at a time, and nothing below the capability happens after it has returned.
//!
//! 1. The first mark, at once: the capability refuses, so does all that was derived from it, and what is derived is born
//!    revoked.
//! 2. A mark on each entry, [`STEPS`] in a turn of the runtime, and in its session's ledger.
//! 3. Calls that were accepted before are waited for until their answers are published; after the grace they hear of it by
//!    their cancel tokens. If a handler never ends, the revoke does not return; its marks stand.
//! 4. Leases that such calls brought go back: of [`INDICES`] those, in a turn.
//! 5. The answer. Then the entries are taken out, [`STEPS`] links in a turn: their places can be used again.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::{Inner, Service};
use crate::capability::{Marked, Marking, Member};
use crate::lease::{Ended, reclaim_later};
use crate::runtime::{self, clock};
use crate::session::capability::Revoked;
use crate::wire::{Handle, LeaseName};

/// Most entries that are marked, or links that are followed to take them out, in one turn. On top of it come the links from the
/// last that was marked to the next one, at most [`MAX_DEPTH`](crate::capability::MAX_DEPTH). So few, because each is a cache
/// miss that a call of somebody else may wait for: with 8 another session's p99.9 is 1.8 to 3.3 times what it is without a
/// revoke, with 2 it is 1.5 to 1.75 times, with 1 it is 1.3 to 1.4 times (`cargo bench -p bench --bench capabilities`); a revoke of
/// 100,000 takes 2.5, 8 and 20 ms.
pub(super) const STEPS: u32 = 1;
/// Most indices of the lender that are looked at in one turn.
pub(super) const INDICES: usize = 32;

impl<S: Service> Shared<S> {
    /// Revokes what `handle` of a session names and all that was derived from it, or only that. Calls get the grace to end by
    /// themselves.
    pub(super) async fn revoke(
        self: Rc<Self>,
        member: Member,
        handle: Handle,
        derived_only: bool,
        grace: Duration,
    ) -> (Revoked, Option<Marked>) {
        let until = clock::now() + grace;
        let begun = Marking::of(&mut self.realm.borrow_mut(), member, handle, derived_only);
        // Nothing by that name, nothing derived from it: an earlier revoke has ended it, or it was given back.
        let Some(marking) = begun else { return (Revoked::default(), None) };
        let mut marked = self.mark(marking).await;
        let cancelled = self.wait(&mut marked, until).await;
        let still_mapped = self.take_leases_back(&mut marked).await;
        let completed = marked.calls - cancelled;
        (Revoked { revoked: marked.revoked, completed, cancelled, still_mapped }, Some(marked))
    }

    async fn mark(&self, mut marking: Marking) -> Marked {
        let _turn = self.turns.take().await;
        loop {
            let done = marking.step(&mut self.realm.borrow_mut(), STEPS);
            match done {
                Some(marked) => return marked,
                None => runtime::yield_now().await,
            }
        }
    }

    /// Waits for the calls that were in progress. Says how many were told to end.
    async fn wait(&self, marked: &mut Marked, until: Instant) -> u64 {
        let quiet = async |marked: &mut Marked| {
            while !marked.is_quiet(&self.realm.borrow()) {
                self.until_answered().await;
            }
        };
        if marked.is_quiet(&self.realm.borrow()) {
            return 0;
        }
        let grace = until.saturating_duration_since(clock::now());
        if !grace.is_zero() && runtime::timeout(grace, quiet(marked)).await.is_ok() {
            return 0;
        }
        let cancelled = marked.calls_left(&self.realm.borrow());
        let busy = marked.busy(&self.realm.borrow());
        for (member, index) in busy {
            if let Some(session) = self.inner(member) {
                session.cancel_calls_on(index);
            }
        }
        quiet(marked).await;
        cancelled
    }

    /// Takes leases back that calls on the entries brought. Says how many somebody reads still.
    async fn take_leases_back(&self, marked: &mut Marked) -> u64 {
        let mut lending: HashMap<Member, HashSet<u32>> = HashMap::new();
        while let Some((member, index)) = marked.next_lending(&self.realm.borrow()) {
            lending.entry(member).or_default().insert(index);
        }
        let mut mapped = 0;
        for (member, entries) in lending {
            let mut from = 0;
            // Whether it is served may change between two turns; what was lent on it does not move.
            loop {
                let dying = match self.inner(member) {
                    Some(session) => session.take_back_from(from, INDICES, &entries),
                    None => self.take_back_unserved(member, from, INDICES, &entries),
                };
                let Some(dying) = dying else { break };
                mapped += dying;
                from += INDICES;
                runtime::yield_now().await;
            }
        }
        mapped
    }

    /// As [`take_back_from`](Inner::take_back_from), of a session that a dead run has served and whose client has not come yet.
    fn take_back_unserved(&self, member: Member, from: usize, count: usize, entries: &HashSet<u32>) -> Option<u64> {
        let (session, lender) = self.left_with(member)?;
        let mut lends = lender.borrow_mut();
        if from >= lends.used() {
            return None;
        }
        let mut mapped = 0;
        for (index, generation, by) in lends.brought_on(session, from..from + count) {
            let Some(by) = by.filter(|by| entries.contains(&by.index)) else { continue };
            let ended = lends.take_back(index, generation).expect("it has just said that it is lent");
            self.realm.borrow_mut().came_back(member, by.index);
            mapped += u64::from(ended == Ended::Dying);
        }
        drop(lends);
        reclaim_later(&lender);
        Some(mapped)
    }

    /// Takes the entries out that were revoked.
    pub(super) async fn sweep(&self, marked: Marked) {
        let _turn = self.turns.take().await;
        let mut sweep = marked.sweep();
        loop {
            let mut gone = Vec::new();
            let done = sweep.step(&mut self.realm.borrow_mut(), STEPS, &mut gone);
            self.dropped(&gone);
            if done {
                return;
            }
            runtime::yield_now().await;
        }
    }
}

/// Revokes what a session that has ended had given to others; nobody waits for it.
pub(super) fn end_heirs<S: Service>(shared: Rc<Shared<S>>, member: Member) {
    let marking = Marking::of_ended(&mut shared.realm.borrow_mut(), member);
    runtime::spawn(async move {
        let mut marked = shared.mark(marking).await;
        shared.wait(&mut marked, clock::now()).await;
        shared.take_leases_back(&mut marked).await;
        shared.sweep(marked).await;
    });
}

impl<S: Service> Inner<S> {
    /// Tells the calls in progress that name the entry of this index that they had better end.
    fn cancel_calls_on(&self, index: u32) {
        for (slot, cell) in self.cells.used() {
            let mut is_used = false;
            cell.for_each_use(|used| is_used |= used == index);
            if is_used && self.slots.borrow().in_progress(slot).is_some() {
                cell.cancel.set();
            }
        }
    }

    /// Takes leases back that came by one of these entries, of `count` indices of the lender. Says how many are pinned by a
    /// mapper; `None`: there are no such indices any more.
    fn take_back_from(&self, from: usize, count: usize, entries: &HashSet<u32>) -> Option<u64> {
        let lender = self.lender.as_ref()?.borrow().id();
        let names: Vec<LeaseName> = {
            let lent = self.lent.borrow();
            let range = lent.get(from..)?;
            if range.is_empty() {
                return None;
            }
            let theirs = range.iter().zip(from as u32..).take(count);
            let theirs = theirs.filter(|(lent, _)| lent.by().is_some_and(|by| entries.contains(&by)));
            theirs.map(|(lent, index)| LeaseName { lender, index, generation: lent.generation, length: 0 }).collect()
        };
        let ended = self.take_back(&names);
        Some(ended.filter(|ended| *ended == Ended::Dying).count() as u64)
    }
}
