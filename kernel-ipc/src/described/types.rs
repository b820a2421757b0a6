//! From the types of a program to their description: what `#[interface]` and the derives call.

use std::collections::{BTreeMap, BTreeSet};

use super::{Definition, Field, Type, Variant};
use crate::Rights;
use crate::codec::Layout;
use crate::interface::{Description, OperationError};

/// What `#[interface]` says beside the [`Description`] that calls look at.
#[derive(Debug, Default)]
pub struct Details {
    /// What the interface is, one sentence.
    pub about: &'static str,
    /// What each object kind is.
    pub kinds: Vec<&'static str>,
    /// What the holder of each right may do.
    pub rights: Vec<&'static str>,
    /// The operations, in the description's order.
    pub operations: Vec<Signature>,
}

impl Details {
    /// Of an interface that was written without the macro, and cannot be called by its description.
    pub fn none(_: &mut Types) -> Details {
        Details::default()
    }
}

/// Arguments and result of an operation.
#[derive(Debug)]
pub struct Signature {
    /// What the operation does, one sentence.
    pub about: &'static str,
    /// The target's name.
    pub target: &'static str,
    /// The other arguments.
    pub arguments: Vec<Field>,
    /// What it gives.
    pub result: Type,
    /// The name of its set of errors.
    pub error: String,
}

impl Default for Signature {
    fn default() -> Signature {
        let result = Type::Tuple(Vec::new());
        Signature { about: "", target: "", arguments: Vec::new(), result, error: String::new() }
    }
}

/// The named types of one interface, while they are collected.
#[derive(Debug)]
pub struct Types {
    interface: &'static Description,
    types: BTreeMap<String, Definition>,
    errors: BTreeMap<String, Vec<Variant>>,
    /// Types that are being described: one that contains itself ends here, and does not pass the check.
    open: BTreeSet<&'static str>,
}

impl Types {
    /// No types yet.
    pub fn new(interface: &'static Description) -> Types {
        Types { interface, types: BTreeMap::new(), errors: BTreeMap::new(), open: BTreeSet::new() }
    }

    /// The type `T`.
    pub fn of<T: Layout + ?Sized>(&mut self) -> Type {
        T::describe(self)
    }

    /// An argument or field.
    pub fn field<T: Layout + ?Sized>(&mut self, name: &str, about: &str) -> Field {
        Field { name: name.into(), ty: self.of::<T>(), about: about.into() }
    }

    /// An argument that is a handle.
    pub fn handle(&mut self, name: &str, kind: u8, requires: Rights) -> Field {
        let ty = Type::Handle { kind: self.kind(kind), requires: self.rights(requires) };
        Field { name: name.into(), ty, about: String::new() }
    }

    /// A list of `T`; of bytes, a byte string.
    pub fn list<T: Layout>(&mut self) -> Type {
        match self.of::<T>() {
            Type::U8 => Type::Bytes,
            element => Type::List(Box::new(element)),
        }
    }

    /// A byte string that holds packed `T`.
    pub fn packed<T: Layout>(&mut self, name: &str, about: &str) -> Field {
        let ty = Type::Packed(Box::new(self.of::<T>()));
        Field { name: name.into(), ty, about: about.into() }
    }

    /// A type with a name, which is defined when it is met first.
    pub fn define(&mut self, name: &'static str, definition: impl FnOnce(&mut Types) -> Definition) -> Type {
        if !self.open.insert(name) {
            return Type::Named(name.into());
        }
        let definition = definition(self);
        self.open.remove(name);
        Type::Named(enter(&mut self.types, name, definition))
    }

    /// The errors `E`, by the name of their set.
    pub fn errors<E: OperationError>(&mut self) -> String {
        let (name, mut variants) = E::describe(self);
        variants.sort_by_key(|variant| variant.number);
        enter(&mut self.errors, name, variants)
    }

    /// The name of the object kind with this number.
    pub fn kind(&self, number: u8) -> String {
        let name = self.interface.kinds.get(usize::from(number).wrapping_sub(1));
        name.map_or_else(|| format!("kind-{number}"), |name| (*name).into())
    }

    /// The names of these rights.
    pub fn rights(&self, rights: Rights) -> Vec<String> {
        let known = self.interface.rights.iter().filter(|(_, right)| rights.contains(*right));
        known.map(|(name, _)| (*name).into()).collect()
    }

    /// What was collected.
    pub(super) fn into_tables(self) -> (BTreeMap<String, Definition>, BTreeMap<String, Vec<Variant>>) {
        (self.types, self.errors)
    }
}

/// Enters `value` under `name`. Two that differ and have one name (they come from two modules) get a number behind it.
fn enter<T: PartialEq>(table: &mut BTreeMap<String, T>, name: &str, value: T) -> String {
    let mut entered = name.to_owned();
    let mut number = 1;
    while table.get(&entered).is_some_and(|known| *known != value) {
        number += 1;
        entered = format!("{name}{number}");
    }
    table.insert(entered.clone(), value);
    entered
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::interface::Wire;

    /// It contains itself.
    #[derive(Wire)]
    struct Tree {
        branches: Vec<Tree>,
    }

    /// Of the same name as another one.
    #[derive(Wire)]
    struct Item {
        weight: u8,
    }

    #[test]
    fn a_type_that_contains_itself_does_not_pass() {
        let mut types = Types::new(&testing::DESCRIPTION);
        assert_eq!(types.of::<Tree>(), Type::Named("Tree".into()));
        let (types, _) = types.into_tables();
        let mut shop = testing::shop();
        shop.types.extend(types);
        assert_eq!(shop.check().expect_err("endless").0, "type `Tree` contains itself, or too many others");
        let _ = Tree { branches: vec![] }.branches;
    }

    #[test]
    fn two_types_of_one_name_stay_apart() {
        let mut types = Types::new(&testing::DESCRIPTION);
        let names = [types.of::<testing::Item>(), types.of::<Item>(), types.of::<testing::Item>()];
        assert_eq!(names, ["Item", "Item2", "Item"].map(|name| Type::Named(name.into())));
        let _ = Item { weight: 1 }.weight;
    }
}
