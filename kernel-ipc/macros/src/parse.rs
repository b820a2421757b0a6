//! From a trait to the model of an interface, with an error at its place for whatever is wrong.

use std::collections::HashMap;

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Attribute, Error, FnArg, Ident, ItemTrait, LitInt, LitStr, Pat, Result, ReturnType, Token, TraitItem, Type};

use crate::documentation::docs;

/// An interface as its trait says it.
pub struct Interface {
    pub name: String,
    pub docs: Vec<Attribute>,
    pub kinds: Vec<Kind>,
    pub rights: Vec<Right>,
    /// In ascending order of their numbers.
    pub operations: Vec<Operation>,
}

/// An object kind. Its number is its place, from 1.
pub struct Kind {
    pub docs: Vec<Attribute>,
    pub name: Ident,
}

/// A right that the interface knows.
pub struct Right {
    pub docs: Vec<Attribute>,
    pub name: Ident,
    pub bits: u32,
}

/// An operation.
pub struct Operation {
    pub docs: Vec<Attribute>,
    pub number: u16,
    pub name: Ident,
    pub requires: u32,
    pub retry: Retry,
    pub deadline_ns: Option<u64>,
    /// Its handler is an ordinary function, which never waits.
    pub at_once: bool,
    /// The target's name.
    pub target: Ident,
    pub target_kind: Ident,
    /// Number of the target's kind.
    pub target_number: u8,
    /// Without the target.
    pub arguments: Vec<Argument>,
    pub result: Type,
    pub error: Type,
    pub signature: String,
}

/// What may be done when the answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Idempotent,
    Cached,
    Never,
}

/// An argument beside the target.
pub struct Argument {
    pub name: Ident,
    pub content: Content,
}

/// What an argument is.
pub enum Content {
    /// A capability of this kind, with these rights.
    Handle { kind: Ident, number: u8, requires: u32 },
    /// Anything that is encoded.
    Value(Box<Type>),
}

/// Bits of the rights that every interface shares.
const GENERIC_RIGHTS: [(&str, u32); 4] = [("READ", 1), ("WRITE", 2), ("GRANT", 4), ("MAP", 8)];

/// Reads the interface called `name` from `item`.
pub fn interface(name: &LitStr, item: &ItemTrait) -> Result<Interface> {
    check_interface_name(name)?;
    if !item.generics.params.is_empty() || !item.supertraits.is_empty() {
        return Err(Error::new_spanned(&item.generics, "an interface has neither parameters nor supertraits"));
    }
    let kinds = kinds(item)?;
    let rights = rights(item)?;
    let names = Names {
        kinds: kinds.iter().zip(1..).map(|(kind, number)| (kind.name.to_string(), number)).collect(),
        rights: rights.iter().map(|right| (right.name.to_string(), right.bits)).collect(),
    };

    let mut operations = Vec::new();
    for item in &item.items {
        match item {
            TraitItem::Fn(function) => operations.push(operation(function, &names)?),
            TraitItem::Type(_) | TraitItem::Const(_) => {}
            other => return Err(Error::new_spanned(other, "an interface has kinds, rights and operations only")),
        }
    }
    operations.sort_by_key(|operation| operation.number);
    for pair in operations.windows(2) {
        if let [first, second] = pair
            && first.number == second.number
        {
            let (number, taken) = (second.number, &first.name);
            return Err(Error::new(second.name.span(), format!("number {number} is taken by `{taken}`")));
        }
    }
    Ok(Interface { name: name.value(), docs: docs(&item.attrs), kinds, rights, operations })
}

/// Kinds and rights by name.
struct Names {
    kinds: HashMap<String, u8>,
    rights: HashMap<String, u32>,
}

/// `family.name/version`, as in a manifest.
fn check_interface_name(name: &LitStr) -> Result<()> {
    let value = name.value();
    let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let good = value.split_once('/').is_some_and(|(path, version)| {
        path.contains('.')
            && path.split('.').all(word)
            && version.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == version)
    });
    if good { Ok(()) } else { Err(Error::new(name.span(), "expected a name and version such as \"atoll.fs/1\"")) }
}

fn kinds(item: &ItemTrait) -> Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for item in &item.items {
        let TraitItem::Type(kind) = item else { continue };
        if !kind.bounds.is_empty() || kind.default.is_some() || !kind.generics.params.is_empty() {
            return Err(Error::new_spanned(kind, "an object kind is only a name: `type Node;`"));
        }
        if kinds.iter().any(|known| known.name == kind.ident) {
            return Err(Error::new(kind.ident.span(), "this kind exists already"));
        }
        kinds.push(Kind { docs: docs(&kind.attrs), name: kind.ident.clone() });
    }
    if kinds.is_empty() {
        return Err(Error::new(item.ident.span(), "an interface needs an object kind: `type Node;`"));
    }
    if kinds.len() > usize::from(u8::MAX) {
        return Err(Error::new(item.ident.span(), "an interface has at most 255 object kinds"));
    }
    Ok(kinds)
}

fn rights(item: &ItemTrait) -> Result<Vec<Right>> {
    let mut rights: Vec<Right> = Vec::new();
    for item in &item.items {
        let TraitItem::Const(right) = item else { continue };
        let generic = GENERIC_RIGHTS.iter().find(|(name, _)| right.ident == name);
        let bits = match (generic, &right.default) {
            (Some((_, bits)), None) => *bits,
            (Some(_), Some((_, value))) => {
                return Err(Error::new_spanned(value, "a generic right has its bit already: `const READ: Rights;`"));
            }
            (None, None) => {
                let text = "an interface's own right needs its bit: `const LOOKUP: Rights = 8;`";
                return Err(Error::new(right.ident.span(), text));
            }
            (None, Some((_, value))) => own_right(value)?,
        };
        if let Some(known) = rights.iter().find(|known| known.bits == bits || known.name == right.ident) {
            return Err(Error::new(right.ident.span(), format!("this right is `{}` already", known.name)));
        }
        rights.push(Right { docs: docs(&right.attrs), name: right.ident.clone(), bits });
    }
    Ok(rights)
}

fn own_right(value: &syn::Expr) -> Result<u32> {
    let bit = match value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(bit), .. }) => bit.base10_parse::<u32>().ok(),
        _ => None,
    };
    match bit {
        Some(bit @ 8..=31) => Ok(1 << bit),
        _ => Err(Error::new_spanned(value, "bits 8 to 31 are the interface's own")),
    }
}

/// The values of `#[op(…)]`.
struct Annotation {
    number: u16,
    requires: Vec<Ident>,
    retry: Retry,
    deadline_ns: Option<u64>,
    at_once: bool,
}

impl Parse for Annotation {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let number: LitInt = input.parse()?;
        let number = match number.base10_parse::<u16>() {
            Ok(value @ 1..0xFF00) => value,
            // Those above are operations that every host has.
            _ => return Err(Error::new(number.span(), "an operation's number is 1 to 65279")),
        };
        let (mut requires, mut retry, mut deadline, mut at_once) = (None, None, None, false);
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if input.is_empty() {
                break;
            }
            let key: Ident = input.parse()?;
            if key == "at_once" {
                if std::mem::replace(&mut at_once, true) {
                    return Err(Error::new(key.span(), "`at_once` is given twice"));
                }
                continue;
            }
            input.parse::<Token![=]>()?;
            let again = match key.to_string().as_str() {
                "requires" => requires.replace(right_names(input)?).is_some(),
                "retry" => retry.replace(retry_class(&input.parse()?)?).is_some(),
                "deadline" => deadline.replace(deadline_ns(input)?).is_some(),
                _ => return Err(Error::new(key.span(), "expected `requires`, `retry`, `deadline` or `at_once`")),
            };
            if again {
                return Err(Error::new(key.span(), format!("`{key}` is given twice")));
            }
        }
        Ok(Annotation {
            number,
            requires: requires.unwrap_or_default(),
            retry: retry.ok_or_else(|| input.error("say what to do when the answer is lost: `retry = …`"))?,
            deadline_ns: deadline.ok_or_else(|| input.error("say how long to wait: `deadline = \"5s\"` or `none`"))?,
            at_once,
        })
    }
}

/// `LOOKUP | READ`
fn right_names(input: ParseStream<'_>) -> Result<Vec<Ident>> {
    let mut names = vec![input.parse()?];
    while input.parse::<Option<Token![|]>>()?.is_some() {
        names.push(input.parse()?);
    }
    Ok(names)
}

fn retry_class(name: &Ident) -> Result<Retry> {
    match name.to_string().as_str() {
        "idempotent" => Ok(Retry::Idempotent),
        "cached" => Ok(Retry::Cached),
        "never" => Ok(Retry::Never),
        _ => Err(Error::new(name.span(), "expected `idempotent`, `cached` or `never`")),
    }
}

/// `"250ms"`, `"5s"`, `"2min"`, or `none`.
fn deadline_ns(input: ParseStream<'_>) -> Result<Option<u64>> {
    if let Some(name) = input.parse::<Option<Ident>>()? {
        return if name == "none" { Ok(None) } else { Err(Error::new(name.span(), "expected a time or `none`")) };
    }
    let text: LitStr = input.parse()?;
    let value = text.value();
    let (digits, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    let unit_ns: Option<u64> = match unit {
        "us" => Some(1_000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        "min" => Some(60_000_000_000),
        _ => None,
    };
    let time = digits.parse::<u64>().ok().zip(unit_ns).and_then(|(count, unit_ns)| count.checked_mul(unit_ns));
    match time {
        Some(1..) => Ok(time),
        _ => Err(Error::new(text.span(), "expected a time such as \"5s\", in us, ms, s or min")),
    }
}

fn operation(function: &syn::TraitItemFn, names: &Names) -> Result<Operation> {
    let signature = &function.sig;
    let mut annotations = function.attrs.iter().filter(|attribute| attribute.path().is_ident("op"));
    let annotation = match (annotations.next(), annotations.next()) {
        (Some(one), None) => one.parse_args::<Annotation>()?,
        (Some(_), Some(second)) => return Err(Error::new_spanned(second, "`op` is given twice")),
        (None, _) => return Err(Error::new(signature.ident.span(), "an operation needs `#[op(number, …)]`")),
    };
    let plain = signature.asyncness.is_none() && signature.unsafety.is_none() && signature.generics.params.is_empty();
    if !plain || function.default.is_some() {
        let text = "an operation is only a signature: not async, not generic, no body";
        return Err(Error::new(signature.ident.span(), text));
    }
    if RESERVED.iter().any(|name| signature.ident == name) {
        return Err(Error::new(signature.ident.span(), "every client has a method of this name already"));
    }

    let (Target { name: target, kind: target_kind, number: target_number }, arguments) = arguments(function, names)?;
    let (result, error) = result_types(&signature.output, signature.ident.span())?;
    if annotation.at_once && (brings(&result) || arguments.iter().any(Argument::is_lease)) {
        let text =
            "what is answered at once has no leases among its arguments, and brings neither capabilities nor leases";
        return Err(Error::new(signature.ident.span(), text));
    }
    Ok(Operation {
        docs: docs(&function.attrs),
        number: annotation.number,
        name: signature.ident.clone(),
        requires: rights_named(&annotation.requires, names)?,
        retry: annotation.retry,
        deadline_ns: annotation.deadline_ns,
        at_once: annotation.at_once,
        target,
        target_kind,
        target_number,
        arguments,
        signature: signature_text(signature),
        result,
        error,
    })
}

/// Whether a type says that something travels beside the payload: `Cap<…>` or `Lease`, wherever it stands in it.
fn brings(ty: &Type) -> bool {
    names_any(ty.to_token_stream(), &["Cap", "Lease"])
}

impl Argument {
    fn is_lease(&self) -> bool {
        matches!(&self.content, Content::Value(ty) if names_any(ty.to_token_stream(), &["LeasePart"]))
    }
}

fn names_any(tokens: TokenStream, names: &[&str]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => names.iter().any(|name| ident == name),
        TokenTree::Group(group) => names_any(group.stream(), names),
        _ => false,
    })
}

/// Names of the methods that every client has.
const RESERVED: [&str; 4] = ["root", "blocking", "deadline", "connection"];

/// What an operation is called on.
struct Target {
    name: Ident,
    kind: Ident,
    number: u8,
}

/// The target, and the other arguments.
fn arguments(function: &syn::TraitItemFn, names: &Names) -> Result<(Target, Vec<Argument>)> {
    let mut target = None;
    let mut arguments = Vec::new();
    for input in &function.sig.inputs {
        let FnArg::Typed(input) = input else {
            return Err(Error::new_spanned(input, "the target takes the place of `self`: `node: Node`"));
        };
        let Pat::Ident(name) = &*input.pat else {
            return Err(Error::new_spanned(&input.pat, "expected a name"));
        };
        if name.ident == "call" {
            return Err(Error::new(name.ident.span(), "a handler's first argument has this name already"));
        }
        let kind = object_kind(&input.ty, names);
        let requires = argument_rights(&input.attrs)?;
        match (&target, kind) {
            (None, kind) => {
                if let Some(requires) = requires {
                    let text = "the target's rights are the operation's: `#[op(…, requires = …)]`";
                    return Err(Error::new(requires.0, text));
                }
                let not_a_kind = || Error::new_spanned(&input.ty, "the target comes first: an object kind");
                let (kind, number) = kind.ok_or_else(not_a_kind)?;
                target = Some(Target { name: name.ident.clone(), kind, number });
            }
            (Some(_), Some((kind, number))) => {
                let requires = rights_named(&requires.map(|(_, names)| names).unwrap_or_default(), names)?;
                let content = Content::Handle { kind, number, requires };
                arguments.push(Argument { name: name.ident.clone(), content });
            }
            (Some(_), None) => {
                if let Some(requires) = requires {
                    return Err(Error::new(requires.0, "only an argument that is an object kind has rights"));
                }
                if names.kinds.keys().any(|kind| mentions(&input.ty, kind)) || mentions(&input.ty, "Cap") {
                    let text = "a handle argument is the object kind itself: `to: Node`";
                    return Err(Error::new_spanned(&input.ty, text));
                }
                let content = Content::Value(input.ty.clone());
                arguments.push(Argument { name: name.ident.clone(), content });
            }
        }
    }
    let target = target.ok_or_else(|| Error::new(function.sig.ident.span(), "an operation needs a target"))?;
    let handles = arguments.iter().filter(|argument| matches!(argument.content, Content::Handle { .. })).count();
    if handles > 16 {
        return Err(Error::new(function.sig.ident.span(), "a call carries at most 16 handles"));
    }
    Ok((target, arguments))
}

fn object_kind(ty: &Type, names: &Names) -> Option<(Ident, u8)> {
    let Type::Path(path) = ty else { return None };
    let name = path.path.get_ident()?;
    names.kinds.get(&name.to_string()).map(|number| (name.clone(), *number))
}

/// `#[requires(CREATE)]` on a handle argument.
fn argument_rights(attributes: &[Attribute]) -> Result<Option<(Span, Vec<Ident>)>> {
    let mut found = None;
    for attribute in attributes {
        if !attribute.path().is_ident("requires") {
            return Err(Error::new_spanned(attribute, "expected `#[requires(…)]`"));
        }
        found = Some((attribute.span(), attribute.parse_args_with(right_names)?));
    }
    Ok(found)
}

fn rights_named(required: &[Ident], names: &Names) -> Result<u32> {
    required.iter().try_fold(0, |all, name| match names.rights.get(&name.to_string()) {
        Some(bits) => Ok(all | bits),
        None => Err(Error::new(name.span(), format!("no such right; declare `const {name}: Rights;` in this trait"))),
    })
}

/// `Result<T, E>`
fn result_types(output: &ReturnType, place: Span) -> Result<(Type, Type)> {
    let wrong = || Error::new(place, "an operation returns `Result<T, E>`, where E derives `OperationError`");
    let ReturnType::Type(_, ty) = output else { return Err(wrong()) };
    let Type::Path(path) = &**ty else { return Err(wrong()) };
    let last = path.path.segments.last().filter(|segment| segment.ident == "Result").ok_or_else(wrong)?;
    let syn::PathArguments::AngleBracketed(types) = &last.arguments else { return Err(wrong()) };
    let mut types = types.args.iter().map(|argument| match argument {
        syn::GenericArgument::Type(ty) => Ok(ty.clone()),
        _ => Err(wrong()),
    });
    match (types.next(), types.next(), types.next()) {
        (Some(result), Some(error), None) => Ok((result?, error?)),
        _ => Err(wrong()),
    }
}

/// Whether `name` occurs in `ty`.
pub fn mentions(ty: &Type, name: &str) -> bool {
    fn in_stream(stream: TokenStream, name: &str) -> bool {
        stream.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => ident == name,
            TokenTree::Group(group) => in_stream(group.stream(), name),
            _ => false,
        })
    }
    in_stream(ty.to_token_stream(), name)
}

/// A signature as a person writes it: the tokens' own text has a space around each of them.
fn signature_text(signature: &syn::Signature) -> String {
    let mut text = String::from("(");
    for (index, input) in signature.inputs.iter().enumerate() {
        let FnArg::Typed(input) = input else { continue };
        text.push_str(if index == 0 { "" } else { ", " });
        write_tokens(input.pat.to_token_stream(), &mut text);
        text.push_str(": ");
        write_tokens(input.ty.to_token_stream(), &mut text);
    }
    text.push_str(") -> ");
    if let ReturnType::Type(_, ty) = &signature.output {
        write_tokens(ty.to_token_stream(), &mut text);
    }
    text
}

fn write_tokens(tokens: TokenStream, text: &mut String) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::None => ("", ""),
                };
                text.push_str(open);
                write_tokens(group.stream(), text);
                text.push_str(close);
            }
            TokenTree::Punct(punct) if matches!(punct.as_char(), ',' | ';') => {
                text.push(punct.as_char());
                text.push(' ');
            }
            other => text.push_str(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
