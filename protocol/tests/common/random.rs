//! Random values of whatever a description describes, as JSON.

use kernel_ipc::described::{Checked, Definition, Field, Type};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Arguments of an operation, without its target. `$1` is a capability and `$2` a lease of at least 64 bytes.
pub fn fields(interface: &Checked, fields: &[Field]) -> BoxedStrategy<Value> {
    let names: Vec<String> = fields.iter().map(|field| field.name.clone()).collect();
    let values: Vec<_> = fields.iter().map(|field| value(interface, &field.ty)).collect();
    values.prop_map(move |values| Value::Object(names.iter().cloned().zip(values).collect::<Map<_, _>>())).boxed()
}

/// A value of this type.
pub fn value(interface: &Checked, ty: &Type) -> BoxedStrategy<Value> {
    match ty {
        Type::U8 => any::<u8>().prop_map(|n| json!(n)).boxed(),
        Type::U16 => any::<u16>().prop_map(|n| json!(n)).boxed(),
        Type::U32 => any::<u32>().prop_map(|n| json!(n)).boxed(),
        Type::U64 => any::<u64>().prop_map(|n| json!(n)).boxed(),
        Type::I64 => any::<i64>().prop_map(|n| json!(n)).boxed(),
        Type::Bool => any::<bool>().prop_map(|flag| json!(flag)).boxed(),
        Type::Rights => any::<u32>().prop_map(|bits| json!(bits)).boxed(),
        Type::Text => ".{0,12}".prop_map(|text| json!(text)).boxed(),
        Type::Bytes => bytes(),
        Type::List(element) | Type::Packed(element) => {
            vec(value(interface, element), 0..4).prop_map(Value::Array).boxed()
        }
        Type::Option(inner) => prop_oneof![Just(Value::Null), value(interface, inner)].boxed(),
        Type::Tuple(parts) if parts.is_empty() => Just(Value::Null).boxed(),
        Type::Tuple(parts) => {
            let parts: Vec<_> = parts.iter().map(|part| value(interface, part)).collect();
            parts.prop_map(Value::Array).boxed()
        }
        Type::Named(name) => named(interface, &interface.types[name]),
        Type::Handle { .. } | Type::Capability { .. } => Just(json!("$1")).boxed(),
        Type::Lease => Just(json!("$2")).boxed(),
        Type::LeasePart => (0u64..32, 0u64..32)
            .prop_map(|(offset, length)| json!({ "lease": "$2", "offset": offset, "length": length }))
            .boxed(),
    }
}

fn named(interface: &Checked, definition: &Definition) -> BoxedStrategy<Value> {
    match definition {
        Definition::Struct { fields: parts, .. } => match parts.as_slice() {
            [only] if only.name == "0" => value(interface, &only.ty),
            _ => fields(interface, parts),
        },
        Definition::Enum { variants, .. } => {
            let names: Vec<_> = variants.iter().map(|variant| json!(variant.name)).collect();
            proptest::sample::select(names).boxed()
        }
        // Letters: what else its rule says is not in the description.
        Definition::Bytes { min, max, .. } => {
            proptest::string::string_regex(&format!("[a-z]{{{min},{}}}", (*max).min(min + 20)))
                .expect("a pattern")
                .prop_map(|text| json!(text))
                .boxed()
        }
    }
}

/// Text, and bytes that are none.
fn bytes() -> BoxedStrategy<Value> {
    let text = ".{0,10}".prop_map(|text| json!(text));
    let binary = (0usize..9).prop_map(|groups| json!({ "base64": "/wD+".repeat(groups) + "/w==" }));
    prop_oneof![text, binary].boxed()
}

/// Any JSON at all, with names in it that mean something.
pub fn any_json() -> BoxedStrategy<Value> {
    let names = ["$1", "$2", "base64", "lease", "capability", "some", "File", "Kill", "read", "/wA="];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u8>().prop_map(Value::from),
        proptest::sample::select(names.to_vec()).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        let key = proptest::sample::select(names.to_vec()).prop_map(String::from);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
    .boxed()
}
