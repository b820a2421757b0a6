//! What was done to the volume, when, and what became of it: the model that what a cut leaves is judged by.
//!
//! - *When* is known twice: in ticks, which order what was asked and answered here; and by how far the driver's record had
//!   come, which tells what lies before a cut and what behind it.
//! - Each worker has a directory of its own and one call at a time, so its states have an order. A cut must leave one of them: not
//!   older than what the last sync covers that was answered before the cut, not newer than what had been asked for.
//! - Over all workers it must leave a *prefix*: if an effect is there, so is everything that had been answered before that was
//!   asked for.

use std::collections::BTreeMap;
use std::rc::Rc;

/// The names of a directory: the bytes of a file, nothing for a directory that is empty.
pub type Tree = BTreeMap<String, Option<Rc<Vec<u8>>>>;

/// A change that was asked for.
pub struct Entry {
    pub what: String,
    /// Tick and position when it was asked for.
    pub asked: u64,
    pub position: u64,
    /// Tick of its answer.
    pub answered: Option<u64>,
    /// What the directory has then.
    pub after: Tree,
}

/// A sync that was answered.
pub struct Synced {
    /// Tick and position when it was asked for.
    pub asked: u64,
    pub began: u64,
    /// Position when it had been answered.
    pub position: u64,
}

/// A file of some pieces that was put as a whole, and synced.
pub struct Put {
    pub name: String,
    pub content: Vec<u8>,
    pub began: u64,
    /// Position when it had been synced.
    pub synced: u64,
}

/// All of it.
#[derive(Default)]
pub struct History {
    ticks: u64,
    pub workers: Vec<Vec<Entry>>,
    pub syncs: Vec<Synced>,
    pub puts: Vec<Put>,
    pub wrong: Vec<String>,
}

/// What a cut has left: the directory of each worker, and the files that were put.
#[derive(Default)]
pub struct Found {
    pub workers: Vec<Tree>,
    pub puts: Tree,
}

impl History {
    pub fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// Changes that were asked for.
    pub fn changes(&self) -> usize {
        self.workers.iter().map(Vec::len).sum()
    }

    /// Whether a cut at `position` may leave this; how many changes that had been answered by the end are not there.
    pub fn judge(&self, position: u64, found: &Found) -> Result<usize, String> {
        let covered = self.syncs.iter().filter(|sync| sync.position <= position).map(|sync| sync.asked).max();
        let mut candidates = Vec::new();
        for (worker, entries) in self.workers.iter().enumerate() {
            let is_covered = |entry: &&Entry| entry.answered.zip(covered).is_some_and(|(at, covered)| at < covered);
            let least = entries.iter().filter(is_covered).count();
            let most = entries.iter().filter(|entry| entry.position <= position).count();
            let tree = &found.workers[worker];
            let empty = Tree::new();
            let state = |done: usize| if done == 0 { &empty } else { &entries[done - 1].after };
            let may: Vec<usize> = (least..=most).filter(|done| state(*done) == tree).collect();
            if may.is_empty() {
                let was = (0..=entries.len()).find(|done| state(*done) == tree);
                return Err(format!(
                    "worker {worker} at {position}: its directory is as after {was:?} of {} changes, not {least} to {most}: {}",
                    entries.len(),
                    difference(tree, state(least), entries.get(least.wrapping_sub(1))),
                ));
            }
            candidates.push(may);
        }
        let chosen = self.prefix(&candidates).ok_or_else(|| format!("at {position}: no prefix, of {candidates:?}"))?;
        self.judge_puts(position, &found.puts)?;
        let missing = self.workers.iter().zip(chosen).map(|(entries, done)| {
            entries[done..].iter().filter(|entry| entry.answered.is_some() && entry.position <= position).count()
        });
        Ok(missing.sum())
    }

    /// How many changes of each worker are there, if those can be a prefix.
    fn prefix(&self, candidates: &[Vec<usize>]) -> Option<Vec<usize>> {
        // A directory that is twice the same was so with the same effects in between undone: the fewest are tried first, and
        // more where an answered change would be missing that one which is there came after.
        let mut choice = vec![0; candidates.len()];
        loop {
            let chosen: Vec<usize> = choice.iter().zip(candidates).map(|(at, may)| may[*at]).collect();
            let there = self.workers.iter().zip(&chosen).flat_map(|(entries, done)| &entries[..*done]);
            let latest = there.map(|entry| entry.asked).max().unwrap_or(0);
            let missing = self.workers.iter().zip(&chosen).position(|(entries, done)| {
                entries[*done..].iter().any(|entry| entry.answered.is_some_and(|answered| answered < latest))
            });
            let Some(worker) = missing else { return Some(chosen) };
            choice[worker] += 1;
            if choice[worker] == candidates[worker].len() {
                return None;
            }
        }
    }

    fn judge_puts(&self, position: u64, found: &Tree) -> Result<(), String> {
        for put in &self.puts {
            let name = &put.name;
            match found.get(name) {
                None if put.synced > position => {}
                None => return Err(format!("{name} at {position}: it is gone, and was synced at {}", put.synced)),
                Some(_) if put.began > position => return Err(format!("{name} is there before it was put")),
                Some(None) => return Err(format!("{name} is a directory")),
                Some(Some(bytes)) if **bytes == put.content => {}
                Some(Some(bytes)) => {
                    // Its pieces come in any order.
                    let is_part = bytes.len() <= put.content.len()
                        && bytes.iter().zip(&put.content).all(|(found, right)| found == right || *found == 0);
                    if put.synced <= position || !is_part {
                        return Err(format!("{name} at {position}: {} bytes, or others", bytes.len()));
                    }
                }
            }
        }
        match found.keys().find(|name| !self.puts.iter().any(|put| put.name == **name)) {
            Some(name) => Err(format!("{name} at {position}: nobody has put it")),
            None => Ok(()),
        }
    }
}

/// Where two trees are not the same, for the message of a panic.
fn difference(found: &Tree, wanted: &Tree, last: Option<&Entry>) -> String {
    let show = |one: Option<&Option<Rc<Vec<u8>>>>| match one {
        None => "nothing".to_owned(),
        Some(None) => "a directory".to_owned(),
        Some(Some(bytes)) => format!("{} bytes", bytes.len()),
    };
    let names = found.keys().chain(wanted.keys());
    let differ: Vec<String> = names
        .filter(|name| found.get(*name) != wanted.get(*name))
        .map(|name| format!("{name}: {}, not {}", show(found.get(name)), show(wanted.get(name))))
        .collect();
    let last = last.map_or("the beginning", |entry| &entry.what);
    format!("{}; the last change that must be there is {last}", differ.join("; "))
}
