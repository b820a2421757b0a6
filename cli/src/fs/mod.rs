//! `atoll fs`: files of the running system's volume.
//!
//! * Paths are checked here for people and by the file system for safety.
//! * Trees are copied with many calls outstanding; a failed copy leaves the file that was there before.

mod change;
mod check;
mod get;
mod list;
mod path;
mod pool;
pub mod put;

use std::ffi::OsString;

use kernel_ipc::Rights;
use kernel_ipc::component::Context;
use kernel_ipc::interface::Cap;
use protocol::fs::{self, LOOKUP, LookupError, Node, Stat};

use crate::args::{Common, Fs};
use crate::node::{connect, visit};
use crate::output::{Failed, reason};
use crate::why::why;
use path::VolumePath;

/// The endpoint whose files these verbs work with.
const ENDPOINT: &str = "fs.root";

/// Does what was asked.
pub fn run(common: &Common, verb: &Fs) -> Result<(), Failed> {
    match verb {
        Fs::Ls { path, long } => list::ls(common, path, *long),
        Fs::Cat { paths } => get::cat(common, paths),
        Fs::Put { sources, target, recursive } => put::put(common, sources, target, *recursive),
        Fs::Get { sources, target, recursive } => get::get(common, sources, target, *recursive),
        Fs::Rm { paths, recursive } => change::rm(common, paths, *recursive),
        Fs::Mkdir { paths, parents } => change::mkdir(common, paths, *parents),
        Fs::Mv { from, to } => change::mv(common, from, to),
        Fs::Stat { path } => list::stat(common, path),
        Fs::Df => list::df(common),
        Fs::Sync => change::sync(common),
        Fs::Check { image: Some(image) } => check::image(common, image),
        Fs::Check { image: None } => check::running(common),
    }
}

/// The volume, seen by this guest.
#[derive(Clone)]
struct Volume {
    context: Context,
    client: fs::Client,
}

impl Volume {
    async fn connect(context: Context) -> Result<Volume, Failed> {
        let client = connect(&context, ENDPOINT).await?;
        Ok(Volume { context, client })
    }

    /// What is at `path`.
    async fn look(&self, path: &VolumePath) -> Result<Stat, Failed> {
        self.find(path).await?.ok_or_else(|| Failed::new(format!("{path}: no such file or directory")))
    }

    /// What is at `path`, if anything.
    async fn find(&self, path: &VolumePath) -> Result<Option<Stat>, Failed> {
        use kernel_ipc::CallError::Operation;
        match self.client.lookup(self.client.root(), path.path()).await {
            Ok(stat) => Ok(Some(stat)),
            Err(Operation(LookupError::NotFound)) => Ok(None),
            Err(error) => Err(why(path, &error)),
        }
    }

    /// Opens what is at `path`.
    async fn open(&self, path: &VolumePath, want: Rights) -> Result<(Cap<Node>, Stat), Failed> {
        self.client.open(self.client.root(), path.path(), want).await.map_err(|error| why(path, &error))
    }

    /// Opens the directory at `path`, to find and list what is in it, and what `also` says.
    async fn open_directory(&self, path: &VolumePath, also: Rights) -> Result<Cap<Node>, Failed> {
        let (directory, stat) = self.open(path, Rights::READ | LOOKUP | also).await?;
        match stat.kind {
            fs::Kind::Directory => Ok(directory),
            fs::Kind::File => Err(Failed::new(format!("{path}: not a directory"))),
        }
    }
}

/// Runs `work` with the volume of the running system.
fn with_volume<T>(common: &Common, work: impl AsyncFnOnce(Volume) -> Result<T, Failed>) -> Result<T, Failed> {
    visit(common, async |context| work(Volume::connect(context).await?).await)
}

/// Checks all the paths before anything is done.
fn paths(texts: &[OsString]) -> Result<Vec<VolumePath>, Failed> {
    texts.iter().map(VolumePath::parse).collect()
}

/// A failure of a file of this machine.
fn cannot(what: &str, local: &std::path::Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {what} {} here: {}", shown(local), reason(error)))
}

/// A path of this machine for a terminal.
fn shown(local: &std::path::Path) -> String {
    path::printable(std::os::unix::ffi::OsStrExt::as_bytes(local.as_os_str()))
}
