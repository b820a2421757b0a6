//! Finding the file that a request asks for.

use std::rc::Rc;

use kernel_ipc::interface::Cap;
use kernel_ipc::{CallError, Cause};
use protocol::fs::{self, Kind, LookupError, Node, Path, Stat};

use super::super::request::Ask;
use super::super::response::File;
use super::super::status::Status;

/// What is served for a directory.
const INDEX: &[u8] = b"index.html";

/// What a request's path leads to.
pub(super) enum Found {
    /// This file.
    File {
        /// Capability to read it.
        node: Rc<Cap<Node>>,
        /// What the answer says of it.
        file: File,
        /// Its name: the index's, if the path is a directory's.
        path: Vec<u8>,
    },
    /// A directory whose name lacks the slash.
    Directory,
}

/// Opens the file that `ask` names.
///
/// # Errors
/// The status to answer with.
pub(super) async fn find(fs: &fs::Client, ask: &Ask) -> Result<Found, Status> {
    let path = if ask.path.is_directory() { ask.path.join(INDEX) } else { ask.path.clone() };
    let (node, stat) = open(fs, path.as_bytes()).await?;
    match stat.kind {
        Kind::File => {
            let file = File {
                inode: stat.inode,
                version: stat.version,
                size: stat.size,
                modified: stat.modified_ns / 1_000_000_000,
            };
            Ok(Found::File { node: Rc::new(node), file, path: path.as_bytes().to_vec() })
        }
        // A directory called index.html has nothing to show.
        Kind::Directory if ask.path.is_directory() => Err(Status::NotFound),
        Kind::Directory => Ok(Found::Directory),
    }
}

async fn open(fs: &fs::Client, path: &[u8]) -> Result<(Cap<Node>, Stat), Status> {
    let path = Path::new(path).map_err(|_| Status::NotFound)?;
    let mut result = fs.open(fs.root(), path, fs::READ).await;
    if matches!(&result, Err(error) if is_transient(error)) {
        // Opening changes nothing, so it may run again whether or not it ran.
        result = fs.open(fs.root(), path, fs::READ).await;
    }
    result.map_err(|error| match error {
        CallError::Operation(LookupError::NotFound | LookupError::NotADirectory) => Status::NotFound,
        CallError::Failed { cause: Cause::RightsMissing, .. } => Status::Forbidden,
        CallError::Failed { .. } => Status::ServiceUnavailable,
        CallError::Operation(_) => Status::InternalServerError,
    })
}

/// Whether the failure is of this incarnation of the host, and the next may know better.
pub(super) fn is_transient<E>(error: &CallError<E>) -> bool {
    let gone = [Cause::PeerDied, Cause::SessionClosed, Cause::StaleEpoch];
    matches!(error, CallError::Failed { cause, .. } if gone.contains(cause))
}
