use super::super::testing::shop;
use super::super::{Named, Right};
use super::*;

/// What is said when the shop becomes what `change` makes of it, and when that becomes the shop.
fn both_ways(change: impl FnOnce(&mut Interface)) -> [Vec<(String, bool, bool)>; 2] {
    let (before, mut now) = (shop(), shop());
    change(&mut now);
    [compare(&before, &now), compare(&now, &before)].map(|changes| {
        let said = |change: Change| {
            (format!("{}: {}", change.place, change.what), change.breaks_old_clients, change.breaks_new_clients)
        };
        changes.into_iter().map(said).collect()
    })
}

/// Asserts what one change comes to: there, and back.
fn assert_change(change: impl FnOnce(&mut Interface), there: (&str, bool, bool), back: (&str, bool, bool)) {
    for (said, (text, old, new)) in both_ways(change).into_iter().zip([there, back]) {
        assert_eq!(said, [(text.to_owned(), old, new)]);
    }
}

fn variants<'i>(interface: &'i mut Interface, name: &str) -> &'i mut Vec<Variant> {
    match interface.types.get_mut(name) {
        Some(Definition::Enum { variants, .. }) => variants,
        _ => panic!("{name} is an enum"),
    }
}

fn fields<'i>(interface: &'i mut Interface, name: &str) -> &'i mut Vec<Field> {
    match interface.types.get_mut(name) {
        Some(Definition::Struct { fields, .. }) => fields,
        _ => panic!("{name} is a struct"),
    }
}

fn named(name: &str, number: u16) -> Variant {
    Variant { number, name: name.into(), about: String::new(), fields: Vec::new() }
}

#[test]
fn texts_and_names_that_do_not_travel_break_nobody() {
    assert_eq!(compare(&shop(), &shop()), []);
    let [there, _] = both_ways(|shop| {
        shop.about = "Another text".into();
        shop.operations[0].about = String::new();
        shop.operations[0].name = "vend".into();
        shop.operations[0].deadline_ns = None;
        shop.operations[0].arguments[0].name = "called".into();
        variants(shop, "Packing")[0].name = "Sack".into();
        shop.operations[1].arguments[2].ty = Type::Packed(Box::new(Type::U16));
    });
    assert!(there.iter().all(|(_, old, new)| !old && !new), "{there:?}");
    assert_eq!(there.len(), 5, "{there:?}");
}

#[test]
fn an_operation_may_come_and_must_not_go() {
    assert_change(
        |shop| drop(shop.operations.pop()),
        ("operation 5 say: is gone", true, false),
        ("operation 5 say: is new; hosts of before answer UnknownOperation, not executed", false, false),
    );
}

#[test]
fn a_new_version_says_that_somebody_is_broken() {
    let (before, mut now) = (shop(), shop());
    assert!(!breaks_unsaid(&before, &now, &compare(&before, &now)));
    now.operations[0].deadline_ns = None;
    assert!(!breaks_unsaid(&before, &now, &compare(&before, &now)));
    now.operations.pop();
    for (version, unsaid) in [("test.shop/1", true), ("test.shop/2", false)] {
        now.name = version.into();
        assert_eq!(breaks_unsaid(&before, &now, &compare(&before, &now)), unsaid);
    }
}

#[test]
fn who_is_broken_by_a_right_depends_on_who_asks_for_it() {
    assert_change(
        |shop| shop.operations[2].requires.push("buy".into()),
        ("operation 5 say: requires buy now", true, false),
        ("operation 5 say: no longer requires buy", false, true),
    );
    assert_change(
        |shop| {
            let Type::Handle { requires, .. } = &mut shop.operations[1].arguments[0].ty else { panic!("a handle") };
            requires.clear();
        },
        ("operation 2 weigh, argument other: no longer requires read", false, true),
        ("operation 2 weigh, argument other: requires read now", true, false),
    );
    let right = || Right { name: "return".into(), bit: 10, about: String::new() };
    assert_change(
        |shop| shop.rights.push(right()),
        ("right return: is new", false, false),
        ("right return: is gone; manifests that give it are refused", true, false),
    );
    assert_change(
        |shop| shop.rights[1].bit = 11,
        ("right buy: bit 9 has become 11", true, true),
        ("right buy: bit 11 has become 9", true, true),
    );
}

#[test]
fn who_may_repeat_a_call_must_not_meet_a_host_that_cannot_bear_it() {
    assert_change(
        |shop| shop.operations[0].retry = Retry::Idempotent,
        ("operation 1 sell: retry cached has become idempotent", false, true),
        ("operation 1 sell: retry idempotent has become cached", true, false),
    );
}

#[test]
fn a_new_value_breaks_who_may_receive_it() {
    // Clients send how a thing is packed.
    assert_change(
        |shop| variants(shop, "Packing").push(named("Crate", 7)),
        ("type Packing, 7 Crate: is new", false, true),
        ("type Packing, 7 Crate: is gone", true, false),
    );
    // Hosts send errors.
    assert_change(
        |shop| shop.errors.get_mut("SellError").expect("there").push(named("Closed", 9)),
        ("errors SellError, 9 Closed: is new", true, false),
        ("errors SellError, 9 Closed: is gone", false, true),
    );
    // Both do, when both have it.
    let (mut before, mut now) = (shop(), shop());
    for shop in [&mut before, &mut now] {
        shop.operations[2].result = Type::Named("Packing".into());
    }
    variants(&mut now, "Packing").push(named("Crate", 7));
    let changes = compare(&before, &now);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(changes[0].breaks_old_clients && changes[0].breaks_new_clients);
}

#[test]
fn limits_of_bytes_break_who_goes_beyond_them() {
    let name = |max| Definition::Bytes { about: String::new(), min: 1, max };
    let (mut before, mut now) = (shop(), shop());
    for (shop, max) in [(&mut before, 255), (&mut now, 100)] {
        shop.types.insert("Name".into(), name(max));
        shop.operations[0].arguments[0].ty = Type::Named("Name".into());
    }
    let [narrower, wider] = [compare(&before, &now), compare(&now, &before)];
    assert_eq!(narrower[0].what, "1 to 255 bytes have become 1 to 100");
    assert_eq!((narrower[0].breaks_old_clients, narrower[0].breaks_new_clients), (true, false));
    assert_eq!((wider[0].breaks_old_clients, wider[0].breaks_new_clients), (false, true));
}

#[test]
fn other_bytes_break_everybody() {
    assert_change(
        |shop| shop.operations[0].arguments[0].ty = Type::Bytes,
        ("operation 1 sell, argument name: text has become bytes", true, true),
        ("operation 1 sell, argument name: bytes has become text", true, true),
    );
    assert_change(
        |shop| drop(shop.operations[0].arguments.pop()),
        ("operation 1 sell, argument want: is gone", true, true),
        ("operation 1 sell, argument want: is new, a rights", true, true),
    );
    let [there, _] = both_ways(|shop| fields(shop, "Item").reverse());
    assert!(there.contains(&("type Item, field name: text has become u16 or nothing".into(), true, true)), "{there:?}");
}

#[test]
fn kinds_keep_their_numbers() {
    assert_change(
        |shop| shop.kinds.push(Named { name: "Door".into(), about: String::new() }),
        ("object kind Door: is new", false, false),
        ("object kind Door: is gone", true, false),
    );
    let [there, _] = both_ways(|shop| shop.kinds.swap(0, 1));
    assert_eq!(there.len(), 2);
    assert!(there.iter().all(|(_, old, _)| *old));
    let [there, _] = both_ways(|shop| shop.operations[2].target.kind = "Ware".into());
    assert_eq!(there, [("operation 5 say: is called on a Ware and no longer on a Counter".into(), true, true)]);
}
