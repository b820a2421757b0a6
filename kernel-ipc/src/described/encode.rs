//! From JSON to bytes, by a description.
//!
//! | type | JSON |
//! |---|---|
//! | integers | a number, all 64 bits of it |
//! | text | a string |
//! | bytes | a string, meaning its UTF-8; or `{"base64": "…"}` |
//! | rights | a list of names; a bit without a name as a number |
//! | lists, tuples | an array |
//! | packed lists | an array, or bytes |
//! | option | the value or `null`; `{"some": …}` where the value itself may be `null` |
//! | structs, errors' fields | an object; of a struct that wraps one value, that value |
//! | enums | the name of the value |
//! | capabilities | `"$1"` or `{"capability": "$1"}`: what came as such in an earlier answer |
//! | parts of leases | `"$2"` for the whole, or `{"lease": "$2", "offset": 0, "length": 4096}` |

use std::fmt::Display;

use serde_json::{Map, Value};

use super::book::{Book, Entry};
use super::{Checked, Definition, Field, Operation, Type, base64, is_wrapper};
use crate::codec::Encoder;
use crate::wire::{Handle, LeaseName};

/// What travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The target of a call; `None`: the session's root.
    pub target: Option<Handle>,
    /// Fixed part and tail.
    pub payload: Vec<u8>,
    /// Capabilities beside it.
    pub capabilities: Vec<Handle>,
    /// Leases beside it.
    pub leases: Vec<LeaseName>,
}

/// JSON that is not what the description asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Which argument, field or element: `pages[2].offset`. Empty: the whole.
    pub place: String,
    /// What was expected there.
    pub expected: String,
    /// What stood there; `None`: nothing.
    pub found: Option<String>,
}

impl Wrong {
    fn new(expected: impl Into<String>, found: &Value) -> Wrong {
        let found = found.to_string();
        // Enough to recognise it by.
        let shown: String = found.chars().take(60).collect();
        let cut = if shown.len() < found.len() { "…" } else { "" };
        Wrong { place: String::new(), expected: expected.into(), found: Some(shown + cut) }
    }

    fn missing(expected: impl Into<String>) -> Wrong {
        Wrong { place: String::new(), expected: expected.into(), found: None }
    }

    /// The same, inside of `outer`.
    fn within(mut self, outer: impl Display) -> Wrong {
        let dot = if self.place.is_empty() || self.place.starts_with('[') { "" } else { "." };
        self.place = format!("{outer}{dot}{}", self.place);
        self
    }
}

/// `pages[2].offset: expected a number from 0 to 255, found 256`
impl Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Wrong { place, expected, found } = self;
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        match found {
            Some(found) => write!(f, "{place}expected {expected}, found {found}"),
            None => write!(f, "{place}expected {expected}, and it is missing"),
        }
    }
}

impl std::error::Error for Wrong {}

impl Checked {
    /// The arguments of a call: an object with a value for each; the target may be left out if the root is meant.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn encode_arguments(&self, operation: &Operation, arguments: &Value, book: &Book) -> Result<Message, Wrong> {
        let target = &operation.target;
        let names = operation.arguments.iter().map(|field| field.name.as_str()).chain([target.name.as_str()]);
        let object = object(arguments, names)?;
        let mut writer = Writer::new(self, book, self.fixed_bytes_of(&operation.arguments));
        let handle = match object.get(&target.name) {
            None | Some(Value::Null) if self.takes_root(operation) => None,
            None => return Err(Wrong::missing(expected_capability(&target.kind)).within(&target.name)),
            Some(value) => {
                Some(writer.find_capability(&target.kind, value).map_err(|wrong| wrong.within(&target.name))?)
            }
        };
        writer.fields(&operation.arguments, object)?;
        Ok(Message { target: handle, ..writer.message() })
    }

    /// Whether a session's root can be the target.
    pub(super) fn takes_root(&self, operation: &Operation) -> bool {
        self.kinds.first().is_some_and(|root| root.name == operation.target.kind)
    }

    /// A value alone: a result.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn encode(&self, ty: &Type, value: &Value, book: &Book) -> Result<Message, Wrong> {
        let mut writer = Writer::new(self, book, self.fixed_bytes(ty));
        writer.value(ty, value)?;
        Ok(writer.message())
    }

    /// The fields of an error.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn encode_fields(&self, fields: &[Field], value: &Value) -> Result<Message, Wrong> {
        let book = Book::default();
        let mut writer = Writer::new(self, &book, self.fixed_bytes_of(fields));
        writer.structure(fields, value)?;
        Ok(writer.message())
    }

    /// Whether the JSON of a value may be `null`.
    pub(super) fn is_nullable(&self, ty: &Type) -> bool {
        match ty {
            Type::Option(_) => true,
            Type::Tuple(parts) => parts.is_empty(),
            Type::Named(name) => match self.types.get(name) {
                Some(Definition::Struct { fields, .. }) if is_wrapper(fields) => {
                    fields.iter().any(|field| self.is_nullable(&field.ty))
                }
                _ => false,
            },
            _ => false,
        }
    }
}

struct Writer<'a> {
    interface: &'a Checked,
    book: &'a Book,
    to: Encoder,
}

impl Writer<'_> {
    fn new<'a>(interface: &'a Checked, book: &'a Book, fixed_bytes: usize) -> Writer<'a> {
        Writer { interface, book, to: Encoder::new(fixed_bytes) }
    }

    fn message(self) -> Message {
        Message {
            target: None,
            payload: self.to.payload().to_vec(),
            capabilities: self.to.handles().to_vec(),
            leases: self.to.leases().to_vec(),
        }
    }

    fn value(&mut self, ty: &Type, value: &Value) -> Result<(), Wrong> {
        match ty {
            Type::U8 => self.to.fixed(&unsigned::<u8>(value, u8::MAX.into())?.to_le_bytes()),
            Type::U16 => self.to.fixed(&unsigned::<u16>(value, u16::MAX.into())?.to_le_bytes()),
            Type::U32 => self.to.fixed(&unsigned::<u32>(value, u32::MAX.into())?.to_le_bytes()),
            Type::U64 => self.to.fixed(&unsigned::<u64>(value, u64::MAX)?.to_le_bytes()),
            Type::I64 => {
                let expected = || Wrong::new(format!("a number from {} to {}", i64::MIN, i64::MAX), value);
                self.to.fixed(&value.as_i64().ok_or_else(expected)?.to_le_bytes());
            }
            Type::Bool => {
                let flag = value.as_bool().ok_or_else(|| Wrong::new("true or false", value))?;
                self.to.fixed(&[flag.into()]);
            }
            Type::Rights => {
                let rights = self.rights(value)?;
                self.to.fixed(&rights.to_le_bytes());
            }
            Type::Text => {
                let text = value.as_str().ok_or_else(|| Wrong::new("text", value))?;
                self.to.counted(text.as_bytes());
            }
            Type::Bytes => self.to.counted(&bytes(value)?),
            Type::List(element) => self.list(element, value)?,
            Type::Packed(element) => self.packed(element, value)?,
            Type::Option(inner) => self.option(inner, value)?,
            Type::Tuple(parts) if parts.is_empty() => {
                if !value.is_null() {
                    return Err(Wrong::new("null", value));
                }
            }
            Type::Tuple(parts) => {
                let values = array(value, parts.len())?;
                for (at, (part, value)) in parts.iter().zip(values).enumerate() {
                    self.value(part, value).map_err(|wrong| wrong.within(format_args!("[{at}]")))?;
                }
            }
            Type::Named(name) => self.named(name, value)?,
            Type::Handle { kind, .. } | Type::Capability { kind } => {
                let handle = self.find_capability(kind, value)?;
                self.to.handle(handle);
            }
            Type::Lease => {
                let lease = self.find_lease(value)?;
                self.to.lease(lease);
            }
            Type::LeasePart => self.lease_part(value)?,
        }
        Ok(())
    }

    fn fields(&mut self, fields: &[Field], object: &Map<String, Value>) -> Result<(), Wrong> {
        for field in fields {
            let value = match object.get(&field.name) {
                Some(value) => value,
                // What may be null may be left out.
                None if self.interface.is_nullable(&field.ty) => &Value::Null,
                None => return Err(Wrong::missing(self.expected(&field.ty)).within(&field.name)),
            };
            self.value(&field.ty, value).map_err(|wrong| wrong.within(&field.name))?;
        }
        Ok(())
    }

    /// A struct's, or an error's.
    fn structure(&mut self, fields: &[Field], value: &Value) -> Result<(), Wrong> {
        match fields {
            [only] if is_wrapper(fields) => self.value(&only.ty, value),
            _ => self.fields(fields, object(value, fields.iter().map(|field| field.name.as_str()))?),
        }
    }

    fn named(&mut self, name: &str, value: &Value) -> Result<(), Wrong> {
        let interface = self.interface;
        match interface.types.get(name) {
            Some(Definition::Struct { fields, .. }) => self.structure(fields, value)?,
            Some(Definition::Enum { variants, .. }) => {
                let found = variants.iter().find(|variant| value.as_str() == Some(&variant.name));
                let found = found.ok_or_else(|| Wrong::new(self.expected(&Type::Named(name.into())), value))?;
                // Checked to be a byte.
                self.to.fixed(&[found.number as u8]);
            }
            Some(Definition::Bytes { min, max, .. }) => {
                let bytes = bytes(value)?;
                if !(*min as usize..=*max as usize).contains(&bytes.len()) {
                    return Err(Wrong::new(format!("{min} to {max} bytes"), value));
                }
                self.to.counted(&bytes);
            }
            None => {}
        }
        Ok(())
    }

    fn list(&mut self, element: &Type, value: &Value) -> Result<(), Wrong> {
        let values = value.as_array().ok_or_else(|| Wrong::new(format!("a list of {element}"), value))?;
        self.to.count(values.len());
        let fixed_bytes = self.interface.fixed_bytes(element);
        for (at, value) in values.iter().enumerate() {
            let outer = self.to.begin_nested(fixed_bytes);
            self.value(element, value).map_err(|wrong| wrong.within(format_args!("[{at}]")))?;
            self.to.end_nested(outer);
        }
        Ok(())
    }

    /// Elements, or bytes that are none.
    fn packed(&mut self, element: &Type, value: &Value) -> Result<(), Wrong> {
        let Some(values) = value.as_array() else {
            let bytes = bytes(value).map_err(|_| Wrong::new(format!("a list of {element}, or bytes"), value))?;
            self.to.counted(&bytes);
            return Ok(());
        };
        let mut packed = Vec::new();
        for (at, value) in values.iter().enumerate() {
            let element = self.interface.encode(element, value, self.book);
            let element = element.map_err(|wrong| wrong.within(format_args!("[{at}]")))?;
            packed.extend(element.payload);
        }
        self.to.counted(&packed);
        Ok(())
    }

    fn option(&mut self, inner: &Type, value: &Value) -> Result<(), Wrong> {
        if value.is_null() {
            self.to.fixed(&[0]);
            self.to.skip(self.interface.fixed_bytes(inner));
            return Ok(());
        }
        self.to.fixed(&[1]);
        if !self.interface.is_nullable(inner) {
            return self.value(inner, value);
        }
        let some = value.get("some").ok_or_else(|| Wrong::new("null or {\"some\": …}", value))?;
        self.value(inner, some).map_err(|wrong| wrong.within("some"))
    }

    /// `["read", "lookup", 1048576]`, or all bits as one number.
    fn rights(&self, value: &Value) -> Result<u32, Wrong> {
        let known = &self.interface.rights;
        let expected = |found: &Value| {
            let names: Vec<&str> = known.iter().map(|right| right.name.as_str()).collect();
            Wrong::new(format!("rights, a list of {}", alternatives(&names)), found)
        };
        let one = |value: &Value| match value {
            Value::String(name) => known.iter().find(|right| right.name == *name).map(|right| 1 << right.bit),
            _ => value.as_u64().and_then(|bits| u32::try_from(bits).ok()),
        };
        let Some(names) = value.as_array() else {
            return one(value).filter(|_| value.is_u64()).ok_or_else(|| expected(value));
        };
        names.iter().enumerate().try_fold(0, |all, (at, name)| {
            let right = one(name).ok_or_else(|| expected(name).within(format_args!("[{at}]")))?;
            Ok(all | right)
        })
    }

    fn find_capability(&self, kind: &str, value: &Value) -> Result<Handle, Wrong> {
        let name = value.get("capability").unwrap_or(value).as_str();
        match name.and_then(|name| self.book.find(name)) {
            Some(Entry::Capability(known, handle)) if known == kind => Ok(*handle),
            _ => Err(Wrong::new(expected_capability(kind), value)),
        }
    }

    fn find_lease(&self, value: &Value) -> Result<LeaseName, Wrong> {
        let name = value.get("lease").unwrap_or(value).as_str();
        match name.and_then(|name| self.book.find(name)) {
            Some(Entry::Lease(lease)) => Ok(*lease),
            _ => Err(Wrong::new("a lease that an earlier call gave, by its name such as \"$1\"", value)),
        }
    }

    fn lease_part(&mut self, value: &Value) -> Result<(), Wrong> {
        let lease = self.find_lease(value)?;
        let number = |name: &str, otherwise: u64| match value.get(name) {
            Some(number) => unsigned::<u64>(number, u64::MAX).map_err(|wrong| wrong.within(name)),
            None => Ok(otherwise),
        };
        let offset = number("offset", 0)?;
        let length = number("length", lease.length.saturating_sub(offset))?;
        if offset.checked_add(length).is_none_or(|end| end > lease.length) {
            return Err(Wrong::new(format!("a part of the lease's {} bytes", lease.length), value));
        }
        self.to.lease(lease);
        self.to.fixed(&offset.to_le_bytes());
        self.to.fixed(&length.to_le_bytes());
        Ok(())
    }

    /// What is written for a value of this type, for people.
    fn expected(&self, ty: &Type) -> String {
        match ty {
            Type::Named(name) => match self.interface.types.get(name) {
                Some(Definition::Enum { variants, .. }) => {
                    let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
                    format!("a {name}, {}", alternatives(&names))
                }
                Some(Definition::Bytes { about, .. }) => format!("a {name} ({})", about.trim_end_matches('.')),
                _ => format!("a {name}"),
            },
            Type::Handle { kind, .. } | Type::Capability { kind } => expected_capability(kind),
            Type::Rights => "rights, a list of names".into(),
            Type::Bytes => BYTES.into(),
            Type::Bool => "true or false".into(),
            other => other.to_string(),
        }
    }
}

const BYTES: &str = "bytes, as text or as {\"base64\": …}";

fn expected_capability(kind: &str) -> String {
    format!("a capability of kind {kind} that an earlier call gave, by its name such as \"$1\"")
}

/// `"a", "b" or "c"`
fn alternatives(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".into(),
    }
}

fn unsigned<T: TryFrom<u64>>(value: &Value, most: u64) -> Result<T, Wrong> {
    let number = value.as_u64().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Wrong::new(format!("a number from 0 to {most}"), value))
}

fn bytes(value: &Value) -> Result<Vec<u8>, Wrong> {
    if let Some(text) = value.as_str() {
        return Ok(text.as_bytes().to_vec());
    }
    let encoded = value.as_object().filter(|object| object.len() == 1).and_then(|object| object.get("base64"));
    encoded.and_then(Value::as_str).and_then(base64::decode).ok_or_else(|| Wrong::new(BYTES, value))
}

fn array(value: &Value, length: usize) -> Result<&[Value], Wrong> {
    let values = value.as_array().filter(|values| values.len() == length);
    values.map(Vec::as_slice).ok_or_else(|| Wrong::new(format!("a list of {length} values"), value))
}

/// An object that has no other fields than `names`.
fn object<'v, 'n>(value: &'v Value, names: impl Iterator<Item = &'n str>) -> Result<&'v Map<String, Value>, Wrong> {
    let names: Vec<&str> = names.collect();
    let object =
        value.as_object().ok_or_else(|| Wrong::new(format!("an object with {}", alternatives(&names)), value))?;
    match object.iter().find(|(name, _)| !names.contains(&name.as_str())) {
        Some((name, _)) => Err(Wrong::new(format!("only {}", alternatives(&names)), &Value::from(name.as_str()))),
        None => Ok(object),
    }
}

#[cfg(test)]
mod tests;
