//! Crash bundles as they are on disk: written by the supervisor, read by whoever wants to know what happened.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where they are in a state directory: `NUMBER.json`.
pub const DIRECTORY: &str = "crashes";

/// What is known of one crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashBundle {
    /// Its number on this state directory.
    pub crash: u64,
    /// When.
    pub unix_seconds: u64,
    /// Who.
    pub component: String,
    /// Which run.
    pub epoch: u64,
    /// How it ended, for people.
    pub how: String,
    /// The last lines that it printed.
    pub last_lines: Vec<String>,
    /// The calls of its surviving sessions that were under way.
    pub calls: Vec<CrashedCall>,
}

/// A call that was under way at a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashedCall {
    /// Whose it is.
    pub client: String,
    /// `component.endpoint`.
    pub endpoint: String,
    /// With version.
    pub interface: String,
    /// The operation's number.
    pub operation: u16,
    /// Its name; empty if it has none here.
    pub name: String,
    /// Its number in its slot.
    pub seq: u64,
    /// Crashes at which it was under way, this one included.
    pub crashes: u8,
    /// It does not run again.
    pub quarantined: bool,
    /// What it asked, if it was suspect already.
    pub request: Option<Request>,
}

/// What a call asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The object that it was made on, in its host's words.
    pub object: [u64; 2],
    /// That is the first capability of the client's session.
    pub on_root: bool,
    /// Its payload, or the first 432 bytes of it.
    pub payload: Vec<u8>,
}

/// The numbers of the crashes that a state directory has, in order.
pub fn numbers(state: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(state.join(DIRECTORY)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Reads one of them.
///
/// # Errors
/// It is not there, or no bundle.
pub fn read(state: &Path, number: u64) -> io::Result<CrashBundle> {
    let text = std::fs::read(state.join(DIRECTORY).join(format!("{number}.json")))?;
    Ok(serde_json::from_slice(&text)?)
}
