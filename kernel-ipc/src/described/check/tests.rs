use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::testing::shop;
use super::super::{Book, Message};
use super::*;

/// The shop with something changed in its JSON.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Checked, Fault> {
    let mut json = serde_json::to_value(shop()).expect("JSON");
    change(&mut json);
    Interface::from_json(json.to_string().as_bytes())
}

/// What is said of a struct type that is added.
fn with_type(ty: Value) -> String {
    let definition = json!({ "struct": { "about": "", "fields": [{ "name": "field", "type": ty }] } });
    changed(|json| json["types"]["Added"] = definition).expect_err("it is wrong").0
}

#[test]
fn what_the_macro_writes_is_sound() {
    let checked = shop().check().expect("sound");
    let sizes =
        ["How", "Packing", "Flags", "Item", "Everything"].map(|name| checked.fixed_bytes(&Type::Named(name.into())));
    assert_eq!(sizes, [2, 1, 2, 7, 17 + 2 + 4 + 4 + 6 + 4]);
    assert_eq!(checked.version(), 1);
    assert_eq!(checked.family(), "test.shop");
}

#[test]
fn each_thing_that_is_wrong_is_said() {
    type Change = fn(&mut Value);
    let wrong: [(Change, &str); 17] = [
        (|json| json["name"] = json!("shop"), "`shop` is no name and version"),
        (|json| json["name"] = json!("shop/0"), "no name and version"),
        (|json| json["kinds"] = json!([]), "there is no object kind"),
        (|json| json["kinds"][1] = json["kinds"][0].clone(), "object kind Counter is there twice"),
        (|json| json["rights"][1]["name"] = json!("read"), "right read is there twice"),
        (|json| json["rights"][1]["bit"] = json!(0), "bit of a right 0 is there twice"),
        (|json| json["rights"][1]["bit"] = json!(32), "no bit of 32"),
        (|json| json["operations"][1]["number"] = json!(1), "operation 1 is there twice"),
        (|json| json["operations"][0]["number"] = json!(0), "operation sell: numbers are 1 to 65279"),
        (|json| json["operations"][0]["target"]["kind"] = json!("Door"), "no object kind `Door`"),
        (|json| json["operations"][0]["requires"] = json!(["steal"]), "no right `steal`"),
        (|json| json["operations"][0]["error"] = json!("None"), "no set of errors `None`"),
        (|json| json["operations"][0]["arguments"][0]["name"] = json!("how"), "how is there twice"),
        (|json| json["operations"][0]["result"] = json!({ "named": "None" }), "no type `None`"),
        (|json| json["types"]["Packing"]["enum"]["variants"][1]["number"] = json!(1), "Packing 1 is there twice"),
        (|json| json["types"]["Packing"]["enum"]["variants"][1]["number"] = json!(256), "one byte"),
        (|json| json["surprise"] = json!(1), "unknown field `surprise`"),
    ];
    for (change, expected) in wrong {
        let fault = changed(change).expect_err(expected).0;
        assert!(fault.contains(expected), "{fault}");
    }
}

#[test]
fn a_type_has_a_size_and_an_end() {
    for (ty, expected) in [
        (json!({ "named": "Added" }), "contains itself"),
        (json!({ "option": { "named": "Added" } }), "contains itself"),
        (json!({ "list": { "tuple": [] } }), "elements of a list take no room"),
        (json!({ "packed": "lease" }), "elements of a list take no room"),
        (json!({ "list": { "tuple": ["lease"] } }), "elements of a list take no room"),
        (json!({ "capability": { "kind": "Door" } }), "no object kind `Door`"),
        (json!({ "handle": { "kind": "Ware", "requires": ["steal"] } }), "no right `steal`"),
        (json!("u128"), "unknown variant `u128`"),
    ] {
        let fault = with_type(ty);
        assert!(fault.contains(expected), "{fault}");
    }
    let mut deep = json!("u8");
    for _ in 0..MAX_DEPTH {
        deep = json!({ "option": deep });
    }
    assert!(with_type(deep).contains(TOO_LARGE));
}

#[test]
fn few_lines_cannot_make_a_large_type() {
    // Each is twice the one before: no value of the last would end.
    for (ty, bytes) in [(json!("u8"), true), (json!({ "tuple": [] }), false)] {
        let fault = changed(|json| {
            let define = |of: Value| {
                json!({ "struct": { "about": "", "fields": [
                { "name": "a", "type": of.clone() }, { "name": "b", "type": of },
            ] } })
            };
            json["types"]["T00"] = define(ty);
            for n in 1..60 {
                json["types"][format!("T{n:02}")] = define(json!({ "named": format!("T{:02}", n - 1) }));
            }
        });
        assert!(fault.expect_err("it is too large").0.contains(TOO_LARGE), "bytes: {bytes}");
    }
    let chain = changed(|json| {
        for n in 0..500 {
            let next = if n == 0 { json!("u8") } else { json!({ "named": format!("T{:03}", n - 1) }) };
            json["types"][format!("T{n:03}")] =
                json!({ "struct": { "about": "", "fields": [{ "name": "a", "type": next }] } });
        }
    });
    assert!(chain.is_err(), "a chain is as deep as it is long");
}

proptest! {
    /// Whatever is damaged in a description, it is refused or sound: any bytes are something by it, or malformed.
    #[test]
    fn a_damaged_description_is_refused_or_sound(
        payload in proptest::collection::vec(0u8..4, 0..60),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        swap in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let mut words: Vec<String> = shop().to_json().split_inclusive(['"', ' ']).map(String::from).collect();
        let (a, b) = (swap.0.index(words.len()), swap.1.index(words.len()));
        words.swap(a, b);
        let mut bytes = words.concat().into_bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(checked) = Interface::from_json(&bytes) {
            for ty in checked.types.keys() {
                prop_assert!(checked.fixed_bytes(&Type::Named(ty.clone())) <= MAX_WINDOW_BYTES as usize);
            }
            let message = Message { payload, ..Message::default() };
            for operation in &checked.operations {
                let mut book = Book::default();
                if let Ok(value) = checked.decode_arguments(operation, &message, &mut book) {
                    let again = checked.encode_arguments(operation, &value, &book);
                    prop_assert_eq!(again.as_ref(), Ok(&message), "{}", operation.name);
                }
            }
        }
    }
}
