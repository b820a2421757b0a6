use proptest::prelude::*;
use serde_json::json;

use super::super::testing::{self, Everything, Flags, How, Item, Packing, SellError};
use super::*;
use crate::codec::{self, Decode, Encode, Layout};
use crate::id::LenderId;
use crate::interface::OperationError;

fn bytes_of<T: Encode>(value: &T) -> Vec<u8> {
    Encoder::of(value).payload().to_vec()
}

fn lease(length: u64) -> LeaseName {
    LeaseName { lender: LenderId(5), index: 6, generation: 7, length }
}

/// `$1` is a ware, `$2` a lease of 4096 bytes.
fn book() -> Book {
    let mut book = Book::default();
    book.enter(Entry::Capability("Ware".into(), Handle { index: 1, generation: 2 }));
    book.enter(Entry::Lease(lease(4096)));
    book
}

fn wrong(operation: &str, arguments: &Value) -> String {
    let shop = testing::checked();
    let operation = shop.operation(operation).expect("it is there");
    shop.encode_arguments(operation, arguments, &book()).expect_err("it is wrong").to_string()
}

#[test]
fn arguments_become_the_bytes_that_a_client_sends() {
    let shop = testing::checked();
    let arguments = json!({
        "name": "ink", "how": { "count": 255, "packing": "Box" }, "want": ["read", "buy", 1 << 30],
    });
    let sell = shop.operation("sell").expect("it is there");
    let message = shop.encode_arguments(sell, &arguments, &book()).expect("right");
    let how = How { count: 255, packing: Packing::Box };
    let want = crate::Rights::from_bits_retain(1 | 1 << 9 | 1 << 30);
    assert_eq!(message.payload, bytes_of(&("ink", how, want)));
    assert_eq!((message.target, message.capabilities.len(), message.leases.len()), (None, 0, 0));
    assert_eq!(shop.decode_arguments(sell, &message, &mut Book::default()), Ok(arguments));
}

#[test]
fn handles_and_leases_travel_beside() {
    let shop = testing::checked();
    let weigh = shop.operation("weigh").expect("it is there");
    let arguments = json!({
        "ware": "$1", "other": { "capability": "$1" }, "note": { "base64": "/w==" },
        "parts": ["$2", { "lease": "$2", "offset": 4000 }, { "lease": "$2", "offset": 10, "length": 20 }],
    });
    let message = shop.encode_arguments(weigh, &arguments, &book()).expect("right");
    let handle = Handle { index: 1, generation: 2 };
    assert_eq!((message.target, message.capabilities.as_slice()), (Some(handle), &[handle][..]));
    assert_eq!(message.leases, [lease(4096); 3]);
    let numbers = |of: &[u64]| of.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let payload = [&[3, 0, 0, 0, 1, 0, 0, 0][..], &numbers(&[0, 4096, 4000, 96, 10, 20]), &[0xff]].concat();
    assert_eq!(message.payload, payload);
    let mut book = Book::default();
    let decoded = shop.decode_arguments(weigh, &message, &mut book).expect("right");
    assert_eq!(shop.encode_arguments(weigh, &decoded, &book), Ok(message));
}

#[test]
fn a_call_on_something_else_than_the_root_has_a_target_in_both_directions() {
    let shop = testing::checked();
    let weigh = shop.operation("weigh").expect("it is there");
    let arguments = json!({ "ware": "$1", "other": "$1", "note": "", "parts": [] });
    let message = shop.encode_arguments(weigh, &arguments, &book()).expect("right");
    let without = Message { target: None, ..message };
    assert_eq!(shop.decode_arguments(weigh, &without, &mut Book::default()), Err(crate::codec::Malformed));
    let alone = shop.decode_without_target(weigh, &without, &mut Book::default()).expect("what is there is right");
    let other = json!({ "capability": "$1", "kind": "Ware" });
    assert_eq!(alone, json!({ "other": other, "note": "", "parts": [] }));
    let refused = shop.encode_arguments(weigh, &alone, &book()).expect_err("it needs one");
    assert_eq!((refused.place.as_str(), refused.found), ("ware", None));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let sell = |name: Value, how: Value, want: Value| wrong("sell", &json!({ "name": name, "how": how, "want": want }));
    let how = || json!({ "count": 1, "packing": "Bag" });
    assert_eq!(sell(json!(7), how(), json!(0)), "name: expected text, found 7");
    assert_eq!(
        sell(json!(""), json!({ "count": 256, "packing": "Bag" }), json!(0)),
        "how.count: expected a number from 0 to 255, found 256"
    );
    assert_eq!(
        sell(json!(""), json!({ "count": 1, "packing": "bag" }), json!(0)),
        "how.packing: expected a Packing, \"Bag\" or \"Box\", found \"bag\""
    );
    assert_eq!(
        sell(json!(""), json!({ "count": 1 }), json!(0)),
        "how.packing: expected a Packing, \"Bag\" or \"Box\", and it is missing"
    );
    assert_eq!(
        sell(json!(""), how(), json!(["read", "steal"])),
        "want[1]: expected rights, a list of \"read\" or \"buy\", found \"steal\""
    );
    assert_eq!(
        wrong("sell", &json!({ "name": "", "hov": 1 })),
        "expected only \"name\", \"how\", \"want\" or \"counter\", found \"hov\""
    );
    assert_eq!(
        wrong("sell", &json!([])),
        "expected an object with \"name\", \"how\", \"want\" or \"counter\", found []"
    );
    assert_eq!(
        wrong("weigh", &json!({})),
        "ware: expected a capability of kind Ware that an earlier call gave, by its name such as \"$1\", and it is missing"
    );
    let weigh = |parts: Value, note: Value| {
        wrong("weigh", &json!({ "ware": "$1", "other": "$1", "parts": parts, "note": note }))
    };
    assert!(weigh(json!(["$1"]), json!("")).starts_with("parts[0]: expected a lease that an earlier call gave"));
    assert_eq!(
        weigh(json!([{ "lease": "$2", "offset": 4096, "length": 1 }]), json!("")),
        "parts[0]: expected a part of the lease's 4096 bytes, \
         found {\"lease\":\"$2\",\"length\":1,\"offset\":4096}"
    );
    assert_eq!(
        weigh(json!([{ "lease": "$2", "offset": -1 }]), json!("")),
        "parts[0].offset: expected a number from 0 to 18446744073709551615, found -1"
    );
    for note in [json!({ "base64": "/w=" }), json!({ "base64": "", "and": 1 }), json!([1])] {
        assert!(weigh(json!([]), note).starts_with("note: expected bytes, as text or as {\"base64\": …}, found"));
    }
}

#[test]
fn errors_have_their_fields() {
    let shop = testing::checked();
    let few = shop.error("SellError", 2).expect("it is there");
    let error = SellError::Few { left: 9 };
    let payload = error.encode().payload().to_vec();
    assert_eq!(shop.decode_fields(&few.fields, &payload), Ok(json!({ "left": 9 })));
    assert_eq!(shop.encode_fields(&few.fields, &json!({ "left": 9 })).expect("right").payload, payload);
    assert_eq!(shop.decode_fields(&few.fields, b"123"), Err(codec::Malformed));
    let numbers: Vec<u16> = shop.errors["SellError"].iter().map(|error| error.number).collect();
    assert_eq!(numbers, [1, 2]);
}

/// One way with the generated code, one by the description, and back.
fn agree<T: Encode + for<'p> Decode<'p> + PartialEq + std::fmt::Debug>(value: &T) -> Value {
    let shop = testing::checked();
    let mut types = super::super::Types::new(&testing::DESCRIPTION);
    let ty = types.of::<T>();
    assert_eq!(shop.fixed_bytes(&ty), <T as Layout>::FIXED_BYTES);
    let message = Message { payload: bytes_of(value), ..Message::default() };
    let json = shop.decode(&ty, &message, &mut Book::default()).expect("the generated code wrote it");
    let again = shop.encode(&ty, &json, &Book::default()).expect("the description read it");
    assert_eq!(again, message);
    json
}

fn item() -> impl Strategy<Value = Item> {
    (".{0,6}", any::<Option<u16>>()).prop_map(|(name, number)| Item { name, number })
}

prop_compose! {
    fn everything()(
        numbers in any::<(u64, i64, bool)>(),
        flags in any::<u16>(),
        bytes in any::<Vec<u8>>(),
        list in proptest::collection::vec(item(), 0..4),
        maybe in any::<Option<Option<u32>>>(),
        elements in proptest::collection::vec(item(), 0..4),
        spoilt in proptest::collection::vec(any::<u8>(), 0..3),
    ) -> Everything {
        let mut packed = Vec::new();
        elements.iter().for_each(|element| codec::push_element(&mut packed, element));
        packed.extend(spoilt);
        Everything { numbers, flags: Flags(flags), bytes, list, maybe, packed }
    }
}

#[test]
fn all_64_bits_of_a_number_are_there() {
    let json = agree(&(u64::MAX, i64::MIN, true));
    assert_eq!(json.to_string(), "[18446744073709551615,-9223372036854775808,true]");
}

#[test]
fn nothing_in_nothing_is_told_from_nothing() {
    let shown = [None, Some(None), Some(Some(7))].map(|value: Option<Option<u32>>| agree(&value).to_string());
    assert_eq!(shown, ["null", "{\"some\":null}", "{\"some\":7}"]);
}

proptest! {
    #[test]
    fn description_and_generated_code_agree_on_values(value in everything()) {
        agree(&value);
    }

    #[test]
    fn description_and_generated_code_agree_on_what_is_malformed(
        value in everything(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = bytes_of(&value);
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        payload.truncate(cut.index(payload.len() + 1));
        let shop = testing::checked();
        let ty = Type::Named("Everything".into());
        let message = Message { payload, ..Message::default() };
        let by_description = shop.decode(&ty, &message, &mut Book::default());
        let generated = codec::Decoder::whole::<Everything>(&message.payload);
        prop_assert_eq!(by_description.is_ok(), generated.is_ok());
        if let Ok(json) = by_description {
            prop_assert_eq!(shop.encode(&ty, &json, &Book::default()), Ok(message));
        }
    }
}
