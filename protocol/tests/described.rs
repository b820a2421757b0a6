//! The descriptions of the interfaces and the generated code agree: on every type and error of every interface, on random
//! values, and on what is malformed.

#[path = "common/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use kernel_ipc::codec::{Decode, Decoder, Encode, Encoder, Layout};
use kernel_ipc::described::{Book, Checked, Definition, Entry, Field, Interface, Message, Type, Types, Variant};
use kernel_ipc::interface::{Description, OperationError};
use kernel_ipc::{Handle, LeaseName, LenderId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use protocol::{INTERFACES, block, control, fs, net, node};
use serde_json::{Map, Value, json};

fn checked(description: &'static Description) -> Checked {
    Interface::of(description).check().expect("the macro wrote it")
}

fn lease() -> LeaseName {
    LeaseName { lender: LenderId(5), index: 6, generation: 7, length: 64 }
}

/// `$1` is a capability of the kind that is wanted in this interface, `$2` a lease.
fn book(kind: &str) -> Book {
    let mut book = Book::default();
    book.enter(Entry::Capability(kind.into(), Handle { index: 1, generation: 1 }));
    book.enter(Entry::Lease(lease()));
    book
}

/// The bytes of `value` by the description, which the generated code takes for a value, and writes again.
fn agree<'p, T: Encode + Decode<'p>>(interface: &Checked, ty: &Type, value: &Value, payload: &'p mut Vec<u8>) {
    let message = interface.encode(ty, value, &Book::default()).unwrap_or_else(|wrong| panic!("{ty}: {wrong}"));
    let shown = interface.decode(ty, &message, &mut Book::default());
    *payload = message.payload.clone();
    let decoded = Decoder::whole::<T>(payload).unwrap_or_else(|_| panic!("{ty}: {value}"));
    assert_eq!(Encoder::of(&decoded).payload(), message.payload, "{ty}: {value}");
    // A number may stand for rights, and so on: but what is shown means the same.
    let again = shown.map(|shown| interface.encode(ty, &shown, &Book::default()));
    assert_eq!(again, Ok(Ok(message)), "{ty}: {value}");
}

/// One value of a type, the same in every run.
fn sample(interface: &Checked, ty: &Type) -> Value {
    match ty {
        Type::U8 => json!(7),
        Type::U16 => json!(0x0102),
        Type::U32 | Type::Rights => json!(0x0102_0304),
        Type::U64 => json!(0x0102_0304_0506_0708u64),
        Type::I64 => json!(-2),
        Type::Bool => json!(true),
        Type::Text => json!("text"),
        Type::Bytes => json!("bytes"),
        Type::List(element) | Type::Packed(element) => json!([sample(interface, element), sample(interface, element)]),
        Type::Option(inner) => sample(interface, inner),
        Type::Tuple(parts) => parts.iter().map(|part| sample(interface, part)).collect(),
        Type::Named(name) => match &interface.types[name] {
            Definition::Struct { fields, .. } => sample_of(interface, fields),
            // The first one, which does not change when others are added.
            Definition::Enum { variants, .. } => json!(variants.first().expect("a value").name),
            Definition::Bytes { .. } => json!("name"),
        },
        Type::Handle { .. } | Type::Capability { .. } | Type::Lease | Type::LeasePart => unreachable!("beside"),
    }
}

fn sample_of(interface: &Checked, fields: &[Field]) -> Value {
    let value = |field: &Field| (field.name.clone(), sample(interface, &field.ty));
    match fields {
        [only] if only.name == "0" => sample(interface, &only.ty),
        _ => Value::Object(fields.iter().map(value).collect::<Map<_, _>>()),
    }
}

/// What is checked of each interface, and the vectors that are written down.
struct Vectors {
    description: &'static Description,
    interface: Checked,
    checked: BTreeSet<String>,
    text: String,
}

impl Vectors {
    fn of(description: &'static Description) -> Vectors {
        let interface = checked(description);
        let text = format!("{}\n", interface.name);
        Vectors { description, interface, checked: BTreeSet::new(), text }
    }

    /// One value of a type; of an enum all.
    fn samples(&self, ty: &Type) -> Vec<Value> {
        match self.interface.types.get(&ty.to_string()) {
            Some(Definition::Enum { variants, .. }) => variants.iter().map(|variant| json!(variant.name)).collect(),
            _ => [sample(&self.interface, ty)].to_vec(),
        }
    }

    /// Samples and random values of a type.
    fn ty<T: Layout>(&mut self, agree: impl Fn(&Checked, &Type, &Value)) {
        let ty = Types::new(self.description).of::<T>();
        assert_eq!(self.interface.fixed_bytes(&ty), T::FIXED_BYTES, "{ty}");
        for value in self.samples(&ty) {
            agree(&self.interface, &ty, &value);
            let bytes = self.interface.encode(&ty, &value, &Book::default()).expect("a sample").payload;
            self.write(&format!("type {ty}"), &bytes, &value);
        }
        let values = random::value(&self.interface, &ty);
        let run = TestRunner::new(Config::with_cases(64)).run(&values, |value| {
            agree(&self.interface, &ty, &value);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{ty}: {error}"));
        self.checked.insert(ty.to_string());
    }

    /// The sample of each error of a set.
    fn errors<E: OperationError>(&mut self) {
        let (set, _) = E::describe(&mut Types::new(self.description));
        for Variant { number, name, fields, .. } in self.interface.errors[set].clone() {
            let value = sample_of(&self.interface, &fields);
            let payload = self.interface.encode_fields(&fields, &value).expect("a sample").payload;
            let error = E::decode(number, &payload).expect("the generated code knows it");
            assert_eq!((error.number(), error.encode().payload()), (number, &payload[..]), "{set}, {name}");
            assert_eq!(self.interface.decode_fields(&fields, &payload), Ok(value.clone()));
            self.write(&format!("error {number} {set}::{name}"), &payload, &value);
        }
        self.checked.insert(set.into());
    }

    fn write(&mut self, what: &str, bytes: &[u8], value: &Value) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = format!("[{}] {hex}", bytes.len());
        writeln!(self.text, "{what}\n  {}\n  {value}", bytes.trim_end()).expect("a string takes any text");
    }

    /// Every type and error of the interface is among the checked, but `private` ones.
    fn end(self, private: &[&str]) -> String {
        let all = self.interface.types.keys().chain(self.interface.errors.keys());
        let missing: Vec<_> =
            all.filter(|name| !self.checked.contains(*name) && !private.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "{}: add {missing:?} to this test", self.interface.name);
        self.text
    }
}

/// Checks types and error sets of an interface.
macro_rules! vectors {
    ($module:ident, types: $($ty:ty),*; errors: $($error:ident)*; private: $private:expr) => {{
        let mut vectors = Vectors::of(&$module::DESCRIPTION);
        $(vectors.ty::<$ty>(|interface, ty, value| agree::<$ty>(interface, ty, value, &mut Vec::new()));)*
        $(vectors.errors::<$module::$error>();)*
        vectors.end($private)
    }};
}

#[test]
fn every_type_and_error_has_the_bytes_of_its_description() {
    let text = [
        vectors!(block, types: block::DeviceInfo; errors: InfoError ReadError WriteError FlushError; private: &[]),
        vectors!(
            control,
            types: control::ComponentPage, control::ComponentStatus, control::LogPage, control::Signal,
                control::State, control::SupervisorStatus, control::Carrier, control::Edge, control::MovePlan,
                control::Outcome, control::Stop, control::StopKind, control::Upgrade;
            errors: PsError LogsError DownError RestartError SignalError SupervisorError PlanError UpgradeError StopError
                FreezeError;
            private: &[]
        ),
        vectors!(
            fs,
            types: fs::Name<'_>, fs::Path<'_>, fs::Kind, fs::Stat, fs::DirectoryEntry<'_>, fs::DirectoryPage,
                fs::Statfs, fs::CheckPage;
            errors: LookupError CreateError RemoveError RenameError StatError ReadError WriteError ReaddirError
                SyncError CheckError;
            private: &[]
        ),
        vectors!(
            node,
            types: node::Announced, node::Joined, node::Member, node::MemberPage, control::ComponentStatus, control::State;
            errors: JoinError MembersError AnnounceError StatusError;
            private: &[]
        ),
        vectors!(
            net,
            types: net::SendName, net::SendFlags, net::EventBatch;
            errors: ListenError EventsError SendError CloseError;
            // Checked as a part of EventBatch; `batches` shows that its bytes are events.
            private: &["PackedEvent"]
        ),
    ]
    .concat();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/types.txt");
    if std::env::var_os("ATOLL_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    let (found, expected) = (lines(&text), lines(&golden));
    let first = (0..found.len().max(expected.len())).find(|at| found.get(*at) != expected.get(*at));
    if let Some(at) = first {
        let why = "the wire format has changed: see tests/common/mod.rs";
        panic!("{why}\nline {} of types.txt: {:?}\nis now {:?}", at + 1, expected.get(at), found.get(at));
    }
}

/// An operation of any interface.
fn operation() -> impl Strategy<Value = (Checked, usize)> {
    (0..INTERFACES.len(), any::<prop::sample::Index>()).prop_map(|(interface, operation)| {
        let interface = checked(INTERFACES[interface].description);
        let operation = operation.index(interface.operations.len());
        (interface, operation)
    })
}

proptest! {
    #[test]
    fn arguments_come_out_as_they_went_in(
        (interface, index, arguments) in operation().prop_flat_map(|(interface, index)| {
            let arguments = random::fields(&interface, &interface.operations[index].arguments);
            (Just(interface), Just(index), arguments)
        }),
    ) {
        let operation = &interface.operations[index];
        let mut arguments = arguments;
        arguments[&operation.target.name] = json!("$1");
        let message = interface.encode_arguments(operation, &arguments, &book(&operation.target.kind));
        let message = message.unwrap_or_else(|wrong| panic!("{}: {wrong}", operation.name));
        let mut entered = Book::default();
        let shown = interface.decode_arguments(operation, &message, &mut entered).expect("it was written a moment ago");
        prop_assert_eq!(interface.encode_arguments(operation, &shown, &entered), Ok(message));
    }

    /// Bytes of anybody: no panic, and what means something is written in the same bytes again.
    #[test]
    fn any_bytes_are_something_or_malformed(
        (interface, index) in operation(),
        payload in vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], 0..80),
        beside in 0u32..4,
    ) {
        let operation = &interface.operations[index];
        let message = Message {
            target: None,
            payload,
            capabilities: (0..beside).map(|index| Handle { index, generation: 1 }).collect(),
            leases: vec![lease(); beside as usize],
        };
        let mut book = Book::default();
        if let Ok(value) = interface.decode(&operation.result, &message, &mut book) {
            prop_assert_eq!(interface.encode(&operation.result, &value, &book), Ok(message.clone()));
        }
        let mut book = Book::default();
        let with_target = Message { target: Some(Handle { index: 9, generation: 9 }), ..message.clone() };
        if let Ok(value) = interface.decode_arguments(operation, &with_target, &mut book) {
            prop_assert_eq!(interface.encode_arguments(operation, &value, &book), Ok(with_target));
        }
        for error in &interface.errors[&operation.error] {
            if let Ok(value) = interface.decode_fields(&error.fields, &message.payload) {
                let again = interface.encode_fields(&error.fields, &value).expect("it was read a moment ago");
                prop_assert_eq!(&again.payload, &message.payload);
            }
        }
    }

    /// JSON of anybody: no panic, and a reason.
    #[test]
    fn any_json_is_arguments_or_wrong(
        (interface, index) in operation(),
        some in vec((any::<prop::sample::Index>(), random::any_json()), 0..6),
        whole in random::any_json(),
    ) {
        let operation = &interface.operations[index];
        let names: Vec<&String> =
            operation.arguments.iter().map(|field| &field.name).chain([&operation.target.name]).collect();
        let arguments: Map<String, Value> =
            some.into_iter().map(|(at, value)| (names[at.index(names.len())].clone(), value)).collect();
        for arguments in [Value::Object(arguments), whole] {
            match interface.encode_arguments(operation, &arguments, &book(&operation.target.kind)) {
                Ok(message) => {
                    let decoded = interface.decode_arguments(operation, &message, &mut Book::default());
                    prop_assert!(decoded.is_ok(), "{arguments}");
                }
                Err(wrong) => prop_assert!(wrong.to_string().contains("expected ")),
            }
        }
    }
}
