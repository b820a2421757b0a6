//! Going on where the last run of the server was killed.
//!
//! 1. What it had lent on is held again at the driver, under the same names; what it had only cached goes back.
//! 2. What its sessions' handles name is held, and its effects since the last checkpoint are done again ([`super::replay`]),
//!    while calls are answered already.

use super::device::LeasedExtent;
use crate::NodeId;
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::{Lease, Object};
use kernel_ipc::lease::{Inherited, StaleLease};
use kernel_ipc::runtime;
use kernel_ipc::session::{Grant, SessionInfo};
use protocol::block;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What the handles of these sessions name.
pub(super) fn nodes(sessions: &[(SessionInfo, Vec<Grant>)]) -> Vec<NodeId> {
    sessions.iter().flat_map(|(_, grants)| grants).map(|grant| NodeId::from_words(grant.object)).collect()
}

/// How long the driver's region may take to be shown here, if the driver dies meanwhile, and how often it is looked for.
const REGION_WITHIN: Duration = Duration::from_secs(5);
const REGION_INTERVAL: Duration = Duration::from_millis(1);

/// Looks for what the last run was lent until it is there. `None`: it is over, for the driver is another lender now. That its
/// region is not to be seen here yet does not mean that: the kernel may still send from it.
///
/// # Errors
/// Why it cannot be held, if that is still so after `within`.
async fn shown<T>(
    within: Duration,
    mut look: impl FnMut() -> Result<T, StaleLease>,
) -> Result<Option<T>, component::Error> {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(extent) => return Ok(Some(extent)),
            Err(StaleLease::Ended | StaleLease::NotYours) => return Ok(None),
            Err(error) if begin.elapsed() > within => {
                return Err(format!("what the last run had lent on cannot be held: {error}").into());
            }
            Err(_) => runtime::sleep(REGION_INTERVAL).await,
        }
    }
}

/// Keeps at the driver what the last run had lent on, and gives the rest back.
///
/// # Errors
/// The driver's region is not shown here. Nothing was given back: the next run tries again.
pub(super) async fn hold_leases(
    cx: &Context,
    client: &block::Client,
    leases: &[Inherited],
) -> Result<(), component::Error> {
    let lender = cx.lender();
    let mut extents = HashMap::new();
    for lease in leases {
        let Some(source) = lease.source else { continue };
        let extent = match extents.entry((source.index, source.generation)) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(new) => match shown(REGION_WITHIN, || LeasedExtent::inherited(cx, client, source)).await? {
                Some(extent) => Rc::clone(new.insert(Rc::new(extent))),
                None => {
                    // A lease that is dying ends by itself.
                    let _ = lender.borrow_mut().take_back(lease.index, lease.generation);
                    continue;
                }
            },
        };
        lender.borrow_mut().keep(lease.index, extent);
    }
    let held = cx.holder().borrow().held();
    for name in held.into_iter().filter(|name| !extents.contains_key(&(name.index, name.generation))) {
        drop(Lease::inherited(client.root().session(), name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::runtime::{Options, Runtime};

    /// What comes of it if the driver's lease is seen like this, one look after the other; and the looks that were not needed.
    fn seen(within: Duration, looks: &[Result<u32, StaleLease>]) -> (Option<Option<u32>>, usize) {
        let mut looks = looks.iter().copied();
        let runtime = Runtime::new(Options::default()).expect("io_uring");
        let found = runtime.block_on(shown(within, || looks.next().expect("it is over by then")));
        (found.ok(), looks.len())
    }

    #[test]
    fn a_lease_is_waited_for_until_its_region_is_shown() {
        use StaleLease::{LenderGone, UnknownLender, UnknownRegion};
        let looks = [Err(UnknownLender), Err(LenderGone), Err(UnknownRegion), Err(UnknownRegion), Ok(7), Ok(8)];
        assert_eq!(seen(Duration::MAX, &looks), (Some(Some(7)), 1));
    }

    #[test]
    fn a_lease_that_the_table_says_is_over_is_not_waited_for() {
        for over in [StaleLease::Ended, StaleLease::NotYours] {
            assert_eq!(seen(Duration::MAX, &[Err(StaleLease::UnknownRegion), Err(over), Ok(7)]), (Some(None), 1));
        }
    }

    #[test]
    fn a_lease_whose_region_does_not_come_is_neither_held_nor_over() {
        assert_eq!(seen(Duration::ZERO, &[Err(StaleLease::UnknownRegion); 100]).0, None);
    }
}
