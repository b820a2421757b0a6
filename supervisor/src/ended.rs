//! How the last node on a state directory ended: `STATE/ended`, one line of JSON.
//!
//! - A start removes it. An end writes it when every component has ended, before the lock of the directory is let go of;
//!   so whoever waits for the lock and finds no such file knows that the node did not end in order: its keeper died. A keeper
//!   that gives its supervisor up writes it before it ends the node.
//! - `troubles` is empty exactly if every component ran and ended in order: then the volume is clean.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Its name in the state directory.
const NAME: &str = "ended";

/// How a node ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What did not go as it should, one sentence for each component.
    pub troubles: Vec<String>,
}

impl Ended {
    /// Writes it down.
    ///
    /// # Errors
    /// Of the file.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let new = state.join("ended.new");
        std::fs::write(&new, serde_json::to_string(self).expect("strings only") + "\n")?;
        std::fs::rename(new, state.join(NAME))
    }

    /// What the last end wrote. `None`: a node runs, or the last one did not end in order, or there was none.
    pub fn read(state: &Path) -> Option<Ended> {
        serde_json::from_str(&std::fs::read_to_string(state.join(NAME)).ok()?).ok()
    }

    /// A node starts.
    ///
    /// # Errors
    /// Of the file, if there is one.
    pub fn forget(state: &Path) -> io::Result<()> {
        match std::fs::remove_file(state.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_end_wrote_is_read_until_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Ended::read(directory.path()), None);
        let ended = Ended { troubles: vec!["fs: exited with code 1: no space".into()] };
        ended.write(directory.path()).unwrap();
        assert_eq!(Ended::read(directory.path()), Some(ended));
        Ended::forget(directory.path()).unwrap();
        Ended::forget(directory.path()).unwrap();
        assert_eq!(Ended::read(directory.path()), None);
    }
}
