//! A description that came from elsewhere, before and after its check.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::{Definition, Field, Interface, Type, Variant};
use crate::session::capability::operation::STANDARD;
use crate::wire::MAX_WINDOW_BYTES;

/// An interface in which every name stands for something and every type has a size.
#[derive(Clone, Debug)]
pub struct Checked {
    interface: Interface,
    measures: BTreeMap<String, Measure>,
}

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// How much of a value stands in the fixed part, and how many values it is made of.
#[derive(Clone, Copy, Debug)]
struct Measure {
    fixed_bytes: usize,
    values: usize,
    depth: usize,
}

/// Most values that one consists of, lists not counted: bounds what a description of a few lines can cost its reader.
const MAX_VALUES: usize = 4096;
/// How deep types may contain each other.
const MAX_DEPTH: usize = 64;
/// As many handles as a call carries.
const MAX_HANDLES: usize = crate::wire::MAX_CAPABILITIES;

impl Deref for Checked {
    type Target = Interface;

    fn deref(&self) -> &Interface {
        &self.interface
    }
}

impl Interface {
    /// Checks that every name stands for something, numbers are there once, and every type has a size.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(self) -> Result<Checked, Fault> {
        let fault = |what: String| Err(Fault(what));
        if self.family() == self.name || self.version() == 0 {
            return fault(format!("`{}` is no name and version", self.name.escape_debug()));
        }
        if self.kinds.is_empty() {
            return fault("there is no object kind".into());
        }
        unique("object kind", self.kinds.iter().map(|kind| &kind.name))?;
        unique("right", self.rights.iter().map(|right| &right.name))?;
        unique("bit of a right", self.rights.iter().map(|right| right.bit))?;
        if self.rights.iter().any(|right| right.bit > 31) {
            return fault("a right is no bit of 32".into());
        }
        let measures = Measurer { types: &self.types, known: BTreeMap::new(), open: BTreeSet::new() }.all()?;
        let checked = Checked { interface: self, measures };
        checked.definitions()?;
        checked.operations()?;
        Ok(checked)
    }
}

impl Checked {
    /// Bytes of a value of this type in the fixed part.
    pub fn fixed_bytes(&self, ty: &Type) -> usize {
        self.measure(ty).map_or(0, |measure| measure.fixed_bytes)
    }

    /// Bytes of the fixed part of these values.
    pub(super) fn fixed_bytes_of(&self, fields: &[Field]) -> usize {
        fields.iter().map(|field| self.fixed_bytes(&field.ty)).sum()
    }

    /// What an error's number stands for.
    pub fn error(&self, set: &str, number: u16) -> Option<&Variant> {
        self.errors.get(set)?.iter().find(|variant| variant.number == number)
    }

    fn measure(&self, ty: &Type) -> Result<Measure, Fault> {
        measure(ty, &mut |name| self.measures.get(name).copied().ok_or_else(|| unknown("type", name)))
    }

    fn definitions(&self) -> Result<(), Fault> {
        for (name, definition) in &self.types {
            match definition {
                Definition::Struct { fields, .. } => self.fields(name, fields)?,
                Definition::Enum { variants, .. } => {
                    unique(name, variants.iter().map(|variant| variant.number))?;
                    unique(name, variants.iter().map(|variant| &variant.name))?;
                    if variants.iter().any(|variant| variant.number > 255 || !variant.fields.is_empty()) {
                        return Err(Fault(format!("{name}: a value of an enum is one byte and has no fields")));
                    }
                }
                Definition::Bytes { min, max, .. } if min > max => {
                    return Err(Fault(format!("{name}: at least {min} and at most {max} bytes")));
                }
                Definition::Bytes { .. } => {}
            }
        }
        for (name, variants) in &self.errors {
            unique(name, variants.iter().map(|variant| variant.number))?;
            for variant in variants {
                self.fields(&format!("{name}, {}", variant.name), &variant.fields)?;
            }
        }
        Ok(())
    }

    fn operations(&self) -> Result<(), Fault> {
        unique("operation", self.operations.iter().map(|operation| operation.number))?;
        unique("operation", self.operations.iter().map(|operation| &operation.name))?;
        for operation in &self.operations {
            let place = format!("operation {}", operation.name);
            let at = |fault: Fault| Fault(format!("{place}: {fault}"));
            if operation.number == 0 || operation.number >= STANDARD {
                return Err(at(Fault("numbers are 1 to 65279".into())));
            }
            self.kind(&operation.target.kind).map_err(at)?;
            self.rights_exist(&operation.requires).map_err(at)?;
            self.fields(&place, &operation.arguments)?;
            unique(
                &format!("{place}: argument"),
                operation.arguments.iter().map(|field| &field.name).chain([&operation.target.name]),
            )?;
            let handles = operation.arguments.iter().filter(|field| matches!(field.ty, Type::Handle { .. }));
            if handles.count() > MAX_HANDLES {
                return Err(at(Fault(format!("a call carries at most {MAX_HANDLES} handles"))));
            }
            self.ty(&operation.result).map_err(at)?;
            if !self.errors.contains_key(&operation.error) {
                return Err(at(unknown("set of errors", &operation.error)));
            }
        }
        Ok(())
    }

    fn fields(&self, place: &str, fields: &[Field]) -> Result<(), Fault> {
        unique(&format!("{place}: field"), fields.iter().map(|field| &field.name))?;
        let mut whole = 0;
        for field in fields {
            self.ty(&field.ty).map_err(|fault| Fault(format!("{place}: {}: {fault}", field.name)))?;
            whole += self.fixed_bytes(&field.ty);
        }
        if whole > MAX_WINDOW_BYTES as usize { Err(Fault(format!("{place}: {TOO_LARGE}"))) } else { Ok(()) }
    }

    fn ty(&self, ty: &Type) -> Result<(), Fault> {
        self.measure(ty)?;
        match ty {
            Type::Handle { kind, requires } => {
                self.kind(kind)?;
                self.rights_exist(requires)
            }
            Type::Capability { kind } => self.kind(kind),
            Type::List(inner) | Type::Packed(inner) | Type::Option(inner) => self.ty(inner),
            Type::Tuple(parts) => parts.iter().try_for_each(|part| self.ty(part)),
            _ => Ok(()),
        }
    }

    fn kind(&self, name: &str) -> Result<(), Fault> {
        let is_known = self.kinds.iter().any(|kind| kind.name == name);
        if is_known { Ok(()) } else { Err(unknown("object kind", name)) }
    }

    fn rights_exist(&self, names: &[String]) -> Result<(), Fault> {
        let missing = names.iter().find(|name| !self.rights.iter().any(|right| right.name == **name));
        missing.map_or(Ok(()), |name| Err(unknown("right", name)))
    }
}

const TOO_LARGE: &str = "it has no room in a message";

fn unknown(what: &str, name: &str) -> Fault {
    Fault(format!("there is no {what} `{}`", name.escape_debug()))
}

fn unique<T: Ord + std::fmt::Display>(what: &str, all: impl Iterator<Item = T>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for one in all {
        let shown = one.to_string();
        if !seen.insert(one) {
            return Err(Fault(format!("{what} {} is there twice", shown.escape_debug())));
        }
    }
    Ok(())
}

/// Measures named types, each once.
struct Measurer<'a> {
    types: &'a BTreeMap<String, Definition>,
    known: BTreeMap<String, Measure>,
    open: BTreeSet<String>,
}

impl Measurer<'_> {
    fn all(mut self) -> Result<BTreeMap<String, Measure>, Fault> {
        for name in self.types.keys() {
            self.named(name)?;
        }
        Ok(self.known)
    }

    fn named(&mut self, name: &str) -> Result<Measure, Fault> {
        if let Some(known) = self.known.get(name) {
            return Ok(*known);
        }
        // Also what bounds this function's own depth, before any depth is known.
        if self.open.len() >= MAX_DEPTH || !self.open.insert(name.to_owned()) {
            return Err(Fault(format!("type `{}` contains itself, or too many others", name.escape_debug())));
        }
        let whole = match self.types.get(name).ok_or_else(|| unknown("type", name))? {
            Definition::Struct { fields, .. } => {
                let types: Vec<&Type> = fields.iter().map(|field| &field.ty).collect();
                sequence(&types, &mut |name| self.named(name))?
            }
            Definition::Enum { .. } => Measure { fixed_bytes: 1, values: 1, depth: 1 },
            Definition::Bytes { .. } => Measure { fixed_bytes: 4, values: 1, depth: 1 },
        };
        self.open.remove(name);
        self.known.insert(name.to_owned(), whole);
        Ok(whole)
    }
}

/// Measures a type; `named` those that it mentions.
fn measure(ty: &Type, named: &mut dyn FnMut(&str) -> Result<Measure, Fault>) -> Result<Measure, Fault> {
    let plain = |fixed_bytes| Ok(Measure { fixed_bytes, values: 1, depth: 1 });
    match ty {
        Type::U8 | Type::Bool => plain(1),
        Type::U16 => plain(2),
        Type::U32 | Type::Rights | Type::Text | Type::Bytes => plain(4),
        Type::U64 | Type::I64 => plain(8),
        Type::LeasePart => plain(16),
        Type::Handle { .. } | Type::Capability { .. } | Type::Lease => plain(0),
        Type::List(element) | Type::Packed(element) => {
            let measured = measure(element, named)?;
            let is_beside = matches!(ty, Type::List(_))
                && matches!(**element, Type::Handle { .. } | Type::Capability { .. } | Type::Lease);
            if measured.fixed_bytes == 0 && !is_beside {
                return Err(Fault("the elements of a list take no room".into()));
            }
            within(Measure { fixed_bytes: 4, values: 1, depth: measured.depth + 1 })
        }
        Type::Option(value) => {
            let Measure { fixed_bytes, values, depth } = measure(value, named)?;
            within(Measure { fixed_bytes: fixed_bytes + 1, values: values + 1, depth: depth + 1 })
        }
        Type::Tuple(parts) => sequence(&parts.iter().collect::<Vec<_>>(), named),
        Type::Named(name) => named(name),
    }
}

/// Measures values that stand one behind the other.
fn sequence(parts: &[&Type], named: &mut dyn FnMut(&str) -> Result<Measure, Fault>) -> Result<Measure, Fault> {
    let mut whole = Measure { fixed_bytes: 0, values: 1, depth: 1 };
    for part in parts {
        let Measure { fixed_bytes, values, depth } = measure(part, named)?;
        whole.fixed_bytes += fixed_bytes;
        whole.values += values;
        whole.depth = whole.depth.max(depth + 1);
        // Each step, so that no sum overflows.
        whole = within(whole)?;
    }
    Ok(whole)
}

fn within(measure: Measure) -> Result<Measure, Fault> {
    if measure.fixed_bytes > MAX_WINDOW_BYTES as usize || measure.values > MAX_VALUES || measure.depth > MAX_DEPTH {
        return Err(Fault(TOO_LARGE.into()));
    }
    Ok(measure)
}

#[cfg(test)]
mod tests;
