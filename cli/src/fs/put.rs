//! `atoll fs put`: from this machine to the volume.
//!
//! * Small files travel in the call. Larger ones are read into this guest's own region and lent from there, in pieces
//!   of 1 MiB with several in flight; the file system copies each once, fused with its checksum.
//! * A new file is made in place; one that replaces another is written beside it and renamed over it, so that a copy
//!   that fails loses nothing.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::component::Context;
use kernel_ipc::interface::{Cap, LeasePart};
use kernel_ipc::lease::{Lend, Region};
use kernel_ipc::runtime::io::{self, File};
use kernel_ipc::{CallError, Cause, Executed, Rights};
use protocol::fs::{CREATE, CreateError, Kind, LOOKUP, Name, Node, REMOVE};
use serde_json::json;

use super::path::VolumePath;
use super::pool::{Place, Places, Pool};
use super::{Volume, cannot, change, shown};
use crate::args::Common;
use crate::bar::{Bar, Counts};
use crate::interrupt;
use crate::node::visit;
use crate::output::{self, Failed};
use crate::why::{self, why};

/// Files at a time, and pieces of memory for all of them.
const AT_A_TIME: usize = 16;
const PIECES: usize = 16;
const PIECE: usize = 1 << 20;
const PIECES_OF_A_FILE: usize = 8;
/// Files up to this many bytes travel in the call itself, whose window is 4 KiB.
const INLINE: u64 = 3072;

/// `atoll fs put`.
pub fn put(common: &Common, sources: &[PathBuf], target: &OsStr, recursive: bool) -> Result<(), Failed> {
    interrupt::watch()?;
    let start = Instant::now();
    let Copied { files, bytes, skipped } = copy(common, sources, target, recursive)?;
    summary(common, "put", files, bytes, start.elapsed())?;
    match skipped {
        0 => Ok(()),
        1 => Err(Failed::new("1 entry was skipped; everything else was copied")),
        more => Err(Failed::new(format!("{more} entries were skipped; everything else was copied"))),
    }
}

/// What a copy did.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    pub files: u64,
    pub bytes: u64,
    /// Entries that are neither files nor directories.
    pub skipped: u64,
}

/// Copies `sources` to `target` of the running system's volume.
pub fn copy(common: &Common, sources: &[PathBuf], target: &OsStr, recursive: bool) -> Result<Copied, Failed> {
    let target = VolumePath::parse(target)?;
    // Nobody knows how much will come from standard input.
    let piped = sources.iter().any(|source| source == Path::new("-"));
    let bar = Bar::new(if piped { Counts::Files } else { Counts::Bytes }, 0);
    if bar.is_wanted() {
        bar.more(sources.iter().map(|source| bytes_of(source)).sum());
    }
    let done = visit(common, async |context| {
        let region = own_region(&context).await?;
        let volume = Volume::connect(context).await?;
        let found = volume.find(&target).await?;
        let into_directory = found.is_some_and(|stat| stat.kind == Kind::Directory);
        if sources.len() > 1 && !into_directory {
            return Err(
                Failed::new(format!("{target}: not a directory of the volume")).help("`atoll fs mkdir` makes one")
            );
        }
        let copy = Copy(Rc::new(Copying {
            volume,
            region,
            places: Places::new(PIECES),
            pool: Pool::new(AT_A_TIME),
            bar: bar.clone(),
            files: Cell::new(0),
            bytes: Cell::new(0),
            skipped: Cell::new(0),
            temporary: Cell::new(0),
        }));
        let mut started = Ok(());
        for source in sources {
            started = copy.source(source, &target, into_directory, recursive).await;
            if started.is_err() {
                break;
            }
        }
        // Those that are under way come to their end first, whatever became of the others.
        let finished = copy.0.pool.finish().await;
        started.and(finished)?;
        Ok(Copied { files: copy.0.files.get(), bytes: copy.0.bytes.get(), skipped: copy.0.skipped.get() })
    });
    bar.end();
    done
}

/// Says how much was copied how fast.
pub fn summary(common: &Common, verb: &str, files: u64, bytes: u64, time: Duration) -> Result<(), Failed> {
    if common.json {
        return output::json(&json!({"files": files, "bytes": bytes, "seconds": time.as_secs_f64()}));
    }
    let rate = output::size((bytes as f64 / time.as_secs_f64().max(1e-9)) as u64);
    let plural = if files == 1 { "" } else { "s" };
    output::line(&format!(
        "{verb} {files} file{plural}, {} in {} ({rate}/s)",
        output::size(bytes),
        output::duration(time.as_nanos() as u64)
    ))
}

/// The memory from which this guest lends. Published before the session is opened, so that the file system has it.
async fn own_region(context: &Context) -> Result<Rc<Region>, Failed> {
    let region = Region::create("atoll-put", context.new_region_id(), PIECES * PIECE).map_err(|error| {
        Failed::new(format!("cannot make {} of shared memory: {error}", output::size((PIECES * PIECE) as u64)))
    })?;
    context.publish_region(&region).await.map_err(|error| Failed::new(format!("cannot lend memory: {error}")))?;
    Ok(Rc::new(region))
}

/// One copy into the volume; clones are the same.
#[derive(Clone)]
struct Copy(Rc<Copying>);

struct Copying {
    volume: Volume,
    region: Rc<Region>,
    places: Places,
    pool: Pool,
    bar: Bar,
    files: Cell<u64>,
    bytes: Cell<u64>,
    skipped: Cell<u64>,
    /// Numbers the names of files that replace others.
    temporary: Cell<u64>,
}

impl Copy {
    /// Copies one argument of the command line.
    async fn source(
        &self,
        source: &Path,
        target: &VolumePath,
        into_directory: bool,
        recursive: bool,
    ) -> Result<(), Failed> {
        if source == Path::new("-") {
            return self.standard_input(target, into_directory).await;
        }
        let metadata = fs::metadata(source).map_err(|error| cannot("read", source, &error))?;
        let contents = source.as_os_str().as_bytes().ends_with(b"/.") || source == Path::new(".");
        let path = if into_directory && !contents {
            let absolute = std::path::absolute(source).map_err(|error| cannot("read", source, &error))?;
            let name = absolute.file_name().ok_or_else(|| Failed::usage(format!("{}: has no name", shown(source))))?;
            target.join(name.as_bytes())?
        } else {
            target.clone()
        };
        if metadata.is_dir() {
            if !recursive {
                return Err(Failed::new(format!("{}: it is a directory", shown(source)))
                    .help("use -r to copy it with all that is in it"));
            }
            change::make(&self.0.volume, &path, true).await?;
            let directory = self.directory(&path).await?;
            return self.tree(source.to_path_buf(), path, directory).await;
        }
        if !metadata.is_file() {
            return Err(Failed::new(format!("{}: not a regular file", shown(source))));
        }
        let Some((above, _)) = path.split() else {
            return Err(Failed::new("/: it is a directory"));
        };
        let directory = self.directory(&above).await?;
        self.start(source.to_path_buf(), metadata.len(), path, directory).await
    }

    async fn directory(&self, path: &VolumePath) -> Result<Rc<Cap<Node>>, Failed> {
        let wanted = Rights::WRITE | CREATE | REMOVE;
        Ok(Rc::new(self.0.volume.open_directory(path, wanted).await?))
    }

    /// Copies what is in a directory. Boxed because it calls itself.
    fn tree(
        &self,
        local: PathBuf,
        path: VolumePath,
        directory: Rc<Cap<Node>>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failed>> + '_>> {
        Box::pin(async move {
            let mut entries: Vec<fs::DirEntry> =
                fs::read_dir(&local).and_then(Iterator::collect).map_err(|error| cannot("read", &local, &error))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let (local, path) = (entry.path(), path.join(entry.file_name().as_bytes())?);
                let kind = entry.file_type().map_err(|error| cannot("read", &local, &error))?;
                if kind.is_dir() {
                    let child = self.make_in(&directory, &path).await?;
                    self.tree(local, path, child).await?;
                    continue;
                }
                // A link is followed if it leads to a file: the volume has no links yet.
                match fs::metadata(&local) {
                    Ok(metadata) if metadata.is_file() => {
                        self.start(local, metadata.len(), path, directory.clone()).await?
                    }
                    _ => {
                        self.0.bar.aside(|| {
                            output::message(&format!("skipped: {} is neither a file nor a directory", shown(&local)))
                        });
                        self.0.skipped.set(self.0.skipped.get() + 1);
                    }
                }
            }
            Ok(())
        })
    }

    /// Makes or finds a directory in `parent`.
    async fn make_in(&self, parent: &Cap<Node>, path: &VolumePath) -> Result<Rc<Cap<Node>>, Failed> {
        let name = last_name(path)?;
        let client = &self.0.volume.client;
        match client.mkdir(parent, name).await {
            Ok(_) | Err(CallError::Operation(CreateError::Exists)) => {}
            Err(error) => return Err(why(path, &error)),
        }
        let wanted = Rights::READ | Rights::WRITE | LOOKUP | CREATE | REMOVE;
        let below = protocol::fs::Path::new(name.as_bytes()).expect("a name is a path");
        let (directory, stat) = client.open(parent, below, wanted).await.map_err(|error| why(path, &error))?;
        match stat.kind {
            Kind::Directory => Ok(Rc::new(directory)),
            Kind::File => Err(Failed::new(format!("{path}: it exists, and is a file"))),
        }
    }

    /// Copies a file, beside others.
    async fn start(&self, local: PathBuf, size: u64, path: VolumePath, parent: Rc<Cap<Node>>) -> Result<(), Failed> {
        let copy = self.clone();
        self.0.pool.start(async move { copy.file(&local, size, &path, &parent).await }).await
    }

    async fn file(&self, local: &Path, size: u64, path: &VolumePath, parent: &Cap<Node>) -> Result<(), Failed> {
        self.0.bar.name(&path.to_string());
        let file = fs::File::open(local).map_err(|error| cannot("read", local, &error))?;
        let new = self.begin(path, parent).await?;
        let written = match size {
            0..=INLINE => self.small(file, local, &new.node, path).await,
            _ => self.large(file, local, &new.node, path).await,
        };
        self.end(written, new, path, parent).await
    }

    /// Makes the file that is written: under its own name if that is free, else under another one beside it.
    async fn begin(&self, path: &VolumePath, parent: &Cap<Node>) -> Result<New, Failed> {
        let client = &self.0.volume.client;
        let name = last_name(path)?;
        match client.create(parent, name, Rights::WRITE).await {
            Ok((node, _)) => return Ok(New { node: Rc::new(node), name: name.as_bytes().to_vec(), replaces: false }),
            Err(CallError::Operation(CreateError::Exists)) => {}
            Err(error) => return Err(why(path, &error)),
        }
        if self.0.volume.look(path).await?.kind == Kind::Directory {
            return Err(Failed::new(format!("{path}: it exists, and is a directory")));
        }
        loop {
            self.0.temporary.set(self.0.temporary.get() + 1);
            let name = format!(".atoll-put-{}-{}", std::process::id(), self.0.temporary.get()).into_bytes();
            match client.create(parent, Name::new(&name).expect("digits and letters"), Rights::WRITE).await {
                Ok((node, _)) => return Ok(New { node: Rc::new(node), name, replaces: true }),
                Err(CallError::Operation(CreateError::Exists)) => {}
                Err(error) => return Err(why(path, &error)),
            }
        }
    }

    /// Gives the new file its name, or removes what there is of it.
    async fn end(
        &self,
        written: Result<u64, Failed>,
        new: New,
        path: &VolumePath,
        parent: &Cap<Node>,
    ) -> Result<(), Failed> {
        let client = &self.0.volume.client;
        let name = Name::new(&new.name).expect("it was made under this name");
        let ended = match written {
            Ok(bytes) if new.replaces => {
                let renamed = client.rename(parent, name, parent, last_name(path)?, true).await;
                renamed.map(|()| bytes).map_err(|error| why(path, &error))
            }
            other => other,
        };
        match ended {
            Ok(bytes) => {
                self.0.files.set(self.0.files.get() + 1);
                self.0.bytes.set(self.0.bytes.get() + bytes);
                Ok(())
            }
            Err(failed) => {
                // Best effort: why the copy failed matters more.
                let _ = client.unlink(parent, name).await;
                Err(failed)
            }
        }
    }

    /// A file that fits the call.
    async fn small(
        &self,
        mut file: fs::File,
        local: &Path,
        node: &Cap<Node>,
        path: &VolumePath,
    ) -> Result<u64, Failed> {
        let mut bytes = Vec::with_capacity(INLINE as usize);
        file.read_to_end(&mut bytes).map_err(|error| cannot("read", local, &error))?;
        let mut offset = 0;
        // More than one chunk only if the file grew meanwhile.
        for chunk in bytes.chunks(INLINE as usize) {
            self.0.volume.client.write(node, offset, chunk).await.map_err(|error| why(path, &error))?;
            offset += chunk.len() as u64;
        }
        self.0.bar.done(offset);
        Ok(offset)
    }

    /// A file in pieces of the own region, several in flight.
    async fn large(
        &self,
        file: fs::File,
        local: &Path,
        node: &Rc<Cap<Node>>,
        path: &VolumePath,
    ) -> Result<u64, Failed> {
        let file = File::from(file);
        let writes = Pool::new(PIECES_OF_A_FILE);
        let mut offset = 0;
        loop {
            let place = self.0.places.take().await;
            let begin = place.index * PIECE;
            let mut filled = 0;
            while filled < PIECE {
                let rest = self.0.region.slice(begin + filled, PIECE - filled).expect("a place is within the region");
                match io::read_at(&file, rest, offset + filled as u64).await.0 {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => {
                        // What was lent must be given back before this ends.
                        writes.finish().await?;
                        return Err(cannot("read", local, &error));
                    }
                }
            }
            if filled == 0 {
                break;
            }
            let (copy, node, path) = (self.clone(), node.clone(), path.clone());
            writes.start(async move { copy.piece(place, filled, &node, offset, &path).await }).await?;
            offset += filled as u64;
            if filled < PIECE {
                break;
            }
        }
        writes.finish().await?;
        Ok(offset)
    }

    /// Lends one filled piece to the file system, which copies it.
    async fn piece(
        &self,
        place: Place,
        length: usize,
        node: &Cap<Node>,
        offset: u64,
        path: &VolumePath,
    ) -> Result<(), Failed> {
        let context = &self.0.volume.context;
        let lender = context.lender();
        let host = context.host_of(&node.session());
        let host = host.ok_or_else(|| why::lost(path, Cause::PeerDied, Executed::No))?;
        let begin = (place.index * PIECE) as u64;
        let lend = Lend {
            region: self.0.region.id(),
            offset: begin,
            length: length as u64,
            source: None,
            keep: Rc::new(place),
        };
        let name = lender.borrow_mut().lend(host, lend);
        let name = name.map_err(|error| Failed::new(format!("{path}: cannot lend memory: {error:?}")))?;
        let written = self.0.volume.client.write_lease(node, offset, LeasePart::whole(name)).await;
        // The file system has copied it, or never will: its place is free again when it is taken back.
        let _ = lender.borrow_mut().take_back(name.index, name.generation);
        written.map_err(|error| why(path, &error))?;
        self.0.bar.done(length as u64);
        Ok(())
    }

    /// `-`: standard input, in pieces, one after the other.
    async fn standard_input(&self, target: &VolumePath, into_directory: bool) -> Result<(), Failed> {
        if into_directory {
            return Err(Failed::usage(format!("{target}: standard input needs the name of a file")));
        }
        let Some((above, _)) = target.split() else { return Ok(()) };
        let parent = self.directory(&above).await?;
        let new = self.begin(target, &parent).await?;
        let written = self.read_input(&new.node, target).await;
        self.end(written, new, target, &parent).await
    }

    async fn read_input(&self, node: &Rc<Cap<Node>>, path: &VolumePath) -> Result<u64, Failed> {
        let mut input = std::io::stdin().lock();
        let mut bytes = Vec::with_capacity(PIECE);
        let mut offset = 0;
        loop {
            bytes.clear();
            let count = input.by_ref().take(PIECE as u64).read_to_end(&mut bytes);
            let count = count.map_err(|error| Failed::new(format!("standard input: {error}")))?;
            // Also at the end: what filled the pipe may have been interrupted by the same key.
            interrupt::check()?;
            if count == 0 {
                return Ok(offset);
            }
            let place = self.0.places.take().await;
            self.0.region.copy_in(place.index * PIECE, &bytes).expect("a place is within the region");
            self.piece(place, count, node, offset, path).await?;
            offset += count as u64;
        }
    }
}

/// A file that is being written.
struct New {
    node: Rc<Cap<Node>>,
    /// Its name in its directory.
    name: Vec<u8>,
    /// It takes the place of another when it is complete.
    replaces: bool,
}

fn last_name(path: &VolumePath) -> Result<Name<'_>, Failed> {
    path.name().ok_or_else(|| Failed::new("/: it is a directory"))
}

/// How many bytes there are to copy, as far as they can be seen; what cannot be read is an error later.
fn bytes_of(local: &Path) -> u64 {
    match fs::metadata(local) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(metadata) if metadata.is_dir() => {
            let entries = fs::read_dir(local).into_iter().flatten().flatten();
            // A link to a directory is not followed, see `Copy::tree`.
            entries
                .filter(|entry| entry.path().is_file() || entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| bytes_of(&entry.path()))
                .sum()
        }
        _ => 0,
    }
}
