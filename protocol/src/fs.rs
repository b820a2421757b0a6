//! `atoll.fs/1`: files and directories.
//!
//! Planned client methods (the trait follows as soon as the macro is in). `node`/`dir` are
//! `&Cap<Node>`; a handler gets `Granted<Self::Node>` there, returns `NewCap<Self::Node>` for
//! `Cap<Node>` and `Lend` for `Lease`, and `CallError<E>` for `E` (`E.into()`, `Failure.into()`).
//! ```text
//! rights: READ, WRITE, MAP, LOOKUP = bit 8, CREATE = 9, REMOVE = 10, ADMIN = 11
//!  1 open(dir, path: Path, want: Rights) -> (Cap<Node>, Stat) | LookupError   LOOKUP  cached
//!  2 create(dir, name: Name, want: Rights) -> (Cap<Node>, Stat) | CreateError CREATE  cached
//!  3 mkdir(dir, name: Name) -> Stat | CreateError                             CREATE  cached
//!  4 unlink(dir, name: Name) -> () | RemoveError                              REMOVE  cached
//!  5 rmdir(dir, name: Name) -> () | RemoveError                               REMOVE  cached
//!  6 rename(dir, from: Name, to_dir [CREATE], to: Name, replace: bool) -> () | RenameError  REMOVE cached
//!  7 stat(node) -> Stat | StatError                                           -       idempotent
//!  8 lookup(dir, path: Path) -> Stat | LookupError                            LOOKUP  idempotent
//!  9 read(node, offset: u64, len: u32) -> Option<Lease> | ReadError           READ    idempotent
//!      at most one extent (1 MiB); may be short: the lease's length says; None at end of file
//! 10 write(node, offset: u64, data: &[u8]) -> () | WriteError                 WRITE   cached
//! 11 write_lease(node, offset: u64, data: LeasePart) -> () | WriteError       WRITE   cached
//! 12 append(node, data: &[u8]) -> u64 (where it begins) | WriteError          WRITE   cached
//! 13 truncate(node, size: u64) -> () | WriteError                             WRITE   cached
//! 14 readdir(dir, cursor: u64, max: u32) -> DirectoryPage | ReaddirError      READ    idempotent
//! 15 statfs(node) -> Statfs | StatError                                       -       idempotent
//! 16 sync(node) -> () | SyncError                                             WRITE   idempotent
//! 17 check(node, cursor: u64) -> CheckPage | SyncError                        ADMIN   idempotent
//! ```

/// Longest [`Path`], bytes (fits the default window beside the other arguments).
pub const PATH_MAX: usize = 3840;
/// Longest [`Name`], bytes.
pub const NAME_MAX: usize = 255;
/// Longest range that one read lends, bytes.
pub const EXTENT_MAX: u32 = 1 << 20;

/// Why bytes are no [`Name`] or [`Path`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// A name is empty, or the path begins or ends with '/' or has two in a row.
    Empty,
    /// A name is "." or "..".
    Dots,
    /// A byte is NUL, or a name has a '/'.
    Byte,
    /// A name has more than [`NAME_MAX`] bytes or a path more than [`PATH_MAX`].
    TooLong,
}

impl std::fmt::Display for BadPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BadPath::Empty => "a name in the path is empty",
            BadPath::Dots => "\".\" and \"..\" are not names",
            BadPath::Byte => "a name has a NUL or a '/'",
            BadPath::TooLong => "the name or path is too long",
        })
    }
}

impl std::error::Error for BadPath {}

/// One checked file name: 1 to 255 bytes, no '/', no NUL, not "." or "..".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, BadPath> {
        let bytes = bytes.as_ref();
        match bytes {
            b"" => Err(BadPath::Empty),
            b"." | b".." => Err(BadPath::Dots),
            _ if bytes.len() > NAME_MAX => Err(BadPath::TooLong),
            _ if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(BadPath::Byte),
            _ => Ok(Name(bytes)),
        }
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A checked path: names joined by '/', relative to the directory that is named with it, never
/// above it. The empty path is that directory itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, BadPath> {
        let bytes = bytes.as_ref();
        if bytes.len() > PATH_MAX {
            return Err(BadPath::TooLong);
        }
        if !bytes.is_empty() {
            for name in bytes.split(|byte| *byte == b'/') {
                Name::new(name)?;
            }
        }
        Ok(Path(bytes))
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The names from the first to the last; none for the empty path.
    pub fn names(&self) -> impl Iterator<Item = Name<'a>> + use<'a> {
        let bytes = self.0;
        bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(Name)
    }
}

impl std::fmt::Debug for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The node's number; never used for another node of this volume.
    pub inode: u64,
    /// File: bytes. Directory: entries.
    pub size: u64,
    /// 4-KiB blocks that its data occupies.
    pub blocks: u64,
    /// Last change of the data, nanoseconds since the Unix epoch.
    pub modified_ns: u64,
    /// Rises with every change of data or size; with `inode` it makes an entity tag.
    pub version: u64,
    /// Names that lead to it.
    pub links: u32,
    /// File or directory.
    pub kind: Kind,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// The node's number.
    pub inode: u64,
    /// What the node is.
    pub kind: Kind,
    /// Its name here.
    pub name: Name<'a>,
}

/// Some entries of a directory, packed; read them with `entries()`, make it with
/// `DirectoryPage::push`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryPage {
    /// Cursor for the next page; `None` after the last.
    pub next: Option<u64>,
    /// Packed entries.
    pub bytes: Vec<u8>,
}

/// Room on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// 4-KiB blocks of the volume.
    pub blocks: u64,
    /// Free 4-KiB blocks.
    pub free_blocks: u64,
    /// Files and directories.
    pub nodes: u64,
    /// Checkpoints written since the volume was made.
    pub checkpoint: u64,
}

/// One step of a check of the whole volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckPage {
    /// Cursor of the next step; `None` when all is checked.
    pub next: Option<u64>,
    /// Blocks verified so far.
    pub checked_blocks: u64,
    /// Blocks to verify in all, as far as known.
    pub total_blocks: u64,
    /// What is wrong, one sentence each, naming structure and block. Empty: nothing in this step.
    pub problems: Vec<String>,
}

/// Why an open or look-up found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// 1: No such name.
    NotFound,
    /// 2: A name before the last is not a directory.
    NotADirectory,
    /// 7: A structure on the way fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
}

/// Why nothing was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// 2: The target is not a directory.
    NotADirectory,
    /// 4: The name is taken.
    Exists,
    /// 6: The volume is full.
    NoSpace,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
    /// 1: The directory itself was removed.
    NotFound,
}

/// Why nothing was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// 1: No such name.
    NotFound,
    /// 2: `rmdir` of a file, or the target is not a directory.
    NotADirectory,
    /// 3: `unlink` of a directory.
    IsADirectory,
    /// 5: The directory has entries.
    NotEmpty,
    /// 6: The volume is too full even to note the removal.
    NoSpace,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
}

/// Why nothing was renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameError {
    /// 1: No such name.
    NotFound,
    /// 2: A directory would replace a file, or a target is not a directory.
    NotADirectory,
    /// 3: A file would replace a directory.
    IsADirectory,
    /// 4: The new name is taken and `replace` was not asked.
    Exists,
    /// 5: The directory to be replaced has entries.
    NotEmpty,
    /// 6: The volume is full.
    NoSpace,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
    /// 9: The directory would become its own ancestor.
    IntoItself,
}

/// Why a node could not be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatError {
    /// 1: The node was removed.
    NotFound,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
}

/// Why no data came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// 1: The node was removed.
    NotFound,
    /// 3: The node is a directory.
    IsADirectory,
    /// 7: The data or a structure on the way fails its checksum. Wrong bytes are never lent.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
}

/// Why a write, append or truncate did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// 1: The node was removed.
    NotFound,
    /// 3: The node is a directory.
    IsADirectory,
    /// 6: The volume, or the file under it, is full.
    NoSpace,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
    /// 10: The file would grow beyond 1 TiB.
    TooLarge,
}

/// Why a directory could not be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaddirError {
    /// 1: The directory was removed.
    NotFound,
    /// 2: The node is a file.
    NotADirectory,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed.
    Io,
    /// 11: No page ended with this cursor.
    BadCursor,
}

/// Why a sync or check did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncError {
    /// 6: The file under the volume is full; what was acknowledged since the last sync is not durable.
    NoSpace,
    /// 7: A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    },
    /// 8: The device failed; what was acknowledged since the last sync may be lost.
    Io,
    /// 11: No step ended with this cursor.
    BadCursor,
}
