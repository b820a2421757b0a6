//! Interfaces as data, for programs that were not built with them.
//!
//! * An [`Interface`] says everything of an interface that travels or is checked: operations with numbers, rights, retry
//!   classes and deadlines, and the types of arguments, results and errors down to the bytes. `#[interface]` and the derives
//!   emit what it is [made](Interface::of) from; a call never looks at it.
//! * It is written as JSON: in the files of released descriptions, and by every host to whoever [asks](ask).
//! * One that came from elsewhere is an allegation until it is [checked](Interface::check). By a [`Checked`] one arguments,
//!   results and errors turn from JSON into the bytes of the generated code, and back.
//! * [`compare`] says what changed between two of them, and whom that breaks.

mod ask;
mod base64;
mod book;
mod call;
mod check;
mod compare;
mod decode;
mod encode;
#[cfg(test)]
mod testing;
mod types;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Rights;
use crate::interface::{Description, Retry};

pub(crate) use ask::page;
pub use ask::{AskError, DESCRIBE, ask, knock};
pub use book::{Book, Entry};
pub use call::NoResult;
pub use check::{Checked, Fault};
pub use compare::{Change, breaks_unsaid, compare};
pub use decode::bytes as bytes_as_json;
pub use encode::{Message, Wrong};
pub use types::{Details, Signature, Types};

/// One interface and version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Name and version, as in a manifest: `"atoll.fs/1"`.
    pub name: String,
    /// What it is, one sentence.
    pub about: String,
    /// The object kinds; a session's root is of the first.
    pub kinds: Vec<Named>,
    /// The rights that it knows.
    pub rights: Vec<Right>,
    /// The operations, in ascending order of their numbers.
    pub operations: Vec<Operation>,
    /// The types that have a name.
    pub types: BTreeMap<String, Definition>,
    /// The sets of errors, each in ascending order of its numbers.
    pub errors: BTreeMap<String, Vec<Variant>>,
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: String,
    /// One sentence.
    pub about: String,
}

/// A right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Right {
    /// Its name in a manifest.
    pub name: String,
    /// Which bit of [`Rights`](crate::Rights) it is.
    pub bit: u32,
    /// What its holder may do.
    pub about: String,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its number on the wire.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// What it does, one sentence.
    pub about: String,
    /// What it is called on.
    pub target: Target,
    /// Names of the rights that the target's capability must have.
    pub requires: Vec<String>,
    /// What may be done when its answer is lost.
    pub retry: Retry,
    /// How long a caller waits unless it says otherwise, in nanoseconds; `None`: for ever.
    pub deadline_ns: Option<u64>,
    /// The arguments beside the target.
    pub arguments: Vec<Field>,
    /// What it gives.
    pub result: Type,
    /// The name of its set of errors.
    pub error: String,
}

/// What an operation is called on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The argument's name.
    pub name: String,
    /// Its object kind.
    pub kind: String,
}

/// An argument, or a field of a struct or error. Those of a tuple struct are called `0`, `1` and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: Type,
    /// What it says, one sentence; arguments have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

/// How a value stands in a message; `codec.rs` draws it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Type {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
    /// Eight bytes, two's complement.
    I64,
    /// One byte, 0 or 1.
    Bool,
    /// A set of rights, four bytes.
    Rights,
    /// UTF-8, with its length before it.
    Text,
    /// Bytes, with their number before them.
    Bytes,
    /// Elements, with their number before them.
    List(Box<Type>),
    /// Bytes, with their number before them, that are elements one behind the other. A receiver takes them one by one, and
    /// none behind the first that is malformed.
    Packed(Box<Type>),
    /// A flag, then the value or zeros.
    Option(Box<Type>),
    /// One value behind the other.
    Tuple(Vec<Type>),
    /// One of [`Interface::types`].
    Named(String),
    /// A capability that the caller names.
    Handle {
        /// Its object kind.
        kind: String,
        /// Names of the rights that it must have.
        requires: Vec<String>,
    },
    /// A capability that the host gives.
    Capability {
        /// Its object kind.
        kind: String,
    },
    /// A lease that the host gives.
    Lease,
    /// A part of a lease that the caller names: offset and length, eight bytes each, with the name beside.
    LeasePart,
}

/// A type that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Definition {
    /// Fields, one behind the other.
    Struct {
        /// What it is.
        about: String,
        /// The fields.
        fields: Vec<Field>,
    },
    /// One byte, which says which of these it is.
    Enum {
        /// What it is.
        about: String,
        /// The values, without fields.
        variants: Vec<Variant>,
    },
    /// [`Type::Bytes`] of which not all are allowed.
    Bytes {
        /// What it is, and which are allowed.
        about: String,
        /// Fewest.
        min: u32,
        /// Most.
        max: u32,
    },
}

/// A value of an enum, or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its number on the wire.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// What it says, one sentence.
    pub about: String,
    /// What comes with an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
}

impl Interface {
    /// An interface that this program was built with.
    pub fn of(description: &'static Description) -> Interface {
        let mut types = Types::new(description);
        let Details { about, kinds, rights, operations } = (description.details)(&mut types);
        let signatures = operations.into_iter().chain(std::iter::repeat_with(Signature::default));
        let operations = description.operations.iter().zip(signatures).map(|(operation, signature)| Operation {
            number: operation.number,
            name: operation.name.into(),
            about: signature.about.into(),
            target: Target { name: signature.target.into(), kind: types.kind(operation.target_kind) },
            requires: types.rights(operation.requires),
            retry: operation.retry,
            deadline_ns: operation.deadline.map(|deadline| u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX)),
            arguments: signature.arguments,
            result: signature.result,
            error: signature.error,
        });
        let operations = operations.collect();
        let about_of = |abouts: &[&str], at: usize| abouts.get(at).copied().unwrap_or_default().to_owned();
        let kind = |(at, name): (usize, &&str)| Named { name: (*name).into(), about: about_of(&kinds, at) };
        let right = |(at, (name, right)): (usize, &(&str, Rights))| Right {
            name: (*name).into(),
            bit: right.bits().trailing_zeros(),
            about: about_of(&rights, at),
        };
        let (types, errors) = types.into_tables();
        Interface {
            name: description.name.into(),
            about: about.into(),
            kinds: description.kinds.iter().enumerate().map(kind).collect(),
            rights: description.rights.iter().enumerate().map(right).collect(),
            operations,
            types,
            errors,
        }
    }

    /// Reads what [`to_json`](Interface::to_json) wrote, or somebody else, and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(json: &[u8]) -> Result<Checked, Fault> {
        let interface: Interface = serde_json::from_slice(json).map_err(|error| Fault(error.to_string()))?;
        interface.check()
    }

    /// Itself as JSON, for files and people, with a newline at the end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("names and numbers are JSON");
        text.push('\n');
        text
    }

    /// `atoll.fs` of `atoll.fs/1`.
    pub fn family(&self) -> &str {
        self.name.rsplit_once('/').map_or(self.name.as_str(), |(family, _)| family)
    }

    /// 1 of `atoll.fs/1`; 0 if it says none.
    pub fn version(&self) -> u32 {
        self.name.rsplit_once('/').and_then(|(_, version)| version.parse().ok()).unwrap_or(0)
    }

    /// The operation of this name.
    pub fn operation(&self, name: &str) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.name == name)
    }
}

impl Definition {
    /// What it is, one sentence.
    pub fn about(&self) -> &str {
        match self {
            Definition::Struct { about, .. } | Definition::Enum { about, .. } | Definition::Bytes { about, .. } => {
                about
            }
        }
    }
}

/// Whether a struct's value is written as that of its only field: those that wrap one, `struct SendFlags(u8)`.
fn is_wrapper(fields: &[Field]) -> bool {
    matches!(fields, [field] if field.name == "0")
}

/// As people read it: `u64`, `list of Stat`, `(capability of Node, Stat)`.
impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::U8 => f.write_str("u8"),
            Type::U16 => f.write_str("u16"),
            Type::U32 => f.write_str("u32"),
            Type::U64 => f.write_str("u64"),
            Type::I64 => f.write_str("i64"),
            Type::Bool => f.write_str("bool"),
            Type::Rights => f.write_str("rights"),
            Type::Text => f.write_str("text"),
            Type::Bytes => f.write_str("bytes"),
            Type::List(element) => write!(f, "list of {element}"),
            Type::Packed(element) => write!(f, "packed list of {element}"),
            Type::Option(value) => write!(f, "{value} or nothing"),
            Type::Tuple(parts) if parts.is_empty() => f.write_str("nothing"),
            Type::Tuple(parts) => {
                let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
                write!(f, "({})", parts.join(", "))
            }
            Type::Named(name) => f.write_str(name),
            Type::Handle { kind, requires } if requires.is_empty() => write!(f, "capability of {kind}"),
            Type::Handle { kind, requires } => write!(f, "capability of {kind} with {}", requires.join(", ")),
            Type::Capability { kind } => write!(f, "capability of {kind}"),
            Type::Lease => f.write_str("lease"),
            Type::LeasePart => f.write_str("part of a lease"),
        }
    }
}
