//! Doing again what the last run of the server did since its last checkpoint, while calls are answered already.
//!
//! - Who asks for what none of it changes is answered at once: other files, and names if no name changes. Who asks for a file
//!   waits until its last change is done.
//! - Everybody else waits until it is over, and so does whoever wants to change anything: effects stay in their order.
//! - What handles name is held before anything is done again, and what they give back is let go when it is over.
//! - Until it is over no checkpoint holds anything of this run, so the ring has the last run's effects first.
//! - Then a checkpoint makes all of it durable and empties the ring.

use super::device::LeasedDevice;
use super::journal::Effects;
use crate::sync::Bell;
use crate::volume::Journal;
use crate::{Effect, Error, NodeId, Volume};
use kernel_ipc::component;
use kernel_ipc::component::waits::Event;
use kernel_ipc::ledger::Record;
use kernel_ipc::runtime;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;

/// What is done again, and whether that is over.
#[derive(Default)]
pub(super) struct Replay {
    journal: Rc<Repeating>,
    /// Files and directories that change, each with its last effect.
    nodes: RefCell<HashMap<NodeId, usize>>,
    /// Names change.
    names: bool,
    /// What loses a name, and so may go, is known by that name alone.
    any: bool,
    /// How many effects are done, and that there are more of them than before.
    done: Cell<usize>,
    moved: Bell,
    over: Event,
}

impl Replay {
    /// Of those of these effects that `volume` lacks, which are given. A checkpoint holds what was done again, from now on.
    pub(super) fn new(
        volume: &Volume<LeasedDevice>,
        ledger: &Effects,
        effects: Vec<Record>,
    ) -> (Rc<Self>, Vec<Record>) {
        let held = volume.holds_effects_of(ledger.id());
        let effects: Vec<_> = effects.into_iter().filter(|record| record.end > held).collect();
        let journal = Rc::new(Repeating { id: ledger.id(), done: Cell::new(held) });
        volume.set_journal(journal.clone());
        (Rc::new(Self { journal, ..Self::of(&effects) }), effects)
    }

    fn of(effects: &[Record]) -> Self {
        let mut replay = Self::default();
        let nodes = replay.nodes.get_mut();
        for (number, record) in effects.iter().enumerate() {
            match Effect::decode(&record.effect) {
                Ok(Effect::Write { node, .. } | Effect::Truncate { node, .. }) => {
                    nodes.insert(node, number);
                }
                Ok(Effect::Make { directory, node, .. }) => {
                    nodes.extend([(directory, number), (node, number)]);
                    replay.names = true;
                }
                Ok(Effect::Remove { .. } | Effect::Rename { .. }) => replay.any = true,
                Err(_) => {}
            }
        }
        replay
    }

    /// Whether all of it is done.
    pub(super) fn is_over(&self) -> bool {
        self.over.has_happened()
    }

    /// Waits until all of it is done.
    pub(super) async fn over(&self) {
        self.over.wait().await;
    }

    /// Waits until names are what they were.
    pub(super) async fn names(&self) {
        if self.names || self.any {
            self.over().await;
        }
    }

    /// Waits until a file or directory is what it was. Says whether that took anything.
    pub(super) async fn node(&self, node: NodeId) -> bool {
        let is_done = |number: &usize| *number < self.done.get();
        let is_what_it_was =
            || self.over.has_happened() || (!self.any && self.nodes.borrow().get(&node).is_none_or(is_done));
        let waits = !is_what_it_was();
        while !is_what_it_was() {
            self.moved.heard().await;
        }
        waits
    }

    /// Brings `volume` to where the last run was, which had `held` these nodes; from then on its effects are kept in `ledger`.
    ///
    /// # Errors
    /// The disk does not take it now. Nothing is lost: the next run tries again.
    pub(super) async fn run(
        &self,
        held: Vec<NodeId>,
        effects: Vec<Record>,
        volume: &Volume<LeasedDevice>,
        ledger: &Effects,
    ) -> Result<(), component::Error> {
        volume.flush_mounted().await.map_err(|error| format!("the checkpoint that was mounted: {error}"))?;
        hold(volume, held).await;
        // Not beside the changes: those take the times they had, and a reader tells by the time that something has changed.
        warm(volume, looks(&effects)).await;
        self.repeat(&effects, volume).await?;
        volume.reap().await?;
        volume.set_journal(Rc::new(ledger.clone()));
        if !effects.is_empty() {
            ledger.trim(volume);
        }
        self.over.happen();
        self.moved.ring();
        self.nodes.take();
        Ok(())
    }

    /// Does again what the checkpoint does not hold.
    ///
    /// # Errors
    /// The disk does not take it now. Nothing is lost: the next run tries again.
    async fn repeat(&self, effects: &[Record], volume: &Volume<LeasedDevice>) -> Result<(), component::Error> {
        let (mut done, mut lost) = (0, 0);
        for (count, record) in effects.iter().enumerate() {
            if count % IN_A_TURN == 0 {
                self.done.set(count);
                self.moved.ring();
                others().await;
            }
            let result = match Effect::decode(&record.effect) {
                Ok(effect) => match volume.repeat(&effect).await {
                    Err(error @ (Error::Device(_) | Error::Busy | Error::NoSpace)) => {
                        return Err(format!("what was acknowledged cannot be done again now: {error}").into());
                    }
                    other => other.map_err(|error| error.to_string()),
                },
                Err(_) => Err("it makes no sense".into()),
            };
            self.journal.done.set(record.end);
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
}

/// The journal while effects are done again: a checkpoint that comes in between holds those that were.
#[derive(Default)]
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

    /// Behind all others there are effects that are not done yet, and may be of the same file.
    fn keep(&self, _: &[u8]) -> bool {
        false
    }
}

/// Changes that are done again before others have their turn: callers are answered meanwhile.
const IN_A_TURN: usize = 16;

/// Nodes that are held before others have their turn.
const HELD_IN_A_TURN: usize = 256;

/// Changes that are looked at before they are done again, and looks at a time.
const WARMED: usize = 4096;
const AT_A_TIME: usize = 16;

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

/// Holds these nodes. Nothing is freed meanwhile: whoever changes something or gives something back waits until all is over.
async fn hold(volume: &Volume<LeasedDevice>, nodes: Vec<NodeId>) {
    volume.will_hold(nodes.len());
    for some in nodes.chunks(HELD_IN_A_TURN) {
        some.iter().for_each(|&node| volume.hold(node));
        others().await;
    }
}

/// Lets callers have their turn, and whoever brings them here: they may wait for this processor.
async fn others() {
    std::thread::yield_now();
    runtime::yield_now().await;
}

/// Reads it, many at a time. It is in no cache; whoever wants the same meanwhile waits for the same read.
async fn warm(volume: &Volume<LeasedDevice>, looks: Vec<(NodeId, Look)>) {
    let mut running = VecDeque::with_capacity(AT_A_TIME);
    for (count, (node, look)) in looks.into_iter().enumerate() {
        if count % IN_A_TURN == 0 {
            runtime::yield_now().await;
        }
        if running.len() == AT_A_TIME
            && let Some(first) = running.pop_front()
        {
            finish(first).await;
        }
        let volume = volume.clone();
        let mut look = Box::pin(async move {
            // What cannot be read now will say so when it is wanted.
            match look {
                Look::Read(at) => drop(volume.read(node, at, 1).await),
                Look::Find(name) => drop(volume.lookup(node, &name).await),
            }
        });
        // A task for those alone that wait for the disk.
        if poll_fn(|cx| Poll::Ready(look.as_mut().poll(cx))).await.is_pending() {
            running.push_back(runtime::spawn(look));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::items::FileKind;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const fn node(inode: u64) -> NodeId {
        NodeId { inode, generation: 1 }
    }

    fn replay(effects: &[Effect<'_>]) -> Replay {
        let record = |effect: &Effect<'_>| Record { call: None, end: 1, effect: effect.encode() };
        Replay::of(&effects.iter().map(record).collect::<Vec<_>>())
    }

    /// Whether something has to be waited for.
    fn waits<T>(future: impl Future<Output = T>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    const WRITE: Effect<'static> = Effect::Write { node: node(7), offset: 0, data: b"new", now_ns: 1 };
    const MAKE: Effect<'static> =
        Effect::Make { directory: node(2), name: b"made", kind: FileKind::File, node: node(8), now_ns: 1 };
    const REMOVE: Effect<'static> =
        Effect::Remove { directory: node(2), name: b"gone", kind: FileKind::File, now_ns: 1 };

    #[test]
    fn only_who_wants_what_a_write_changes_waits() {
        let replay = replay(&[WRITE]);
        assert!(waits(replay.node(node(7))) && waits(replay.over()));
        assert!(!waits(replay.node(node(8))) && !waits(replay.names()));
    }

    #[test]
    fn names_wait_where_something_was_made_and_other_files_do_not() {
        let replay = replay(&[MAKE]);
        assert!(waits(replay.names()) && waits(replay.node(node(2))) && waits(replay.node(node(8))));
        assert!(!waits(replay.node(node(7))));
    }

    #[test]
    fn a_file_is_what_it_was_when_its_last_change_is_done() {
        let replay = replay(&[MAKE, WRITE, MAKE]);
        replay.done.set(2);
        assert!(!waits(replay.node(node(7))) && waits(replay.node(node(8))) && waits(replay.names()));
        replay.done.set(3);
        assert!(!waits(replay.node(node(8))) && waits(replay.names()));
    }

    #[test]
    fn everybody_waits_where_something_lost_its_name() {
        let replay = replay(&[WRITE, REMOVE]);
        assert!(waits(replay.names()) && waits(replay.node(node(9))));
    }

    #[test]
    fn nobody_waits_when_it_is_over_and_readers_do_not_where_there_is_nothing_to_do() {
        let nothing = replay(&[]);
        assert!(!waits(nothing.node(node(7))) && !waits(nothing.names()));
        let done = replay(&[WRITE, MAKE, REMOVE]);
        done.over.happen();
        assert!(!waits(done.node(node(7))) && !waits(done.names()) && !waits(done.over()));
    }
}
