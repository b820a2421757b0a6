//! The verbs of `atoll fs`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Subcommand, ValueHint};

/// Paths are those of the volume: `/www/index.html`, or the same without the first slash.
#[derive(Debug, Subcommand)]
pub enum Fs {
    /// List a directory
    Ls {
        /// Directory or file
        #[arg(default_value = "/")]
        path: OsString,
        /// With size and time of last change
        #[arg(short, long)]
        long: bool,
    },
    /// Print files
    Cat {
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Copy files from this machine into the volume
    Put {
        /// Files, with -r also directories; `DIR/.` means what is in DIR; `-` is standard input
        #[arg(required = true, value_hint = ValueHint::AnyPath)]
        sources: Vec<PathBuf>,
        /// A directory of the volume, or the new name of the one source
        target: OsString,
        /// Copy directories with all that is in them
        #[arg(short, long)]
        recursive: bool,
    },
    /// Copy files from the volume to this machine
    Get {
        /// Files, with -r also directories; `DIR/.` means what is in DIR
        #[arg(required = true)]
        sources: Vec<OsString>,
        /// A directory here, the new name of the one source, or `-` for standard output
        #[arg(value_hint = ValueHint::AnyPath)]
        target: PathBuf,
        /// Copy directories with all that is in them
        #[arg(short, long)]
        recursive: bool,
    },
    /// Remove files
    Rm {
        #[arg(required = true)]
        paths: Vec<OsString>,
        /// Remove directories with all that is in them
        #[arg(short, long)]
        recursive: bool,
    },
    /// Make directories
    Mkdir {
        #[arg(required = true)]
        paths: Vec<OsString>,
        /// Also the directories above; no error if it is there already
        #[arg(short, long)]
        parents: bool,
    },
    /// Rename or move; a file that has the new name is replaced
    Mv { from: OsString, to: OsString },
    /// Show what is known about a file or directory
    Stat {
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Show the room on the volume
    Df,
    /// Make everything written so far durable
    Sync,
    /// Verify every structure and checksum of the volume
    Check {
        /// Read this image file instead of asking the running system
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        image: Option<PathBuf>,
    },
}
