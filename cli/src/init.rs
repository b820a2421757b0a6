//! `atoll init`: a manifest to begin with; and which manifest is meant when none is named.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use supervisor::manifest::EMBEDDED;

use crate::args::Common;
use crate::output::{self, Failed, reason};

/// A manifest of this name in the working directory is meant when none is named.
pub const MANIFEST: &str = "atoll.toml";

/// The manifest that is meant: the one that is named, or [`MANIFEST`] if it is here; `None`: the built-in one.
pub fn meant(named: Option<&Path>) -> Option<PathBuf> {
    // Also one that cannot be read, or is a directory: that is said, and nothing else is started in its place.
    named.map(Path::to_owned).or_else(|| Some(PathBuf::from(MANIFEST)).filter(|here| here.symlink_metadata().is_ok()))
}

/// Writes the built-in system's manifest, with its comments, into `directory`.
pub fn init(common: &Common, directory: &Path) -> Result<(), Failed> {
    fs::create_dir_all(directory).map_err(|error| cannot("make", directory, &error))?;
    let path = directory.join(MANIFEST);
    write_new(&path, EMBEDDED)?;
    if common.json {
        return output::json(&json!({ "manifest": path }));
    }
    output::line(&format!("wrote {}, the manifest of a system that serves files over HTTP", path.display()))?;
    let here = directory.canonicalize().ok() == std::env::current_dir().ok();
    let there = if here { String::new() } else { format!("cd {} && ", directory.display()) };
    output::line(&format!("start it: {there}atoll up"))
}

/// Writes a file that is not there yet.
///
/// # Errors
/// It is there, or cannot be written.
pub fn write_new(path: &Path, text: &str) -> Result<(), Failed> {
    let mut file = File::create_new(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failed::new(format!("{} is there already, and is left as it is", path.display())),
        _ => cannot("write", path, &error),
    })?;
    file.write_all(text.as_bytes()).map_err(|error| cannot("write", path, &error))
}

/// A file or directory could not be made.
pub fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {what} {}: {}", path.display(), reason(error)))
}
