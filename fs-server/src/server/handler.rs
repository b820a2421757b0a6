//! `atoll.fs/1` on a volume: decoded calls in, answers out. Rights, kinds and generations of handles are checked before.

use super::check::Checks;
use super::device::{LeasedDevice, StagedMemory};
use crate::cache::Held;
use crate::device::{BLOCK_SIZE, Source, SourceLost};
use crate::format::items::FileKind;
use crate::{Error, NodeId, Stat, Volume};
use kernel_ipc::component::{Context, Counters};
use kernel_ipc::interface::{Granted, LeasePart, NewCap};
use kernel_ipc::lease::{self, Lend};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime;
use kernel_ipc::session::{Call, SessionInfo};
use kernel_ipc::{CallError, Cause, Executed};
use protocol::fs::{self, DirectoryPage, Name, Path};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// How long after a change everything is made durable, if nobody asks for it before.
const LAZY_SYNC: Duration = Duration::from_secs(5);

/// Serves a volume.
pub(crate) struct Server {
    volume: Volume<LeasedDevice>,
    cx: Context,
    counters: Rc<Counters>,
    checks: Checks,
    sync_scheduled: Rc<Cell<bool>>,
    verified: Cell<u64>,
}

type Answer<T, E> = Result<T, CallError<E>>;

impl Server {
    pub(crate) fn new(volume: Volume<LeasedDevice>, cx: Context) -> Self {
        let counters = cx.counters();
        Self { volume, cx, counters, checks: Checks::default(), sync_scheduled: Rc::default(), verified: Cell::new(0) }
    }

    /// A capability of a node, with rights that the directory's holder has.
    fn grant<E>(&self, dir: &Granted<NodeId>, stat: &Stat, want: Rights) -> Answer<(NewCap<NodeId>, fs::Stat), E> {
        if !dir.rights.contains(want) {
            return Err(rights_missing());
        }
        self.volume.hold(stat.id);
        Ok((NewCap::new(stat.id, want), told(stat)))
    }

    /// Notes that something changed: makes it durable after a while. At rest no timer runs.
    fn changed(&self) {
        if self.sync_scheduled.replace(true) {
            return;
        }
        let (volume, scheduled) = (self.volume.clone(), Rc::clone(&self.sync_scheduled));
        drop(runtime::spawn(async move {
            runtime::sleep(LAZY_SYNC).await;
            scheduled.set(false);
            if let Err(error) = volume.sync().await {
                tracing::warn!("a checkpoint failed: {error}");
            }
        }));
    }

    fn count_verified(&self) {
        let now = self.volume.verified_bytes();
        self.counters.add_verified(now - self.verified.replace(now));
    }

    /// Bytes of a file, verified, as what is lent.
    async fn lend(&self, node: NodeId, offset: u64, length: u32) -> Result<Option<Lend>, Error> {
        let held = self.volume.read(node, offset, length).await;
        self.count_verified();
        let Some(held) = held? else { return Ok(None) };
        let Held { extent, offset, length } = &held;
        let (region, offset, length) = (extent.region(), extent.start() + *offset as u64, *length as u64);
        self.counters.add_leased(length);
        Ok(Some(Lend { region, offset, length, source: None, keep: Rc::new(held) }))
    }

    async fn write_from<S: Source<StagedMemory> + ?Sized>(
        &self,
        node: NodeId,
        offset: u64,
        source: &S,
    ) -> Answer<(), fs::WriteError> {
        let result = self.volume.write(node, offset, source).await;
        self.changed();
        self.counters.add_copied(source.length());
        result.map_err(failed_write)
    }
}

impl fs::Handler for Server {
    type Node = NodeId;

    async fn open(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        path: Path<'_>,
        want: Rights,
    ) -> Answer<(NewCap<NodeId>, fs::Stat), fs::LookupError> {
        let stat = self.find(dir.object, path).await?;
        self.grant(&dir, &stat, want)
    }

    async fn create(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        name: Name<'_>,
        want: Rights,
    ) -> Answer<(NewCap<NodeId>, fs::Stat), fs::CreateError> {
        // Before it is made: a refusal leaves nothing behind.
        if !dir.rights.contains(want) {
            return Err(rights_missing());
        }
        let stat = self.volume.create(dir.object, name.as_bytes()).await.map_err(failed)?;
        self.changed();
        self.grant(&dir, &stat, want)
    }

    async fn mkdir(&self, _: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<fs::Stat, fs::CreateError> {
        let stat = self.volume.mkdir(dir.object, name.as_bytes()).await.map_err(failed)?;
        self.changed();
        Ok(told(&stat))
    }

    async fn unlink(&self, _: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<(), fs::RemoveError> {
        self.volume.unlink(dir.object, name.as_bytes()).await.map_err(failed)?;
        self.changed();
        Ok(())
    }

    async fn rmdir(&self, _: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<(), fs::RemoveError> {
        self.volume.rmdir(dir.object, name.as_bytes()).await.map_err(failed)?;
        self.changed();
        Ok(())
    }

    async fn rename(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        from: Name<'_>,
        to_dir: Granted<NodeId>,
        to: Name<'_>,
        replace: bool,
    ) -> Answer<(), fs::RenameError> {
        let renamed = self.volume.rename(dir.object, from.as_bytes(), to_dir.object, to.as_bytes(), replace);
        renamed.await.map_err(failed)?;
        self.changed();
        Ok(())
    }

    async fn stat(&self, _: &Call, node: Granted<NodeId>) -> Answer<fs::Stat, fs::StatError> {
        self.volume.stat(node.object).await.map(|stat| told(&stat)).map_err(failed)
    }

    async fn lookup(&self, _: &Call, dir: Granted<NodeId>, path: Path<'_>) -> Answer<fs::Stat, fs::LookupError> {
        self.find(dir.object, path).await.map(|stat| told(&stat))
    }

    async fn read(
        &self,
        _: &Call,
        node: Granted<NodeId>,
        offset: u64,
        len: u32,
    ) -> Answer<Option<Lend>, fs::ReadError> {
        self.lend(node.object, offset, len.min(fs::EXTENT_MAX)).await.map_err(failed)
    }

    async fn write(&self, _: &Call, node: Granted<NodeId>, offset: u64, data: &[u8]) -> Answer<(), fs::WriteError> {
        self.write_from(node.object, offset, data).await
    }

    async fn write_lease(
        &self,
        _: &Call,
        node: Granted<NodeId>,
        offset: u64,
        data: LeasePart,
    ) -> Answer<(), fs::WriteError> {
        let stale = |_| CallError::Failed { cause: Cause::StaleLease, executed: Executed::No };
        let held = self.cx.holder().borrow().hold(&data.name).map_err(stale)?;
        let end = data.offset.checked_add(data.length);
        if end.is_none_or(|end| end > held.len() as u64) {
            return Err(CallError::Failed { cause: Cause::BadArguments, executed: Executed::No });
        }
        self.write_from(node.object, offset, &LeaseSource { held, part: data }).await
    }

    async fn append(&self, _: &Call, node: Granted<NodeId>, data: &[u8]) -> Answer<u64, fs::WriteError> {
        let result = self.volume.append(node.object, data).await;
        self.changed();
        self.counters.add_copied(data.len() as u64);
        result.map_err(failed_write)
    }

    async fn truncate(&self, _: &Call, node: Granted<NodeId>, size: u64) -> Answer<(), fs::WriteError> {
        let result = self.volume.truncate(node.object, size).await;
        self.changed();
        result.map_err(failed_write)
    }

    async fn readdir(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        cursor: u64,
        max: u32,
    ) -> Answer<DirectoryPage, fs::ReaddirError> {
        let max = max.max(1) as usize;
        let listing = self.volume.readdir(dir.object, cursor, max, DirectoryPage::LIMIT).await.map_err(failed)?;
        let mut page = DirectoryPage { next: listing.next, bytes: Vec::new() };
        for entry in &listing.entries {
            let Ok(name) = Name::new(&entry.name) else { continue };
            let told = fs::DirectoryEntry { inode: entry.inode, kind: kind(entry.kind), name };
            if !page.push(&told, DirectoryPage::LIMIT) {
                page.next = Some(entry.position);
                break;
            }
        }
        Ok(page)
    }

    async fn statfs(&self, _: &Call, _: Granted<NodeId>) -> Answer<fs::Statfs, fs::StatError> {
        let stat = self.volume.statfs();
        Ok(fs::Statfs {
            blocks: stat.blocks,
            free_blocks: stat.available_blocks,
            nodes: stat.files + stat.directories,
            checkpoint: stat.generation,
        })
    }

    async fn sync(&self, _: &Call, _: Granted<NodeId>) -> Answer<(), fs::SyncError> {
        self.volume.sync().await.map_err(failed)
    }

    async fn check(&self, _: &Call, _: Granted<NodeId>, cursor: u64) -> Answer<fs::CheckPage, fs::CheckError> {
        self.checks.step(&self.volume, cursor).await
    }

    async fn fetch(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        path: Path<'_>,
        max: u32,
    ) -> Answer<(fs::Stat, Option<Lend>), fs::LookupError> {
        let stat = self.find(dir.object, path).await?;
        let most = u64::from(max.min(fs::EXTENT_MAX));
        if stat.kind != FileKind::File || stat.size == 0 || stat.size > most {
            return Ok((told(&stat), None));
        }
        // `size` is at most EXTENT_MAX.
        let lend = match self.lend(stat.id, 0, stat.size as u32).await {
            Ok(lend) => lend.filter(|lend| lend.length == stat.size),
            // Removed since it was found: what it was is still true of the moment of the look-up.
            Err(Error::Stale | Error::NotFound) => None,
            Err(error) => return Err(failed(error)),
        };
        // Reading may have waited for the disk, and somebody may have written meanwhile.
        let unchanged = lend.is_some()
            && self
                .volume
                .stat(stat.id)
                .await
                .is_ok_and(|now| (now.modified_ns, now.size) == (stat.modified_ns, stat.size));
        Ok((told(&stat), lend.filter(|_| unchanged)))
    }

    fn node_dropped(&self, _: &SessionInfo, node: Granted<NodeId>) {
        self.volume.release(node.object);
    }
}

impl Server {
    async fn find(&self, dir: NodeId, path: Path<'_>) -> Answer<Stat, fs::LookupError> {
        match path.as_bytes() {
            b"" => self.volume.stat(dir).await,
            path => self.volume.lookup(dir, path).await,
        }
        .map_err(failed)
    }
}

/// Bytes that a client lent.
struct LeaseSource {
    held: lease::Held,
    part: LeasePart,
}

impl Source<StagedMemory> for LeaseSource {
    fn length(&self) -> u64 {
        self.part.length
    }

    fn copy_to(
        &self,
        from: u64,
        staging: &mut StagedMemory,
        at: usize,
        length: usize,
        crcs: &mut [u32],
    ) -> Result<(), SourceLost> {
        let start = usize::try_from(self.part.offset + from).map_err(|_| SourceLost)?;
        let extent = staging.extent();
        let copy = |start: usize, length: usize, at: usize| {
            let copied = self.held.copy_and_crc(0, start..start + length, extent.region(), extent.offset() + at);
            copied.map_err(|_| SourceLost)
        };
        if crcs.is_empty() {
            return copy(start, length, at).map(drop);
        }
        for (index, crc) in crcs.iter_mut().enumerate() {
            *crc = copy(start + index * BLOCK_SIZE, BLOCK_SIZE, at + index * BLOCK_SIZE)?;
        }
        Ok(())
    }
}

fn kind(kind: FileKind) -> fs::Kind {
    match kind {
        FileKind::File => fs::Kind::File,
        FileKind::Directory => fs::Kind::Directory,
    }
}

fn told(stat: &Stat) -> fs::Stat {
    fs::Stat {
        inode: stat.id.inode,
        size: stat.size,
        blocks: stat.blocks,
        modified_ns: stat.modified_ns,
        // No two changes have the same time.
        version: stat.modified_ns,
        links: stat.links,
        kind: kind(stat.kind),
    }
}

fn rights_missing<E>() -> CallError<E> {
    CallError::Failed { cause: Cause::RightsMissing, executed: Executed::No }
}

/// An error of the volume as one of an operation; what the operation has no word for failed without one.
fn failed<E: FromVolume>(error: Error) -> CallError<E> {
    match &error {
        Error::Device(_) | Error::Corrupt { .. } => tracing::error!("{error}"),
        _ => {}
    }
    match E::from_volume(&error) {
        Some(error) => CallError::Operation(error),
        // Nothing is changed before everything that a step needs is in memory; only a write has several steps.
        None if error == Error::Busy => CallError::Failed { cause: Cause::Busy, executed: Executed::No },
        None if error == Error::SourceLost => {
            CallError::Failed { cause: Cause::StaleLease, executed: Executed::Unknown }
        }
        None => CallError::Failed { cause: Cause::BadArguments, executed: Executed::No },
    }
}

/// As [`failed`], for what may have been done in part.
fn failed_write(error: Error) -> CallError<fs::WriteError> {
    match failed(error) {
        CallError::Failed { cause: Cause::Busy, .. } => {
            CallError::Failed { cause: Cause::Busy, executed: Executed::Unknown }
        }
        other => other,
    }
}

trait FromVolume: Sized {
    fn from_volume(error: &Error) -> Option<Self>;
}

/// The words of an operation's errors for those of the volume; `Corrupt` and `Io` all of them have.
macro_rules! words {
    ($($target:ident { $($theirs:ident => $ours:ident),* $(,)? })*) => {$(
        impl FromVolume for fs::$target {
            fn from_volume(error: &Error) -> Option<Self> {
                match error {
                    $(Error::$theirs => Some(Self::$ours),)*
                    Error::Corrupt { block, .. } => Some(Self::Corrupt { block: *block }),
                    Error::Device(_) => Some(Self::Io),
                    _ => None,
                }
            }
        }
    )*};
}

words! {
    LookupError { NotFound => NotFound, Stale => NotFound, NotDirectory => NotADirectory }
    CreateError { NotFound => NotFound, Stale => NotFound, NotDirectory => NotADirectory, Exists => Exists, NoSpace => NoSpace }
    RemoveError {
        NotFound => NotFound, Stale => NotFound, NotDirectory => NotADirectory, IsDirectory => IsADirectory,
        NotEmpty => NotEmpty, NoSpace => NoSpace,
    }
    RenameError {
        NotFound => NotFound, Stale => NotFound, NotDirectory => NotADirectory, IsDirectory => IsADirectory,
        Exists => Exists, NotEmpty => NotEmpty, NoSpace => NoSpace, Cycle => IntoItself,
    }
    StatError { NotFound => NotFound, Stale => NotFound }
    ReadError { NotFound => NotFound, Stale => NotFound, IsDirectory => IsADirectory }
    WriteError {
        NotFound => NotFound, Stale => NotFound, IsDirectory => IsADirectory, NoSpace => NoSpace, TooLarge => TooLarge,
    }
    ReaddirError { NotFound => NotFound, Stale => NotFound, NotDirectory => NotADirectory }
    SyncError { NoSpace => NoSpace }
}
