//! What a check found.

use crate::error::Structure;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is damaged.
    pub structure: Structure,
    /// Block it lies in (0 if it has none of its own).
    pub block: u64,
    /// What is wrong, in words.
    pub what: String,
}

/// Result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first problems found, at most [`Report::MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// All problems found.
    pub problem_count: u64,
    /// Damaged copies of metadata whose other copy is good: nothing is lost, but nothing protects it any more.
    pub damaged_copies: u64,
    /// Generation of the checkpoint that was checked.
    pub generation: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks in use.
    pub used_blocks: u64,
    /// Blocks that were read and verified.
    pub checked_blocks: u64,
    /// Blocks of file data whose checksums were verified.
    pub data_blocks: u64,
    /// Nodes of the tree (each counted once).
    pub nodes: u64,
    /// Blocks marked used that nothing refers to.
    pub leaked_blocks: u64,
}

impl Report {
    /// Problems that are kept with their text.
    pub const MAX_PROBLEMS: usize = 100;

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0 && self.leaked_blocks == 0 && self.damaged_copies == 0
    }

    pub(crate) fn add(&mut self, structure: Structure, block: u64, what: impl Into<String>) {
        self.problem_count += 1;
        if self.problems.len() < Self::MAX_PROBLEMS {
            self.problems.push(Problem { structure, block, what: what.into() });
        }
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks looked at so far.
    pub checked_blocks: u64,
    /// Blocks that will be looked at: all in use but the room of the log, which has no content yet, and bitmaps and
    /// packs that the newest one has replaced.
    pub total_blocks: u64,
}

impl Report {
    /// What is wrong, one sentence each; empty if nothing is.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .problems
            .iter()
            .map(|problem| format!("{} in block {}: {}", problem.structure, problem.block, problem.what))
            .collect();
        let untold = self.problem_count - self.problems.len() as u64;
        if untold > 0 {
            lines.push(format!("{untold} more problems"));
        }
        if self.leaked_blocks > 0 {
            lines.push(format!("{} blocks are marked used and belong to nothing", self.leaked_blocks));
        }
        if self.damaged_copies > 0 {
            lines.push(format!("{} structures have only one good copy left", self.damaged_copies));
        }
        lines
    }
}
