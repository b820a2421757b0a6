//! The file or device behind a driver: making it, opening it, claiming it.
//!
//! - Only a file that this driver makes gets a size. A file that exists is never truncated or resized.
//! - A file is made under another name first, so that a crash leaves a whole image or none.
//! - `flock` keeps a second opener away. The kernel holds the lock of a dead driver until its last I/O has ended, so
//!   having the lock also means that nothing of the predecessor will land any more.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel_ipc::runtime;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use protocol::block::BLOCK_SIZE;

use crate::sys;

/// Which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// Bytes of a file that is made.
    pub size: Option<u64>,
    /// Make the file if there is none.
    pub create: bool,
    /// Take no writes.
    pub read_only: bool,
}

/// Why there is no device.
#[derive(Debug)]
pub enum ImageError {
    /// There is no such file, and `create` is not set.
    Missing(PathBuf),
    /// `create` needs a `size` of whole blocks.
    NoSize,
    /// It is neither a regular file nor a block device, or holds not one block.
    NotADevice(PathBuf),
    /// Another process has it, or the I/O of a dead one has not ended yet.
    InUse(PathBuf),
    /// The system's refusal of a step.
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageError::Missing(path) => {
                write!(f, "{}: no such file (create = true with a size makes one)", path.display())
            }
            ImageError::NoSize => write!(f, "create = true needs a size that is a multiple of {BLOCK_SIZE} bytes"),
            ImageError::NotADevice(path) => {
                write!(f, "{}: not a file or block device of at least {BLOCK_SIZE} bytes", path.display())
            }
            ImageError::InUse(path) => write!(f, "{}: another process uses it", path.display()),
            ImageError::Io { what, path, error } => write!(f, "cannot {what} {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ImageError {}

/// An open and claimed image.
#[derive(Debug)]
pub struct Image {
    file: Flock<OwnedFd>,
    /// Whole blocks in it.
    pub blocks: u64,
    /// The page cache is bypassed.
    pub direct: bool,
    /// It is open for reading only.
    pub read_only: bool,
    /// It is a file that the configuration has made, and not a block of it was ever written.
    pub blank: bool,
}

/// How long a dead predecessor's I/O is waited for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(10);
const CLAIM_INTERVAL: Duration = Duration::from_millis(20);

impl Image {
    /// Opens, and makes if configured, and claims the image. Waits for a dead predecessor's last I/O.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn open(config: &ImageConfig) -> Result<Image, ImageError> {
        Image::open_within(config, CLAIM_PATIENCE).await
    }

    /// As [`Image::open`], giving up after `patience`.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn open_within(config: &ImageConfig, patience: Duration) -> Result<Image, ImageError> {
        let path = &config.path;
        let failed = |what| move |error| ImageError::Io { what, path: path.clone(), error };
        let mut file = match open_existing(config) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && config.create && !config.read_only => {
                make(path, config.size)?;
                open_existing(config)
            }
            other => other,
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::Missing(path.clone()),
            _ => failed("open")(error),
        })?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        let kind = metadata.file_type();
        let blank = config.create && kind.is_file() && metadata.blocks() == 0;
        // For a block device the length in its metadata is 0; the end of it is not.
        let length = file.seek(SeekFrom::End(0)).map_err(failed("measure"))?;
        let blocks = length / u64::from(BLOCK_SIZE);
        if blocks == 0 || !(kind.is_file() || kind.is_block_device()) {
            return Err(ImageError::NotADevice(path.clone()));
        }
        if config.size.is_some_and(|size| size != length) {
            tracing::warn!("{} keeps its {length} bytes: only a new file gets the configured size", path.display());
        }
        let file = claim(OwnedFd::from(file), path, patience).await?;
        let direct = make_direct(&file).map_err(failed("set direct I/O on"))?;
        if !direct {
            tracing::warn!("{} has no direct I/O for blocks of {BLOCK_SIZE}: using the page cache", path.display());
        }
        Ok(Image { file, blocks, direct, read_only: config.read_only, blank })
    }

    /// Another descriptor of the same open file: the lock lasts until the last one is closed.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_existing(config: &ImageConfig) -> io::Result<File> {
    OpenOptions::new().read(true).write(!config.read_only).open(&config.path)
}

/// Makes a sparse file of `size` bytes, whole or not at all.
fn make(path: &Path, size: Option<u64>) -> Result<(), ImageError> {
    let size = size.filter(|size| *size > 0 && size.is_multiple_of(u64::from(BLOCK_SIZE))).ok_or(ImageError::NoSize)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let unfinished = path.with_file_name(name);
    let failed = |what| {
        let path = unfinished.clone();
        move |error| ImageError::Io { what, path, error }
    };
    let file = File::create(&unfinished).map_err(failed("make"))?;
    file.set_len(size).map_err(failed("size"))?;
    file.sync_all().map_err(failed("sync"))?;
    // A link, unlike a rename, never replaces a file that came into being meanwhile.
    match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("name")(error)),
        _ => {}
    }
    std::fs::remove_file(&unfinished).map_err(failed("rename"))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory of"))
}

/// Locks the file against everybody else.
async fn claim(mut file: OwnedFd, path: &Path, patience: Duration) -> Result<Flock<OwnedFd>, ImageError> {
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(claimed) => return Ok(claimed),
            Err((unclaimed, Errno::EWOULDBLOCK)) if Instant::now() < end => file = unclaimed,
            Err((_, Errno::EWOULDBLOCK)) => return Err(ImageError::InUse(path.to_owned())),
            Err((_, errno)) => {
                return Err(ImageError::Io { what: "lock", path: path.to_owned(), error: errno.into() });
            }
        }
        runtime::sleep(CLAIM_INTERVAL).await;
    }
}

/// Turns direct I/O on where blocks of ours are aligned enough for it.
fn make_direct(file: &OwnedFd) -> io::Result<bool> {
    let fits = |alignment: sys::DirectAlignment| {
        [alignment.memory, alignment.offset].iter().all(|bytes| BLOCK_SIZE.is_multiple_of(*bytes))
    };
    if !sys::direct_alignment(file).is_some_and(fits) {
        return Ok(false);
    }
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
    Ok(true)
}
