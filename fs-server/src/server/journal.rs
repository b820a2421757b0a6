//! Effects of calls, kept until a checkpoint makes them durable.
//!
//! - A call makes room for its effect before it does anything; without room a checkpoint is made, which trims the ring.
//! - Effects on one file are kept in the order in which they happened, though the calls may wait for the disk in between:
//!   each takes its [`Turn`] at the moment of its effect and is answered after all before it.

use super::device::LeasedDevice;
use crate::sync::Bell;
use crate::volume::Journal;
use crate::{Error, Volume};
use kernel_ipc::session::ComponentLedger;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// Bytes of effects that are kept at most.
pub(super) const RING_BYTES: usize = 16 << 20;
/// What a record costs beside its effect: its head, an effect's fields, and a filler before the ring's end.
const OVERHEAD: u64 = 1024;
/// A checkpoint is begun in the background when less than this is left.
const LOW: u64 = RING_BYTES as u64 / 2;

/// The ring, and who has reserved room in it.
#[derive(Clone)]
pub(super) struct Effects(Rc<Inner>);

struct Inner {
    id: u64,
    records: ComponentLedger,
    reserved: Cell<u64>,
    trimming: Cell<bool>,
    files: RefCell<HashMap<u64, BTreeSet<u64>>>,
    next_turn: Cell<u64>,
    turned: Bell,
}

/// Room for one effect, until it is dropped: right before the effect is kept.
pub(super) struct Room {
    effects: Effects,
    bytes: u64,
}

/// A place in the order of effects on one file, until it is dropped: right before the effect is kept.
pub(super) struct Turn {
    effects: Effects,
    file: u64,
    number: u64,
}

impl Effects {
    pub(super) fn new(id: u64, records: ComponentLedger) -> Self {
        Self(Rc::new(Inner {
            id,
            records,
            reserved: Cell::new(0),
            trimming: Cell::new(false),
            files: RefCell::default(),
            next_turn: Cell::new(0),
            turned: Bell::default(),
        }))
    }

    /// Waits for room for an effect with so many bytes of names or data.
    pub(super) async fn room(&self, bytes: usize, volume: &Volume<LeasedDevice>) -> Result<Room, Error> {
        // A filler can be as long as the record that does not fit before the ring's end.
        let bytes = 2 * bytes as u64 + OVERHEAD;
        loop {
            let left = self.0.records.borrow().room().saturating_sub(self.0.reserved.get());
            if left >= bytes {
                self.0.reserved.set(self.0.reserved.get() + bytes);
                if left < LOW {
                    self.trim(volume);
                }
                return Ok(Room { effects: self.clone(), bytes });
            }
            volume.sync().await?;
        }
    }

    /// Begins a checkpoint in the background, which empties the ring.
    pub(super) fn trim(&self, volume: &Volume<LeasedDevice>) {
        if self.0.trimming.replace(true) {
            return;
        }
        let (effects, volume) = (self.clone(), volume.clone());
        drop(kernel_ipc::runtime::spawn(async move {
            // Whoever finds no room hears why.
            let _ = volume.sync().await;
            effects.0.trimming.set(false);
        }));
    }

    /// Takes the next place in the order of effects on a file.
    pub(super) fn turn(&self, file: u64) -> Turn {
        let number = self.0.next_turn.replace(self.0.next_turn.get() + 1);
        self.0.files.borrow_mut().entry(file).or_default().insert(number);
        Turn { effects: self.clone(), file, number }
    }
}

impl Turn {
    /// Waits until every effect before this one on the same file is kept.
    pub(super) async fn come(&self) {
        loop {
            let turned = self.effects.0.turned.heard();
            let first = self.effects.0.files.borrow().get(&self.file).and_then(|turns| turns.first().copied());
            if first == Some(self.number) {
                return;
            }
            turned.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut files = self.effects.0.files.borrow_mut();
        if let Some(turns) = files.get_mut(&self.file) {
            turns.remove(&self.number);
            if turns.is_empty() {
                files.remove(&self.file);
            }
        }
        drop(files);
        self.effects.0.turned.ring();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let reserved = &self.effects.0.reserved;
        reserved.set(reserved.get().saturating_sub(self.bytes));
    }
}

impl Journal for Effects {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn position(&self) -> u64 {
        self.0.records.borrow().position()
    }

    fn durable(&self, position: u64) {
        self.0.records.borrow_mut().trim(position);
    }

    fn keep(&self, effect: &[u8]) -> bool {
        if self.0.records.borrow_mut().append(None, &[effect]).is_err() {
            // A checkpoint makes room, for the removal that makes space.
            tracing::error!("what the disk has no space for would be lost if this process died now");
        }
        true
    }
}
