//! Going on where the last run of the server was killed.
//!
//! 1. What its sessions' handles name is held; then its effects since the last checkpoint are done again, in their order.
//! 2. What it had lent on is held again at the driver, under the same names; what it had only cached goes back.
//! 3. A checkpoint makes all of it durable and empties the ring, while calls are answered already.

use super::device::{LeasedDevice, LeasedExtent};
use super::journal::Effects;
use crate::volume::Journal;
use crate::{Effect, Error, NodeId, Volume};
use kernel_ipc::component::{self, Context, Survived};
use kernel_ipc::interface::{Lease, Object};
use kernel_ipc::lease::{Inherited, StaleLease};
use kernel_ipc::ledger::Record;
use kernel_ipc::runtime;
use protocol::block;
use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Brings `volume` to where the last run was, and gives what keeps the effects of this one.
pub(super) async fn follow(
    cx: &Context,
    volume: &Volume<LeasedDevice>,
    survived: Survived,
) -> Result<Effects, component::Error> {
    let Survived { records, effects, sessions, .. } = survived;
    let records = records.ok_or("no memory for effects")?;
    let ledger = Effects::new(cx.lender().borrow().id().get(), records);
    let held = volume.holds_effects_of(ledger.id());
    let effects: Vec<_> = effects.into_iter().filter(|record| record.end > held).collect();
    // The disk reads while the handles are counted.
    let warming = runtime::spawn(warm(volume.clone(), looks(&effects)));
    volume.will_hold(sessions.iter().map(|(_, grants)| grants.len()).sum());
    for (count, grant) in sessions.iter().flat_map(|(_, grants)| grants).enumerate() {
        volume.hold(NodeId::from_words(grant.object));
        if count % HELD_AT_A_TIME == 0 {
            runtime::yield_now().await;
        }
    }
    // Not beside the changes: those take the times they had, and a reader tells by the time that something has changed.
    finish(warming).await;
    repeat(volume, ledger.id(), held, &effects).await?;
    volume.reap().await?;
    volume.set_journal(Rc::new(ledger.clone()));
    if !effects.is_empty() {
        ledger.trim(volume);
    }
    Ok(ledger)
}

/// The journal while effects are done again: a checkpoint that comes in between holds those that were.
struct Repeating {
    id: u64,
    done: Cell<u64>,
}

impl Journal for Repeating {
    fn id(&self) -> u64 {
        self.id
    }

    fn position(&self) -> u64 {
        self.done.get()
    }

    fn durable(&self, _: u64) {}

    fn keep(&self, _: &[u8]) {}
}

/// Does again what the checkpoint does not hold.
///
/// # Errors
/// The disk does not take it now. Nothing is lost: the next run tries again.
async fn repeat(
    volume: &Volume<LeasedDevice>,
    ledger: u64,
    held: u64,
    effects: &[Record],
) -> Result<(), component::Error> {
    let journal = Rc::new(Repeating { id: ledger, done: Cell::new(held) });
    volume.set_journal(journal.clone());
    let (mut done, mut lost) = (0, 0);
    for record in effects {
        let result = match Effect::decode(&record.effect) {
            Ok(effect) => match volume.repeat(&effect).await {
                Err(error @ (Error::Device(_) | Error::Busy | Error::NoSpace)) => {
                    return Err(format!("what was acknowledged cannot be done again now: {error}").into());
                }
                other => other.map_err(|error| error.to_string()),
            },
            Err(_) => Err("it makes no sense".into()),
        };
        journal.done.set(record.end);
        match result {
            Ok(()) => done += 1,
            Err(error) => {
                lost += 1;
                tracing::error!("an acknowledged change is lost, it cannot be done again: {error}");
            }
        }
    }
    if done + lost > 0 {
        tracing::info!("{done} changes of the last run were repeated, {lost} lost");
    }
    Ok(())
}

/// Changes that are looked at before they are done again, and looks at a time.
const WARMED: usize = 4096;
const AT_A_TIME: usize = 64;

/// Handles that are counted before others have their turn.
const HELD_AT_A_TIME: usize = 256;

/// What changes that are done again one after the other will want to read.
fn looks(effects: &[Record]) -> Vec<(NodeId, Look)> {
    let mut looks = Vec::new();
    let mut known = HashSet::new();
    for record in effects.iter().take(WARMED) {
        let (node, look) = match Effect::decode(&record.effect) {
            // The block that is written in part.
            Ok(Effect::Write { node, offset, .. }) => (node, Look::Read(offset.saturating_sub(1))),
            Ok(Effect::Truncate { node, size, .. }) => (node, Look::Read(size.saturating_sub(1))),
            Ok(Effect::Make { directory, name, .. } | Effect::Remove { directory, name, .. }) => {
                (directory, Look::Find(name.to_vec()))
            }
            Ok(Effect::Rename { from, from_name, .. }) => (from, Look::Find(from_name.to_vec())),
            Err(_) => continue,
        };
        if known.insert((node, look.clone())) {
            looks.push((node, look));
        }
    }
    looks
}

/// Reads it, many at a time. It is in no cache; whoever wants the same meanwhile waits for the same read.
async fn warm(volume: Volume<LeasedDevice>, looks: Vec<(NodeId, Look)>) {
    let mut running = VecDeque::with_capacity(AT_A_TIME);
    for (node, look) in looks {
        if running.len() == AT_A_TIME
            && let Some(first) = running.pop_front()
        {
            finish(first).await;
        }
        let volume = volume.clone();
        running.push_back(runtime::spawn(async move {
            // What cannot be read now will say so when it is wanted.
            match look {
                Look::Read(at) => drop(volume.read(node, at, 1).await),
                Look::Find(name) => drop(volume.lookup(node, &name).await),
            }
        }));
    }
    for look in running {
        finish(look).await;
    }
}

async fn finish(look: runtime::JoinHandle<()>) {
    // Nobody cancels it.
    let _ = look.await;
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Look {
    Read(u64),
    Find(Vec<u8>),
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
