//! `atoll demo`: things to watch.

mod crash;
mod download;

use crate::args::{Common, Demo};
use crate::output::Failed;

/// Shows it.
pub fn demo(common: &Common, what: &Demo) -> Result<(), Failed> {
    match what {
        Demo::Crash { seconds, size } => crash::crash(common, *seconds, *size),
    }
}
