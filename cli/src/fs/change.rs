//! `atoll fs rm|mkdir|mv|sync`: changes of the tree.

use std::ffi::{OsStr, OsString};
use std::pin::Pin;
use std::rc::Rc;

use kernel_ipc::CallError;
use kernel_ipc::interface::Cap;
use protocol::fs::{CREATE, CreateError, Kind, Name, Node, REMOVE};

use super::path::VolumePath;
use super::pool::Pool;
use super::{Volume, list, paths, with_volume};
use crate::args::Common;
use crate::output::Failed;
use crate::why::why;

/// Removals at a time.
const AT_A_TIME: usize = 16;

/// `atoll fs rm`.
pub fn rm(common: &Common, texts: &[OsString], recursive: bool) -> Result<(), Failed> {
    let paths = paths(texts)?;
    if paths.iter().any(VolumePath::is_root) {
        return Err(Failed::usage("the root cannot be removed"));
    }
    with_volume(common, async |volume| {
        for path in &paths {
            remove(&volume, path, recursive).await?;
        }
        Ok(())
    })
}

async fn remove(volume: &Volume, path: &VolumePath, recursive: bool) -> Result<(), Failed> {
    let Some((above, name)) = path.split() else { return Ok(()) };
    let kind = volume.look(path).await?.kind;
    if kind == Kind::Directory && !recursive {
        return Err(
            Failed::new(format!("{path}: it is a directory")).help("use -r to remove it with all that is in it")
        );
    }
    let parent = volume.open_directory(&above, REMOVE).await?;
    if kind == Kind::Directory {
        empty(volume, path).await?;
    }
    remove_entry(volume, &parent, path, name, kind).await
}

async fn remove_entry(
    volume: &Volume,
    parent: &Cap<Node>,
    path: &VolumePath,
    name: Name<'_>,
    kind: Kind,
) -> Result<(), Failed> {
    let removed = match kind {
        Kind::Directory => volume.client.rmdir(parent, name).await,
        Kind::File => volume.client.unlink(parent, name).await,
    };
    removed.map_err(|error| why(path, &error))
}

/// Removes everything in a directory. Boxed because it calls itself.
fn empty<'a>(volume: &'a Volume, path: &'a VolumePath) -> Pin<Box<dyn Future<Output = Result<(), Failed>> + 'a>> {
    Box::pin(async move {
        let directory = Rc::new(volume.open_directory(path, REMOVE).await?);
        loop {
            // Always the first page: what was on it is gone the next time.
            let (entries, _) = list::page(volume, path, &directory, 0).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let pool = Pool::new(AT_A_TIME);
            for entry in entries {
                let child = path.join(&entry.name)?;
                if entry.kind == Kind::Directory {
                    empty(volume, &child).await?;
                }
                let (volume, directory) = (volume.clone(), directory.clone());
                pool.start(async move {
                    match child.split() {
                        Some((_, name)) => remove_entry(&volume, &directory, &child, name, entry.kind).await,
                        None => Ok(()),
                    }
                })
                .await?;
            }
            pool.finish().await?;
        }
    })
}

/// `atoll fs mkdir`.
pub fn mkdir(common: &Common, texts: &[OsString], parents: bool) -> Result<(), Failed> {
    let paths = paths(texts)?;
    if !parents && paths.iter().any(VolumePath::is_root) {
        return Err(Failed::new("/: it exists already"));
    }
    with_volume(common, async |volume| {
        for path in &paths {
            if parents {
                make_all(&volume, path).await?;
            } else {
                make(&volume, path, false).await?;
            }
        }
        Ok(())
    })
}

/// Makes the directory and those above it, as far as they are missing.
async fn make_all(volume: &Volume, path: &VolumePath) -> Result<(), Failed> {
    let mut missing = Vec::new();
    let mut at = path.clone();
    while volume.find(&at).await?.is_none() {
        let Some(above) = at.split().map(|(above, _)| above) else { break };
        missing.push(std::mem::replace(&mut at, above));
    }
    if volume.look(&at).await?.kind == Kind::File {
        return Err(Failed::new(format!("{at}: not a directory")));
    }
    for path in missing.iter().rev() {
        make(volume, path, true).await?;
    }
    Ok(())
}

/// Makes one directory. `existing`: one that is there already is as good.
pub async fn make(volume: &Volume, path: &VolumePath, existing: bool) -> Result<(), Failed> {
    let Some((above, name)) = path.split() else { return Ok(()) };
    let parent = volume.open_directory(&above, CREATE).await?;
    match volume.client.mkdir(&parent, name).await {
        Ok(_) => Ok(()),
        Err(CallError::Operation(CreateError::Exists)) if existing => match volume.look(path).await?.kind {
            Kind::Directory => Ok(()),
            Kind::File => Err(Failed::new(format!("{path}: it exists, and is a file"))),
        },
        Err(error) => Err(why(path, &error)),
    }
}

/// `atoll fs mv`.
pub fn mv(common: &Common, from: &OsStr, to: &OsStr) -> Result<(), Failed> {
    let (from, mut to) = (VolumePath::parse(from)?, VolumePath::parse(to)?);
    let Some((from_above, from_name)) = from.split() else {
        return Err(Failed::usage("the root cannot be moved"));
    };
    if from.contains(&to) && from != to {
        return Err(Failed::usage(format!("{from}: cannot be moved into itself")));
    }
    with_volume(common, async |volume| {
        volume.look(&from).await?;
        if from == to {
            return Ok(());
        }
        if volume.find(&to).await?.is_some_and(|stat| stat.kind == Kind::Directory) {
            to = to.join(from_name.as_bytes())?;
        }
        let Some((to_above, to_name)) = to.split() else { return Ok(()) };
        let source = volume.open_directory(&from_above, REMOVE).await?;
        let target = volume.open_directory(&to_above, CREATE).await?;
        let moved = volume.client.rename(&source, from_name, &target, to_name, true).await;
        moved.map_err(|error| why(&format!("{from} to {to}"), &error))
    })
}

/// `atoll fs sync`.
pub fn sync(common: &Common) -> Result<(), Failed> {
    with_volume(common, async |volume| {
        volume.client.sync(volume.client.root()).await.map_err(|error| why(&"the volume", &error))
    })
}
