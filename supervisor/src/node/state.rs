//! The state directory: its lock, and the numbers that are dealt out only once.
//!
//! ```text
//! STATE/lock         locked (flock) as long as the node lives
//! STATE/boot         how often a supervisor was started here, decimal
//! STATE/manifest     the manifest of the node that runs, as it was when that was started
//! STATE/manifest.base   the directory from which it was, for the programs that it names
//! STATE/atoll.sock   where guests connect
//! STATE/ended        how the last node here ended (`crate::ended`)
//! STATE/logs/NAME.log   what a component prints
//! STATE/system.log      all of it together
//! ```
//! What components keep (the disk image) lies beside these.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The state directory of this node, locked.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    lock: File,
    next: Cell<u64>,
}

/// Why there is no node on this directory.
#[derive(Debug)]
pub enum StateError {
    /// Another node runs on it.
    Busy(PathBuf),
    /// The boot counter does not hold a number. Names the file.
    Counter(PathBuf),
    /// The system refused.
    Io(io::Error),
}

/// Numbers that one supervisor may deal out.
const PER_BOOT: u64 = 1 << 32;

impl State {
    /// Takes the directory over from a dead supervisor, whose lock this is, and counts this start.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn take_over(path: &Path, lock: File) -> Result<State, StateError> {
        State::counted(path.canonicalize()?, lock)
    }

    /// Locks the directory and counts this start.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open(path: &Path) -> Result<State, StateError> {
        let path = path.canonicalize()?;
        fs::create_dir_all(path.join("logs"))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Busy(path)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        State::counted(path, lock)
    }

    fn counted(path: PathBuf, lock: File) -> Result<State, StateError> {
        let boot = count(&path.join("boot"))?;
        Ok(State { path, lock, next: Cell::new(boot.saturating_mul(PER_BOOT)) })
    }

    /// The manifest that this node was started with, for the supervisors after this one.
    pub fn manifest(path: &Path) -> PathBuf {
        path.join(crate::parse::KEPT)
    }

    /// The directory in which that manifest was.
    pub fn base(path: &Path) -> PathBuf {
        State::manifest(path).with_extension(crate::parse::BASE)
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for the keeper to hold.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// The first of `count` numbers that nobody has had and nobody else gets.
    pub fn deal(&self, count: u64) -> u64 {
        self.next.replace(self.next.get() + count)
    }
}

/// Reads the counter, adds one, and makes that durable before it returns: a number is never dealt twice.
fn count(path: &Path) -> Result<u64, StateError> {
    let last = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse::<u32>().map_err(|_| StateError::Counter(path.into()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    let boot = last.checked_add(1).ok_or_else(|| StateError::Counter(path.into()))?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    writeln!(file, "{boot}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(boot.into())
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateError::Busy(path) => write!(f, "a node already runs on {}", path.display()),
            StateError::Counter(path) => write!(f, "{} does not hold a number", path.display()),
            StateError::Io(error) => write!(f, "state directory: {error}"),
        }
    }
}

impl std::error::Error for StateError {}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        StateError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_dealt_twice_also_over_starts() {
        let directory = tempfile::tempdir().unwrap();
        let first = State::open(directory.path()).unwrap();
        let (a, b) = (first.deal(10), first.deal(1));
        assert!(a > 0 && b == a + 10);
        drop(first);
        let second = State::open(directory.path()).unwrap();
        let last = second.deal(1);
        assert!(last > b);
        let lock = second.lock().try_clone().unwrap();
        drop(second);
        let third = State::take_over(directory.path(), lock).unwrap();
        assert!(third.deal(1) > last);
        assert!(matches!(State::open(directory.path()), Err(StateError::Busy(_))), "it is the same lock");
    }

    #[test]
    fn a_directory_has_one_node_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = State::open(directory.path()).unwrap();
        assert!(matches!(State::open(directory.path()), Err(StateError::Busy(_))));
        drop(first);
        State::open(directory.path()).unwrap();
    }

    #[test]
    fn a_damaged_counter_is_reported_and_not_restarted() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("boot"), "x").unwrap();
        assert!(matches!(State::open(directory.path()), Err(StateError::Counter(_))));
    }
}
