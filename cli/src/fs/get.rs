//! `atoll fs get|cat`: from the volume to this machine.
//!
//! * The file system lends ranges of the driver's region, which this guest maps; the kernel writes files straight from
//!   there. A lease is looked at again after each use: bytes of a lease that had ended are never kept.
//! * A file appears under its name when it is complete.
//! * Of several files, those that are damaged are named and left out; all others come.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;

use kernel_ipc::Rights;
use kernel_ipc::interface::{Cap, Lease};
use kernel_ipc::runtime::io::{self, File};
use protocol::fs::{EXTENT_MAX, Kind, Node, Stat};

use super::path::VolumePath;
use super::pool::Pool;
use super::{Volume, cannot, list, with_volume};
use crate::args::Common;
use crate::bar::{Bar, Counts};
use crate::interrupt;
use crate::output::{self, Failed};
use crate::why::{self, why};

/// Files at a time in a tree, and ranges at a time in a file.
const AT_A_TIME: usize = 16;
const RANGES_AT_A_TIME: usize = 16;

/// A lease may end between its arrival and its use when the driver dies; then the range is asked for again.
const TRIES: usize = 3;

/// `atoll fs get`.
pub fn get(common: &Common, sources: &[OsString], target: &Path, recursive: bool) -> Result<(), Failed> {
    if target == Path::new("-") {
        return cat(common, sources);
    }
    let into_directory = target.is_dir();
    if sources.len() > 1 && !into_directory {
        return Err(Failed::new(format!("{}: not a directory here", super::shown(target)))
            .help("several files need a directory that exists"));
    }
    let mut plan = Vec::new();
    for source in sources {
        // `DIR/.` means what is in DIR.
        let (text, contents) = match source.as_bytes().strip_suffix(b"/.") {
            Some(directory) => (if directory.is_empty() { b"/" } else { directory }, true),
            None => (source.as_bytes(), false),
        };
        let path = VolumePath::parse(OsStr::from_bytes(text))?;
        let name = path.split().map(|(_, name)| local_name(name.as_bytes()));
        let local = match name {
            Some(name) if into_directory && !contents => target.join(name),
            _ => target.to_path_buf(),
        };
        plan.push((path, local));
    }
    interrupt::watch()?;
    let start = std::time::Instant::now();
    let bar = Bar::new(if recursive { Counts::Files } else { Counts::Bytes }, 0);
    let done = with_volume(common, async |volume| {
        let go_on = recursive || plan.len() > 1;
        let copy = Copy { volume, pool: Pool::new(AT_A_TIME), bar: bar.clone(), counts: Rc::default(), go_on };
        for (path, local) in &plan {
            let stat = copy.volume.look(path).await?;
            match stat.kind {
                Kind::File => copy.file(path.clone(), local.clone()).await?,
                Kind::Directory if recursive => {
                    let tree = copy.tree(path.clone(), local.clone()).await;
                    copy.unless_damaged(tree)?;
                }
                Kind::Directory => {
                    return Err(Failed::new(format!("{path}: it is a directory"))
                        .help("use -r to copy it with all that is in it"));
                }
            }
        }
        copy.pool.finish().await?;
        Ok(copy.counts.get())
    });
    bar.end();
    let done = done?;
    super::put::summary(common, "got", done.files, done.bytes, start.elapsed())?;
    match done.damaged {
        0 => Ok(()),
        1 => Err(Failed::new("1 entry is damaged and was left out; everything else was copied")),
        more => Err(Failed::new(format!("{more} entries are damaged and were left out; everything else was copied"))),
    }
}

/// A name of the volume as a name here. Both are bytes without NUL and `/`.
fn local_name(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// What has come.
#[derive(Clone, Copy, Default)]
struct Got {
    files: u64,
    bytes: u64,
    /// Files and directories that could not be read.
    damaged: u64,
}

/// One copy out of the volume.
#[derive(Clone)]
struct Copy {
    volume: Volume,
    pool: Pool,
    bar: Bar,
    counts: Rc<Cell<Got>>,
    /// What is damaged does not end the copy.
    go_on: bool,
}

/// A file on its way.
struct Transfer {
    node: Cap<Node>,
    path: VolumePath,
    file: File,
    local: PathBuf,
}

impl Copy {
    /// Copies a directory. Boxed because it calls itself.
    fn tree(&self, path: VolumePath, local: PathBuf) -> Pin<Box<dyn Future<Output = Result<(), Failed>> + '_>> {
        Box::pin(async move {
            // Not `create_dir_all`: it says that a file which is in the way exists.
            match fs::create_dir(&local) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && local.is_dir() => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(Failed::new(format!("{}: not a directory here", super::shown(&local))));
                }
                made => made.map_err(|error| cannot("make", &local, &error))?,
            }
            let directory = self.volume.open_directory(&path, Rights::empty()).await?;
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let (entries, next) = list::page(&self.volume, &path, &directory, at).await?;
                cursor = next;
                for entry in entries {
                    let (path, local) = (path.join(&entry.name)?, local.join(local_name(&entry.name)));
                    match entry.kind {
                        Kind::Directory => {
                            let tree = self.tree(path, local).await;
                            self.unless_damaged(tree)?;
                        }
                        Kind::File => self.file(path, local).await?,
                    }
                }
            }
            Ok(())
        })
    }

    /// Names what is damaged and goes on, if this copy does.
    fn unless_damaged(&self, done: Result<(), Failed>) -> Result<(), Failed> {
        match done {
            Err(failed) if self.go_on && why::is_damage(&failed) => {
                self.bar.aside(|| output::message(&format!("left out: {}", failed.message)));
                let mut counts = self.counts.get();
                counts.damaged += 1;
                self.counts.set(counts);
                Ok(())
            }
            other => other,
        }
    }

    /// Copies a file, beside others.
    async fn file(&self, path: VolumePath, local: PathBuf) -> Result<(), Failed> {
        let copy = self.clone();
        self.pool
            .start(async move {
                let done = copy.one(path, &local).await;
                copy.unless_damaged(done)
            })
            .await
    }

    async fn one(&self, path: VolumePath, local: &Path) -> Result<(), Failed> {
        let Opened { node, stat, mut first } = open_and_read(&self.volume, &path).await?;
        self.bar.more(stat.size);
        self.bar.name(&path.to_string());
        let part = Part::create(local)?;
        let file = File::from(part.file.try_clone().map_err(|error| cannot("write", local, &error))?);
        let transfer = Rc::new(Transfer { node, path, file, local: local.to_path_buf() });
        let ranges = Pool::new(RANGES_AT_A_TIME);
        let mut offset = 0;
        while offset < stat.size {
            let length = stat.size.saturating_sub(offset).min(u64::from(EXTENT_MAX));
            let (copy, transfer, lease) = (self.clone(), transfer.clone(), first.take());
            let range = async move { copy.range(&transfer, lease, offset, length).await };
            if stat.size <= u64::from(EXTENT_MAX) {
                // A small file is one range: no need for a task of its own.
                range.await?;
            } else {
                ranges.start(range).await?;
            }
            offset += length;
        }
        ranges.finish().await?;
        part.keep(local)?;
        let mut counts = self.counts.get();
        counts.files += 1;
        counts.bytes += stat.size;
        self.counts.set(counts);
        self.bar.file_done();
        Ok(())
    }

    /// Copies one range of a file, whose beginning may be here. The end of the file may have come nearer meanwhile.
    async fn range(&self, transfer: &Transfer, first: Option<Lease>, from: u64, length: u64) -> Result<(), Failed> {
        let Transfer { node, path, file, local } = transfer;
        let end = from + length;
        let mut at = from;
        let mut tries = 0;
        let mut here = first;
        while at < end {
            interrupt::check()?;
            let wanted = u32::try_from(end - at).unwrap_or(EXTENT_MAX);
            let lease = match here.take() {
                Some(lease) => Some(lease),
                None => self.volume.client.read(node, at, wanted).await.map_err(|error| why(path, &error))?,
            };
            let Some(lease) = lease else { return Ok(()) };
            let holder = self.volume.context.holder();
            let held = holder.borrow().hold(&lease.name()).ok();
            let slice = held.as_ref().and_then(|held| held.slice(0, held.len()).ok());
            let (Some(held), Some(slice)) = (held, slice) else {
                tries = again(path, tries)?;
                continue;
            };
            let (written, _) = io::write_at(file, slice, at).await;
            if !held.still_live() {
                // What was written may be anything: it is written again.
                tries = again(path, tries)?;
                continue;
            }
            let written = written.map_err(|error| cannot("write", local, &error))? as u64;
            if written == 0 {
                return Err(Failed::new(format!("{}: the file takes no more bytes", super::shown(local))));
            }
            self.bar.done(written);
            at += written;
        }
        Ok(())
    }
}

/// Counts a range that must be asked for again.
fn again(path: &VolumePath, tries: usize) -> Result<usize, Failed> {
    if tries + 1 < TRIES {
        return Ok(tries + 1);
    }
    Err(Failed::new(format!("{path}: the disk's driver went away while its memory was read"))
        .help("try again; `atoll ps` shows how it is"))
}

/// A file that is not complete yet, under another name. Removed when dropped without `keep`.
struct Part {
    file: fs::File,
    path: PathBuf,
    kept: bool,
}

impl Part {
    fn create(local: &Path) -> Result<Part, Failed> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if local.is_dir() {
            return Err(Failed::new(format!("{}: it is a directory here", super::shown(local))));
        }
        // Relaxed: only its uniqueness counts.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = local.with_file_name(format!(".atoll-get-{}-{number}", std::process::id()));
        let file = fs::File::create(&path).map_err(|error| cannot("write", local, &error))?;
        Ok(Part { file, path, kept: false })
    }

    /// Gives it its name, in place of what had it.
    fn keep(mut self, local: &Path) -> Result<(), Failed> {
        fs::rename(&self.path, local).map_err(|error| cannot("write", local, &error))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: the copy has failed already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `atoll fs cat`.
pub fn cat(common: &Common, texts: &[OsString]) -> Result<(), Failed> {
    let paths = super::paths(texts)?;
    with_volume(common, async |volume| {
        for path in &paths {
            print(&volume, path).await?;
        }
        Ok(())
    })
}

/// A file that was opened, and what it begins with.
struct Opened {
    node: Cap<Node>,
    stat: Stat,
    /// `None`: it is empty, or that could not be read, which the next reading of it will say.
    first: Option<Lease>,
}

/// Opens a file and reads its first extent: two calls, sent together.
async fn open_and_read(volume: &Volume, path: &VolumePath) -> Result<Opened, Failed> {
    let client = &volume.client;
    let cannot_open = |error| why(path, &error);
    let opening = client.open(client.root(), path.path(), Rights::READ).ahead().await;
    let opening = opening.map_err(|failure| cannot_open(failure.into()))?;
    let first = client.read(&opening.capability(), 0, EXTENT_MAX).await;
    let (node, stat) = opening.await.map_err(cannot_open)?;
    Ok(Opened { node, stat, first: first.ok().flatten() })
}

/// Writes a file to standard output, one extent after the other; the file system reads ahead meanwhile.
async fn print(volume: &Volume, path: &VolumePath) -> Result<(), Failed> {
    let Opened { node, stat, first: mut here } = open_and_read(volume, path).await?;
    if stat.kind == Kind::Directory {
        return Err(Failed::new(format!("{path}: it is a directory")));
    }
    let mut bytes = vec![0; EXTENT_MAX as usize];
    let mut at = 0;
    let mut tries = 0;
    loop {
        let lease = match here.take() {
            Some(lease) => Some(lease),
            None => volume.client.read(&node, at, EXTENT_MAX).await.map_err(|error| why(path, &error))?,
        };
        let Some(lease) = lease else { return Ok(()) };
        let length = usize::try_from(lease.len()).unwrap_or(usize::MAX).min(bytes.len());
        let copied = volume.context.holder().borrow().read(&lease.name(), 0, &mut bytes[..length]);
        if copied.is_err() {
            tries = again(path, tries)?;
            continue;
        }
        output::write(&bytes[..length])?;
        at += length as u64;
    }
}
