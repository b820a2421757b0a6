//! Doing again what a run of the server did after its last checkpoint.
//!
//! - What a checkpoint holds is not done again: its pack says up to which record of which ledger it goes.
//! - Effects are done in their order, under the names, numbers and times that they had, through the same code.
//! - A file whose last name went and that nobody holds may be gone already; what was done to it since is gone with it.

use super::Volume;
use crate::device::Device;
use crate::effect::Effect;
use crate::error::Error;
use crate::format::items::FileKind;

/// Where effects are kept until a checkpoint makes them durable.
pub trait Journal {
    /// Which ledger it is: a number that no other has.
    fn id(&self) -> u64;
    /// Behind the last effect that it has.
    fn position(&self) -> u64;
    /// What lies before `position` is durable.
    fn durable(&self, position: u64);
    /// Keeps an effect that belongs to no call, behind all others. False: it can be at no such place, and no checkpoint may hold
    /// what comes after it.
    fn keep(&self, effect: &[u8]) -> bool;
}

impl<D: Device> Volume<D> {
    /// Keeps effects in `journal` from now on: checkpoints say how far they go.
    pub fn set_journal(&self, journal: std::rc::Rc<dyn Journal>) {
        self.inner.journal.replace(Some(journal));
    }

    /// Up to which position of this ledger the volume holds the effects, as it was mounted.
    #[must_use]
    pub fn holds_effects_of(&self, ledger: u64) -> u64 {
        let (known, position) = self.inner.mounted_ledger.get();
        if known == ledger { position } else { 0 }
    }

    /// Does an effect again.
    ///
    /// # Errors
    /// It does not fit what the volume holds.
    pub async fn repeat(&self, effect: &Effect<'_>) -> Result<(), Error> {
        self.inner.environment.stop_clock(Some(effect.now_ns()));
        let result = match *effect {
            Effect::Make { directory, name, kind, node, now_ns } => {
                self.inner.make(directory, name, kind, Some((node, now_ns))).await.map(drop)
            }
            Effect::Remove { directory, name, kind: FileKind::File, .. } => self.unlink(directory, name).await,
            Effect::Remove { directory, name, kind: FileKind::Directory, .. } => self.rmdir(directory, name).await,
            Effect::Rename { from, from_name, to, to_name, replace, .. } => {
                self.rename(from, from_name, to, to_name, replace).await
            }
            Effect::Write { node, offset, data, .. } => self.unless_gone(self.write(node, offset, data).await),
            Effect::Truncate { node, size, .. } => self.unless_gone(self.truncate(node, size).await),
        };
        // Times are versions: nothing that is done from now on has an older one.
        self.inner.environment.stop_clock(None);
        result
    }

    /// The time now, in nanoseconds since 1970; no two are the same.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.inner.environment.now_ns()
    }

    fn unless_gone(&self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Stale | Error::NotFound) => Ok(()),
            other => other,
        }
    }
}
