//! `atoll.fs/1` on a volume: decoded calls in, answers out. Rights, kinds and generations of handles are checked before.

use super::check::Checks;
use super::device::LeasedDevice;
use super::journal::{Effects, Room};
use super::replay::Replay;
use crate::cache::Held;
use crate::effect::WriteEffect;
use crate::format::items::FileKind;
use crate::{Effect, Error, NodeId, Stat, Volume};
use kernel_ipc::component::{Context, Counters};
use kernel_ipc::interface::{Granted, LeasePart, NewCap};
use kernel_ipc::lease::Lend;
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime;
use kernel_ipc::session::{Call, SessionInfo};
use kernel_ipc::steps;
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
    effects: Effects,
    replay: Rc<Replay>,
    sync_scheduled: Rc<Cell<bool>>,
    verified: Cell<u64>,
}

type Answer<T, E> = Result<T, CallError<E>>;

impl Server {
    pub(super) fn new(volume: Volume<LeasedDevice>, cx: Context, effects: Effects, replay: Rc<Replay>) -> Self {
        let counters = cx.counters();
        let checks = Checks::default();
        Self { volume, cx, counters, checks, effects, replay, sync_scheduled: Rc::default(), verified: Cell::new(0) }
    }

    /// Room for an effect with so many bytes of names or data.
    async fn room<E: FromVolume>(&self, bytes: usize) -> Answer<Room, E> {
        self.replay.over().await;
        self.effects.room(bytes, &self.volume).await.map_err(failed)
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
        self.replay.node(node).await;
        let held = self.volume.read(node, offset, length).await;
        self.count_verified();
        let Some(held) = held? else { return Ok(None) };
        let Held { extent, offset, length } = &held;
        let (region, offset, length) = (extent.region(), extent.start() + *offset as u64, *length as u64);
        self.counters.add_leased(length);
        let source = Some(extent.name());
        Ok(Some(Lend { region, offset, length, source, keep: Rc::new(held) }))
    }

    /// Writes the data of `effect`, and keeps it.
    async fn write_from(
        &self,
        call: &Call,
        node: NodeId,
        offset: u64,
        effect: WriteEffect,
    ) -> Answer<(), fs::WriteError> {
        let length = effect.data().len();
        let _room = self.room(length).await?;
        let turn = |now_ns| (self.effects.turn(node.inode), now_ns);
        let written = self.volume.write_then(node, offset, effect.data(), turn).await;
        self.changed();
        self.counters.add_copied(length as u64);
        let (turn, now_ns) = written.map_err(failed_write)?;
        turn.come().await;
        call.effect(effect.encode(node, offset, now_ns));
        Ok(())
    }
}

impl fs::Handler for Server {
    const SURVIVES: bool = true;

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
        call: &Call,
        dir: Granted<NodeId>,
        name: Name<'_>,
        want: Rights,
    ) -> Answer<(NewCap<NodeId>, fs::Stat), fs::CreateError> {
        // Before it is made: a refusal leaves nothing behind.
        if !dir.rights.contains(want) {
            return Err(rights_missing());
        }
        let _room = self.room(name.as_bytes().len()).await?;
        let stat = self.volume.create(dir.object, name.as_bytes()).await.map_err(failed)?;
        tell(call, &made(dir.object, name, &stat));
        self.changed();
        self.grant(&dir, &stat, want)
    }

    async fn mkdir(&self, call: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<fs::Stat, fs::CreateError> {
        let _room = self.room(name.as_bytes().len()).await?;
        let stat = self.volume.mkdir(dir.object, name.as_bytes()).await.map_err(failed)?;
        tell(call, &made(dir.object, name, &stat));
        self.changed();
        Ok(told(&stat))
    }

    async fn unlink(&self, call: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<(), fs::RemoveError> {
        let _room = self.room(name.as_bytes().len()).await?;
        self.volume.unlink(dir.object, name.as_bytes()).await.map_err(failed)?;
        tell(call, &self.removed(dir.object, name, FileKind::File));
        self.changed();
        Ok(())
    }

    async fn rmdir(&self, call: &Call, dir: Granted<NodeId>, name: Name<'_>) -> Answer<(), fs::RemoveError> {
        let _room = self.room(name.as_bytes().len()).await?;
        self.volume.rmdir(dir.object, name.as_bytes()).await.map_err(failed)?;
        tell(call, &self.removed(dir.object, name, FileKind::Directory));
        self.changed();
        Ok(())
    }

    async fn rename(
        &self,
        call: &Call,
        dir: Granted<NodeId>,
        from: Name<'_>,
        to_dir: Granted<NodeId>,
        to: Name<'_>,
        replace: bool,
    ) -> Answer<(), fs::RenameError> {
        let renamed = self.volume.rename(dir.object, from.as_bytes(), to_dir.object, to.as_bytes(), replace);
        let _room = self.room(from.as_bytes().len() + to.as_bytes().len()).await?;
        renamed.await.map_err(failed)?;
        let effect = Effect::Rename {
            from: dir.object,
            from_name: from.as_bytes(),
            to: to_dir.object,
            to_name: to.as_bytes(),
            replace,
            now_ns: self.volume.now_ns(),
        };
        tell(call, &effect);
        self.changed();
        Ok(())
    }

    async fn stat(&self, _: &Call, node: Granted<NodeId>) -> Answer<fs::Stat, fs::StatError> {
        self.replay.node(node.object).await;
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

    async fn write(&self, call: &Call, node: Granted<NodeId>, offset: u64, data: &[u8]) -> Answer<(), fs::WriteError> {
        self.write_from(call, node.object, offset, copied(data)).await
    }

    async fn write_lease(
        &self,
        call: &Call,
        node: Granted<NodeId>,
        offset: u64,
        data: LeasePart,
    ) -> Answer<(), fs::WriteError> {
        // Not with the copy in hand.
        self.replay.over().await;
        let bad = CallError::Failed { cause: Cause::BadArguments, executed: Executed::No };
        let stale = |_| CallError::Failed { cause: Cause::StaleLease, executed: Executed::No };
        let held = self.cx.holder().borrow().hold_from(&data.name, call.session().client).map_err(stale)?;
        let end = data.offset.checked_add(data.length);
        if end.is_none_or(|end| end > held.len() as u64) || data.length > fs::WRITE_MAX {
            return Err(bad);
        }
        // Copied before anything else: the client can change its bytes at any time, and what is written, summed and kept
        // must be the same.
        let fill = |bytes: &mut [u8]| held.copy_out(data.offset as usize, bytes);
        let effect = WriteEffect::new(data.length as usize, fill).map_err(stale)?;
        self.write_from(call, node.object, offset, effect).await
    }

    async fn append(&self, call: &Call, node: Granted<NodeId>, data: &[u8]) -> Answer<u64, fs::WriteError> {
        let _room = self.room(data.len()).await?;
        let turn = |_, now_ns| (self.effects.turn(node.object.inode), now_ns);
        let result = self.volume.append_then(node.object, data, turn).await;
        self.changed();
        self.counters.add_copied(data.len() as u64);
        let (offset, (turn, now_ns)) = result.map_err(failed_write)?;
        turn.come().await;
        call.effect(copied(data).encode(node.object, offset, now_ns));
        Ok(offset)
    }

    async fn truncate(&self, call: &Call, node: Granted<NodeId>, size: u64) -> Answer<(), fs::WriteError> {
        let _room = self.room(0).await?;
        let (effects, file) = (self.effects.clone(), node.object.inode);
        let result = self.volume.truncate_then(node.object, size, move |now_ns| (effects.turn(file), now_ns)).await;
        self.changed();
        let (turn, now_ns) = result.map_err(failed_write)?;
        turn.come().await;
        tell(call, &Effect::Truncate { node: node.object, size, now_ns });
        Ok(())
    }

    async fn readdir(
        &self,
        _: &Call,
        dir: Granted<NodeId>,
        cursor: u64,
        max: u32,
    ) -> Answer<DirectoryPage, fs::ReaddirError> {
        self.replay.node(dir.object).await;
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
        self.replay.over().await;
        let stat = self.volume.statfs();
        Ok(fs::Statfs {
            blocks: stat.blocks,
            free_blocks: stat.available_blocks,
            nodes: stat.files + stat.directories,
            checkpoint: stat.generation,
        })
    }

    async fn sync(&self, _: &Call, _: Granted<NodeId>) -> Answer<(), fs::SyncError> {
        self.replay.over().await;
        self.volume.sync().await.map_err(failed)?;
        steps::reach("sync/durable");
        Ok(())
    }

    async fn check(&self, _: &Call, _: Granted<NodeId>, cursor: u64) -> Answer<fs::CheckPage, fs::CheckError> {
        self.replay.over().await;
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
        if self.replay.is_over() {
            return self.volume.release(node.object);
        }
        // What is done again may still change what nobody names.
        let (replay, volume) = (self.replay.clone(), self.volume.clone());
        drop(runtime::spawn(async move {
            replay.over().await;
            volume.release(node.object);
        }));
    }
}

impl Server {
    fn removed<'a>(&self, directory: NodeId, name: Name<'a>, kind: FileKind) -> Effect<'a> {
        Effect::Remove { directory, name: name.as_bytes(), kind, now_ns: self.volume.now_ns() }
    }

    async fn find(&self, dir: NodeId, path: Path<'_>) -> Answer<Stat, fs::LookupError> {
        self.replay.names().await;
        loop {
            let found = match path.as_bytes() {
                b"" => self.volume.stat(dir).await,
                path => self.volume.lookup(dir, path).await,
            };
            match found {
                Ok(stat) if self.replay.node(stat.id).await => {}
                found => return found.map_err(failed),
            }
        }
    }
}

/// What was made, as an effect.
fn made<'a>(directory: NodeId, name: Name<'a>, stat: &Stat) -> Effect<'a> {
    let (kind, node, now_ns) = (stat.kind, stat.id, stat.created_ns);
    Effect::Make { directory, name: name.as_bytes(), kind, node, now_ns }
}

/// Says that a call has had a short effect.
fn tell(call: &Call, effect: &Effect<'_>) {
    call.effect(effect.encode_into(call.effect_room()));
}

/// Data from a message, as an effect that is being made.
fn copied(data: &[u8]) -> WriteEffect {
    let fill = |bytes: &mut [u8]| -> Result<(), std::convert::Infallible> {
        bytes.copy_from_slice(data);
        Ok(())
    };
    let Ok(effect) = WriteEffect::new(data.len(), fill);
    effect
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
        None if error == Error::Busy => CallError::Failed { cause: Cause::BUSY, executed: Executed::No },
        None if error == Error::SourceLost => {
            CallError::Failed { cause: Cause::StaleLease, executed: Executed::Unknown }
        }
        None => CallError::Failed { cause: Cause::BadArguments, executed: Executed::No },
    }
}

/// As [`failed`], for what may have been done in part.
fn failed_write(error: Error) -> CallError<fs::WriteError> {
    match failed(error) {
        CallError::Failed { cause: Cause::Busy { .. }, .. } => {
            CallError::Failed { cause: Cause::BUSY, executed: Executed::Unknown }
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
