//! Each mistake has an error that says what to do.

use syn::parse_quote;

use super::*;

fn parsed(item: ItemTrait) -> Interface {
    match interface(&parse_quote! { "atoll.test/1" }, &item) {
        Ok(interface) => interface,
        Err(error) => panic!("{error}"),
    }
}

fn error(item: ItemTrait) -> String {
    match interface(&parse_quote! { "atoll.test/1" }, &item) {
        Ok(_) => panic!("the mistake was accepted"),
        Err(error) => error.to_string(),
    }
}

/// The error of an interface with one operation.
fn operation_error(operation: syn::TraitItemFn) -> String {
    error(parse_quote! {
        trait Test {
            type Node;
            const READ: Rights;
            const LOOKUP: Rights = 8;
            #operation
        }
    })
}

#[test]
fn an_operation_keeps_all_that_was_said_of_it() {
    let interface = parsed(parse_quote! {
        /// A test.
        trait Test {
            type Node;
            type Lock;
            const READ: Rights;
            const LOOKUP: Rights = 8;
            #[op(2, requires = LOOKUP | READ, retry = never, deadline = "250ms")]
            fn second(node: Lock, #[requires(READ)] to: Node, path: Path<'_>, list: &[u8]) -> Result<Cap<Node>, E>;
            #[op(1, retry = idempotent, deadline = none)]
            fn first(node: Node) -> Result<(), E>;
        }
    });
    let [first, second] = interface.operations.as_slice() else { panic!("two operations") };
    assert_eq!((first.number, first.requires, first.target_number), (1, 0, 1));
    assert_eq!((first.retry, first.deadline_ns), (Retry::Idempotent, None));
    assert_eq!((second.number, second.requires, second.target_number), (2, 0x101, 2));
    assert_eq!((second.retry, second.deadline_ns), (Retry::Never, Some(250_000_000)));
    let Some(Argument { content: Content::Handle { number, requires, .. }, .. }) = second.arguments.first() else {
        panic!("the first argument is a handle");
    };
    assert_eq!((*number, *requires), (1, 1));
    assert_eq!(second.signature, "(node: Lock, to: Node, path: Path<'_>, list: &[u8]) -> Result<Cap<Node>, E>");
}

#[test]
fn the_name_of_an_interface_has_a_family_and_a_version() {
    for name in ["atoll.fs", "fs/1", "atoll.fs/0", "atoll.fs/01", "atoll.fs/x", "atoll..fs/1", "Atoll.fs/1", ""] {
        let name = LitStr::new(name, Span::call_site());
        let item = parse_quote! { trait Test { type Node; } };
        let error = interface(&name, &item).err().expect("a wrong name");
        assert!(error.to_string().contains("such as \"atoll.fs/1\""), "{}", name.value());
    }
    let item = parse_quote! { trait Test { type Node; } };
    assert!(interface(&parse_quote! { "atoll.block-ext.x/12" }, &item).is_ok());
}

#[test]
fn two_operations_cannot_have_one_number() {
    let text = error(parse_quote! {
        trait Test {
            type Node;
            #[op(1, retry = never, deadline = none)]
            fn first(node: Node) -> Result<(), E>;
            #[op(1, retry = never, deadline = none)]
            fn second(node: Node) -> Result<(), E>;
        }
    });
    assert_eq!(text, "number 1 is taken by `first`");
}

#[test]
fn every_annotation_must_be_said_once() {
    let cases: [(syn::TraitItemFn, &str); 14] = [
        (parse_quote! { fn a(node: Node) -> Result<(), E>; }, "needs `#[op(number, …)]`"),
        (parse_quote! { #[op(0, retry = never, deadline = none)] fn a(node: Node) -> Result<(), E>; }, "1 to 65279"),
        (
            parse_quote! { #[op(65280, retry = never, deadline = none)] fn a(node: Node) -> Result<(), E>; },
            "1 to 65279",
        ),
        (parse_quote! { #[op(1, deadline = none)] fn a(node: Node) -> Result<(), E>; }, "`retry = …`"),
        (parse_quote! { #[op(1, retry = never)] fn a(node: Node) -> Result<(), E>; }, "`deadline = \"5s\"`"),
        (
            parse_quote! { #[op(1, retry = never, retry = never, deadline = none)] fn a(node: Node) -> Result<(), E>; },
            "`retry` is given twice",
        ),
        (parse_quote! { #[op(1, retry = always)] fn a(node: Node) -> Result<(), E>; }, "`idempotent`, `cached` or"),
        (parse_quote! { #[op(1, deadline = "5h")] fn a(node: Node) -> Result<(), E>; }, "in us, ms, s or min"),
        (parse_quote! { #[op(1, deadline = "0s")] fn a(node: Node) -> Result<(), E>; }, "in us, ms, s or min"),
        (parse_quote! { #[op(1, colour = red)] fn a(node: Node) -> Result<(), E>; }, "expected `requires`"),
        (
            parse_quote! { #[op(1, retry = never, deadline = none, at_once, at_once)] fn a(node: Node) -> Result<(), E>; },
            "`at_once` is given twice",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none, at_once)] fn a(node: Node) -> Result<Vec<Cap<Node>>, E>; },
            "brings neither capabilities nor leases",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none, at_once)] fn a(node: Node) -> Result<(u8, Lease), E>; },
            "brings neither capabilities nor leases",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none, at_once)] fn a(node: Node, p: &[LeasePart]) -> Result<(), E>; },
            "has no leases among its arguments",
        ),
    ];
    for (operation, expected) in cases {
        let text = operation_error(operation);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn only_declared_rights_can_be_required() {
    let text = operation_error(parse_quote! {
        #[op(1, requires = READ | WRITE, retry = never, deadline = none)]
        fn a(node: Node) -> Result<(), E>;
    });
    assert_eq!(text, "no such right; declare `const WRITE: Rights;` in this trait");
    let text = operation_error(parse_quote! {
        #[op(1, retry = never, deadline = none)]
        fn a(node: Node, #[requires(CREATE)] to: Node) -> Result<(), E>;
    });
    assert!(text.contains("`const CREATE: Rights;`"), "{text}");
}

#[test]
fn rights_have_their_own_bits() {
    let cases: [(ItemTrait, &str); 5] = [
        (parse_quote! { trait T { type Node; const LOOKUP: Rights; } }, "needs its bit"),
        (parse_quote! { trait T { type Node; const LOOKUP: Rights = 7; } }, "8 to 31"),
        (parse_quote! { trait T { type Node; const LOOKUP: Rights = 32; } }, "8 to 31"),
        (parse_quote! { trait T { type Node; const READ: Rights = 8; } }, "has its bit already"),
        (parse_quote! { trait T { type Node; const A: Rights = 8; const B: Rights = 8; } }, "is `A` already"),
    ];
    for (item, expected) in cases {
        let text = error(item);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_target_and_other_handles_are_object_kinds() {
    let cases: [(syn::TraitItemFn, &str); 7] = [
        (parse_quote! { #[op(1, retry = never, deadline = none)] fn a() -> Result<(), E>; }, "needs a target"),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] fn a(call: Node) -> Result<(), E>; },
            "this name already",
        ),
        (parse_quote! { #[op(1, retry = never, deadline = none)] fn a(&self) -> Result<(), E>; }, "place of `self`"),
        (parse_quote! { #[op(1, retry = never, deadline = none)] fn a(x: u32) -> Result<(), E>; }, "comes first"),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] fn a(x: Node, y: Cap<Node>) -> Result<(), E>; },
            "the object kind itself",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] fn a(#[requires(READ)] x: Node) -> Result<(), E>; },
            "the target's rights are the operation's",
        ),
        (
            parse_quote! {
                #[op(1, retry = never, deadline = none)]
                fn a(x: Node, #[requires(READ)] y: u32) -> Result<(), E>;
            },
            "has rights",
        ),
    ];
    for (operation, expected) in cases {
        let text = operation_error(operation);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_operation_is_only_a_signature_with_a_result() {
    let cases: [(syn::TraitItemFn, &str); 5] = [
        (parse_quote! { #[op(1, retry = never, deadline = none)] fn a(x: Node); }, "returns `Result<T, E>`"),
        (parse_quote! { #[op(1, retry = never, deadline = none)] fn a(x: Node) -> u32; }, "returns `Result<T, E>`"),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] async fn a(x: Node) -> Result<(), E>; },
            "only a signature",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] fn a(x: Node) -> Result<(), E> {} },
            "only a signature",
        ),
        (
            parse_quote! { #[op(1, retry = never, deadline = none)] fn blocking(x: Node) -> Result<(), E>; },
            "of this name already",
        ),
    ];
    for (operation, expected) in cases {
        let text = operation_error(operation);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_interface_has_kinds_rights_and_operations_only() {
    assert!(error(parse_quote! { trait T { } }).contains("needs an object kind"));
    assert!(error(parse_quote! { trait T { type A; type A; } }).contains("exists already"));
    assert!(error(parse_quote! { trait T { type A: Copy; } }).contains("only a name"));
    assert!(error(parse_quote! { trait T<X> { type A; } }).contains("neither parameters"));
    assert!(error(parse_quote! { trait T { type A; surprise!(); } }).contains("kinds, rights and operations only"));
}
