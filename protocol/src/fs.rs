//! `atoll.fs/1`: files and directories.
//!
//! Files hold bytes, directories hold names. Nothing here names a place outside of the capability that a call is made
//! on: a [`Path`] only goes down. Data leaves by lease; it comes in by lease, or by copy when it is small.

use kernel_ipc::Rights;
use kernel_ipc::codec::{self, Decode, Decoder, Encode, Encoder, Layout, Malformed};
use kernel_ipc::described::{Definition, Type, Types};
use kernel_ipc::interface::{Cap, Lease, LeasePart, OperationError, Wire, interface};
use kernel_ipc::wire::MIN_PAYLOAD_BYTES;

/// Files and directories.
#[interface("atoll.fs/1")]
pub trait Fs {
    /// A file or directory.
    type Node;

    /// Read a file, list a directory.
    const READ: Rights;
    /// Change a file, sync.
    const WRITE: Rights;
    /// Map the regions that the file system lends from.
    const MAP: Rights;
    /// Find names below a directory.
    const LOOKUP: Rights = 8;
    /// Make names in a directory.
    const CREATE: Rights = 9;
    /// Remove names from a directory.
    const REMOVE: Rights = 10;
    /// Check the whole volume.
    const ADMIN: Rights = 11;

    /// Gives a capability of the node at `path` with the rights `want`.
    ///
    /// Rights that `dir` does not have are refused with `RightsMissing`.
    #[op(1, requires = LOOKUP, retry = cached, deadline = "30s")]
    fn open(dir: Node, path: Path<'_>, want: Rights) -> Result<(Cap<Node>, Stat), LookupError>;

    /// Makes an empty file and gives a capability of it with the rights `want`, as [`open`](Client::open) does.
    #[op(2, requires = CREATE, retry = cached, deadline = "30s")]
    fn create(dir: Node, name: Name<'_>, want: Rights) -> Result<(Cap<Node>, Stat), CreateError>;

    /// Makes an empty directory.
    #[op(3, requires = CREATE, retry = cached, deadline = "30s")]
    fn mkdir(dir: Node, name: Name<'_>) -> Result<Stat, CreateError>;

    /// Removes a file's name. The file goes with its last name; until then no open capability of it is disturbed, and
    /// leases of its data stay good.
    #[op(4, requires = REMOVE, retry = cached, deadline = "30s")]
    fn unlink(dir: Node, name: Name<'_>) -> Result<(), RemoveError>;

    /// Removes an empty directory.
    #[op(5, requires = REMOVE, retry = cached, deadline = "30s")]
    fn rmdir(dir: Node, name: Name<'_>) -> Result<(), RemoveError>;

    /// Gives the node `from` in `dir` the name `to` in `to_dir` instead, at once for every observer. With `replace`,
    /// what had that name is removed (a file by a file, an empty directory by a directory).
    #[op(6, requires = REMOVE, retry = cached, deadline = "30s")]
    fn rename(
        dir: Node,
        from: Name<'_>,
        #[requires(CREATE)] to_dir: Node,
        to: Name<'_>,
        replace: bool,
    ) -> Result<(), RenameError>;

    /// What is known of a node. Whoever has a capability of it may ask.
    #[op(7, retry = idempotent, deadline = "30s")]
    fn stat(node: Node) -> Result<Stat, StatError>;

    /// What is known of the node at `path`, without opening it.
    #[op(8, requires = LOOKUP, retry = idempotent, deadline = "30s")]
    fn lookup(dir: Node, path: Path<'_>) -> Result<Stat, LookupError>;

    /// Lends bytes of a file from `offset` on: at most `len`, at most [`EXTENT_MAX`], and perhaps fewer. How many the
    /// lease says. `None` at the end of the file.
    #[op(9, requires = READ, retry = idempotent, deadline = "30s")]
    fn read(node: Node, offset: u64, len: u32) -> Result<Option<Lease>, ReadError>;

    /// Writes all of `data` at `offset`, or nothing. What lies between the old end and `offset` reads as zeros.
    #[op(10, requires = WRITE, retry = cached, deadline = "30s")]
    fn write(node: Node, offset: u64, data: &[u8]) -> Result<(), WriteError>;

    /// As [`write`](Client::write), with bytes that the caller lent to the file system. They are copied before the
    /// answer.
    #[op(11, requires = WRITE, retry = cached, deadline = "30s")]
    fn write_lease(node: Node, offset: u64, data: LeasePart) -> Result<(), WriteError>;

    /// Writes `data` at the end of the file and says where that was.
    #[op(12, requires = WRITE, retry = cached, deadline = "30s")]
    fn append(node: Node, data: &[u8]) -> Result<u64, WriteError>;

    /// Makes the file `size` bytes long: cuts it, or adds zeros.
    #[op(13, requires = WRITE, retry = cached, deadline = "60s")]
    fn truncate(node: Node, size: u64) -> Result<(), WriteError>;

    /// Lists a directory from `cursor` on (0: its beginning), at most `max` entries. Entries made or removed meanwhile
    /// may be missing or listed; every other entry is listed exactly once.
    #[op(14, requires = READ, retry = idempotent, deadline = "30s")]
    fn readdir(dir: Node, cursor: u64, max: u32) -> Result<DirectoryPage, ReaddirError>;

    /// Room on the volume.
    #[op(15, retry = idempotent, deadline = "30s")]
    fn statfs(node: Node) -> Result<Statfs, StatError>;

    /// Makes durable whatever of the volume was answered before this was asked.
    #[op(16, requires = WRITE, retry = idempotent, deadline = "120s")]
    fn sync(node: Node) -> Result<(), SyncError>;

    /// Verifies the volume, a step per call: every structure, every checksum, what is reachable and what leaks. Begins
    /// with cursor 0.
    #[op(17, requires = ADMIN, retry = idempotent, deadline = "120s")]
    fn check(node: Node, cursor: u64) -> Result<CheckPage, CheckError>;

    /// What is known of the node at `path` and, if that is a file of 1 to `max` bytes which one lease can have, all of
    /// its bytes: both as of one moment. Nothing is opened, so nothing is to be dropped but the lease.
    ///
    /// Without a lease, [`open`](Client::open) and [`read`](Client::read) are the way.
    #[op(18, requires = LOOKUP | READ, retry = idempotent, deadline = "30s")]
    fn fetch(dir: Node, path: Path<'_>, max: u32) -> Result<(Stat, Option<Lease>), LookupError>;
}

/// Longest [`Path`], bytes: with the other arguments it fits the smallest window.
pub const PATH_MAX: usize = 3840;
/// Longest [`Name`], bytes.
pub const NAME_MAX: usize = 255;
/// Longest range that one read lends, bytes.
pub const EXTENT_MAX: u32 = 1 << 20;

/// Most bytes that one `write_lease` may name.
pub const WRITE_MAX: u64 = 4 << 20;

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
        Name::checked(bytes.as_ref())
    }

    fn checked(bytes: &'a [u8]) -> Result<Self, BadPath> {
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
        Path::checked(bytes.as_ref())
    }

    fn checked(bytes: &'a [u8]) -> Result<Self, BadPath> {
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

macro_rules! checked_bytes {
    ($($name:ident $min:literal $max:ident $about:literal)*) => {$(
        impl Layout for $name<'_> {
            const FIXED_BYTES: usize = <[u8]>::FIXED_BYTES;

            fn describe(types: &mut Types) -> Type {
                let (min, max) = ($min, $max as u32);
                types.define(stringify!($name), |_| Definition::Bytes { about: $about.into(), min, max })
            }
        }

        impl Encode for $name<'_> {
            fn encode(&self, to: &mut Encoder) {
                self.0.encode(to);
            }
        }

        impl<'a> Decode<'a> for $name<'a> {
            fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
                $name::checked(<&[u8]>::decode(from)?).map_err(|_| Malformed)
            }
        }
    )*};
}

checked_bytes! {
    Name 1 NAME_MAX "A file name: no '/', no NUL, not \".\" or \"..\""
    Path 0 PATH_MAX "Names joined by '/', relative to the directory that is named with it; empty: that directory itself"
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct DirectoryEntry<'a> {
    /// The node's number.
    pub inode: u64,
    /// What the node is.
    pub kind: Kind,
    /// Its name here.
    pub name: Name<'a>,
}

/// Some entries of a directory, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct DirectoryPage {
    /// Cursor for the next page; `None` after the last.
    pub next: Option<u64>,
    /// Packed entries.
    #[packed(DirectoryEntry<'_>)]
    pub bytes: Vec<u8>,
}

impl DirectoryPage {
    /// Bytes of entries that fit into a reply through the smallest window.
    pub const LIMIT: usize = MIN_PAYLOAD_BYTES - Self::FIXED_BYTES;

    /// Adds an entry, unless the page would then be longer than `limit` bytes. Says whether it was added.
    pub fn push(&mut self, entry: &DirectoryEntry<'_>, limit: usize) -> bool {
        let fits = self.bytes.len() + codec::element_bytes(entry) <= limit;
        if fits {
            codec::push_element(&mut self.bytes, entry);
        }
        fits
    }

    /// The entries, each checked. Ends after the first that is malformed.
    pub fn entries(&self) -> impl Iterator<Item = Result<DirectoryEntry<'_>, Malformed>> {
        codec::elements(&self.bytes)
    }
}

/// Room on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum LookupError {
    /// No such name.
    NotFound = 1,
    /// A name before the last is not a directory.
    NotADirectory = 2,
    /// A structure on the way fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
}

/// Why nothing was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum CreateError {
    /// The target is not a directory.
    NotADirectory = 2,
    /// The name is taken.
    Exists = 4,
    /// The volume is full.
    NoSpace = 6,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
    /// The directory itself was removed.
    NotFound = 1,
}

/// Why nothing was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum RemoveError {
    /// No such name.
    NotFound = 1,
    /// `rmdir` of a file, or the target is not a directory.
    NotADirectory = 2,
    /// `unlink` of a directory.
    IsADirectory = 3,
    /// The directory has entries.
    NotEmpty = 5,
    /// The volume is too full even to note the removal.
    NoSpace = 6,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
}

/// Why nothing was renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum RenameError {
    /// No such name.
    NotFound = 1,
    /// A directory would replace a file, or a target is not a directory.
    NotADirectory = 2,
    /// A file would replace a directory.
    IsADirectory = 3,
    /// The new name is taken and `replace` was not asked.
    Exists = 4,
    /// The directory to be replaced has entries.
    NotEmpty = 5,
    /// The volume is full.
    NoSpace = 6,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
    /// The directory would become its own ancestor.
    IntoItself = 9,
}

/// Why a node could not be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum StatError {
    /// The node was removed.
    NotFound = 1,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
}

/// Why no data came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum ReadError {
    /// The node was removed.
    NotFound = 1,
    /// The node is a directory.
    IsADirectory = 3,
    /// The data or a structure on the way fails its checksum. Wrong bytes are never lent.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
}

/// Why a write, append or truncate did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum WriteError {
    /// The node was removed.
    NotFound = 1,
    /// The node is a directory.
    IsADirectory = 3,
    /// The volume, or the file under it, is full.
    NoSpace = 6,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
    /// The file would grow beyond 1 TiB.
    TooLarge = 10,
}

/// Why a directory could not be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum ReaddirError {
    /// The directory was removed.
    NotFound = 1,
    /// The node is a file.
    NotADirectory = 2,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed.
    Io = 8,
    /// No page ended with this cursor.
    BadCursor = 11,
}

/// Why a sync did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum SyncError {
    /// The file under the volume is full; what was acknowledged since the last sync is not durable.
    NoSpace = 6,
    /// A structure fails its checksum.
    Corrupt {
        /// Its block.
        block: u64,
    } = 7,
    /// The device failed; what was acknowledged since the last sync may be lost.
    Io = 8,
}

/// Why a step of a check did not end. What is wrong with the volume is no such error: it is in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum CheckError {
    /// The device failed.
    Io = 8,
    /// No step ended with this cursor.
    BadCursor = 11,
}
