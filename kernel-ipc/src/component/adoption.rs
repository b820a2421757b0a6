//! What a component or guest tells a supervisor that has taken over from a dead one.
//!
//! - The account says what it knows: sessions on both sides, lenders and regions, mappers and holders. It comes in the control
//!   socket's order, so all that the dead supervisor had said has been done by then.
//! - Behind it come all requests that have no answer: the dead supervisor may have read them or not.
//! - What the new supervisor asks may have been done for the dead one already: it is answered again.

use std::os::fd::AsFd;

use super::{Context, Publishing, Wanted};
use crate::SessionId;
use crate::broker::{Account, ToSupervisor};
use crate::steps;

/// Answers `Adopt`.
pub(super) fn account(cx: &Context, turn: u64) {
    for part in whole(cx, turn).parts() {
        cx.send(&ToSupervisor::Account(Box::new(part)), &[]);
    }
    steps::reach("adopt/accounted");
    if let Some(lender) = &*cx.0.lender.borrow() {
        let lender = lender.borrow();
        cx.send(&ToSupervisor::Lends { capacity: lender.capacity() }, &[lender.table_fd()]);
    }
    for (key, value) in &*cx.0.reported.borrow() {
        cx.send(&ToSupervisor::Report { key: key.clone(), value: value.clone() }, &[]);
    }
    for (name, (bytes, _)) in &*cx.0.keeping.borrow() {
        cx.send(&ToSupervisor::Keep { name: name.clone(), bytes: *bytes as u64 }, &[]);
    }
    for (region, Publishing { memory, landed, .. }) in &*cx.0.publishing.borrow() {
        cx.send(&ToSupervisor::Region { region: *region, landed: *landed }, &[memory.as_fd()]);
    }
    for (request, asked) in &*cx.0.asked.borrow() {
        asked.say(cx, *request);
    }
    cx.look_again();
}

fn whole(cx: &Context, turn: u64) -> Account {
    let mut account = Account { turn, ..Account::default() };
    let hosted = cx.0.hosted.borrow();
    account.hosts.extend(hosted.iter().map(|(id, session)| (*id, session.info().client)));
    let wanted = |(id, (client, wanted)): (&SessionId, &(crate::Incarnation, Wanted))| {
        (*wanted == Wanted::Yes).then_some((*id, *client))
    };
    account.hosts.extend(cx.0.serving.borrow().iter().filter_map(wanted));
    if let Some(places) = &cx.0.places {
        places.account(&mut account);
    }
    account.uses.extend(cx.0.used.borrow().iter().map(|(id, used)| (*id, used.host)));
    cx.0.introductions.account(&mut account);
    if let Some(lender) = &*cx.0.lender.borrow() {
        let lender = lender.borrow();
        account.mappers = lender.mappers();
        account.holders = lender.holders();
    }
    account
}

/// Whether a session that the supervisor wants to be served is served already, or about to be. Then the dead supervisor had
/// asked for it: what it was answered is said again.
pub(super) fn serves_already(cx: &Context, session: SessionId) -> bool {
    if let Some(host) = cx.0.hosted.borrow().get(&session) {
        cx.send(&ToSupervisor::Serving { session }, host.fd().as_slice());
        return true;
    }
    cx.0.serving.borrow().contains_key(&session)
        || cx.0.places.as_ref().is_some_and(|places| places.serves_already(cx, session))
}
