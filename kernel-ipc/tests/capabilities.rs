//! What every host does with capabilities, over every carrier: mint, inspect, revoke.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::*;
use kernel_ipc::interface::Description;
use kernel_ipc::lease::Lender;
use kernel_ipc::runtime;
use kernel_ipc::session::capability::{GRACE, Minting, Revoked, Ticket, operation};
use kernel_ipc::session::{
    self, Call, ClientSession, Grant, HostSession, Offer, Request, Response, Served, Service, SessionInfo,
};
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Executed, Failure, Handle, Rights, SessionId};

/// A host with one service, over one carrier.
struct Host {
    in_process: bool,
    served: Served<Thing>,
    thing: Rc<Thing>,
    lender: Rc<RefCell<Lender>>,
}

const ALL: Rights = Rights::READ.union(Rights::WRITE).union(Rights::GRANT);

impl Host {
    fn open(&self, id: u64) -> (ClientSession, HostSession) {
        let root = Grant { rights: ALL, ..root() };
        let info = |id| SessionInfo { client_name: format!("client-{id}"), ..info(id) };
        let lender = Some(self.lender.clone());
        if self.in_process {
            return session::in_process(Shape::default(), root, self.served.clone(), info(id), lender);
        }
        let offer = Offer::new(Shape::default()).expect("a segment");
        let segment = offer.fd().try_clone_to_owned().expect("dup");
        let host = HostSession::start(segment, root, self.served.clone(), info(id), lender).expect("opened");
        let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
        (offer.open(segment, SessionId(id), kernel_ipc::Epoch(1)).expect("opened"), host)
    }
}

/// Runs a test over each carrier.
fn over_each_carrier(test: impl AsyncFn(Host)) {
    for in_process in [false, true] {
        run(async {
            let thing = Rc::new(Thing::default());
            test(Host { in_process, served: thing.clone().into(), thing, lender: lender() }).await;
        });
    }
}

fn no(cause: Cause) -> Failure {
    Failure { cause, executed: Executed::No }
}

async fn open(client: &ClientSession, on: Handle) -> Handle {
    client.call(request(on, OPEN, &[1, 1])).await.expect("opened").capabilities[0]
}

async fn echo(client: &ClientSession, on: Handle) -> Result<(), Failure> {
    client.call(request(on, ECHO, b"x")).await.map(drop)
}

/// A call that goes on by itself.
fn begin(client: &ClientSession, on: Handle, operation: u16, payload: u8) -> runtime::JoinHandle<Result<(), Failure>> {
    let client = client.clone();
    runtime::spawn(async move { client.call(request(on, operation, &[payload])).await.map(drop) })
}

/// A handler ends when the gate opens that its argument names; that of the first gate opens the second as it ends.
#[derive(Default)]
struct Gates([runtime::Changes; 2]);

impl Service for Gates {
    const INTERFACE: &'static Description = &TEST;

    async fn serve(&self, call: &mut Call) -> Response {
        let gate = usize::from(call.payload()[0]);
        self.0[gate].next().await;
        if gate == 0 {
            self.0[1].happen();
        }
        Response::default()
    }
}

/// Messages that are in a new session's ring for its client.
fn published(host: &HostSession) -> u64 {
    let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
    let segment = SegmentReader::open(segment, 1).expect("sealed");
    let shape = Shape::default();
    let is_there = |position: &u64| {
        let first = segment.load_u64(shape.entry_offset(*position), Ordering::Acquire);
        first as u16 == shape.lap(*position)
    };
    (0..u64::from(shape.ring_entries())).take_while(is_there).count() as u64
}

#[test]
fn a_revoke_returns_after_the_answers_it_has_waited_for_are_published() {
    run(async {
        let gates = Rc::new(Gates::default());
        let served: Served<Gates> = gates.clone().into();
        let open = |id| {
            let root = Grant { rights: ALL, ..root() };
            let info = SessionInfo { client_name: format!("client-{id}"), ..info(id) };
            let offer = Offer::new(Shape::default()).expect("a segment");
            let segment = offer.fd().try_clone_to_owned().expect("dup");
            let host = HostSession::start(segment, root, served.clone(), info, None).expect("opened");
            let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
            (offer.open(segment, SessionId(id), kernel_ipc::Epoch(1)).expect("opened"), host)
        };
        let (owner, owner_host) = open(1);
        let (caller, caller_host) = open(2);
        let ticket =
            owner.provide(owner.root(), "client-2", Minting::with(Rights::READ), LATE).await.expect("a ticket");
        let given = caller.redeem(ticket, 0).await.expect("redeemed");
        let _calls = [0, 1, 1].map(|gate| begin(&caller, given, ECHO, gate));
        settle().await;
        let _revoke = runtime::spawn({
            let owner = owner.clone();
            async move { owner.revoke(owner.root(), true, LATE).await }
        });
        settle().await;
        let before = (published(&owner_host), published(&caller_host));
        // In one turn the last two handlers end, and then the revoke, which the first one has woken, looks again.
        gates.0[0].happen();
        while published(&owner_host) == before.0 {
            runtime::yield_now().await;
        }
        assert_eq!(published(&caller_host), before.1 + 3);
    });
}

const SOON: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_secs(500);

#[test]
fn a_minted_capability_does_what_its_rights_say_and_no_more() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let reader = client.mint(client.root(), Minting::with(Rights::READ)).await.expect("minted");
        echo(&client, reader).await.expect("it may read");
        let write = client.call(request(reader, WRITE, b"")).await;
        assert_eq!(write.unwrap_err(), no(Cause::RightsMissing));
        let more = client.mint(reader, Minting::with(Rights::READ | Rights::WRITE)).await;
        assert_eq!(more.unwrap_err(), no(Cause::RightsExceeded));
        let badge = Minting { badge: Some(5), ..Minting::with(Rights::READ) };
        assert_eq!(client.mint(reader, badge).await.unwrap_err(), no(Cause::BadgeSet));
        let found = client.inspect(reader).await.expect("held");
        assert_eq!((found.kind, found.rights, found.badge, found.derived), (1, Rights::READ, BADGE, 0));
        assert_eq!(client.inspect(client.root()).await.expect("held").derived, 1);
        client.release_handle(reader);
        settle().await;
        assert_eq!(echo(&client, reader).await, Err(no(Cause::StaleHandle)));
        // The service granted the root only, and that is there.
        assert_eq!(host.thing.dropped.borrow().len(), 0);
        echo(&client, client.root()).await.expect("it is another one");
    });
}

#[test]
fn a_capability_expires_with_what_was_opened_by_it() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let lasts = |lasts| Minting { lasts: Some(lasts), ..Minting::with(Rights::READ) };
        let long = client.mint(client.root(), lasts(LATE)).await.expect("minted");
        let short = client.mint(long, lasts(Duration::from_millis(60))).await.expect("minted");
        let opened = open(&client, short).await;
        assert!(client.inspect(opened).await.expect("held").lasts.expect("it expires") <= Duration::from_millis(60));
        while echo(&client, opened).await.is_ok() {
            runtime::sleep(SOON).await;
        }
        for expired in [short, opened] {
            assert_eq!(echo(&client, expired).await, Err(no(Cause::Expired)));
        }
        assert_eq!(client.inspect(short).await.expect("held").lasts, Some(Duration::ZERO));
        echo(&client, long).await.expect("it lasts longer");
    });
}

#[test]
fn a_limit_is_for_everything_below_and_a_session_pays_for_what_it_holds() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let limited = Minting { limit: Some(2), ..Minting::with(Rights::READ) };
        let limited = client.mint(client.root(), limited).await.expect("minted");
        let one = client.mint(limited, Minting::with(Rights::READ)).await.expect("the first");
        let two = open(&client, one).await;
        assert_eq!(client.mint(two, Minting::with(Rights::READ)).await.unwrap_err(), no(Cause::Quota));
        let opened = client.call(request(two, OPEN, &[1, 1])).await;
        assert_eq!(opened.unwrap_err(), Failure { cause: Cause::Quota, executed: Executed::Yes });
        assert_eq!(client.inspect(limited).await.expect("held").limit, Some((2, 2)));
        let all = loop {
            if let Err(refused) = client.mint(client.root(), Minting::with(Rights::READ)).await {
                break refused;
            }
        };
        assert_eq!(all, no(Cause::Quota));
        let (other, _other_host) = host.open(2);
        other.mint(other.root(), Minting::with(Rights::READ)).await.expect("it has its own");
        // However many there are: one call ends them.
        let report = client.revoke(client.root(), true, GRACE).await.expect("revoked");
        assert_eq!(report.revoked, (1 << 14) - 1);
        // Their places come back in the turns after it.
        while client.mint(client.root(), Minting::with(Rights::READ)).await.is_err() {
            runtime::yield_now().await;
        }
    });
}

#[test]
fn after_revoke_nothing_derived_happens() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let (other, _other_host) = host.open(2);
        let dir = open(&client, client.root()).await;
        let file = open(&client, dir).await;
        let hanging = [begin(&client, file, HANG, 0), begin(&client, dir, SLEEP, 20)];
        let apart = begin(&client, client.root(), HANG, 0);
        let elsewhere = begin(&other, other.root(), HANG, 0);
        settle().await;
        let report = client.revoke(dir, false, Duration::from_millis(100)).await.expect("revoked");
        assert_eq!(report, Revoked { revoked: 2, completed: 1, cancelled: 1, still_mapped: 0 });
        // Both had been answered before that.
        assert!(hanging.iter().all(runtime::JoinHandle::is_finished));
        assert_eq!(host.thing.served.get(), 4);
        assert!(!apart.is_finished() && !elsewhere.is_finished(), "they are derived from something else");
        settle().await;
        for gone in [dir, file] {
            assert_eq!(echo(&client, gone).await, Err(no(Cause::StaleHandle)));
        }
        echo(&client, client.root()).await.expect("it is above");
        // What the hanging call had brought was born revoked.
        assert_eq!(host.thing.dropped.borrow().len(), 3);
        let again = client.revoke(dir, false, GRACE).await.expect("it is ended");
        assert_eq!(again, Revoked::default());
    });
}

#[test]
fn a_revoke_waits_for_a_handler_that_does_not_listen() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let dir = open(&client, client.root()).await;
        let deaf = begin(&client, dir, SLEEP, 200);
        settle().await;
        let revoke = runtime::spawn({
            let client = client.clone();
            async move { client.revoke(dir, false, Duration::ZERO).await }
        });
        settle().await;
        // Refused from the first moment on, whatever becomes of the handler.
        for operation in [ECHO, OPEN, HANG] {
            assert_eq!(client.call(request(dir, operation, b"")).await.unwrap_err(), no(Cause::Revoked));
        }
        let minted = client.mint(dir, Minting::with(Rights::READ)).await;
        assert_eq!(minted.unwrap_err(), no(Cause::Revoked));
        assert!(client.inspect(dir).await.expect("held").is_revoked);
        let report = revoke.await.expect("not cancelled").expect("revoked");
        assert!(deaf.is_finished());
        assert_eq!(report, Revoked { revoked: 1, completed: 0, cancelled: 1, still_mapped: 0 });
    });
}

#[test]
fn two_revokes_of_the_same_and_of_one_above_both_return() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let dir = open(&client, client.root()).await;
        let below = open(&client, dir).await;
        let busy = begin(&client, below, SLEEP, 50);
        settle().await;
        let revokes: Vec<_> = [(below, false), (dir, true), (below, false), (dir, false), (client.root(), true)]
            .into_iter()
            .map(|(handle, derived_only)| {
                let client = client.clone();
                runtime::spawn(async move { client.revoke(handle, derived_only, LATE).await })
            })
            .collect();
        let mut revoked = 0;
        for revoke in revokes {
            revoked += revoke.await.expect("not cancelled").expect("revoked").revoked;
            assert!(busy.is_finished());
        }
        assert_eq!(revoked, 2);
    });
}

#[test]
fn leases_go_back_with_the_capability_by_which_they_came() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let dir = open(&client, client.root()).await;
        let file = open(&client, dir).await;
        client.call(request(file, LEND, &[3])).await.expect("lent");
        let kept = client.call(request(client.root(), LEND, &[2])).await.expect("lent").leases;
        // The lease remembers, though the file's own handle is gone.
        client.release_handle(file);
        settle().await;
        assert_eq!(host.lender.borrow().lent_count(), 5);
        client.revoke(dir, false, GRACE).await.expect("revoked");
        assert_eq!(host.lender.borrow().lent_count(), 2);
        client.release_lease(kept[0]);
        settle().await;
        assert_eq!(host.lender.borrow().lent_count(), 1);
    });
}

const READ: Minting = Minting { rights: Rights::READ, badge: None, lasts: None, limit: None };

#[test]
fn a_ticket_gives_its_receiver_a_capability_once_and_revoke_reaches_it() {
    over_each_carrier(async |host| {
        let ((giver, _giver_host), (receiver, _receiver_host)) = (host.open(1), host.open(2));
        let dir = giver.mint(giver.root(), Minting::with(ALL)).await.expect("minted");
        let ticket = giver.provide(dir, "client-2", READ, LATE).await.expect("a ticket");
        let ticket = Ticket::from_bytes(ticket.to_bytes());
        assert_eq!(receiver.redeem(ticket, 2).await, Err(no(Cause::WrongKind)));
        let given = receiver.redeem(ticket, 1).await.expect("redeemed");
        assert_eq!(receiver.redeem(ticket, 1).await, Err(no(Cause::NoSuchTicket)));
        echo(&receiver, given).await.expect("it may read");
        let write = receiver.call(request(given, WRITE, b"")).await;
        assert_eq!(write.unwrap_err(), no(Cause::RightsMissing));
        let further = receiver.provide(given, "client-1", READ, LATE).await;
        assert_eq!(further.unwrap_err(), no(Cause::RightsMissing), "it has no GRANT");
        // The giver's own handle is gone, and what it gave is not.
        giver.release_handle(dir);
        settle().await;
        echo(&receiver, given).await.expect("it is the receiver's");
        let hanging = begin(&receiver, given, HANG, 0);
        settle().await;
        let report = giver.revoke(giver.root(), true, SOON).await.expect("revoked");
        assert_eq!(report, Revoked { revoked: 1, completed: 0, cancelled: 1, still_mapped: 0 });
        assert!(hanging.is_finished());
        settle().await;
        assert_eq!(echo(&receiver, given).await, Err(no(Cause::StaleHandle)));
        echo(&receiver, receiver.root()).await.expect("its own");
    });
}

#[test]
fn a_ticket_is_nothing_for_others_nor_forged_late_or_revoked() {
    over_each_carrier(async |host| {
        let clients = [host.open(1), host.open(2), host.open(3)];
        let [giver, receiver, thief] = clients.each_ref().map(|(client, _)| client);
        let ticket = giver.provide(giver.root(), "client-2", READ, LATE).await.expect("a ticket");
        assert_eq!(thief.redeem(ticket, 0).await, Err(no(Cause::NoSuchTicket)));
        assert_eq!(giver.redeem(ticket, 0).await, Err(no(Cause::NoSuchTicket)));
        for n in 0..128 {
            let forged = u128::from_le_bytes(ticket.to_bytes()) ^ 1 << n;
            let forged = receiver.redeem(Ticket::from_bytes(forged.to_le_bytes()), 0).await;
            assert_eq!(forged, Err(no(Cause::NoSuchTicket)));
        }
        receiver.redeem(ticket, 0).await.expect("it is still good");
        let late = giver.provide(giver.root(), "client-2", READ, Duration::ZERO).await.expect("a ticket");
        assert_eq!(receiver.redeem(late, 0).await, Err(no(Cause::NoSuchTicket)));
        let dir = giver.mint(giver.root(), Minting::with(ALL)).await.expect("minted");
        let revoked = giver.provide(dir, "client-2", READ, LATE).await.expect("a ticket");
        giver.revoke(dir, false, GRACE).await.expect("revoked");
        assert_eq!(receiver.redeem(revoked, 0).await, Err(no(Cause::NoSuchTicket)));
        let more = Minting::with(ALL | Rights::MAP);
        assert_eq!(giver.provide(giver.root(), "x", more, LATE).await.unwrap_err(), no(Cause::RightsExceeded));
        for nobody in ["", &"n".repeat(129)] {
            let refused = giver.provide(giver.root(), nobody, READ, LATE).await;
            assert_eq!(refused.unwrap_err(), no(Cause::BadArguments));
        }
    });
}

#[test]
fn tickets_are_few_and_those_that_are_over_make_room() {
    over_each_carrier(async |host| {
        let ((giver, giver_host), (receiver, _receiver_host)) = (host.open(1), host.open(2));
        let provide = async |lasts| giver.provide(giver.root(), "client-2", READ, lasts).await;
        for _ in 0..32 {
            provide(Duration::ZERO).await.expect("a ticket");
            provide(LATE).await.expect("a ticket");
        }
        for _ in 0..32 {
            provide(LATE).await.expect("another's time is over");
        }
        assert_eq!(provide(LATE).await.unwrap_err(), no(Cause::Quota));
        // Revoked ones make room as well.
        giver.revoke(giver.root(), true, GRACE).await.expect("revoked");
        settle().await;
        for _ in 0..64 {
            provide(LATE).await.expect("a ticket");
        }
        assert_eq!(provide(LATE).await.unwrap_err(), no(Cause::Quota));
        // What was revoked is taken out in the turns after it.
        while giver.inspect(giver.root()).await.expect("held").derived > 64 {
            runtime::yield_now().await;
        }
        assert_eq!(giver.inspect(giver.root()).await.expect("held").derived, 64);
        // They end with their giver, and its number may be another's then.
        let (other, _other_host) = host.open(3);
        let ticket = other.provide(other.root(), "client-2", READ, LATE).await.expect("a ticket");
        other.close();
        giver_host.close();
        settle().await;
        let (again, _again_host) = host.open(4);
        again.provide(again.root(), "client-2", READ, LATE).await.expect("a ticket");
        assert_eq!(receiver.redeem(ticket, 0).await, Err(no(Cause::NoSuchTicket)));
        assert_eq!(host.thing.dropped.borrow().len(), 2, "the roots of those who have gone");
    });
}

#[test]
fn what_was_given_ends_with_its_givers_session() {
    over_each_carrier(async |host| {
        let ((giver, giver_host), (receiver, _receiver_host)) = (host.open(1), host.open(2));
        let (third, _third_host) = host.open(3);
        let ticket = giver.provide(giver.root(), "client-2", Minting::with(ALL), LATE).await.expect("a ticket");
        let given = receiver.redeem(ticket, 1).await.expect("redeemed");
        let ticket = receiver.provide(given, "client-3", READ, LATE).await.expect("a ticket");
        let further = third.redeem(ticket, 1).await.expect("redeemed");
        let lent = third.call(request(further, LEND, &[1])).await.expect("lent").leases;
        assert_eq!((lent.len(), host.lender.borrow().lent_count()), (1, 1));
        let hanging = begin(&third, further, HANG, 0);
        settle().await;
        giver_host.close();
        for (client, handle) in [(&receiver, given), (&third, further)] {
            assert!(echo(client, handle).await.is_err(), "from the first moment on");
        }
        hanging.await.expect("not cancelled").expect("it was told to end, and has answered");
        settle().await;
        for (client, handle) in [(&receiver, given), (&third, further)] {
            assert_eq!(echo(client, handle).await, Err(no(Cause::StaleHandle)));
            echo(client, client.root()).await.expect("its own");
        }
        assert_eq!(host.lender.borrow().lent_count(), 0);
        // The giver's root, which the others had copies of, once; and what the hanging call brought.
        assert_eq!(host.thing.dropped.borrow().len(), 2);
    });
}

#[test]
fn a_call_whose_session_ends_before_it_is_served_is_waited_for_by_nobody() {
    over_each_carrier(async |host| {
        let ((giver, _giver_host), (receiver, receiver_host)) = (host.open(1), host.open(2));
        let ticket = giver.provide(giver.root(), "client-2", READ, LATE).await.expect("a ticket");
        let given = receiver.redeem(ticket, 1).await.expect("redeemed");
        // Many, on slots that were never used: the session ends while some are read and not yet begun.
        let calls: Vec<_> = (0..40).map(|_| begin(&receiver, given, ECHO, 0)).collect();
        runtime::yield_now().await;
        receiver_host.close();
        for call in calls {
            let _ = call.await.expect("not cancelled");
        }
        giver.revoke(giver.root(), true, LATE).await.expect("there is nothing to wait for");
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_disturbs_nobody() {
    over_each_carrier(async |host| {
        let (client, _host) = host.open(1);
        let root = client.root();
        for number in (operation::STANDARD..=operation::REDEEM).chain([u16::MAX]) {
            for size in [1, 2, 3, 5, 7, 11, 13, 17, 100, 3000] {
                let refused = client.call(request(root, number, &vec![0xFF; size])).await.unwrap_err();
                assert!([Cause::BadArguments, Cause::UnknownOperation].contains(&refused.cause), "{number:#x} {size}");
            }
            let with_handle = Request { capabilities: &[root], ..request(root, number, b"") };
            assert!(client.call(with_handle).await.is_err());
            for wrong in [Handle { generation: 9, ..root }, Handle { index: 1 << 30, ..root }, Handle::NONE] {
                assert!(client.call(request(wrong, number, b"")).await.is_err());
            }
        }
        assert_eq!(client.revoke(Handle { index: 7, generation: 1 }, false, GRACE).await, Ok(Revoked::default()));
        echo(&client, root).await.expect("nothing has happened");
        assert_eq!(host.thing.served.get(), 1);
    });
}
