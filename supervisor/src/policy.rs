//! What this build knows: the interfaces with their rights, and the built-in components.
//!
//! * The checks of a manifest are made against these tables and nothing else.
//! * A built-in's endpoint and use names are part of its program, so a manifest cannot rename them.

use kernel_ipc::interface::Description;

/// How a manifest narrows a root capability beyond its rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrowing {
    /// `path = "/www"`: the subtree that becomes the root.
    Path,
    /// `tcp = "127.0.0.1:8080"`: the only address that may be listened on.
    Tcp,
}

impl Narrowing {
    /// The key in the manifest and in the attenuation object.
    pub fn key(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Tcp => "tcp",
        }
    }
}

/// The interfaces that a manifest can name. (`atoll.control/1` is the supervisor's own.)
pub fn interfaces() -> [&'static Description; 4] {
    let null = &protocol::null::DESCRIPTION;
    [&protocol::block::DESCRIPTION, &protocol::fs::DESCRIPTION, &protocol::net::DESCRIPTION, null]
}

/// Finds an interface by name with version.
pub fn interface(name: &str) -> Option<&'static Description> {
    interfaces().into_iter().find(|interface| interface.name == name)
}

/// What a `uses` entry of this interface may be narrowed by.
pub fn narrowing(interface: &Description) -> Option<Narrowing> {
    match interface.name {
        name if name == protocol::fs::DESCRIPTION.name => Some(Narrowing::Path),
        name if name == protocol::net::DESCRIPTION.name => Some(Narrowing::Tcp),
        _ => None,
    }
}

/// A component that is part of the `atoll` binary.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// `run = "builtin:NAME"`, `atoll serve NAME`.
    pub name: &'static str,
    /// Its configuration fields.
    pub config: &'static [Field],
    /// What it must be able to connect to.
    pub uses: &'static [Need],
    /// What it serves.
    pub provides: &'static [Offer],
    /// Its services are made to be on several reactors.
    pub spreads: bool,
}

/// One configuration field of a built-in.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// Its value when the manifest has none.
    pub default: Default,
}

/// What a configuration value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number of bytes, or text with a unit (`64MiB`), within bounds and of whole blocks.
    Size {
        /// Smallest, in bytes.
        least: u64,
        /// Largest, in bytes.
        most: u64,
    },
    /// A whole number within bounds.
    Count {
        /// Smallest.
        least: u64,
        /// Largest.
        most: u64,
    },
    /// `IP:port`.
    Address,
    /// A path on the host; a relative one starts at the state directory.
    HostPath,
    /// `true` or `false`.
    Flag,
}

/// What an absent configuration field means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// It must be there.
    Required,
    /// A number of bytes.
    Bytes(u64),
    /// Yes or no.
    Flag(bool),
    /// It stays absent.
    Absent,
}

/// A connection that a built-in cannot work without.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The name it asks for.
    pub name: &'static str,
    /// The interface it speaks.
    pub interface: &'static str,
    /// The rights without which it cannot start.
    pub rights: &'static [&'static str],
    /// It can do without: whose memory it maps may be on another node.
    pub is_optional: bool,
}

/// An endpoint that a built-in serves.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Its name.
    pub name: &'static str,
    /// Its interface.
    pub interface: &'static str,
}

/// The built-in components of this build.
pub fn builtins() -> &'static [Builtin] {
    BUILTINS
}

/// Finds a built-in component by name.
pub fn builtin(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|builtin| builtin.name == name)
}

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// A time in seconds, up to a day.
const SECONDS: Kind = Kind::Count { least: 1, most: 86_400 };

/// When a component counts as hung: a field of every component's entry.
pub const HUNG_AFTER: Field = Field { name: "hung_after_seconds", kind: SECONDS, default: Default::Absent };
/// After which time unread calls are refused: a field of every component's entry.
pub const REFUSE_AFTER: Field =
    Field { name: "refuse_after_ms", kind: Kind::Count { least: 1, most: 60_000 }, default: Default::Absent };
/// How many reactors a component may have: a field of every component's entry.
pub const REACTORS: Field =
    Field { name: "reactors", kind: Kind::Count { least: 1, most: REACTORS_MAX }, default: Default::Absent };
/// Most reactors of a component: more cores than one machine has that anybody runs this on.
pub const REACTORS_MAX: u64 = 64;
/// When a component counts as hung if the manifest does not say it. An executor answers within a turn, which lasts microseconds; what takes seconds
/// of a turn is a bug, or a machine that swaps.
pub const HUNG_AFTER_SECONDS: u32 = 4;

const BUILTINS: &[Builtin] = &[
    Builtin {
        name: "block-file",
        config: &[
            Field { name: "path", kind: Kind::HostPath, default: Default::Required },
            Field { name: "size", kind: Kind::Size { least: MIB, most: 64 * TIB }, default: Default::Absent },
            Field { name: "create", kind: Kind::Flag, default: Default::Flag(false) },
            Field { name: "read_only", kind: Kind::Flag, default: Default::Absent },
            Field {
                name: "region",
                kind: Kind::Size { least: 4 * MIB, most: 64 * 1024 * MIB },
                default: Default::Absent,
            },
            Field { name: "record", kind: Kind::HostPath, default: Default::Absent },
        ],
        uses: &[],
        provides: &[Offer { name: "disk", interface: "atoll.block/1" }],
        spreads: false,
    },
    Builtin {
        name: "fs-server",
        config: &[Field {
            name: "cache",
            kind: Kind::Size { least: 4 * MIB, most: TIB },
            default: Default::Bytes(64 * MIB),
        }],
        uses: &[Need {
            name: "disk",
            interface: "atoll.block/1",
            rights: &["read", "write", "flush", "map"],
            is_optional: false,
        }],
        provides: &[Offer { name: "root", interface: "atoll.fs/1" }],
        spreads: false,
    },
    Builtin {
        name: "net-host",
        config: &[
            Field { name: "connections", kind: Kind::Count { least: 1, most: 60_000 }, default: Default::Absent },
            Field { name: "stall_seconds", kind: SECONDS, default: Default::Absent },
            Field { name: "always_zero_copy", kind: Kind::Flag, default: Default::Absent },
        ],
        uses: &[Need { name: "pages", interface: "atoll.block/1", rights: &["map"], is_optional: true }],
        provides: &[Offer { name: "net", interface: "atoll.net/1" }],
        spreads: false,
    },
    Builtin {
        name: "httpd",
        config: &[
            Field { name: "listen", kind: Kind::Address, default: Default::Required },
            Field { name: "connections", kind: Kind::Count { least: 1, most: 60_000 }, default: Default::Absent },
            Field { name: "head_seconds", kind: SECONDS, default: Default::Absent },
            Field { name: "body_seconds", kind: SECONDS, default: Default::Absent },
            Field { name: "idle_seconds", kind: SECONDS, default: Default::Absent },
        ],
        uses: &[
            Need { name: "root", interface: "atoll.fs/1", rights: &["lookup", "read"], is_optional: false },
            Need { name: "net", interface: "atoll.net/1", rights: &["listen"], is_optional: false },
        ],
        provides: &[],
        spreads: false,
    },
    Builtin {
        name: "null",
        config: &[],
        uses: &[],
        provides: &[Offer { name: "null", interface: "atoll.null/1" }],
        spreads: true,
    },
];
