//! What was minted and revoked, and what was lent by it, through the deaths of the host.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::lease::Lender;
use kernel_ipc::runtime;
use kernel_ipc::session::capability::Minting;
use kernel_ipc::session::{ClientSession, Heritage, HostSession, Ledgers, Offer, Served, SessionInfo};
use kernel_ipc::wire::{LeaseName, Shape};
use kernel_ipc::{Cause, Epoch, Executed, Failure, Handle, Incarnation, Rights};

use super::common::run;
use super::host::{Adder, IS_LENT, LEASES, LEND, LONG, Node, OPEN, READ, info, kills, lender, memory, number};
use super::host::{request, root};

const AT_ONCE: Duration = Duration::ZERO;

async fn opened(client: &ClientSession, n: u64) -> Handle {
    let reply = client.call(request(client.root(), OPEN, &n.to_le_bytes())).await.expect("granted");
    reply.capabilities[0]
}

async fn lent(client: &ClientSession, on: Handle, page: u64) -> LeaseName {
    client.call(request(on, LEND, &page.to_le_bytes())).await.expect("lent").leases[0]
}

/// Whether a lease is out, as its lender knows it.
async fn is_lent(client: &ClientSession, lease: &LeaseName) -> bool {
    let name = u64::from(lease.generation) << 32 | u64::from(lease.index);
    let reply = client.call(request(client.root(), IS_LENT, &name.to_le_bytes())).await.expect("idempotent");
    reply.payload[..] == [1]
}

fn readable() -> Minting {
    Minting::with(Rights::READ)
}

/// The number of its object.
async fn read(client: &ClientSession, on: Handle) -> Result<u64, Failure> {
    client.call(request(on, READ, b"")).await.map(|reply| number(&reply.payload))
}

async fn is_ended(client: &ClientSession, on: Handle) -> bool {
    read(client, on).await.is_err_and(|failure| {
        matches!(failure.cause, Cause::Revoked | Cause::StaleHandle) && failure.executed == Executed::No
    })
}

#[test]
fn what_was_minted_before_a_death_is_good_after_it_and_each_mint_has_happened_once() {
    run(async {
        let node = Rc::new(Node::new());
        let client = node.open().await;
        let source = opened(&client, 5).await;
        let stop = Rc::new(Cell::new(false));
        let minting = || {
            let (client, stop) = (client.clone(), stop.clone());
            runtime::spawn(async move {
                let mut minted = Vec::new();
                while !stop.get() && minted.len() < 500 {
                    let badge = 1 + minted.len() as u64;
                    let handle = client.mint(source, Minting { badge: Some(badge), ..readable() }).await;
                    minted.push((handle.expect("answered"), badge));
                    runtime::sleep(Duration::from_millis(1)).await;
                }
                minted
            })
        };
        let callers: Vec<_> = (0..8).map(|_| minting()).collect();
        for kill in 0..kills() / 2 {
            runtime::sleep(Duration::from_micros(u64::from(kill * 7919 % 9000))).await;
            node.replace(&client);
        }
        stop.set(true);
        let mut minted = Vec::new();
        for caller in callers {
            minted.extend(caller.await.expect("not cancelled"));
        }
        node.replace(&client);
        for (handle, badge) in &minted {
            assert_eq!(read(&client, *handle).await, Ok(5));
            let known = client.inspect(*handle).await.expect("held");
            assert_eq!((known.badge, known.rights), (*badge, Rights::READ));
        }
        let derived = client.inspect(source).await.expect("held").derived;
        assert_eq!(derived as usize, minted.len(), "none has stayed of a call that was sent again");
    });
}

#[test]
fn what_was_revoked_before_a_death_stays_revoked_and_what_is_beside_it_does_not() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let source = opened(&client, 1).await;
        let minted = client.mint(source, readable()).await.expect("minted");
        let derived = client.mint(minted, readable()).await.expect("minted");
        let beside = client.mint(source, readable()).await.expect("minted");
        assert_eq!(client.revoke(minted, false, AT_ONCE).await.expect("revoked").revoked, 2);
        for _ in 0..2 {
            node.replace(&client);
            assert!(is_ended(&client, minted).await && is_ended(&client, derived).await);
            assert_eq!((read(&client, source).await, read(&client, beside).await), (Ok(1), Ok(1)));
            let again = client.revoke(minted, false, AT_ONCE).await.expect("there is nothing to do");
            assert_eq!(again.revoked, 0);
        }
        // Of a capability that is spared itself.
        assert_eq!(client.revoke(source, true, AT_ONCE).await.expect("revoked").revoked, 1);
        node.replace(&client);
        assert!(is_ended(&client, beside).await);
        assert_eq!(read(&client, source).await, Ok(1));
    });
}

#[test]
fn a_revoke_that_is_half_done_when_its_host_dies_is_finished() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let source = opened(&client, 1).await;
        let mut below = Vec::new();
        for _ in 0..20 {
            below.push(client.mint(source, readable()).await.expect("minted"));
        }
        let leases = [lent(&client, below[3], 1).await, lent(&client, source, 2).await];
        let spared = lent(&client, client.root(), 4).await;
        // One that the revoke has to wait for.
        let waits = runtime::spawn({
            let (client, on) = (client.clone(), below[7]);
            async move { client.call(request(on, READ, &LONG.to_le_bytes())).await.map(drop) }
        });
        runtime::yield_now().await;
        let revoke = runtime::spawn({
            let client = client.clone();
            async move { client.revoke(source, false, Duration::from_secs(60)).await }
        });
        while !is_ended(&client, source).await {}
        assert!(is_lent(&client, &leases[0]).await, "the revoke has come no further");
        node.replace(&client);
        // Whether it is sent again or not, nothing below it is there any more.
        for lease in &leases {
            assert!(!is_lent(&client, lease).await);
        }
        assert!(is_lent(&client, &spared).await);
        revoke.await.expect("not cancelled").expect("sent again, it has nothing to do");
        assert!(waits.await.expect("not cancelled").is_err(), "it is not answered after that");
        for handle in [source].iter().chain(&below) {
            assert!(is_ended(&client, *handle).await);
        }
        assert_eq!(read(&client, client.root()).await, Ok(0));
    });
}

#[test]
fn what_a_dead_run_has_lent_goes_back_with_the_capability_by_which_it_came() {
    run(async {
        let node = Node::new();
        let client = node.open().await;
        let (source, other) = (opened(&client, 1).await, opened(&client, 2).await);
        let below = client.mint(source, readable()).await.expect("minted");
        let mut theirs = vec![lent(&client, source, 1).await, lent(&client, below, 2).await];
        // By this one nobody calls any more. It came from the source all the same.
        client.release_handle(below);
        let spared = [lent(&client, other, 4).await, lent(&client, client.root(), 5).await];
        node.replace(&client);
        theirs.push(lent(&client, source, 7).await);
        let returned = lent(&client, source, 8).await;
        node.replace(&client);
        client.release_lease(returned);
        for lease in theirs.iter().chain(&spared) {
            assert!(is_lent(&client, lease).await, "nobody has given it back");
        }
        assert!(!is_lent(&client, &returned).await);
        let report = client.revoke(source, false, AT_ONCE).await.expect("revoked");
        assert_eq!((report.revoked, report.still_mapped), (1, 0));
        for _ in 0..2 {
            for lease in &theirs {
                assert!(!is_lent(&client, lease).await);
            }
            for lease in &spared {
                assert!(is_lent(&client, lease).await);
            }
            node.replace(&client);
        }
    });
}

/// A host of two sessions in this very process, which dies without a word.
struct Two {
    leases: OwnedFd,
    table: OwnedFd,
    ledgers: [OwnedFd; 2],
}

fn again(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().expect("a descriptor")
}

impl Two {
    fn lender(&self, epoch: u64) -> Rc<RefCell<Lender>> {
        lender(epoch, again(self.leases.as_fd()), again(self.table.as_fd()))
    }

    fn info(n: usize, epoch: u64) -> SessionInfo {
        info(n as u64 + 1, ["giver", "receiver"][n], epoch)
    }

    fn open(&self, n: usize, served: &Served<Adder>, lender: &Rc<RefCell<Lender>>) -> (ClientSession, HostSession) {
        let offer = Offer::new(Shape::default()).expect("a segment");
        let ledgers = Ledgers { session: again(self.ledgers[n].as_fd()), component: None };
        let (segment, info) = (again(offer.fd()), Self::info(n, 1));
        let id = info.id;
        let host = HostSession::start_surviving(segment, root(), served.clone(), info, Some(lender.clone()), ledgers);
        let host = host.expect("a session");
        let segment = again(host.fd().expect("shared memory"));
        (offer.open_surviving(segment, id, Epoch(1)).expect("a session"), host)
    }

    fn left(&self, n: usize) -> Heritage {
        let ledger = again(self.ledgers[n].as_fd());
        Heritage::check(ledger, Self::info(n, 2).id, |_| 0, None).expect("a good ledger")
    }
}

#[test]
fn a_revoke_reaches_what_a_dead_run_has_lent_on_a_session_that_is_not_resumed_yet() {
    run(async {
        let two = Two {
            leases: memory(Lender::ledger_bytes(LEASES)),
            table: memory(Lender::table_bytes(LEASES)),
            ledgers: [memory(Ledgers::BYTES), memory(Ledgers::BYTES)],
        };
        let (served, first) = (Served::from(Rc::<Adder>::default()), two.lender(1));
        let (giver, giving) = two.open(0, &served, &first);
        let (receiver, receiving) = two.open(1, &served, &first);
        let source = opened(&giver, 1).await;
        let ticket = giver.provide(source, "receiver", readable(), Duration::from_secs(60)).await.expect("a ticket");
        let copy = receiver.redeem(ticket, 0).await.expect("the ticket is its");
        let (theirs, spared) = (lent(&receiver, copy, 1).await, lent(&receiver, receiver.root(), 2).await);

        // The receiver's end goes first, so that nothing of the giver's end reaches its ledger.
        for (client, host) in [(&receiver, receiving), (&giver, giving)] {
            client.suspend();
            host.abandon();
        }
        drop((served, first));
        let (served, next) = (Served::from(Rc::<Adder>::default()), two.lender(2));
        let left = [two.left(0), two.left(1)];
        served.inherit((0..).zip(&left).map(|(n, left)| (Two::info(n, 2), left)), Some(&next));
        let go_on = |n: usize, client: &ClientSession, left: Heritage| {
            let offer = client.offer().expect("a segment");
            let (segment, lender) = (again(offer.fd()), Some(next.clone()));
            let host = HostSession::go_on(segment, left, served.clone(), Two::info(n, 2), lender, None);
            let host = host.expect("the session goes on");
            client.resume(offer, again(host.fd().expect("shared memory")), Epoch(2)).expect("the session goes on");
            host
        };
        let [giving, receiving] = left;
        let _giving = go_on(0, &giver, giving);
        let is_out = |lease: &LeaseName| next.borrow().locate(Incarnation(2), lease.index, lease.generation).is_ok();
        assert!(is_out(&theirs) && is_out(&spared));
        giver.revoke(source, false, AT_ONCE).await.expect("revoked");
        assert!(!is_out(&theirs) && is_out(&spared));

        let _receiving = go_on(1, &receiver, receiving);
        assert!(is_ended(&receiver, copy).await);
        receiver.release_lease(spared);
        assert_eq!(read(&receiver, receiver.root()).await, Ok(0));
        assert!(!is_out(&spared));
    });
}
