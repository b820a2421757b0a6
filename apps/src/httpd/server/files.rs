//! Finding the file that a request asks for.

use std::rc::Rc;

use kernel_ipc::interface::{Cap, Lease};
use kernel_ipc::{CallError, Cause};
use protocol::fs::{self, Kind, LookupError, Node, Stat};

use super::super::request::Ask;
use super::super::response::File;
use super::super::status::Status;
use super::super::target::Path;
use super::Server;
use super::budget::Share;

/// What is served for a directory.
const INDEX: &[u8] = b"index.html";

/// Longest file that is asked for whole: one call instead of two and a release. Its share of the budget is taken before
/// its length is known.
const SMALL: u32 = 64 << 10;

/// What a request's path leads to.
pub(super) enum Found {
    /// This file.
    File {
        /// What the answer says of it.
        file: File,
        /// Its name: the index's, if the path is a directory's.
        path: Path,
        /// How to have its bytes.
        content: Content,
    },
    /// A directory whose name lacks the slash.
    Directory,
}

/// How to have a file's bytes.
pub(super) enum Content {
    /// All of them are here.
    Leased(Lease, Share),
    /// By reading with this capability.
    Open(Rc<Cap<Node>>),
}

/// Finds the file that `ask` names: all of its bytes at once if they are few, else a capability to read it; always that if
/// not all of them are wanted (`by_parts`).
///
/// # Errors
/// The status to answer with.
pub(super) async fn find(server: &Server, ask: &Ask, by_parts: bool) -> Result<Found, Status> {
    let path = if ask.path.is_directory() { ask.path.join(INDEX) } else { ask.path.clone() };
    let checked = fs::Path::new(path.as_bytes()).map_err(|_| Status::NotFound)?;
    // Parts and heads are asked for seldom.
    if !by_parts && ask.range.is_none() {
        let mut share = server.budget.take(SMALL.into()).await;
        let fetched = again_if_transient(async || server.fs.fetch(server.fs.root(), checked, SMALL).await).await;
        let (stat, lease) = fetched.map_err(status_of)?;
        match (stat.kind, lease) {
            (Kind::File, Some(lease)) if lease.len() == stat.size => {
                share.shrink(stat.size);
                return Ok(Found::File { file: described(&stat), path, content: Content::Leased(lease, share) });
            }
            (Kind::File, _) => {}
            (Kind::Directory, _) => return directory(ask),
        }
    }
    let open = async || server.fs.open(server.fs.root(), checked, fs::READ).await;
    let (node, stat) = again_if_transient(open).await.map_err(status_of)?;
    match stat.kind {
        Kind::File => Ok(Found::File { file: described(&stat), path, content: Content::Open(Rc::new(node)) }),
        Kind::Directory => directory(ask),
    }
}

/// A directory called index.html has nothing to show.
fn directory(ask: &Ask) -> Result<Found, Status> {
    if ask.path.is_directory() { Err(Status::NotFound) } else { Ok(Found::Directory) }
}

fn described(stat: &Stat) -> File {
    File { inode: stat.inode, version: stat.version, size: stat.size, modified: stat.modified_ns / 1_000_000_000 }
}

/// Neither opening nor fetching changes anything, so it may run again whether or not it ran.
async fn again_if_transient<T, E>(call: impl AsyncFn() -> Result<T, CallError<E>>) -> Result<T, CallError<E>> {
    match call().await {
        Err(error) if is_transient(&error) => call().await,
        result => result,
    }
}

fn status_of(error: CallError<LookupError>) -> Status {
    match error {
        CallError::Operation(LookupError::NotFound | LookupError::NotADirectory) => Status::NotFound,
        CallError::Failed { cause: Cause::RightsMissing, .. } => Status::Forbidden,
        CallError::Failed { .. } => Status::ServiceUnavailable,
        CallError::Operation(_) => Status::InternalServerError,
    }
}

/// Whether the failure is of this incarnation of the host, and the next may know better.
pub(super) fn is_transient<E>(error: &CallError<E>) -> bool {
    let gone = [Cause::PeerDied, Cause::SessionClosed, Cause::StaleEpoch];
    matches!(error, CallError::Failed { cause, .. } if gone.contains(cause))
}
