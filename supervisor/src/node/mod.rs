//! The supervisor of a node.

use std::path::Path;
use std::process::ExitCode;

/// Runs the supervisor until the node has ended. Working directory: the state directory. Descriptor 3: the keeper's
/// socket; 4, if open: where the start is reported.
pub fn run(manifest: Option<&Path>, sets: &[String]) -> ExitCode {
    let _ = (manifest, sets);
    todo!()
}
