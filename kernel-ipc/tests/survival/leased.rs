//! Calls that lend to a host beyond a socket, which is killed: also while what they lend is on its way.

use std::cell::RefCell;
use std::rc::Rc;

use kernel_ipc::lease::{Holder, Lender, Pool, Region, RegionReader};
use kernel_ipc::link::socket::bulk::offer::Offering;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::session::{ClientSession, Request};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId};

use super::common::run;
use super::host::{ADD_LEASED, Node, number, request};
use super::through_kills;

const ME: Incarnation = Incarnation(1);
/// Several chunks, and the number behind them.
const LENGTH: usize = (600 << 10) + 8;

#[test]
fn no_call_that_lends_is_lost_and_none_runs_twice_however_often_the_host_is_killed() {
    run(async {
        let pool = Pool::new(Region::create("own", RegionId(3), 32 << 20).expect("memory"), 4096);
        let memory = pool.region().fd().try_clone_to_owned().expect("dup");
        let reader = RegionReader::open(memory, RegionId(3)).expect("a region");
        let lender = Rc::new(RefCell::new(Lender::new(LenderId(4), Epoch(1), 64).expect("memory for a table")));
        let own = Lending::new(lender.clone(), [reader]);
        let holder = Rc::new(RefCell::new(Holder::new(ME)));
        let node = Node::beyond();
        node.offering.replace(Some(Offering { own, holder, holders: [ME, Incarnation(2)] }));
        let whole = pool.free();
        let adds = {
            let (lender, pool) = (lender.clone(), pool.clone());
            async move |client: &ClientSession, n: u64| {
                let extent = Rc::new(pool.take(LENGTH).expect("there is room"));
                extent.copy_in(LENGTH - 8, &n.to_le_bytes()).expect("it is inside");
                let name = lender.borrow_mut().lend(ME, extent.lend(0..LENGTH).expect("inside")).expect("room");
                drop(extent);
                let request = Request { leases: &[name], ..request(client.root(), ADD_LEASED, b"") };
                let reply = client.call(request).await.expect("answered");
                let _ = lender.borrow_mut().take_back(name.index, name.generation);
                assert_eq!(number(&reply.payload[8..16]), n);
                number(&reply.payload[..8])
            }
        };
        let (_node, client) = through_kills(node, adds).await;
        assert!(client.resumed().repeated > 0, "{:?}", client.resumed());
        assert_eq!((pool.free(), lender.borrow().lent_count()), (whole, 0));
    });
}
