//! A revoke beside calls, in every order in which a host's turns can come.
//!
//! * A host serves all sessions of a service on one thread: between two turns nothing is half done. The threads of this
//!   model are its tasks, and take the lock for a turn each; loom tries every order of them.
//! * The turns do to the shipped [`Realm`] what a session's host does: the call path, `run_slot` and `revoke`.
//! * What must hold: after the first mark no call on anything below is accepted, and after the revoke has returned none
//!   has an effect or an answer. The model must break when one rule is taken away ([`Without`]).

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;

use super::*;

/// The rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A revoke waits for the calls that were accepted.
    Wait,
    /// An accepted call counts on its entry until it was answered.
    Count,
    /// A revoke returns only when everything below is marked.
    Marks,
    /// While something is being marked, a look-up asks what an entry was derived from.
    Ancestors,
    /// What is derived from a revoked entry is born revoked.
    BornMarked,
}

struct Host {
    realm: Realm,
    without: Without,
    /// The first mark is set; the revoke has returned.
    begun: bool,
    returned: bool,
}

impl Host {
    /// A call on something below the capability is read: is it accepted?
    fn accepts(&mut self, member: Member, handle: Handle) -> bool {
        let found = match self.without {
            Without::Ancestors => self.realm.tables[member.0 as usize].lookup(handle, 0, Rights::READ, never).map(drop),
            _ => self.realm.lookup(member, handle, 0, Rights::READ, never).map(drop),
        };
        if found.is_err() {
            return false;
        }
        assert!(!self.begun, "accepted after the first mark");
        if self.without != Without::Count {
            self.realm.begun(member, handle.index);
        }
        true
    }

    fn has_effect(&self) {
        assert!(!self.returned, "an effect after the revoke has returned");
    }

    fn answers(&mut self, member: Member, handle: Handle) {
        assert!(!self.returned, "an answer after the revoke has returned");
        if self.without != Without::Count {
            self.realm.ended(member, handle.index);
        }
    }

    /// An entry has just been derived.
    fn born(&mut self, member: Member, handle: Handle) {
        let state = &mut self.realm.tables[member.0 as usize].lines[handle.index as usize].state;
        if self.without == Without::BornMarked && *state == State::Revoked {
            *state = State::Live;
        }
    }
}

/// The host, a turn of which is a lock.
#[derive(Clone)]
struct Turns(Arc<Mutex<Host>>);

impl Turns {
    fn turn(&self) -> MutexGuard<'_, Host> {
        self.0.lock().expect("no turn panics and is survived")
    }

    /// A call, from its being read to its answer; `grants`: the answer brings a capability.
    fn call(&self, member: Member, handle: Handle, grants: bool) -> Option<Handle> {
        if !self.turn().accepts(member, handle) {
            return None;
        }
        self.turn().has_effect();
        let mut host = self.turn();
        let granted = grants.then(|| host.realm.grant(member, handle.index, grant(1), tag()).expect("room"));
        granted.iter().for_each(|granted| host.born(member, *granted));
        host.answers(member, handle);
        granted
    }

    fn revoke(&self, member: Member, handle: Handle) {
        let without = self.turn().without;
        let mut marking = {
            let mut host = self.turn();
            host.begun = true;
            Marking::of(&mut host.realm, member, handle, false).expect("it is held")
        };
        if without == Without::Marks {
            self.turn().returned = true;
        }
        let mut marked = loop {
            let done = marking.step(&mut self.turn().realm, 1);
            if let Some(marked) = done {
                break marked;
            }
        };
        while without != Without::Wait && !marked.is_quiet(&self.turn().realm) {
            thread::yield_now();
        }
        self.turn().returned = true;
        let (mut sweep, mut gone) = (marked.sweep(), Vec::new());
        while !sweep.step(&mut self.turn().realm, 8, &mut gone) {}
    }
}

/// One session mints a capability and has given a copy to a second one, which calls on it, is granted something by that and
/// calls on what it was granted; a third one redeems what the second has promised it, and calls on that. Meanwhile the first
/// one revokes.
fn nothing_derived_happens_after_a_revoke(without: Without) {
    let mut realm = Realm::default();
    let [owner, second, third] = [1, 2, 3].map(|id| realm.join(SessionId(id), 8, None));
    let [root, ..] = [owner, second, third].map(|member| realm.first(member, grant(0)).expect("room"));
    let minted = realm.mint(owner, root.index, terms(ALL), tag()).expect("room");
    let promised = realm.promise(owner, minted.index, terms(ALL)).expect("room");
    let given = realm.fulfil(owner, promised, 0, second, tag()).expect("promised");
    let promised = realm.promise(second, given.index, terms(ALL)).expect("room");
    let host = Turns(Arc::new(Mutex::new(Host { realm, without, begun: false, returned: false })));

    let caller = thread::spawn({
        let host = host.clone();
        move || {
            let granted = host.call(second, given, true);
            granted.map(|granted| host.call(second, granted, false))
        }
    });
    let receiver = thread::spawn({
        let host = host.clone();
        move || {
            let redeemed = {
                let mut turn = host.turn();
                let redeemed = turn.realm.fulfil(second, promised, 0, third, tag());
                redeemed.iter().for_each(|redeemed| turn.born(third, *redeemed));
                redeemed
            };
            redeemed.map(|redeemed| host.call(third, redeemed, false))
        }
    });
    host.revoke(owner, minted);
    caller.join().expect("the caller is right");
    let _ = receiver.join().expect("the receiver is right");
    let host = host.turn();
    assert_eq!(host.realm.lookup(second, given, 0, Rights::READ, never).map(drop), Err(Cause::StaleHandle));
}

fn check(without: Without) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || nothing_derived_happens_after_a_revoke(without));
}

#[test]
fn after_a_revoke_has_returned_nothing_derived_from_it_happens() {
    check(Without::Nothing);
    let needed = [Without::Wait, Without::Count, Without::Marks, Without::Ancestors, Without::BornMarked];
    for without in needed {
        let run = AssertUnwindSafe(|| check(without));
        assert!(catch_unwind(run).is_err(), "the model does not notice that {without:?} is missing");
    }
}
