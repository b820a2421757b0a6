//! Going on where the last run of the server was killed.
//!
//! 1. What its sessions' handles name is held; then its effects since the last checkpoint are done again, in their order.
//! 2. What it had lent on is held again at the driver, under the same names; what it had only cached goes back.
//! 3. A checkpoint makes all of it durable and empties the ring.

use super::device::{LeasedDevice, LeasedExtent};
use super::journal::Effects;
use crate::volume::Journal;
use crate::{Effect, NodeId, Volume};
use kernel_ipc::component::{self, Context, Survived};
use kernel_ipc::interface::{Lease, Object};
use kernel_ipc::lease::Inherited;
use kernel_ipc::ledger::Record;
use protocol::block;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

/// Brings `volume` to where the last run was, and gives what keeps the effects of this one.
pub(super) async fn follow(
    cx: &Context,
    client: &block::Client,
    volume: &Volume<LeasedDevice>,
    survived: Survived,
) -> Result<Effects, component::Error> {
    let Survived { records, effects, sessions, leases, lost } = survived;
    if let Some(lost) = lost {
        tracing::error!("what was not durable is lost, and sessions end: {lost}");
    }
    let records = records.ok_or("no memory for effects")?;
    let ledger = Effects::new(cx.lender().borrow().id().get(), records);
    for (_, grants) in &sessions {
        for grant in grants {
            volume.hold(NodeId::from_words(grant.object));
        }
    }
    repeat(volume, volume.holds_effects_of(ledger.id()), &effects).await;
    hold_leases(cx, client, &leases);
    volume.reap().await?;
    volume.set_journal(Rc::new(ledger.clone()));
    if !effects.is_empty() {
        volume.sync().await?;
    }
    Ok(ledger)
}

/// Does again what lies behind `durable`.
async fn repeat(volume: &Volume<LeasedDevice>, durable: u64, effects: &[Record]) {
    let (mut done, mut missing) = (0, effects.iter().filter(|record| record.end > durable));
    for record in missing.by_ref() {
        let result = match Effect::decode(&record.effect) {
            Ok(effect) => volume.repeat(&effect).await.map_err(|error| error.to_string()),
            Err(_) => Err("it makes no sense".into()),
        };
        if let Err(error) = result {
            let lost = missing.count() + 1;
            tracing::error!("{lost} acknowledged changes are lost: the first cannot be repeated: {error}");
            return;
        }
        done += 1;
    }
    if done > 0 {
        tracing::info!("{done} changes of the last run were repeated");
    }
}

/// Keeps at the driver what the last run had lent on, and gives the rest back.
fn hold_leases(cx: &Context, client: &block::Client, leases: &[Inherited]) {
    let lender = cx.lender();
    let mut extents = HashMap::new();
    for lease in leases {
        let Some(source) = lease.source else { continue };
        let extent = match extents.entry((source.index, source.generation)) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(new) => match LeasedExtent::inherited(cx, client, source) {
                Ok(extent) => Rc::clone(new.insert(Rc::new(extent))),
                Err(_) => {
                    // The driver died too, and its region with it. A lease that is dying ends by itself.
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
}
