//! What many seeds came to.

use serde::{Deserialize, Serialize};

use crate::world::Report;

/// Seeds that were run, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// How many.
    pub seeds: u64,
    /// Calls that were made, and those that were answered.
    pub calls: u64,
    pub answered: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Turns that were taken.
    pub turns: u64,
    /// Hosts and clients that died.
    pub host_deaths: u64,
    pub client_deaths: u64,
    /// Time on the simulated clocks, in milliseconds.
    pub simulated_ms: u64,
}

impl Sum {
    /// One more seed.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.calls += report.calls;
        self.answered += report.answered;
        self.connections += report.connections;
        self.turns += report.turns;
        self.host_deaths += report.host_deaths;
        self.client_deaths += report.client_deaths;
        self.simulated_ms += report.simulated_ns / 1_000_000;
    }
}
