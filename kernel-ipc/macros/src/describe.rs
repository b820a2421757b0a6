//! The description of an interface, and of the types in it: what a program is told that was not built with them.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Attribute, Error, Field, Fields, Result, Type};

use crate::documentation::first_sentence;
use crate::parse::{Content, Interface, Operation, Retry};

/// `DESCRIPTION`: what calls look at, as data; the details as a function that nobody calls but who asks for them.
pub fn interface(interface: &Interface) -> TokenStream {
    let name = &interface.name;
    let text = format!("`{name}` as data.");
    let kinds = interface.kinds.iter().map(|kind| kind.name.to_string());
    let rights = interface.rights.iter().map(|right| {
        let (name, bits) = (right.name.to_string().to_lowercase(), right.bits);
        quote! { (#name, ::kernel_ipc::Rights::from_bits_retain(#bits)) }
    });
    let operations = interface.operations.iter().map(operation);
    let details = details(interface);
    quote! {
        #[doc = #text]
        pub static DESCRIPTION: ::kernel_ipc::interface::Description = ::kernel_ipc::interface::Description {
            name: #name,
            kinds: &[#(#kinds),*],
            rights: &[#(#rights),*],
            operations: &[#(#operations),*],
            details: #details,
        };
    }
}

fn operation(operation: &Operation) -> TokenStream {
    let Operation { number, target_number, requires, at_once, signature, .. } = operation;
    let name = operation.name.to_string();
    let retry = match operation.retry {
        Retry::Idempotent => quote! { Idempotent },
        Retry::Cached => quote! { Cached },
        Retry::Never => quote! { Never },
    };
    let deadline = match operation.deadline_ns {
        Some(ns) => quote! { ::core::option::Option::Some(::core::time::Duration::from_nanos(#ns)) },
        None => quote! { ::core::option::Option::None },
    };
    let handles = operation.arguments.iter().filter_map(|argument| match &argument.content {
        Content::Handle { number, requires, .. } => {
            let name = argument.name.to_string();
            Some(quote! {
                ::kernel_ipc::interface::HandleArgument {
                    name: #name,
                    kind: #number,
                    requires: ::kernel_ipc::Rights::from_bits_retain(#requires),
                }
            })
        }
        Content::Value(_) => None,
    });
    quote! {
        ::kernel_ipc::interface::Operation {
            number: #number,
            name: #name,
            target_kind: #target_number,
            requires: ::kernel_ipc::Rights::from_bits_retain(#requires),
            retry: ::kernel_ipc::interface::Retry::#retry,
            deadline: #deadline,
            at_once: #at_once,
            handles: &[#(#handles),*],
            signature: #signature,
        }
    }
}

fn details(interface: &Interface) -> TokenStream {
    let about = first_sentence(&interface.docs);
    let kinds = interface.kinds.iter().map(|kind| first_sentence(&kind.docs));
    let rights = interface.rights.iter().map(|right| first_sentence(&right.docs));
    let operations = interface.operations.iter().map(|operation| {
        let (about, target) = (first_sentence(&operation.docs), operation.target.to_string());
        let (result, error) = (&operation.result, &operation.error);
        let arguments = operation.arguments.iter().map(|argument| {
            let name = argument.name.to_string();
            match &argument.content {
                Content::Handle { number, requires, .. } => {
                    quote! { types.handle(#name, #number, ::kernel_ipc::Rights::from_bits_retain(#requires)) }
                }
                Content::Value(ty) => quote! { types.field::<#ty>(#name, "") },
            }
        });
        quote! {
            ::kernel_ipc::described::Signature {
                about: #about,
                target: #target,
                arguments: ::std::vec![#(#arguments),*],
                result: types.of::<#result>(),
                error: types.errors::<#error>(),
            }
        }
    });
    quote! {
        |types| ::kernel_ipc::described::Details {
            about: #about,
            kinds: ::std::vec![#(#kinds),*],
            rights: ::std::vec![#(#rights),*],
            operations: ::std::vec![#(#operations),*],
        }
    }
}

/// `Layout::describe` of a type that has a name, around its definition.
pub fn layout(name: &impl ToString, definition: &TokenStream) -> TokenStream {
    let name = name.to_string();
    quote! {
        fn describe(types: &mut ::kernel_ipc::described::Types) -> ::kernel_ipc::described::Type {
            types.define(#name, |types| #definition)
        }
    }
}

/// The definition of a struct.
pub fn structure(attributes: &[Attribute], fields: &Fields) -> Result<TokenStream> {
    let about = first_sentence(attributes);
    let fields = self::fields(fields)?;
    Ok(quote! {
        {
            let _ = &types;
            ::kernel_ipc::described::Definition::Struct { about: #about.into(), fields: #fields }
        }
    })
}

/// The definition of an enum whose values have these names, numbers and texts.
pub fn enumeration(attributes: &[Attribute], variants: &[TokenStream]) -> TokenStream {
    let about = first_sentence(attributes);
    quote! {
        {
            let _ = types;
            ::kernel_ipc::described::Definition::Enum { about: #about.into(), variants: ::std::vec![#(#variants),*] }
        }
    }
}

/// A value of an enum, or an error.
pub fn variant(variant: &syn::Variant, number: &impl ToTokens) -> Result<TokenStream> {
    let (name, about) = (variant.ident.to_string(), first_sentence(&variant.attrs));
    let fields = fields(&variant.fields)?;
    Ok(quote! {
        ::kernel_ipc::described::Variant {
            number: #number,
            name: #name.into(),
            about: #about.into(),
            fields: #fields,
        }
    })
}

fn fields(fields: &Fields) -> Result<TokenStream> {
    let fields: Vec<_> = fields.iter().enumerate().map(field).collect::<Result<_>>()?;
    Ok(quote! { ::std::vec![#(#fields),*] })
}

fn field((index, field): (usize, &Field)) -> Result<TokenStream> {
    let name = field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
    let about = first_sentence(&field.attrs);
    Ok(match packed(field)? {
        Some(element) => quote! { types.packed::<#element>(#name, #about) },
        None => {
            let ty = &field.ty;
            quote! { types.field::<#ty>(#name, #about) }
        }
    })
}

/// `#[packed(DirectoryEntry<'_>)] bytes: Vec<u8>`
fn packed(field: &Field) -> Result<Option<Type>> {
    let mut attributes = field.attrs.iter().filter(|attribute| attribute.path().is_ident("packed"));
    let Some(attribute) = attributes.next() else { return Ok(None) };
    let ty = &field.ty;
    let is_bytes = quote! { #ty }.to_string() == "Vec < u8 >";
    if !is_bytes || attributes.next().is_some() {
        return Err(Error::new_spanned(attribute, "elements are packed in a `Vec<u8>`, of one type"));
    }
    attribute.parse_args().map(Some)
}
